//! The mounts below `<root>/mnt`: one a view, whoever made it, kept until somebody hides it.
//!
//! A view is mounted on `<root>/mnt/<name>/t`, and made under another name, `<root>/aside/<name>-<nr>/t`: renaming its directory, which is
//! no mount point, puts all of it in place, and exchanging two of them replaces it. The old mount is aside then, where nobody
//! finds it, until [`Mounts::put_away`]: who looked the path up before, to stand an overlay on it or to bind it, is refused (EINVAL) when
//! the mount that he found was detached meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt, fs,
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::fs::{CWD, RenameFlags, XattrFlags, getxattr, renameat_with, setxattr};
use silk_model::Digest;
use silk_sys::apart;

use crate::{
    Ground, MountError, RungChoice, View, kernel, meta,
    mountinfo::{self, Mounted},
    probe,
    turns::Turns,
    view::ViewName,
};

/// How layers are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// Files: Linux 6.12 and later, with the fixes of April 2026.
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

    /// What was shown under this name, and is gone, was not what it should have been: the next tree of the name is another one.
    fn lied(&self, name: &str);
}

/// The mount point in a view's directory. Short, as it stands in overlays' options.
const TREE: &str = "t";
/// Whose a view's directory is, all of its name: an attribute needs no block of a full disk, and an older silkd removes the directory with it.
const OF: &str = "trusted.silk.of";
/// A file beside a mount point whose view is served by the process that mounted it: to the next process it is of no use.
const SERVED: &str = "served";

/// The mounts of one silk root. One process a root.
#[derive(Debug)]
pub struct Mounts {
    mnt: PathBuf,
    /// Where views are made, and replaced ones wait for their end.
    aside: PathBuf,
    /// Directories that were made there.
    made: AtomicU64,
    /// The file system that `mnt` is on: what is mounted in it is on another.
    dev: u64,
    rung: Rung,
    reason: String,
    trees: Option<Arc<dyn Trees>>,
    /// By the names of mount points.
    shown: Mutex<BTreeMap<String, ViewName>>,
    /// Those of them that were mounted since the process started and that nobody has used: see [`Mounts::first_use`].
    unused: Mutex<BTreeSet<ViewName>>,
    replaced: Mutex<Vec<Replaced>>,
    turns: Turns<String>,
}

/// A view's mount that another took the place of.
#[derive(Debug)]
struct Replaced {
    name: ViewName,
    dir: PathBuf,
    since: Instant,
}

impl Mounts {
    /// Finds out what the kernel can do, adopts the mounts of an earlier process and takes away what else it left.
    ///
    /// A kernel that can do nothing is no error: [`Mounts::rung`] says so, and [`Mounts::show`] fails.
    ///
    /// # Errors
    /// When `<root>/mnt` cannot be made or read, or leftovers cannot be taken away.
    pub fn open(root: &Path, choice: RungChoice, trees: Option<Arc<dyn Trees>>) -> Result<Self, MountError> {
        let (mnt, aside) = (private(root, "mnt")?, private(root, "aside")?);
        let dev = fs::metadata(&mnt).map_err(|e| MountError::io("look at", &mnt, e))?.dev();
        names(&aside)?.iter().try_for_each(|name| take_away(&aside.join(name)))?;
        let (rung, reason) = probe::probe(&mnt, choice, trees.is_some())?;
        let shown = adopt(&mnt, rung)?;
        tracing::info!(%rung, %reason, adopted = shown.len(), "layers are shown");
        let (made, shown, unused, replaced) =
            (AtomicU64::new(0), Mutex::new(shown), Mutex::default(), Mutex::default());
        let turns = Turns::default();
        Ok(Self { mnt, aside, made, dev, rung, reason, trees, shown, unused, replaced, turns })
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
        self.point(&view.name())
    }

    fn point(&self, name: &ViewName) -> PathBuf {
        self.mnt.join(name.to_string()).join(TREE)
    }

