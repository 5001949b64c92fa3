//! (in the making)
use std::time::Duration;

use bytes::Bytes;
use silk_model::Digest;

use crate::{Blob, Config, Error, Reference, Selector};

/// All registries, with one pool of connections, tokens and permits for the process.
#[derive(Debug)]
pub struct Registry {}

/// One repository on all its hosts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Repository {}

/// A manifest or index as the registry sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The `Content-Type`, without parameters.
    pub media_type: String,
    /// The digest of `bytes`, proved.
    pub digest: Digest,
    /// The document.
    pub bytes: Bytes,
}

/// What [`Repository::check`] asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// A manifest or an index.
    Manifest(Digest),
    /// A layer or a config.
    Blob(Digest),
}

impl Registry {
    /// Reads no file and opens no connection yet.
    ///
    /// # Errors
    /// A setting is zero.
    pub fn new(config: Config) -> Result<Self, Error> {
        config.validate()?;
        Ok(Self {})
    }

    /// The repository of `reference`, with its hosts as `hosts.toml` gives them now.
    ///
    /// # Errors
    /// A certificate cannot be used.
    pub async fn repository(&self, _reference: &Reference) -> Result<Repository, Error> {
        Ok(Repository {})
    }
}

impl Repository {
    /// A manifest or index, whole (at most 8 MiB) and proved against its digest.
    ///
    /// # Errors
    /// After retries and on all hosts.
    pub async fn manifest(&self, _selector: &Selector, _accept: &[&str]) -> Result<Manifest, Error> {
        unimplemented!()
    }

    /// Whether a host answers for `object` and lets us in, within `deadline` in all and without retries.
    ///
    /// # Errors
    /// No host does.
    pub async fn check(&self, _object: Object, _deadline: Duration) -> Result<(), Error> {
        unimplemented!()
    }

    /// A handle on a blob of `size` bytes. Nothing is asked until it is read.
    pub fn blob(&self, _digest: Digest, _size: u64) -> Blob {
        unimplemented!()
    }
}
