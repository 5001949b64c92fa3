//! Layers that are mounted before their bytes are here: names and random access are known, reads fetch what they hit, the
//! rest follows at full rate.
//!
//! A [`Lazy`] is one such layer: it answers reads ([`layer`]), fetches runs of spans ([`range`]), and becomes a whole and
//! proved layer or, when its index turns out to be no good, is streamed from the start ([`life`]). The [`scheduler`]
//! decides over all of them who fetches first.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use silk_model::{
    Class, Digest, Use,
    metrics::{Lie, METRICS},
};
use silk_registry::Repository;
use silk_share::{Found, Image, LayerKnowledge, Share};
use silk_store::{Known, Store, StoreError};
use tokio::task::AbortHandle;

use crate::{Config, ImageSpec, LayerSpec, Show, layer::Layers, spans, timing::Trip};

mod ahead;
mod buffers;
mod layer;
mod life;
mod over;
mod pieces;
mod range;
mod reads;
mod scheduler;
mod warm;

pub(crate) use ahead::Whose;
pub use layer::{Answer, Arrived, Lazy, ReadError};
pub use reads::Watch;
use reads::Watches;
use scheduler::Scheduler;
pub(crate) use scheduler::Starting;

/// Waits before a layer that could not be streamed either is tried again; the longest is for one whose blob is no good. Chosen: who
/// repairs a registry does not wait much longer to see whether it helped, and seven blobs an hour are no load.
const STREAM_AGAIN: Range<Duration> = Duration::from_secs(8)..Duration::from_secs(512);

/// All layers that are mounted with holes.
#[derive(Debug)]
pub struct Lazies {
    store: Arc<Store>,
    scheduler: Arc<Scheduler>,
    read_wait: Duration,
    range: u64,
    layers: Mutex<HashMap<Digest, Entry>>,
    watches: Arc<Watches>,
    /// Layers that are being opened, which may read all that is here of them: two images that want one open it once.
    opening: Mutex<HashSet<Digest>>,
    /// Told when one of them is.
    opened: Condvar,
}

#[derive(Debug)]
struct Entry {
    lazy: Arc<Lazy>,
    task: Option<AbortHandle>,
}

/// What a layer needs on its way to being whole.
#[derive(Debug, Clone)]
pub(crate) struct Road {
    pub(crate) lazies: Arc<Lazies>,
    pub(crate) streams: Arc<Layers>,
    pub(crate) show: Arc<dyn Show>,
    pub(crate) share: Arc<Share>,
    pub(crate) repository: Repository,
    pub(crate) image: Arc<ImageSpec>,
    /// The pull that opened it, if it is the image's own.
    pub(crate) trip: Option<Arc<Trip>>,
}

/// What somebody said of a layer, to be compared later.
#[derive(Debug, PartialEq, Eq)]
struct Said([Digest; 2]);

impl Said {
    fn of(known: &Known) -> Self {
        Self([Digest::of(&known.toc), Digest::of(&known.index)])
    }
}

/// As others are told.
pub(crate) fn knowledge(known: Known) -> LayerKnowledge {
    let Known { diff_id, blob, toc, index, .. } = known;
    LayerKnowledge { blob, diff_id, toc: toc.into(), index: index.into() }
}

impl Road {
    /// Readers of this layer saw names that are not its own. Whoever asks from now on waits for the right ones.
    fn names_lied(&self, lazy: &Lazy) {
        let diff_id = lazy.spec.diff_id;
        METRICS.lies.of(Lie::Names).one();
        tracing::error!(%diff_id, image = self.image.reference, "the names of a layer were wrong: containers that use it must be started again");
        self.distrust(lazy, "its names are not those of the layer");
        // It cannot be mounted until its own are there; who reads it, can.
        lazy.stream_instead("its names were wrong");
        self.show.renew(&diff_id, true);
        self.show.forget(&diff_id);
    }

    /// The layer was streamed because what was `said` of it led nowhere, and its blob was good. So that was wrong, and the truth is
    /// told in its place; unless it is what the blob has told now: then others sent bytes that were not the blob's.
    async fn judge(&self, lazy: &Lazy, said: Option<Said>, why: &str) {
        let (store, diff_id) = (Arc::clone(&self.lazies.store), lazy.spec.diff_id);
        let truth = tokio::task::spawn_blocking(move || store.known(&diff_id)).await;
        let Ok(Ok(truth)) = truth else { return };
        if said.is_some_and(|said| said == Said::of(&truth)) {
            tracing::warn!(%diff_id, why, "what was known of a layer is what its blob says: nobody lied");
            return;
        }
        METRICS.lies.of(Lie::Index).one();
        self.distrust(lazy, why);
        self.tell(lazy, truth);
    }

