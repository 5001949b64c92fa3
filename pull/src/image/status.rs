//! What the operator sees of images.

use std::{sync::atomic::Ordering, time::Duration};

use silk_model::Digest;
use silk_store::LayerRecord;

use super::{Claim, Image, Puller, State, lock, rate, record_rate};
use crate::{Arrived, ImageSpec, LayerSpec, Refused};

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
    pub(super) fn new(claim: &Claim, reason: &Refused) -> Self {
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
    /// Base first; none for a refused image.
    pub layers: Vec<LayerStatus>,
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
    /// What keeps bytes from coming.
    pub trouble: Option<String>,
}

impl Puller {
    /// Notes why an image is left to containerd.
    pub(super) fn refuse(&self, claim: &Claim, reason: &Refused) {
        tracing::warn!(image = claim.reference, %reason, "left to containerd");
        let mut refusals = lock(&self.refusals);
        refusals.retain(|r| !r.is_of(claim));
        refusals.truncate(REFUSALS - 1);
        refusals.push_front(Refusal::new(claim, reason));
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
        self.refuse(claim, &Refused::Below { cause });
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
                    layers: vec![],
                });
            }
        }
        all.sort_by(|a, b| (&a.reference, a.manifest).cmp(&(&b.reference, b.manifest)));
        all
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
