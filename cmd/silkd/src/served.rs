//! What silkd serves through FUSE: the data files of layers whose bytes are still arriving, and of those that were when
//! somebody mounted them; and, on kernels that cannot mount silk's EROFS, whole trees.

use std::{
    collections::HashMap,
    fs::File,
    io,
    num::NonZero,
    ops::Range,
    os::{fd::AsFd as _, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use lru::LruCache;
use rustix::{
    fs::{Advice, fadvise},
    io::Errno,
};
use silk_fuse::{Config, FuseError, Object, Reply, Session, Slot, Source, TreeFiles};
use silk_model::{
    Digest, Use,
    metrics::{METRICS, Read},
};
use silk_mount::Trees;
use silk_pull::Lazies;
use silk_store::{Slots, Store, StoreError, padded, read_at};
use silk_sys::{apart, resident};

/// Below the root: where trees without extended attributes are served.
const PLAIN: &str = "fuse-plain";

/// Ranges of a file that are given back at once: a start leaves some hundred.
const MAX_HELD: usize = 1 << 16;

/// What the kernel reads ahead of the files that EROFS reads: its default.
const READ_AHEAD: u32 = 128 << 10;

/// The FUSE mount and what is in it.
#[derive(Debug)]
pub struct Served {
    at: PathBuf,
    files: Arc<Files>,
    session: Session,
    /// Shows trees without extended attributes: in a mount of their own the kernel does not ask for any.
    plain: OnceLock<(PathBuf, Session)>,
}

/// A tree that is shown.
#[derive(Debug, Clone)]
struct Shown {
    meta: PathBuf,
    /// The slots of the data files.
    devices: Vec<Slot>,
    plain: bool,
}

#[derive(Debug)]
struct Files {
    store: Arc<Store>,
    lazies: Arc<Lazies>,
    slots: Slots,
    open: Mutex<LruCache<Digest, Arc<File>>>,
    /// The trees that are shown, by their slots.
    trees: Mutex<HashMap<u32, Shown>>,
    open_trees: Mutex<LruCache<u32, Arc<TreeFiles>>>,
    /// What is being brought to the page cache, by slots: reads of it are nobody's.
    warming: Mutex<Vec<(u32, Range<u64>)>>,
}

/// Bytes that are being brought to the page cache.
#[derive(Debug)]
struct Ours<'f>(&'f Files, (u32, Range<u64>));

impl Drop for Ours<'_> {
    fn drop(&mut self) {
        let mut warming = lock(&self.0.warming);
        if let Some(at) = warming.iter().position(|it| *it == self.1) {
            warming.swap_remove(at);
        }
    }
}

impl Served {
    /// Mounts `<root>/fuse`. Keeps so many data files of whole layers open, and so many trees.
    ///
    /// # Errors
    /// When the kernel has no FUSE or refuses.
    pub fn mount(root: &Path, lazies: Arc<Lazies>, slots: Slots, open_files: usize) -> Result<Self, FuseError> {
        let files = Arc::new(Files::new(lazies, slots, open_files));
        // A silkd that was killed may have shown trees where this one need not.
        if let Err(error) = Session::sweep(&root.join(PLAIN)) {
            tracing::warn!(%error, "a mount of an earlier silkd stays");
        }
        let at = root.join("fuse");
        let session = Session::mount(&at, Arc::clone(&files) as Arc<dyn Source>, Config::default())?;
        Ok(Self { at, files, session, plain: OnceLock::new() })
    }

    /// Its files are read by the kernel's EROFS alone, which reads ahead by itself: what is read further ahead here is fetched,
    /// and nobody wants it.
    pub fn is_below_erofs(&self) {
        self.session.read_ahead(READ_AHEAD);
    }

    /// Its trees are shown: those without extended attributes in another mount, at `<root>/fuse-plain`.
    pub fn shows_trees(&self, root: &Path) {
        let at = root.join(PLAIN);
        let config = Config { xattrs: false, ..Config::default() };
        match Session::mount(&at, Arc::clone(&self.files) as Arc<dyn Source>, config) {
            Ok(session) => drop(self.plain.set((at, session))),
            Err(error) => tracing::warn!(%error, "all trees are served with extended attributes, which is slower"),
        }
    }

    /// Whether all of it is mounted and served: somebody may have unmounted it.
    pub fn is_mounted(&self) -> bool {
        self.session.is_mounted() && self.plain.get().is_none_or(|(_, session)| session.is_mounted())
    }

    /// Data files and trees that are open.
    pub fn open_files(&self) -> Use {
        self.files.open_files()
    }

    /// Names of layers and trees towards the kernel.
    pub fn slots(&self) -> &Slots {
        &self.files.slots
    }

