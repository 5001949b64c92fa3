//! From an image's layers to the directories of its overlay.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use silk_layer::{
    erofs::{Device, Plan},
    toc::Toc,
    tree::{Dependence, Source, Tree},
};
use silk_model::{Digest, chain_ids};

use crate::{
    Ground, LayerError, MountError, Mounts, Pages, Variant, View, ViewError, chain, making::Making, meta, turns::Turns,
};

/// Who keeps the layers.
pub trait LayerFiles: Sync {
    /// A layer's directory. It holds `data`, the tar padded with zeros to a multiple of 4096 bytes (or with holes: see
    /// [`LayerFiles::served`]), and takes what this
    /// room adds: `erofs*` and `depends`, which may be deleted whenever the layer is not shown.
    fn layer_path(&self, diff_id: &Digest) -> PathBuf;

    /// A layer's table of contents.
    ///
    /// # Errors
    /// When it is not here or cannot be read.
    fn toc(&self, diff_id: &Digest) -> Result<Toc, LayerError>;

    /// At most so many entries are in a layer's table of contents, which takes memory by them.
    fn entries(&self, diff_id: &Digest) -> u64;

    /// Length of a layer's tar in bytes; `None` unless it can be read, now or by waiting.
    fn size(&self, diff_id: &Digest) -> Option<u64>;

    /// The file that serves a layer's data while bytes are missing; `None` when `data` has all of them.
    fn served(&self, diff_id: &Digest) -> Option<PathBuf>;
}

/// The views of layers: which one an image needs, its metadata, its mount.
#[derive(Debug)]
pub struct Views {
    mounts: Mounts,
    /// Making a view, by its name; learning of a layer, by its diff ID.
    turns: Turns<String>,
    /// Finding or mounting a layer's view, against retiring the layer. Short: nothing is made meanwhile.
    layers: Turns<Digest>,
    making: Making,
    /// On what a layer's tree depends; an entry for each layer that was shown and not hidden since.
    dependences: Mutex<HashMap<Digest, Dependence>>,
    /// Views of [`Variant::Chain`] with their images and the layers these point into, by the name of the mount.
    chains: Mutex<HashMap<String, Wants>>,
}

#[derive(Debug)]
struct Wants {
    meta: PathBuf,
    layers: Vec<Digest>,
    /// Layers that its names were made of besides its own, if it was made or found by this process.
    below: Vec<Digest>,
}

/// How a mount is taken away.
type Hide<'a> = &'a dyn Fn(&str) -> Result<(), MountError>;

impl Views {
    /// Views over these mounts. Call [`Views::sweep`] before anything else.
    pub fn new(mounts: Mounts) -> Self {
        let (turns, layers, making) = (Turns::default(), Turns::default(), Making::default());
        Self { mounts, turns, layers, making, dependences: Mutex::default(), chains: Mutex::default() }
    }

    /// The mounts below.
    pub fn mounts(&self) -> &Mounts {
        &self.mounts
    }

    /// Shows all layers of a chain, base first, and returns their mount points in the order of overlayfs' `lowerdir`:
    /// top first.
    ///
    /// # Errors
    /// When a layer is not whole, has no tree, or cannot be mounted.
    pub fn lowers(&self, files: &dyn LayerFiles, chain: &[Digest]) -> Result<Vec<PathBuf>, ViewError> {
        let ids = chain_ids(chain);
        self.learn_all(files, chain, &ids);
        // Base first: see `retire`.
        let mut lowers: Vec<_> =
            (0..chain.len()).map(|at| self.show_at(files, (chain, &ids), at)).collect::<Result<_, _>>()?;
        lowers.reverse();
        // A chain may hold a layer twice (`RUN true` makes the same empty one each time), and overlayfs takes no lower
        // directory twice. The topmost decides: whatever a repetition below it shows, it shows above.
        let mut seen = HashSet::new();
        lowers.retain(|lower| seen.insert(lower.clone()));
        Ok(lowers)
    }

