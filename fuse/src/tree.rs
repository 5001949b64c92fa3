//! A layer's tree, answered from its metadata image: the very file that EROFS would have mounted, so that trees are the
//! same on every kernel and need no memory of their own. Requests read the image through the page cache, a few blocks
//! each; they block for a disk, never for a network.

use std::{
    ffi::OsStr,
    fmt,
    fs::File,
    io::{self, ErrorKind},
    ops::ControlFlow,
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{Errno, FileAttr, FileType};
use silk_layer::{
    erofs::read::{Entry, Inode, Kind, Piece, Place, ReadAt, ReadError, Reader, Window},
    toc::Time,
};

use crate::{Slot, node::Node, serve::Answer};

/// Read at once for one inode: with it the address of an ordinary file's only chunk.
const INODE: usize = 128;

/// A metadata image that is open for reading, and the data files that it points into.
#[derive(Debug)]
pub struct TreeFiles {
    image: Reader<Image>,
    devices: Vec<Slot>,
    /// Whether somebody has been told that the image cannot be read: once is enough.
    told: AtomicBool,
}

#[derive(Debug)]
struct Image(File);

impl ReadAt for Image {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

impl TreeFiles {
    /// `devices` are the slots of the image's data files, in the order of its device table. That the whole image is as it
    /// was written is for the caller to know; a damaged one costs errors.
    ///
    /// # Errors
    /// When it is no metadata image, or one of other data files.
    pub fn open(image: File, devices: Vec<Slot>) -> io::Result<Self> {
        let size = image.metadata()?.len();
        let image = Reader::open(Image(image), size).map_err(|error| match error {
            ReadError::Io(error) => error,
            other => io::Error::new(ErrorKind::InvalidData, other),
        })?;
        if image.devices().len() != devices.len() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "a metadata image of other data files"));
        }
        Ok(Self { image, devices, told: AtomicBool::new(false) })
    }

    /// Whether anything in it may have extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.image.has_xattrs()
    }

    /// Number of the root directory's inode.
    pub(crate) fn root(&self) -> u64 {
        self.image.root()
    }

    /// Makes an answer of what the reader says.
    fn answer<T>(&self, slot: Slot, result: Result<T, ReadError>) -> Answer<T> {
        result.map_err(|error| self.broken(slot, &error))
    }

    /// Says once what is wrong.
    pub(crate) fn broken(&self, slot: Slot, error: &dyn fmt::Display) -> Errno {
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::error!(slot = slot.0, %error, "a layer's tree cannot be served");
        }
        Errno::EIO
    }

    fn inode(&self, node: Node) -> Answer<Inode> {
        self.answer(node.slot, self.image.inode(&mut Window::new(INODE), node.nid))
    }

    /// The attributes of an inode.
    pub(crate) fn attr(&self, node: Node) -> Answer<FileAttr> {
        attr(node.slot, &self.inode(node)?)
    }

    /// The attributes of what a name in a directory leads to; `None` if there is no such name.
    pub(crate) fn find(&self, dir: Node, name: &OsStr) -> Answer<Option<FileAttr>> {
        if name.len() > 255 {
            return Err(Errno::ENAMETOOLONG);
        }
        let inode = self.inode(dir)?;
        if inode.kind != Kind::Dir {
            return Err(Errno::ENOTDIR);
        }
        let found = self.answer(dir.slot, self.image.find(&inode, name.as_bytes()))?;
        found.map(|nid| self.attr(Node { slot: dir.slot, nid })).transpose()
    }

    /// Calls `each` with the entries of a directory from a place on, until it breaks.
    pub(crate) fn list(&self, dir: Node, from: u64, each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>) -> Answer<()> {
        let inode = self.inode(dir)?;
        if inode.kind != Kind::Dir {
            return Err(Errno::ENOTDIR);
        }
        self.answer(dir.slot, self.image.list(&inode, from, each))
    }

    /// The attributes of a directory's entry; `window` is kept from one to the next.
    pub(crate) fn entry_attr(&self, slot: Slot, nid: u64, window: &mut Window) -> Answer<FileAttr> {
        attr(slot, &self.answer(slot, self.image.inode(window, nid))?)
    }

    /// The target of a symbolic link.
    pub(crate) fn target(&self, node: Node) -> Answer<Vec<u8>> {
        let inode = self.inode(node)?;
        if inode.kind != Kind::Symlink {
            return Err(Errno::EINVAL);
        }
        self.answer(node.slot, self.image.target(&inode))
    }

    /// The value of an extended attribute.
    pub(crate) fn xattr(&self, node: Node, name: &OsStr) -> Answer<Vec<u8>> {
        let inode = self.inode(node)?;
        let mut xattrs = self.answer(node.slot, self.image.xattrs(&inode))?;
        xattrs.remove(name.as_bytes()).ok_or(Errno::ENODATA)
    }

    /// The names of all extended attributes, each with a NUL behind it.
    pub(crate) fn xattr_names(&self, node: Node) -> Answer<Vec<u8>> {
        let inode = self.inode(node)?;
        let xattrs = self.answer(node.slot, self.image.xattrs(&inode))?;
        Ok(xattrs.into_keys().flat_map(|name| name.into_iter().chain([0])).collect())
    }

    /// Where the bytes of a read are, in order and cut off at the file's end.
    pub(crate) fn map(&self, node: Node, offset: u64, len: u32) -> Answer<Vec<Piece>> {
        let mut window = Window::new(INODE);
        let inode = self.answer(node.slot, self.image.inode(&mut window, node.nid))?;
        match inode.kind {
            Kind::File => self.answer(node.slot, self.image.map(&mut window, &inode, offset, u64::from(len))),
            Kind::Dir => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Fills the part of a read's buffer whose bytes are in the image.
    pub(crate) fn copy(&self, slot: Slot, place: Place, buffer: &mut [u8]) -> Answer<()> {
        match place {
            Place::Image(at) => self.answer(slot, self.image.copy(at, buffer)),
            Place::Hole | Place::Device(..) => Ok(()),
        }
    }

    /// The data file with this place among the devices. The reader has counted them.
    pub(crate) fn device(&self, nr: usize) -> Answer<Slot> {
        self.devices.get(nr).copied().ok_or(Errno::EIO)
    }
}

/// What stat(2) says of EROFS' inodes: one time for all, and blocks by the length.
fn attr(slot: Slot, inode: &Inode) -> Answer<FileAttr> {
    let time = time(inode.mtime).ok_or(Errno::EIO)?;
    Ok(FileAttr {
        ino: Node { slot, nid: inode.nid }.ino().ok_or(Errno::EIO)?,
        size: inode.size,
        blocks: inode.size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(inode.kind),
        // Twelve bits.
        perm: inode.mode as u16,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        // EROFS says 512, the size of its blocks: for programs that read by it, small.
        blksize: 4096,
        flags: 0,
    })
}

pub(crate) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Char => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
    }
}

/// Before 1970 seconds are negative, nanoseconds still count up.
fn time(time: Time) -> Option<SystemTime> {
    let secs = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 { UNIX_EPOCH.checked_sub(secs) } else { UNIX_EPOCH.checked_add(secs) };
    whole?.checked_add(Duration::from_nanos(u64::from(time.nanos)))
}
