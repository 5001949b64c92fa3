//! Images: claimed, pulled, waited for, tried again.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use silk_model::{
    Digest,
    metrics::{Kind, Label as _},
};
use silk_registry::{Reference, Registry, Repository};
use silk_share::Share;
use silk_store::{LayerRecord, Profiles, Store, StoreError};
use tokio::sync::{OnceCell, watch};
use tracing::Instrument as _;

use crate::{
    Config, Contents, ImageError, ImageSpec, LayerError, Refused, ShowError,
    layer::Layers,
    lazy::Lazies,
    records::{Records, key},
    resolve, settle, spans,
    timing::Trip,
};

mod begin;
mod broken;
mod claim;
mod known;
mod others;
mod pull;
mod start;
mod status;
pub use broken::Broken;
pub use claim::{Caller, Claim, Claimed};
pub use status::{Budgets, ImageStatus, LayerStatus, PullTiming};

/// A claim is followed by its snapshot within milliseconds; a minute covers a node that is starved of everything.
const SETTLED: Duration = Duration::from_secs(60);

/// How long the cause of a failed pull stays in `silk status` after containerd gave the image up: long enough for a person who
/// was told by kubelet.
const FAILURE_KEPT: Duration = Duration::from_secs(600);

/// What the puller needs of others.
#[derive(Debug, Clone)]
pub struct Seams {
    /// Manifests and configurations.
    pub contents: Arc<dyn Contents>,
    /// Makes layers mountable.
    pub show: Arc<dyn Show>,
    /// What other nodes know.
    pub share: Arc<Share>,
}

/// Shows a chain of whole layers, or says why it cannot be shown.
pub trait Show: fmt::Debug + Send + Sync + 'static {
    /// Can this kernel show layers at all? The reason when it cannot.
    fn possible(&self) -> Result<(), String>;

    /// Can it show layers whose bytes are not all here?
    fn lazily(&self) -> bool;

    /// Mounts the layers of a chain, base first. Blocks; idempotent.
    fn show(&self, diff_ids: &[Digest]) -> Result<(), ShowError>;

    /// A layer changed its ground: it became whole, or `lied`, so that what was made of its names is wrong. New mounts are made
    /// afresh; overlays that stand on the old ones keep them. Blocks.
    fn renew(&self, diff_id: &Digest, lied: bool);

    /// Takes away the old mounts that others took the place of at least so long ago. Blocks.
    fn put_away(&self, age: Duration);

    /// Brings bytes of a layer's served data, which are here, into the kernel's page cache before anybody reads them. Says whether some
    /// may be there now, so that their readers do not ask for them. Blocks.
    fn warm(&self, diff_id: &Digest, bytes: &[Range<u64>]) -> bool;

    /// What the kernel keeps of a layer's served data may be wrong. Waits for reads of it that are under way. Blocks.
    fn forget(&self, diff_id: &Digest);
}

/// How far an image is.
#[derive(Debug, Clone)]
pub enum State {
    /// Known, not asked for since the daemon started.
    Idle,
    /// On its way since then.
    Pulling(Instant),
    /// Mountable: each layer is whole and proved, or known and filled as it is read; how long that took.
    Ready(Duration),
    /// Not here, and why.
    Failed(Failure),
}

/// A pull that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Why.
    pub error: ImageError,
    at: Instant,
    in_a_row: u32,
}

#[derive(Debug)]
struct Image {
    spec: OnceCell<Arc<ImageSpec>>,
    state: watch::Sender<State>,
    /// Silk said yes once; until then the entry is only a claim being decided.
    accepted: AtomicBool,
    /// Snapshots of it were there when the janitor last looked or a pull waited: once they are gone, so is the image.
    held: AtomicBool,
    /// When containerd last prepared one of its layers: the snapshot of a claim comes a moment after it.
    claimed: Mutex<Instant>,
    /// Other images with the same layers, the latest first.
    others: Mutex<Vec<Arc<ImageSpec>>>,
    /// There is one that no pull has tried yet: no reason for a backoff.
    untried: AtomicBool,
    /// What its last pull had to do.
    kind: Mutex<Kind>,
    /// Where the time of that pull goes.
    trip: Mutex<Option<Arc<Trip>>>,
    /// What others know of its layers, asked for the pull that is about to begin.
    asked: Mutex<Option<tokio::task::JoinHandle<known::Asked>>>,
}

