//! Dropping the data of layers that no snapshot uses.

use std::os::unix::fs::MetadataExt as _;

use silk_model::{Digest, metrics::METRICS};

use crate::{Config, Store, StoreError, drop_data, record, remove_dir};

/// A layer that may be dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unused {
    /// The layer.
    pub diff_id: Digest,
    /// Bytes that its data file takes of the disk.
    pub bytes: u64,
    /// Seconds since 1970.
    pub last_used: u64,
}

impl Config {
    /// How many of these bytes must go from a disk of this size that has so many free.
    fn excess(&self, unused_bytes: u64, size: u64, free: u64) -> u64 {
        let wanted = size / 100 * u64::from(self.keep_free_percent);
        let over_quota = unused_bytes.saturating_sub(self.cache_bytes);
        over_quota.max(wanted.saturating_sub(free)).min(unused_bytes)
    }
}

/// What an eviction gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Evicted {
    /// Layers whose data went.
    pub layers: u32,
    /// Bytes that their data files took of the disk.
    pub bytes: u64,
}

impl Store {
    /// The whole layers that `in_use` does not hold, longest unused first.
    pub fn unused(&self, in_use: impl Fn(&Digest) -> bool) -> Vec<Unused> {
        let mut unused: Vec<_> = self
            .list()
            .into_iter()
            .filter(|(id, record)| record.whole && !in_use(id))
            .map(|(diff_id, record)| Unused {
                diff_id,
                bytes: self.on_disk(&diff_id, record.facts.size),
                last_used: record.last_used,
            })
            .collect();
        let now = record::now();
        unused.sort_by_key(|u| (record::by_use(u.last_used, now), u.diff_id));
        unused
    }

    /// Drops a layer's data; its names and digests stay known. Readers that have it open keep their bytes.
    ///
    /// # Errors
    /// What the database or the file system says. The record goes first: a failed delete is swept at the next start.
    pub fn evict(&self, diff_id: &Digest) -> Result<Evicted, StoreError> {
        // Who wants the layer again waits until its files are gone: its own must not go with them.
        let writing = self.writing();
        if writing.contains(diff_id) {
            return Ok(Evicted::default());
        }
        let changing = self.changing();
        let Some(mut record) = self.record(diff_id).filter(|r| r.whole) else { return Ok(Evicted::default()) };
        record.whole = false;
        record.durable = false;
        let bytes = self.on_disk(diff_id, record.facts.size);
        self.persist(&[(*diff_id, record)])?;
        self.losses().remove(diff_id);
        METRICS.evicted_layers.one();
        METRICS.evicted_bytes.add(bytes);
        drop(changing);
        drop_data(&self.layer_path(diff_id))?;
        drop(writing);
        self.forget_oldest()?;
        Ok(Evicted { layers: 1, bytes })
    }

    /// What the data of a layer of `size` bytes takes of the disk: blocks of zeros are holes.
    pub fn on_disk(&self, diff_id: &Digest, size: u64) -> u64 {
        let data = self.layer_path(diff_id).join("data");
        std::fs::metadata(data).map_or(size, |data| size.min(data.blocks() * 512))
    }

    /// Drops the data of layers that are not whole, that nobody is filling and that `in_use` does not hold.
    ///
    /// # Errors
    /// What the file system says.
    pub fn drop_partials(&self, in_use: impl Fn(&Digest) -> bool) -> Result<(), StoreError> {
        let writing = self.writing();
        for (id, record) in self.list() {
            let dir = self.layer_path(&id);
            if !record.whole && !in_use(&id) && !writing.contains(&id) && dir.join("present").exists() {
                drop_data(&dir)?;
            }
        }
        Ok(())
    }

    /// Size of the file system below the root, and what is free of it.
    ///
    /// # Errors
    /// When the file system cannot be asked.
    pub fn disk(&self) -> Result<(u64, u64), StoreError> {
        let stat = rustix::fs::statvfs(&self.root).map_err(|e| StoreError::io("statvfs", &self.root, e.into()))?;
        Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
    }

    /// How many bytes of unused layers must go so that the configured quota and the free share of the disk hold.
    ///
    /// # Errors
    /// When the file system cannot be asked.
    pub fn excess(&self, unused_bytes: u64) -> Result<u64, StoreError> {
        let (size, free) = self.disk()?;
        Ok(self.config.excess(unused_bytes, size, free))
    }

    /// Forgets the layers without data that were unused longest, beyond the configured number.
    pub(crate) fn forget_oldest(&self) -> Result<(), StoreError> {
        // A layer that is on its way again is about to be whole.
        let writing = self.writing();
        let records = self.records();
        let absent = records.iter().filter(|(id, r)| !r.whole && !writing.contains(*id));
        let now = record::now();
        let mut known: Vec<_> = absent.map(|(id, r)| (record::by_use(r.last_used, now), *id)).collect();
        drop(records);
        if known.len() <= self.config.known_layers {
            return Ok(());
        }
        known.sort_unstable();
        known.truncate(known.len() - self.config.known_layers);
        let ids: Vec<_> = known.into_iter().map(|(_, id)| id).collect();
        self.forget(&ids)?;
        ids.iter().try_for_each(|id| remove_dir(&self.layer_path(id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    #[test]
    fn unused_layers_keep_to_the_quota_and_leave_a_share_of_the_disk_free() {
        let config =
            |cache: u64, keep_free_percent| Config { cache_bytes: cache * GB, keep_free_percent, ..Config::default() };
        // Quota and percents; unused, and free of a disk of 200 GB; what has to go.
        let cases = [
            ((50, 10), (30, 20), 0),
            // Neither the quota nor the disk has room for all of it.
            ((25, 10), (30, 100), 5),
            ((50, 10), (30, 13), 7),
            // Both: what frees more.
            ((25, 10), (30, 19), 5),
            ((25, 10), (30, 12), 8),
            // Others have filled the disk: no more can go than there is.
            ((50, 10), (5, 0), 5),
            ((50, 10), (0, 0), 0),
            ((50, 0), (30, 0), 0),
            ((0, 0), (30, 200), 30),
            ((500, 100), (150, 40), 150),
        ];
        for ((cache, percent), (unused, free), gone) in cases {
            let excess = config(cache, percent).excess(unused * GB, 200 * GB, free * GB);
            assert_eq!(excess, gone * GB, "{cache} {percent}: {unused} {free}");
        }
    }

    #[test]
    fn the_disk_that_counts_is_the_roots_own() {
        let root = tempfile::tempdir().unwrap();
        // As much free as nobody has: all must go, and as much as everybody has.
        for (keep_free_percent, gone) in [(100, 1), (0, 0)] {
            let config = Config { cache_bytes: u64::MAX, keep_free_percent, ..Config::default() };
            assert_eq!(Store::open(root.path(), config).unwrap().excess(1).unwrap(), gone);
        }
    }
}
