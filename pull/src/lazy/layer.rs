//! One layer that fills behind its readers.
//!
//! A read of what is here is answered at once, on the reader's thread. Any other is parked, and the segments it needs are
//! fetched: each span is verified, stored, marked, and then the reads that waited for it are answered. A segment is on its
//! way at most once, whoever wants it. Ranges that fail are tried again, with backoff, as long as somebody waits or the
//! image is wanted.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    fs::File,
    ops::Range,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use silk_model::{
    Class,
    metrics::{METRICS, Read},
};
use silk_registry::Blob;
use silk_share::Found;
use silk_store::{Partial, StoreError, read_at};
use tokio::{runtime::Handle, sync::watch};
use tracing::Span;

use super::{
    range::{RangeError, Wanted},
    scheduler::{Lane, Reading},
};
use crate::{
    LayerSpec,
    sources::Sources,
    timing::{Clocks, Way},
};

mod ground;
mod take;
mod tend;

use tend::Trouble;

/// A range whose content is wrong is fetched this often again, and from each other host that may have it, before the index is blamed.
const REPEATS: u32 = 1;
/// How many hosts may be asked more: one that is away is never known to have sent wrong bytes. Chosen: `hosts.toml` names some mirrors at most.
const HOSTS: u32 = 4;

/// Why a read cannot be answered.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ReadError {
    /// What kind of trouble it is.
    pub class: Class,
    /// Names image, layer and cause.
    pub message: Arc<str>,
}

/// Takes the answer of a read, on whatever thread has it.
pub type Answer = Box<dyn FnOnce(Result<&[u8], ReadError>) + Send>;

/// A layer whose bytes arrive as they are read, and otherwise in order.
pub struct Lazy {
    pub(super) spec: LayerSpec,
    /// The image it was opened for, for messages.
    image: String,
    /// Who gave names and index, if it was another node and since the daemon started.
    pub(super) learned: Option<Found<()>>,
    pub(super) sources: Arc<Sources>,
    pub(super) partial: Partial,
    work: Mutex<Work>,
    /// Counts everything that happens: who waits for anything looks again at each change.
    pub(super) events: watch::Sender<u64>,
    pub(super) lane: Arc<Lane>,
    pub(super) runtime: Handle,
    read_wait: Duration,
    /// Compressed bytes of a range that nobody waits for.
    range: u64,
    pub(super) counts: Counts,
    /// Where its time goes.
    pub(crate) clocks: Arc<Clocks>,
    /// From its opening to its end.
    pub(super) span: Span,
    made: Instant,
    /// When somebody read it last: milliseconds since it was made, and one more; 0 is never.
    last_read: AtomicU64,
    /// Bytes may have been brought to the page cache before they were read.
    warmed: Arc<AtomicBool>,
}

/// Uncompressed bytes that arrived, by what asked for them.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) demand: AtomicU64,
    pub(super) profile: AtomicU64,
    pub(super) background: AtomicU64,
}

/// Uncompressed bytes that arrived, by what asked for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Arrived {
    /// A reader waited for them.
    pub demand: u64,
    /// A start was known to touch them.
    pub profile: u64,
    /// Nobody had asked.
    pub background: u64,
}

#[derive(Debug, Default)]
struct Work {
    coming: HashSet<usize>,
    waiting: Vec<Waiting>,
    /// Compressed bytes of the stream that takes the spans' place, when they were counted last.
    streamed: u64,
    /// Where the background goes on: behind what was read last.
    cursor: usize,
    /// The span after the last demand's, and how many spans the run of demands that meets there had.
    run: (usize, usize),
    trouble: Option<Trouble>,
    /// How often the content of a span was wrong.
    wrong: HashMap<usize, u32>,
    /// The server has no ranges: what is missing comes in one run.
    no_ranges: bool,
    /// That run.
    stream: Option<Range<usize>>,
    /// It was wrong too often, or the names are no good.
    fault: Option<Arc<str>>,
    /// The store's copy is left to whoever streams the layer.
    given_up: bool,
    ground: Ground,
}

