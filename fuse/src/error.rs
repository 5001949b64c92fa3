//! Why a session cannot be had.

use std::{
    io,
    path::{Path, PathBuf},
};

use silk_model::Class;

/// A session that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
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
    /// The kernel has no FUSE.
    #[error("cannot open /dev/fuse: {0}; load the kernel's module with `modprobe fuse`")]
    NoDevice(io::Error),
    /// Something that silk has not left there is mounted where the session belongs.
    #[error("a file system of type {fs_type} is mounted on {}; unmount it", path.display())]
    InTheWay {
        /// Where.
        path: PathBuf,
        /// Its type.
        fs_type: String,
    },
    /// The kernel refused the mount.
    #[error("cannot mount FUSE on {}: {source}{log}", path.display())]
    Refused {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
        /// What it said besides, each line after a `; `.
        log: String,
    },
    /// The first exchange with the kernel failed.
    #[error("the kernel and silk do not agree on a FUSE protocol: {0}")]
    Handshake(io::Error),
}

impl FuseError {
    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { action, path: path.to_owned(), source: source.into() }
    }

    /// What kind of trouble it is.
    pub fn class(&self) -> Class {
        match self {
            Self::NoDevice(_) | Self::Handshake(_) => Class::Unsupported,
            Self::Io { .. } | Self::Refused { .. } => Class::Internal,
            Self::InTheWay { .. } => Class::Precondition,
        }
    }
}
