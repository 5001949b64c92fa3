//! `[pull]` of the configuration file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::road::Limit;

/// Zeros cost time alone: some three minutes for so many, at 1.6 GB/s. Disk images and other files that are sparse where the layer was
/// made have tens of GB of them.
const MOST_ZEROS: u64 = 256 << 30;

/// How layers travel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Layers that are decoded at the same time, over all images; 0 means one more than there are cores: a layer keeps a
    /// core busy with inflating and about half of one with digesting and writing.
    pub layers_at_once: usize,
    /// Layers that may be under way at once although no more than `layers_at_once` are decoded: those whose registry is silent
    /// give their turn to others. Each has a descriptor, two threads and up to three buffers of 512 KiB.
    pub layers_under_way: usize,
    /// Bytes of compressed data that may be in flight or waiting for a decoder, over all layers. Eight ranges of the default
    /// size, ten times what a 1 Gbit/s link with 20 ms holds. Resident memory of a pull is about twice this: pieces keep the
    /// network's buffers whole.
    pub bytes_in_flight: u32,
    /// Compressed bytes that may come while containers start and wait in memory until the processors are free, over all layers whose start is
    /// known. Half a second of a 1 Gbit/s link, about what a start leaves of it. Less than `range_bytes`: the rest of an image waits for its start.
    pub held_bytes: u32,
    /// Bytes of one range request. Layers up to this size are fetched with one request. Large enough that the request's
    /// round trip (20 ms) is small against its transfer at 80 MiB/s (50 ms) once two are under way.
    pub range_bytes: u32,
    /// Range requests of one layer that may be under way at once. Two are always; more only while the decoder waits for
    /// bytes, that is, while fewer do not fill the link.
    pub ranges_at_once: usize,
    /// Ranges of mounted layers that readers wait for, at once, from each registry. More than a container's threads ask for; each holds a
    /// decoder and a span of at most 2 MiB.
    pub demand_ranges: usize,
    /// Ranges that starts are known to touch, at once, from each registry: they are small, so this many fill a link of 1 Gbit/s at 20 ms to the
    /// first byte, and are what a registry is asked for at once by default.
    pub profile_ranges: usize,
    /// Milliseconds that the first Prepare of an image may spend on learning that the registry answers and lets silk in.
    /// Without an answer by then, containerd pulls the image itself, and so it does after 5 s in any case.
    pub first_contact_millis: u64,
    /// The largest layer silk decodes, in uncompressed bytes for each compressed byte. Blocks of zeros do not count, up to 256 GiB in
    /// all: they take no room on disk. deflate cannot exceed 1032, and nothing but zeros comes near: 200 refuses bombs only. Layers below
    /// `expansion_floor_bytes` are never refused.
    pub max_expansion: u64,
    /// Uncompressed bytes that any layer may have, whatever its ratio, besides blocks of zeros.
    pub expansion_floor_bytes: u64,
    /// Seconds to wait before a failed image may be pulled again, doubled at each failure in a row up to
    /// `retry_max_secs`.
    pub retry_min_secs: u64,
    /// See `retry_min_secs`.
    pub retry_max_secs: u64,
    /// Mount layers that are known (learned on this node or by a peer) before their bytes are here, and fetch what is read
    /// first. `false` streams every layer and waits for it.
    pub lazy: bool,
    /// Seconds that a read of bytes that are not here waits for a registry that does not answer, or does not let silk in any more, since something of
    /// what it waits for came last; then it fails with EIO. Where the registry says that the blob is gone, it fails at once.
    pub read_wait_secs: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            layers_at_once: 0,
            layers_under_way: 64,
            bytes_in_flight: 32 << 20,
            held_bytes: 64 << 20,
            range_bytes: 4 << 20,
            ranges_at_once: 6,
            demand_ranges: 8,
            profile_ranges: 8,
            first_contact_millis: 1000,
            max_expansion: 200,
            expansion_floor_bytes: 1 << 30,
            retry_min_secs: 1,
            retry_max_secs: 8,
            lazy: true,
            read_wait_secs: 300,
        }
    }
}

impl Config {
    /// How much a blob of `compressed` bytes may become.
    pub(crate) fn decoded_limit(&self, compressed: u64) -> Limit {
        let data = compressed.saturating_mul(self.max_expansion).max(self.expansion_floor_bytes);
        Limit { data, all: data.max(MOST_ZEROS) }
    }

    /// The resolved [`Config::layers_at_once`].
    pub(crate) fn decoders(&self) -> usize {
        match self.layers_at_once {
            0 => std::thread::available_parallelism().map_or(2, usize::from) + 1,
            n => n,
        }
    }
}
