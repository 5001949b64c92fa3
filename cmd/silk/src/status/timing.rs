//! `silk status --timing`: where the time of an image's last pull went, as tables or as JSON. Pure.

use std::time::Duration;

use serde::Serialize;
use silk_api::control::{ImageTiming, LayerTiming, TimingResponse};

use super::short;
use crate::{human, table};

const STREAMED: [&str; 16] = [
    "STREAMED", "SIZE", "FIRST", "LAST", "END", "TURN", "BYTES", "DECODE", "STORE", "DIGEST", "SCAN", "INDEX", "WRITE",
    "DECODER", "PROOF", "LIMIT",
];
const FILLED: [&str; 11] =
    ["FILLED", "SIZE", "FIRST", "LAST", "END", "TURN", "BYTES", "DECODE", "WRITE", "PROOF", "LIMIT"];

/// The tables, or that nothing is known of `name`.
pub(super) fn text(answer: &TimingResponse, name: &str) -> String {
    if answer.images.is_empty() {
        return format!("silkd does not know {name}\n");
    }
    answer.images.iter().map(image_text).collect::<Vec<_>>().join("\n")
}

fn image_text(image: &ImageTiming) -> String {
    let ImageTiming { reference, state, known, seconds, resolve_seconds, layers_seconds, mount_seconds, limit, .. } =
        image;
    let mut text = format!("{reference}  {state}");
    if !known {
        return text + "\n  nothing is known of its pull: silkd has not pulled it since its own start\n";
    }
    match seconds {
        Some(seconds) => text += &format!(", mounted and whole after {}: {limit}\n", time(*seconds)),
        None => text.push('\n'),
    }
    let stages = [("resolve", resolve_seconds), ("layers", layers_seconds), ("mount", mount_seconds)];
    let stages = stages.map(|(stage, took)| format!("{stage} {}", took.map_or("-".to_owned(), time)));
    text += &format!("  manifest {}\n  {}\n", image.manifest_digest, stages.join(", "));
    text += &layers_text(image, "streamed", &STREAMED, streamed);
    text += &layers_text(image, "filled", &FILLED, filled);
    let here = image.layers.iter().filter(|layer| layer.way == "here").count();
    if here > 0 {
        text += &format!("  {} here before\n", human::count(here, "layer"));
    }
    text
}

/// The table of the layers that came one way, if there are any.
fn layers_text(image: &ImageTiming, way: &str, head: &[&str], cells: fn(&LayerTiming) -> Vec<String>) -> String {
    let layers = image.layers.iter().filter(|layer| layer.way == way);
    let mut rows: Vec<_> = layers.map(cells).collect();
    if rows.is_empty() {
        return String::new();
    }
    rows.insert(0, head.iter().map(|head| (*head).to_owned()).collect());
    table::align(&rows, "  ")
}

fn streamed(layer: &LayerTiming) -> Vec<String> {
    let mut cells = begin(layer);
    cells.extend(
        [
            layer.turn,
            layer.wait_first_byte + layer.wait_bytes,
            layer.inflate + layer.blob_digest_seconds,
            layer.wait_store,
            layer.digest,
            layer.scan,
            layer.index,
            layer.write,
            layer.wait_decoder,
            layer.proof,
        ]
        .map(plain),
    );
    cells.push(layer.limit.clone());
    cells
}

fn filled(layer: &LayerTiming) -> Vec<String> {
    let mut cells = begin(layer);
    let decode = layer.inflate + layer.digest + layer.scan;
    let spent = [layer.turn, layer.wait_first_byte + layer.wait_bytes, decode, layer.write, layer.proof];
    cells.extend(spent.map(plain));
    cells.push(layer.limit.clone());
    cells
}

fn begin(layer: &LayerTiming) -> Vec<String> {
    let mut cells = vec![short(&layer.diff_id).to_owned(), human::bytes(layer.blob_size)];
    let moments = [layer.first_byte, layer.last_byte, layer.ended];
    cells.extend(moments.map(|at| at.map_or_else(|| "-".to_owned(), plain)));
    cells
}

/// Seconds, for columns that are compared with each other.
fn plain(seconds: f64) -> String {
    format!("{seconds:.3}")
}

fn time(seconds: f64) -> String {
    human::duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// The answer as JSON, with a line end: the service's fields by name, all of them; what is not known is null.
pub(super) fn json(answer: TimingResponse) -> String {
    let images: Vec<_> = answer.images.into_iter().map(Image::from).collect();
    let mut text = serde_json::to_string_pretty(&Images { images }).expect("strings and numbers are JSON");
    text.push('\n');
    text
}

#[derive(Debug, Serialize)]
struct Images {
    images: Vec<Image>,
}

#[derive(Debug, Serialize)]
struct Image {
    reference: String,
    manifest_digest: String,
    state: String,
    known: bool,
    seconds: Option<f64>,
    resolve_seconds: Option<f64>,
    layers_seconds: Option<f64>,
    mount_seconds: Option<f64>,
    limit: String,
    layers: Vec<Layer>,
}

#[derive(Debug, Serialize)]
struct Layer {
    diff_id: String,
    blob_digest: String,
    blob_size: u64,
    way: String,
    first_byte: Option<f64>,
    last_byte: Option<f64>,
    ended: Option<f64>,
    limit: String,
    turn: f64,
    wait_first_byte: f64,
    wait_bytes: f64,
    inflate: f64,
    blob_digest_seconds: f64,
    wait_store: f64,
    digest: f64,
    scan: f64,
    index: f64,
    write: f64,
    wait_decoder: f64,
    proof: f64,
}

impl From<ImageTiming> for Image {
    fn from(image: ImageTiming) -> Self {
        Self {
            reference: image.reference,
            manifest_digest: image.manifest_digest,
            state: image.state,
            known: image.known,
            seconds: image.seconds,
            resolve_seconds: image.resolve_seconds,
            layers_seconds: image.layers_seconds,
            mount_seconds: image.mount_seconds,
            limit: image.limit,
            layers: image.layers.into_iter().map(Layer::from).collect(),
        }
    }
}

impl From<LayerTiming> for Layer {
    fn from(layer: LayerTiming) -> Self {
        Self {
            diff_id: layer.diff_id,
            blob_digest: layer.blob_digest,
            blob_size: layer.blob_size,
            way: layer.way,
            first_byte: layer.first_byte,
            last_byte: layer.last_byte,
            ended: layer.ended,
            limit: layer.limit,
            turn: layer.turn,
            wait_first_byte: layer.wait_first_byte,
            wait_bytes: layer.wait_bytes,
            inflate: layer.inflate,
            blob_digest_seconds: layer.blob_digest_seconds,
            wait_store: layer.wait_store,
            digest: layer.digest,
            scan: layer.scan,
            index: layer.index,
            write: layer.write,
            wait_decoder: layer.wait_decoder,
            proof: layer.proof,
        }
    }
}