impl Image {
    fn new(spec: Option<ImageSpec>) -> Arc<Self> {
        let accepted = AtomicBool::new(spec.is_some());
        let spec = spec.map_or_else(OnceCell::new, |spec| OnceCell::new_with(Some(Arc::new(spec))));
        let claimed = Mutex::new(Instant::now());
        // One from before a restart has its snapshot, or never will.
        let (state, held) = (watch::Sender::new(State::Idle), AtomicBool::new(spec.initialized()));
        let (others, untried) = (Mutex::default(), AtomicBool::new(false));
        let (kind, trip, asked) = (Mutex::new(Kind::Here), Mutex::default(), Mutex::default());
        Arc::new(Self { spec, state, accepted, held, claimed, others, untried, kind, trip, asked })
    }

    /// A pull that has to begin again had to do the most of it.
    fn had_to(&self, kind: Kind) {
        let mut most = lock(&self.kind);
        if kind.index() < most.index() {
            *most = kind;
        }
    }

    fn is_wanted(&self) -> bool {
        match *self.state.borrow() {
            State::Failed(_) => lock(&self.claimed).elapsed() <= SETTLED,
            State::Idle | State::Pulling(_) | State::Ready(_) => true,
        }
    }
}

/// Pulls images, each layer once. Cheap to share behind an [`Arc`].
#[derive(Debug)]
pub struct Puller {
    config: Config,
    registry: Registry,
    store: Arc<Store>,
    layers: Arc<Layers>,
    lazies: Arc<Lazies>,
    seams: Seams,
    records: Records,
    profiles: Profiles,
    images: Mutex<HashMap<String, Arc<Image>>>,
    refusals: Mutex<VecDeque<status::Refusal>>,
}

