//! From an image's layers to the directories of its overlay.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
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
    Ground, LayerError, Mounts, Pages, Variant, View, ViewError, ViewName, chain, making::Making, meta, turns::Turns,
};

mod away;

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

    /// The file that serves a layer's data while bytes are missing; `None` when nothing does.
    ///
    /// # Errors
    /// It cannot be had.
    fn served(&self, diff_id: &Digest) -> Result<Option<PathBuf>, LayerError>;

    /// Does `data` have these bytes of the tar?
    fn has(&self, diff_id: &Digest, bytes: &Range<u64>) -> bool;

    /// Nobody uses the layer: reads that wait for bytes of it fail. Its mounts are about to be taken away, and over loop devices the kernel
    /// waits for its own reads of a mount before that is gone.
    fn let_go(&self, diff_id: &Digest);
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
    /// Layers that have views, of whatever kind.
    viewed: Mutex<HashSet<Digest>>,
    /// Views of [`Variant::Chain`] with their images and the layers these point into, by the name of the mount.
    chains: Mutex<HashMap<ViewName, Wants>>,
    /// How often names were given up because they lied. Raised before what was made of them is looked for: what is made of names that were
    /// read before, and finished after, is not found then, and has to go by itself.
    lies: AtomicU64,
}

#[derive(Debug)]
struct Wants {
    meta: PathBuf,
    layers: Vec<Digest>,
    /// Layers that its names were made of besides its own; `None` if it was made by an earlier process.
    below: Option<Vec<Digest>>,
}

impl Views {
    /// Views over these mounts. Call [`Views::sweep`] before anything else.
    pub fn new(mounts: Mounts) -> Self {
        let (turns, layers, making) = (Turns::default(), Turns::default(), Making::default());
        let (dependences, viewed, chains) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { mounts, turns, layers, making, dependences, viewed, chains, lies: AtomicU64::new(0) }
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
        let mut lowers: Vec<PathBuf>;
        loop {
            let lies = self.lies();
            // Base first: see `retire`.
            lowers = (0..chain.len()).map(|at| self.show_at(files, (chain, &ids), at)).collect::<Result<_, _>>()?;
            // Else one of the first may have gone, as a lie, while the last were made.
            if self.lies() == lies {
                break;
            }
        }
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
        self.turns.take(&view.name().to_string(), || {
            loop {
                let lies = self.lies();
                match self.show(files, &view, &chain[..=at], lies) {
                    Ok(Some(mountpoint)) => return Ok(mountpoint),
                    // Names that are given up may make a tree that cannot be.
                    Err(error) if self.lies() == lies => return Err(error),
                    Ok(None) | Err(_) => {}
                }
            }
        })
    }

