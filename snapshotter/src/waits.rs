//! Who waits in Stat, and who never does.
//!
//! After `AlreadyExists` containerd's unpacker asks Stat for the layer: that is where a pull can wait without holding
//! any of containerd's locks. But its metadata layer also asks Stat for every snapshot when it lists them (CRI's statistics,
//! every ten seconds), and that must never wait.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A header that containerd's clients set while they pull: what they make stays until the lease ends.
pub(crate) const LEASE: &str = "containerd-lease";

/// Which Stat waits.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// Top layers that were answered `AlreadyExists`, or whose pull failed: the next Stat without a lease waits.
    armed: Mutex<HashSet<String>>,
}

/// A Stat that waits. Dropped before it succeeded, it leaves the wait to the next.
#[derive(Debug)]
pub(crate) struct Wait<'a> {
    waits: &'a Waits,
    name: String,
}

impl Waits {
    fn armed(&self) -> MutexGuard<'_, HashSet<String>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A Prepare of a top layer was answered.
    pub(crate) fn arm(&self, name: &str) {
        self.armed().insert(name.to_owned());
    }

    /// The snapshot is gone.
    pub(crate) fn forget(&self, name: &str) {
        self.armed().remove(name);
    }

    /// Shall this Stat of a top layer wait?
    pub(crate) fn enter(&self, name: &str, leased: bool) -> Option<Wait<'_>> {
        let armed = self.armed().remove(name);
        (armed || leased).then(|| Wait { waits: self, name: name.to_owned() })
    }
}

impl Wait<'_> {
    /// The layer is here: nobody waits for it again.
    pub(crate) fn over(mut self) {
        self.name.clear();
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            self.waits.arm(&self.name);
        }
    }
}