    /// Shows the top layer of a chain, base first, so that a later [`Views::lowers`] finds it shown. The layers below
    /// must be whole only if the top one depends on them.
    ///
    /// # Errors
    /// As [`Views::lowers`].
    pub fn show_top(&self, files: &dyn LayerFiles, chain: &[Digest]) -> Result<Option<PathBuf>, ViewError> {
        let ids = chain_ids(chain);
        chain.len().checked_sub(1).map(|at| self.show_at(files, (chain, &ids), at)).transpose()
    }

    /// The mount that shows the top layer of a chain, base first, if it is mounted. Reads no disk.
    pub fn shown(&self, chain: &[Digest]) -> Option<(Variant, PathBuf)> {
        let (diff_id, below) = chain.split_last()?;
        let dependence = *self.dependences().get(diff_id)?;
        let variant = chain::variant(dependence, chain_ids(below).last().copied());
        let view = View { diff_id: *diff_id, variant };
        self.mounts.is_shown(&view).then(|| (variant, self.mounts.mountpoint(&view)))
    }

    /// The pages of the mount that shows the top layer of a chain, base first, for who is about to have it read; `None` if it is
    /// not mounted. With it comes whether nobody can have read it before. Reads the metadata image's head.
    pub fn pages(&self, files: &dyn LayerFiles, chain: &[Digest]) -> Option<(Pages, bool)> {
        let (variant, _) = self.shown(chain)?;
        let first = self.mounts.first_use(&View { diff_id: *chain.last()?, variant });
        Some((self.pages_now(files, chain)?, first))
    }

    /// The same, for who only looks.
    pub fn pages_now(&self, files: &dyn LayerFiles, chain: &[Digest]) -> Option<Pages> {
        let (variant, mountpoint) = self.shown(chain)?;
        let view = View { diff_id: *chain.last()?, variant };
        let pages = Pages::open(&mountpoint, &files.layer_path(&view.diff_id).join(view.file_name()));
        let pages = pages.inspect_err(
            |error| tracing::warn!(diff_id = %view.diff_id, %error, "what is read of a layer is not seen"),
        );
        pages.ok()
    }

    /// Takes away a layer's views as [`Views::hide_layer`] and then does `then` (deletes its files, say), unless
    /// `in_use`; `None` if it is. A [`Views::lowers`] on its way either finds the layer as it was or, when its caller
    /// made `in_use` true before, keeps it: it asks for the base first, and this holds that layer until it is done.
    ///
    /// `in_use` and `then` must not wait for anybody who is in [`Views::lowers`].
    ///
    /// # Errors
    /// When the kernel refuses to unmount; `then` was not done.
    pub fn retire<R>(
        &self,
        files: &dyn LayerFiles,
        diff_id: &Digest,
        in_use: &dyn Fn() -> bool,
        then: impl FnOnce() -> R,
    ) -> Result<Option<R>, ViewError> {
        self.layers.take(diff_id, || {
            if in_use() {
                return Ok(None);
            }
            self.hide_layer(files, diff_id)?;
            Ok(Some(then()))
        })
    }

    /// Takes away all views of a layer, and those of other layers that point into its data. Call it before the layer's
    /// files are deleted: a mount keeps the space of deleted ones. Overlays that stand on them keep what they have.
    ///
    /// # Errors
    /// When the kernel refuses to unmount.
    pub fn hide_layer(&self, files: &dyn LayerFiles, diff_id: &Digest) -> Result<(), ViewError> {
        self.take_layer(files, diff_id, &|name| self.mounts.hide_name(name))
    }

    fn take_layer(&self, files: &dyn LayerFiles, diff_id: &Digest, hide: Hide<'_>) -> Result<(), ViewError> {
        let failed = |source| ViewError::Mount { layer: *diff_id, source };
        for (_, name) in images(&files.layer_path(diff_id), diff_id)? {
            hide(&name).map_err(failed)?;
            self.chains().remove(&name);
        }
        self.hide_users(diff_id, &|user| user.layers.contains(diff_id), hide)?;
        self.dependences().remove(diff_id);
        Ok(())
    }

