//! What containers' starts touch (docs/formats/profile.md), kept by the image's manifest, and the last of a repository by that; those whose profiles were not
//! changed for the longest time give way.

use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition};
use silk_layer::profile::{Profile, decode, encode};
use silk_model::Digest;

use crate::{
    StoreError,
    record::{by_use, now},
};

/// Manifest digest, or what stands for a repository, to seconds since 1970 (8 bytes, little endian) and the encoded profile.
const PROFILES: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("profiles");

/// Images and repositories that are remembered. At the usual 2 to 10 KB each this stays within what is reserved for the database.
const MAX: u64 = 1024;

/// The profiles of this node.
#[derive(Debug)]
pub struct Profiles {
    db: Arc<Database>,
    max: u64,
}

impl Profiles {
    /// Makes the table if it is not there.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn open(db: Arc<Database>) -> Result<Self, StoreError> {
        let write = db.begin_write().map_err(StoreError::db)?;
        write.open_table(PROFILES).map_err(StoreError::db)?;
        write.commit().map_err(StoreError::db)?;
        Ok(Self { db, max: MAX })
    }

    /// The profile of an image; empty when none is known.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn get(&self, manifest: &Digest) -> Result<Profile, StoreError> {
        let read = self.db.begin_read().map_err(StoreError::db)?;
        let table = read.open_table(PROFILES).map_err(StoreError::db)?;
        let row = table.get(manifest.as_bytes()).map_err(StoreError::db)?;
        Ok(row.map(|row| profile(row.value())).unwrap_or_default())
    }

    /// Changes the profile of an image, which is empty when none is known. One that is empty afterwards is not kept.
    /// Returns it as it is now.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn change(&self, manifest: &Digest, change: impl FnOnce(&mut Profile)) -> Result<Profile, StoreError> {
        let write = self.db.begin_write().map_err(StoreError::db)?;
        let profile = {
            let mut table = write.open_table(PROFILES).map_err(StoreError::db)?;
            let old = table.get(manifest.as_bytes()).map_err(StoreError::db)?.map(|row| profile(row.value()));
            let old = old.unwrap_or_default();
            let mut new = old.clone();
            change(&mut new);
            if new == old {
                return Ok(old);
            }
            if new.starts.is_empty() {
                table.remove(manifest.as_bytes()).map_err(StoreError::db)?;
            } else {
                let value = [&now().to_le_bytes()[..], &encode(&new)].concat();
                table.insert(manifest.as_bytes(), value.as_slice()).map_err(StoreError::db)?;
                self.make_room(&mut table)?;
            }
            new
        };
        write.commit().map_err(StoreError::db)?;
        Ok(profile)
    }

    fn make_room(&self, table: &mut Table<'_, &'static [u8; 32], &'static [u8]>) -> Result<(), StoreError> {
        let now = now();
        while table.len().map_err(StoreError::db)? > self.max {
            let mut oldest: Option<((u64, u64), [u8; 32])> = None;
            for row in table.iter().map_err(StoreError::db)? {
                let (key, value) = row.map_err(StoreError::db)?;
                let row = (by_use(time(value.value()), now), *key.value());
                oldest = Some(oldest.map_or(row, |oldest| oldest.min(row)));
            }
            let Some((_, oldest)) = oldest else { break };
            table.remove(&oldest).map_err(StoreError::db)?;
        }
        Ok(())
    }
}

fn time(value: &[u8]) -> u64 {
    value.first_chunk().map_or(0, |time| u64::from_le_bytes(*time))
}

/// One of another version is as good as none: it is learned again.
fn profile(value: &[u8]) -> Profile {
    value.get(8..).and_then(|bytes| decode(bytes).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use silk_layer::profile::Seen;

    use super::*;

    fn seen(at: u64) -> Seen {
        Seen { touches: vec![(Digest::of(b"layer"), at..at + 1)], ..Seen::default() }
    }

    #[test]
    fn profiles_are_kept_and_the_oldest_gives_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let [a, b, c] = [&b"a"[..], b"b", b"c"].map(Digest::of);
        let profiles = Profiles { max: 2, ..Profiles::open(Arc::new(Database::create(&path).unwrap())).unwrap() };
        assert_eq!(profiles.get(&a).unwrap(), Profile::default());
        let kept = profiles.change(&a, |p| p.learn(&seen(0))).unwrap();
        drop(profiles);
        let profiles = Profiles { max: 2, ..Profiles::open(Arc::new(Database::create(&path).unwrap())).unwrap() };
        assert_eq!(profiles.get(&a).unwrap(), kept);
        profiles.change(&b, |p| p.learn(&seen(0))).unwrap();
        profiles.change(&c, |p| p.learn(&seen(0))).unwrap();
        let here = [a, b, c].iter().filter(|m| !profiles.get(m).unwrap().starts.is_empty()).count();
        assert_eq!(here, 2);
        profiles.change(&c, |p| p.starts.clear()).unwrap();
        assert_eq!(profiles.get(&c).unwrap(), Profile::default());
    }
}