/// Where reads get their bytes from.
#[derive(Debug, Default)]
enum Ground {
    /// Spans, fetched by the index.
    #[default]
    Spans,
    /// The index is no good, and why: the layer is being streamed, readers wait for all of it.
    Stream(String),
    /// The stream that took the place of the spans has ended.
    Whole(File),
    /// Nobody fills the layer any more.
    Nowhere,
}

struct Waiting {
    bytes: Range<u64>,
    asked: Instant,
    /// When something of what it waits for came last, or when it was asked.
    moved: Instant,
    /// A container's: it waits for whoever has to let silk in.
    patient: bool,
    answer: Answer,
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl fmt::Debug for Lazy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lazy").field("spec", &self.spec).finish_non_exhaustive()
    }
}

/// What a new [`Lazy`] is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) spec: LayerSpec,
    pub(super) image: String,
    pub(super) learned: Option<Found<()>>,
    pub(super) blob: Blob,
    pub(super) partial: Partial,
    pub(super) lane: Arc<Lane>,
    pub(super) read_wait: Duration,
    pub(super) range: u64,
    pub(super) span: Span,
}

impl Lazy {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let Parts { spec, image, learned, blob, partial, lane, read_wait, range, span } = parts;
        Arc::new(Self {
            spec,
            image,
            learned,
            sources: Sources::new(blob),
            partial,
            work: Mutex::default(),
            events: watch::Sender::new(0),
            lane,
            runtime: Handle::current(),
            read_wait,
            range,
            counts: Counts::default(),
            clocks: Arc::new(Clocks::new(Way::Filled)),
            span,
            made: Instant::now(),
            last_read: AtomicU64::new(0),
            warmed: Arc::default(),
        })
    }

    /// Length of the tar in bytes.
    pub fn size(&self) -> u64 {
        self.partial.index().size
    }

    /// Do reads fetch what they need? Otherwise the layer is being streamed, and cannot be mounted now.
    pub(super) fn is_indexed(&self) -> bool {
        matches!(self.work().ground, Ground::Spans)
    }

    /// Does a read wait for one of these spans, or for all that is missing, which comes in one piece when they are here?
    fn is_awaited(&self, run: &Range<usize>) -> bool {
        let needs = |read: &Waiting| {
            let spans = self.spans(&read.bytes);
            spans.start < run.end && run.start < spans.end
        };
        let work = self.work();
        work.waiting.iter().any(needs) || (work.no_ranges && !work.waiting.is_empty())
    }

    /// Waits for `other`, unless a read waits for these spans.
    pub(super) async fn until_awaited<T>(&self, run: &Range<usize>, other: impl Future<Output = T>) -> Option<T> {
        let mut events = self.events.subscribe();
        let mut other = pin!(other);
        loop {
            events.borrow_and_update();
            if self.is_awaited(run) {
                return None;
            }
            tokio::select! {
                biased;
                other = &mut other => return Some(other),
                _ = events.changed() => {}
            }
        }
    }

    /// Becomes true when reads of it do not all come by: some find what was brought for them.
    pub fn warmed(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.warmed)
    }

    /// The registry or mirror that its bytes come from.
    pub fn host(&self) -> String {
        self.blob().host()
    }

    /// The blob, where it is to be asked for.
    pub(super) fn blob(&self) -> Blob {
        self.sources.first()
    }

    /// Another image has the layer's blob in its own repository, which was asked last.
    pub(crate) fn offer(&self, blob: Blob) {
        let mut work = self.work();
        if self.sources.offer(blob) {
            // Who waits until the others are asked again need not.
            work.trouble = None;
            drop(work);
            self.happened();
        }
    }

    /// Was it opened for the sake of this image?
    pub(crate) fn is_of(&self, reference: &str) -> bool {
        self.image == reference
    }

    /// Uncompressed bytes that are here.
    pub fn bytes_here(&self) -> u64 {
        self.partial.bytes_here()
    }

    /// Reads that wait for bytes.
    pub fn reads_waiting(&self) -> u64 {
        self.work().waiting.len() as u64
    }

    /// Uncompressed bytes that came, by what asked for them.
    pub fn arrived(&self) -> Arrived {
        let Counts { demand, profile, background, .. } = &self.counts;
        let [demand, profile, background] = [demand, profile, background].map(|count| count.load(Ordering::Relaxed));
        Arrived { demand, profile, background }
    }

    /// Compressed bytes of what is here, whenever it came: of a segment, the part that its spans are.
    pub fn received(&self) -> u64 {
        let index = self.partial.index();
        let (mut bytes, mut at) = (0, 0);
        while at < index.spans.len() {
            let segment = index.segment(at);
            at = segment.end;
            let here = segment.clone().filter(|span| self.partial.has(*span)).count() as u64;
            bytes += self.blob_bytes(&segment) * here / segment.len() as u64;
        }
        // Two segments may share a byte.
        bytes.min(index.blob_size)
    }

    /// When somebody read it last, to the millisecond.
    pub(super) fn last_read(&self) -> Option<Instant> {
        let millis = self.last_read.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.made + Duration::from_millis(millis))
    }

    /// What keeps bytes from coming now, if anything does.
    pub fn trouble(&self) -> Option<String> {
        let work = self.work();
        match (&work.trouble, &work.ground) {
            (Some(trouble), _) => Some(trouble.cause.to_string()),
            (None, Ground::Stream(why)) => Some(why.clone()),
            (None, Ground::Spans | Ground::Whole(_) | Ground::Nowhere) => None,
        }
    }

    /// Reads `len` bytes of the data file at `offset`; less only at its end. Answers at once when they are here, else when
    /// they have come or cannot.
    pub fn read(self: &Arc<Self>, offset: u64, len: usize, answer: Answer) {
        self.answer_when_here(offset, len, true, answer);
    }

    /// As [`Lazy::read`] for a pull, which has others to turn to where nobody lets silk in: it is refused at once then.
    pub(crate) fn bring(self: &Arc<Self>, offset: u64, len: usize, answer: Answer) {
        self.answer_when_here(offset, len, false, answer);
    }

    fn answer_when_here(self: &Arc<Self>, offset: u64, len: usize, patient: bool, answer: Answer) {
        self.last_read.store(self.made.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
        let bytes = offset..(offset + len as u64);
        if self.has(&bytes) {
            METRICS.reads.of(Read::AtOnce).one();
            return self.answer(bytes, answer);
        }
        let answer = timed(answer, self.lane.reading(self.spec.diff_id));
        let mut work = self.work();
        let runs = match &work.ground {
            // Again, now that no span can be marked without its waiting reads being looked at.
            Ground::Spans if self.has(&bytes) => {
                drop(work);
                return self.answer(bytes, answer);
            }
            Ground::Spans if work.trouble.as_ref().is_none_or(|t| t.next_try <= Instant::now()) => {
                self.demand(&mut work, &bytes)
            }
            Ground::Spans | Ground::Stream(_) => Vec::new(),
            Ground::Whole(file) => return answer_from(file, &bytes, answer, self),
            Ground::Nowhere => return answer(Err(self.abandoned())),
        };
        let asked = Instant::now();
        work.waiting.push(Waiting { bytes, asked, moved: asked, patient, answer });
        drop(work);
        for run in runs {
            self.spawn(run, Wanted::Now, None);
        }
        // Its keeper counts the time until it is refused.
        self.happened();
    }

    /// Are these bytes of the tar in its data file?
    pub fn has(&self, bytes: &Range<u64>) -> bool {
        let end = bytes.end.min(self.size());
        bytes.start >= end || self.partial.hole(bytes.start..end).is_none()
    }

    /// Answers with spans that are here.
    fn answer(self: &Arc<Self>, bytes: Range<u64>, answer: Answer) {
        let mut out = vec![0; (bytes.end - bytes.start) as usize];
        match self.partial.read(bytes.start, &mut out) {
            Ok(len) => answer(Ok(&out[..len])),
            // They were given up a moment ago, together with the index: no span counts as here now.
            Err(StoreError::Absent(_)) => self.read(bytes.start, out.len(), answer),
            Err(error) => answer(Err(self.refuse(error.class(), &error))),
        }
    }

    pub(super) fn refuse(&self, class: Class, cause: &dyn fmt::Display) -> ReadError {
        let Self { image, spec, .. } = self;
        ReadError { class, message: format!("silk cannot read layer {} of {image}: {cause}", spec.blob).into() }
    }

    /// Answers the reads that waited for a span only.
    pub(super) fn has_come(self: &Arc<Self>, span: usize) {
        let mut work = self.work();
        work.coming.remove(&span);
        work.trouble = None;
        self.moved(&mut work, span);
        self.sources.came();
        let ready = work.waiting.extract_if(.., |w| self.has(&w.bytes)).collect::<Vec<_>>();
        drop(work);
        for Waiting { bytes, answer, .. } in ready {
            self.answer(bytes, answer);
        }
        self.happened();
    }

    /// A run that began at `tried` is over; what of it did not come may be taken again.
    pub(super) fn ended(&self, run: Range<usize>, (tried, blob): (Instant, &Blob), outcome: Result<(), RangeError>) {
        let mut work = self.work();
        if work.stream.as_ref() == Some(&run) {
            // The next one is asked for as a range again: a cache that has the blob by now gives it.
            (work.stream, work.no_ranges) = (None, false);
        }
        let streamed = work.stream.clone().unwrap_or_default();
        for span in run.clone().filter(|span| !streamed.contains(span)) {
            work.coming.remove(&span);
        }
        if let Err(RangeError::Registry(error @ silk_registry::Error::NoRanges { .. })) = &outcome {
            tracing::info!(blob = %self.spec.blob, %error, "a layer comes in one piece");
            work.no_ranges = true;
            drop(work);
            return self.happened();
        }
        // Once a stream takes their place, it does not matter how ranges end.
        if let Err(error) = outcome
            && matches!(work.ground, Ground::Spans)
        {
            let in_a_row = work.trouble.as_ref().map_or(0, |t| t.in_a_row) + 1;
            // Of the disk's trouble no other repository knows more.
            let is_its = matches!(error, RangeError::Registry(_) | RangeError::Content { .. });
            let is_last = !is_its || self.sources.failed(blob);
            tracing::warn!(image = self.image, blob = %self.spec.blob, %error, in_a_row, "a range of a layer did not arrive");
            let cause: Arc<str> = error.to_string().into();
            // Spans come in order: the first that did not is the one that is wrong. A host that has another blob says nothing of the index.
            let span = run.clone().find(|span| !self.partial.has(*span));
            if let (Some(span), RangeError::Content { elsewhere, .. }) = (span, &error) {
                let times = work.wrong.entry(span).or_default();
                *times += 1;
                if *times > REPEATS && (!elsewhere || *times > REPEATS + HOSTS) {
                    work.fault = Some(Arc::clone(&cause));
                }
            }
            let class = if is_last { error.class() } else { Class::Transient };
            let waits = if is_last { self.waits(class, in_a_row) } else { [Duration::ZERO; 2] };
            let [next_try, next_by_itself] = waits.map(|wait| Instant::now() + wait);
            work.trouble = Some(Trouble { cause, class, run, tried, next_try, next_by_itself, in_a_row });
        }
        drop(work);
        self.happened();
    }

    fn abandoned(&self) -> ReadError {
        self.refuse(Class::NotFound, &"nothing uses it any more")
    }

    pub(super) fn happened(&self) {
        self.events.send_modify(|count| *count += 1);
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells how long a read waited for its answer.
fn timed(answer: Answer, reading: Reading) -> Answer {
    METRICS.reads.of(Read::Parked).one();
    let asked = Instant::now();
    Box::new(move |read| {
        METRICS.read_wait.took(asked.elapsed());
        answer(read);
        drop(reading);
    })
}

/// Answers from a whole layer's data file.
fn answer_from(file: &File, bytes: &Range<u64>, answer: Answer, lazy: &Lazy) {
    let mut out = vec![0; (bytes.end - bytes.start) as usize];
    match read_at(file, bytes.start, &mut out) {
        Ok(len) => answer(Ok(&out[..len])),
        Err(error) => answer(Err(lazy.refuse(Class::Internal, &error))),
    }
}
