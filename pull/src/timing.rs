//! Where the time of a pull goes: clocks that the threads of its layers carry, and what limited it ([`Limit`]).
//!
//! A clock is read a few times for each buffer of 512 KiB and for each piece that one read of the socket gave (about 25 ns against a
//! millisecond), never for single bytes. Clocks only count: whoever asks adds up ([`Trip::timing`]). They live in memory,
//! with the image that was pulled: a layer's are some hundred bytes.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use silk_model::Digest;

mod limit;
pub use limit::Limit;
#[cfg(test)]
mod tests;

/// What a layer's time is spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Waiting for its turn. Filled behind readers: for its ranges' admission.
    Turn,
    /// The first thread waits for the first byte; of each range where ranges are decoded by themselves.
    FirstByte,
    /// The first thread waits for any other byte.
    Bytes,
    /// Inflating. Filled behind readers: with its spans' digests.
    Inflate,
    /// The digest of the blob.
    BlobDigest,
    /// The first thread waits for the second one to give a buffer back.
    Store,
    /// The second thread: the digest of the tar. Filled behind readers: of a layer that is not compressed.
    Digest,
    /// Looking for the tar's headers.
    Scan,
    /// Finding out where decoding can begin.
    Index,
    /// Writing to the data file.
    Write,
    /// The second thread waits for the first one.
    Decoder,
    /// When all has come: table of contents, index, record.
    Proof,
}

impl Part {
    const COUNT: usize = Self::Proof as usize + 1;
}

/// How a layer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It was whole before.
    Here,
    /// From its start to its end.
    Streamed,
    /// Behind its readers, in ranges. Times are sums over them: together they may be longer than it took.
    Filled,
}

/// A point of time that is noted by one thread and looked at by others.
#[derive(Debug, Default)]
struct Moment(AtomicU64);