    /// Takes away views of other layers, for the sake of `diff_id`, and deletes what they were made of.
    fn hide_users(&self, diff_id: &Digest, is_user: &dyn Fn(&Wants) -> bool, hide: Hide<'_>) -> Result<(), ViewError> {
        let users: Vec<_> =
            self.chains().iter().filter(|(_, wants)| is_user(wants)).map(|(name, _)| name.clone()).collect();
        for name in users {
            hide(&name).map_err(|source| ViewError::Mount { layer: *diff_id, source })?;
            if let Some(Wants { meta, .. }) = self.chains().remove(&name) {
                remove_file(&meta)?;
            }
        }
        Ok(())
    }

    /// A layer changed its ground. Its views, and those of other layers that point into it, are mounted from what it is now,
    /// in the place of the old mounts; if its names `lied`, they are taken away, and what was made of its names is deleted.
    /// Overlays that stand on the old mounts keep them.
    ///
    /// # Errors
    /// When the kernel refuses, or a file cannot be deleted.
    pub fn renew_layer(&self, files: &dyn LayerFiles, diff_id: &Digest, lied: bool) -> Result<(), ViewError> {
        self.layers.take(diff_id, || {
            let own = images(&files.layer_path(diff_id), diff_id)?;
            if lied {
                let disown: Hide<'_> = &|name| self.mounts.disown(name);
                self.take_layer(files, diff_id, disown)?;
                // Also those that took no more from it than the mode of a directory.
                self.hide_users(diff_id, &|user| user.below.contains(diff_id), disown)?;
                own.iter().try_for_each(|(meta, _)| remove_file(meta))?;
                return remove_file(&files.layer_path(diff_id).join("depends"));
            }
            let users = self
                .chains()
                .iter()
                .filter(|(_, w)| w.layers.contains(diff_id))
                .map(|(n, w)| (w.meta.clone(), n.clone()))
                .collect::<Vec<_>>();
            for (meta, name) in own.into_iter().chain(users) {
                let layers = meta::wanted(&meta).unwrap_or_default();
                let devices: Vec<_> = layers.iter().map(|layer| data(files, layer)).collect();
                let replaced = self.mounts.replace(&name, &meta, &devices, ground(files, &layers));
                replaced.map_err(|source| ViewError::Mount { layer: *diff_id, source })?;
            }
            Ok(())
        })
    }

    /// Takes away the views that an earlier process left of layers that are not whole any more. `whole` are those
    /// that are.
    ///
    /// # Errors
    /// When a layer's directory cannot be read, or the kernel refuses to unmount.
    pub fn sweep(&self, files: &dyn LayerFiles, whole: &[Digest]) -> Result<(), ViewError> {
        let here: std::collections::HashSet<_> = whole.iter().collect();
        let mut keep = std::collections::HashSet::new();
        for diff_id in whole {
            for (meta, name) in images(&files.layer_path(diff_id), diff_id)? {
                let layers = meta::wanted(&meta).unwrap_or_default();
                if layers.iter().all(|layer| here.contains(layer)) {
                    if layers.iter().any(|layer| layer != diff_id) {
                        self.chains().insert(name.clone(), Wants { meta, layers, below: Vec::new() });
                    }
                    keep.insert(name);
                } else {
                    remove_file(&meta)?;
                }
            }
        }
        let hidden = self.mounts.hide_unknown(&|name| keep.contains(name));
        let layer = whole.first().copied().unwrap_or(Digest::new([0; 32]));
        let hidden = hidden.map_err(|source| ViewError::Mount { layer, source })?;
        if !hidden.is_empty() {
            tracing::info!(count = hidden.len(), "took away mounts of layers that are gone");
        }
        Ok(())
    }

