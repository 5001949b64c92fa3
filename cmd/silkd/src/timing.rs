//! The operator's call about the time of pulls.

use std::time::Duration;

use silk_api::control::{ImageTiming as Message, LayerTiming as LayerMessage};
use silk_pull::{ImageStatus, LayerSpec, LayerTiming, Limit, Part, PullTiming, Puller, Way};

/// Images whose reference or manifest digest is `image`.
pub fn of(puller: &Puller, image: &str) -> Vec<Message> {
    puller.timings(image).into_iter().map(message).collect()
}

fn message(PullTiming { status, timing }: PullTiming) -> Message {
    let ImageStatus { reference, manifest, state, layers, .. } = status;
    let known = timing.is_some();
    let timing = timing.unwrap_or_default();
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    Message {
        reference,
        manifest_digest: manifest.to_string(),
        state: state.to_owned(),
        known,
        seconds: seconds(timing.time()),
        resolve_seconds: seconds(timing.resolve),
        layers_seconds: seconds(timing.layers),
        mount_seconds: seconds(timing.mount),
        limit: word(timing.limit()),
        layers: timing
            .layers_timing
            .iter()
            .zip(layers)
            .map(|(timing, layer)| layer_message(timing, layer.spec))
            .collect(),
    }
}

fn layer_message(timing: &LayerTiming, spec: LayerSpec) -> LayerMessage {
    let on = |part| timing.spent.on(part).as_secs_f64();
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    let way = match timing.way {
        Way::Here => "here",
        Way::Streamed => "streamed",
        Way::Filled => "filled",
    };
    LayerMessage {
        diff_id: spec.diff_id.to_string(),
        blob_digest: spec.blob.to_string(),
        blob_size: spec.size,
        way: way.to_owned(),
        first_byte: seconds(timing.first_byte),
        last_byte: seconds(timing.last_byte),
        ended: seconds(timing.ended),
        limit: word(timing.limit()),
        turn: on(Part::Turn),
        wait_first_byte: on(Part::FirstByte),
        wait_bytes: on(Part::Bytes),
        inflate: on(Part::Inflate),
        blob_digest_seconds: on(Part::BlobDigest),
        wait_store: on(Part::Store),
        digest: on(Part::Digest),
        scan: on(Part::Scan),
        index: on(Part::Index),
        write: on(Part::Write),
        wait_decoder: on(Part::Decoder),
        proof: on(Part::Proof),
    }
}

fn word(limit: Option<Limit>) -> String {
    limit.map(Limit::word).unwrap_or_default().to_owned()
}