    /// The file that serves a layer's data. Names it when it has no name yet.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn path(&self, diff_id: &Digest) -> Result<PathBuf, StoreError> {
        let name = diff_id.hex();
        self.files.slots.of(&name)?;
        Ok(self.at.join(name))
    }

    /// Names files that will serve layers, all at once: each by itself would cost a commit.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn name(&self, diff_ids: &[Digest]) -> Result<(), StoreError> {
        let names: Vec<_> = diff_ids.iter().map(Digest::hex).collect();
        self.files.slots.of_all(&names).map(drop)
    }

    /// Brings bytes of a layer's data into the page cache of the file that serves it. Blocks until they are there; those that are
    /// not here wait as any read.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn warm(&self, diff_id: &Digest, bytes: &[Range<u64>]) -> io::Result<()> {
        let path = self.path(diff_id).map_err(io::Error::other)?;
        let slot = self.files.slots.find(&diff_id.hex()).ok_or(io::ErrorKind::NotFound)?;
        let pieces = bytes.iter().flat_map(|bytes| {
            let ends = move |start: u64| start..(start + u64::from(READ_AHEAD)).min(bytes.end);
            bytes.clone().step_by(READ_AHEAD as usize).map(ends)
        });
        // This process answers.
        apart::run(|| {
            let file = File::open(&path)?;
            for piece in pieces {
                let _ours = self.files.ours(slot, piece.clone());
                fadvise(&file, piece.start, NonZero::new(piece.end - piece.start), Advice::WillNeed)?;
                // Waits, so that the readers' own reading ahead finds the queue empty.
                file.read_at(&mut [0], piece.end - 1)?;
            }
            Ok(())
        })
        .flatten()
    }

    /// What the kernel keeps of a whole layer in the file that served it ([`Served::has_served`]) while it filled; it is dropped there. Containers that were started then still
    /// read through that file, and find the layer's own bytes behind it. Blocks as [`Served::forget`].
    ///
    /// # Errors
    /// When the kernel does not tell, or the file cannot be opened.
    pub fn give_back(&self, diff_id: &Digest, size: u64) -> io::Result<Vec<Range<u64>>> {
        let path = self.at.join(diff_id.hex());
        // This process answers.
        apart::run(|| {
            let file = File::open(&path)?;
            let held = resident::ranges(file.as_fd(), size, MAX_HELD)?;
            if !held.is_empty() {
                fadvise(&file, 0, None, Advice::DontNeed)?;
            }
            Ok(held)
        })
        .flatten()
    }

    /// Was the layer ever served?
    pub fn has_served(&self, diff_id: &Digest) -> bool {
        self.files.slots.find(&diff_id.hex()).is_some()
    }

    /// The layer's data file is about to be deleted: one that is open would keep its disk space.
    pub fn close(&self, diff_id: &Digest) {
        self.files.close(diff_id);
    }

    /// The layer's bytes are gone or were others: the kernel is to forget what it keeps of them. Blocks while reads of it
    /// are answered.
    pub fn forget(&self, diff_id: &Digest) {
        self.files.close(diff_id);
        let name = diff_id.hex();
        if let Some(slot) = self.files.slots.find(&name) {
            self.session.forget(Slot(slot), &name);
        }
    }
}

impl Trees for Served {
    fn tree(&self, name: &str, meta: &Path, layers: &[Digest]) -> io::Result<PathBuf> {
        let names: Vec<_> = layers.iter().map(Digest::hex).collect();
        let devices = self.files.slots.of_all(&names).map_err(io::Error::other)?;
        let devices: Vec<_> = devices.into_iter().map(Slot).collect();
        let tree = self.files.slots.of(name).map_err(io::Error::other)?;
        let opened = TreeFiles::open(File::open(meta)?, devices.clone())?;
        let plain = self.plain.get().filter(|_| !opened.has_xattrs());
        let shown = Shown { meta: meta.to_owned(), devices, plain: plain.is_some() };
        lock(&self.files.open_trees).put(tree, Arc::new(opened));
        lock(&self.files.trees).insert(tree, shown);
        Ok(plain.map_or(&self.at, |(at, _)| at).join(name))
    }

    fn gone(&self, name: &str) {
        let Some(tree) = self.files.slots.find(name) else { return };
        lock(&self.files.open_trees).pop(&tree);
        // Not locked in what follows: to forget waits for the kernel, which may wait for who looks a tree up here.
        let shown = lock(&self.files.trees).remove(&tree);
        if let Some(shown) = shown {
            let plain = self.plain.get().filter(|_| shown.plain);
            plain.map_or(&self.session, |(_, session)| session).forget(Slot(tree), name);
        }
    }

    fn lied(&self, name: &str) {
        // The kernel keeps inodes of the old tree by their numbers, and would show their bytes in the next one.
        if let Err(error) = self.files.slots.retire(name) {
            tracing::warn!(name, %error, "a tree's number is not given up for good");
        }
    }
}

