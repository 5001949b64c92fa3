//! What the operator sees of images.

use std::{fmt, sync::atomic::Ordering, time::Duration};

use silk_model::{
    Digest, Use,
    metrics::{ImageState, Left, METRICS},
};
use silk_store::LayerRecord;

use super::{Claim, Image, Puller, State, lock, rate, record_rate};
use crate::{Arrived, ImageSpec, ImageTiming, LayerSpec, Refused};

/// Refusals that are remembered for `silk explain`.
const REFUSALS: usize = 64;
/// Layers of one that are remembered: more than an image can have that overlayfs mounts.
const CHAINS: usize = 512;

/// An image that silk left to containerd.
#[derive(Debug)]
pub(super) struct Refusal {
    namespace: String,
    reference: String,
    manifest: Digest,
    reason: String,
    /// The chain IDs of the layers that were left to containerd.
    chains: Vec<Digest>,
}

impl Refusal {
    pub(super) fn new(claim: &Claim, reason: &impl fmt::Display) -> Self {
        Self {
            namespace: claim.namespace.clone(),
            reference: claim.reference.clone(),
            manifest: claim.manifest,
            reason: reason.to_string(),
            chains: vec![claim.chain_id],
        }
    }

    fn is_of(&self, claim: &Claim) -> bool {
        self.manifest == claim.manifest && self.reference == claim.reference
    }
}

/// One image.
#[derive(Debug, Clone)]
pub struct ImageStatus {
    /// containerd's namespace that asked first.
    pub namespace: String,
    /// The full reference.
    pub reference: String,
    /// The manifest's digest.
    pub manifest: Digest,
    /// "idle", "pulling", "ready", "failed" or "refused".
    pub state: &'static str,
    /// The cause when failed or refused.
    pub error: Option<String>,
    /// How long the pull has been going on, or took.
    pub time: Duration,
    /// Calls of containerd that wait for it.
    pub waiting: u64,
    /// Base first; none for a refused image.
    pub layers: Vec<LayerStatus>,
}

/// An image, and where the time of its last pull went.
#[derive(Debug, Clone)]
pub struct PullTiming {
    /// The image.
    pub status: ImageStatus,
    /// [`None`]: it was not pulled since the daemon started.
    pub timing: Option<ImageTiming>,
}

/// What is in use of all that is bounded; `docs/config.md` has the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budgets {
    /// Blob bodies from the busiest registry host.
    pub registry_connections: Use,
    /// Compressed bytes of layers that stream in.
    pub bytes_in_flight: Use,
    /// Compressed bytes that wait in memory until containers have started.
    pub held_bytes: Use,
    /// Layers that are decoded.
    pub decoders: Use,
    /// Layers that stream in, those whose registry is silent included.
    pub layers_under_way: Use,
    /// Ranges that readers wait for.
    pub demand_ranges: Use,
    /// Ranges that starts are known to touch.
    pub profile_ranges: Use,
    /// Ranges of mounted layers that nobody waits for.
    pub background_ranges: Use,
}

/// One layer of an image.
#[derive(Debug, Clone)]
pub struct LayerStatus {
    /// What the manifest says.
    pub spec: LayerSpec,
    /// "waiting", "pulling", "filling" (mounted, bytes arrive), "whole" or "absent".
    pub state: &'static str,
    /// Compressed bytes received.
    pub received: u64,
    /// Uncompressed bytes on disk.
    pub written: u64,
    /// The registry host the bytes came from; empty while none has.
    pub source: String,
    /// Compressed bytes a second.
    pub rate: f64,
    /// What the store knows of it.
    pub record: Option<LayerRecord>,
    /// While filling: uncompressed bytes that came.
    pub arrived: Arrived,
    /// While filling: reads that wait.
    pub reads_waiting: u64,
    /// What keeps bytes from coming.
    pub trouble: Option<String>,
}

impl Puller {
    /// What is in use of all that is bounded.
    pub fn budgets(&self) -> Budgets {
        let [bytes_in_flight, decoders, layers_under_way] = self.layers.budget();
        let [demand_ranges, profile_ranges, background_ranges] = self.lazies.ranges();
        Budgets {
            registry_connections: self.registry.connections(),
            bytes_in_flight,
            held_bytes: self.lazies.held(),
            decoders,
            layers_under_way,
            demand_ranges,
            profile_ranges,
            background_ranges,
        }
    }

    /// Layers that wait for their turn to be streamed, and those that are.
    pub fn layers_under_way(&self) -> (u64, u64) {
        self.layers.count()
    }

