//! The directory tree that a layer leaves behind, as containerd's overlayfs would have it in the layer's upper directory.

use std::collections::BTreeMap;

use crate::toc::Time;

/// Index of a [`Node`] in [`Tree::nodes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// A layer's tree. Node 0 is the root directory. Nodes that no name leads to any more are not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// All inodes; hard links are several names of one node.
    pub nodes: Vec<Node>,
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// `mode & 0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Extended attributes by full name; includes `trusted.overlay.opaque` = `y` on opaque directories (made by
    /// [`Tree::build`], never taken from an archive).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an inode is. A whiteout is a character device 0:0, as overlayfs has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// Names sorted bytewise.
    Dir(BTreeMap<Vec<u8>, NodeId>),
    /// Bytes not covered by an extent read as zeros.
    File {
        /// Length in bytes.
        size: u64,
        /// Sorted by `logical`, not overlapping.
        extents: Vec<SourceExtent>,
    },
    /// The target.
    Symlink(Vec<u8>),
    /// Character device, major and minor.
    Char(u32, u32),
    /// Block device, major and minor.
    Block(u32, u32),
    /// Named pipe.
    Fifo,
}

/// A run of a file's bytes in some layer's data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceExtent {
    /// Which layer's data file.
    pub source: Source,
    /// Offset in the file.
    pub logical: u64,
    /// Offset in the data file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Whose data file an extent lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The layer's own.
    Own,
    /// That of the layer `n` places below it (1 is the direct parent): the target of a hard link into a lower layer.
    Below(u32),
}
