//! Which hosts are believed to have the blob as it should be.
//!
//! Nothing here proves bytes, so it is the reader who finds out that they are wrong. What it says is kept with the host and by
//! the blob's digest: it outlives the handle, and counts for each repository.

use std::sync::atomic::Ordering;

use tracing::warn;

use super::{Blob, BlobStream};
use crate::repository::Needs;

impl Blob {
    /// The bytes that were read of this blob are not those of its digest: the host that sent them is asked for it after all
    /// others from now on, also by handles that are made later. Call it once the streams that read them have ended.
    ///
    /// Where several hosts sent bytes since the last call, one of them is blamed: the first in the order of `hosts.toml`, since
    /// the registry itself comes last there, and the next call blames the next. [`BlobStream::distrust`] knows it better.
    ///
    /// True if a host is left to be read from that was never blamed for this blob. It may be one that cannot be reached,
    /// and the blamed one is asked again then: who tries again has to count.
    pub fn distrust(&self) -> bool {
        let sources = self.inner.sources.iter().enumerate();
        let sent = sources.filter(|(_, source)| source.sent.swap(false, Ordering::Relaxed)).map(|(index, _)| index);
        self.blame(sent.collect())
    }

    /// By index, in the order of `hosts.toml`.
    fn blame(&self, sent: Vec<usize>) -> bool {
        let (repository, digest) = (&self.inner.repository, &self.inner.digest);
        // None comes first. If all were blamed before, their order changes.
        let blamed = sent.into_iter().min_by_key(|&index| repository.endpoints[index].sent_wrong(digest));
        if let Some(index) = blamed {
            let endpoint = &repository.endpoints[index];
            endpoint.set_sent_wrong(*digest);
            warn!(
                "registry {} sent wrong bytes as {}: it is asked for it last",
                endpoint.host().authority,
                self.what()
            );
        }
        let mut endpoints =
            repository.endpoints.iter().filter(|endpoint| Needs::Pull.met_by(endpoint.host().capabilities));
        endpoints.any(|endpoint| endpoint.sent_wrong(digest).is_none())
    }
}

impl BlobStream {
    /// As [`Blob::distrust`], where it is known that the wrong bytes are of this stream.
    pub fn distrust(&self) -> bool {
        self.blob.blame(self.sent.iter().copied().collect())
    }
}