    fn show_at(
        &self,
        files: &dyn LayerFiles,
        (chain, ids): (&[Digest], &[Digest]),
        at: usize,
    ) -> Result<PathBuf, ViewError> {
        let (diff_id, place) = (chain[at], at.checked_sub(1).map(|below| ids[below]));
        let dependence = match self.known_dependence(files, &diff_id) {
            Some(known) => known,
            // Not before it is whole: what is learned is written beside it.
            None if files.size(&diff_id).is_none() => return Err(ViewError::NotWhole(diff_id)),
            None => self.learn(files, diff_id, place)?,
        };
        let view = View { diff_id, variant: chain::variant(dependence, place) };
        if self.layers.take(&diff_id, || self.mounts.is_shown(&view)) {
            return Ok(self.mounts.mountpoint(&view));
        }
        // Two that want the same view: the second finds the image made and the mount there.
        self.turns.take(&view.name(), || self.show(files, &view, &chain[..=at]))
    }

    fn show(&self, files: &dyn LayerFiles, view: &View, chain: &[Digest]) -> Result<PathBuf, ViewError> {
        let layer = view.diff_id;
        files.size(&layer).ok_or(ViewError::NotWhole(layer))?;
        let path = files.layer_path(&layer).join(view.file_name());
        let layers = match meta::open(&path, view)? {
            Some(layers) => layers,
            None => {
                let entries = match view.variant {
                    Variant::Shared | Variant::Base => files.entries(&layer),
                    Variant::Chain(_) => chain.iter().map(|layer| files.entries(layer)).fold(0, u64::saturating_add),
                };
                let _room = self.making.room(entries);
                let tree = match view.variant {
                    Variant::Shared | Variant::Base => {
                        Some(chain::build_alone(&layer, &toc(files, &layer)?, view.variant)?)
                    }
                    Variant::Chain(_) => chain::build_on(chain, &|diff_id| toc(files, diff_id))?,
                };
                let tree = tree.ok_or(ViewError::NotWhole(layer))?;
                make(files, view, chain, &tree)?
            }
        };
        self.layers.take(&layer, || {
            // Layers that were retired while the image was made.
            if let Some(gone) = layers.iter().find(|layer| files.size(layer).is_none()) {
                return Err(ViewError::NotWhole(*gone));
            }
            let devices: Vec<_> = layers.iter().map(|layer| data(files, layer)).collect();
            let ground = ground(files, &layers);
            if let Variant::Chain(_) = view.variant {
                let below = chain[..chain.len() - 1].to_vec();
                self.chains().insert(view.name(), Wants { meta: path.clone(), layers, below });
            }
            self.mounts.show(view, &path, &devices, ground).map_err(|source| ViewError::Mount { layer, source })
        })
    }

    fn known_dependence(&self, files: &dyn LayerFiles, diff_id: &Digest) -> Option<Dependence> {
        if let Some(known) = self.dependences().get(diff_id) {
            return Some(*known);
        }
        let read = chain::read_dependence(&files.layer_path(diff_id).join("depends"))?;
        self.dependences().insert(*diff_id, read);
        Some(read)
    }

