//! The JSON of `silk status --json`: the names of the control service's fields. Stable: fields are added, never renamed.
//!
//! Each message is taken apart field by field, so that one that is added to the service does not compile before it is here.

use serde::Serialize;
use silk_api::control;

/// The whole answer.
#[derive(Debug, Serialize)]
struct Status {
    version: String,
    rung: String,
    rung_reason: String,
    root: String,
    layer_bytes: u64,
    unused_bytes: u64,
    quota_bytes: u64,
    images: Vec<Image>,
    backends: Vec<Backend>,
    node: Node,
}

#[derive(Debug, Serialize)]
struct Node {
    resident_bytes: u64,
    descriptors: u64,
    descriptors_limit: u64,
    threads: u64,
    cpu_seconds: f64,
    seconds: f64,
    requests: u64,
    retries: u64,
    received_bytes: u64,
    demand_bytes: u64,
    profile_bytes: u64,
    background_bytes: u64,
    stream_bytes: u64,
    reads_at_once: u64,
    reads_parked: u64,
    read_errors: u64,
    reads_waiting: u64,
    layers: u64,
    budgets: Vec<Budget>,
    containers_on_silkd: u64,
}

#[derive(Debug, Serialize)]
struct Budget {
    name: String,
    limit: u64,
    in_use: u64,
}

#[derive(Debug, Serialize)]
struct Backend {
    name: String,
    up: bool,
    seconds: f64,
    why: String,
    hits: u64,
    misses: u64,
    refused: u64,
    published: u64,
    dropped: u64,
    trouble: String,
    trouble_seconds: f64,
}

#[derive(Debug, Serialize)]
struct Image {
    reference: String,
    manifest_digest: String,
    namespace: String,
    state: String,
    error: String,
    seconds: f64,
    waiting: u64,
    layers: Vec<Layer>,
}

#[derive(Debug, Serialize)]
struct Layer {
    diff_id: String,
    blob_digest: String,
    media_type: String,
    state: String,
    names: bool,
    proved: bool,
    durable: bool,
    blob_size: u64,
    blob_received: u64,
    data_bytes: u64,
    source: String,
    rate: f64,
    error: String,
    mountpoint: String,
    variant: String,
    snapshots: u32,
    names_from: String,
    demand_bytes: u64,
    profile_bytes: u64,
    background_bytes: u64,
    reads_waiting: u64,
}

/// The answer as JSON, with a line end.
pub(super) fn text(answer: control::StatusResponse) -> String {
    let mut text = serde_json::to_string_pretty(&Status::from(answer)).expect("strings and numbers are JSON");
    text.push('\n');
    text
}

impl From<control::StatusResponse> for Status {
    fn from(answer: control::StatusResponse) -> Self {
        let control::StatusResponse {
            version,
            rung,
            rung_reason,
            root,
            layer_bytes,
            unused_bytes,
            quota_bytes,
            images,
            backends,
            node,
        } = answer;
        let images = images.into_iter().map(Image::from).collect();
        let backends = backends.into_iter().map(Backend::from).collect();
        let node = node.unwrap_or_default().into();
        Self { version, rung, rung_reason, root, layer_bytes, unused_bytes, quota_bytes, images, backends, node }
    }
}

impl From<control::Node> for Node {
    fn from(node: control::Node) -> Self {
        let control::Node {
            resident_bytes,
            descriptors,
            descriptors_limit,
            threads,
            cpu_seconds,
            seconds,
            requests,
            retries,
            received_bytes,
            demand_bytes,
            profile_bytes,
            background_bytes,
            stream_bytes,
            reads_at_once,
            reads_parked,
            read_errors,
            reads_waiting,
            layers,
            budgets,
            containers_on_silkd,
        } = node;
        let budgets = budgets.into_iter().map(Budget::from).collect();
        Self {
            resident_bytes,
            descriptors,
            descriptors_limit,
            threads,
            cpu_seconds,
            seconds,
            requests,
            retries,
            received_bytes,
            demand_bytes,
            profile_bytes,
            background_bytes,
            stream_bytes,
            reads_at_once,
            reads_parked,
            read_errors,
            reads_waiting,
            layers,
            budgets,
            containers_on_silkd,
        }
    }
}

impl From<control::Budget> for Budget {
    fn from(budget: control::Budget) -> Self {
        let control::Budget { name, limit, in_use } = budget;
        Self { name, limit, in_use }
    }
}

impl From<control::Backend> for Backend {
    fn from(backend: control::Backend) -> Self {
        let control::Backend {
            name,
            up,
            seconds,
            why,
            hits,
            misses,
            refused,
            published,
            dropped,
            trouble,
            trouble_seconds,
        } = backend;
        Self { name, up, seconds, why, hits, misses, refused, published, dropped, trouble, trouble_seconds }
    }
}

impl From<control::Image> for Image {
    fn from(image: control::Image) -> Self {
        let control::Image { reference, manifest_digest, state, error, layers, seconds, namespace, waiting } = image;
        let layers = layers.into_iter().map(Layer::from).collect();
        Self { reference, manifest_digest, namespace, state, error, seconds, waiting, layers }
    }
}

impl From<control::Layer> for Layer {
    fn from(layer: control::Layer) -> Self {
        let control::Layer {
            diff_id,
            blob_digest,
            media_type,
            state,
            names,
            proved,
            durable,
            blob_size,
            blob_received,
            data_bytes,
            source,
            rate,
            error,
            mountpoint,
            variant,
            snapshots,
            names_from,
            demand_bytes,
            profile_bytes,
            background_bytes,
            reads_waiting,
        } = layer;
        Self {
            diff_id,
            blob_digest,
            media_type,
            state,
            names,
            proved,
            durable,
            blob_size,
            blob_received,
            data_bytes,
            source,
            rate,
            error,
            mountpoint,
            variant,
            snapshots,
            names_from,
            demand_bytes,
            profile_bytes,
            background_bytes,
            reads_waiting,
        }
    }
}
