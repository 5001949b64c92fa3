//! One layer on its way: fetched once, however many images want it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use silk_layer::{index::Index, toc::Toc};
use silk_model::{
    Digest, Use,
    metrics::{Arrival, Class, METRICS},
};
use silk_registry::Repository;
use silk_store::{Facts, LayerWriter, Store, StoreError};
use tokio::sync::watch;
use tracing::Instrument as _;

use crate::{
    Config, LayerError, LayerSpec,
    budget::{Budget, Counts, Place},
    road::Sink,
    sources::Sources,
    spans,
    timing::{Part, Trip},
};

/// How a layer's pull ended; `None` while it goes on.
pub(crate) type Outcome = Option<Result<(), Arc<LayerError>>>;

/// A layer that is being pulled or waits for its turn.
#[derive(Debug)]
pub(crate) struct LayerJob {
    pub(crate) counts: Counts,
    started: Mutex<Option<Instant>>,
    sources: Arc<Sources>,
    outcome: watch::Sender<Outcome>,
}

impl LayerJob {
    /// The registry host, and how long it has been sending; `None` while the layer waits for its turn.
    pub(crate) fn under_way(&self) -> Option<(String, Duration)> {
        let started = (*lock(&self.started))?;
        Some((self.sources.first().host(), started.elapsed()))
    }

    /// Wrong bytes came: is there anybody who may have the right ones?
    fn is_elsewhere(&self) -> bool {
        if self.sources.come_apart() {
            return true;
        }
        let blob = self.sources.first();
        let (has_hosts, was_last) = (blob.distrust(), self.sources.failed(&blob));
        has_hosts || !was_last
    }
}

/// All layers on their way.
#[derive(Debug)]
pub(crate) struct Layers {
    store: Arc<Store>,
    budget: Budget,
    jobs: Mutex<HashMap<Digest, Arc<LayerJob>>>,
}

/// How many hosts of a repository may send wrong bytes of a blob before its layer fails. Chosen: `hosts.toml` names some mirrors at most.
const HOSTS: u32 = 4;

impl Layers {
    pub(crate) fn new(store: Arc<Store>, config: Config) -> Arc<Self> {
        Arc::new(Self { store, budget: Budget::new(config), jobs: Mutex::default() })
    }

    /// What is in use of the budget.
    pub(crate) fn budget(&self) -> [Use; 3] {
        self.budget.now()
    }

    /// How many wait for their turn, and how many are under way.
    pub(crate) fn count(&self) -> (u64, u64) {
        let jobs = lock(&self.jobs);
        let under_way = jobs.values().filter(|job| job.under_way().is_some()).count();
        ((jobs.len() - under_way) as u64, under_way as u64)
    }

    /// The job of a layer, when it has one.
    pub(crate) fn get(&self, diff_id: &Digest) -> Option<Arc<LayerJob>> {
        lock(&self.jobs).get(diff_id).cloned()
    }

