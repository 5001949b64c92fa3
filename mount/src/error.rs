//! What can go wrong with mounts and with what they show.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use rustix::io::Errno;
use silk_layer::{erofs::ErofsError, tree::TreeError};
use silk_model::{Class, Digest};

use crate::Rung;

/// A mount that could not be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
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
    /// The kernel has no way to mount EROFS that silk knows.
    #[error("this kernel cannot show silk's layers: {reason}")]
    NoRung {
        /// Why each way does not work.
        reason: String,
    },
    /// Another layer is mounted there. By chance no two ever have the same mount point: somebody made one for that.
    #[error("another layer is mounted at {}, whose name begins like this one's: one of the two was made for that", point.display())]
    Taken {
        /// The mount point.
        point: PathBuf,
    },
    /// The image wants other data files than were given. With none given the kernel would take its own blocks for theirs.
    #[error("{} is no metadata image over {given} data files", meta.display())]
    Devices {
        /// The metadata image.
        meta: PathBuf,
        /// How many data files were given.
        given: usize,
    },
    /// The kernel cannot show this directory with the owners of a user namespace.
    #[error(
        "cannot show {} with the owners of a user namespace: {source}; where this kernel cannot, leave `remap-ids` out of \
         silk's capabilities in containerd's configuration, and containerd makes a copy", path.display()
    )]
    NotMapped {
        /// A lower directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No user namespace can be made, whose map a mount could have.
    #[error("cannot make a user namespace with the container's IDs: {source}; see user.max_user_namespaces of sysctl")]
    NoNamespace {
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused this mount.
    #[error("cannot mount {} ({rung}): {source}{log}", meta.display())]
    Refused {
        /// The metadata image.
        meta: PathBuf,
        /// From what.
        rung: Rung,
        /// What the kernel said.
        source: io::Error,
        /// What it said besides, each line after a `; `.
        log: String,
    },
}

impl MountError {
    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { action, path: path.to_owned(), source: source.into() }
    }

    /// What kind of trouble it is.
    pub fn class(&self) -> Class {
        match self {
            Self::Io { source, .. } => io_class(source),
            Self::NoRung { .. } => Class::Unsupported,
            Self::Taken { .. } => Class::Invalid,
            // Linux 6.11 and earlier say so of FUSE, any of a file system that has no such mounts, and 5.11 knows none.
            Self::NotMapped { source, .. }
                if matches!(raw(source), Some(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)) =>
            {
                Class::Unsupported
            }
            Self::NoNamespace { source } if raw(source) == Some(Errno::INVAL) => Class::Invalid,
            Self::NotMapped { .. } | Self::NoNamespace { .. } => Class::Internal,
            Self::Devices { .. } | Self::Refused { .. } => Class::Internal,
        }
    }
}

/// A layer that could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// Its bytes are not all here.
    #[error("layer {0} is not whole")]
    NotWhole(Digest),
    /// Its table of contents cannot be had.
    #[error("the contents of layer {layer}: {source}")]
    Layer {
        /// Which.
        layer: Digest,
        /// Why.
        source: LayerError,
    },
    /// Its entries make no tree.
    #[error("layer {layer}: {source}")]
    Tree {
        /// Which.
        layer: Digest,
        /// Why.
        source: TreeError,
    },
    /// Its tree depends on the layers below, and theirs are too large to be in memory together.
    #[error(
        "layer {layer}: its files depend on the layers below it, and the names of those take more than {limit} bytes of memory together"
    )]
    Chain {
        /// The lowest for which there is no room.
        layer: Digest,
        /// Bytes.
        limit: u64,
    },
    /// Its tree fits in no metadata image.
    #[error("layer {layer}: {source}")]
    Erofs {
        /// Which.
        layer: Digest,
        /// Why.
        source: ErofsError,
    },
    /// Bytes that its metadata image has copies of are not here: once they are, it can be shown.
    #[error("layer {layer} has sparse files that cannot be shown before {} more pieces of them are here", bytes.len())]
    Missing {
        /// Which.
        layer: Digest,
        /// Where these bytes are: whose tar, and where in it.
        bytes: Vec<(Digest, Range<u64>)>,
    },
    /// Its metadata image cannot be written or read.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The mount failed.
    #[error("layer {layer}: {source}")]
    Mount {
        /// Which.
        layer: Digest,
        /// Why.
        source: MountError,
    },
}

impl ViewError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// The layer at fault, where it is one.
    pub fn layer(&self) -> Option<Digest> {
        match self {
            Self::NotWhole(layer)
            | Self::Layer { layer, .. }
            | Self::Tree { layer, .. }
            | Self::Chain { layer, .. }
            | Self::Erofs { layer, .. }
            | Self::Missing { layer, .. }
            | Self::Mount { layer, .. } => Some(*layer),
            Self::Io { .. } => None,
        }
    }

    /// What kind of trouble it is.
    pub fn class(&self) -> Class {
        match self {
            Self::NotWhole(_) => Class::Precondition,
            Self::Layer { source, .. } => source.class,
            Self::Tree { source, .. } => source.class(),
            Self::Chain { .. } => Class::Unsupported,
            Self::Erofs { source, .. } => source.class(),
            Self::Missing { .. } => Class::Transient,
            Self::Io { source, .. } => io_class(source),
            Self::Mount { source, .. } => source.class(),
        }
    }
}

/// What whoever keeps the layers says when a table of contents cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct LayerError {
    class: Class,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl LayerError {
    /// Wraps the keeper's own error.
    pub fn new(class: Class, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { class, source: Box::new(source) }
    }
}

fn raw(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

fn io_class(error: &io::Error) -> Class {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Class::NoSpace,
        _ => Class::Internal,
    }
}
