//! The table of contents of a layer: its tar's entries, in order, with the place of their bytes.
//!
//! A [`Toc`] says what the archive *contains*; what that *means* (later entries replace earlier ones, whiteouts,
//! directories that are implied) is worked out by [`crate::tree`]. All offsets are bytes into the layer's
//! uncompressed tar, which is its data file on disk.

pub(crate) mod bytes;
mod codec;

pub use codec::{HEADER_LEN, MAGIC, MAX_UNFOLDED, TocError, VERSION, check, decode, encode};

use serde::{Deserialize, Serialize};

/// Everything a layer's tar contains.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Toc {
    /// Length of the uncompressed tar in bytes, trailer and padding included.
    pub size: u64,
    /// In archive order.
    pub entries: Vec<Entry>,
}

/// One member of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The path as the archive spells it (after PAX and GNU long names), not cleaned, not necessarily UTF-8.
    #[serde(with = "bytes")]
    pub path: Vec<u8>,
    /// What the member is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: `mode & 0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time as the archive gives it.
    pub mtime: Time,
    /// Extended attributes by full name (`security.capability`), in the archive's order, none left out.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Seconds and nanoseconds since 1970; seconds may be negative, nanoseconds are always 0..1e9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub secs: i64,
    /// 0..1_000_000_000.
    pub nanos: u32,
}

/// The kinds of members that containerd unpacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file of `size` bytes; whatever `extents` do not cover reads as zeros.
    File {
        /// Length of the file as its readers see it.
        size: u64,
        /// Where its bytes are, sorted by `logical`, not overlapping. Usually one; several for sparse files.
        extents: Vec<Extent>,
    },
    /// A directory.
    Dir,
    /// A symbolic link and its target.
    Symlink(#[serde(with = "bytes")] Vec<u8>),
    /// A hard link and the path (as the archive spells it) of the member it is another name of.
    Hardlink(#[serde(with = "bytes")] Vec<u8>),
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// A run of a file's bytes inside the tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Offset in the file.
    pub logical: u64,
    /// Offset in the tar.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}