    /// How many images are in each state.
    pub fn images_by_state(&self) -> [(ImageState, u64); 5] {
        let images: Vec<_> = lock(&self.images).values().cloned().collect();
        let (mut idle, mut pulling, mut ready, mut failed) = (0, 0, 0, 0);
        for image in images.iter().filter(|image| image.accepted.load(Ordering::Relaxed)) {
            let Some(spec) = image.spec.get() else { continue };
            match &*image.state.borrow() {
                State::Idle if self.here(spec) => ready += 1,
                State::Idle => idle += 1,
                State::Pulling(_) => pulling += 1,
                State::Ready(_) => ready += 1,
                State::Failed(_) => failed += 1,
            }
        }
        let refused = lock(&self.refusals).len() as u64;
        [
            (ImageState::Idle, idle),
            (ImageState::Pulling, pulling),
            (ImageState::Ready, ready),
            (ImageState::Failed, failed),
            (ImageState::Refused, refused),
        ]
    }

    /// Notes why an image is left to containerd.
    pub(super) fn refuse(&self, claim: &Claim, kind: Left, reason: &impl fmt::Display) {
        METRICS.images_refused.of(kind).one();
        tracing::warn!(image = claim.reference, %reason, "left to containerd");
        let mut refusals = lock(&self.refusals);
        refusals.retain(|r| !r.is_of(claim));
        refusals.truncate(REFUSALS - 1);
        refusals.push_front(Refusal::new(claim, reason));
    }

    /// Forgets why an image was left to containerd: it is not any more.
    pub(super) fn accepts(&self, claim: &Claim) {
        lock(&self.refusals).retain(|r| !r.is_of(claim));
    }

    /// Notes that a claim took too long, and that its future was dropped: its image is left to containerd for this reason.
    pub fn late(&self, claim: &Claim, reason: &impl fmt::Display) {
        self.drop_undecided();
        self.refuse(claim, Left::Late, reason);
    }

    /// Notes that containerd keeps a layer, because the one below it (with chain ID `below`) is containerd's already.
    pub fn left(&self, claim: &Claim, below: Option<Digest>) {
        let mut refusals = lock(&self.refusals);
        if let Some(refusal) = refusals.iter_mut().find(|r| r.is_of(claim)) {
            if refusal.chains.len() < CHAINS && !refusal.chains.contains(&claim.chain_id) {
                refusal.chains.push(claim.chain_id);
            }
            return;
        }
        let known = below.and_then(|below| refusals.iter().find(|r| r.chains.contains(&below)));
        let cause = known.map(|r| (r.reference.clone(), r.reason.clone()));
        drop(refusals);
        let refused = Refused::Below { cause };
        self.refuse(claim, refused.kind(), &refused);
    }

    /// All images silk knows or refused, or those whose reference or manifest digest is `only`; sorted by reference.
    pub fn status(&self, only: Option<&str>) -> Vec<ImageStatus> {
        let wanted =
            |reference: &str, manifest: &Digest| only.is_none_or(|o| o == reference || o == manifest.to_string());
        let images: Vec<_> = lock(&self.images).values().cloned().collect();
        let mut all: Vec<_> = images
            .iter()
            .filter(|image| image.accepted.load(Ordering::Relaxed))
            .filter_map(|image| image.spec.get().map(|spec| (image, spec)))
            .filter(|(_, spec)| wanted(&spec.reference, &spec.manifest))
            .map(|(image, spec)| self.image_status(image, spec))
            .collect();
        for refusal in lock(&self.refusals).iter() {
            let newer = all.iter().any(|i| i.manifest == refusal.manifest && i.reference == refusal.reference);
            if !newer && wanted(&refusal.reference, &refusal.manifest) {
                all.push(ImageStatus {
                    namespace: refusal.namespace.clone(),
                    reference: refusal.reference.clone(),
                    manifest: refusal.manifest,
                    state: "refused",
                    error: Some(refusal.reason.clone()),
                    time: Duration::ZERO,
                    waiting: 0,
                    layers: vec![],
                });
            }
        }
        all.sort_by(|a, b| (&a.reference, a.manifest).cmp(&(&b.reference, b.manifest)));
        all
    }

    /// Where the time of images' last pulls went: of those whose reference or manifest digest is `only`, sorted by reference.
    /// Nothing is known of a pull from before the daemon's start.
    pub fn timings(&self, only: &str) -> Vec<PullTiming> {
        let status = self.status(Some(only));
        let timing = |status: &ImageStatus| {
            let (image, spec) = self.find(&status.manifest, &status.reference)?;
            let trip = lock(&image.trip).clone()?;
            Some(trip.timing(&spec.diff_ids()))
        };
        status.into_iter().map(|status| PullTiming { timing: timing(&status), status }).collect()
    }