    /// What is known of the layer by now goes where what was wrong came from.
    fn tell(&self, lazy: &Lazy, truth: Known) {
        if lazy.learned.is_some() {
            let image = Image { repository: Some(self.repository.clone()), manifest: self.image.manifest };
            self.share.publish_layer(&image, knowledge(truth));
        }
    }

    /// Whoever gave names and index of the layer is not believed in this again.
    fn distrust(&self, lazy: &Lazy, why: &str) {
        if let Some(found) = &lazy.learned {
            let image = Image { repository: Some(self.repository.clone()), manifest: self.image.manifest };
            self.share.distrust(&image, found, why);
        }
    }
}

impl Lazies {
    /// None yet.
    pub fn new(store: Arc<Store>, config: &Config) -> Arc<Self> {
        Arc::new(Self {
            store,
            scheduler: Scheduler::new(config),
            read_wait: Duration::from_secs(config.read_wait_secs),
            range: u64::from(config.range_bytes.max(1)),
            layers: Mutex::default(),
            watches: Arc::default(),
            opening: Mutex::default(),
            opened: Condvar::new(),
        })
    }

    /// The layer, if it is mounted with holes or was a moment ago.
    pub fn get(&self, diff_id: &Digest) -> Option<Arc<Lazy>> {
        self.layers().get(diff_id).map(|entry| Arc::clone(&entry.lazy))
    }

    /// The store below.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Can the layer be mounted: is it whole, or filled as it is read?
    pub fn is_here(&self, diff_id: &Digest) -> bool {
        self.store.whole(diff_id) || self.size(diff_id).is_some()
    }

    /// Length of the layer's tar, if it can be mounted now although bytes are missing.
    pub fn size(&self, diff_id: &Digest) -> Option<u64> {
        self.get(diff_id).filter(|lazy| lazy.is_indexed()).map(|lazy| lazy.size())
    }

    /// Opens a layer that is known, and starts to fill it; `learned` says from whom, if it was just now. `true` when it can be mounted,
    /// `false` when it is not known well enough. Blocks for the disk.
    pub(crate) fn open(
        self: &Arc<Self>,
        spec: &LayerSpec,
        learned: Option<Found<()>>,
        road: &Road,
    ) -> Result<bool, StoreError> {
        let _alone = self.alone(spec.diff_id);
        if let Some(lazy) = self.get(&spec.diff_id) {
            if !lazy.is_of(&road.image.reference) {
                lazy.offer(road.repository.blob(spec.blob, spec.size));
            }
            return Ok(lazy.is_indexed());
        }
        if !self.store.is_known(&spec.diff_id, &spec.blob, spec.size) {
            return Ok(false);
        }
        let partial = match self.store.partial(spec.diff_id) {
            Ok(partial) => partial,
            // It was missing when its image's layers were looked through, and another pull has brought it since.
            Err(StoreError::Whole(_)) => return Ok(true),
            // It streams in already, or must now.
            Err(error) if matches!(error.class(), Class::Transient | Class::NotFound | Class::Corrupt) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let lazy = Lazy::new(layer::Parts {
            spec: spec.clone(),
            image: road.image.reference.clone(),
            learned,
            blob: road.repository.blob(spec.blob, spec.size),
            partial,
            lane: self.scheduler.lane(road.repository.registry()),
            read_wait: self.read_wait,
            range: self.range,
            span: spans::layer(&spec.diff_id, &spec.blob, spec.size, "filled"),
        });
        if let Some(trip) = &road.trip {
            trip.has(spec.diff_id, &lazy.clocks);
        }
        self.layers().insert(spec.diff_id, Entry { lazy: Arc::clone(&lazy), task: None });
        let task = lazy.runtime.spawn(live(Arc::clone(&lazy), road.clone())).abort_handle();
        if let Some(entry) = self.layers().get_mut(&spec.diff_id) {
            entry.task = Some(task);
        }
        Ok(true)
    }

    /// The right to open a layer. Blocks while others open it.
    fn alone(&self, diff_id: Digest) -> Opening<'_> {
        let opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.opened.wait_while(opening, |opening| opening.contains(&diff_id));
        free.unwrap_or_else(PoisonError::into_inner).insert(diff_id);
        Opening(self, diff_id)
    }

    /// All of them.
    pub fn list(&self) -> Vec<Digest> {
        self.layers().keys().copied().collect()
    }

    /// What is in use of the ranges that may be under way: that readers wait for, that starts touch, and others.
    pub(crate) fn ranges(&self) -> [Use; 3] {
        self.scheduler.now()
    }

    /// What is in use of the memory for bytes that are not decoded while containers start.
    pub(crate) fn held(&self) -> Use {
        self.scheduler.held()
    }

    /// How many layers are mounted with holes, their bytes that are here, and the reads that wait for others.
    pub fn count(&self) -> (u64, u64, u64) {
        let layers = self.layers();
        let lazies = || layers.values().map(|entry| &entry.lazy);
        (
            layers.len() as u64,
            lazies().map(|lazy| lazy.bytes_here()).sum(),
            lazies().map(|lazy| lazy.reads_waiting()).sum(),
        )
    }