    /// Waits until the layer is whole. Joins the pull that is under way, else starts one from `repository`; `trip` gets its clocks.
    pub(crate) async fn pull(
        self: &Arc<Self>,
        spec: &LayerSpec,
        repository: &Repository,
        trip: Option<&Trip>,
    ) -> Result<(), Arc<LayerError>> {
        loop {
            let (mut outcome, mine) = {
                let mut jobs = lock(&self.jobs);
                if self.store.whole(&spec.diff_id) {
                    return Ok(());
                }
                let (watcher, mine) = match jobs.get(&spec.diff_id) {
                    Some(job) => {
                        // Its registry may be slow.
                        job.sources.keep(repository.blob(spec.blob, spec.size));
                        (job.outcome.subscribe(), false)
                    }
                    None => (self.start(&mut jobs, spec, repository), true),
                };
                if let (Some(trip), Some(job)) = (trip, jobs.get(&spec.diff_id)) {
                    trip.has(spec.diff_id, &job.counts.clocks);
                }
                (watcher, mine)
            };
            let ended = outcome.wait_for(Option::is_some).await.map(|o| o.clone());
            match ended {
                Ok(Some(Err(error))) if mine => return Err(error),
                Ok(Some(Ok(()))) => return Ok(()),
                // Another image's pull of this layer failed, perhaps for reasons of its registry: try ours.
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn start(
        self: &Arc<Self>,
        jobs: &mut MutexGuard<'_, HashMap<Digest, Arc<LayerJob>>>,
        spec: &LayerSpec,
        repository: &Repository,
    ) -> watch::Receiver<Outcome> {
        let (outcome, watcher) = watch::channel(None);
        let job = Arc::new(LayerJob {
            counts: Counts::default(),
            started: Mutex::default(),
            sources: Sources::new(repository.blob(spec.blob, spec.size)),
            outcome,
        });
        jobs.insert(spec.diff_id, Arc::clone(&job));
        let (layers, spec) = (Arc::clone(self), spec.clone());
        let place = self.budget.place();
        let span = spans::layer(&spec.diff_id, &spec.blob, spec.size, "streamed");
        tokio::spawn(async move {
            // In a task of its own: whatever happens there, those who wait are told.
            let run = tokio::spawn({
                let (layers, job, spec) = (Arc::clone(&layers), Arc::clone(&job), spec.clone());
                async move { layers.run(&job, place, &spec).await }.instrument(span.clone())
            });
            let result = run.await.unwrap_or(Err(LayerError::Panicked));
            job.counts.clocks.end();
            spans::ended(&span, "whole", result.as_ref().map(drop));
            match &result {
                Ok(()) => METRICS.layer_pulls.of(Arrival::Streamed).one(),
                Err(LayerError::Abandoned) => {}
                Err(_) => METRICS.layer_pulls.of(Arrival::Failed).one(),
            }
            if let Err(error) = &result {
                tracing::warn!(diff_id = %spec.diff_id, blob = %spec.blob, %error, "a layer did not arrive");
            }
            lock(&layers.jobs).remove(&spec.diff_id);
            job.outcome.send_replace(Some(result.map_err(Arc::new)));
        });
        watcher
    }

    async fn run(
        self: &Arc<Self>,
        job: &Arc<LayerJob>,
        place: impl Future<Output = Result<Place, LayerError>>,
        spec: &LayerSpec,
    ) -> Result<(), LayerError> {
        let asked = Instant::now();
        let place = place.await?;
        job.counts.clocks.add(Part::Turn, asked.elapsed());
        if job.outcome.receiver_count() == 0 {
            // The image failed while this layer waited for its turn: nobody wants it now.
            return Err(LayerError::Abandoned);
        }
        if self.store.whole(&spec.diff_id) {
            // It was filled meanwhile, by what somebody said of it later.
            return Ok(());
        }
        let (began, diff_id) = (Instant::now(), spec.diff_id);
        *lock(&job.started) = Some(began);
        let mut place = Some(place);
        for tries_left in (0..HOSTS).rev() {
            let place = match place.take() {
                Some(place) => place,
                None => self.budget.place().await?,
            };
            let sources = Arc::clone(&job.sources);
            let sink = {
                let (store, sources) = (Arc::clone(&self.store), Arc::clone(&sources));
                move || Ok(Stored { writer: writer(&store, diff_id)?, sources, began })
            };
            match self.budget.stream(place, spec, sources, job.counts.clone(), sink).await {
                Err(LayerError::Store(StoreError::Whole(_))) => return Ok(()),
                // A mirror's copy is damaged, or another repository's: another host may have a good one.
                Err(error @ LayerError::WrongBlob { .. }) if job.is_elsewhere() && tries_left > 0 => {
                    tracing::warn!(%diff_id, %error, "a layer is fetched again, from another host");
                }
                streamed => {
                    streamed?;
                    break;
                }
            }
        }
        tracing::info!(
            %diff_id, bytes = job.counts.written(), seconds = began.elapsed().as_secs_f64(),
            "a layer is whole and proved"
        );
        Ok(())
    }
}

/// How long a layer that is being given up may keep others from writing it: its mounts and files go meanwhile.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// The right to write a layer. Blocks.
fn writer(store: &Arc<Store>, diff_id: Digest) -> Result<LayerWriter, StoreError> {
    let began = Instant::now();
    loop {
        match store.writer(diff_id) {
            Err(StoreError::Busy(_)) if began.elapsed() < GIVEN_UP => thread::sleep(GIVEN_UP / 100),
            outcome => return outcome,
        }
    }
}

/// The store, as the end of a layer's road.
struct Stored {
    writer: LayerWriter,
    sources: Arc<Sources>,
    began: Instant,
}

impl Sink for Stored {
    type Kept = ();

    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        METRICS.arrived.of(Class::Stream).add(bytes.len() as u64);
        self.writer.append(bytes)
    }

    fn finish(self, toc: &Toc, index: &Index) -> Result<(), StoreError> {
        let Self { writer, sources, began } = self;
        let blob = sources.first();
        let facts = Facts {
            size: toc.size(),
            entries: toc.count(),
            blob: blob.digest(),
            blob_size: blob.size(),
            source: blob.host(),
            millis: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        writer.finish(toc, index, facts)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
