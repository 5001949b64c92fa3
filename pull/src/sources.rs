//! Where a layer's blob is to be had: images of several repositories may have the same one, and what one registry sends slowly or not at all,
//! another may send at once.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use silk_registry::{Blob, BlobStream, Error};
use tokio::time::timeout;

use crate::pace::Pace;

/// A layer asks no more repositories than this. Chosen: each that does not give it costs a request before the next is asked.
const MOST: usize = 8;

/// A registry from which so few bytes a second come on a connection is left for another that has the blob, too. Six connections of this rate are a
/// link of 12 Mbit/s: whose link is slower than that loses what is in the sockets, once for each range of the blob and each registry.
const DRIP: u64 = 256 << 10;

/// After so long: above what a lost packet or a server's pause takes.
const PATIENCE: Duration = Duration::from_secs(3);

/// The repositories of a blob.
#[derive(Debug)]
pub(crate) struct Sources(Mutex<State>);

#[derive(Debug)]
struct State {
    /// The one that is asked first.
    blobs: Vec<Blob>,
    /// How many failed since bytes came last.
    failed: usize,
}

impl Sources {
    /// One.
    pub(crate) fn new(blob: Blob) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { blobs: vec![blob], failed: 0 })))
    }

    /// The one to ask.
    pub(crate) fn first(&self) -> Blob {
        self.state().blobs[0].clone()
    }

    /// Another image has the same blob: it is asked first. Was its repository not known yet?
    pub(crate) fn offer(&self, blob: Blob) -> bool {
        self.add(blob, 0)
    }

    /// Another image has the same blob: it is asked when the others are no good.
    pub(crate) fn keep(&self, blob: Blob) {
        self.add(blob, MOST);
    }

    fn add(&self, blob: Blob, at: usize) -> bool {
        let blobs = &mut self.state().blobs;
        let is_same = (blob.digest(), blob.size()) == (blobs[0].digest(), blobs[0].size());
        let is_new = blobs.iter().all(|known| known.repository() != blob.repository());
        let takes = is_same && is_new && blobs.len() < MOST;
        if takes {
            blobs.insert(at.min(blobs.len()), blob);
        }
        takes
    }

    /// This one failed, and is asked last, unless another range of it has just said so. Was every one asked since bytes came last?
    pub(crate) fn failed(&self, blob: &Blob) -> bool {
        let mut state = self.state();
        if state.blobs[0].repository() == blob.repository() {
            state.blobs.rotate_left(1);
            state.failed += 1;
        }
        state.failed >= state.blobs.len()
    }

    /// Bytes came.
    pub(crate) fn came(&self) {
        self.state().failed = 0;
    }

    /// One at another registry, which is asked first from now on.
    fn instead_of(&self, slow: &Blob) -> Option<Blob> {
        let blobs = &mut self.state().blobs;
        let at = blobs.iter().position(|blob| blob.repository().0 != slow.repository().0)?;
        let other = blobs.remove(at);
        blobs.insert(0, other.clone());
        Some(other)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a stretch of a blob is read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manner {
    /// As [`BlobStream::urgent`].
    pub(crate) urgent: bool,
    /// As [`BlobStream::ranges_only`].
    pub(crate) ranges_only: bool,
}

impl Manner {
    fn read(self, blob: &Blob, range: Range<u64>) -> BlobStream {
        let mut stream = blob.read(range);
        if self.urgent {
            stream = stream.urgent();
        }
        if self.ranges_only {
            stream = stream.ranges_only();
        }
        stream
    }
}

/// Bytes of a blob, in order. Where they come too slowly, another registry goes on that has it, too.
#[derive(Debug)]
pub(crate) struct Stretch {
    sources: Arc<Sources>,
    blob: Blob,
    stream: BlobStream,
    end: u64,
    manner: Manner,
    pace: Pace,
    /// Registries that may still be left.
    left: usize,
}

impl Stretch {
    /// Begins at the source that is to be asked first.
    pub(crate) fn read(sources: &Arc<Sources>, range: Range<u64>, manner: Manner) -> Self {
        let (sources, blob, end) = (Arc::clone(sources), sources.first(), range.end);
        let stream = manner.read(&blob, range);
        Self { sources, blob, stream, end, manner, pace: Pace::begin(), left: MOST }
    }

    /// The next bytes; `None` at the end. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let asked = Instant::now();
            let next = timeout(self.pace.left(PATIENCE), self.stream.next()).await;
            let bytes = next.as_ref().map_or(0, |next| next.as_ref().map_or(0, |b| b.as_ref().map_or(0, Bytes::len)));
            self.pace.came(bytes as u64, asked.elapsed());
            match self.pace.is_drip(PATIENCE, DRIP) {
                None => {}
                Some(is_drip) => {
                    self.pace = Pace::begin();
                    if is_drip {
                        self.go_elsewhere();
                    }
                }
            }
            if let Ok(next) = next {
                return next;
            }
        }
    }

    fn go_elsewhere(&mut self) {
        let at = self.stream.position();
        let Some(other) = self.sources.instead_of(&self.blob).filter(|_| self.left > 0 && at < self.end) else {
            return;
        };
        tracing::info!(
            blob = %other.digest(), at, from = self.blob.host(), to = other.host(),
            "bytes come slowly: another image's registry goes on"
        );
        self.left -= 1;
        self.stream = self.manner.read(&other, at..self.end);
        self.blob = other;
    }

    /// Who sends it.
    pub(crate) fn blob(&self) -> &Blob {
        &self.blob
    }

    /// As [`BlobStream::distrust`].
    pub(crate) fn distrust(&self) -> bool {
        self.stream.distrust()
    }
}
