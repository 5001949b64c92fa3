//! How much a directory takes on disk.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::{SnapshotError, Usage};

/// Blocks of `stat(2)` have this many bytes on every file system.
const BLOCK: u64 = 512;

/// Allocated bytes and inodes below `root`, itself included, hard links once: what containerd's overlay snapshotter reports
/// (continuity's `fs.DiskUsage`). Files that vanish on the way are left out: containers go on writing. Blocks, for as
/// long as it takes to look at every file.
pub(crate) fn of(root: &Path) -> Result<Usage, SnapshotError> {
    let meta = root.symlink_metadata().map_err(|e| SnapshotError::io("read", root, e))?;
    let mut usage = Usage { size: meta.blocks() * BLOCK, inodes: 1 };
    // Only files with several links can be met twice.
    let mut links = HashSet::new();
    let mut todo: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(SnapshotError::io("list", &dir, e)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| SnapshotError::io("list", &dir, e))?;
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(SnapshotError::io("read", &entry.path(), e)),
            };
            if meta.is_dir() {
                todo.push(entry.path());
            } else if meta.nlink() > 1 && !links.insert((meta.dev(), meta.ino())) {
                continue;
            }
            usage.size += meta.blocks() * BLOCK;
            usage.inodes += 1;
        }
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_allocated_blocks_and_each_inode_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name| dir.path().join(name);
        fs::create_dir(path("a")).unwrap();
        fs::write(path("a/file"), vec![1; 10_000]).unwrap();
        fs::hard_link(path("a/file"), path("link")).unwrap();
        fs::File::create(path("sparse")).unwrap().set_len(1 << 30).unwrap();
        std::os::unix::fs::symlink("/nowhere", path("symlink")).unwrap();
        let usage = of(dir.path()).unwrap();
        assert_eq!(usage.inodes, 5);
        let blocks = |name| path(name).symlink_metadata().unwrap().blocks() * BLOCK;
        assert_eq!(usage.size, blocks("") + blocks("a") + blocks("a/file") + blocks("sparse") + blocks("symlink"));
        assert!(usage.size < 1 << 20);
        assert!(of(&path("missing")).is_err());
    }
}
