//! The kernel's requests, answered.

use std::{
    ffi::OsStr,
    io,
    ops::ControlFlow,
    os::unix::ffi::OsStrExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyXattr,
    Request,
};
use silk_layer::erofs::read::Window;

use crate::{Object, Reply, Slot, Source, TreeFiles, node::Node, read, tree};

/// How long the kernel may keep what it was told: nothing here ever changes, and what goes away is called back. A year;
/// the kernel counts in jiffies, and cuts what is longer.
const FOR_GOOD: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads ahead that the kernel may have under way. Behind so many it keeps *all* further reads to itself, those of other
/// files too, so this must be more than can ever wait for the network: a process waits in one read at a time, with a
/// window or two of readahead.
const MAX_BACKGROUND: u16 = 16_384;

/// With so many under way the kernel reads ahead only what somebody is about to wait for.
const CONGESTED: u16 = 256;

/// Read at once when a directory is listed with attributes: some 200 inodes, which lie side by side.
const INODES: usize = 16 << 10;

/// Answers requests from a source.
pub(crate) struct Server {
    source: Arc<dyn Source>,
    xattrs: bool,
}

/// What a request is answered with.
pub(crate) type Answer<T> = Result<T, Errno>;

impl Server {
    pub(crate) fn new(source: Arc<dyn Source>, xattrs: bool) -> Self {
        Self { source, xattrs }
    }

    /// An inode and its object. ESTALE for what is not there any more.
    fn node(&self, ino: INodeNo) -> Answer<(Node, Object)> {
        let node = Node::of(ino).ok_or(Errno::ESTALE)?;
        Ok((node, self.source.object(node.slot).ok_or(Errno::ESTALE)?))
    }

    /// The tree that an inode is in.
    fn tree(&self, ino: INodeNo) -> Answer<(Node, Arc<TreeFiles>)> {
        match self.node(ino)? {
            (node, Object::Tree(tree)) => Ok((node, tree)),
            (_, Object::Data { .. }) => Err(Errno::ENOTDIR),
        }
    }

    /// What a name leads to; `None` if it is known for good that it leads nowhere.
    fn lookup(&self, parent: INodeNo, name: &OsStr) -> Answer<Option<FileAttr>> {
        if parent == INodeNo::ROOT {
            return self.find(name).map(Some);
        }
        let (dir, tree) = self.tree(parent)?;
        tree.find(dir, name)
    }

    /// What a name in the root directory leads to.
    fn find(&self, name: &OsStr) -> Answer<FileAttr> {
        let name = name.to_str().ok_or(Errno::ENOENT)?;
        let slot = self.source.find(name).ok_or(Errno::ENOENT)?;
        match self.source.object(slot).ok_or(Errno::ENOENT)? {
            Object::Data { size } => data_attr(slot, size),
            Object::Tree(tree) => tree.attr(Node { slot, nid: tree.root() }),
        }
    }

    fn attr(&self, ino: INodeNo) -> Answer<FileAttr> {
        if ino == INodeNo::ROOT {
            return Ok(root_attr());
        }
        match self.node(ino)? {
            (Node { slot, nid: 0 }, Object::Data { size }) => data_attr(slot, size),
            (_, Object::Data { .. }) => Err(Errno::ESTALE),
            (node, Object::Tree(tree)) => tree.attr(node),
        }
    }

    fn read(&self, ino: INodeNo, offset: u64, len: u32, reply: ReplyData) {
        match self.node(ino) {
            Err(error) => reply.error(error),
            Ok((node, Object::Tree(tree))) => read::tree(&*self.source, &tree, node, (offset, len), reply),
            Ok((node, Object::Data { size })) => match clip(offset, len, size) {
                0 => reply.data(&[]),
                len => self.source.read(node.slot, offset, len, Reply::kernel(reply, len as usize)),
            },
        }
    }

