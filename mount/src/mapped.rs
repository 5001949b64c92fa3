//! Lower directories with the owners of a user namespace: clones below `<root>/mapped/<snapshot>/<nr>`, one for each directory
//! of each snapshot that has such a namespace.
//!
//! containerd would make them by itself, of the one directory that all lower ones have in common and without the mounts below it
//! (`core/mount/mount_linux.go`): of layers, which are mounts, it would see none. An idmapped mount has one map for all of its
//! users, so each pod needs its own; it takes some hundred bytes of the kernel, and shares all pages and inodes with the layer's.
//!
//! Overlays that stand on clones keep them, as they do the layers' own mounts. A clone is taken away with its snapshot, never by
//! deleting what is in it: what is below `<root>/mapped` is empty directories, and mounts.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::DirBuilder,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx},
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};
use silk_model::{IdMaps, IdRange};
use silk_sys::{apart, idmap};

use crate::{
    MountError, kernel, mountinfo,
    mounts::{names, private, remove_dir},
    turns::Turns,
};

/// The clones of one silk root. One process a root.
#[derive(Debug)]
pub struct Mapped {
    dir: PathBuf,
    /// Snapshots that have a directory.
    known: Mutex<BTreeSet<u64>>,
    turns: Turns<u64>,
}

impl Mapped {
    /// Finds the clones that an earlier process made. [`Mapped::sweep`] says which of them stay.
    ///
    /// # Errors
    /// When `<root>/mapped` cannot be made or read.
    pub fn open(root: &Path) -> Result<Self, MountError> {
        let dir = private(root, "mapped")?;
        let ids = names(&dir)?.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
        Ok(Self { dir, known: Mutex::new(ids), turns: Turns::default() })
    }

    /// Takes away the clones of all snapshots that `keep` does not want, and all of what an earlier process served: those are dead.
    ///
    /// # Errors
    /// The first refusal; others are taken away all the same.
    pub fn sweep(&self, keep: &dyn Fn(u64) -> bool) -> Result<(), MountError> {
        let gone: Vec<_> = self.known().iter().copied().filter(|id| !keep(*id)).collect();
        let failed = gone.iter().filter_map(|id| self.unmap(*id).err()).next();
        let mounted = mountinfo::below(&self.dir);
        let mounted = mounted.map_err(|e| MountError::io("read", Path::new("/proc/self/mountinfo"), e))?;
        let dead = mounted.iter().filter(|m| m.fs_type.starts_with(b"fuse"));
        // With the directory: a path that somebody was told must not show an empty one.
        let failed = dead.filter_map(|m| take_away(&m.point).err()).fold(failed, |first, e| first.or(Some(e)));
        failed.map_or(Ok(()), Err)
    }

    /// Shows these lower directories (mount points of layers, or ordinary directories) with other owners, for the snapshot
    /// `id`; returns where, in the same order. Those that are shown already stay as they are, unless another mount or directory is in the place
    /// of theirs now: then the new clone is mounted over the old one, so that there is no moment at which a path that somebody was told shows
    /// an empty directory. A snapshot's maps never change.
    ///
    /// # Errors
    /// When the kernel refuses; what was made so far stays until [`Mapped::unmap`].
    pub fn map(&self, id: u64, lowers: &[PathBuf], maps: &IdMaps) -> Result<Vec<PathBuf>, MountError> {
        self.turns.take(&id, || {
            self.known().insert(id);
            let points: Vec<_> = (0..lowers.len()).map(|nr| self.of(id).join(nr.to_string())).collect();
            for point in &points {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(point);
                made.map_err(|e| MountError::io("create", point, e))?;
            }
            // Layers may be served by this process.
            apart::run(|| clone_all(lowers, &points, maps))
                .map_err(|e| MountError::io("start a thread for", &self.dir, e))??;
            Ok(points)
        })
    }

    /// Takes away the clones of a snapshot, if it has any. Overlays that stand on them keep what they have.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unmap(&self, id: u64) -> Result<(), MountError> {
        if !self.known().contains(&id) {
            return Ok(());
        }
        self.turns.take(&id, || {
            let dir = self.of(id);
            if dir.exists() {
                for name in names(&dir)? {
                    take_away(&dir.join(name))?;
                }
            }
            remove_dir(&dir)?;
            self.known().remove(&id);
            Ok(())
        })
    }

    fn of(&self, id: u64) -> PathBuf {
        self.dir.join(id.to_string())
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is not ours stays: see [`remove_dir`].
fn take_away(point: &Path) -> Result<(), MountError> {
    kernel::unmount_all(point).map_err(|e| MountError::io("unmount", point, e))?;
    remove_dir(point)
}

fn clone_all(lowers: &[PathBuf], points: &[PathBuf], maps: &IdMaps) -> Result<(), MountError> {
    let mut userns = None;
    for (lower, point) in lowers.iter().zip(points) {
        let wanted = identity(lower).map_err(|e| MountError::io("look at", lower, e))?;
        let there = identity(point).ok().filter(|there| there.is_mount);
        if there.is_some_and(|there| (there.dev, there.ino) == (wanted.dev, wanted.ino)) {
            continue;
        }
        let userns = match &userns {
            Some(made) => made,
            None => {
                let made = idmap::namespace(&lines(&maps.uids), &lines(&maps.gids));
                userns.insert(made.map_err(|source| MountError::NoNamespace { source })?)
            }
        };
        clone(lower, point, userns).map_err(|source| MountError::NotMapped { path: lower.clone(), source })?;
    }
    Ok(())
}

/// As `/proc/PID/uid_map` takes them.
fn lines(ranges: &[IdRange]) -> String {
    ranges.iter().fold(String::new(), |mut text, IdRange { container, host, length }| {
        // Into memory, which does not fail.
        let _ = writeln!(text, "{container} {host} {length}");
        text
    })
}

/// Which directory is shown somewhere.
struct Identity {
    dev: (u32, u32),
    ino: u64,
    /// The root of a mount.
    is_mount: bool,
}

/// Asks no server: a dead one does not matter.
fn identity(path: &Path) -> io::Result<Identity> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = statx(CWD, path, flags, StatxFlags::INO)?;
    Ok(Identity {
        dev: (stat.stx_dev_major, stat.stx_dev_minor),
        ino: stat.stx_ino,
        is_mount: stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    })
}

/// A process killed in here leaves nothing: until the last call the mount belongs to a descriptor.
fn clone(lower: &Path, point: &Path, userns: &OwnedFd) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let mount = open_tree(CWD, lower, flags)?;
    idmap::apply(mount.as_fd(), userns.as_fd())?;
    Ok(move_mount(&mount, "", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_written_as_the_kernel_reads_them() {
        let range = |container, host, length| IdRange { container, host, length };
        assert_eq!(lines(&[range(0, 65536, 1000), range(1000, 5, 1)]), "0 65536 1000\n1000 5 1\n");
    }
}
