//! Layers on disk: either whole and verified, or known holes.
//!
//! ```text
//! <root>/silk.redb                               what is known of every layer (and, in tables of its own, the snapshots)
//! <root>/layers/sha256/<diff ID>/data            the layer's uncompressed tar, verbatim, zeros left out as holes
//! <root>/layers/sha256/<diff ID>/toc             its table of contents (docs/formats/toc.md)
//! <root>/layers/sha256/<diff ID>/index           its random access (docs/formats/index.md)
//! <root>/layers/sha256/<diff ID>/present         while bytes are missing: which are here
//! <root>/layers/sha256/<diff ID>/unsynced       its sync failed: believed only after it was read back
//! <root>/layers/sha256/<diff ID>/erofs*          metadata images made from it (docs/formats/erofs.md)
//! ```
//!
//! A layer's bytes are written in order by a [`LayerWriter`], or, where names and index are known, in any order into a
//! [`Partial`]; both end by accepting them only when `sha256(data)` is the diff ID. The database record is what makes a layer exist: files without one are leftovers and are
//! deleted when the store opens. A record is *durable* after its files were synced; one that is not is believed only
//! during the boot that wrote it, and while the file system stays mounted, so a host that loses power or its disk fetches again instead of
//! serving what never reached the disk.
//!
//! The store knows no network and never decides what to evict by itself: `silkd` tells it which layers snapshots use.

#![forbid(unsafe_code)]

mod claim;
mod config;
mod database;
mod error;
mod evict;
mod fresh;
mod fsck;
mod known;
mod partial;
mod profiles;
mod record;
mod settle;
mod slots;
mod way;
mod writer;

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use config::Config;
pub use error::StoreError;
pub use evict::{Evicted, Unused};
pub use fsck::{Finding, Proof};
pub use known::{Checked, Known};
pub use partial::{Partial, read_at};
pub use profiles::Profiles;
pub use record::{Facts, LayerRecord};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
pub use settle::Synced;
use silk_layer::toc::{Payload, Toc, TocError};
use silk_model::Digest;
pub use slots::Slots;
pub use writer::{LayerWriter, padded};

/// Diff ID to [`LayerRecord`].
const LAYERS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("layers");

/// The layers below one root directory. Cheap to share behind an [`Arc`]; all methods block for disk I/O.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    db: Arc<Database>,
    config: Config,
    /// Identifies this boot of the host: see the crate's text on durability.
    boot: [u8; 16],
    /// Every record, so that answering "is it here?" reads no disk.
    records: Mutex<HashMap<Digest, LayerRecord>>,
    /// Held while a record is read, changed and written, so that no change undoes another.
    changing: Mutex<()>,
    /// Held while layers are synced: the kernel tells one of two who sync a file at once of its trouble.
    settling: Mutex<()>,
    /// Layers that have a writer.
    writing: Mutex<HashSet<Digest>>,
    /// Layers whose bytes the disk lost.
    losses: Mutex<HashSet<Digest>>,
    /// Tables of contents that were checked, until trees are made of them.
    fresh: fresh::Fresh,
    ways: way::Ways,
}

impl Store {
    /// Opens or creates the store below `root` and deletes what an earlier process left half-made.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it open, [`StoreError::Version`] when a newer silk has written it, else what the file
    /// system or the database says.
    pub fn open(root: &Path, config: Config) -> Result<Self, StoreError> {
        let store = Self::unswept(root, config)?;
        store.sweep()?;
        Ok(store)
    }

    /// As [`Store::open`], and deletes nothing before [`Store::sweep`].
    ///
    /// # Errors
    /// The same.
    pub fn unswept(root: &Path, config: Config) -> Result<Self, StoreError> {
        let layers = root.join("layers/sha256");
        fs::create_dir_all(&layers).map_err(|e| StoreError::io("create", &layers, e))?;
        let file = root.join("silk.redb");
        let db = database::open(&file)?;
        // A layer's tar has files that only root may read in an image, and the database the names of private ones.
        for (path, mode) in [(&root.join("layers"), 0o700), (&file, 0o600)] {
            let private = fs::set_permissions(path, fs::Permissions::from_mode(mode));
            private.map_err(|e| StoreError::io("make private", path, e))?;
        }
        let write = db.begin_write().map_err(StoreError::db)?;
        write.open_table(LAYERS).map_err(StoreError::db)?;
        write.commit().map_err(StoreError::db)?;
        let store = Self {
            root: root.to_owned(),
            db: Arc::new(db),
            config,
            boot: boot_id(root)?,
            records: Mutex::default(),
            changing: Mutex::default(),
            settling: Mutex::default(),
            writing: Mutex::default(),
            losses: Mutex::default(),
            fresh: fresh::Fresh::default(),
            ways: way::Ways::default(),
        };
        store.load()?;
        Ok(store)
    }

