//! Where decoding of a blob could begin again: noted by the decoders as they go, handed to [`crate::index::Builder`].
//! Costs the decoding thread a copy of 32 KiB and of some compressed bytes for each MiB.

use std::{mem, ops::Range};

use silk_sys::inflate::WINDOW;

/// Bytes of tar between two places that need a window. Each costs the builder 0.16 ms (1 MiB takes 1.2 ms to inflate) and
/// the index 2.3 KiB (real layers of Debian, Python and Node.js, which differ little), while what a reader waits for
/// shrinks with the distance.
pub(super) const BORDERS: u64 = 1 << 20;
/// Bytes of tar between two places that need none: they cost the index a hundred bytes each.
pub(super) const STARTS: u64 = 256 << 10;

/// Something that a learning decoder found, for [`crate::index::Builder::entries`].
#[derive(Debug)]
pub struct Found(pub(crate) Piece);

/// See [`Found`].
#[derive(Debug)]
pub(crate) enum Piece {
    /// A gzip member or a zstd frame begins, or the blob is plain: nothing from before is needed.
    Start {
        /// Byte of the tar.
        at: u64,
        /// Byte of the blob.
        offset: u64,
    },
    /// A deflate block begins.
    Border {
        /// Byte of the tar.
        at: u64,
        /// Byte of the blob.
        offset: u64,
        /// How many high bits of that byte belong to the block; 0: all.
        bits: u8,
        /// The tar before it.
        window: Vec<u8>,
    },
    /// What follows the last border in the blob, from its `offset` on: enough for the next [`WINDOW`] bytes of the member.
    Tail(Vec<u8>),
}

/// Collects. Switched off it costs nothing.
#[derive(Debug)]
pub(super) struct Learner {
    on: bool,
    found: Vec<Found>,
    /// The last place found, as a byte of the tar.
    last: Option<u64>,
    /// Where the member or frame began of which no byte has come out yet.
    start: Option<u64>,
    tail: Option<Tail>,
}

#[derive(Debug)]
struct Tail {
    bytes: Vec<u8>,
    /// Bytes of output until it is long enough.
    wanted: usize,
}

impl Learner {
    pub(super) fn off() -> Self {
        Self { on: false, found: Vec::new(), last: None, start: None, tail: None }
    }

    pub(super) fn on() -> Self {
        Self { on: true, ..Self::off() }
    }

    pub(super) fn take(&mut self) -> Vec<Found> {
        mem::take(&mut self.found)
    }

    /// A member or frame begins at byte `offset` of the blob.
    pub(super) fn start(&mut self, offset: u64) {
        self.start = Some(offset);
    }

    /// How many of the next bytes of a gzip layer, `at` onwards, may be decoded in one go, and whether to stop at the next
    /// border.
    pub(super) fn stride(&self, at: u64) -> (usize, bool) {
        match (&self.tail, self.last) {
            (Some(tail), _) => (tail.wanted, false),
            (None, Some(last)) if self.on => match (last + BORDERS).checked_sub(at) {
                None | Some(0) => (usize::MAX, true),
                Some(left) => (left as usize, false),
            },
            _ => (usize::MAX, false),
        }
    }

    /// `consumed` became `produced` bytes of the tar, which begin at `at`.
    pub(super) fn decoded(&mut self, at: u64, consumed: &[u8], produced: usize) {
        if produced > 0
            && let Some(offset) = self.start.take()
            && self.on
            && self.last.is_none_or(|last| at >= last + STARTS)
        {
            self.last = Some(at);
            self.found.push(Found(Piece::Start { at, offset }));
        }
        if let Some(tail) = &mut self.tail {
            tail.bytes.extend_from_slice(consumed);
            tail.wanted -= produced.min(tail.wanted);
            if tail.wanted == 0 {
                self.end();
            }
        }
    }

    /// A block begins at byte `at` of the tar. `next` is the byte of the blob that has not been read, `before` the one
    /// before it, of which `bits` belong to the block.
    pub(super) fn border(&mut self, at: u64, next: u64, (before, bits): (u8, u8), window: impl FnOnce() -> Vec<u8>) {
        if !self.on || self.start.is_some() {
            return;
        }
        self.last = Some(at);
        let (offset, bytes) = if bits == 0 { (next, Vec::new()) } else { (next - 1, vec![before]) };
        self.found.push(Found(Piece::Border { at, offset, bits, window: window() }));
        self.tail = Some(Tail { bytes, wanted: WINDOW });
    }

    /// The member ends: what follows refers to nothing before.
    pub(super) fn end(&mut self) {
        if let Some(tail) = self.tail.take() {
            self.found.push(Found(Piece::Tail(tail.bytes)));
        }
    }

    /// These bytes of a plain tar have come.
    pub(super) fn plain(&mut self, bytes: Range<u64>) {
        if self.on {
            let starts = bytes.start.div_ceil(STARTS)..bytes.end.div_ceil(STARTS);
            self.found.extend(starts.map(|n| Found(Piece::Start { at: n * STARTS, offset: n * STARTS })));
        }
    }
}
