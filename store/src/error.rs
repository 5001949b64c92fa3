//! What can go wrong with layers on disk.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustix::io::Errno;
use silk_model::{Class, Digest};

/// An operation of the store that failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The database refused.
    #[error("silk's database: {0}")]
    Db(#[source] Box<redb::Error>),
    /// Another process has the database open.
    #[error("{} is in use by another process: is a second silkd running on this root?", .0.display())]
    Locked(PathBuf),
    /// The bytes are not those the diff ID names.
    #[error("the layer's uncompressed bytes have the digest {found}, not its diff ID {expected}")]
    WrongDiffId {
        /// The diff ID in the image's configuration.
        expected: Digest,
        /// The digest of what was decoded.
        found: Digest,
    },
    /// A record of a silk that is newer than this one.
    #[error("the record of layer {diff_id} has version {version}, which this silkd does not know: run the newer one")]
    Version {
        /// The layer.
        diff_id: Digest,
        /// The record's first byte.
        version: u8,
    },
    /// The layer is not here.
    #[error("layer {0} is not in the store")]
    Absent(Digest),
    /// Its bytes never reached the disk.
    #[error("layer {0} was lost: the disk failed to take it, and gives other bytes back")]
    Lost(Digest),
    /// There is nothing left to write of it.
    #[error("layer {0} is whole already")]
    Whole(Digest),
    /// The layer is being written by somebody else.
    #[error("layer {0} is already being written")]
    Busy(Digest),
    /// The table of contents on disk cannot be read.
    #[error("{} is damaged: {source}", path.display())]
    Toc {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: silk_layer::toc::TocError,
    },
    /// Names or index are those of another layer.
    #[error("what is known of layer {diff_id} is of another one: its index leads to {found}")]
    Foreign {
        /// The layer.
        diff_id: Digest,
        /// The diff ID that the index leads to.
        found: Digest,
    },
    /// An index of a blob with another number of bytes than the image's manifest says. Which of the two is wrong is only known
    /// once the blob has come.
    #[error("what is known of blob {blob} is of one with {found} bytes, the image's manifest says {expected}")]
    OtherBlob {
        /// The blob.
        blob: Digest,
        /// Its bytes by the manifest.
        expected: u64,
        /// Its bytes by the index.
        found: u64,
    },
    /// The index on disk cannot be read.
    #[error("{} is damaged: {source}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: silk_layer::index::IndexError,
    },
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn db(error: impl Into<redb::Error>) -> Self {
        Self::Db(Box::new(error.into()))
    }

    pub(crate) fn opening(path: &Path, error: redb::DatabaseError) -> Self {
        match error {
            redb::DatabaseError::DatabaseAlreadyOpen => Self::Locked(path.to_owned()),
            other => Self::db(other),
        }
    }

    /// Does it say that a layer's files are damaged or cannot be read, and not that this process or its host lacks something?
    pub(crate) fn says_gone(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                source.kind() == io::ErrorKind::NotFound
                    || [Errno::IO, Errno::UCLEAN, Errno::BADMSG]
                        .iter()
                        .any(|e| Some(e.raw_os_error()) == source.raw_os_error())
            }
            Self::Absent(_) | Self::Toc { .. } | Self::Index { .. } | Self::Foreign { .. } | Self::Lost(_) => true,
            Self::Db(_)
            | Self::Locked(_)
            | Self::Version { .. }
            | Self::WrongDiffId { .. }
            | Self::OtherBlob { .. }
            | Self::Busy(_)
            | Self::Whole(_) => false,
        }
    }

    /// What kind of trouble it is.
    pub fn class(&self) -> Class {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Class::NoSpace,
                _ => Class::Internal,
            },
            Self::Db(_) | Self::Locked(_) | Self::Version { .. } | Self::Lost(_) => Class::Internal,
            Self::WrongDiffId { .. } | Self::Toc { .. } | Self::Index { .. } | Self::Foreign { .. } => Class::Corrupt,
            Self::Absent(_) => Class::NotFound,
            Self::Busy(_) | Self::Whole(_) => Class::Transient,
            Self::OtherBlob { .. } => Class::Precondition,
        }
    }
}
