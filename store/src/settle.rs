//! Making layers durable, and what becomes of those whose sync failed.
//!
//! The kernel tells an error of writing back once, and then counts the lost pages as written (fsync(2)): that a later sync goes
//! well proves nothing. Such a layer is in doubt, which a file beside it tells the next process: it is believed
//! only after it was read back from the disk.

use std::{
    collections::HashSet,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{MutexGuard, PoisonError},
};

use silk_model::Digest;

use crate::{Facts, Finding, LayerRecord, Store, StoreError, fsck};

/// In the directory of a layer whose sync failed. Not synced itself: what is not durable is not believed after a crash anyway.
const UNSYNCED: &str = "unsynced";

/// Layers whose files the disk has.
#[derive(Debug)]
#[must_use = "the next silkd reads them back otherwise"]
pub struct Synced {
    layers: Vec<(Digest, Facts)>,
    failed: Option<StoreError>,
}

impl Store {
    /// Syncs the files and directories of whole layers, for [`Store::note`]. Blocks for as long as the disk needs, and holds up nobody but those who sync, too: call it
    /// where nothing waits.
    pub fn sync(&self, diff_ids: &[Digest]) -> Synced {
        let _alone = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        let mut synced = Synced { layers: Vec::new(), failed: None };
        for id in diff_ids {
            let Some(record) = self.record(id).filter(|r| r.whole && !r.durable) else { continue };
            match self.to_disk(id) {
                Ok(()) => synced.layers.push((*id, record.facts)),
                // One that was evicted meanwhile; the others are synced all the same.
                Err(error) => synced.failed = Some(error),
            }
        }
        synced
    }

    /// Says in the database what was synced. Everything that writes there waits meanwhile.
    ///
    /// # Errors
    /// What the file system or the database says: the layers stay usable for this boot. [`StoreError::Lost`] when a sync failed and
    /// the disk does not have the layer: see [`Store::lost`].
    pub fn note(&self, synced: Synced) -> Result<(), StoreError> {
        let Synced { layers, failed } = synced;
        let _changing = self.changing();
        // Only what was synced: a layer that was evicted and fetched again meanwhile took another time.
        let changed: Vec<_> = layers
            .into_iter()
            .filter_map(|(id, facts)| {
                let now = self.record(&id).filter(|r| r.whole && r.facts == facts)?;
                Some((id, LayerRecord { durable: true, ..now }))
            })
            .collect();
        self.persist(&changed)?;
        for (id, _) in &changed {
            // One that stays costs nothing: a durable layer is not in doubt.
            let _ = fs::remove_file(self.unsynced(id));
        }
        failed.map_or(Ok(()), Err)
    }

    /// Whole layers whose bytes the disk lost: to be evicted once their mounts are hidden.
    pub fn lost(&self) -> Vec<Digest> {
        let mut lost = self.losses();
        lost.retain(|id| self.whole(id));
        lost.iter().copied().collect()
    }

    fn to_disk(&self, id: &Digest) -> Result<(), StoreError> {
        if !self.is_doubted(id) {
            match self.sync_layer(id) {
                Err(error @ StoreError::Io { action: "sync", .. }) => {
                    tracing::warn!(diff_id = %id, %error, "a layer's bytes may be lost: it is read back");
                    let path = self.unsynced(id);
                    File::create(&path).map_err(|e| StoreError::io("create", &path, e))?;
                }
                synced => return synced,
            }
        }
        self.sync_layer(id)?;
        if self.is_on_disk(id)? {
            return Ok(());
        }
        self.losses().insert(*id);
        Err(StoreError::Lost(*id))
    }

    fn sync_layer(&self, id: &Digest) -> Result<(), StoreError> {
        let dir = self.layer_path(id);
        let files = ["data", "toc", "index"].map(|name| dir.join(name));
        let layers = self.root.join("layers/sha256");
        files.iter().chain([&dir, &layers]).try_for_each(|path| sync(path))
    }

    /// Did a sync of the layer fail, in whatever process of this boot?
    pub(crate) fn is_doubted(&self, id: &Digest) -> bool {
        self.unsynced(id).exists()
    }

    /// Reads a whole layer past the page cache: does the disk have all of it?
    pub(crate) fn is_on_disk(&self, id: &Digest) -> Result<bool, StoreError> {
        for name in ["toc", "index"] {
            let path = self.layer_path(id).join(name);
            let file = File::open(&path).map_err(|e| StoreError::io("open", &path, e))?;
            fsck::uncache(&file, &path)?;
        }
        if self.prove(id)?.finding != Finding::Good {
            return Ok(false);
        }
        match self.sound_index(id) {
            Ok(_) => Ok(true),
            Err(error) if error.says_gone() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn unsynced(&self, id: &Digest) -> PathBuf {
        self.layer_path(id).join(UNSYNCED)
    }

    pub(crate) fn losses(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sync(path: &Path) -> Result<(), StoreError> {
    let file = File::open(path).map_err(|e| StoreError::io("open", path, e))?;
    file.sync_all().map_err(|e| StoreError::io("sync", path, e))
}