    /// Learns of all layers that were never shown, on all processors: a pull waits for it. What fails here fails again where the
    /// layer is shown, and is told there.
    fn learn_all(&self, files: &dyn LayerFiles, chain: &[Digest], ids: &[Digest]) {
        let new = |at: &usize| self.known_dependence(files, &chain[*at]).is_none() && files.size(&chain[*at]).is_some();
        let mut new: Vec<_> = (0..chain.len()).filter(new).collect();
        if new.len() < 2 {
            // Whoever shows it learns of it.
            return;
        }
        new.sort_by_key(|at| Reverse(files.entries(&chain[*at])));
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(at) = new.get(next.fetch_add(1, Ordering::Relaxed)) {
                let _ = self.learn(files, chain[*at], at.checked_sub(1).map(|below| ids[below]));
            }
        };
        thread::scope(|scope| {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            for _ in 1..cores.min(new.len()) {
                // Without it, the others do its share.
                let _ = thread::Builder::new().name("silk-views".to_owned()).spawn_scoped(scope, work);
            }
            work();
        });
    }

    /// Works out on what a layer's tree depends, and keeps it beside the layer. That takes the tree; so where it is the
    /// one that is wanted, its image is made on the way.
    fn learn(&self, files: &dyn LayerFiles, diff_id: Digest, place: Option<Digest>) -> Result<Dependence, ViewError> {
        self.turns.take(&diff_id.hex(), || {
            if let Some(known) = self.known_dependence(files, &diff_id) {
                return Ok(known);
            }
            let _room = self.making.room(files.entries(&diff_id));
            let (dependence, tree) = chain::learn(&diff_id, &toc(files, &diff_id)?, place)?;
            if let Some(tree) = tree {
                let view = View { diff_id, variant: chain::variant(dependence, place) };
                make(files, &view, &[diff_id], &tree)?;
            }
            let path = files.layer_path(&diff_id).join("depends");
            chain::write_dependence(&path, dependence).map_err(|e| ViewError::io("write", &path, e))?;
            self.dependences().insert(diff_id, dependence);
            Ok(dependence)
        })
    }

    fn dependences(&self) -> MutexGuard<'_, HashMap<Digest, Dependence>> {
        self.dependences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chains(&self) -> MutexGuard<'_, HashMap<String, Wants>> {
        self.chains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the metadata image of the top layer of `chain`, whose tree is `tree`. Returns the layers that it points into.
fn make(files: &dyn LayerFiles, view: &View, chain: &[Digest], tree: &Tree) -> Result<Vec<Digest>, ViewError> {
    let layer = view.diff_id;
    let whose = |source| match source {
        Source::Own => Some(layer),
        Source::Below(n) => chain.len().checked_sub(1 + n as usize).and_then(|at| chain.get(at)).copied(),
    };
    let mut devices = Vec::new();
    for source in chain::sources(tree) {
        let Some(layer) = whose(source) else { continue };
        let size = files.size(&layer).ok_or(ViewError::NotWhole(layer))?;
        devices.push(Device { source, size, layer });
    }
    let plan = Plan::new(tree, &devices, view.uuid()).map_err(|source| ViewError::Erofs { layer, source })?;
    let data = |source| data(files, &whose(source).unwrap_or(layer));
    meta::write(&files.layer_path(&layer).join(view.file_name()), &plan, &data)?;
    Ok(plan.sources().iter().filter_map(|source| whose(*source)).collect())
}

fn ground(files: &dyn LayerFiles, devices: &[Digest]) -> Ground {
    if devices.iter().any(|layer| files.served(layer).is_some()) { Ground::Served } else { Ground::Disk }
}

fn data(files: &dyn LayerFiles, layer: &Digest) -> PathBuf {
    files.served(layer).unwrap_or_else(|| files.layer_path(layer).join("data"))
}

fn toc(files: &dyn LayerFiles, layer: &Digest) -> Result<Toc, ViewError> {
    files.toc(layer).map_err(|source| ViewError::Layer { layer: *layer, source })
}

/// The metadata images in a layer's directory, and the names of their mounts.
fn images(dir: &Path, diff_id: &Digest) -> Result<Vec<(PathBuf, String)>, ViewError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(ViewError::io("list", dir, e)),
    };
    let mut images = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| ViewError::io("list", dir, e))?;
        if let Some(name) = entry.file_name().to_str().and_then(|f| View::name_of_file(diff_id, f)) {
            images.push((entry.path(), name));
        }
    }
    Ok(images)
}

fn remove_file(path: &Path) -> Result<(), ViewError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(ViewError::io("remove", path, e)),
        _ => Ok(()),
    }
}
