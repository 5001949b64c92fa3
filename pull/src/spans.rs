//! Spans of a pull, for whoever traces it. Where nobody does, each costs the look at a level.
//!
//! A task or thread that is started for a span's sake is told of it: nothing is inherited by itself.

use std::{
    fmt::{Debug, Display},
    ops::Range,
};

use silk_model::{Digest, SPANS};
use tracing::{
    Span,
    field::{Empty, display},
    trace_span,
};

/// An image's pull; `kind` and `result` are told at its end.
pub(crate) fn pull(reference: &str, manifest: &Digest) -> Span {
    trace_span!(
        target: SPANS, "pull", image.reference = reference, image.manifest = %manifest, kind = Empty, result = Empty,
        otel.status_code = Empty, otel.status_description = Empty
    )
}

/// A layer; `bytes` of its blob.
pub(crate) fn layer(diff_id: &Digest, blob: &Digest, bytes: u64, way: &str) -> Span {
    trace_span!(
        target: SPANS, "layer", layer.diff_id = %diff_id, layer.blob = %blob, layer.bytes = number(bytes), way, result = Empty,
        otel.status_code = Empty, otel.status_description = Empty
    )
}

/// Bytes of a blob on their way.
pub(crate) fn fetch(offset: u64, bytes: u64) -> Span {
    trace_span!(target: SPANS, "fetch", offset = number(offset), bytes = number(bytes))
}

/// Some run of spans of a layer that fills.
pub(crate) fn range(of: &Span, wanted: &dyn Debug, spans: &Range<usize>, bytes: u64) -> Span {
    trace_span!(target: SPANS, parent: of, "range", ?wanted, ?spans, bytes = number(bytes))
}

/// OpenTelemetry's numbers have signs; others would be sent as text.
fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Any other part of a pull.
macro_rules! part {
    ($name:literal) => {
        ::tracing::trace_span!(target: ::silk_model::SPANS, $name)
    };
}
pub(crate) use part;

/// Tells how it ended.
pub(crate) fn ended<E: Display>(span: &Span, well: &'static str, outcome: Result<(), &E>) {
    match outcome {
        Ok(()) => drop(span.record("result", well)),
        Err(error) => {
            span.record("result", "failed");
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", display(error));
        }
    }
}
