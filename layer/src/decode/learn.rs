//! Where decoding of a blob could begin again: noted by the decoders as they go, handed to [`crate::index::Builder`].
//! Costs the decoding thread a copy of 32 KiB and of some compressed bytes for each place in a gzip member.

use std::{mem, ops::Range};

use silk_sys::inflate::WINDOW;

/// How far apart the places are.
#[derive(Debug)]
pub(crate) struct Spacing {
    /// Bytes of tar between two places that need no window.
    pub(crate) starts: u64,
    /// Bytes of blob between two places that need one.
    pub(crate) blob: u64,
    /// The least and the most bytes of tar between such, where it compresses very badly or very well.
    pub(crate) tar: Range<u64>,
}

/// A place without a window costs the index a hundred bytes. One with a window costs it 2.3 KiB, and the builder 0.16 ms, of
/// which inflating takes 1.2 ms a MiB (layers of Debian, Python and Node.js, which differ little). A start touches parts of
/// most spans that it touches: a Python service's were 125 MB of blob with a place every 512 KiB, 106 with one every 256, 96 with
/// one every 128.
#[cfg(not(fuzzing))]
pub(super) const SPACING: Spacing = Spacing { starts: 256 << 10, blob: 256 << 10, tar: 512 << 10..2 << 20 };
/// What a fuzzer makes is small.
#[cfg(fuzzing)]
pub(super) const SPACING: Spacing = Spacing { starts: 16, blob: 1, tar: 1..64 };

/// The most bytes of blob that [`WINDOW`] bytes of tar take, at 15 bits each, twice over. What goes beyond is made of empty
/// blocks, to fill our memory.
const MAX_TAIL: usize = 128 << 10;

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
    /// `None`: that would be too much, so the border is of no use.
    Tail(Option<Vec<u8>>),
}

/// Collects. Switched off it costs nothing.
#[derive(Debug)]
pub(super) struct Learner {
    /// `None`: switched off.
    spacing: Option<Spacing>,
    found: Vec<Found>,
    /// The last place found: byte of the tar and of the blob.
    last: Option<(u64, u64)>,
    /// Where the member or frame began of which no byte has come out yet.
    start: Option<u64>,
    tail: Option<Tail>,
}

/// The most that may be decoded in one go, and whether to stop at the next border of blocks.
#[derive(Debug)]
pub(super) struct Stride {
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) to_border: bool,
}

#[derive(Debug)]
struct Tail {
    bytes: Vec<u8>,
    /// Bytes of output until it is long enough.
    wanted: usize,
}

impl Learner {
    pub(super) fn new(spacing: Option<Spacing>) -> Self {
        Self { spacing, found: Vec::new(), last: None, start: None, tail: None }
    }

    pub(super) fn take(&mut self) -> Vec<Found> {
        mem::take(&mut self.found)
    }

    /// A member or frame begins at byte `offset` of the blob.
    pub(super) fn start(&mut self, offset: u64) {
        self.start = Some(offset);
    }

    /// How to go on in a gzip member, from this byte of the tar and of the blob.
    pub(super) fn stride(&self, at: u64, offset: u64) -> Stride {
        let free = Stride { input: usize::MAX, output: usize::MAX, to_border: false };
        if let Some(tail) = &self.tail {
            return Stride { output: tail.wanted, input: MAX_TAIL - tail.bytes.len(), to_border: false };
        }
        let last = self.last.or_else(|| self.start.map(|offset| (at, offset)));
        let (Some(spacing), Some(last)) = (&self.spacing, last) else { return free };
        let (tar, blob) = (at - last.0, offset - last.1);
        if tar < spacing.tar.start {
            Stride { output: (spacing.tar.start - tar) as usize, ..free }
        } else if tar < spacing.tar.end && blob < spacing.blob {
            let (output, input) = (spacing.tar.end - tar, spacing.blob - blob);
            Stride { output: output as usize, input: input as usize, to_border: false }
        } else {
            Stride { to_border: true, ..free }
        }
    }

    /// `consumed` became `produced` bytes of the tar, which begin at `at`.
    pub(super) fn decoded(&mut self, at: u64, consumed: &[u8], produced: usize) {
        if produced > 0
            && let Some(offset) = self.start.take()
            && let Some(spacing) = &self.spacing
            && self.last.is_none_or(|(last, _)| at >= last + spacing.starts)
        {
            self.last = Some((at, offset));
            self.found.push(Found(Piece::Start { at, offset }));
        }
        if let Some(tail) = &mut self.tail {
            tail.bytes.extend_from_slice(consumed);
            tail.wanted -= produced.min(tail.wanted);
            if tail.wanted == 0 {
                self.end();
            } else if tail.bytes.len() == MAX_TAIL {
                self.tail = None;
                self.found.push(Found(Piece::Tail(None)));
            }
        }
    }

    /// A block begins at byte `at` of the tar. `next` is the byte of the blob that has not been read, `before` the one
    /// before it, of which `bits` belong to the block.
    pub(super) fn border(&mut self, at: u64, next: u64, (before, bits): (u8, u8), window: impl FnOnce() -> Vec<u8>) {
        if self.spacing.is_none() || self.start.is_some() {
            return;
        }
        self.last = Some((at, next));
        let (offset, bytes) = if bits == 0 { (next, Vec::new()) } else { (next - 1, vec![before]) };
        self.found.push(Found(Piece::Border { at, offset, bits, window: window() }));
        self.tail = Some(Tail { bytes, wanted: WINDOW });
    }

    /// The member ends: what follows refers to nothing before.
    pub(super) fn end(&mut self) {
        if let Some(tail) = self.tail.take() {
            self.found.push(Found(Piece::Tail(Some(tail.bytes))));
        }
    }

    /// These bytes of a plain tar have come.
    pub(super) fn plain(&mut self, bytes: Range<u64>) {
        if let Some(Spacing { starts, .. }) = self.spacing {
            let starts = (bytes.start.div_ceil(starts)..bytes.end.div_ceil(starts)).map(|n| n * starts);
            self.found.extend(starts.map(|at| Found(Piece::Start { at, offset: at })));
        }
    }
}