impl Files {
    fn new(lazies: Arc<Lazies>, slots: Slots, open_files: usize) -> Self {
        let store = Arc::clone(lazies.store());
        let most = NonZero::new(open_files).unwrap_or(NonZero::<usize>::MIN);
        let (open, open_trees) = (Mutex::new(LruCache::new(most)), Mutex::new(LruCache::new(most)));
        Self { store, lazies, slots, open, trees: Mutex::default(), open_trees, warming: Mutex::default() }
    }

    fn ours(&self, slot: u32, bytes: Range<u64>) -> Ours<'_> {
        lock(&self.warming).push((slot, bytes.clone()));
        Ours(self, (slot, bytes))
    }

    /// Does a container read these bytes, and not silkd itself?
    fn is_read(&self, slot: u32, bytes: &Range<u64>) -> bool {
        !lock(&self.warming).iter().any(|(of, own)| *of == slot && own.start < bytes.end && bytes.start < own.end)
    }

    fn close(&self, diff_id: &Digest) {
        lock(&self.open).pop(diff_id);
    }

    fn open_files(&self) -> Use {
        let (files, trees) = (lock(&self.open), lock(&self.open_trees));
        let limit = files.cap().get() + trees.cap().get();
        Use { limit: limit as u64, in_use: (files.len() + trees.len()) as u64 }
    }

    fn tree(&self, slot: u32) -> Option<Arc<TreeFiles>> {
        if let Some(tree) = lock(&self.open_trees).get(&slot) {
            return Some(Arc::clone(tree));
        }
        let Shown { meta, devices, .. } = lock(&self.trees).get(&slot).cloned()?;
        let opened = File::open(&meta).and_then(|image| TreeFiles::open(image, devices));
        let opened = opened
            .inspect_err(|error| tracing::error!(meta = %meta.display(), %error, "a layer's tree cannot be served"));
        let tree = Arc::new(opened.ok()?);
        lock(&self.open_trees).put(slot, Arc::clone(&tree));
        Some(tree)
    }

    fn layer(&self, slot: Slot) -> Option<Digest> {
        format!("sha256:{}", self.slots.name(slot.0)?).parse().ok()
    }

    /// The data file of a whole layer.
    fn whole(&self, diff_id: &Digest) -> io::Result<Arc<File>> {
        if let Some(file) = lock(&self.open).get(diff_id) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(self.store.layer_path(diff_id).join("data"))?);
        let mut open = lock(&self.open);
        // One that was given up meanwhile has holes, or is about to be deleted: who does that closes it afterwards.
        if !self.store.whole(diff_id) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the layer was given up"));
        }
        open.put(*diff_id, Arc::clone(&file));
        Ok(file)
    }

    fn read_whole(&self, diff_id: &Digest, offset: u64, len: u32) -> io::Result<Vec<u8>> {
        let file = self.whole(diff_id)?;
        let mut bytes = vec![0; len as usize];
        let read = read_at(&file, offset, &mut bytes)?;
        bytes.truncate(read);
        Ok(bytes)
    }
}

impl Source for Files {
    fn find(&self, name: &str) -> Option<Slot> {
        self.slots.find(name).map(Slot)
    }

    fn object(&self, slot: Slot) -> Option<Object> {
        let Some(diff_id) = self.layer(slot) else { return self.tree(slot.0).map(Object::Tree) };
        // Of a layer that is being streamed anew too: the kernel must not learn of a file that is gone for a while.
        let size = self.lazies.get(&diff_id).map(|lazy| lazy.size()).or_else(|| self.store.size(&diff_id))?;
        Some(Object::Data { size: padded(size) })
    }

    fn read(&self, slot: Slot, offset: u64, len: u32, reply: Reply) {
        let Some(diff_id) = self.layer(slot) else { return reply.error(Errno::NOENT) };
        if self.is_read(slot.0, &(offset..offset + u64::from(len))) {
            self.lazies.note_read(&diff_id, offset, len as usize);
        }
        if let Some(lazy) = self.lazies.get(&diff_id) {
            return lazy.read(
                offset,
                len as usize,
                Box::new(move |read| match read {
                    Ok(bytes) => reply.data(bytes),
                    // Its cause is in the log and in `silk status`.
                    Err(_) => {
                        METRICS.read_errors.one();
                        reply.error(Errno::IO);
                    }
                }),
            );
        }
        METRICS.reads.of(Read::AtOnce).one();
        match self.read_whole(&diff_id, offset, len) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => {
                METRICS.read_errors.one();
                tracing::error!(%diff_id, %error, "a read of a layer failed");
                reply.error(Errno::IO);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
