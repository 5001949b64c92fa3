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
    /// Room for any frame.
    frame: Vec<u8>,
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
            frame: vec![0; zstd::zstd_safe::compress_bound(WINDOW)],
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
        let len = self.compressor.compress_to_buffer(&trimmed, &mut self.frame[..]);
        let len = len.expect("zstd into enough memory does not fail");
        // Of its own length: a large layer has ten thousands of them.
        self.frame[..len].to_vec()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A fixed block: literals, and copies (of 3 bytes, from a distance), as RFC 1951 codes them. Then the end.
    fn block(symbols: &[Result<u8, u16>]) -> Vec<u8> {
        let mut bits = vec![true, true, false];
        let mut code = |value: u32, len: u32| bits.extend((0..len).rev().map(|n| value >> n & 1 == 1));
        for symbol in symbols {
            match symbol {
                Ok(literal @ 0..144) => code(0x30 + u32::from(*literal), 8),
                Ok(literal) => code(0x190 + u32::from(*literal - 144), 9),
                // Length 3 is symbol 257; distances from 24577 on are symbol 29 with 13 more bits, low ones first.
                Err(distance) => {
                    code(1, 7);
                    code(29, 5);
                    code(u32::from(distance - 24577).reverse_bits() >> 19, 13);
                }
            }
        }
        code(0, 7);
        bits.chunks(8).map(|byte| byte.iter().enumerate().map(|(n, bit)| u8::from(*bit) << n).sum()).collect()
    }

    #[test]
    fn what_is_referred_to_stays_and_nothing_else() {
        let window: Vec<u8> = (0..WINDOW).map(|n| (n % 251) as u8 + 1).collect();
        // The window's first bytes, one literal later, then bytes 4 to 6 behind 8000 literals that look like the window.
        let mut symbols = vec![Err(32768), Ok(200)];
        symbols.extend(window[..8000].iter().copied().map(Ok));
        symbols.push(Err(32768));
        let frame = Trimmer::new().trim(&window, &block(&symbols), 0);
        let kept = unfold(&frame).unwrap();
        assert_eq!(kept.len(), WINDOW);
        let places: Vec<usize> = (0..WINDOW).filter(|at| kept[*at] != 0).collect();
        assert_eq!(places, [0, 1, 2, 8004, 8005, 8006]);
        assert!(places.iter().all(|at| kept[*at] == window[*at]));
        // Nor does it take more than it needs in memory.
        assert!(frame.len() < 60 && frame.capacity() < 120, "{} of {}", frame.len(), frame.capacity());
    }

    #[test]
    fn a_window_that_is_not_full_keeps_its_length() {
        let window: Vec<u8> = (0..30_000).map(|n| (n % 251) as u8 + 1).collect();
        let kept = unfold(&Trimmer::new().trim(&window, &block(&[Err(30_000)]), 0)).unwrap();
        assert_eq!(kept.len(), 30_000);
        assert_eq!(kept[..4], [1, 2, 3, 0]);
        let empty = Trimmer::new().trim(&[], &block(&[Ok(1)]), 0);
        assert!(!empty.is_empty() && unfold(&empty).unwrap().is_empty());
    }
}
