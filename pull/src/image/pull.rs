//! One try at an image: its layers, then their mounts.

use std::{sync::Arc, time::Instant};

use futures::{StreamExt as _, stream::FuturesUnordered};
use silk_model::{Class, Digest, metrics::Kind};
use silk_registry::Repository;
use tracing::Instrument as _;

use super::{Image, Puller, known::Unknown};
use crate::{ImageError, ImageSpec, LayerError, LayerSpec, ShowError, lazy::Lazies, spans, timing::Trip};

impl Puller {
    /// The lowest `count` layers at once, then their mounts. The image's own pull has a `trip`; one for the sake of lower layers
    /// only has none: it says nothing of the image's, which may be under way.
    pub(super) async fn pull(
        self: &Arc<Self>,
        image: &Image,
        spec: &Arc<ImageSpec>,
        count: usize,
        trip: Option<&Arc<Trip>>,
    ) -> Result<(), ImageError> {
        let began = Instant::now();
        self.pull_layers(image, spec, count, trip).await?;
        trip.inspect(|trip| trip.mark_here());
        let here = began.elapsed().as_secs_f64();
        let mut ids = spec.diff_ids();
        ids.truncate(count);
        let mut shown = self.show(&ids).await;
        if shown.as_ref().is_err_and(|error| self.doubts_names(&ids, error)) {
            self.pull_layers(image, spec, count, trip).await?;
            shown = self.show(&ids).await;
        }
        trip.inspect(|trip| trip.mark_mounted());
        let seconds = began.elapsed().as_secs_f64();
        tracing::debug!(image = spec.reference, count, here, seconds, "layers were brought and shown");
        shown.map_err(|error| ImageError::Show {
            image: spec.reference.clone(),
            layer: error
                .diff_id
                .and_then(|id| spec.layers.iter().position(|l| l.diff_id == id))
                .map(|i| format!("layer {} of {} ({}): ", i + 1, spec.layers.len(), spec.layers[i].blob))
                .unwrap_or_default(),
            source: Arc::new(error),
        })
    }

    async fn show(&self, ids: &[Digest]) -> Result<(), ShowError> {
        let (show, ids) = (Arc::clone(&self.seams.show), ids.to_vec());
        let span = spans::part!("mount");
        tokio::task::spawn_blocking(move || span.in_scope(|| show.show(&ids)))
            .await
            .unwrap_or_else(|panic| Err(ShowError { diff_id: None, class: Class::Internal, source: Box::new(panic) }))
    }

    /// Names that were never proved may be what makes the tree of a layer impossible: its own, or those of layers below. Gives
    /// them up, so that these layers are streamed, and says whether there were any.
    fn doubts_names(&self, ids: &[Digest], error: &ShowError) -> bool {
        let at = error.diff_id.and_then(|id| ids.iter().position(|other| *other == id));
        let Some(at) = at.filter(|_| matches!(error.class, Class::Corrupt | Class::Unsupported)) else { return false };
        let unproved: Vec<_> = ids[..=at].iter().filter_map(|id| self.lazies.get(id)).collect();
        unproved.iter().for_each(|lazy| lazy.doubt(error));
        !unproved.is_empty()
    }

    async fn pull_layers(
        self: &Arc<Self>,
        image: &Image,
        spec: &Arc<ImageSpec>,
        count: usize,
        trip: Option<&Arc<Trip>>,
    ) -> Result<(), ImageError> {
        let mut missing = missing(spec, &self.lazies);
        missing.retain(|(index, _)| *index < count);
        let had_to = |kind| {
            if let Some(trip) = trip {
                image.had_to(kind);
                trip.mark_resolved();
            }
        };
        self.fill_already(spec, trip);
        if missing.is_empty() {
            had_to(Kind::Here);
            return Ok(());
        }
        let mut sources = Vec::new();
        for source in image.sources(spec) {
            let repository = self.repository(&source.reference).await.map_err(Arc::new);
            sources.push((source, repository));
        }
        let unknown = self.open_known(missing, &sources, trip).instrument(spans::part!("known")).await;
        let Unknown { layers: missing, newer } = unknown;
        had_to(if missing.is_empty() { Kind::Known } else { Kind::First });
        let trip = trip.map(Arc::as_ref);
        // In this order they stand in line for their turns.
        let pulls = missing.iter().map(|(_, layer)| {
            let diff_id = &layer.diff_id;
            self.from_one(diff_id, &sources, trip, !newer.contains(diff_id))
        });
        let mut pulls: FuturesUnordered<_> = pulls.collect();
        while let Some(ended) = pulls.next().await {
            // The others are no longer waited for: those not started yet never will be, those under way become cache.
            ended?;
        }
        Ok(())
    }

    /// Layers that another pull opened, and that are not whole yet.
    fn fill_already(&self, spec: &ImageSpec, trip: Option<&Arc<Trip>>) {
        for (trip, layer) in spec.layers.iter().filter_map(|layer| Some((trip?, layer))) {
            if let Some(lazy) = self.lazies.get(&layer.diff_id) {
                trip.has(layer.diff_id, &lazy.clocks);
            }
        }
    }
}

/// An image that has a layer, and the repository of its blobs if it can be asked.
pub(super) type Source = (Arc<ImageSpec>, Result<Repository, Arc<LayerError>>);

impl Puller {
    /// Streams a layer from the first source that gives it, and `tells` others. The error is the first one's, which is what the
    /// user asked for last.
    async fn from_one(
        self: &Arc<Self>,
        diff_id: &Digest,
        sources: &[Source],
        trip: Option<&Trip>,
        tells: bool,
    ) -> Result<(), ImageError> {
        if let Some(lazy) = self.lazies.get(diff_id) {
            if self.lazies.is_here(diff_id) {
                // Another pull has opened it meanwhile.
                return Ok(());
            }
            lazy.given_up().await;
        }
        let mut first = None;
        for (spec, repository) in sources {
            let Some(index) = spec.layers.iter().position(|l| l.diff_id == *diff_id) else { continue };
            let outcome = match repository {
                Ok(repository) => self.layers.pull(&spec.layers[index], repository, trip).await.map(|()| repository),
                Err(error) => Err(Arc::clone(error)),
            };
            let error = match outcome {
                Ok(repository) => {
                    if tells {
                        self.tell(spec, repository, *diff_id);
                    }
                    return Ok(());
                }
                Err(error) => error,
            };
            let class = error.class();
            let error = failed(spec, index, error);
            if matches!(class, Class::NoSpace | Class::Internal) {
                // No other source helps against a full disk.
                return Err(error);
            }
            first.get_or_insert(error);
        }
        first.map_or(Ok(()), Err)
    }
}

pub(super) fn failed(spec: &ImageSpec, index: usize, source: Arc<LayerError>) -> ImageError {
    ImageError::Layer {
        image: spec.reference.clone(),
        number: index + 1,
        count: spec.layers.len(),
        blob: spec.layers[index].blob,
        source,
    }
}

/// The layers that are not here, each diff ID once, the largest first: the end of a pull is decided by its largest layer.
fn missing(spec: &ImageSpec, lazies: &Lazies) -> Vec<(usize, LayerSpec)> {
    let mut missing: Vec<(usize, LayerSpec)> = Vec::new();
    for (index, layer) in spec.layers.iter().enumerate() {
        if !lazies.is_here(&layer.diff_id) && missing.iter().all(|(_, m)| m.diff_id != layer.diff_id) {
            missing.push((index, layer.clone()));
        }
    }
    missing.sort_by_key(|(_, layer)| std::cmp::Reverse(layer.size));
    missing
}
