//! Layers that arrived whole and turned out to be of no use to anybody.

use std::sync::atomic::Ordering;

use silk_model::{Class, Digest};

use super::{Image, Puller, State, lock};
use crate::ImageError;

/// A layer whose content is the reason that an image cannot be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The layer.
    pub diff_id: Digest,
    /// The image's manifest.
    pub manifest: Digest,
    /// The image's reference.
    pub reference: String,
}

impl Image {
    /// The layer at fault.
    fn broken(&self) -> Option<Digest> {
        match &*self.state.borrow() {
            State::Failed(failure) => match &failure.error {
                ImageError::Show { source, .. } if source.class == Class::Corrupt => source.diff_id,
                _ => None,
            },
            State::Idle | State::Pulling(_) | State::Ready(_) => None,
        }
    }
}

impl Puller {
    /// Layers that are whole, made their images fail, and are in no other image that silk knows.
    pub fn broken(&self) -> Vec<Broken> {
        let images = lock(&self.images);
        let known = || {
            images
                .values()
                .filter(|image| image.accepted.load(Ordering::Relaxed))
                .filter_map(|image| Some((image.broken(), image.spec.get()?)))
        };
        known()
            .filter_map(|(broken, spec)| {
                let (manifest, reference) = (spec.manifest, spec.reference.clone());
                Some(Broken { diff_id: broken?, manifest, reference })
            })
            .filter(|it| self.store.whole(&it.diff_id))
            .filter(|it| {
                let has = |layers: &[crate::LayerSpec]| layers.iter().any(|l| l.diff_id == it.diff_id);
                known().all(|(broken, spec)| broken == Some(it.diff_id) || !has(&spec.layers))
            })
            .collect()
    }
}
