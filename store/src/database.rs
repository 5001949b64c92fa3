//! The database's file: made once, with blocks set aside for it.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use redb::{Database, backends::FileBackend};

use crate::{StoreError, read_at};

/// Bytes set aside for the database. A record of a snapshot or layer takes a few hundred, so this is for tens of thousands.
pub(crate) const RESERVED: u64 = 16 << 20;

/// Bytes of the magic number that redb's files begin with (its `docs/design.md`).
const MAGIC: usize = 9;
/// The page of redb's header.
const HEADER: u64 = 4096;

/// Opens the database, or makes it.
///
/// # Errors
/// [`StoreError::Locked`] when another process has it open, else what the file system or the database says.
pub(crate) fn open(path: &Path) -> Result<Database, StoreError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = file.map_err(|e| StoreError::io("open", path, e))?;
    // The lock that redb takes, too: nobody else is making the file.
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(path.to_owned())),
        Err(TryLockError::Error(e)) => return Err(StoreError::io("lock", path, e)),
    }
    if is_half_made(&file).map_err(|e| StoreError::io("read", path, e))? {
        tracing::warn!(path = %path.display(), "the making of the database was cut short: it is made anew");
        file.set_len(0).map_err(|e| StoreError::io("cut", path, e))?;
    }
    reserve(&file);
    file.unlock().map_err(|e| StoreError::io("unlock", path, e))?;
    let opened = FileBackend::new(file).and_then(|file| Database::builder().create_with_backend(file));
    opened.map_err(|e| StoreError::opening(path, e))
}

/// Was the file left by a process that had not yet made a database of it? redb writes its magic number last, syncs it, and then only
/// begins to store anything, but opens no file that has bytes without it. One with more in it than a header was a database and is
/// damaged: that is for redb to say.
fn is_half_made(mut file: &File) -> io::Result<bool> {
    let mut magic = [0; MAGIC];
    read_at(file, 0, &mut magic)?;
    if magic != [0; MAGIC] || file.metadata()?.len() == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::Start(HEADER))?;
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(true),
            len if piece[..len].iter().any(|byte| *byte != 0) => return Ok(false),
            _ => {}
        }
    }
}

/// Takes the database's blocks before layers can have them: redb gives up for good at its first failed write.
pub(crate) fn reserve(file: &File) {
    /// It is tried each minute, and some file systems never can.
    static WARNED: AtomicBool = AtomicBool::new(false);
    if let Err(error) = rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, RESERVED)
        && !WARNED.swap(true, Ordering::Relaxed)
    {
        tracing::warn!(%error, "no space is reserved for the database");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt as _};

    use redb::{ReadableDatabase as _, TableDefinition};

    use super::*;

    const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("table");

    #[test]
    fn a_database_whose_making_was_cut_short_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        drop(open(&path).unwrap());
        let made = fs::read(&path).unwrap();
        let len = made.len() as u64;
        // What is there after each of redb's steps: no byte, the length, the header without its magic number.
        for header in [None, Some(0..0), Some(MAGIC..HEADER as usize)] {
            let file = File::create(&path).unwrap();
            if let Some(header) = header {
                file.set_len(len).unwrap();
                file.write_all_at(&made[header.clone()], header.start as u64).unwrap();
            }
            drop(file);
            let db = open(&path).unwrap();
            let write = db.begin_write().unwrap();
            write.open_table(TABLE).unwrap().insert(1, 2).unwrap();
            write.commit().unwrap();
            drop(db);
            let db = open(&path).unwrap();
            let read = db.begin_read().unwrap();
            assert_eq!(read.open_table(TABLE).unwrap().get(1).unwrap().unwrap().value(), 2);
        }
    }

    #[test]
    fn a_damaged_database_and_one_that_is_open_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let db = open(&path).unwrap();
        let write = db.begin_write().unwrap();
        write.open_table(TABLE).unwrap().insert(1, 2).unwrap();
        write.commit().unwrap();
        assert!(matches!(open(&path), Err(StoreError::Locked(_))));
        drop(db);
        let mut damaged = fs::read(&path).unwrap();
        damaged[..HEADER as usize].fill(0);
        fs::write(&path, &damaged).unwrap();
        assert!(open(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), damaged);
    }
}