    /// Mounts a view; `None` when names were given up since there were so many `lies`, of which it may have been made: nothing is left
    /// of it.
    fn show(
        &self,
        files: &dyn LayerFiles,
        view: &View,
        chain: &[Digest],
        lies: u64,
    ) -> Result<Option<PathBuf>, ViewError> {
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
            if let Variant::Chain(_) = view.variant {
                let below = Some(chain[..chain.len() - 1].to_vec());
                self.chains().insert(view.name(), Wants { meta: path.clone(), layers: layers.clone(), below });
            }
            let failed = |source| ViewError::Mount { layer, source };
            self.viewed().insert(layer);
            let (under, ground) = devices(files, &layers)?;
            let mountpoint = self.mounts.show(view, &path, &under, ground).map_err(failed)?;
            if self.lies() == lies {
                // One of the layers below may have become whole meanwhile, and found nothing here to renew.
                let (now, ground) = devices(files, &layers)?;
                if now != under {
                    self.mounts.replace(&view.name(), &path, &now, ground).map_err(failed)?;
                }
                return Ok(Some(mountpoint));
            }
            self.mounts.disown(&view.name()).map_err(failed)?;
            self.chains().remove(&view.name());
            remove_file(&path)?;
            Ok(None)
        })
    }

    fn lies(&self) -> u64 {
        self.lies.load(Ordering::SeqCst)
    }

    fn known_dependence(&self, files: &dyn LayerFiles, diff_id: &Digest) -> Option<Dependence> {
        if let Some(known) = self.dependences().get(diff_id) {
            return Some(*known);
        }
        // Alone: it may be taken away as a lie.
        self.layers.take(diff_id, || {
            let read = chain::read_dependence(&files.layer_path(diff_id).join("depends"))?;
            self.dependences().insert(*diff_id, read);
            Some(read)
        })
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
            loop {
                let lies = self.lies();
                match self.work_out(files, diff_id, place, lies) {
                    Ok(Some(dependence)) => return Ok(dependence),
                    Err(error) if self.lies() == lies => return Err(error),
                    Ok(None) | Err(_) => {}
                }
            }
        })
    }

    /// As [`Views::learn`]; `None` when names were given up since there were so many `lies`, perhaps these: nothing of it is left.
    fn work_out(
        &self,
        files: &dyn LayerFiles,
        diff_id: Digest,
        place: Option<Digest>,
        lies: u64,
    ) -> Result<Option<Dependence>, ViewError> {
        let _room = self.making.room(files.entries(&diff_id));
        let (dependence, tree) = chain::learn(&diff_id, &toc(files, &diff_id)?, place)?;
        let view = View { diff_id, variant: chain::variant(dependence, place) };
        if let Some(tree) = tree {
            make(files, &view, &[diff_id], &tree)?;
        }
        self.layers.take(&diff_id, || {
            let dir = files.layer_path(&diff_id);
            if self.lies() != lies {
                remove_file(&dir.join(view.file_name()))?;
                return Ok(None);
            }
            let path = dir.join("depends");
            chain::write_dependence(&path, dependence).map_err(|e| ViewError::io("write", &path, e))?;
            self.dependences().insert(diff_id, dependence);
            Ok(Some(dependence))
        })
    }

    fn dependences(&self) -> MutexGuard<'_, HashMap<Digest, Dependence>> {
        self.dependences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn viewed(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.viewed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chains(&self) -> MutexGuard<'_, HashMap<ViewName, Wants>> {
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
    // Not through the file that serves them: here nobody waits for a network.
    let copied = plan.copied_from().into_iter().map(|(source, bytes)| (whose(source).unwrap_or(layer), bytes));
    let missing: Vec<_> = copied.filter(|(layer, bytes)| !files.has(layer, bytes)).collect();
    if !missing.is_empty() {
        return Err(ViewError::Missing { layer, bytes: missing });
    }
    let data = |source| files.layer_path(&whose(source).unwrap_or(layer)).join("data");
    meta::write(&files.layer_path(&layer).join(view.file_name()), &plan, &data)?;
    Ok(plan.sources().iter().filter_map(|source| whose(*source)).collect())
}

/// The data files of layers, and what a mount over them stands on. Each layer is asked for once: it may become whole at any time. Of one that
/// nothing serves, and that has holes, a mount would show zeros.
fn devices(files: &dyn LayerFiles, layers: &[Digest]) -> Result<(Vec<PathBuf>, Ground), ViewError> {
    let mut ground = Ground::Disk;
    let mut device = |layer: &Digest| match files.served(layer) {
        Ok(Some(served)) => {
            ground = Ground::Served;
            Ok(served)
        }
        Ok(None) if files.has(layer, &(0..u64::MAX)) => Ok(files.layer_path(layer).join("data")),
        Ok(None) => Err(ViewError::NotWhole(*layer)),
        Err(source) => Err(ViewError::Layer { layer: *layer, source }),
    };
    let devices = layers.iter().map(&mut device).collect::<Result<_, _>>()?;
    Ok((devices, ground))
}

fn toc(files: &dyn LayerFiles, layer: &Digest) -> Result<Toc, ViewError> {
    files.toc(layer).map_err(|source| ViewError::Layer { layer: *layer, source })
}

/// The metadata images in a layer's directory, and the names of their mounts.
fn images(dir: &Path, diff_id: &Digest) -> Result<Vec<(PathBuf, ViewName)>, ViewError> {
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
