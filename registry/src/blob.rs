//! (in the making)
use std::ops::Range;

use bytes::Bytes;
use silk_model::Digest;

use crate::Error;

/// A blob of a repository. Cheap to clone; clones share the redirect, the choice of mirror and what is known of ranges.
#[derive(Debug, Clone)]
pub struct Blob {}

/// Bytes of a blob, in order.
#[derive(Debug)]
pub struct BlobStream {}

/// Whether a blob's server answers range requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranges {
    /// Not tried yet.
    Unknown,
    /// It has.
    Supported,
    /// It sends the whole blob instead: a read from the middle costs all the bytes before it.
    Unsupported,
}

impl Blob {
    /// Its digest.
    pub fn digest(&self) -> Digest {
        unimplemented!()
    }

    /// Its size in bytes, by the manifest.
    pub fn size(&self) -> u64 {
        unimplemented!()
    }

    /// Streams exactly `range`. Nothing is asked before the first [`BlobStream::next`].
    pub fn read(&self, _range: Range<u64>) -> BlobStream {
        unimplemented!()
    }

    /// Where the bytes come from now: host of the storage, mirror or registry.
    pub fn host(&self) -> String {
        unimplemented!()
    }

    /// What is known of the server's range support.
    pub fn ranges(&self) -> Ranges {
        unimplemented!()
    }

    /// Bytes received from the network for all readers together, those thrown away included.
    pub fn received(&self) -> u64 {
        unimplemented!()
    }
}

impl BlobStream {
    /// The next bytes; `None` when the range is complete. Dropping the future loses nothing.
    ///
    /// # Errors
    /// After retries and on all hosts; the stream then stays at its position, and `next` tries anew.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        unimplemented!()
    }

    /// The offset in the blob of the next byte.
    pub fn position(&self) -> u64 {
        unimplemented!()
    }
}
