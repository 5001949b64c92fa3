//! Writes the EROFS metadata image of a layer's [`Tree`]: names and attributes of its own, bytes in the data file.
//!
//! The image holds the superblock, a table of the data files it points into, all inodes (in the order of a walk, level
//! by level), then the directories. A regular file is a list of *chunks*, each with the address of its bytes in a data
//! file (a tar member's bytes start at a multiple of 512, and so do our blocks), or a hole. What no address can say, a
//! sparse file's piece that starts in the middle of a block, is copied into the image. The kernel mounts the image with
//! one `device=` option a data file, in the order of [`Plan::sources`].
//!
//! [`Plan::new`] decides where everything goes, [`Plan::write`] streams it: besides the tree only a few words an inode
//! are held in memory. Nothing here opens a file; the crate `mount` calls this, and it blocks only in the caller's
//! writer and reader. The format is the kernel's `fs/erofs/erofs_fs.h`; `docs/formats/erofs.md` says which part of it
//! is used and why.

use std::{io, ops::Range};

use silk_model::{Class, Digest};

use crate::tree::{Source, Tree};

mod chunks;
mod dirs;
mod disk;
mod place;
pub mod read;
mod write;

pub use disk::{Head, HeadError, inspect};

/// Most chunks of one file: 64 MiB of indexes. A whole file is one chunk; only sparse ones have more. A file of
/// 4 GiB that alternates between data and hole at every 512 bytes just fits.
pub const MAX_FILE_CHUNKS: u64 = 1 << 23;

/// Most chunks of one image: 128 MiB of indexes, for 16 million ordinary files.
pub const MAX_CHUNKS: u64 = 1 << 24;

/// Most bytes copied into one image from the data files, holes inside a copied chunk included. The chunk size is chosen
/// so that what is copied and what is indexed is small together: a tar of ordinary and of well-formed sparse files
/// copies a few kilobytes if anything.
pub const MAX_COPIED: u64 = 128 << 20;

/// Most data files of one image. More layers than an overlay can have (500).
pub const MAX_DEVICES: usize = 1000;

/// How much of an image [`inspect`] may need: the superblock and a full device table.
pub const MAX_HEAD: usize = 1024 + 128 * (1 + MAX_DEVICES);

/// A data file that the tree's extents may point into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Whose it is.
    pub source: Source,
    /// Length of the tar in bytes. The file itself must be padded with zeros to a multiple of 512 at least.
    pub size: u64,
    /// The layer's diff ID. It is written into the device's slot, so that [`inspect`] can tell which layers an image
    /// needs; the kernel goes by the order of its options.
    pub layer: Digest,
}

/// Fills a buffer with the bytes of a data file from an offset on.
pub type ReadData<'r> = dyn FnMut(Source, u64, &mut [u8]) -> io::Result<()> + 'r;

/// Where every inode, directory and chunk of an image goes.
#[derive(Debug)]
pub struct Plan<'t> {
    tree: &'t Tree,
    /// Those of the caller's devices that some chunk points into: slot 0 is device 1.
    devices: Vec<Device>,
    sources: Vec<Source>,
    uuid: [u8; 16],
    /// Inodes in the order they are written, root first.
    order: Vec<u32>,
    /// By node.
    placed: Vec<place::Placed>,
    blocks: u32,
    copied: u64,
}

impl<'t> Plan<'t> {
    /// Lays out the image of `tree`.
    ///
    /// `devices` names every data file that an extent of the tree lies in; those that turn out to be used get a slot,
    /// in the order given. `uuid` becomes the file system's: overlayfs needs a different one for each image to follow a
    /// copied-up file to its origin.
    pub fn new(tree: &'t Tree, devices: &[Device], uuid: [u8; 16]) -> Result<Self, ErofsError> {
        place::plan(tree, devices, uuid)
    }

    /// The data files of the `device=` options, in their order.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Length of the image in bytes, a multiple of 4096.
    pub fn size(&self) -> u64 {
        u64::from(self.blocks) * disk::BLOCK
    }

    /// Bytes of file contents that are copied into the image; 0 for a layer without odd sparse files.
    pub fn copied(&self) -> u64 {
        self.copied
    }

    /// The bytes of data files that [`Plan::copied`] counts, without its holes: what `read` of [`Plan::write`] is asked for.
    pub fn copied_from(&self) -> Vec<(Source, Range<u64>)> {
        write::copied_from(self)
    }

    /// Writes the image. `read` is called only when [`Plan::copied`] is not 0.
    ///
    /// Errors are those of `out` and `read`.
    pub fn write(&self, out: &mut impl io::Write, read: &mut ReadData<'_>) -> io::Result<()> {
        write::image(self, out, read)
    }
}

/// A tree that no EROFS image can hold. Paths are as in the tree, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ErofsError {
    /// Node 0 is missing or no directory, or a name leads to a node that is not there.
    #[error("the tree is broken at {path:?}: a node is missing, or the root is no directory")]
    Broken {
        /// Where.
        path: String,
    },
    /// A directory has two names.
    #[error("the directory {path:?} has two names; no file system can hold that")]
    DirTwice {
        /// One of them.
        path: String,
    },
    /// A name is empty, `.`, `..`, longer than 255 bytes, or contains a slash or a NUL.
    #[error("{name:?} in the directory {path:?} is no file name")]
    Name {
        /// The directory.
        path: String,
        /// The name.
        name: String,
    },
    /// A symbolic link's target is empty, longer than 4095 bytes, or contains a NUL.
    #[error("the target of the symbolic link {path:?} has {len} bytes or a NUL in it; Linux takes 1 to 4095 without")]
    Symlink {
        /// The link.
        path: String,
        /// Bytes in the target.
        len: usize,
    },
    /// An attribute's name is longer than 255 bytes (without its namespace) or empty, its value longer than 65,535, or
    /// all of an inode's together do not fit in 262,148 bytes.
    #[error("the extended attribute {name:?} of {path:?} does not fit")]
    Xattr {
        /// Whose.
        path: String,
        /// The attribute.
        name: String,
    },
    /// Extents overlap, are out of order, pass the file's end or that of their data file, or lie in a data file that
    /// was not given.
    #[error("the extents of {path:?} are not within the file and its layer's data")]
    Extent {
        /// The file.
        path: String,
    },
    /// A file is longer than 2^63 - 1 bytes, or its bytes lie beyond the 2 TiB that a block address reaches.
    #[error("{path:?} is beyond what a block address reaches")]
    Range {
        /// The file.
        path: String,
    },
    /// A sparse file has too many pieces.
    #[error(
        "the sparse file {path:?} of {size} bytes needs more than {MAX_FILE_CHUNKS} pieces or copies of {MAX_COPIED} bytes"
    )]
    Scattered {
        /// The file.
        path: String,
        /// Its length.
        size: u64,
    },
    /// The layer as a whole needs more chunks, copies, data files or metadata than the limits allow.
    #[error(
        "the layer needs more than {MAX_CHUNKS} file pieces, {MAX_COPIED} bytes of copies, {MAX_DEVICES} layers or 2 TiB of metadata"
    )]
    TooLarge,
}

impl ErofsError {
    /// What kind of trouble it is.
    pub fn class(&self) -> Class {
        match self {
            Self::Broken { .. } | Self::DirTwice { .. } => Class::Internal,
            Self::Name { .. } | Self::Symlink { .. } | Self::Extent { .. } => Class::Corrupt,
            Self::Xattr { .. } | Self::Range { .. } | Self::Scattered { .. } | Self::TooLarge => Class::Unsupported,
        }
    }
}
