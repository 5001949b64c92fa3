//! Who writes a layer writes it alone.

use std::{
    collections::HashSet,
    sync::{Arc, MutexGuard, PoisonError},
};

use silk_model::Digest;

use crate::{Store, StoreError};

/// The right to write a layer, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) store: Arc<Store>,
    pub(crate) diff_id: Digest,
}

impl Store {
    /// Takes the right; none where somebody has it, or where the layer is whole: what is written begins by deleting what is there. Whoever
    /// asked has looked before, but nobody else can make it whole from now on.
    pub(crate) fn claim(self: &Arc<Self>, diff_id: Digest) -> Result<Claim, StoreError> {
        if !self.writing().insert(diff_id) {
            return Err(StoreError::Busy(diff_id));
        }
        let claim = Claim { store: Arc::clone(self), diff_id };
        if self.whole(&diff_id) { Err(StoreError::Whole(diff_id)) } else { Ok(claim) }
    }

    /// The layers that are being written.
    pub(crate) fn writing(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.store.writing().remove(&self.diff_id);
    }
}
