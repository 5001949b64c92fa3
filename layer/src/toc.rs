//! The table of contents of a layer: its tar's entries, in order, with the place of their bytes.
//!
//! A [`Toc`] says what the archive *contains*; what that *means* (later entries replace earlier ones, whiteouts,
//! directories that are implied) is worked out by [`crate::tree`]. All offsets are bytes into the layer's
//! uncompressed tar, which is its data file on disk.

mod bounded;
pub(crate) mod bytes;
mod codec;

pub use codec::{
    HEADER_LEN, MAGIC, MAX_ENTRIES, MAX_PACKED, MAX_UNFOLDED, Payload, TocError, VERSION, check, decode, encode,
};

use std::{borrow::Cow, fmt, mem};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// Everything a layer's tar contains.
///
/// The entries are kept as they are in the table's file, one behind the other: a list of [`Entry`] would take three times
/// the memory, and there are layers with a million.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Toc {
    size: u64,
    count: u64,
    /// The entries in postcard. Whatever is here has been packed by [`Toc::push`], or read through by [`decode`].
    packed: Vec<u8>,
}

impl Toc {
    /// The table of a tar of `size` bytes with these entries.
    pub fn new<'e>(size: u64, entries: impl IntoIterator<Item = &'e Entry<'e>>) -> Self {
        let mut toc = Self { size, ..Self::default() };
        entries.into_iter().for_each(|entry| toc.push(entry));
        toc
    }

    /// Length of the uncompressed tar in bytes, trailer and padding included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many entries there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The entries, in archive order.
    pub fn entries(&self) -> Entries<'_> {
        Entries(&self.packed)
    }

    /// Bytes that the entries take.
    pub fn packed_len(&self) -> u64 {
        self.packed.len() as u64
    }

    pub(crate) fn set_size(&mut self, size: u64) {
        self.size = size;
    }

    pub(crate) fn push(&mut self, entry: &Entry<'_>) {
        let packed = mem::take(&mut self.packed);
        self.packed = postcard::to_extend(entry, packed).expect("postcard into memory fails for no value of this type");
        self.count += 1;
    }
}

impl fmt::Debug for Toc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Toc").field("size", &self.size).field("entries", &self.entries().collect::<Vec<_>>()).finish()
    }
}

/// Goes through a table: [`Toc::entries`].
#[derive(Debug, Clone)]
pub struct Entries<'t>(&'t [u8]);

impl<'t> Iterator for Entries<'t> {
    type Item = Entry<'t>;

    fn next(&mut self) -> Option<Entry<'t>> {
        if self.0.is_empty() {
            return None;
        }
        let (entry, rest) = postcard::take_from_bytes(self.0).expect("a table holds what can be read again");
        self.0 = rest;
        Some(entry)
    }
}

/// One member of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry<'t> {
    /// The path as the archive spells it (after PAX and GNU long names), not cleaned, not necessarily UTF-8.
    #[serde(borrow, with = "bytes")]
    pub path: Cow<'t, [u8]>,
    /// What the member is.
    #[serde(borrow)]
    pub kind: Kind<'t>,
    /// Permission bits with setuid, setgid and sticky: `mode & 0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time as the archive gives it.
    pub mtime: Time,
    /// Extended attributes by full name (`security.capability`), in the archive's order, none left out.
    #[serde(deserialize_with = "bounded::xattrs")]
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
pub enum Kind<'t> {
    /// A regular file of `size` bytes; whatever `extents` do not cover reads as zeros.
    File {
        /// Length of the file as its readers see it.
        size: u64,
        /// Where its bytes are, sorted by `logical`, not overlapping. Usually one; several for sparse files.
        #[serde(deserialize_with = "bounded::extents")]
        extents: SmallVec<[Extent; 1]>,
    },
    /// A directory.
    Dir,
    /// A symbolic link and its target.
    Symlink(#[serde(borrow, with = "bytes")] Cow<'t, [u8]>),
    /// A hard link and the path (as the archive spells it) of the member it is another name of.
    Hardlink(#[serde(borrow, with = "bytes")] Cow<'t, [u8]>),
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
