//! Reads the images that [`super::Plan::write`] makes, as the kernel does: an inode, a name in a directory, a directory
//! from some place on, and where a file's bytes are. Other EROFS images need not be understood.
//!
//! For who answers from an image where the kernel cannot mount it. Nothing is kept between calls but what the caller
//! keeps in a [`Window`]; every call reads the few blocks it needs, and blocks in nothing but the caller's [`ReadAt`].
//! An image may be damaged: every address is checked against the image's length, what is read into memory has a bound,
//! and nothing is followed from one inode to the next.

use std::{collections::BTreeMap, io, ops::ControlFlow};

use silk_model::{Class, Digest};

use crate::toc::Time;

use super::{
    HeadError, MAX_HEAD,
    disk::{self, BLOCK, BLOCK_BITS, CHUNK_INDEXES, INODE, MAX_CHUNK_BITS, NULL_ADDR, SLOT},
    inspect,
    place::MAX_TARGET,
};

/// Most bytes of addresses read at once: those of a mebibyte in chunks of 2 KiB.
const INDEXES: u64 = 4096;

mod dirs;

pub use dirs::Entry;

/// Where an image's bytes come from.
pub trait ReadAt {
    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// When they cannot be had; the end of the image before the buffer's is one.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its bytes cannot be had.
    #[error("cannot read the metadata image: {0}")]
    Io(#[from] io::Error),
    /// It is none of ours.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// It is damaged behind its head.
    #[error("the metadata image is damaged: {what} at {at}")]
    Damaged {
        /// What makes no sense.
        what: &'static str,
        /// Offset in the image of the inode or block that says so.
        at: u64,
    },
}

impl ReadError {
    /// What kind of trouble it is.
    pub fn class(&self) -> Class {
        match self {
            Self::Io(_) => Class::Internal,
            Self::Head(_) | Self::Damaged { .. } => Class::Corrupt,
        }
    }
}

fn damaged<T>(what: &'static str, at: u64) -> Result<T, ReadError> {
    Err(ReadError::Damaged { what, at })
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

/// An inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub nid: u64,
    /// What it is.
    pub kind: Kind,
    /// `mode & 0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Names that lead to it; for a directory `.` and the `..` of its subdirectories too.
    pub nlink: u32,
    /// Length in bytes: of a file, a target, a directory's blocks.
    pub size: u64,
    /// A device's number as Linux's `new_encode_dev` has it.
    pub rdev: u32,
    layout: Layout,
    /// Bytes of extended attributes behind it.
    xattr_len: usize,
}

/// Where an inode's contents are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// From this offset in the image on.
    At(u64),
    /// In chunks of `1 << bits` bytes whose addresses stand from this offset in the image on.
    Chunks { bits: u32, indexes: u64 },
}

impl Inode {
    fn at(&self) -> u64 {
        self.nid * SLOT
    }

    /// Whether it has extended attributes: without asking for them.
    pub fn has_xattrs(&self) -> bool {
        self.xattr_len > 0
    }
}

/// Where a run of a file's bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: zeros.
    Hole,
    /// In the image, from this offset on.
    Image(u64),
    /// In the data file with this place in [`Reader::devices`], from this offset on.
    Device(usize, u64),
}

/// A run of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// How many bytes. Never 0.
    pub len: u64,
    /// Where they are.
    pub place: Place,
}

/// Bytes of an image that were read at once because what is wanted next is likely to be near.
#[derive(Debug)]
pub struct Window {
    size: usize,
    at: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// One that reads `size` bytes at a time, or as many as are wanted at once.
    pub fn new(size: usize) -> Self {
        Self { size, at: 0, bytes: Vec::new() }
    }
}

/// An image.
#[derive(Debug)]
pub struct Reader<R> {
    image: R,
    size: u64,
    root: u64,
    xattrs: bool,
    devices: Vec<Digest>,
}

impl<R: ReadAt> Reader<R> {
    /// Takes an image of `size` bytes, with or without what follows its last block.
    ///
    /// # Errors
    /// When its head is not that of an image of ours, or it is shorter than the head says.
    pub fn open(image: R, size: u64) -> Result<Self, ReadError> {
        let mut head = vec![0; size.min(MAX_HEAD as u64) as usize];
        image.read_at(0, &mut head)?;
        let head = inspect(&head)?;
        if head.size > size {
            return Err(HeadError::Short.into());
        }
        Ok(Self { image, size: head.size, root: head.root, xattrs: head.xattrs, devices: head.devices })
    }

    /// The layers whose data files [`Place::Device`] counts.
    pub fn devices(&self) -> &[Digest] {
        &self.devices
    }