impl Moment {
    /// The first call counts.
    fn once(&self, after: Duration) {
        let _ = self.0.compare_exchange(0, nanos(after) + 1, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The last call counts.
    fn latest(&self, after: Duration) {
        self.0.fetch_max(nanos(after) + 1, Ordering::Relaxed);
    }

    fn get(&self) -> Option<Duration> {
        self.0.load(Ordering::Relaxed).checked_sub(1).map(Duration::from_nanos)
    }
}

/// The clocks of one layer on its way.
#[derive(Debug)]
pub(crate) struct Clocks {
    made: Instant,
    way: Way,
    first: Moment,
    last: Moment,
    ended: Moment,
    spent: [AtomicU64; Part::COUNT],
}

impl Default for Clocks {
    /// Of a layer that streams in.
    fn default() -> Self {
        Self::new(Way::Streamed)
    }
}

impl Clocks {
    pub(crate) fn new(way: Way) -> Self {
        let (first, last, ended) = Default::default();
        Self { made: Instant::now(), way, first, last, ended, spent: Default::default() }
    }

    /// Bytes of the blob have come.
    pub(crate) fn came(&self) {
        let after = self.made.elapsed();
        self.first.once(after);
        self.last.latest(after);
    }

    /// The layer is whole, or failed.
    pub(crate) fn end(&self) {
        self.ended.once(self.made.elapsed());
    }

    pub(crate) fn add(&self, part: Part, time: Duration) {
        self.spent[part as usize].fetch_add(nanos(time), Ordering::Relaxed);
    }

    /// Does the work, and counts its time.
    pub(crate) fn time<T>(&self, part: Part, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = work();
        self.add(part, began.elapsed());
        done
    }

    /// Does work that reads the layer's input, and counts the time that is not the input's own.
    pub(crate) fn time_reading<T>(&self, part: Part, work: impl FnOnce() -> T) -> T {
        let (before, began) = (self.input(), Instant::now());
        let done = work();
        self.add(part, began.elapsed().saturating_sub(self.input() - before));
        done
    }

    /// Adds what was spent on another clock.
    pub(crate) fn take_in(&self, other: &Self) {
        for (mine, more) in self.spent.iter().zip(&other.spent) {
            mine.fetch_add(more.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// What the input has taken by now: only the thread that reads it changes that.
    fn input(&self) -> Duration {
        [Part::FirstByte, Part::Bytes, Part::BlobDigest, Part::Turn].into_iter().map(|part| self.get(part)).sum()
    }

    fn get(&self, part: Part) -> Duration {
        Duration::from_nanos(self.spent[part as usize].load(Ordering::Relaxed))
    }

    /// As of now, with times since `start`: what was on its way before began at 0.
    fn timing(&self, diff_id: Digest, start: Instant) -> LayerTiming {
        let since = |moment: &Moment| Some((self.made + moment.get()?).saturating_duration_since(start));
        LayerTiming {
            diff_id,
            way: self.way,
            first_byte: since(&self.first),
            last_byte: since(&self.last),
            ended: since(&self.ended),
            spent: Spent(std::array::from_fn(|part| Duration::from_nanos(self.spent[part].load(Ordering::Relaxed)))),
        }
    }
}

/// The time of a layer, by what it was spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent([Duration; Part::COUNT]);

impl Spent {
    /// On this part.
    pub fn on(&self, part: Part) -> Duration {
        self.0[part as usize]
    }

    fn sum(&self, parts: &[Part]) -> Duration {
        parts.iter().map(|part| self.on(*part)).sum()
    }
}

/// Where the time of one layer went. Points of time are since the image's pull began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerTiming {
    /// The layer.
    pub diff_id: Digest,
    /// How it came.
    pub way: Way,
    /// Its first byte came.
    pub first_byte: Option<Duration>,
    /// Its last byte came, so far.
    pub last_byte: Option<Duration>,
    /// It was whole, or had failed; [`None`] while it is on its way.
    pub ended: Option<Duration>,
    /// By what it was spent on.
    pub spent: Spent,
}

/// Where the time of an image's last pull went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageTiming {
    /// Manifest, configuration, what others know, until the first layer could begin.
    pub resolve: Option<Duration>,
    /// From then on, until all layers were whole or could be mounted.
    pub layers: Option<Duration>,
    /// From then on, until they were mounted.
    pub mount: Option<Duration>,
    /// Base first.
    pub layers_timing: Vec<LayerTiming>,
}

/// The clocks of one pull of an image.
#[derive(Debug)]
pub(crate) struct Trip {
    began: Instant,
    resolved: Moment,
    here: Moment,
    mounted: Moment,
    layers: Mutex<HashMap<Digest, Arc<Clocks>>>,
}

impl Trip {
    /// A pull that began then.
    pub(crate) fn since(began: Instant) -> Self {
        Self {
            began,
            resolved: Moment::default(),
            here: Moment::default(),
            mounted: Moment::default(),
            layers: Mutex::default(),
        }
    }

    /// Layers can begin.
    pub(crate) fn mark_resolved(&self) {
        self.resolved.once(self.began.elapsed());
    }

    /// All layers can be mounted.
    pub(crate) fn mark_here(&self) {
        self.here.once(self.began.elapsed());
    }

    /// They are mounted.
    pub(crate) fn mark_mounted(&self) {
        self.mounted.once(self.began.elapsed());
    }

    /// A layer comes, for this pull or for another one. The last call counts.
    pub(crate) fn has(&self, diff_id: Digest, clocks: &Arc<Clocks>) {
        self.clocks().insert(diff_id, Arc::clone(clocks));
    }

    fn clocks(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Clocks>>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As of now.
    pub(crate) fn timing(&self, diff_ids: &[Digest]) -> ImageTiming {
        let (resolved, here, mounted) = (self.resolved.get(), self.here.get(), self.mounted.get());
        let between = |from: Option<Duration>, to: Option<Duration>| Some(to?.saturating_sub(from?));
        let clocks = self.clocks();
        let layer = |id: &Digest| match clocks.get(id) {
            Some(clocks) => clocks.timing(*id, self.began),
            None => LayerTiming {
                diff_id: *id,
                way: Way::Here,
                first_byte: None,
                last_byte: None,
                ended: None,
                spent: Spent::default(),
            },
        };
        ImageTiming {
            resolve: resolved,
            layers: between(resolved, here),
            mount: between(here, mounted),
            layers_timing: diff_ids.iter().map(layer).collect(),
        }
    }
}

/// 584 years of them fit.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX >> 1)
}
