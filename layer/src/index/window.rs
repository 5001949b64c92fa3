//! The windows of gzip entries: made small by leaving out what nothing refers to, and unfolded again.
//!
//! Which bytes of a window the following data refers to is found by inflating it twice with windows that are not the real
//! one. Their bytes at a place differ, and the pair of them tells the place: what comes out different was copied from
//! there. Only the first 32 KiB of output can refer to the window. On real layers a window of 32 KiB has 8 KiB that are
//! referred to, and takes 2.3 KiB instead of 12.

use std::io;

use silk_sys::inflate::{Inflate, Stop, WINDOW, Wrapper};
use zstd::bulk::{Compressor, Decompressor};

/// zstd's fastest ordinary one: 20 us a window. Level 3 saves another 1 %.
const LEVEL: i32 = 1;

/// Makes windows small.
pub(super) struct Trimmer {
    inflate: Inflate,
    compressor: Compressor<'static>,
    probes: [Vec<u8>; 2],
    outputs: [Vec<u8>; 2],
}

impl Trimmer {
    pub(super) fn new() -> Self {
        let low = (0..WINDOW).map(|n| n as u8).collect();
        // Never the same as the low byte: the difference is 1 to 128.
        let sum = (0..WINDOW).map(|n| (n as u8).wrapping_add((n >> 8) as u8).wrapping_add(1)).collect();
        Self {
            inflate: Inflate::new(Wrapper::Raw),
            compressor: Compressor::new(LEVEL).expect("zstd takes its own level"),
            probes: [low, sum],
            outputs: [vec![0; WINDOW], vec![0; WINDOW]],
        }
    }

    /// The frame for an [`super::Entry`]: of `window` only what `tail` refers to, which is the blob from the entry on.
    pub(super) fn trim(&mut self, window: &[u8], tail: &[u8], bits: u8) -> Vec<u8> {
        let mut trimmed = vec![0; window.len()];
        let lens = [self.probe(0, window.len(), tail, bits), self.probe(1, window.len(), tail, bits)];
        let missing = WINDOW - window.len();
        for (low, sum) in self.outputs[0][..lens[0]].iter().zip(&self.outputs[1][..lens[1]]) {
            if low != sum {
                let high = sum.wrapping_sub(*low).wrapping_sub(1);
                let at = (usize::from(high) << 8 | usize::from(*low)) - missing;
                trimmed[at] = window[at];
            }
        }
        self.compressor.compress(&trimmed).expect("zstd into enough memory does not fail")
    }

    /// Inflates the tail with one of the probes, as far as it goes.
    fn probe(&mut self, number: usize, window: usize, tail: &[u8], bits: u8) -> usize {
        let (mut consumed, mut produced) = (usize::from(bits > 0), 0);
        self.inflate.enter(&self.probes[number][WINDOW - window..], bits, tail.first().copied().unwrap_or(0));
        while produced < WINDOW {
            let output = &mut self.outputs[number][produced..];
            // Data that is damaged further on was referring to the window all the same.
            let Ok(step) = self.inflate.run(tail.get(consumed..).unwrap_or_default(), output, false) else { break };
            consumed += step.consumed;
            produced += step.produced;
            if step.stop == Stop::End || (step.consumed, step.produced) == (0, 0) {
                break;
            }
        }
        produced
    }
}

/// The window in an entry's frame: at most 32 KiB of memory, whatever the frame is.
pub(super) fn unfold(frame: &[u8]) -> io::Result<Vec<u8>> {
    Decompressor::new()?.decompress(frame, WINDOW)
}
