//! The mounts below `<root>/mnt`: one a view, whoever made it, kept until somebody hides it.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use silk_model::Digest;

use crate::{
    Ground, MountError, RungChoice, View,
    kernel::{self, Place},
    meta, mountinfo, probe,
    turns::Turns,
    view::NAME_LEN,
};

/// How layers are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// Files: Linux 6.12 and later.
    File,
    /// Loop devices: Linux 6.4 and later.
    Loop,
    /// No EROFS, but trees that silkd serves.
    Tree,
    /// Not at all.
    None,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "EROFS from files",
            Self::Loop => "EROFS over loop devices",
            Self::Tree => "trees through FUSE",
            Self::None => "no EROFS",
        })
    }
}

/// Serves whole trees, for kernels that cannot mount EROFS.
pub trait Trees: fmt::Debug + Send + Sync {
    /// The directory that shows the metadata image `meta`, whose data files are those of `layers`, in this order.
    ///
    /// # Errors
    /// When the image cannot be read.
    fn tree(&self, name: &str, meta: &Path, layers: &[Digest]) -> io::Result<PathBuf>;

    /// Nobody shows it any more.
    fn gone(&self, name: &str);
}

/// Ends the name of a file beside a mount point whose view is served by the process that mounted it: to the next process it
/// is of no use.
const SERVED: &str = ".served";

/// The mounts of one silk root. One process a root.
#[derive(Debug)]
pub struct Mounts {
    mnt: PathBuf,
    /// The file system that `mnt` is on: what is mounted in it is on another.
    dev: u64,
    rung: Rung,
    reason: String,
    trees: Option<Arc<dyn Trees>>,
    shown: Mutex<BTreeSet<String>>,
    /// Those of them that were mounted since the process started and that nobody has used: see [`Mounts::first_use`].
    unused: Mutex<BTreeSet<String>>,
    turns: Turns<String>,
}

impl Mounts {
    /// Finds out what the kernel can do, adopts the mounts of an earlier process and takes away what else it left.
    ///
    /// A kernel that can do nothing is no error: [`Mounts::rung`] says so, and [`Mounts::show`] fails.
    ///
    /// # Errors
    /// When `<root>/mnt` cannot be made or read, or leftovers cannot be taken away.
    pub fn open(root: &Path, choice: RungChoice, trees: Option<Arc<dyn Trees>>) -> Result<Self, MountError> {
        let mnt = root.join("mnt");
        // Images' files with their owners and setuid bits are nobody's business on the host.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&mnt)
            .map_err(|e| MountError::io("create", &mnt, e))?;
        // The kernel lists mounts by their real paths.
        let mnt = mnt.canonicalize().map_err(|e| MountError::io("resolve", &mnt, e))?;
        let dev = fs::metadata(&mnt).map_err(|e| MountError::io("look at", &mnt, e))?.dev();
        let shown = adopt(&mnt)?;
        let (rung, reason) = probe::probe(&mnt, choice, trees.is_some())?;
        tracing::info!(%rung, %reason, adopted = shown.len(), "layers are shown");
        let (shown, unused) = (Mutex::new(shown), Mutex::default());
        Ok(Self { mnt, dev, rung, reason, trees, shown, unused, turns: Turns::default() })
    }

    /// What this kernel mounts from.
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// Why the ways before [`Mounts::rung`] do not work; empty when the first one does.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Where a view is or will be shown.
    pub fn mountpoint(&self, view: &View) -> PathBuf {
        self.mnt.join(view.name())
    }

    /// Whether a view is shown now. Asks the kernel too: an empty directory where somebody has unmounted the view by
    /// hand would be an empty layer in the next overlay.
    pub fn is_shown(&self, view: &View) -> bool {
        self.is_live(&view.name())
    }

    /// A view is about to be read. Says whether nobody can have read it before.
    pub(crate) fn first_use(&self, view: &View) -> bool {
        self.unused_set().remove(&view.name())
    }

    fn is_live(&self, name: &str) -> bool {
        let known = self.shown_set().contains(name);
        known && fs::metadata(self.mnt.join(name)).is_ok_and(|m| m.dev() != self.dev)
    }

    /// Shows a view: mounts `meta` with the data files `devices`, in the order of the image's device table. A view that
    /// is shown already stays as it is. Returns the mount point.
    ///
    /// # Errors
    /// When the kernel cannot, or refuses.
    pub fn show(&self, view: &View, meta: &Path, devices: &[PathBuf], ground: Ground) -> Result<PathBuf, MountError> {
        let name = view.name();
        let target = self.mnt.join(&name);
        self.turns.take(&name, || {
            if self.is_live(&name) {
                return Ok(target.clone());
            }
            self.mount(&name, meta, devices, (Place::Free, ground))?;
            Ok(target.clone())
        })
    }

    /// Shows a view, by the mount point's name, from other data files than before; a tree finds them by itself. There is no moment at which it is not
    /// shown: somebody may be about to use a path that he was told. A view that is not shown is no error.
    ///
    /// # Errors
    /// When the kernel refuses; the view is shown as before.
    pub fn replace(&self, name: &str, meta: &Path, devices: &[PathBuf], ground: Ground) -> Result<(), MountError> {
        self.turns.take(&name.to_owned(), || {
            if self.rung == Rung::Tree || !self.is_live(name) {
                return Ok(());
            }
            self.mount(name, meta, devices, (Place::Instead, ground))
        })
    }

