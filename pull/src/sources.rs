//! Where a layer's blob is to be had: images of several repositories may have the same one.

use silk_registry::Blob;

/// A layer that fills asks no more repositories than this. Chosen: each that does not give it costs a request before the next is asked.
const MOST: usize = 8;

/// The repositories of a blob.
#[derive(Debug)]
pub(in super::super) struct Sources {
    /// The one that is asked first.
    blobs: Vec<Blob>,
    /// How many failed since bytes came last.
    failed: usize,
}

impl Sources {
    /// One.
    pub(in super::super) fn new(blob: Blob) -> Self {
        Self { blobs: vec![blob], failed: 0 }
    }

    /// The one to ask.
    pub(in super::super) fn first(&self) -> Blob {
        self.blobs[0].clone()
    }

    /// Another image has the same blob. Was its repository not known yet?
    pub(super) fn offer(&mut self, blob: Blob) -> bool {
        let is_same = (blob.digest(), blob.size()) == (self.blobs[0].digest(), self.blobs[0].size());
        let is_new = self.blobs.iter().all(|known| known.repository() != blob.repository());
        let takes = is_same && is_new && self.blobs.len() < MOST;
        if takes {
            self.blobs.insert(0, blob);
        }
        takes
    }

    /// This one failed, and is asked last, unless another range of it has just said so. Was every one asked since bytes came last?
    pub(super) fn failed(&mut self, blob: &Blob) -> bool {
        if self.blobs[0].repository() == blob.repository() {
            self.blobs.rotate_left(1);
            self.failed += 1;
        }
        self.failed >= self.blobs.len()
    }

    /// Bytes came.
    pub(super) fn came(&mut self) {
        self.failed = 0;
    }
}
