//! What can go wrong with a snapshot.

use std::{
    io,
    path::{Path, PathBuf},
};

use silk_model::Class;

use crate::{Kind, NotReady, filter::FilterError, idmap::IdMapError};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No snapshot has the name.
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    /// A request without a name.
    #[error("a snapshot needs a name")]
    Nameless,
    /// The parent is not there.
    #[error("parent snapshot {0:?} does not exist")]
    NoParent(String),
    /// Only committed snapshots have children.
    #[error("parent {0:?} is not a committed snapshot")]
    ParentNotCommitted(String),
    /// A commit names another parent than the snapshot was prepared on.
    #[error("snapshot {key:?} has the parent {has:?} and cannot be committed on {wanted:?}")]
    OtherParent {
        /// The active snapshot.
        key: String,
        /// What it was prepared on.
        has: String,
        /// What the commit asks for.
        wanted: String,
    },
    /// The name is taken.
    #[error("snapshot {0:?} already exists")]
    Exists(String),
    /// The layer needs no unpacking: it is served by silk.
    #[error("snapshot {name:?} already exists: silk serves the layer with chain ID {chain_id}")]
    Served {
        /// The snapshot that stands for the layer.
        name: String,
        /// The chain ID of the layer.
        chain_id: String,
    },
    /// Only active snapshots can be committed.
    #[error("snapshot {name:?} is {kind}, not active: it cannot be committed")]
    NotActive {
        /// The snapshot.
        name: String,
        /// What it is.
        kind: Kind,
    },
    /// Committed snapshots have no mounts.
    #[error("snapshot {0:?} is committed: only active snapshots and views have mounts")]
    NoMounts(String),
    /// Children first.
    #[error("cannot remove snapshot {0:?}: it has children")]
    HasChildren(String),
    /// An update of something that cannot change.
    #[error("cannot update field {field:?} of snapshot {name:?}: only labels can be updated")]
    Field {
        /// The snapshot.
        name: String,
        /// The field path.
        field: String,
    },
    /// An update without a snapshot.
    #[error("the update names no snapshot")]
    NoInfo,
    /// A filter that cannot be parsed.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A user or group mapping that cannot be used.
    #[error(transparent)]
    IdMap(#[from] IdMapError),
    /// The layers below cannot be mounted now.
    #[error("snapshot {name:?} cannot be mounted yet: {source}")]
    NotMountable {
        /// The remote snapshot.
        name: String,
        /// Why.
        source: NotReady,
    },
    /// The kernel does not show a snapshot with the owners of its user namespace.
    #[error("snapshot {name:?}: {source}")]
    NotMapped {
        /// The snapshot.
        name: String,
        /// Why.
        source: NotReady,
    },
    /// The pull that the caller waited for failed.
    #[error(transparent)]
    Pull(NotReady),
    /// The size of a layer is not known before it is here.
    #[error("the size of snapshot {0:?} is not known yet: its layer is still being pulled")]
    NoUsage(String),
    /// The file system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The database refused.
    #[error("the database of snapshots failed: {0}")]
    Database(#[source] Box<redb::Error>),
    /// A record of a silk that is newer than this one.
    #[error("the record of snapshot {name:?} has version {version}, which this silkd does not know: run the newer one")]
    Version {
        /// The snapshot.
        name: String,
        /// The record's first byte.
        version: u8,
    },
    /// A handler died.
    #[error("silk failed (a bug; silkd's log says where)")]
    Panicked,
}

impl SnapshotError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn db(error: impl Into<redb::Error>) -> Self {
        Self::Database(Box::new(error.into()))
    }

    /// What kind of trouble it is.
    pub fn class(&self) -> Class {
        match self {
            Self::NotFound(_) | Self::NoParent(_) | Self::NoUsage(_) => Class::NotFound,
            Self::Nameless
            | Self::ParentNotCommitted(_)
            | Self::OtherParent { .. }
            | Self::Field { .. }
            | Self::NoInfo
            | Self::Filter(_)
            | Self::IdMap(_) => Class::Invalid,
            Self::Exists(_) | Self::Served { .. } => Class::Exists,
            Self::NotActive { .. } | Self::NoMounts(_) | Self::HasChildren(_) => Class::Precondition,
            Self::NotMountable { .. } => Class::Transient,
            Self::Pull(not_ready) | Self::NotMapped { source: not_ready, .. } => not_ready.class,
            Self::Io { source, .. } => class_of(source),
            Self::Database(error) => match &**error {
                redb::Error::Io(source) => class_of(source),
                _ => Class::Internal,
            },
            Self::Version { .. } | Self::Panicked => Class::Internal,
        }
    }
}

fn class_of(error: &io::Error) -> Class {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Class::NoSpace,
        _ => Class::Internal,
    }
}