    /// The database, for the tables of other rooms.
    pub fn database(&self) -> Arc<Database> {
        Arc::clone(&self.db)
    }

    /// The configuration the store was opened with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of a layer, whether it exists or not.
    pub fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers/sha256").join(diff_id.hex())
    }

    /// What is known of a layer; [`LayerRecord::whole`] says whether its bytes are here.
    pub fn record(&self, diff_id: &Digest) -> Option<LayerRecord> {
        self.records().get(diff_id).cloned()
    }

    /// Length of the layer's tar in bytes when all of it is here and proved.
    pub fn size(&self, diff_id: &Digest) -> Option<u64> {
        self.records().get(diff_id).filter(|r| r.whole).map(|r| r.facts.size)
    }

    /// Are all bytes of the layer here and proved?
    pub fn whole(&self, diff_id: &Digest) -> bool {
        self.size(diff_id).is_some()
    }

    /// All records, in no order.
    pub fn list(&self) -> Vec<(Digest, LayerRecord)> {
        self.records().iter().map(|(id, record)| (*id, record.clone())).collect()
    }

    /// The table of contents of a layer whose names are known. That of a whole layer which another silk has written is made anew.
    ///
    /// # Errors
    /// [`StoreError::Absent`] when they are not; [`StoreError::Toc`] when the file is damaged.
    pub fn toc(&self, diff_id: &Digest) -> Result<Toc, StoreError> {
        let path = self.layer_path(diff_id).join("toc");
        let bytes = self.read_known(diff_id, "toc")?;
        let kept = |payload: Payload<'_>| self.fresh.take(&payload.digest()).map_or_else(|| payload.decode(), Ok);
        match Payload::of(&bytes).and_then(kept) {
            Err(TocError::Version(_)) if self.whole(diff_id) => self.list_again(diff_id),
            toc => toc.map_err(|source| StoreError::Toc { path, source }),
        }
    }

    /// Is a layer's table of contents the one that was written?
    pub(crate) fn check_toc(&self, diff_id: &Digest) -> Result<(), StoreError> {
        let path = self.layer_path(diff_id).join("toc");
        silk_layer::toc::check(&self.read_known(diff_id, "toc")?).map_err(|source| StoreError::Toc { path, source })
    }

    /// Notes that a layer was used now, for the order of eviction.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn touch(&self, diff_ids: &[Digest]) -> Result<(), StoreError> {
        let _changing = self.changing();
        let now = record::now();
        // Once a minute is exact enough for an order, and spares the disk a commit a container.
        // Nor may one stay newest until a clock that was ahead is overtaken.
        let stale = |id| self.record(id).filter(|r| r.last_used + 60 <= now || r.last_used > now);
        let changed: Vec<_> =
            diff_ids.iter().filter_map(|id| Some((*id, LayerRecord { last_used: now, ..stale(id)? }))).collect();
        self.persist(&changed)
    }

    /// Does the database still take changes? After a failed write it never does again in this process. Takes back the blocks
    /// that it gave up since: it makes its file shorter as records go, and with the end goes what was reserved behind it.
    ///
    /// # Errors
    /// When it does not, or its file is gone: the sooner this process ends, the less is lost with it.
    pub fn check(&self) -> Result<(), StoreError> {
        let path = self.root.join("silk.redb");
        match fs::OpenOptions::new().write(true).open(&path) {
            Ok(file) => database::reserve(&file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::io("open", &path, error));
            }
            // No descriptor is left, say: those who read through silkd need not lose it for that.
            Err(error) => tracing::warn!(path = %path.display(), %error, "no blocks are reserved for the database now"),
        }
        self.db.begin_write().map_err(StoreError::db)?.abort().map_err(StoreError::db)
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn records(&self) -> MutexGuard<'_, HashMap<Digest, LayerRecord>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes records in one durable transaction and takes them into memory.
    fn persist(&self, changed: &[(Digest, LayerRecord)]) -> Result<(), StoreError> {
        if changed.is_empty() {
            return Ok(());
        }
        let write = self.db.begin_write().map_err(StoreError::db)?;
        {
            let mut table = write.open_table(LAYERS).map_err(StoreError::db)?;
            for (id, record) in changed {
                table.insert(id.as_bytes(), record.encode().as_slice()).map_err(StoreError::db)?;
            }
        }
        write.commit().map_err(StoreError::db)?;
        self.records().extend(changed.iter().cloned());
        Ok(())
    }

    fn forget(&self, ids: &[Digest]) -> Result<(), StoreError> {
        let write = self.db.begin_write().map_err(StoreError::db)?;
        {
            let mut table = write.open_table(LAYERS).map_err(StoreError::db)?;
            for id in ids {
                table.remove(id.as_bytes()).map_err(StoreError::db)?;
            }
        }
        write.commit().map_err(StoreError::db)?;
        let mut records = self.records();
        for id in ids {
            records.remove(id);
        }
        Ok(())
    }

    /// Reads all records; those whose bytes cannot be trusted after a restart lose them.
    fn load(&self) -> Result<(), StoreError> {
        let read = self.db.begin_read().map_err(StoreError::db)?;
        let table = read.open_table(LAYERS).map_err(StoreError::db)?;
        let mut changed = Vec::new();
        for row in table.iter().map_err(StoreError::db)? {
            let (key, value) = row.map_err(StoreError::db)?;
            let id = Digest::new(*key.value());
            if let Some(version) = value.value().first().copied().filter(|version| *version > record::VERSION) {
                return Err(StoreError::Version { diff_id: id, version });
            }
            let Some(mut record) = LayerRecord::decode(value.value()) else {
                tracing::warn!(diff_id = %id, "dropped a layer's record of an unknown version: the layer is fetched again");
                continue;
            };
            self.records().insert(id, record.clone());
            if record.whole && !self.trusted(&id, &record) {
                tracing::warn!(diff_id = %id, "a layer's bytes did not survive the restart: it is fetched again");
                record.whole = false;
                changed.push((id, record));
            }
        }
        drop((table, read));
        self.persist(&changed)
    }

    fn trusted(&self, id: &Digest, record: &LayerRecord) -> bool {
        let dir = self.layer_path(id);
        let here = fs::metadata(dir.join("data")).is_ok_and(|m| m.len() == writer::padded(record.facts.size));
        // Files that are older than the database, as a copy of a root in use has them: the layer had holes then.
        let had_holes = dir.join("present").exists();
        let is_believed = (record.durable || (record.boot == self.boot && !self.is_doubted(id))) && !had_holes;
        here && (is_believed || ((record.durable || record.boot == self.boot) && self.was_read_back(id)))
    }

    /// There is reason to doubt it: a sync of the layer failed in an earlier process, say.
    fn was_read_back(&self, id: &Digest) -> bool {
        match self.is_on_disk(id) {
            Ok(on_disk) => on_disk,
            Err(error) => {
                tracing::warn!(diff_id = %id, %error, "a layer in doubt cannot be read back");
                false
            }
        }
    }

    /// Deletes files that no record speaks for. Only before anything else is done with the store.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sweep(&self) -> Result<(), StoreError> {
        let dir = self.root.join("layers/sha256");
        for entry in fs::read_dir(&dir).map_err(|e| StoreError::io("list", &dir, e))? {
            let path = entry.map_err(|e| StoreError::io("list", &dir, e))?.path();
            let id = path.file_name().and_then(|n| n.to_str()).and_then(|hex| format!("sha256:{hex}").parse().ok());
            match id.and_then(|id: Digest| self.record(&id)) {
                None => remove_dir(&path)?,
                // They would speak for the data that the layer loses one day.
                Some(record) if record.whole => remove_file(&path.join("present"))?,
                Some(_) if !path.join("present").exists() => drop_data(&path)?,
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// Deletes the bytes of a layer and what points into them; its names and index stay.
fn drop_data(dir: &Path) -> Result<(), StoreError> {
    // The marks first: a silkd that is killed here must not leave some that speak for bytes that are gone.
    remove_file(&dir.join("present"))?;
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(StoreError::io("list", dir, e)),
    };
    for entry in entries {
        let path = entry.map_err(|e| StoreError::io("list", dir, e))?.path();
        if path.file_name().is_some_and(|name| name != "toc" && name != "index") {
            remove_file(&path)?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io("delete", path, e)),
        _ => Ok(()),
    }
}

fn remove_dir(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io("delete", dir, e)),
        _ => Ok(()),
    }
}

/// For how long the page cache of the root's file system lasts: the kernel's random identity of this boot (random(4),
/// `/proc/sys/kernel/random/boot_id`), and of the mount. A disk that was taken away and came back, or a snapshot of it, is mounted anew.
fn boot_id(root: &Path) -> Result<[u8; 16], StoreError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let mut text = fs::read_to_string(path).map_err(|e| StoreError::io("read", path, e))?.trim().to_owned();
    text += &mount_id(root).map_err(|e| StoreError::io("look at", root, e))?;
    let mut id = [0; 16];
    id.copy_from_slice(&Digest::of(text.as_bytes()).as_bytes()[..16]);
    Ok(id)
}

/// The number of the mount that a directory is on, which no other mount gets in this boot; nothing before Linux 6.8.
fn mount_id(dir: &Path) -> io::Result<String> {
    /// `STATX_MNT_ID_UNIQUE` of statx(2).
    const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let stat = statx(CWD, dir, AtFlags::empty(), UNIQUE)?;
    let is_told = stat.stx_mask & UNIQUE.bits() != 0;
    Ok(if is_told { stat.stx_mnt_id.to_string() } else { String::new() })
}

#[cfg(test)]
mod tests;