    /// Has another view this one's mount point?
    fn is_taken(&self, name: &ViewName) -> bool {
        self.shown_map().get(&name.to_string()).is_some_and(|of| of != name)
    }

    /// Is what a mount point of ours shows served by this process? Other directories are not. Reads the disk's directories, at most.
    pub fn is_served(&self, point: &Path) -> bool {
        let ours = point.parent().filter(|dir| dir.parent() == Some(&self.mnt));
        ours.is_some_and(|dir| self.rung == Rung::Tree || dir.join(SERVED).exists())
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

    fn is_live(&self, name: &ViewName) -> bool {
        let known = self.shown_map().get(&name.to_string()) == Some(name);
        known && fs::metadata(self.point(name)).is_ok_and(|m| m.dev() != self.dev)
    }

    /// Shows a view: mounts `meta` with the data files `devices`, in the order of the image's device table. A view that
    /// is shown already stays as it is. Returns the mount point.
    ///
    /// # Errors
    /// When the kernel cannot, or refuses; [`MountError::Taken`].
    pub fn show(&self, view: &View, meta: &Path, devices: &[PathBuf], ground: Ground) -> Result<PathBuf, MountError> {
        let name = view.name();
        let short = name.to_string();
        self.turns.take(&short, || {
            if self.is_taken(&name) {
                return Err(MountError::Taken { point: self.point(&name) });
            }
            if !self.is_live(&name) {
                let (dir, place) = (self.make(&name, meta, devices, ground)?, self.mnt.join(&short));
                let put = take_away(&place).and_then(|()| rename(&dir, &place, RenameFlags::empty()));
                put.inspect_err(|_| give_up(&dir))?;
                self.shown_map().insert(short.clone(), name);
                self.unused_set().insert(name);
            }
            Ok(self.point(&name))
        })
    }

    /// Shows a view, by the mount point's name, from other data files than before; a tree finds them by itself. There is no
    /// moment at which it is not shown: somebody may be about to use a path that he was told, or be using it. So the old mount
    /// stays where nobody finds it, until [`Mounts::put_away`]. A view that is not shown is no error.
    ///
    /// # Errors
    /// When the kernel refuses; the view is shown as before.
    pub fn replace(&self, name: &ViewName, meta: &Path, devices: &[PathBuf], ground: Ground) -> Result<(), MountError> {
        let short = name.to_string();
        self.turns.take(&short, || {
            if self.rung == Rung::Tree || !self.is_live(name) {
                return Ok(());
            }
            let dir = self.make(name, meta, devices, ground)?;
            // Before anybody can use it. One that is served may have been read already, and its reads be answered by the kernel.
            let fresh = ground == Ground::Disk && self.unused_set().insert(*name);
            rename(&dir, &self.mnt.join(&short), RenameFlags::EXCHANGE).inspect_err(|_| {
                if fresh {
                    self.unused_set().remove(name);
                }
                give_up(&dir);
            })?;
            self.replaced_list().push(Replaced { name: *name, dir, since: Instant::now() });
            Ok(())
        })
    }

    /// Takes away the mounts that were replaced at least so long ago.
    ///
    /// # Errors
    /// The first refusal; others are taken away all the same.
    pub fn put_away(&self, age: Duration) -> Result<(), MountError> {
        self.end_replaced(|replaced| replaced.since.elapsed() >= age)
    }

    fn end_replaced(&self, which: impl Fn(&Replaced) -> bool) -> Result<(), MountError> {
        let gone: Vec<_> = self.replaced_list().extract_if(.., |replaced| which(replaced)).collect();
        let failed = gone.iter().filter_map(|replaced| take_away(&replaced.dir).err()).next();
        failed.map_or(Ok(()), Err)
    }

    /// Mounts a view aside. Returns the directory.
    fn make(&self, name: &ViewName, meta: &Path, devices: &[PathBuf], ground: Ground) -> Result<PathBuf, MountError> {
        if self.rung == Rung::None {
            return Err(MountError::NoRung { reason: self.reason.clone() });
        }
        let layers = meta::wanted(meta).filter(|wanted| wanted.len() == devices.len());
        let Some(layers) = layers else {
            return Err(MountError::Devices { meta: meta.to_owned(), given: devices.len() });
        };
        let dir = self.aside.join(format!("{name}-{}", self.made.fetch_add(1, Ordering::Relaxed)));
        let mount = || {
            let target = dir.join(TREE);
            fs::create_dir_all(&target).map_err(|e| MountError::io("create", &target, e))?;
            // On a file system that has none, the next process mounts the view anew.
            if let Err(error) = setxattr(&dir, OF, name.bytes(), XattrFlags::empty()) {
                tracing::debug!(path = %dir.display(), %error, "a mount does not say whose it is");
            }
            if ground == Ground::Served {
                let mark = dir.join(SERVED);
                fs::write(&mark, []).map_err(|e| MountError::io("write", &mark, e))?;
            }
            let mounted = match (self.rung, &self.trees) {
                (Rung::Tree, Some(trees)) => trees
                    .tree(&name.to_string(), meta, &layers)
                    // This process serves what it looks up here, and below.
                    .and_then(|tree| apart::run(|| Ok(rustix::mount::mount_bind(&tree, &target)?)).flatten())
                    .map_err(kernel::Refused::from),
                _ if ground == Ground::Served => apart::run(|| kernel::mount_erofs(self.rung, meta, devices, &target))
                    .unwrap_or_else(|e| Err(e.into())),
                _ => kernel::mount_erofs(self.rung, meta, devices, &target),
            };
            mounted.map_err(|kernel::Refused { source, log }| MountError::Refused {
                meta: meta.to_owned(),
                rung: self.rung,
                source,
                log,
            })
        };
        mount().inspect_err(|_| give_up(&dir))?;
        Ok(dir)
    }

    /// Takes a view away. Overlays that stand on it keep what they have: the file system lives as long as they do. A
    /// view that is not shown is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hide(&self, view: &View) -> Result<(), MountError> {
        self.hide_name(&view.name())
    }