    /// Calls `add` with a directory's entries from a place on, until it is full.
    fn list(&self, ino: INodeNo, from: u64, add: &mut dyn FnMut(Listed<'_>) -> Answer<bool>) -> Answer<()> {
        if ino == INodeNo::ROOT {
            // Objects are found, not listed: no list could be complete.
            for (next, name) in [(1, "."), (2, "..")].into_iter().filter(|(next, _)| *next > from) {
                add(Listed { name: name.as_ref(), next, ino, kind: FileType::Directory, of: None })?;
            }
            return Ok(());
        }
        let (dir, tree) = self.tree(ino)?;
        let mut added = Ok(false);
        tree.list(dir, from, &mut |entry| {
            let node = Node { slot: dir.slot, nid: entry.nid };
            added = node.ino().ok_or(Errno::EIO).and_then(|ino| {
                let (name, kind) = (OsStr::from_bytes(entry.name), tree::file_type(entry.kind));
                add(Listed { name, next: entry.next, ino, kind, of: Some((&tree, node)) })
            });
            if let Ok(false) = added { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        added.map(|_| ())
    }
}

/// An entry of a directory.
struct Listed<'l> {
    name: &'l OsStr,
    next: u64,
    ino: INodeNo,
    kind: FileType,
    /// Whose attributes it has, if it is in a tree.
    of: Option<(&'l TreeFiles, Node)>,
}

/// Runs a handler. A panic must not end the worker: its request gets an EIO as its reply is dropped.
fn guard(request: &'static str, handler: impl FnOnce()) {
    // What a panic left half done is the source's to know; the server itself changes nothing.
    if catch_unwind(AssertUnwindSafe(handler)).is_err() {
        tracing::error!(request, "a FUSE request panicked");
    }
}

/// How many of `len` bytes from `offset` on are in a file.
fn clip(offset: u64, len: u32, size: u64) -> u32 {
    u32::try_from(size.saturating_sub(offset)).unwrap_or(u32::MAX).min(len)
}

/// Answers getxattr(2) and listxattr(2): with the length if that is what is asked for.
fn give(reply: ReplyXattr, room: u32, answer: Answer<Vec<u8>>) {
    match answer {
        // At most 256 KiB.
        Ok(bytes) if room == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() > room as usize => reply.error(Errno::ERANGE),
        Ok(bytes) => reply.data(&bytes),
        Err(error) => reply.error(error),
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
            // Trees for containers with user namespaces (Linux 6.12): the kernel checks who may read what, and tells us of no users.
            | InitFlags::FUSE_ALLOW_IDMAP;
        let acl = if self.xattrs { InitFlags::FUSE_POSIX_ACL } else { InitFlags::empty() };
        for flag in (wanted | acl).iter() {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "this kernel's FUSE does without");
            }
        }
        // Neither is refused: they are more than 0.
        let _ = (config.set_max_background(MAX_BACKGROUND), config.set_congestion_threshold(CONGESTED));
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guard("lookup", || match self.lookup(parent, name) {
            Ok(Some(attr)) => reply.entry(&FOR_GOOD, &attr, Generation(0)),
            // Inode 0: there is none, and that may be kept too.
            Ok(None) => reply.entry(&FOR_GOOD, &attr(INodeNo(0), FileType::RegularFile, 0, 0), Generation(0)),
            // Not kept: objects come.
            Err(error) => reply.error(error),
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

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        guard("readlink", || match self.tree(ino).and_then(|(node, tree)| tree.target(node)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error),
        });
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        guard("readdir", move || {
            let listed = self.list(ino, offset, &mut |it| Ok(reply.add(it.ino, it.next, it.kind, it.name)));
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(error),
            }
        });
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        guard("readdirplus", move || {
            let mut window = Window::new(INODES);
            let listed = self.list(ino, offset, &mut |it| {
                let attr = match it.of {
                    Some((tree, node)) => tree.entry_attr(node.slot, node.nid, &mut window)?,
                    None => root_attr(),
                };
                Ok(reply.add(it.ino, it.next, it.name, &FOR_GOOD, &attr, Generation(0)))
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(error),
            }
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !self.xattrs {
            // The kernel does not ask again, whatever file it is about.
            return reply.error(Errno::ENOSYS);
        }
        guard("getxattr", || match self.node(ino) {
            Ok((node, Object::Tree(tree))) => give(reply, size, tree.xattr(node, name)),
            _ => reply.error(Errno::ENODATA),
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        guard("listxattr", || match self.node(ino) {
            Ok((node, Object::Tree(tree))) => give(reply, size, tree.xattr_names(node)),
            _ => give(reply, size, Ok(Vec::new())),
        });
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
