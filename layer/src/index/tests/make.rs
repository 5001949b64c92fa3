//! Bytes of every kind, compressed in every way.

use std::io::Write as _;

use flate2::write::GzEncoder;

/// A piece of a tar: its length, and what makes it another one.
#[derive(Debug, Clone)]
pub(super) enum Part {
    /// Words that come again and again.
    Text(usize, u64),
    /// What does not compress.
    Noise(usize, u64),
    Zeros(usize),
    /// Copies over all distances up to deflate's longest, between bytes that never were before.
    Far(usize, u64),
}

/// How the tar becomes a blob; sizes are bytes of tar.
#[derive(Debug, Clone)]
pub(super) enum Make {
    Plain,
    /// One member of this level.
    Gzip(u32),
    /// One member of this level that is flushed every 128 KiB, as pigz makes it.
    Flushed(u32),
    /// A member of another level for each piece, with header fields, and an empty one behind each.
    Members(usize),
    /// One frame.
    Zstd,
    /// A frame for each piece, and skippable and empty ones between.
    Frames(usize),
}

pub(super) fn tar(parts: &[Part]) -> Vec<u8> {
    let make = |part: &Part| match *part {
        Part::Text(len, seed) => text(len, seed),
        Part::Noise(len, seed) => noise(len, seed),
        Part::Zeros(len) => vec![0; len],
        Part::Far(len, seed) => far(len, seed),
    };
    parts.iter().flat_map(make).collect()
}

fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn text(len: usize, seed: u64) -> Vec<u8> {
    let words = noise(4096, seed);
    let mut out = Vec::with_capacity(len + 16);
    for (n, pick) in noise(len, seed.wrapping_add(1)).chunks(2).enumerate() {
        let at = usize::from(pick[0]) * 15 + usize::from(pick.last().copied().unwrap_or(0) & 7);
        out.extend(words[at..at + 3 + n % 7].iter().map(|byte| b'a' + byte % 26));
        out.push(b' ');
        if out.len() >= len {
            break;
        }
    }
    out.truncate(len);
    out
}

fn far(len: usize, seed: u64) -> Vec<u8> {
    let mut out = noise(40_000, seed);
    for pick in noise(len, seed.wrapping_add(1)).chunks_exact(4) {
        let distance = (usize::from(pick[0]) << 8 | usize::from(pick[1])) % (32 << 10) + 1;
        let from = out.len() - distance;
        let piece = out[from..from + distance.min(3 + usize::from(pick[2] & 63))].to_vec();
        out.extend(piece);
        out.push(pick[3]);
        if out.len() >= len {
            break;
        }
    }
    out.truncate(len);
    out
}

pub(super) fn blob(data: &[u8], make: &Make) -> Vec<u8> {
    match *make {
        Make::Plain => data.to_vec(),
        Make::Gzip(level) => gzip(data, level, usize::MAX),
        Make::Flushed(level) => gzip(data, level, 128 << 10),
        Make::Members(piece) => {
            let pieces = data.chunks(piece).chain(data.is_empty().then_some(data)).enumerate();
            pieces.flat_map(|(n, piece)| [named(piece, n as u32 % 10), gzip(b"", 6, 1)].concat()).collect()
        }
        Make::Zstd => zstd::bulk::compress(data, 3).unwrap(),
        Make::Frames(piece) => {
            let skippable = [&b"\x53\x2a\x4d\x18\x05\0\0\0"[..], b"hello"].concat();
            let frame = |piece: &[u8]| zstd::bulk::compress(piece, 3).unwrap();
            let frames = data.chunks(piece).flat_map(|piece| [skippable.clone(), frame(piece), frame(b"")].concat());
            frames.chain(skippable.clone()).collect()
        }
    }
}

fn gzip(data: &[u8], level: u32, flush: usize) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    for piece in data.chunks(flush) {
        encoder.write_all(piece).unwrap();
        if flush < data.len() {
            encoder.flush().unwrap();
        }
    }
    encoder.finish().unwrap()
}

fn named(data: &[u8], level: u32) -> Vec<u8> {
    let header = flate2::GzBuilder::new().filename("layer.tar").comment("a comment").extra(vec![1; 300]);
    let mut encoder = header.write(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}
