//! One layer on its way: fetched once, however many images want it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use silk_model::Digest;
use silk_registry::Repository;
use silk_store::{Facts, Store};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
};

use crate::{
    Config, LayerError, LayerSpec,
    fetch::{self, Window},
    inlet::{Inlet, Turn},
    road,
};

/// Layers that may be under way at once, those included whose sender is silent: each has a descriptor, two threads and up to
/// three buffers.
const OPEN: usize = 64;

/// How a layer's pull ended; `None` while it goes on.
pub(crate) type Outcome = Option<Result<(), Arc<LayerError>>>;

/// A layer that is being pulled or waits for its turn.
#[derive(Debug)]
pub(crate) struct LayerJob {
    /// Compressed bytes received.
    pub(crate) received: Arc<AtomicU64>,
    /// Uncompressed bytes stored.
    pub(crate) written: AtomicU64,
    started: Mutex<Option<Instant>>,
    source: Mutex<String>,
    outcome: watch::Sender<Outcome>,
}

impl LayerJob {
    /// The registry host, and how long it has been sending; `None` while the layer waits for its turn.
    pub(crate) fn under_way(&self) -> Option<(String, Duration)> {
        let started = (*lock(&self.started))?;
        Some((lock(&self.source).clone(), started.elapsed()))
    }
}

/// All layers on their way.
#[derive(Debug)]
pub(crate) struct Layers {
    store: Arc<Store>,
    config: Config,
    window: Window,
    /// One permit a layer that is decoded. First come, first served: images queue their layers largest first. A layer whose
    /// sender is silent gives its turn up for that time.
    turns: Arc<Semaphore>,
    /// One permit a layer that is under way at all, silent ones too.
    open: Arc<Semaphore>,
    jobs: Mutex<HashMap<Digest, Arc<LayerJob>>>,
}

impl Layers {
    pub(crate) fn new(store: Arc<Store>, config: Config) -> Arc<Self> {
        let window = Window::new(&config);
        let turns = Arc::new(Semaphore::new(config.decoders()));
        let open = Arc::new(Semaphore::new(OPEN));
        Arc::new(Self { store, config, window, turns, open, jobs: Mutex::default() })
    }

    /// The job of a layer, when it has one.
    pub(crate) fn get(&self, diff_id: &Digest) -> Option<Arc<LayerJob>> {
        lock(&self.jobs).get(diff_id).cloned()
    }

    /// Waits until the layer is whole. Joins the pull that is under way, else starts one from `repository`.
    pub(crate) async fn pull(
        self: &Arc<Self>,
        spec: &LayerSpec,
        repository: &Repository,
    ) -> Result<(), Arc<LayerError>> {
        loop {
            let (mut outcome, mine) = {
                let mut jobs = lock(&self.jobs);
                if self.store.whole(&spec.diff_id) {
                    return Ok(());
                }
                match jobs.get(&spec.diff_id) {
                    Some(job) => (job.outcome.subscribe(), false),
                    None => (self.start(&mut jobs, spec, repository), true),
                }
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
            received: Arc::default(),
            written: AtomicU64::new(0),
            started: Mutex::default(),
            source: Mutex::default(),
            outcome,
        });
        jobs.insert(spec.diff_id, Arc::clone(&job));
        let (layers, spec, repository) = (Arc::clone(self), spec.clone(), repository.clone());
        tokio::spawn(async move {
            // In a task of its own: whatever happens there, those who wait are told.
            let run = tokio::spawn({
                let (layers, job, spec) = (Arc::clone(&layers), Arc::clone(&job), spec.clone());
                async move { layers.run(&job, &spec, &repository).await }
            });
            let result = run.await.unwrap_or(Err(LayerError::Panicked));
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
        spec: &LayerSpec,
        repository: &Repository,
    ) -> Result<(), LayerError> {
        let closed = |_| LayerError::Panicked;
        let _open = Arc::clone(&self.open).acquire_owned().await.map_err(closed)?;
        let permit = Arc::clone(&self.turns).acquire_owned().await.map_err(closed)?;
        if job.outcome.receiver_count() == 0 {
            // The image failed while this layer waited for its turn: nobody wants it now.
            return Err(LayerError::Abandoned);
        }
        let began = Instant::now();
        let blob = repository.blob(spec.blob, spec.size);
        *lock(&job.started) = Some(began);
        *lock(&job.source) = blob.host();
        let pieces = fetch::start(blob.clone(), spec.size, self.window.clone(), Arc::clone(&job.received));
        let turn = Turn { permit: Some(permit), turns: Arc::clone(&self.turns), runtime: Handle::current() };
        let work = road::Job { blob: spec.blob, blob_size: spec.size, limit: self.config.decoded_limit(spec.size) };
        let (store, job, diff_id) = (Arc::clone(&self.store), Arc::clone(job), spec.diff_id);
        tokio::task::spawn_blocking(move || {
            let writer = store.writer(diff_id)?;
            let facts = |toc: &silk_layer::toc::Toc| Facts {
                size: toc.size,
                entries: toc.entries.len() as u64,
                blob: work.blob,
                blob_size: work.blob_size,
                source: blob.host(),
                millis: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            };
            road::run(work, Inlet::new(pieces, turn), writer, &job.written, facts)?;
            tracing::info!(
                %diff_id, bytes = job.written.load(Ordering::Relaxed), seconds = began.elapsed().as_secs_f64(),
                "a layer is whole and proved"
            );
            Ok(())
        })
        .await
        .unwrap_or(Err(LayerError::Panicked))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
