//! The kernel's requests, answered.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyXattr,
    Request,
};

use crate::{Object, Reply, Slot, Source, node::Node};

/// How long the kernel may keep what it was told: nothing here ever changes, and what goes away is called back. A year;
/// the kernel counts in jiffies, and cuts what is longer.
const FOR_GOOD: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads ahead that the kernel may have under way. Behind so many it keeps *all* further reads to itself, those of other
/// files too, so this must be more than can ever wait for the network: a process waits in one read at a time, with a
/// window or two of readahead.
const MAX_BACKGROUND: u16 = 16_384;

/// With so many under way the kernel reads ahead only what somebody is about to wait for.
const CONGESTED: u16 = 256;

/// Names by which the kernel knows objects: needed to call a name back. Bounded by the objects there are, as
/// `Session::forget` is called for those that go.
#[derive(Debug, Default)]
pub(crate) struct Names(Mutex<HashMap<Slot, (String, u64)>>);

impl Names {
    fn put(&self, slot: Slot, name: &str, nid: u64) {
        self.lock().entry(slot).or_insert_with(|| (name.to_owned(), nid));
    }

    /// The name of an object and its first inode, if the kernel has asked for it.
    pub(crate) fn take(&self, slot: Slot) -> Option<(String, u64)> {
        self.lock().remove(&slot)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Slot, (String, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers requests from a source.
pub(crate) struct Server {
    source: Arc<dyn Source>,
    names: Arc<Names>,
}

type Answer<T> = Result<T, Errno>;

impl Server {
    pub(crate) fn new(source: Arc<dyn Source>, names: Arc<Names>) -> Self {
        Self { source, names }
    }

    /// An inode and its object. ESTALE for what is not there any more.
    fn node(&self, ino: INodeNo) -> Answer<(Node, Object)> {
        let node = Node::of(ino).ok_or(Errno::ESTALE)?;
        Ok((node, self.source.object(node.slot).ok_or(Errno::ESTALE)?))
    }

    fn find(&self, name: &OsStr) -> Answer<FileAttr> {
        let name = name.to_str().ok_or(Errno::ENOENT)?;
        let slot = self.source.find(name).ok_or(Errno::ENOENT)?;
        match self.source.object(slot).ok_or(Errno::ENOENT)? {
            Object::Data { size } => {
                let attr = data_attr(slot, size)?;
                self.names.put(slot, name, 0);
                Ok(attr)
            }
            Object::Tree(_) => Err(Errno::ENOTSUP),
        }
    }

    fn attr(&self, ino: INodeNo) -> Answer<FileAttr> {
        if ino == INodeNo::ROOT {
            return Ok(root_attr());
        }
        match self.node(ino)? {
            (Node { slot, nid: 0 }, Object::Data { size }) => data_attr(slot, size),
            _ => Err(Errno::ESTALE),
        }
    }

    fn read(&self, ino: INodeNo, offset: u64, len: u32, reply: ReplyData) {
        let (node, object) = match self.node(ino) {
            Ok(found) => found,
            Err(error) => return reply.error(error),
        };
        match object {
            Object::Data { size } => match clip(offset, len, size) {
                0 => reply.data(&[]),
                len => self.source.read(node.slot, offset, len, Reply::kernel(reply, len as usize)),
            },
            Object::Tree(_) => reply.error(Errno::ENOTSUP),
        }
    }
}

/// How many of `len` bytes from `offset` on are in a file.
fn clip(offset: u64, len: u32, size: u64) -> u32 {
    u32::try_from(size.saturating_sub(offset)).unwrap_or(u32::MAX).min(len)
}

/// Runs a handler. A panic must not end the worker: its request gets an EIO as its reply is dropped.
fn guard(request: &'static str, handler: impl FnOnce()) {
    // What a panic left half done is the source's to know; the server itself changes nothing.
    if catch_unwind(AssertUnwindSafe(handler)).is_err() {
        tracing::error!(request, "a FUSE request panicked");
    }
}

fn root_attr() -> FileAttr {
    attr(INodeNo::ROOT, FileType::Directory, 0o500, 0)
}

fn data_attr(slot: Slot, size: u64) -> Answer<FileAttr> {
    let ino = (Node { slot, nid: 0 }).ino().ok_or_else(|| {
        tracing::error!(slot = slot.0, "a slot's number is too large");
        Errno::EIO
    })?;
    Ok(attr(ino, FileType::RegularFile, 0o400, size))
}

fn attr(ino: INodeNo, kind: FileType, perm: u16, size: u64) -> FileAttr {
    FileAttr {
        ino,
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// What the kernel asks with the answer "never ask again" (ENOSYS) needs no state here: files have no handles.
impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_POSIX_ACL;
        for flag in wanted.iter() {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "this kernel's FUSE does without");
            }
        }
        // Neither is refused: they are more than 0.
        let _ = (config.set_max_background(MAX_BACKGROUND), config.set_congestion_threshold(CONGESTED));
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guard("lookup", || match parent {
            INodeNo::ROOT => match self.find(name) {
                Ok(attr) => reply.entry(&FOR_GOOD, &attr, Generation(0)),
                // Not for good: objects come.
                Err(error) => reply.error(error),
            },
            _ => reply.error(Errno::ENOTDIR),
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        guard("getattr", || match self.attr(ino) {
            Ok(attr) => reply.attr(&FOR_GOOD, &attr),
            Err(error) => reply.error(error),
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        guard("read", || self.read(ino, offset, size, reply));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        guard("readdir", move || {
            if ino != INodeNo::ROOT {
                return reply.error(Errno::ENOTDIR);
            }
            for (at, name) in [".", ".."].iter().enumerate().skip(offset as usize) {
                let _ = reply.add(ino, at as u64 + 1, FileType::Directory, name);
            }
            reply.ok();
        });
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        guard("readdirplus", move || {
            if ino != INodeNo::ROOT {
                return reply.error(Errno::ENOTDIR);
            }
            for (at, name) in [".", ".."].iter().enumerate().skip(offset as usize) {
                let _ = reply.add(ino, at as u64 + 1, name, &FOR_GOOD, &root_attr(), Generation(0));
            }
            reply.ok();
        });
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENODATA);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.size(0);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }
}
