//! What is known of a layer besides its bytes: its names (`toc`) and its random access (`index`).
//!
//! Learned while the layer streams in, or taken from a peer. Both files carry checksums, so that one torn by a crash of the
//! host counts as unknown, and both outlive the layer's data.

use std::{
    fs,
    io::{self, Read as _},
};

use silk_layer::{
    index::{self, Index},
    tar::{Limits, Scanner, TarError},
    toc::{self, Payload, Toc},
};
use silk_model::Digest;

use crate::{Facts, LayerRecord, Store, StoreError, record, writer};

/// A layer's names and random access, as they are on disk and as peers exchange them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The layer.
    pub diff_id: Digest,
    /// The blob that the index is of.
    pub blob: Digest,
    /// Bytes of that blob, as the image's manifest says.
    pub blob_size: u64,
    /// `silk_layer::toc::encode`'s bytes.
    pub toc: Vec<u8>,
    /// `silk_layer::index::encode`'s bytes.
    pub index: Vec<u8>,
}

/// What a peer says of a layer, once it was decoded: it may be used.
#[derive(Debug)]
pub struct Checked {
    known: Known,
    from: String,
    facts: Facts,
}

impl Store {
    /// Could [`Store::partial`] open the layer, whose blob is `blob` with so many bytes? Does not read the files.
    pub fn is_known(&self, diff_id: &Digest, blob: &Digest, blob_size: u64) -> bool {
        let known = self.record(diff_id).is_some_and(|r| (r.facts.blob, r.facts.blob_size) == (*blob, blob_size));
        known && ["toc", "index"].iter().all(|name| self.layer_path(diff_id).join(name).exists())
    }

    /// Names and random access of a layer, for peers.
    ///
    /// # Errors
    /// [`StoreError::Absent`] when they are not known.
    pub fn known(&self, diff_id: &Digest) -> Result<Known, StoreError> {
        let record = self.record(diff_id).ok_or(StoreError::Absent(*diff_id))?;
        let (toc, index) = (self.read_known(diff_id, "toc")?, self.read_known(diff_id, "index")?);
        Ok(Known { diff_id: *diff_id, blob: record.facts.blob, blob_size: record.facts.blob_size, toc, index })
    }

    /// Makes the table of contents of a whole layer from its data. Blocks for as long as that takes to be read.
    pub(crate) fn list_again(&self, diff_id: &Digest) -> Result<Toc, StoreError> {
        let size = self.size(diff_id).ok_or(StoreError::Absent(*diff_id))?;
        let path = self.layer_path(diff_id).join("data");
        let mut data = fs::File::open(&path).map_err(|e| StoreError::io("open", &path, e))?.take(size);
        let (mut scanner, mut piece) = (Scanner::new(Limits::default()), vec![0; 1 << 20]);
        let damaged = |error: TarError| StoreError::io("list", &path, io::Error::other(error));
        loop {
            match data.read(&mut piece).map_err(|e| StoreError::io("read", &path, e))? {
                0 => break,
                len => scanner.push(&piece[..len]).map_err(damaged)?,
            }
        }
        let toc = scanner.finish().map_err(damaged)?;
        let (toc_path, new) = (self.layer_path(diff_id).join("toc"), self.layer_path(diff_id).join("toc.new"));
        let _changing = self.changing();
        writer::write_new(&new, &toc::encode(&toc))?;
        let synced = fs::File::open(&new).and_then(|file| file.sync_all());
        synced.map_err(|e| StoreError::io("sync", &new, e))?;
        fs::rename(&new, &toc_path).map_err(|e| StoreError::io("rename", &new, e))?;
        tracing::info!(%diff_id, "the table of contents of a layer was made anew: another silk had written it");
        Ok(toc)
    }

    /// Takes what a peer says of a layer that is not here, as [`Store::checked`] and [`Store::learn_all`].
    ///
    /// # Errors
    /// Those of both.
    pub fn learn(&self, known: &Known, from: &str) -> Result<(), StoreError> {
        self.learn_all(&[self.checked(known.clone(), from)?]).map(drop)
    }