    /// Stops to fill a layer; what is here stays for the next who opens it.
    pub fn stop(&self, diff_id: &Digest) -> Option<Arc<Lazy>> {
        let Entry { lazy, task } = self.layers().remove(diff_id)?;
        task.inspect(AbortHandle::abort);
        lazy.abandon();
        Some(lazy)
    }

    /// Stops to fill a layer and drops its bytes; what is known of it stays, unless that was just found to be no good. Blocks for the disk.
    pub fn give_up(&self, diff_id: &Digest) {
        let lied = self.get(diff_id).is_some_and(|lazy| !lazy.is_indexed());
        let Some(lazy) = self.stop(diff_id) else { return };
        if let Err(error) = lazy.partial.discard(lied) {
            tracing::warn!(%diff_id, %error, "could not drop the bytes of a layer");
        }
    }

    fn remove(&self, diff_id: &Digest) {
        self.layers().remove(diff_id);
    }

    fn layers(&self) -> MutexGuard<'_, HashMap<Digest, Entry>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A layer that is being opened.
struct Opening<'l>(&'l Lazies, Digest);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let Self(lazies, diff_id) = self;
        lazies.opening.lock().unwrap_or_else(PoisonError::into_inner).remove(diff_id);
        lazies.opened.notify_all();
    }
}

/// Waits, at most until another image has brought the layer.
async fn unless_whole(store: &Store, diff_id: &Digest, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end && !store.whole(diff_id) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A layer's life while it has holes.
async fn live(lazy: Arc<Lazy>, road: Road) {
    let Err(fault) = lazy.fill(&road).await else { return };
    let LayerSpec { diff_id, blob, .. } = lazy.spec;
    let store = Arc::clone(road.lazies.store());
    let from = store.record(&diff_id).map(|r| r.from).unwrap_or_default();
    tracing::error!(%diff_id, %blob, from, %fault, "what was known of a layer is no good: it is streamed instead");
    lazy.stream_instead(&fault.to_string());
    let forgotten = tokio::task::spawn_blocking({
        let (lazy, road) = (Arc::clone(&lazy), road.clone());
        move || {
            road.show.renew(&diff_id, true);
            let said = road.lazies.store.known(&diff_id).ok().map(|known| Said::of(&known));
            (said, lazy.partial.discard(true))
        }
    });
    // Unmounting may wait for them.
    let forgotten = lazy.while_readers_wait(forgotten, || None).await;
    let said = match forgotten {
        Ok((said, Ok(()))) => said,
        Ok((said, Err(error))) => {
            tracing::warn!(%diff_id, %error, "could not forget what was known of a layer");
            said
        }
        Err(_) => None,
    };
    lazy.give_up();
    let mut again = STREAM_AGAIN.start;
    loop {
        // Its hosts may be others than when the layer was opened.
        let repository = road.repository.renewed().await.ok().flatten();
        let repository = repository.as_ref().unwrap_or(&road.repository);
        let stream = road.streams.pull(&lazy.spec, repository, road.trip.as_deref());
        let received = || road.streams.get(&diff_id).map(|job| job.counts.received());
        match lazy.while_readers_wait(stream, received).await {
            Ok(()) => {
                road.judge(&lazy, said, &fault.to_string()).await;
                break;
            }
            Err(error) => {
                let cause = error.to_string();
                let error = lazy.refuse(error.class(), &error);
                tracing::error!(%error, again = again.as_secs(), "a layer does not come");
                match error.class {
                    // Who reads goes on waiting, for its time.
                    Class::Transient | Class::NoSpace | Class::Denied => {
                        lazy.stream_failed(&error, &cause);
                        lazy.while_readers_wait(tokio::time::sleep(STREAM_AGAIN.start), || None).await;
                    }
                    class => {
                        lazy.not_streamed(&error);
                        lazy.while_readers_fail(&error, unless_whole(&store, &diff_id, again)).await;
                        if class == Class::Corrupt {
                            // Each try fetches the blob to its end, and nothing says that it would be another one now.
                            again = (again * 2).min(STREAM_AGAIN.end);
                        }
                    }
                }
            }
        }
    }
    match File::open(store.layer_path(&diff_id).join("data")) {
        Ok(file) => lazy.streamed(file),
        Err(error) => lazy.not_streamed(&lazy.refuse(Class::Internal, &error)),
    }
    road.lazies.remove(&diff_id);
    // Not before: it waits for the reads that have just been answered.
    let forgotten = tokio::task::spawn_blocking(move || road.show.forget(&diff_id)).await;
    if let Err(error) = forgotten {
        tracing::error!(%diff_id, %error, "the kernel could not be told of a layer");
    }
}
