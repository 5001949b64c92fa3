//! A mount with the threads that serve it.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use fuser::{INodeNo, Notifier, SessionACL};

use crate::{
    Config, FuseError, Slot, Source,
    mount::{self, Mounted},
    node::Node,
    serve::Server,
};

/// How long the workers may take to notice that their connection has ended. They notice at once; this is for a machine
/// in great trouble.
const END: Duration = Duration::from_secs(5);

/// A mount and its workers. It is unmounted when dropped.
#[derive(Debug)]
pub struct Session {
    mounted: Mounted,
    notifier: Notifier,
    /// Closed by the last worker. In a mutex for `Sync`'s sake.
    ended: Mutex<mpsc::Receiver<()>>,
}

impl Session {
    /// Mounts on `at`, whose directory is made if there is none, and serves `source` there. What an earlier process has
    /// left mounted there is taken away first, so the caller makes sure that there is one process a root.
    ///
    /// # Errors
    /// When the kernel has no FUSE or refuses, or something else is mounted on `at`.
    pub fn mount(at: &Path, source: Arc<dyn Source>, config: Config) -> Result<Self, FuseError> {
        let at = mount::clear(at)?;
        let (device, new) = mount::new(&at)?;
        let mut fuser_config = fuser::Config::default();
        fuser_config.n_threads = Some(config.workers.max(1));
        let session =
            fuser::Session::from_fd(Server::new(source, config.xattrs), device, SessionACL::All, fuser_config);
        let session = session.map_err(FuseError::Handshake)?;
        let notifier = session.notifier();
        let (running, ended) = mpsc::channel();
        let workers = thread::Builder::new().name("silk-fuse".into()).spawn(move || {
            if let Err(error) = session.run() {
                tracing::error!(%error, "the FUSE session ended");
            }
            drop::<mpsc::Sender<()>>(running);
        });
        workers.map_err(|e| FuseError::io("start threads for", &at, e))?;
        let mounted = new.attach(&at).map_err(|e| FuseError::io("mount on", &at, e))?;
        mounted.read_ahead(u32::MAX);
        tracing::info!(path = %at.display(), workers = config.workers, "FUSE is mounted");
        Ok(Self { mounted, notifier, ended: Mutex::new(ended) })
    }

    /// Sets how many bytes the kernel reads ahead, at most and at first 1 MiB. With less, less is read that nobody wants, and a
    /// file that is read from its start to its end is read slower (1.8 GB/s with 128 KiB instead of 2.7).
    pub fn read_ahead(&self, bytes: u32) {
        self.mounted.read_ahead(bytes);
    }

    /// Takes away what an earlier process has left mounted on a place that is not to be mounted on. Nothing there is no error.
    ///
    /// # Errors
    /// When the kernel refuses, or something else is mounted there.
    pub fn sweep(at: &Path) -> Result<(), FuseError> {
        mount::sweep(at)
    }

    /// Whether it is mounted and served. Somebody may have unmounted it or aborted its connection: then what it served cannot be read
    /// any more, and only a new session helps.
    pub fn is_mounted(&self) -> bool {
        !self.mounted.is_gone() && !self.has_ended(Duration::ZERO)
    }

    /// Unmounts and ends all workers. A mount that is in use (by EROFS mounts over its files, say) is ended all the
    /// same: reads of what is not in the page cache fail there. Replies that still wait lead nowhere.
    pub fn unmount(self) {}

    /// Tells the kernel to forget what it keeps of an object: its name, and the attributes and pages of a data file. To
    /// be called when an object is gone or has become another. A tree goes with its name; what a process uses, it keeps.
    ///
    /// Waits for reads of the file that are under way: never call it where those are answered, nor from a [`Source`].
    pub fn forget(&self, slot: Slot, name: &str) {
        // The name first, or a lookup in between would keep the inode.
        let told = self.notifier.inval_entry(INodeNo::ROOT, name.as_ref());
        let file = (Node { slot, nid: 0 }).ino().map(|ino| self.notifier.inval_inode(ino, 0, 0));
        for error in [Some(told), file].into_iter().flatten().filter_map(Result::err) {
            tracing::warn!(slot = slot.0, %error, "the kernel did not forget an object");
        }
    }

    fn has_ended(&self, wait: Duration) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(ended.recv_timeout(wait), Err(mpsc::RecvTimeoutError::Disconnected))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // An operator may have unmounted it; then the kernel has ended the session.
        if self.has_ended(Duration::ZERO) {
            return;
        }
        if let Err(error) = self.mounted.unmount() {
            tracing::warn!(%error, "could not unmount FUSE");
        }
        // Another mount namespace may have a copy of the mount, or an operator has detached it while it was in use.
        if self.has_ended(Duration::from_millis(200)) {
            return;
        }
        if let Err(error) = self.mounted.abort() {
            tracing::warn!(%error, "could not end the FUSE connection");
        }
        if !self.has_ended(END) {
            tracing::warn!("threads of the FUSE session do not end");
        }
    }
}

/// A session is shared by whoever has something to forget.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Session>();
};
