//! What is known of an image's layers, here and elsewhere: asked before a layer is streamed, told afterwards.

use std::{collections::HashMap, sync::Arc, time::Instant};

use bytes::Bytes;
use silk_model::{
    Class, Digest,
    metrics::{Lie, METRICS},
};
use silk_registry::Repository;
use silk_share::{Found, Image, LayerKnowledge};
use silk_store::Known;

use super::{Puller, pull::Source};
use crate::{ImageSpec, LayerSpec, lazy::Road, timing::Trip};

type Learned = HashMap<Digest, Found<()>>;
type FoundProfiles = Vec<Found<Bytes>>;

impl Puller {
    /// Opens the layers whose names and index are known; returns the others.
    pub(super) async fn open_known(
        self: &Arc<Self>,
        mut missing: Vec<(usize, LayerSpec)>,
        sources: &[Source],
        trip: Option<&Arc<Trip>>,
    ) -> Vec<(usize, LayerSpec)> {
        if !self.config.lazy || !self.seams.show.lazily() {
            return missing;
        }
        for (spec, repository) in sources {
            let Ok(repository) = repository else { continue };
            if missing.is_empty() {
                break;
            }
            let layers = missing.iter().filter_map(|(_, m)| spec.layers.iter().find(|l| l.diff_id == m.diff_id));
            let layers: Vec<_> = layers.cloned().collect();
            let began = Instant::now();
            let (learned, profiles) = self.ask(spec, repository, &layers).await;
            let asked = began.elapsed().as_secs_f64();
            let starting = self.lazies.starting();
            let opened = self.open(self.road(spec, repository, trip), layers, learned).await;
            let seconds = began.elapsed().as_secs_f64();
            tracing::debug!(image = spec.reference, opened = opened.len(), asked, seconds, "known layers were opened");
            if !opened.is_empty() {
                self.fetch_start(spec, repository, profiles, starting);
            }
            missing.retain(|(_, layer)| !opened.contains(&layer.diff_id));
        }
        missing
    }

    /// Asks others about the layers that this node does not know. Without such, nothing is found: that must not wait.
    async fn ask(
        &self,
        spec: &ImageSpec,
        repository: &Repository,
        layers: &[LayerSpec],
    ) -> (Learned, Option<FoundProfiles>) {
        let unknown: Vec<_> = layers.iter().filter(|l| !self.store.is_known(&l.diff_id, &l.blob)).cloned().collect();
        if unknown.is_empty() || self.seams.share.is_alone() {
            return (Learned::new(), None);
        }
        let image = Image { repository: Some(repository.clone()), manifest: spec.manifest };
        let blobs: Vec<_> = unknown.iter().map(|l| l.blob).collect();
        let knowledge = self.seams.share.image(&image, &blobs).await;
        let mut learned = Learned::new();
        for (layer, found) in unknown.iter().zip(knowledge.layers) {
            let Some(found) = found else { continue };
            match self.learn(layer, &found).await {
                Ok(()) => drop(learned.insert(layer.diff_id, found.with(()))),
                Err((Class::Corrupt, why)) => {
                    METRICS.lies.of(Lie::Index).one();
                    self.seams.share.distrust(&image, &found, &why);
                }
                Err((_, why)) => tracing::warn!(image = spec.reference, why, "what a peer knows could not be kept"),
            }
        }
        (learned, Some(knowledge.profiles))
    }

    async fn learn(&self, layer: &LayerSpec, found: &Found<LayerKnowledge>) -> Result<(), (Class, String)> {
        let LayerKnowledge { diff_id, toc, index, .. } = &found.value;
        if *diff_id != layer.diff_id {
            return Err((Class::Corrupt, format!("it is of {diff_id}, the image's layer is {}", layer.diff_id)));
        }
        let known = Known { diff_id: *diff_id, blob: layer.blob, toc: toc.to_vec(), index: index.to_vec() };
        let (store, from) = (Arc::clone(&self.store), found.origin());
        let learned = tokio::task::spawn_blocking(move || store.learn(&known, &from)).await;
        learned.map_err(|e| (Class::Internal, e.to_string()))?.map_err(|e| (e.class(), e.to_string()))
    }

    fn road(&self, spec: &Arc<ImageSpec>, repository: &Repository, trip: Option<&Arc<Trip>>) -> Road {
        Road {
            lazies: Arc::clone(&self.lazies),
            streams: Arc::clone(&self.layers),
            show: Arc::clone(&self.seams.show),
            share: Arc::clone(&self.seams.share),
            repository: repository.clone(),
            image: Arc::clone(spec),
            trip: trip.cloned(),
        }
    }

    /// Opens what is known by now; returns what was opened.
    async fn open(&self, road: Road, layers: Vec<LayerSpec>, mut learned: Learned) -> Vec<Digest> {
        // The layers outlive the opening, so they are parts of what it is a part of.
        let span = tracing::Span::current();
        let opened = tokio::task::spawn_blocking(move || {
            let _span = span.entered();
            let mut opened = Vec::new();
            for layer in layers {
                match road.lazies.open(&layer, learned.remove(&layer.diff_id), &road) {
                    Ok(true) => opened.push(layer.diff_id),
                    Ok(false) => {}
                    // Streaming it meets the same trouble, and tells the user.
                    Err(error) => {
                        tracing::warn!(diff_id = %layer.diff_id, %error, "a layer that is known cannot be opened")
                    }
                }
            }
            opened
        });
        opened.await.unwrap_or_default()
    }

    /// Tells others what was learned of a layer that has streamed in.
    pub(super) fn tell(self: &Arc<Self>, spec: &ImageSpec, repository: &Repository, diff_id: Digest) {
        if self.seams.share.is_alone() {
            return;
        }
        let image = Image { repository: Some(repository.clone()), manifest: spec.manifest };
        let (store, share) = (Arc::clone(&self.store), Arc::clone(&self.seams.share));
        tokio::task::spawn_blocking(move || match store.known(&diff_id) {
            Ok(Known { diff_id, blob, toc, index }) => {
                share.publish_layer(&image, LayerKnowledge { blob, diff_id, toc: toc.into(), index: index.into() });
            }
            Err(error) => tracing::warn!(%diff_id, %error, "others are not told of a layer"),
        });
    }
}
