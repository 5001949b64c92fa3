//! Proving again that a layer's bytes are what its diff ID names.

use std::{fs::File, io::Read, path::Path};

use sha2::{Digest as _, Sha256};
use silk_model::Digest;

use crate::{Store, StoreError};

/// What [`Store::prove`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// `sha256(data)` is the diff ID.
    Good,
    /// It is not; the digest found.
    Bad(Digest),
    /// The data or the table of contents cannot be read; why.
    Unreadable(String),
}

/// One layer's proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The layer.
    pub diff_id: Digest,
    /// Bytes read.
    pub bytes: u64,
    /// The outcome.
    pub finding: Finding,
}

impl Store {
    /// Reads a whole layer from disk and proves it. Blocks for as long as that takes. Changes nothing: the caller evicts
    /// a bad layer after hiding its mounts.
    ///
    /// # Errors
    /// [`StoreError::Absent`] when the layer is not whole; what the file system says where that is no fault of the layer's.
    pub fn prove(&self, diff_id: &Digest) -> Result<Proof, StoreError> {
        let unreadable =
            |e: StoreError| Ok(Proof { diff_id: *diff_id, bytes: 0, finding: Finding::Unreadable(e.to_string()) });
        match self.prove_data(diff_id) {
            Ok(proof) if proof.finding == Finding::Good => match self.toc(diff_id) {
                Ok(_) => Ok(proof),
                Err(e) if e.says_gone() => unreadable(e),
                Err(e) => Err(e),
            },
            Err(e) if e.says_gone() && self.whole(diff_id) => unreadable(e),
            other => other,
        }
    }

    fn prove_data(&self, diff_id: &Digest) -> Result<Proof, StoreError> {
        let size = self.size(diff_id).ok_or(StoreError::Absent(*diff_id))?;
        let path = self.layer_path(diff_id).join("data");
        let file = File::open(&path).map_err(|e| StoreError::io("open", &path, e))?;
        // The copy on disk is what is asked about, not the one in the page cache, which may be the only good one.
        uncache(&file, &path)?;
        let mut rest = file.take(size);
        let mut buffer = vec![0; 1 << 20];
        let mut hasher = Sha256::new();
        let mut bytes = 0;
        loop {
            let n = rest.read(&mut buffer).map_err(|e| StoreError::io("read", &path, e))?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            bytes += n as u64;
        }
        let found = Digest::new(hasher.finalize().into());
        let finding = if found == *diff_id { Finding::Good } else { Finding::Bad(found) };
        Ok(Proof { diff_id: *diff_id, bytes, finding })
    }
}

/// What is read next comes from the disk. Not what is dirty: that is nowhere else.
pub(crate) fn uncache(file: &File, path: &Path) -> Result<(), StoreError> {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)
        .map_err(|e| StoreError::io("drop the cache of", path, e.into()))
}