    /// Whether inodes may have extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.xattrs
    }

    /// Number of the root directory's inode.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Reads `buffer.len()` bytes that [`Place::Image`] has told of.
    ///
    /// # Errors
    /// When they are not in the image or cannot be read.
    pub fn copy(&self, at: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        self.inside(at, buffer.len() as u64)?;
        Ok(self.image.read_at(at, buffer)?)
    }

    fn inside(&self, at: u64, len: u64) -> Result<(), ReadError> {
        if at.checked_add(len).is_none_or(|end| end > self.size) {
            damaged("an address beyond the end", at)
        } else {
            Ok(())
        }
    }

    /// The bytes at an offset, from the window or through it.
    fn bytes<'w>(&self, window: &'w mut Window, at: u64, len: usize) -> Result<&'w [u8], ReadError> {
        self.inside(at, len as u64)?;
        let has = window.at..window.at + window.bytes.len() as u64;
        if !has.contains(&at) || at + len as u64 > has.end {
            let rest = usize::try_from(self.size - at).unwrap_or(usize::MAX);
            window.bytes.resize(window.size.max(len).min(rest), 0);
            window.at = at;
            if let Err(error) = self.image.read_at(at, &mut window.bytes) {
                window.bytes.clear();
                return Err(error.into());
            }
        }
        let from = (at - window.at) as usize;
        Ok(&window.bytes[from..from + len])
    }

    /// An inode by its number. Those of a directory's entries lie side by side.
    ///
    /// # Errors
    /// When there is no inode of ours at that place.
    pub fn inode(&self, window: &mut Window, nid: u64) -> Result<Inode, ReadError> {
        let Some(at) = nid.checked_mul(SLOT) else { return damaged("an inode's number", 0) };
        let raw: [u8; INODE as usize] = match self.bytes(window, at, INODE as usize)?.try_into() {
            Ok(raw) => raw,
            Err(_) => return damaged("an inode", at),
        };
        parse(nid, at, &raw)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// When it is none or cannot be read.
    pub fn target(&self, link: &Inode) -> Result<Vec<u8>, ReadError> {
        let (Kind::Symlink, Layout::At(at), 1..=MAX_TARGET) = (link.kind, link.layout, link.size as usize) else {
            return damaged("a symbolic link", link.at());
        };
        let mut target = vec![0; link.size as usize];
        self.copy(at, &mut target)?;
        Ok(target)
    }

    /// All extended attributes of an inode, by full name. At most 256 KiB.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn xattrs(&self, inode: &Inode) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ReadError> {
        if inode.xattr_len == 0 {
            return Ok(BTreeMap::new());
        }
        let mut body = vec![0; inode.xattr_len];
        self.copy(inode.at() + INODE, &mut body)?;
        xattrs(&body).map_or_else(|| damaged("extended attributes", inode.at()), Ok)
    }

    /// Where `len` bytes of a file from `offset` on are, in their order; fewer at the file's end. A window through which
    /// the inode was read often has its addresses too.
    ///
    /// # Errors
    /// When it is no file or its addresses cannot be.
    pub fn map(&self, window: &mut Window, file: &Inode, offset: u64, len: u64) -> Result<Vec<Piece>, ReadError> {
        if file.kind != Kind::File {
            return damaged("a regular file", file.at());
        }
        let end = offset.saturating_add(len).min(file.size);
        let mut pieces = Vec::new();
        if offset >= end {
            return Ok(pieces);
        }
        let (bits, indexes) = match file.layout {
            Layout::At(at) => {
                let at = at.saturating_add(offset);
                self.inside(at, end - offset)?;
                return Ok(vec![Piece { len: end - offset, place: Place::Image(at) }]);
            }
            Layout::Chunks { bits, indexes } => (bits, indexes),
        };
        window.size = ((((end - 1) >> bits) - (offset >> bits) + 1) * 8).min(INDEXES) as usize;
        let mut at = offset;
        while at < end {
            let nr = at >> bits;
            let len = (((nr + 1) << bits).min(end)) - at;
            let index = self.bytes(window, indexes.saturating_add(nr * 8), 8)?;
            let place = self.place(index, at - (nr << bits), len)?;
            push(&mut pieces, Piece { len, place });
            at += len;
        }
        Ok(pieces)
    }

    /// `struct erofs_inode_chunk_index`: what it says of bytes that are `skip` behind the chunk's first.
    fn place(&self, index: &[u8], skip: u64, len: u64) -> Result<Place, ReadError> {
        let (device, block) = (u16_at(index, 2), u32_at(index, 4));
        let at = u64::from(block) * BLOCK + skip;
        match usize::from(device).checked_sub(1) {
            _ if block == NULL_ADDR => Ok(Place::Hole),
            None => self.inside(at, len).map(|()| Place::Image(at)),
            Some(device) if device < self.devices.len() => Ok(Place::Device(device, at)),
            Some(_) => damaged("a chunk of an unknown device", at),
        }
    }

    /// The entry of a directory with this name.
    ///
    /// # Errors
    /// When it is no directory, or a block of it makes no sense.
    pub fn find(&self, dir: &Inode, name: &[u8]) -> Result<Option<u64>, ReadError> {
        dirs::find(self, dir, name)
    }

    /// Calls `each` with the entries of a directory from a place on (0, or an [`Entry::next`]), until it breaks.
    ///
    /// # Errors
    /// As [`Reader::find`].
    pub fn list(
        &self,
        dir: &Inode,
        from: u64,
        each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        dirs::list(self, dir, from, each)
    }
}

