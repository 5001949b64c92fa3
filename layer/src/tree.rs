//! The directory tree that a layer leaves behind, as containerd's overlayfs would have it in the layer's upper directory.
//!
//! [`Tree::build`] works it out from a table of contents. The rules, and where they are wider than containerd's, are in
//! the documentation of [`mod@build`].

mod acl;
mod below;
mod budget;
pub mod build;
mod error;
mod naive;
mod node;
mod path;
#[cfg(test)]
mod tests;
mod xattrs;

use std::collections::BTreeMap;

pub use build::{Below, Built, Dependence};
pub use error::{TreeError, TreeFault, XattrFault};

use smallvec::SmallVec;

use crate::toc::Time;

/// The root directory's place in [`Tree::nodes`].
pub const ROOT: NodeId = NodeId(0);

/// The attribute that makes overlayfs hide what the layers below have in a directory.
pub const OPAQUE: &[u8] = b"trusted.overlay.opaque";

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
    /// With its names.
    Dir(Names),
    /// Bytes not covered by an extent read as zeros.
    File {
        /// Length in bytes.
        size: u64,
        /// Sorted by `logical`, not overlapping.
        extents: Extents,
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

/// The names in a directory, sorted bytewise.
pub type Names = BTreeMap<Name, NodeId>;

/// A name. Of those in Debian's, npm's and PyPI's packages most are short enough to need no memory of their own.
pub type Name = SmallVec<[u8; 16]>;

/// Where a file's bytes lie. Nearly all files have one extent, which needs no memory of its own.
pub type Extents = SmallVec<[SourceExtent; 1]>;

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

impl Tree {
    /// How many inodes the tree has: hard links count once.
    pub fn inodes(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// The sum of the lengths of all files, holes included: hard links count once.
    pub fn bytes(&self) -> u64 {
        let sizes = self.nodes.iter().map(|node| match node.kind {
            NodeKind::File { size, .. } => size,
            _ => 0,
        });
        sizes.fold(0, u64::saturating_add)
    }

    /// Bytes of memory that the tree takes, about.
    pub fn memory(&self) -> u64 {
        self.nodes.iter().map(memory_of).sum()
    }

    /// The node that `id` stands for.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }
}

/// Bytes of memory that a node takes, about.
fn memory_of(node: &Node) -> u64 {
    /// Places in a node of a `BTreeMap`. Names that come in order, as those of archives do, leave it half full.
    const PLACES: usize = 11;
    let contents = match &node.kind {
        NodeKind::Dir(names) => {
            let spilled: usize = names.keys().filter(|name| name.spilled()).map(|name| name.len()).sum();
            names.len().div_ceil(PLACES / 2) * PLACES * (size_of::<Name>() + size_of::<NodeId>()) + spilled
        }
        NodeKind::File { extents, .. } if extents.spilled() => extents.len() * size_of::<SourceExtent>(),
        NodeKind::Symlink(target) => target.len(),
        _ => 0,
    };
    let xattrs = node.xattrs.iter().map(|(name, value)| budget::of_attribute(name, value));
    (size_of::<Node>() + contents) as u64 + xattrs.sum::<u64>()
}

impl Node {
    /// Whether overlayfs takes the node for a whiteout.
    pub fn is_whiteout(&self) -> bool {
        self.kind == NodeKind::Char(0, 0)
    }

    /// Whether overlayfs takes the directory for an opaque one.
    pub fn is_opaque(&self) -> bool {
        self.xattrs.get(OPAQUE).is_some_and(|value| value == b"y")
    }
}