    /// As [`Mounts::hide_name`], of a view that showed what it should not have: whatever is kept of it must not be taken for
    /// what the name shows next.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn disown(&self, name: &ViewName) -> Result<(), MountError> {
        self.hide_name(name)?;
        if !self.is_taken(name) {
            self.trees.iter().for_each(|trees| trees.lied(&name.to_string()));
        }
        Ok(())
    }

    /// As [`Mounts::hide`], by the view's name. What another view has mounted there stays.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hide_name(&self, name: &ViewName) -> Result<(), MountError> {
        let short = name.to_string();
        self.turns.take(&short, || {
            if self.is_taken(name) {
                return Ok(());
            }
            take_away(&self.mnt.join(&short))?;
            self.end_replaced(|replaced| replaced.name == *name)?;
            self.shown_map().remove(&short);
            self.trees.iter().for_each(|trees| trees.gone(&short));
            self.unused_set().remove(name);
            Ok(())
        })
    }

    /// Takes away all views whose name `keep` does not want. Returns their names.
    ///
    /// # Errors
    /// The first refusal; others are taken away all the same.
    pub fn hide_unknown(&self, keep: &dyn Fn(&ViewName) -> bool) -> Result<Vec<ViewName>, MountError> {
        let unknown: Vec<_> = self.shown_map().values().filter(|name| !keep(name)).copied().collect();
        let failed = unknown.iter().filter_map(|name| self.hide_name(name).err()).next();
        failed.map_or(Ok(unknown), Err)
    }

    /// The names of all views that are shown, and where.
    pub fn shown(&self) -> Vec<(ViewName, PathBuf)> {
        self.shown_map().values().map(|name| (*name, self.point(name))).collect()
    }

    fn unused_set(&self) -> MutexGuard<'_, BTreeSet<ViewName>> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replaced_list(&self) -> MutexGuard<'_, Vec<Replaced>> {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shown_map(&self) -> MutexGuard<'_, BTreeMap<String, ViewName>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A directory of ours: images' files with their owners and setuid bits are nobody's business on the host. By its real path, as the
/// kernel lists mounts.
pub(crate) fn private(root: &Path, name: &str) -> Result<PathBuf, MountError> {
    let dir = root.join(name);
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.map_err(|e| MountError::io("create", &dir, e))?;
    dir.canonicalize().map_err(|e| MountError::io("resolve", &dir, e))
}

pub(crate) fn names(dir: &Path) -> Result<Vec<OsString>, MountError> {
    let list = || fs::read_dir(dir)?.map(|e| Ok(e?.file_name())).collect::<io::Result<_>>();
    list().map_err(|e| MountError::io("list", dir, e))
}

/// The views that are mounted below `mnt`, but for those that an earlier process served, or mounted from files where that is not the way now. Directories
/// without a mount are removed, mounts that are no views too.
fn adopt(mnt: &Path, rung: Rung) -> Result<BTreeMap<String, ViewName>, MountError> {
    let mounted = mountinfo::below(mnt).map_err(|e| MountError::io("read", Path::new("/proc/self/mountinfo"), e))?;
    let mut shown = BTreeMap::new();
    for name in names(mnt)? {
        if name == probe::DIR {
            continue;
        }
        let dir = mnt.join(&name);
        let point = dir.join(TREE);
        let is_ours =
            |m: &Mounted| m.point == point && m.fs_type == b"erofs" && (rung == Rung::File || m.is_from_loop());
        let is_view = mounted.iter().any(is_ours) && !dir.join(SERVED).exists();
        let mut of = [0; 32];
        let of = getxattr(&dir, OF, &mut of).is_ok_and(|len| len == of.len()).then(|| ViewName::new(of));
        match of.filter(|of| is_view && name == *of.to_string()) {
            Some(of) => drop(shown.insert(of.to_string(), of)),
            None => take_away(&dir)?,
        }
    }
    Ok(shown)
}

fn rename(from: &Path, to: &Path, how: RenameFlags) -> Result<(), MountError> {
    renameat_with(CWD, from, CWD, to, how).map_err(|e| MountError::io("rename to", to, e))
}

/// Takes a view's directory away, with what is mounted on it or in it.
fn take_away(dir: &Path) -> Result<(), MountError> {
    for target in [dir, &dir.join(TREE)] {
        kernel::unmount_all(target).map_err(|e| MountError::io("unmount", target, e))?;
    }
    remove_dir(&dir.join(TREE))?;
    remove_file(&dir.join(SERVED))?;
    remove_dir(dir)
}

/// As [`take_away`], where another error is about to be told.
fn give_up(dir: &Path) {
    if let Err(error) = take_away(dir) {
        tracing::warn!(%error, "what was made for a mount stays until silkd starts again");
    }
}

fn remove_file(path: &Path) -> Result<(), MountError> {
    match fs::remove_file(path) {
        Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(MountError::io("remove", path, e))
        }
        _ => Ok(()),
    }
}

/// What is not ours (a file, a directory with something in it) stays: an operator put it there.
pub(crate) fn remove_dir(target: &Path) -> Result<(), MountError> {
    match fs::remove_dir(target) {
        Err(e) if matches!(e.kind(), ErrorKind::NotADirectory | ErrorKind::DirectoryNotEmpty) => {
            tracing::warn!(path = %target.display(), "is in the way of silk's mounts: please remove it");
            Ok(())
        }
        Err(e) if e.kind() != ErrorKind::NotFound => Err(MountError::io("remove", target, e)),
        _ => Ok(()),
    }
}
