//! Snapshots in the database: two tables of silk's redb file (`docs/formats/snapshots.md`).
//!
//! Every function blocks for a disk: a write ends when the database has synced it.

use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::{Snapshot, SnapshotError};

/// First byte of every record. Another one means that a newer silkd wrote it: silk then does not start, because a
/// snapshot that is taken for lost would lose a container's files.
const VERSION: u8 = 1;
/// Records by name.
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
/// Numbers by name.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("snapshot_numbers");
/// The smallest ID that no snapshot ever had.
const NEXT_ID: &str = "next_id";

/// The tables.
#[derive(Debug)]
pub(crate) struct Records(Arc<Database>);

/// What the tables hold.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) next_id: u64,
    /// Names of records that are damaged.
    pub(crate) damaged: Vec<String>,
}

/// One transaction.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) put: Option<Snapshot>,
    pub(crate) remove: Option<String>,
    /// The next ID, when one was taken.
    pub(crate) next_id: Option<u64>,
}

impl Records {
    /// Makes the tables if they are not there.
    pub(crate) fn open(db: Arc<Database>) -> Result<Self, SnapshotError> {
        let write = db.begin_write().map_err(SnapshotError::db)?;
        write.open_table(SNAPSHOTS).map_err(SnapshotError::db)?;
        write.open_table(NUMBERS).map_err(SnapshotError::db)?;
        write.commit().map_err(SnapshotError::db)?;
        Ok(Self(db))
    }

    pub(crate) fn load(&self) -> Result<Loaded, SnapshotError> {
        let read = self.0.begin_read().map_err(SnapshotError::db)?;
        let numbers = read.open_table(NUMBERS).map_err(SnapshotError::db)?;
        let next_id = numbers.get(NEXT_ID).map_err(SnapshotError::db)?.map_or(1, |n| n.value());
        let mut loaded = Loaded { next_id, ..Loaded::default() };
        for entry in read.open_table(SNAPSHOTS).map_err(SnapshotError::db)?.iter().map_err(SnapshotError::db)? {
            let (name, bytes) = entry.map_err(SnapshotError::db)?;
            match decode(name.value(), bytes.value())? {
                Some(snapshot) => loaded.snapshots.push(snapshot),
                None => loaded.damaged.push(name.value().to_owned()),
            }
        }
        Ok(loaded)
    }

    /// All of the change or nothing.
    pub(crate) fn write(&self, change: &Change) -> Result<(), SnapshotError> {
        let write = self.0.begin_write().map_err(SnapshotError::db)?;
        {
            let mut snapshots = write.open_table(SNAPSHOTS).map_err(SnapshotError::db)?;
            if let Some(name) = &change.remove {
                snapshots.remove(name.as_str()).map_err(SnapshotError::db)?;
            }
            if let Some(snapshot) = &change.put {
                let bytes = encode(snapshot);
                snapshots.insert(snapshot.name.as_str(), bytes.as_slice()).map_err(SnapshotError::db)?;
            }
            if let Some(next_id) = change.next_id {
                let mut numbers = write.open_table(NUMBERS).map_err(SnapshotError::db)?;
                numbers.insert(NEXT_ID, next_id).map_err(SnapshotError::db)?;
            }
        }
        write.commit().map_err(SnapshotError::db)
    }
}

fn encode(snapshot: &Snapshot) -> Vec<u8> {
    postcard::to_extend(snapshot, vec![VERSION]).expect("a Vec takes any number of bytes")
}

/// [`None`] for a damaged record.
fn decode(name: &str, bytes: &[u8]) -> Result<Option<Snapshot>, SnapshotError> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => Ok(postcard::from_bytes(rest).ok().filter(|s: &Snapshot| s.name == name)),
        Some((&version, _)) => Err(SnapshotError::Version { name: name.to_owned(), version }),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use silk_model::Digest;

    use super::*;
    use crate::{Kind, Remote, Time, Usage};

    fn snapshot() -> Snapshot {
        Snapshot {
            name: "n".into(),
            id: 300,
            parent: String::new(),
            kind: Kind::Committed,
            created: Time { secs: 1, nanos: 5 },
            updated: Time { secs: 2, nanos: 6 },
            labels: [("k".to_owned(), "v".to_owned())].into(),
            usage: Usage { size: 1, inodes: 2 },
            remote: Some(Remote {
                namespace: "ns".into(),
                image_ref: "r".into(),
                image: Digest::new([1; 32]),
                chain_id: Digest::new([2; 32]),
                diff_id: Digest::new([3; 32]),
                top: true,
            }),
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_format_page() {
        let mut bytes = vec![1];
        bytes.extend_from_slice(&[1, b'n', 0xac, 2, 0, 2]); // name, id 300, no parent, committed
        bytes.extend_from_slice(&[2, 5, 4, 6]); // times, seconds zigzag
        bytes.extend_from_slice(&[1, 1, b'k', 1, b'v', 1, 2]); // labels, usage
        bytes.extend_from_slice(&[1, 2, b'n', b's', 1, b'r']); // remote: namespace, reference
        for byte in 1..=3 {
            let digest = Digest::new([byte; 32]).to_string();
            bytes.push(u8::try_from(digest.len()).unwrap());
            bytes.extend_from_slice(digest.as_bytes());
        }
        bytes.push(1);
        assert_eq!(encode(&snapshot()), bytes);
        assert_eq!(decode("n", &bytes).unwrap(), Some(snapshot()));
    }

    #[test]
    fn damage_is_told_from_the_future() {
        let bytes = encode(&snapshot());
        assert_eq!(decode("n", &bytes[..40]).unwrap(), None);
        assert_eq!(decode("n", &[]).unwrap(), None);
        assert_eq!(decode("other", &bytes).unwrap(), None);
        assert!(matches!(decode("n", &[2, 0]), Err(SnapshotError::Version { version: 2, .. })));
    }
}
