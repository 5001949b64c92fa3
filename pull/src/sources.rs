//! Where a layer's blob is to be had: images of several repositories may have the same one, and what one registry sends slowly or not at all,
//! another may send at once.

use std::{
    ops::Range,
    pin::pin,
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
/// link of 12 Mbit/s: whose link is slower loses what is in the sockets, once for each range and each registry.
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
    /// Bytes of several were put together, and were not the blob's: nobody knows whose were wrong. No more of that.
    apart: bool,
}

impl State {
    fn unlike(&self, tried: &[Blob]) -> Option<usize> {
        let is_tried = |blob: &Blob| tried.iter().any(|tried| tried.repository().0 == blob.repository().0);
        self.blobs.iter().position(|blob| !is_tried(blob)).filter(|_| !self.apart)
    }
}

impl Sources {
    /// One.
    pub(crate) fn new(blob: Blob) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { blobs: vec![blob], failed: 0, apart: false })))
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
        self.add(blob, usize::MAX);
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

    /// This one failed: how its hosts are to be asked may have been mended since the layer was opened.
    pub(crate) async fn renew(&self, blob: &Blob) {
        let renewed = match blob.renewed().await {
            Ok(Some(renewed)) => renewed,
            Ok(None) => return,
            Err(error) => return tracing::warn!(blob = %blob.digest(), %error, "its hosts stay what they were"),
        };
        let mut state = self.state();
        // Else another range that failed was first.
        if let Some(known) = state.blobs.iter_mut().find(|known| known.is_same(blob)) {
            tracing::info!(blob = %blob.digest(), "hosts.toml has changed: it is asked for by that from now on");
            *known = renewed;
        }
    }

    /// Bytes came.
    pub(crate) fn came(&self) {
        self.state().failed = 0;
    }

    /// One at a registry that none of these are of. It is asked first from now on.
    fn unlike(&self, tried: &[Blob]) -> Option<Blob> {
        let mut state = self.state();
        let at = state.unlike(tried)?;
        let other = state.blobs.remove(at);
        state.blobs.insert(0, other.clone());
        Some(other)
    }

    /// Is there such a one?
    fn has_unlike(&self, tried: &[Blob]) -> bool {
        self.state().unlike(tried).is_some()
    }

    /// What was put together of several is wrong: is it to be tried again from one alone?
    pub(crate) fn come_apart(&self) -> bool {
        let mut state = self.state();
        state.blobs.len() > 1 && !std::mem::replace(&mut state.apart, true)
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
    stream: BlobStream,
    end: u64,
    manner: Manner,
    pace: Pace,
    /// Those that were asked, the last of them now.
    tried: Vec<Blob>,
    /// The others were no good: the first has it for itself.
    alone: bool,
}

impl Stretch {
    /// Begins at the source that is to be asked first.
    pub(crate) fn read(sources: &Arc<Sources>, range: Range<u64>, manner: Manner) -> Self {
        let (sources, blob, end) = (Arc::clone(sources), sources.first(), range.end);
        let stream = manner.read(&blob, range);
        Self { sources, stream, end, manner, pace: Pace::begin(), tried: vec![blob], alone: false }
    }

    /// The next bytes; `None` at the end. Dropping the future loses no bytes.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let failed = match self.patiently().await {
                Some(Err(error)) => Some(error),
                Some(came) => return came,
                None => None,
            };
            if self.tried.len() > 1 && failed.is_some() {
                self.go_back();
            } else if !self.alone
                && let Some(other) = self.sources.unlike(&self.tried)
            {
                self.go_to(other);
            } else if let Some(error) = failed {
                return Err(error);
            }
        }
    }

    /// What the source gives; nothing if it drips, and another might go on.
    async fn patiently(&mut self) -> Option<Result<Option<Bytes>, Error>> {
        let Self { stream, pace, alone, .. } = self;
        // One future: who drops it begins its waits for connections and answers anew.
        let mut next = pin!(stream.next());
        loop {
            if let Some(is_drip) = pace.is_drip(PATIENCE, DRIP) {
                *pace = Pace::begin();
                if is_drip && !*alone && self.sources.has_unlike(&self.tried) {
                    return None;
                }
            }
            let asked = Instant::now();
            let came = timeout(pace.left(PATIENCE), &mut next).await;
            let bytes = came.as_ref().map_or(0, |came| came.as_ref().map_or(0, |b| b.as_ref().map_or(0, Bytes::len)));
            pace.came(bytes as u64, asked.elapsed());
            if let Ok(came) = came {
                return Some(came);
            }
        }
    }

    fn go_to(&mut self, other: Blob) {
        let at = self.stream.position();
        tracing::info!(
            blob = %other.digest(), at, from = self.blob().host(), to = other.host(),
            "bytes come slowly, or not at all: another image's registry goes on"
        );
        // A server without ranges would send all that is here.
        let ranges_only = self.manner.ranges_only || at > 0;
        self.stream = Manner { ranges_only, ..self.manner }.read(&other, at..self.end);
        self.tried.push(other);
    }

    fn go_back(&mut self) {
        let at = self.stream.position();
        // It is asked last from now on.
        self.sources.failed(self.blob());
        self.tried.truncate(1);
        self.alone = true;
        tracing::info!(blob = %self.blob().digest(), at, to = self.blob().host(), "the other registry does not: back to the first");
        self.stream = self.manner.read(&self.tried[0], at..self.end);
        self.pace = Pace::begin();
    }

    /// Who sends it.
    pub(crate) fn blob(&self) -> &Blob {
        self.tried.last().expect("it begins with one")
    }

    /// As [`BlobStream::distrust`]. Of bytes of several nobody knows whose were wrong.
    pub(crate) fn distrust(&self) -> bool {
        if self.tried.len() > 1 || self.alone { self.sources.come_apart() } else { self.stream.distrust() }
    }
}
