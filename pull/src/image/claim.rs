//! What containerd asks for.

use std::time::Duration;

use silk_model::{Class, Digest};
use silk_registry::Object;

use super::{Failure, Image, Puller, State};
use crate::{ImageError, ImageSpec, LayerError, ReadError, Refused};

/// containerd prepares a layer of an image.
#[derive(Debug, Clone)]
pub struct Claim {
    /// containerd's namespace.
    pub namespace: String,
    /// The image's reference.
    pub reference: String,
    /// The manifest's digest.
    pub manifest: Digest,
    /// The blob.
    pub blob: Digest,
    /// The chain ID that the snapshot will have.
    pub chain_id: Digest,
    /// How many layers lie below.
    pub below: usize,
}

impl Claim {
    /// Is the layer that containerd prepares the one that the manifest has there?
    pub(super) fn fits(&self, spec: &ImageSpec) -> Result<Claimed, Refused> {
        let number = self.below + 1;
        let layer = spec.layers.get(self.below).ok_or(Refused::Mismatch { number })?;
        if layer.blob != self.blob || spec.chain_ids()[self.below] != self.chain_id {
            return Err(Refused::Mismatch { number });
        }
        Ok(Claimed { diff_id: layer.diff_id, top: number == spec.layers.len() })
    }
}

/// The layer that a [`Claim`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    /// The layer.
    pub diff_id: Digest,
    /// Is it the image's last?
    pub top: bool,
}

impl Image {
    /// Why silk could not pull it lately, if no registry let it have a layer that is not `here`, or bytes of one that is not `whole`. First contacts
    /// ask for the manifest only, which a mirror may have although it lacks the layers, and containerd may have credentials that silk has
    /// not: it is left to pull.
    pub(super) fn shut_out(&self, here: bool, whole: bool) -> Option<String> {
        let state = self.state.borrow();
        let State::Failed(Failure { error, .. }) = &*state else { return None };
        let is_registrys = match error {
            ImageError::Layer { source, .. } => !here && matches!(**source, LayerError::Registry(_)),
            // Bytes without which a layer that is known cannot be shown.
            ImageError::Show { source, .. } => !whole && source.source.is::<ReadError>(),
            ImageError::Unknown(_) | ImageError::Recent(_) => false,
        };
        let is_final = matches!(error.class(), Class::Denied | Class::NotFound | Class::Unsupported);
        (is_registrys && is_final).then(|| format!("its last pull by silk failed: {error}"))
    }
}

impl Puller {
    /// Asks the registry for the manifest: does it answer, does it let us in?
    pub(super) async fn first_contact(&self, spec: &ImageSpec) -> Result<(), Refused> {
        let deadline = Duration::from_millis(self.config.first_contact_millis);
        let repository = self.repository(&spec.reference).await.map_err(|e| Refused::Registry(e.to_string()))?;
        let asked = repository.check(Object::Manifest(spec.manifest), deadline).await;
        asked.map_err(|e| Refused::Registry(e.to_string()))
    }
}

/// The pull that waits for an image: what it holds in containerd may name other sources of the same layers.
#[derive(Debug, Clone)]
pub struct Caller {
    /// containerd's namespace.
    pub namespace: String,
    /// Its lease; [`None`] when containerd does not tell: any of those that the namespace has.
    pub lease: Option<String>,
}
