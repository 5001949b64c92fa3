//! One try at an image: its layers, then their mounts.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use futures::{StreamExt as _, stream::FuturesUnordered};
use silk_model::{Class, Digest, metrics::Kind};
use silk_registry::Repository;
use tokio::sync::oneshot;
use tracing::Instrument as _;

use super::{Image, Puller, known::Unknown};
use crate::{ImageError, ImageSpec, LayerError, LayerSpec, ReadError, ShowError, lazy::Lazies, spans, timing::Trip};

/// How often an image is shown before its pull fails. Chosen: each time once more takes another lie about its layers, another loss of the
/// disk, or a layer with bytes that have to be here first.
const SHOWS: usize = 5;

/// Bytes that are read at once of what has to be here first. An answer takes so much memory.
const BROUGHT_AT_ONCE: usize = 1 << 20;

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
        for _ in 1..SHOWS {
            let Err(error) = &shown else { break };
            if self.doubts_names(&ids, error) || self.is_passing(&ids, error) {
                self.pull_layers(image, spec, count, trip).await?;
            } else {
                match self.bring(error).await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(cause) => {
                        let (diff_id, class) = (error.diff_id, cause.class);
                        shown = Err(ShowError { diff_id, class, missing: Vec::new(), source: Box::new(cause) });
                        break;
                    }
                }
            }
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
        tokio::task::spawn_blocking(move || span.in_scope(|| show.show(&ids))).await.unwrap_or_else(|panic| {
            Err(ShowError { diff_id: None, class: Class::Internal, missing: Vec::new(), source: Box::new(panic) })
        })
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

    /// A layer that was here went away while it was shown: its index was found to be no good, the disk lost it, its names lied. Then it
    /// is streamed, which is waited for; or what was made of its names went, and is made again.
    fn is_passing(&self, ids: &[Digest], error: &ShowError) -> bool {
        let went = matches!(error.class, Class::Precondition | Class::NotFound | Class::Internal);
        went || ids.iter().any(|id| !self.lazies.is_here(id))
    }

    /// Waits for bytes without which layers cannot be shown; were there any?
    async fn bring(&self, error: &ShowError) -> Result<bool, ReadError> {
        const PIECE: u64 = BROUGHT_AT_ONCE as u64;
        let pieces = error.missing.iter().flat_map(|(diff_id, bytes)| {
            (bytes.start / PIECE..bytes.end.div_ceil(PIECE)).map(|piece| (*diff_id, piece * PIECE))
        });
        // Small files are many to a piece.
        for (diff_id, from) in pieces.collect::<BTreeSet<_>>() {
            let Some(lazy) = self.lazies.get(&diff_id) else { continue };
            let (to, came) = oneshot::channel();
            lazy.bring(from, BROUGHT_AT_ONCE, Box::new(move |read| drop(to.send(read.map(drop)))));
            // Without an answer (silkd stops) it turns out where they are shown.
            came.await.unwrap_or(Ok(()))?;
        }
        Ok(!error.missing.is_empty())
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
        self.fill_already(spec, trip).await;
        if missing.is_empty() {
            had_to(Kind::Here);
            return Ok(());
        }
        let mut sources = Vec::new();
        for source in image.sources(spec) {
            let repository = self.repository(&source.reference).await.map_err(Arc::new);
            sources.push((source, repository));
        }
        let unknown = self.open_known(image, missing, &sources, trip).instrument(spans::part!("known")).await;
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

    /// Layers that another pull opened, and that are not whole yet: what keeps its registry from giving them need not keep this image's.
    async fn fill_already(&self, spec: &ImageSpec, trip: Option<&Arc<Trip>>) {
        let filling = spec.layers.iter().filter_map(|layer| Some((layer, self.lazies.get(&layer.diff_id)?)));
        let mut others = Vec::new();
        for (layer, lazy) in filling {
            if let Some(trip) = trip {
                trip.has(layer.diff_id, &lazy.clocks);
            }
            if !lazy.is_of(&spec.reference) {
                others.push((layer, lazy));
            }
        }
        if others.is_empty() {
            return;
        }
        match self.repository(&spec.reference).await {
            Ok(own) => others.iter().for_each(|(layer, lazy)| lazy.offer(own.blob(layer.blob, layer.size))),
            Err(error) => tracing::debug!(image = spec.reference, %error, "its layers come from another's repository"),
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
                // Another pull has opened it while this one waited for its turn.
                Err(_) if self.lazies.is_here(diff_id) => return Ok(()),
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
pub(super) fn missing(spec: &ImageSpec, lazies: &Lazies) -> Vec<(usize, LayerSpec)> {
    let mut missing: Vec<(usize, LayerSpec)> = Vec::new();
    for (index, layer) in spec.layers.iter().enumerate() {
        if !lazies.is_here(&layer.diff_id) && missing.iter().all(|(_, m)| m.diff_id != layer.diff_id) {
            missing.push((index, layer.clone()));
        }
    }
    missing.sort_by_key(|(_, layer)| std::cmp::Reverse(layer.size));
    missing
}
