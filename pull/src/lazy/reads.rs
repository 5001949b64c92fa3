//! Which bytes of layers are read while somebody watches, in the order of the reads: what a start touches where every read
//! comes by.

use std::{
    collections::HashSet,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use silk_layer::profile::{GRAIN, MAX_GRAINS};
use silk_model::Digest;

use super::Lazies;

/// First reads of a grain that one watch takes: those of a profile.
const MAX: usize = MAX_GRAINS as usize;

/// All who watch.
#[derive(Debug, Default)]
pub(super) struct Watches {
    /// Reads look at this only while nobody watches.
    count: AtomicUsize,
    watches: Mutex<Vec<Weak<Log>>>,
}

#[derive(Debug)]
struct Log {
    layers: HashSet<Digest>,
    reads: Mutex<Reads>,
}

#[derive(Debug, Default)]
struct Reads {
    seen: HashSet<(Digest, u64)>,
    new: Vec<(Digest, Range<u64>)>,
}

/// Takes down reads of some layers, as long as it lives.
#[derive(Debug)]
pub struct Watch {
    log: Arc<Log>,
    all: Arc<Watches>,
}

impl Watch {
    /// What was read since the last call, by its first touches, in order.
    pub fn take(&self) -> Vec<(Digest, Range<u64>)> {
        std::mem::take(&mut lock(&self.log.reads).new)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watches = lock(&self.all.watches);
        watches.retain(|log| !log.ptr_eq(&Arc::downgrade(&self.log)));
        self.all.count.store(watches.len(), Ordering::Relaxed);
    }
}

impl Lazies {
    /// Takes down reads of these layers from now on.
    pub fn watch(&self, layers: impl IntoIterator<Item = Digest>) -> Watch {
        let log = Arc::new(Log { layers: layers.into_iter().collect(), reads: Mutex::default() });
        let mut watches = lock(&self.watches.watches);
        watches.push(Arc::downgrade(&log));
        self.watches.count.store(watches.len(), Ordering::Relaxed);
        drop(watches);
        Watch { log, all: Arc::clone(&self.watches) }
    }

    /// Somebody reads a layer's data, whether it is here or not: whoever serves reads says so. Never waits.
    pub fn note_read(&self, layer: &Digest, offset: u64, len: usize) {
        if self.watches.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        for log in lock(&self.watches.watches).iter().filter_map(Weak::upgrade) {
            if log.layers.contains(layer) {
                lock(&log.reads).add(layer, offset..offset.saturating_add(len as u64));
            }
        }
    }
}

impl Reads {
    fn add(&mut self, layer: &Digest, bytes: Range<u64>) {
        let mut new = false;
        for grain in bytes.start / GRAIN..bytes.end.div_ceil(GRAIN) {
            if self.seen.len() >= MAX {
                return;
            }
            new |= self.seen.insert((*layer, grain));
        }
        if new {
            self.new.push((*layer, bytes));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
