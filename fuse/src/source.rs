//! What a session asks of its owner.

use std::{fmt, sync::Arc};

use crate::{Reply, TreeFiles};

/// Names an object for good: the owner gives the numbers out and never uses one again for something else, not even
/// after a restart. The kernel's inode numbers are made from it. Less than 2^24.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// What is at a name in the mount's root directory.
#[derive(Debug, Clone)]
pub enum Object {
    /// A data file.
    Data {
        /// Its length in bytes. Never another one for the same slot.
        size: u64,
    },
    /// A layer's tree.
    Tree(Arc<TreeFiles>),
}

/// The objects behind a session. All calls come from the session's workers and should return soon; none may wait for a
/// network, nor call [`Session::forget`](crate::Session::forget). A call that panics costs its request an EIO.
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// The object with this name in the root directory.
    fn find(&self, name: &str) -> Option<Slot>;

    /// The object. Asked with every request, so it should be quick.
    fn object(&self, slot: Slot) -> Option<Object>;

    /// Reads `len` bytes at `offset` of a data file; both are within its size. Answers now, or keeps the reply and
    /// answers later from any thread. Until then a process waits that nothing but an answer ends, not even a signal.
    fn read(&self, slot: Slot, offset: u64, len: u32, reply: Reply);
}
