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
    /// Takes the right, or says that somebody has it.
    pub(crate) fn claim(self: &Arc<Self>, diff_id: Digest) -> Result<Claim, StoreError> {
        if self.writing().insert(diff_id) {
            Ok(Claim { store: Arc::clone(self), diff_id })
        } else {
            Err(StoreError::Busy(diff_id))
        }
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
