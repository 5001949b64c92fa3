//! How large an archive may be before silk refuses it.

use crate::toc::{MAX_ENTRIES, MAX_PACKED};

/// Bounds on what one layer may make the scanner keep. [`Limits::default`] holds the values in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Members in a layer.
    pub entries: u64,
    /// Bytes in one PAX header, GNU long name or sparse map: Go's `maxSpecialFileSize`, which is libarchive's too.
    pub special_bytes: u64,
    /// Bytes in a path or a link's target. Linux takes 4095 (`PATH_MAX` with its NUL), so containerd cannot make more.
    pub path_bytes: u64,
    /// Bytes of names and values of one member's extended attributes. ext4 holds about 4 KiB an inode, Linux 64 KiB a
    /// value; EROFS about 256 KiB an inode.
    pub xattr_bytes: u64,
    /// Regions in one sparse file: Go's `maxSparseFileEntries`.
    pub extents: u64,
    /// Length of a file, holes included: 16 TiB, the longest file of ext4 with blocks of 4 KiB.
    pub file_bytes: u64,
    /// Bytes of the table of contents as it is kept while the layer streams in. A file takes 28 and its path, so [`MAX_ENTRIES`] with paths of
    /// 60 bytes fit, three million with paths of 100. It holds for each layer alone. All that are under way keep theirs, those that have given
    /// up their turn too (64 layers at most by default), and so does each that fills: 24 GiB, if somebody sends 64 such layers.
    pub table: u64,
    /// Bytes of memory for a list of all members, with all that they have: 212 for such a file. The table itself is smaller, but what is made of
    /// it may take as much.
    pub memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: MAX_ENTRIES,
            special_bytes: 1 << 20,
            path_bytes: 4095,
            xattr_bytes: 128 << 10,
            extents: 1 << 20,
            file_bytes: 16 << 40,
            table: MAX_PACKED,
            memory: 832 << 20,
        }
    }
}
