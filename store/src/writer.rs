//! Writing a layer: bytes in order into its data file, then proof.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use silk_layer::{
    index::{self, Index},
    toc::{self, Toc},
};
use silk_model::Digest;

use crate::{Facts, LayerRecord, Store, StoreError, claim::Claim, drop_data, record};

/// Runs of zeros are looked for in pieces of this size, aligned to it: the file system's block, below which a hole saves
/// nothing.
const HOLE: usize = 4096;

/// The length of the data file on disk: a multiple of 4096, so that a loop device of 512-byte blocks and readahead of whole
/// pages both reach the tar's last byte.
pub fn padded(size: u64) -> u64 {
    size.next_multiple_of(HOLE as u64)
}

/// The only way bytes enter the store. Dropped before [`LayerWriter::finish`], it deletes what it wrote.
#[derive(Debug)]
pub struct LayerWriter {
    claim: Claim,
    dir: PathBuf,
    file: File,
    path: PathBuf,
    size: u64,
    done: bool,
}

impl Store {
    /// Starts a layer afresh. One writer a layer at a time.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when it has a writer, [`StoreError::Whole`] when it had one; what the file system says.
    pub fn writer(self: &Arc<Self>, diff_id: Digest) -> Result<LayerWriter, StoreError> {
        let claim = self.claim(diff_id)?;
        let dir = self.layer_path(&diff_id);
        fs::create_dir_all(&dir).map_err(|e| StoreError::io("create", &dir, e))?;
        // Never truncate in place: an overlay of an evicted layer may still read the old file.
        drop_data(&dir)?;
        let path = dir.join("data");
        let file = File::create_new(&path).map_err(|e| StoreError::io("create", &path, e))?;
        Ok(LayerWriter { claim, dir, file, path, size: 0, done: false })
    }
}

impl LayerWriter {
    /// Appends bytes of the uncompressed tar. Blocks on the page cache, and on the disk when too much of it is dirty.
    ///
    /// # Errors
    /// What the file system says; class `NoSpace` when the disk is full.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let ways = &self.claim.store.ways;
        write_sparse(bytes, self.size, |run, at| ways.write(&self.file, run, at))
            .map_err(|e| StoreError::io("write", &self.path, e))?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Bytes appended so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Makes the layer exist, if the index that was made of the very bytes that were appended leads to its diff ID. It is not
    /// durable yet: see [`Store::sync`].
    ///
    /// # Errors
    /// [`StoreError::WrongDiffId`] when the bytes are not the layer's; what the file system or the database says. After an
    /// error nothing of the layer is left.
    pub fn finish(mut self, toc: &Toc, index: &Index, facts: Facts) -> Result<(), StoreError> {
        let found = index.diff_id();
        if found != self.claim.diff_id {
            return Err(StoreError::WrongDiffId { expected: self.claim.diff_id, found });
        }
        self.file.set_len(padded(self.size)).map_err(|e| StoreError::io("extend", &self.path, e))?;
        write_new(&self.dir.join("toc"), &toc::encode(toc))?;
        write_new(&self.dir.join("index"), &index::encode(index))?;
        let record = LayerRecord {
            whole: true,
            durable: false,
            boot: self.claim.store.boot,
            last_used: record::now(),
            from: String::new(),
            facts,
        };
        let changing = self.claim.store.changing();
        self.claim.store.persist(&[(self.claim.diff_id, record)])?;
        drop(changing);
        self.done = true;
        Ok(())
    }
}

impl Drop for LayerWriter {
    fn drop(&mut self) {
        if !self.done {
            let known = self.claim.store.record(&self.claim.diff_id).is_some();
            let cleaned = if known { drop_data(&self.dir) } else { crate::remove_dir(&self.dir) };
            if let Err(error) = cleaned {
                tracing::warn!(diff_id = %self.claim.diff_id, %error, "left a half-made layer behind: deleted at the next start");
            }
        }
    }
}

pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    fs::write(path, bytes).map_err(|e| StoreError::io("write", path, e))
}

/// Writes bytes that lie at `at` in a file that has nothing there yet, leaving out whole blocks of zeros.
pub(crate) fn write_sparse(bytes: &[u8], at: u64, write: impl Fn(&[u8], u64) -> io::Result<()>) -> io::Result<()> {
    let mut from = 0;
    while from < bytes.len() {
        let (run, zero) = next_run(&bytes[from..], at + from as u64);
        if !zero {
            write(&bytes[from..from + run], at + from as u64)?;
        }
        from += run;
    }
    Ok(())
}

/// The length of the run at the start of `bytes` (which lie at `at` in the file) that is all zeros, or all not, in whole
/// aligned blocks.
fn next_run(bytes: &[u8], at: u64) -> (usize, bool) {
    let mut len = 0;
    let mut first = None;
    while len < bytes.len() {
        let room = HOLE - (at as usize + len) % HOLE;
        let piece = &bytes[len..bytes.len().min(len + room)];
        let zero = piece.len() == HOLE && is_zero(piece);
        if *first.get_or_insert(zero) != zero {
            break;
        }
        len += piece.len();
    }
    (len, first == Some(true))
}

fn is_zero(block: &[u8]) -> bool {
    // Compared with itself shifted by one, a block of equal bytes is equal: memcmp at full speed, and most blocks of a
    // real layer differ within their first word.
    block[0] == 0 && block[..block.len() - 1] == block[1..]
}
