//! Indexes of blobs of every make: each span and each run of them against the whole, and damage of every part.

use std::{
    io::{BufReader, Read as _, Write as _},
    sync::Arc,
};

use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;
use crate::decode::{DecodeError, open_learning};

/// A blob and the tar in it.
struct Blob {
    name: String,
    bytes: Vec<u8>,
    tar: Vec<u8>,
}

/// Numbers that do not compress.
fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Text of words that come again and again.
fn text(len: usize, seed: u64) -> Vec<u8> {
    let words = noise(4096, seed);
    let mut out = Vec::with_capacity(len + 16);
    for (n, pick) in noise(len, seed + 1).chunks(2).enumerate() {
        let at = usize::from(pick[0]) * 16 + usize::from(pick.get(1).copied().unwrap_or(0) & 7);
        out.extend(words[at..at + 3 + n % 7].iter().map(|byte| b'a' + byte % 26));
        out.push(b' ');
        if out.len() >= len {
            break;
        }
    }
    out.truncate(len);
    out
}

/// Matches of all distances up to the longest: pieces of the last 32 KiB, and what never was before.
fn far(len: usize, seed: u64) -> Vec<u8> {
    let mut out = noise(40_000, seed);
    for pick in noise(len, seed + 1).chunks_exact(4) {
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

/// Some of everything, 6.5 MB.
fn mixed() -> Vec<u8> {
    let parts = [text(1_700_000, 1), noise(900_000, 2), vec![0; 1_500_000], far(2_000_000, 3), text(400_000, 4)];
    parts.concat()
}

fn gzip(data: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// One member that is flushed every 128 KiB, as pigz makes it.
fn flushed(data: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    for piece in data.chunks(128 << 10) {
        encoder.write_all(piece).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

/// gzip around one deflate block for each piece, of fixed codes or stored, without any alignment between them.
fn members(data: &[u8], piece: usize) -> Vec<u8> {
    data.chunks(piece).enumerate().flat_map(|(n, piece)| [gzip(piece, n as u32 % 10), gzip(b"", 6)].concat()).collect()
}

fn frames(data: &[u8], piece: usize) -> Vec<u8> {
    let skippable = [&b"\x53\x2a\x4d\x18\x05\0\0\0"[..], b"hello"].concat();
    let frame = |piece: &[u8]| [skippable.clone(), zstd::bulk::compress(piece, 3).unwrap()].concat();
    data.chunks(piece).flat_map(frame).chain(skippable.clone()).collect()
}

fn blobs() -> Vec<Blob> {
    let tar = mixed();
    let blob = |name: &str, bytes| Blob { name: name.into(), bytes, tar: mixed() };
    let mut blobs: Vec<Blob> = (0..=9).map(|level| blob(&format!("gzip -{level}"), gzip(&tar, level))).collect();
    blobs.extend([
        blob("plain", tar.clone()),
        blob("gzip, flushed", flushed(&tar, 6)),
        blob("gzip, stored and flushed", flushed(&tar, 0)),
        blob("gzip, members", members(&tar, 300_001)),
        blob("gzip, large members", members(&tar, 2_500_000)),
        blob("zstd", zstd::bulk::compress(&tar, 3).unwrap()),
        blob("zstd, frames", frames(&tar, 400_000)),
        blob("zstd, small frames", frames(&tar, 5_000)),
    ]);
    blobs
}

/// Through an input that gives pieces, with buffers of `buffer` bytes, as the road does.
fn learn(blob: &[u8], buffer: usize) -> (Index, Vec<u8>) {
    let mut decoder = open_learning(BufReader::with_capacity(10_007, blob)).unwrap();
    let mut builder = Builder::new();
    let (mut tar, mut bytes) = (Vec::new(), vec![0; buffer]);
    loop {
        let n = decoder.read(&mut bytes).unwrap();
        builder.entries(decoder.take_entries());
        builder.push(&bytes[..n]);
        tar.extend_from_slice(&bytes[..n]);
        if n == 0 {
            assert_eq!(builder.digest(), Digest::of(&tar));
            return (builder.finish(decoder.compression(), blob.len() as u64), tar);
        }
    }
}

/// Reads a run of spans as a range request would bring them.
fn fetch(index: &Arc<Index>, blob: &[u8], spans: Range<usize>) -> Result<Vec<u8>, SpanError> {
    let Range { start, end } = index.blob_range(spans.clone());
    let input = BufReader::with_capacity(4096, &blob[start as usize..end as usize]);
    let mut reader = read(Arc::clone(index), spans.clone(), input);
    let (mut all, mut out) = (Vec::new(), Vec::new());
    for span in spans {
        assert_eq!(reader.next(&mut out)?, Some(span));
        all.extend_from_slice(&out);
    }
    assert_eq!(reader.next(&mut out)?, None);
    assert!(out.is_empty());
    Ok(all)
}

fn slice<'a>(tar: &'a [u8], index: &Index, spans: Range<usize>) -> &'a [u8] {
    if spans.is_empty() {
        return &[];
    }
    &tar[index.range(spans.start).start as usize..index.range(spans.end - 1).end as usize]
}

#[test]
fn every_span_and_every_run_is_the_same_as_in_the_whole() {
    for Blob { name, bytes, tar } in blobs() {
        let (index, whole) = learn(&bytes, 512 << 10);
        assert!(whole == tar, "{name}");
        assert_eq!(index.diff_id(), Digest::of(&tar), "{name}");
        let file = encode(&index);
        assert_eq!(decode(&file).unwrap(), index, "{name}");
        let entries = index.spans.iter().filter(|span| span.entry.is_some()).count();
        let percent = file.len() as f64 * 100.0 / tar.len() as f64;
        println!("{name}: {} spans, {entries} entries, {percent:.2} %", index.len());
        assert!(percent < 1.0, "{name}");
        let index = Arc::new(index);
        for span in 0..index.len() {
            let segment = index.segment(span);
            assert!(segment.contains(&span));
            let got = fetch(&index, &bytes, segment.clone()).unwrap();
            assert!(got == slice(&tar, &index, segment), "{name} {span}");
            assert!(index.is_good(span, slice(&tar, &index, span..span + 1)), "{name} {span}");
        }
        for start in (0..index.len()).filter(|n| index.spans[*n].entry.is_some()).step_by(3) {
            for end in [start + 2, start + 5, index.len()] {
                let run = start..end.min(index.len());
                assert!(fetch(&index, &bytes, run.clone()).unwrap() == slice(&tar, &index, run), "{name} {start}");
            }
        }
    }
}