/// Adds a piece, or makes the last one longer.
fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    if let Some(last) = pieces.last_mut() {
        let follows = match (last.place, piece.place) {
            (Place::Hole, Place::Hole) => true,
            (Place::Image(a), Place::Image(b)) => a + last.len == b,
            (Place::Device(x, a), Place::Device(y, b)) => x == y && a + last.len == b,
            _ => false,
        };
        if follows {
            last.len += piece.len;
            return;
        }
    }
    pieces.push(piece);
}

/// `struct erofs_inode_extended`.
fn parse(nid: u64, at: u64, raw: &[u8; INODE as usize]) -> Result<Inode, ReadError> {
    let (format, mode, size, union) = (u16_at(raw, 0), u16_at(raw, 4), u64_at(raw, 8), u32_at(raw, 16));
    let kind = match mode >> 12 {
        0o01 => Kind::Fifo,
        0o02 => Kind::Char,
        0o04 => Kind::Dir,
        0o06 => Kind::Block,
        0o10 => Kind::File,
        0o12 => Kind::Symlink,
        _ => return damaged("an inode's mode", at),
    };
    let xattr_len = disk::xattr_body(u16_at(raw, 2));
    let behind = at + INODE + xattr_len as u64;
    let layout = match (format & 1, format >> 1) {
        (1, 0) => Layout::At(u64::from(union) * BLOCK),
        (1, 2) => Layout::At(behind),
        (1, 4) if union & !0x1f == CHUNK_INDEXES => {
            Layout::Chunks { bits: BLOCK_BITS + (union & 0x1f), indexes: behind.next_multiple_of(8) }
        }
        _ => return damaged("an inode's format", at),
    };
    let mtime = Time { secs: u64_at(raw, 32) as i64, nanos: u32_at(raw, 40) };
    let device = matches!(kind, Kind::Char | Kind::Block);
    if i64::try_from(size).is_err() || mtime.nanos >= 1_000_000_000 {
        return damaged("an inode's size or time", at);
    }
    Ok(Inode {
        nid,
        kind,
        mode: u32::from(mode) & 0o7777,
        uid: u32_at(raw, 24),
        gid: u32_at(raw, 28),
        mtime,
        nlink: u32_at(raw, 44),
        size,
        rdev: if device { union } else { 0 },
        layout,
        xattr_len,
    })
}

/// The body behind an inode; `None` if it makes no sense.
fn xattrs(body: &[u8]) -> Option<BTreeMap<Vec<u8>, Vec<u8>>> {
    let (header, mut rest) = body.split_at_checked(disk::XATTR_HEADER)?;
    // None of ours are shared.
    if header[4] != 0 {
        return None;
    }
    let mut found = BTreeMap::new();
    while !rest.is_empty() {
        let (head, tail) = rest.split_at_checked(4)?;
        let (name, tail) = tail.split_at_checked(usize::from(head[0]))?;
        let (value, tail) = tail.split_at_checked(usize::from(u16_at(head, 2)))?;
        found.insert(disk::xattr_name(head[1], name)?, value.to_vec());
        let padding = (name.len() + value.len()).next_multiple_of(4) - name.len() - value.len();
        rest = tail.get(padding..)?;
    }
    Some(found)
}

/// Numbers in a slice that is long enough.
fn u16_at(raw: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([raw[at], raw[at + 1]])
}

fn u32_at(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}

fn u64_at(raw: &[u8], at: usize) -> u64 {
    u64::from(u32_at(raw, at)) | u64::from(u32_at(raw, at + 4)) << 32
}

// Chunks of 2^40 bytes at most, and files below 2^63: `(nr + 1) << bits` stays within 64 bits.
const _: () = assert!(MAX_CHUNK_BITS <= 40);
