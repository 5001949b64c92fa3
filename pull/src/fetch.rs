//! A blob as an ordered stream of bytes, fetched by parallel ranges within a memory window.
//!
//! Ranges are requested in order and delivered in order; each delivers its bytes as they come, so the first byte of a range
//! does not wait for its last. How many are under way adapts: as long as the consumer waits for bytes, one more is added
//! at every range that ends. Memory is bounded by permits for every byte of every range under way, taken in order, so
//! that the range at the head of a blob always has its own and always moves.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use silk_model::Use;
use silk_registry::Error;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
};

use tracing::Instrument as _;

use crate::{
    Config,
    budget::Counts,
    sources::{Manner, Sources, Stretch},
    spans,
};

/// Pieces that may wait between the network and the decoder once their range's permits are given back. A piece is what one
/// read of the socket gave: 160 KiB on average, 680 KiB at most, so this is about the memory of one decoder.
pub(crate) const PIECES: usize = 8;

/// How long a blob waits for memory of the window before it goes without.
const PATIENCE: Duration = Duration::from_secs(1);

/// The pieces of a blob, in order; an error is the last.
pub(crate) type Pieces = mpsc::Receiver<Result<Bytes, Error>>;

/// Memory for bytes in flight, over all layers.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    permits: Arc<Semaphore>,
    size: usize,
    range: u64,
    ranges_at_once: usize,
}

impl Window {
    pub(crate) fn new(config: &Config) -> Self {
        // A window smaller than one range would never open.
        let permits = config.bytes_in_flight.max(config.range_bytes) as usize;
        Self {
            permits: Arc::new(Semaphore::new(permits)),
            size: permits,
            range: u64::from(config.range_bytes.max(1)),
            ranges_at_once: config.ranges_at_once.max(1),
        }
    }

    /// What is in use of it.
    pub(crate) fn now(&self) -> Use {
        Use::of_places(self.size, self.permits.available_permits())
    }
}

/// Starts to fetch `size` bytes of a blob; `counts` has them as they come. Dropping the receiver ends it.
pub(crate) fn start(sources: Arc<Sources>, size: u64, window: Window, counts: Counts) -> Pieces {
    let (to, pieces) = mpsc::channel(PIECES);
    let work = async move {
        if size <= window.range {
            whole(&sources, 0..size, &to, &counts).instrument(spans::fetch(0, size)).await;
        } else {
            InRanges { sources, size, window, counts, next: 0, under_way: VecDeque::new(), width: 2 }.run(&to).await;
        }
    };
    tokio::spawn(work.in_current_span());
    pieces
}

type To = mpsc::Sender<Result<Bytes, Error>>;

/// One request for everything; the channel's bound holds the socket back.
async fn whole(sources: &Arc<Sources>, bytes: Range<u64>, to: &To, counts: &Counts) {
    let mut stretch = Stretch::read(sources, bytes, Manner::default());
    while let Some(piece) = next(&mut stretch, counts).await {
        let last = piece.is_err();
        if to.send(piece).await.is_err() || last {
            return;
        }
    }
}

/// The next piece, counted; `None` at the end.
async fn next(stretch: &mut Stretch, counts: &Counts) -> Option<Result<Bytes, Error>> {
    let piece = stretch.next().await.transpose();
    if let Some(Ok(bytes)) = &piece {
        counts.came(bytes.len());
    }
    piece
}

struct UnderWay {
    pieces: mpsc::UnboundedReceiver<Result<Bytes, Error>>,
    task: JoinHandle<()>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct InRanges {
    sources: Arc<Sources>,
    size: u64,
    window: Window,
    counts: Counts,
    next: u64,
    under_way: VecDeque<UnderWay>,
    width: usize,
}

impl InRanges {
    async fn run(mut self, to: &To) {
        // The first range alone finds out whether the server knows ranges: asking for several of one that does not would
        // send the whole blob several times.
        let first_range = tokio::time::timeout(PATIENCE, self.add(true)).await;
        if first_range.is_err() {
            // Others hold the memory, perhaps for long because their registry is silent. One plain stream needs none.
            return self.whole(to).await;
        }
        let mut first = true;
        while let Some(mut head) = self.under_way.pop_front() {
            let began = Instant::now();
            let mut waited = Duration::ZERO;
            loop {
                let asked = Instant::now();
                let Some(piece) = head.pieces.recv().await else { break };
                waited += asked.elapsed();
                if std::mem::take(&mut first) && self.sources.first().ranges() == Some(false) {
                    drop(head);
                    return self.whole(to).await;
                }
                let last = piece.is_err();
                if to.send(piece).await.is_err() || last {
                    return;
                }
                self.fill().await;
            }
            drop(head);
            // More than a third of the time spent waiting for bytes: the link, not the decoder, is what is slow.
            if waited * 3 > began.elapsed() {
                self.width = (self.width + 1).min(self.window.ranges_at_once);
            }
            self.fill().await;
            let is_starved = self.under_way.is_empty() && tokio::time::timeout(PATIENCE, self.add(true)).await.is_err();
            if is_starved {
                return self.rest(to).await;
            }
        }
    }

    async fn whole(&self, to: &To) {
        whole(&self.sources, 0..self.size, to, &self.counts).instrument(spans::fetch(0, self.size)).await;
    }

    /// What no range was begun for, as one plain stream: it needs no memory of the window.
    async fn rest(&self, to: &To) {
        let span = spans::fetch(self.next, self.size - self.next);
        whole(&self.sources, self.next..self.size, to, &self.counts).instrument(span).await;
    }

    /// Starts ranges while the width and the window allow, without waiting.
    async fn fill(&mut self) {
        while self.under_way.len() + 1 < self.width && self.add(false).await {}
    }

    /// Starts the next range; waits for memory only if told to.
    async fn add(&mut self, wait: bool) -> bool {
        let range = self.next..self.size.min(self.next + self.window.range);
        if range.is_empty() {
            return false;
        }
        let permits = Arc::clone(&self.window.permits);
        let bytes = u32::try_from(range.end - range.start).expect("a range is configured as a u32");
        let permit = if wait {
            permits.acquire_many_owned(bytes).await.ok()
        } else {
            permits.try_acquire_many_owned(bytes).ok()
        };
        let Some(permit) = permit else { return false };
        self.next = range.end;
        let (to, pieces) = mpsc::unbounded_channel();
        let span = spans::fetch(range.start, range.end - range.start);
        let task = tokio::spawn(one(Arc::clone(&self.sources), range, to, self.counts.clone()).instrument(span));
        self.under_way.push_back(UnderWay { pieces, task, _permit: permit });
        true
    }
}

async fn one(
    sources: Arc<Sources>,
    range: Range<u64>,
    to: mpsc::UnboundedSender<Result<Bytes, Error>>,
    counts: Counts,
) {
    let mut stretch = Stretch::read(&sources, range, Manner::default());
    while let Some(piece) = next(&mut stretch, &counts).await {
        let last = piece.is_err();
        if to.send(piece).is_err() || last {
            return;
        }
    }
}