    fn mount(
        &self,
        name: &str,
        meta: &Path,
        devices: &[PathBuf],
        (place, ground): (Place, Ground),
    ) -> Result<(), MountError> {
        let (target, mark) = (self.mnt.join(name), self.mnt.join(format!("{name}{SERVED}")));
        if self.rung == Rung::None {
            return Err(MountError::NoRung { reason: self.reason.clone() });
        }
        let layers = meta::wanted(meta).filter(|wanted| wanted.len() == devices.len());
        let Some(layers) = layers else {
            return Err(MountError::Devices { meta: meta.to_owned(), given: devices.len() });
        };
        match fs::create_dir(&target) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(MountError::io("create", &target, e)),
            _ => {}
        }
        if ground == Ground::Served {
            fs::write(&mark, []).map_err(|e| MountError::io("write", &mark, e))?;
        }
        let mounted = match (self.rung, &self.trees) {
            (Rung::Tree, Some(trees)) => trees
                .tree(name, meta, &layers)
                .and_then(|tree| rustix::mount::mount_bind(&tree, &target).map_err(io::Error::from))
                .map_err(kernel::Refused::from),
            _ => kernel::mount_erofs(self.rung, meta, devices, (&target, place)),
        };
        if let Err(refused) = mounted {
            let (rung, meta) = (self.rung, meta.to_owned());
            if place == Place::Free {
                remove_dir(&target)?;
            }
            return Err(MountError::Refused { meta, rung, source: refused.source, log: refused.log });
        }
        if ground == Ground::Disk {
            remove_file(&mark)?;
        }
        self.shown_set().insert(name.to_owned());
        self.unused_set().insert(name.to_owned());
        Ok(())
    }

    /// Takes a view away. Overlays that stand on it keep what they have: the file system lives as long as they do. A
    /// view that is not shown is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hide(&self, view: &View) -> Result<(), MountError> {
        self.hide_name(&view.name())
    }

    /// As [`Mounts::hide`], by the mount point's name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hide_name(&self, name: &str) -> Result<(), MountError> {
        self.turns.take(&name.to_owned(), || {
            take_away(&self.mnt.join(name))?;
            remove_file(&self.mnt.join(format!("{name}{SERVED}")))?;
            self.shown_set().remove(name);
            self.trees.iter().for_each(|trees| trees.gone(name));
            self.unused_set().remove(name);
            Ok(())
        })
    }

    /// Takes away all views whose name `keep` does not want. Returns their names.
    ///
    /// # Errors
    /// The first refusal; others are taken away all the same.
    pub fn hide_unknown(&self, keep: &dyn Fn(&str) -> bool) -> Result<Vec<String>, MountError> {
        let unknown: Vec<String> = self.shown_set().iter().filter(|name| !keep(name)).cloned().collect();
        let failed = unknown.iter().filter_map(|name| self.hide_name(name).err()).next();
        failed.map_or(Ok(unknown), Err)
    }

    /// The names of all views that are shown, and where.
    pub fn shown(&self) -> Vec<(String, PathBuf)> {
        self.shown_set().iter().map(|name| (name.clone(), self.mnt.join(name))).collect()
    }

    fn unused_set(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shown_set(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The views that are mounted below `mnt`, but for those that an earlier process served. Directories without a mount are removed, mounts that are no views too.
fn adopt(mnt: &Path) -> Result<BTreeSet<String>, MountError> {
    let mounted = mountinfo::below(mnt).map_err(|e| MountError::io("read", Path::new("/proc/self/mountinfo"), e))?;
    let entries = fs::read_dir(mnt).map_err(|e| MountError::io("list", mnt, e))?;
    let names: Vec<_> = entries
        .map(|e| e.map(|e| e.file_name()))
        .collect::<io::Result<_>>()
        .map_err(|e| MountError::io("list", mnt, e))?;
    let mut shown = BTreeSet::new();
    let served: Vec<_> = names.iter().filter_map(|n| n.to_str()?.strip_suffix(SERVED)).filter(|n| is_name(n)).collect();
    for name in &names {
        let target = mnt.join(name);
        let view = name.to_str().filter(|n| is_name(n) && !served.contains(n));
        match view {
            _ if name == probe::DIR || name.to_str().is_some_and(|n| n.ends_with(SERVED)) => {}
            Some(view) if mounted.iter().any(|m| m.point == target && m.fs_type == b"erofs") => {
                shown.insert(view.to_owned());
            }
            _ => take_away(&target)?,
        }
    }
    served.iter().try_for_each(|name| remove_file(&mnt.join(format!("{name}{SERVED}"))))?;
    Ok(shown)
}

fn is_name(name: &str) -> bool {
    name.len() == NAME_LEN && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
}

fn take_away(target: &Path) -> Result<(), MountError> {
    kernel::unmount_all(target).map_err(|e| MountError::io("unmount", target, e))?;
    remove_dir(target)
}

fn remove_file(path: &Path) -> Result<(), MountError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(MountError::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// What is not ours (a file, a directory with something in it) stays: an operator put it there.
fn remove_dir(target: &Path) -> Result<(), MountError> {
    match fs::remove_dir(target) {
        Err(e) if matches!(e.kind(), ErrorKind::NotADirectory | ErrorKind::DirectoryNotEmpty) => {
            tracing::warn!(path = %target.display(), "is in the way of silk's mounts: please remove it");
            Ok(())
        }
        Err(e) if e.kind() != ErrorKind::NotFound => Err(MountError::io("remove", target, e)),
        _ => Ok(()),
    }
}
