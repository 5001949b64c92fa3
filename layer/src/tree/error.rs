//! Why a table of contents makes no tree.

use silk_model::Class;

/// An entry that cannot be unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the layer's entry {path:?} cannot be unpacked: {fault}")]
pub struct TreeError {
    /// The entry's path as the archive has it, cut to a readable length.
    pub path: String,
    /// What is wrong.
    pub fault: TreeFault,
}

impl TreeError {
    /// What kind of trouble this is.
    pub fn class(&self) -> Class {
        match self.fault {
            TreeFault::TooMuchWork
            | TreeFault::TooManyInodes(_)
            | TreeFault::TooManyImplied(_)
            | TreeFault::TooManyAttributes(_) => Class::Unsupported,
            _ => Class::Corrupt,
        }
    }
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeFault {
    /// `..` beyond the root.
    #[error("its path leads above the root")]
    ClimbsAboveRoot,
    /// `..` beyond the root in the target of a hard link.
    #[error("it is a hard link to {0:?}, a path that leads above the root")]
    LinkClimbsAboveRoot(String),
    /// Linux has no such names.
    #[error("its path contains a NUL")]
    Nul,
    /// Linux has no such names.
    #[error("its path has a component of {0} bytes; 255 is the most")]
    NameTooLong(usize),
    /// Symbolic links lead to where no path can name it.
    #[error("its path, symbolic links resolved, is deeper than {} directories", super::path::MAX_DEPTH)]
    TooDeep,
    /// `ENOTDIR`.
    #[error("{0:?} is not a directory")]
    NotADirectory(String),
    /// `ELOOP`.
    #[error("its path goes through more than {} symbolic links", super::path::MAX_LINKS)]
    SymlinkLoop,
    /// A hard link to nothing.
    #[error("it is a hard link to {0:?}, which is neither in this layer nor in those below it")]
    NoLinkTarget(String),
    /// Linux has no hard links to directories.
    #[error("it is a hard link to {0:?}, which is a directory")]
    LinkToDirectory(String),
    /// Linux has no empty symbolic links.
    #[error("it is a symbolic link to nothing")]
    EmptyTarget,
    /// `.wh.`, `.wh..` or `.wh...`.
    #[error("it is a whiteout of no name")]
    WhiteoutName,
    /// An extended attribute that Linux does not take.
    #[error("its extended attribute {name:?} {fault}")]
    Xattr {
        /// The attribute.
        name: String,
        /// What is wrong.
        fault: XattrFault,
    },
    /// Paths and links that take too many steps in all.
    #[error("its layer's paths and links take too many steps to resolve")]
    TooMuchWork,
    /// More inodes than a layer may have.
    #[error("its layer makes more than {0} files and directories")]
    TooManyInodes(u32),
    /// More directories without an entry than a layer may have.
    #[error("its layer's paths lead through more than {0} directories that have no entries of their own")]
    TooManyImplied(u64),
    /// More attributes that inodes get from others than a layer may have.
    #[error("its layer's files and directories take over more than {0} bytes of extended attributes from others")]
    TooManyAttributes(u64),
}

/// What is wrong with an extended attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum XattrFault {
    /// Beyond Linux' `XATTR_NAME_MAX`, or nothing behind the namespace.
    #[error("has a name that is empty or longer than 255 bytes")]
    Name,
    /// Beyond what EROFS can hold (and ext4).
    #[error("has a value of more than 65535 bytes")]
    Size,
    /// The kernel checks these.
    #[error("has a value that the kernel refuses")]
    Value,
}

/// A path for a message.
pub(super) fn shown(path: &[u8]) -> String {
    crate::tar::shown(path)
}