    fn image_status(&self, image: &Image, spec: &ImageSpec) -> ImageStatus {
        let (state, error, time) = match &*image.state.borrow() {
            State::Idle if self.here(spec) => ("ready", None, Duration::ZERO),
            State::Idle => ("idle", None, Duration::ZERO),
            State::Pulling(since) => ("pulling", None, since.elapsed()),
            State::Ready(took) => ("ready", None, *took),
            State::Failed(failure) => ("failed", Some(failure.error.to_string()), Duration::ZERO),
        };
        ImageStatus {
            namespace: spec.namespace.clone(),
            reference: spec.reference.clone(),
            manifest: spec.manifest,
            state,
            error,
            time,
            waiting: image.state.receiver_count() as u64,
            layers: spec.layers.iter().map(|layer| self.layer_status(layer)).collect(),
        }
    }

    fn layer_status(&self, spec: &LayerSpec) -> LayerStatus {
        let record = self.store.record(&spec.diff_id);
        let mut status = LayerStatus {
            spec: spec.clone(),
            state: "absent",
            received: 0,
            written: 0,
            source: String::new(),
            rate: 0.0,
            record: record.clone(),
            arrived: Arrived::default(),
            reads_waiting: 0,
            trouble: None,
        };
        if let Some(record) = record.filter(|r| r.whole) {
            status.state = "whole";
            status.received = record.facts.blob_size;
            status.written = record.facts.size;
            status.rate = record_rate(&record);
            status.source = record.facts.source;
        } else if let Some(lazy) = self.lazies.get(&spec.diff_id) {
            status.state = "filling";
            status.received = lazy.received();
            status.written = lazy.bytes_here();
            status.source = lazy.host();
            status.arrived = lazy.arrived();
            status.reads_waiting = lazy.reads_waiting();
            status.trouble = lazy.trouble();
        } else if let Some(job) = self.layers.get(&spec.diff_id) {
            status.state = "waiting";
            status.received = job.counts.received();
            status.written = job.counts.written();
            if let Some((source, time)) = job.under_way() {
                status.state = "pulling";
                status.rate = rate(status.received, time);
                status.source = source;
            }
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use std::{ops::Range, sync::Arc};

    use futures::future::BoxFuture;
    use silk_registry::Registry;
    use silk_share::Share;
    use silk_store::Store;

    use super::*;
    use crate::{Config, Contents, ContentsError, Held, Lazies, Seams, Show, ShowError};

    /// A containerd that does not answer.
    #[derive(Debug)]
    struct Silent;

    impl Contents for Silent {
        fn read<'a>(&'a self, _: &'a str, _: &'a Digest, _: u64) -> BoxFuture<'a, Result<Vec<u8>, ContentsError>> {
            Box::pin(std::future::pending())
        }

        fn held<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> BoxFuture<'a, Result<Vec<Held>, String>> {
            Box::pin(std::future::pending())
        }
    }

    impl Show for Silent {
        fn possible(&self) -> Result<(), String> {
            Ok(())
        }

        fn lazily(&self) -> bool {
            false
        }

        fn show(&self, _: &[Digest]) -> Result<(), ShowError> {
            Ok(())
        }

        fn renew(&self, _: &Digest, _: bool) {}

        fn put_away(&self, _: Duration) {}

        fn warm(&self, _: &Digest, _: &[Range<u64>]) -> bool {
            false
        }

        fn forget(&self, _: &Digest) {}
    }

    #[tokio::test]
    async fn a_claim_that_was_given_up_leaves_its_cause_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path(), silk_store::Config::default()).unwrap());
        let share = Arc::new(Share::new(&silk_share::Config::default(), vec![]).unwrap());
        let seams = Seams { contents: Arc::new(Silent), show: Arc::new(Silent), share };
        let registry = silk_registry::Config { docker_config: Some("/nonexistent".into()), ..Default::default() };
        let lazies = Lazies::new(store, &Config::default());
        let puller = Puller::new(Config::default(), Registry::new(registry).unwrap(), lazies, seams).unwrap();
        let claim = Claim {
            namespace: "default".into(),
            reference: "r.example/app:1".into(),
            manifest: Digest::of(b"manifest"),
            blob: Digest::of(b"blob"),
            chain_id: Digest::of(b"layer"),
            below: 0,
        };
        let claimed = tokio::time::timeout(Duration::from_millis(1), puller.claim(claim.clone())).await;
        assert!(claimed.is_err() && lock(&puller.images).len() == 1);
        puller.late(&claim, &"it took too long");
        assert!(lock(&puller.images).is_empty());
        // The next layer.
        puller.left(&Claim { chain_id: Digest::of(b"next"), below: 1, ..claim }, Some(Digest::of(b"layer")));
        let [status] = &puller.status(None)[..] else { panic!("one image was asked for") };
        assert_eq!((status.state, status.error.as_deref()), ("refused", Some("it took too long")));
    }
}
