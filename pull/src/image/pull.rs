//! One try at an image: its layers, then their mounts.

use std::sync::Arc;

use silk_registry::Repository;
use tokio::task::JoinSet;

use super::Puller;
use crate::{
    ImageError, ImageSpec, LayerError, LayerSpec, ShowError,
    lazy::{Lazies, Road},
};

impl Puller {
    /// The lowest `count` layers at once, then their mounts.
    pub(super) async fn pull(self: &Arc<Self>, spec: &Arc<ImageSpec>, count: usize) -> Result<(), ImageError> {
        self.pull_layers(spec, count).await?;
        let (show, mut ids) = (Arc::clone(&self.seams.show), spec.diff_ids());
        ids.truncate(count);
        let shown = tokio::task::spawn_blocking(move || show.show(&ids)).await.unwrap_or_else(|panic| {
            Err(ShowError { diff_id: None, class: silk_model::Class::Internal, source: Box::new(panic) })
        });
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

    async fn pull_layers(self: &Arc<Self>, spec: &Arc<ImageSpec>, count: usize) -> Result<(), ImageError> {
        let mut missing = missing(spec, &self.lazies);
        missing.retain(|(index, _)| *index < count);
        let Some((first, _)) = missing.first() else { return Ok(()) };
        let fail = |index, source| failed(spec, index, source);
        let repository = self.repository(&spec.reference).await.map_err(|e| fail(*first, Arc::new(e)))?;
        let missing = self.open_known(spec, missing, &repository).await?;
        let mut pulls = JoinSet::new();
        for (index, layer) in missing {
            let (layers, repository) = (Arc::clone(&self.layers), repository.clone());
            pulls.spawn(async move { layers.pull(&layer, &repository).await.map_err(|e| (index, e)) });
        }
        while let Some(ended) = pulls.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                // The others are no longer waited for: those not started yet never will be, those under way become cache.
                Ok(Err((index, error))) => return Err(fail(index, error)),
                Err(_) => return Err(fail(0, Arc::new(LayerError::Panicked))),
            }
        }
        Ok(())
    }
}

impl Puller {
    /// Opens the layers that are known; returns the others.
    async fn open_known(
        self: &Arc<Self>,
        spec: &Arc<ImageSpec>,
        missing: Vec<(usize, LayerSpec)>,
        repository: &Repository,
    ) -> Result<Vec<(usize, LayerSpec)>, ImageError> {
        if !self.config.lazy || !self.seams.show.lazily() {
            return Ok(missing);
        }
        let road = Road {
            store: Arc::clone(&self.store),
            lazies: Arc::clone(&self.lazies),
            streams: Arc::clone(&self.layers),
            show: Arc::clone(&self.seams.show),
            repository: repository.clone(),
        };
        let (lazies, whole, spec) = (Arc::clone(&self.lazies), Arc::clone(spec), Arc::clone(spec));
        let opened = tokio::task::spawn_blocking(move || {
            let mut unknown = Vec::new();
            for (index, layer) in missing {
                match lazies.open(&layer, &spec.reference, &road) {
                    Ok(true) => {}
                    Ok(false) => unknown.push((index, layer)),
                    Err(error) => return Err(failed(&spec, index, Arc::new(error.into()))),
                }
            }
            Ok(unknown)
        });
        opened.await.unwrap_or_else(|_| Err(failed(&whole, 0, Arc::new(LayerError::Panicked))))
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
