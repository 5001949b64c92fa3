//! The names by which the kernel knows objects.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::Slot;

/// The name of each object that the kernel has asked for, and its first inode: needed to call a name back. Bounded by
/// the objects there are, as `Session::forget` is called for those that go.
#[derive(Debug, Default)]
pub(crate) struct Names(Mutex<HashMap<Slot, (String, u64)>>);

impl Names {
    /// To be called before the kernel is told.
    pub(crate) fn put(&self, slot: Slot, name: &str, nid: u64) {
        self.lock().entry(slot).or_insert_with(|| (name.to_owned(), nid));
    }

    /// The name of an object and its first inode, if the kernel has asked for it.
    pub(crate) fn take(&self, slot: Slot) -> Option<(String, u64)> {
        self.lock().remove(&slot)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Slot, (String, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
