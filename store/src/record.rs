//! The record of a layer in the database (docs/formats/store.md).

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use silk_model::Digest;

/// First byte of every record; one of an older version is forgotten and its layer fetched again. With one of a newer version silkd does not start.
pub(crate) const VERSION: u8 = 2;

/// What a complete pass over a layer has taught.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Length of the uncompressed tar in bytes.
    pub size: u64,
    /// Members of the archive.
    pub entries: u64,
    /// The compressed blob it came from.
    pub blob: Digest,
    /// Length of that blob in bytes.
    pub blob_size: u64,
    /// The registry host that sent it; empty when it was never here.
    pub source: String,
    /// Milliseconds from the first request to proof.
    pub millis: u64,
}

/// What the store knows of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// All bytes are here and `sha256(data)` was the diff ID.
    pub whole: bool,
    /// The bytes were synced to disk.
    pub durable: bool,
    /// The boot that wrote the bytes.
    pub boot: [u8; 16],
    /// Seconds since 1970.
    pub last_used: u64,
    /// Who gave names and index; empty when they were learned, or proved, on this node.
    pub from: String,
    /// Learned while the layer streamed in.
    pub facts: Facts,
}

impl LayerRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("a Vec takes any number of bytes")
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        (*version == VERSION).then(|| postcard::from_bytes(rest).ok()).flatten()
    }
}

/// Orders what may go by its last use. What was used in the future, by a clock that was ahead then or is behind now, goes first: else it would
/// stay for good, and what comes now would go in its place. An hour is no more than clocks are set by.
pub(crate) fn by_use(last_used: u64, now: u64) -> (u64, u64) {
    const SET_BY: u64 = 3600;
    (if last_used > now.saturating_add(SET_BY) { 0 } else { last_used }, last_used)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
