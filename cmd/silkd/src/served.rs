//! What silkd serves through FUSE: the data files of layers whose bytes are still arriving, and of those that were when
//! somebody mounted them.

use std::{
    fs::File,
    num::NonZero,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use lru::LruCache;
use rustix::io::Errno;
use silk_fuse::{Config, FuseError, Object, Reply, Session, Slot, Source};
use silk_model::Digest;
use silk_pull::Lazies;
use silk_store::{Slots, Store, StoreError, padded, read_at};

/// Data files of whole layers that are kept open. Overlays that were mounted while their layers filled read through here
/// until their containers end; beyond this many, a read costs an open. The hard limit of descriptors may be 20,000.
const OPEN: NonZero<usize> = NonZero::new(512).expect("it is not 0");

/// The FUSE mount and what is in it.
#[derive(Debug)]
pub struct Served {
    at: PathBuf,
    files: Arc<Files>,
    session: Session,
}

#[derive(Debug)]
struct Files {
    store: Arc<Store>,
    lazies: Arc<Lazies>,
    slots: Slots,
    open: Mutex<LruCache<Digest, Arc<File>>>,
}

impl Served {
    /// Mounts `<root>/fuse`.
    ///
    /// # Errors
    /// When the kernel has no FUSE or refuses.
    pub fn mount(root: &Path, lazies: Arc<Lazies>, slots: Slots) -> Result<Self, FuseError> {
        let store = Arc::clone(lazies.store());
        let files = Arc::new(Files { store, lazies, slots, open: Mutex::new(LruCache::new(OPEN)) });
        let at = root.join("fuse");
        let session = Session::mount(&at, Arc::clone(&files) as Arc<dyn Source>, Config::default())?;
        Ok(Self { at, files, session })
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

    /// The layer's bytes are gone or were others: the kernel is to forget what it keeps of them. Blocks while reads of it
    /// are answered.
    pub fn forget(&self, diff_id: &Digest) {
        self.files.open().pop(diff_id);
        let name = diff_id.hex();
        if let Some(slot) = self.files.slots.find(&name) {
            self.session.forget(Slot(slot), &name);
        }
    }
}

impl Files {
    fn layer(&self, slot: Slot) -> Option<Digest> {
        format!("sha256:{}", self.slots.name(slot.0)?).parse().ok()
    }

    fn open(&self) -> std::sync::MutexGuard<'_, LruCache<Digest, Arc<File>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data file of a whole layer.
    fn whole(&self, diff_id: &Digest) -> std::io::Result<Arc<File>> {
        if let Some(file) = self.open().get(diff_id) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(self.store.layer_path(diff_id).join("data"))?);
        self.open().put(*diff_id, Arc::clone(&file));
        Ok(file)
    }

    fn read_whole(&self, diff_id: &Digest, offset: u64, len: u32) -> std::io::Result<Vec<u8>> {
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
        let diff_id = self.layer(slot)?;
        // Of a layer that is being streamed anew too: the kernel must not learn of a file that is gone for a while.
        let size = self.lazies.get(&diff_id).map(|lazy| lazy.size()).or_else(|| self.store.size(&diff_id))?;
        Some(Object::Data { size: padded(size) })
    }

    fn read(&self, slot: Slot, offset: u64, len: u32, reply: Reply) {
        let Some(diff_id) = self.layer(slot) else { return reply.error(Errno::NOENT) };
        if let Some(lazy) = self.lazies.get(&diff_id) {
            return lazy.read(
                offset,
                len as usize,
                Box::new(move |read| match read {
                    Ok(bytes) => reply.data(bytes),
                    // Its cause is in the log and in `silk status`.
                    Err(_) => reply.error(Errno::IO),
                }),
            );
        }
        match self.read_whole(&diff_id, offset, len) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => {
                tracing::error!(%diff_id, %error, "a read of a layer failed");
                reply.error(Errno::IO);
            }
        }
    }
}
