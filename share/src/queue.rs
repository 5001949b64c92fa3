//! What is to be published or removed, waiting for its backend: bounded, in the background, one call at a time.
//!
//! Jobs of the same image go together, because a backend may keep an image's values in one place. What fails for a passing
//! reason is tried a few times, then dropped with a log line: it will be learned again.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use silk_model::{Class, Digest};
use tokio::{sync::Notify, task::JoinHandle, time::sleep};

use crate::{Answer, Backend, BackendError, Image, Item, Join, Key, Published, Query, share::Record};

/// Bytes of values that may wait for one backend: the largest images' together, and little enough beside a pull's buffers.
const MAX_BYTES: usize = 32 << 20;
/// Values and removals that may wait.
const MAX_JOBS: usize = 1024;
/// Waits before each try but the first: the first two outlast a restart, the last a failover, which takes 10 to 30 s with the usual
/// settings of Sentinel and of clouds.
const DELAYS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

pub(crate) struct Queue {
    waiting: Arc<Waiting>,
    worker: JoinHandle<()>,
    record: Arc<Record>,
    name: String,
}

#[derive(Default)]
struct Waiting {
    jobs: Mutex<(VecDeque<(Image, Job)>, usize)>,
    added: Notify,
}

enum Job {
    Publish(Item),
    Join(Join),
    Remove(Key, Digest),
}

/// All jobs of one image that waited.
struct Batch {
    image: Image,
    items: Vec<Item>,
    join: Option<Join>,
    removals: Vec<(Key, Digest)>,
}

// === impl Queue ===

impl Queue {
    /// Starts the worker on the current runtime; it ends with the queue.
    pub(crate) fn new(backend: Arc<dyn Backend>, record: Arc<Record>) -> Self {
        let waiting = Arc::new(Waiting::default());
        let name = backend.name();
        let worker = tokio::spawn(work(backend, Arc::clone(&waiting), Arc::clone(&record)));
        Self { waiting, worker, record, name }
    }

    /// Never waits: what does not fit is dropped.
    pub(crate) fn publish(&self, image: &Image, item: Item) {
        let key = item.key(image.manifest);
        if !self.waiting.push(image, Job::Publish(item)) {
            self.record.dropped(format_args!("{key} is not published to {}: too much waits already", self.name));
        }
    }

    /// Publishes the image's start profiles joined with what is there by then.
    pub(crate) fn join(&self, image: &Image, join: &Join) {
        if !self.waiting.push(image, Job::Join(Join::clone(join))) {
            let key = Key::Profile(image.manifest);
            self.record.dropped(format_args!("{key} is not published to {}: too much waits already", self.name));
        }
    }

    pub(crate) fn remove(&self, image: &Image, key: Key, tag: Digest) {
        if !self.waiting.push(image, Job::Remove(key, tag)) {
            self.record.dropped(format_args!("{key} is not removed from {}: too much waits already", self.name));
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

// === impl Waiting ===

impl Waiting {
    fn push(&self, image: &Image, job: Job) -> bool {
        let (jobs, bytes) = &mut *self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let size = job.size();
        // One that is larger than the bound still goes alone.
        if jobs.len() >= MAX_JOBS || (*bytes > 0 && *bytes + size > MAX_BYTES) {
            return false;
        }
        *bytes += size;
        jobs.push_back((image.clone(), job));
        self.added.notify_one();
        true
    }

    /// The image whose turn it is, and all that waits for it.
    fn pop(&self) -> Option<Batch> {
        let (jobs, bytes) = &mut *self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let image = jobs.front()?.0.clone();
        let mut batch = Batch { image, items: Vec::new(), join: None, removals: Vec::new() };
        let place = |image: &Image| (image.manifest, image.repository.as_ref().map(ToString::to_string));
        let mine = place(&batch.image);
        for (image, job) in std::mem::take(jobs) {
            if place(&image) != mine {
                jobs.push_back((image, job));
                continue;
            }
            *bytes -= job.size();
            match job {
                Job::Publish(item) => {
                    let key = item.key(image.manifest);
                    batch.items.retain(|other| other.key(image.manifest) != key);
                    // What was to be joined before is replaced, too.
                    batch.join = batch.join.filter(|_| !matches!(key, Key::Profile(_)));
                    batch.items.push(item);
                }
                Job::Join(join) => batch.join = Some(join),
                Job::Remove(key, tag) => batch.removals.push((key, tag)),
            }
        }
        Some(batch)
    }

    fn is_empty(&self) -> bool {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).0.is_empty()
    }
}

async fn work(backend: Arc<dyn Backend>, waiting: Arc<Waiting>, record: Arc<Record>) {
    loop {
        while waiting.is_empty() {
            waiting.added.notified().await;
        }
        sleep(backend.gathers()).await;
        let Some(batch) = waiting.pop() else { continue };
        let Batch { image, items, join, removals } = batch;
        for (key, tag) in removals {
            if let Err(error) = persist(|| backend.remove(&image, key, tag)).await {
                record.dropped(format_args!("{key} is not removed from {}: {error}", backend.name()));
            }
        }
        if !items.is_empty() {
            let keys = items.iter().map(|item| item.key(image.manifest));
            note(&*backend, &record, keys, persist(|| backend.publish(&image, &items)).await);
        }
        if let Some(join) = join {
            let keys = std::iter::once(Key::Profile(image.manifest));
            note(&*backend, &record, keys, persist(|| publish_joined(&*backend, &image, &join)).await);
        }
    }
}

fn note(
    backend: &dyn Backend,
    record: &Record,
    keys: impl Iterator<Item = Key>,
    outcome: Result<Published, BackendError>,
) {
    let dropped = |key: Key, error: &BackendError| {
        record.dropped(format_args!("{key} is not published to {}: {error}", backend.name()));
    };
    match outcome {
        Ok(Published { kept, refused }) => {
            record.published.fetch_add(kept, Ordering::Relaxed);
            refused.iter().for_each(|(key, error)| dropped(*key, error));
        }
        Err(error) => keys.for_each(|key| dropped(key, &error)),
    }
}

/// What is there is read just before: others publish, too, and what they know is not to be lost.
async fn publish_joined(backend: &dyn Backend, image: &Image, join: &Join) -> Result<Published, BackendError> {
    let Answer { profiles, trouble, is_away, .. } = backend.look_up(&Query::of_writer(image)).await;
    if is_away || trouble.is_some() {
        return Err(BackendError::Away(trouble.unwrap_or_else(|| "it was not asked what it has".into())));
    }
    match join(&profiles) {
        Some(joined) => backend.publish(image, &[Item::Profile(joined)]).await,
        None => Ok(Published::default()),
    }
}

/// Tries a few times as long as the reason may pass.
async fn persist<T, F>(call: impl Fn() -> F) -> Result<T, BackendError>
where
    F: Future<Output = Result<T, BackendError>>,
{
    for delay in DELAYS {
        match call().await {
            Err(error) if error.class() == Class::Transient => sleep(delay).await,
            done => return done,
        }
    }
    call().await
}

impl Job {
    fn size(&self) -> usize {
        match self {
            Self::Publish(item) => item.size(),
            Self::Join(_) | Self::Remove(..) => 0,
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Queue(of {})", self.name)
    }
}

#[cfg(test)]
mod tests;