impl Puller {
    /// A puller that knows the images claimed before the daemon's last stop; none is started. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn new(config: Config, registry: Registry, lazies: Arc<Lazies>, seams: Seams) -> Result<Arc<Self>, StoreError> {
        let store = Arc::clone(lazies.store());
        settle::watch(&store);
        let (records, specs) = Records::open(store.database())?;
        let profiles = Profiles::open(store.database())?;
        let images =
            specs.into_iter().map(|s| (key(&s.manifest, &s.reference), Image::new(Some(s)))).collect::<HashMap<_, _>>();
        Ok(Arc::new(Self {
            layers: Layers::new(Arc::clone(&store), config.clone()),
            config,
            registry,
            store,
            lazies,
            seams,
            records,
            profiles,
            images: Mutex::new(images),
            refusals: Mutex::default(),
        }))
    }

    /// Takes a layer that containerd prepares, and starts its image if it is not on its way. The first claim of an image
    /// may take [`Config::first_contact_millis`]; later ones do no I/O.
    ///
    /// # Errors
    /// Why silk leaves the image to containerd.
    pub async fn claim(self: &Arc<Self>, claim: Claim) -> Result<Claimed, Refused> {
        let outcome = self.try_claim(&claim).await;
        if let Err(reason) = &outcome {
            self.drop_undecided();
            self.refuse(&claim, reason.kind(), reason);
        }
        outcome
    }

    async fn try_claim(self: &Arc<Self>, claim: &Claim) -> Result<Claimed, Refused> {
        let began = Instant::now();
        self.seams.show.possible().map_err(Refused::Kernel)?;
        let name = key(&claim.manifest, &claim.reference);
        let image = {
            let mut images = lock(&self.images);
            let image = images.entry(name).or_insert_with(|| Image::new(None));
            *lock(&image.claimed) = Instant::now();
            image.held.store(false, Ordering::Relaxed);
            Arc::clone(image)
        };
        let spec = image
            .spec
            .get_or_try_init(async || {
                let spec = resolve::resolve(&self.seams.contents, &claim.namespace, &claim.reference, &claim.manifest);
                spec.instrument(spans::part!("resolve")).await.map(Arc::new)
            })
            .await;
        let spec = Arc::clone(spec?);
        let claimed = claim.fits(&spec)?;
        let here = self.here(&spec);
        let settled = match *image.state.borrow() {
            State::Pulling(_) => true,
            State::Ready(_) => here,
            State::Idle | State::Failed(_) => false,
        };
        if !settled {
            let whole = spec.layers.iter().all(|layer| self.store.whole(&layer.diff_id));
            // Where nothing of it is silk's yet.
            if spec.layers[..claim.below].iter().all(|layer| self.lazies.is_here(&layer.diff_id))
                && let Some(why) = image.shut_out(here, whole)
            {
                return Err(Refused::Registry(why));
            }
            if !here {
                let ahead = self.ask_ahead(&image, &spec).await;
                self.first_contact(&spec).instrument(spans::part!("first contact")).await?;
                // The pull takes the answer.
                std::mem::forget(ahead);
            }
            image.accepted.store(true, Ordering::Relaxed);
            self.start(&image, &spec, Some(began));
            // Synced while the pull begins: containerd's Prepare has no time for a slow disk, and a daemon that is killed
            // before it only loses the head start.
            let (puller, spec) = (Arc::clone(self), Arc::clone(&spec));
            tokio::task::spawn_blocking(move || puller.remember(&spec));
        }
        self.accepts(claim);
        Ok(claimed)
    }

    async fn repository(&self, reference: &str) -> Result<Repository, LayerError> {
        let reference: Reference = reference.parse()?;
        Ok(self.registry.repository(&reference).await?)
    }

    /// Can every layer be mounted?
    fn here(&self, spec: &ImageSpec) -> bool {
        spec.layers.iter().all(|layer| self.lazies.is_here(&layer.diff_id))
    }

    fn find(&self, manifest: &Digest, reference: &str) -> Option<(Arc<Image>, Arc<ImageSpec>)> {
        let image = lock(&self.images).get(&key(manifest, reference)).cloned()?;
        let spec = Arc::clone(image.spec.get()?);
        Some((image, spec))
    }

    /// Waits until the image is ready. Starts its pull when it is neither here nor on its way, after a failure with
    /// backoff, or at once when the caller's pull holds another image with the same layers. Dropping the future leaves the
    /// pull going for others.
    ///
    /// # Errors
    /// Why the pull failed.
    pub async fn ready(
        self: &Arc<Self>,
        manifest: &Digest,
        reference: &str,
        caller: &Caller,
    ) -> Result<(), ImageError> {
        let (image, spec) = self.find(manifest, reference).ok_or_else(|| ImageError::Unknown(reference.to_owned()))?;
        image.held.store(true, Ordering::Relaxed);
        let mut state = image.state.subscribe();
        let now = state.borrow_and_update().clone();
        let mut joined = false;
        match now {
            State::Ready(_) if self.here(&spec) => return Ok(()),
            State::Pulling(_) => joined = true,
            State::Failed(failure) => {
                self.look_for_others(&image, &spec, caller).await;
                if let Some(left) = self.backoff(&image, &failure) {
                    tokio::time::sleep(left).await;
                }
                self.start(&image, &spec, None);
            }
            State::Idle | State::Ready(_) => {
                self.look_for_others(&image, &spec, caller).await;
                self.start(&image, &spec, None);
            }
        }
        loop {
            let now = state.borrow_and_update().clone();
            match now {
                State::Ready(_) => return Ok(()),
                State::Failed(failure) => {
                    // It may have begun without knowing what this caller brings.
                    if !std::mem::take(&mut joined) || !self.look_for_others(&image, &spec, caller).await {
                        return Err(failure.error);
                    }
                    self.start(&image, &spec, None);
                    continue;
                }
                State::Idle | State::Pulling(_) => {}
            }
            // The sender lives in `image`, which this function holds.
            let _ = state.changed().await;
        }
    }

    /// Waits for the lowest `count` layers only, whatever becomes of those above: another image that has them too must not fail
    /// for this one's sake.
    ///
    /// # Errors
    /// Why one of them did not arrive.
    pub async fn ready_below(
        self: &Arc<Self>,
        manifest: &Digest,
        reference: &str,
        count: usize,
        caller: &Caller,
    ) -> Result<(), ImageError> {
        let (image, spec) = self.find(manifest, reference).ok_or_else(|| ImageError::Unknown(reference.to_owned()))?;
        let failed = matches!(*image.state.borrow(), State::Failed(_));
        if failed {
            self.look_for_others(&image, &spec, caller).await;
        }
        self.state(manifest, reference)?;
        let outcome = self.pull(&image, &spec, count, None).await;
        if outcome.is_err() && self.look_for_others(&image, &spec, caller).await {
            return self.pull(&image, &spec, count, None).await;
        }
        outcome
    }

    /// How far the image is, without waiting. One that failed and whose backoff is over, or that lost a layer, is started
    /// again.
    ///
    /// # Errors
    /// [`ImageError::Unknown`].
    pub fn state(self: &Arc<Self>, manifest: &Digest, reference: &str) -> Result<State, ImageError> {
        let (image, spec) = self.find(manifest, reference).ok_or_else(|| ImageError::Unknown(reference.to_owned()))?;
        let now = image.state.borrow().clone();
        match &now {
            State::Pulling(_) => {}
            State::Ready(_) if self.here(&spec) => {}
            State::Failed(failure) if self.backoff(&image, failure).is_some() => {}
            State::Idle | State::Ready(_) | State::Failed(_) => self.start(&image, &spec, None),
        }
        Ok(now)
    }

    /// The layers of the images that silk knows: those that snapshots use, and those about to be. A failed image keeps
    /// none once its claim is old.
    pub fn wanted(&self) -> HashSet<Digest> {
        self.wanted_chains().into_iter().flatten().collect()
    }

    /// Is it one of them?
    pub fn wants(&self, diff_id: &Digest) -> bool {
        let images = lock(&self.images);
        let mut specs = images.values().filter(|i| i.is_wanted()).filter_map(|i| i.spec.get());
        specs.any(|spec| spec.layers.iter().any(|layer| layer.diff_id == *diff_id))
    }

    /// The same, image by image, base first.
    pub fn wanted_chains(&self) -> Vec<Vec<Digest>> {
        let images = lock(&self.images);
        images.values().filter(|i| i.is_wanted()).filter_map(|i| i.spec.get()).map(|spec| spec.diff_ids()).collect()
    }

    /// Forgets images that `keep` does not hold, that are not on their way and were not claimed within the last minute; a
    /// failed one is kept longer, so that the operator finds its cause.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn retain(&self, keep: impl Fn(&ImageSpec) -> bool) -> Result<(), StoreError> {
        let mut gone = Vec::new();
        lock(&self.images).retain(|name, image| {
            let Some(spec) = image.spec.get() else {
                // A claim that its caller gave up while it was looked at.
                return Arc::strong_count(image) > 1 || lock(&image.claimed).elapsed() <= SETTLED;
            };
            if keep(spec) {
                image.held.store(true, Ordering::Relaxed);
                return true;
            }
            let age = lock(&image.claimed).elapsed();
            let over = match *image.state.borrow() {
                State::Pulling(_) => false,
                State::Failed(_) => age > FAILURE_KEPT,
                State::Idle | State::Ready(_) => age > SETTLED || image.held.load(Ordering::Relaxed),
            };
            if over {
                gone.push(name.clone());
            }
            !over
        });
        if gone.is_empty() {
            return Ok(());
        }
        self.records.remove(&gone)?;
        // One that was claimed again meanwhile: its record must not go with the old one's.
        let images = lock(&self.images);
        let accepted = |name| images.get(name).filter(|i| i.accepted.load(Ordering::Relaxed));
        let back: Vec<_> = gone.iter().filter_map(|name| accepted(name)?.spec.get().cloned()).collect();
        drop(images);
        back.iter().try_for_each(|spec| self.records.put(spec))
    }

    fn remember(&self, spec: &ImageSpec) {
        if let Err(error) = self.records.put(spec) {
            tracing::warn!(image = spec.reference, %error, "not remembered: a restart during its pull waits for containerd");
        }
    }

    /// Claims that were refused leave no entry behind.
    fn drop_undecided(&self) {
        lock(&self.images).retain(|_, i| i.accepted.load(Ordering::Relaxed) || Arc::strong_count(i) > 1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn rate(bytes: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { bytes as f64 / time.as_secs_f64() }
}

fn record_rate(record: &LayerRecord) -> f64 {
    rate(record.facts.blob_size, Duration::from_millis(record.facts.millis))
}