    /// Checks what a peer says of a layer. `from` names the peer.
    ///
    /// # Errors
    /// One of class `Corrupt` when it is damaged or the index leads to another layer; [`StoreError::OtherBlob`].
    pub fn checked(&self, known: Known, from: &str) -> Result<Checked, StoreError> {
        let dir = self.layer_path(&known.diff_id);
        // The index first: it is the smaller one, and whoever has not the layer cannot make one that leads to it.
        let index =
            index::decode(&known.index).map_err(|source| StoreError::Index { path: dir.join("index"), source })?;
        fits(&known.diff_id, index.size, &index)?;
        let damaged = |source| StoreError::Toc { path: dir.join("toc"), source };
        let payload = Payload::of(&known.toc).map_err(damaged)?;
        let toc = payload.decode().map_err(damaged)?;
        fits(&known.diff_id, toc.size(), &index)?;
        if index.blob_size != known.blob_size {
            let Known { blob, blob_size: expected, .. } = known;
            return Err(StoreError::OtherBlob { blob, expected, found: index.blob_size });
        }
        let facts = Facts {
            size: toc.size(),
            entries: toc.count(),
            blob: known.blob,
            blob_size: index.blob_size,
            source: String::new(),
            millis: 0,
        };
        self.fresh.keep(payload.digest(), toc);
        Ok(Checked { known, from: from.to_owned(), facts })
    }

    /// Takes what was checked of layers that are not here, all of it with one commit: a disk takes milliseconds for each, and a pull waits. Says
    /// which it took: of others something is known already, from whomever.
    ///
    /// # Errors
    /// What the file system or the database says.
    pub fn learn_all(&self, layers: &[Checked]) -> Result<Vec<Digest>, StoreError> {
        // Whoever writes or fills a layer has names and index of it already, or is about to write its own.
        let writing = self.writing();
        let changing = self.changing();
        let mut records = Vec::new();
        for Checked { known, from, facts } in layers {
            // Written once: somebody may be reading it already.
            let is_there = self.whole(&known.diff_id) || self.is_known(&known.diff_id, &known.blob, known.blob_size);
            if is_there || writing.contains(&known.diff_id) {
                continue;
            }
            let dir = self.layer_path(&known.diff_id);
            fs::create_dir_all(&dir).map_err(|e| StoreError::io("create", &dir, e))?;
            writer::write_new(&dir.join("toc"), &known.toc)?;
            writer::write_new(&dir.join("index"), &known.index)?;
            let record = LayerRecord {
                whole: false,
                durable: false,
                boot: self.boot,
                last_used: record::now(),
                from: from.clone(),
                facts: facts.clone(),
            };
            records.push((known.diff_id, record));
        }
        self.persist(&records)?;
        drop(changing);
        drop(writing);
        self.forget_oldest()?;
        Ok(records.into_iter().map(|(id, _)| id).collect())
    }

    /// Forgets names and index of a layer that is not whole, for whoever writes it alone.
    pub(crate) fn unlearn(&self, diff_id: &Digest) -> Result<(), StoreError> {
        let _changing = self.changing();
        if self.whole(diff_id) {
            return Ok(());
        }
        self.forget(&[*diff_id])?;
        for name in ["toc", "index"] {
            let path = self.layer_path(diff_id).join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(StoreError::io("delete", &path, e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The layer's index, and the digest of the file it is in.
    pub(crate) fn read_index(&self, diff_id: &Digest) -> Result<(Index, Digest), StoreError> {
        let bytes = self.read_known(diff_id, "index")?;
        let path = self.layer_path(diff_id).join("index");
        let index = index::decode(&bytes).map_err(|source| StoreError::Index { path, source })?;
        Ok((index, Digest::of(&bytes)))
    }

    pub(crate) fn read_known(&self, diff_id: &Digest, name: &str) -> Result<Vec<u8>, StoreError> {
        let path = self.layer_path(diff_id).join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(StoreError::Absent(*diff_id)),
            Err(e) => Err(StoreError::io("read", &path, e)),
        }
    }
}

/// An index leads to a diff ID by itself; names are as long as it says.
pub(crate) fn fits(diff_id: &Digest, size: u64, index: &Index) -> Result<(), StoreError> {
    let found = index.diff_id();
    if found != *diff_id || size != index.size {
        return Err(StoreError::Foreign { diff_id: *diff_id, found });
    }
    Ok(())
}
