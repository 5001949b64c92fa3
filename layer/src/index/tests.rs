//! Indexes of blobs of every make: each span and each run of them against the whole, and damage of every part.

use std::{
    io::{BufReader, Read as _},
    sync::Arc,
};

use proptest::{collection::vec, prelude::*, sample::Index as Pick};

use super::*;
use crate::decode::{Spacing, begin, open_learning};
use make::{Make, Part, blob, tar};

mod make;

/// Places as close together as they can be.
const DENSE: Spacing = Spacing { starts: 3_000, blob: 1, tar: 1..2 };

/// Through an input that gives pieces, with buffers of `buffer` bytes, as the road does.
fn learn(blob: &[u8], buffer: usize, dense: bool) -> (Index, Vec<u8>) {
    let input = BufReader::with_capacity(if buffer > 1 << 20 { 10 << 20 } else { 10_007 }, blob);
    let decoder = if dense { begin(input, Some(DENSE)) } else { open_learning(input) };
    let (mut decoder, mut builder) = (decoder.unwrap(), Builder::new());
    builder.price *= u64::from(!dense);
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
    let input = BufReader::with_capacity(4096, blob.get(start as usize..end as usize).unwrap_or_default());
    let mut reader = read(Arc::clone(index), spans.clone(), input);
    let (mut all, mut out) = (Vec::new(), vec![1]);
    for span in spans {
        match reader.next(&mut out) {
            Ok(number) => assert_eq!(number, Some(span)),
            Err(error) => {
                assert!(out.is_empty());
                assert!(reader.next(&mut out).is_err(), "errors stick");
                return Err(error);
            }
        }
        assert!(out.len() as u64 <= MAX_SPAN);
        all.extend_from_slice(&out);
    }
    assert_eq!(reader.next(&mut out).unwrap(), None);
    Ok(all)
}

fn slice<'a>(tar: &'a [u8], index: &Index, spans: &Range<usize>) -> &'a [u8] {
    match spans {
        spans if spans.is_empty() => &[],
        spans => &tar[index.range(spans.start).start as usize..index.range(spans.end - 1).end as usize],
    }
}

fn segments(index: &Index) -> Vec<Range<usize>> {
    let mut segments: Vec<_> = (0..index.len()).map(|span| index.segment(span)).collect();
    segments.dedup();
    segments
}

/// Everything that an index must do for its blob.
fn prove(name: &str, blob: &[u8], tar: &[u8], index: Index) {
    assert_eq!(index.diff_id(), Digest::of(tar), "{name}");
    assert_eq!(decode(&encode(&index)).unwrap(), index, "{name}");
    let index = Arc::new(index);
    let segments = segments(&index);
    assert_eq!(segments.first().map_or(0, |first| first.start), 0, "{name}");
    assert_eq!(segments.last().map_or(0, |last| last.end), index.len(), "{name}");
    assert!(segments.windows(2).all(|pair| pair[0].end == pair[1].start), "{name}");
    // Backwards, so that nothing comes from what was before; then some longer runs.
    let long = segments.iter().step_by(segments.len() / 4 + 1).map(|first| first.start..index.len());
    for run in segments.iter().rev().cloned().chain(long) {
        let got = fetch(&index, blob, run.clone()).unwrap_or_else(|error| panic!("{name}, spans {run:?}: {error}"));
        assert!(got == slice(tar, &index, &run), "{name}, spans {run:?}");
    }
    for span in 0..index.len() {
        let bytes = slice(tar, &index, &(span..span + 1));
        assert!(index.is_good(span, bytes), "{name}, span {span}");
        assert!(!index.is_good(span, &bytes[1..]), "{name}, span {span}");
        let Range { start, end } = index.range(span);
        assert_eq!(index.spans_of(start..end), span..span + 1);
        assert_eq!(index.spans_of(end - 1..end + 1), span..(span + 2).min(index.len()));
    }
    assert!(index.spans_of(index.size..u64::MAX).is_empty());
}

fn large() -> Vec<u8> {
    let parts = [
        Part::Text(1_700_000, 1),
        Part::Noise(900_000, 2),
        Part::Zeros(1_500_000),
        Part::Far(2_000_000, 3),
        Part::Text(400_000, 4),
    ];
    tar(&parts)
}

#[test]
fn every_span_and_every_run_is_the_same_as_in_the_whole() {
    let data = large();
    let makes = [
        Make::Plain,
        Make::Flushed(6),
        Make::Flushed(0),
        Make::Members(300_001),
        Make::Members(2_500_000),
        Make::Zstd,
        Make::Frames(400_000),
        Make::Frames(5_000),
    ];
    for make in (0..=9).map(Make::Gzip).chain(makes) {
        let (bytes, name) = (blob(&data, &make), format!("{make:?}"));
        let (index, whole) = learn(&bytes, 512 << 10, false);
        assert!(whole == data, "{name}");
        assert!(encode(&index).len() * 100 < data.len(), "{name}");
        // Level 1 of zlib-rs, and a zstd frame, are one block: only the first span can be entered.
        let entered = index.spans.iter().filter(|span| span.entry.is_some()).count();
        assert!(matches!(make, Make::Gzip(1) | Make::Zstd) || entered >= 3, "{name}");
        prove(&name, &bytes, &data, index);
    }
}

#[test]
fn entries_are_known_in_time_whatever_the_buffers() {
    let data = tar(&[Part::Text(30_000, 1), Part::Noise(70_000, 2), Part::Far(200_000, 3)]);
    for make in [Make::Plain, Make::Flushed(6), Make::Gzip(9), Make::Members(7_001), Make::Frames(10_000)] {
        let bytes = blob(&data, &make);
        let (index, _) = learn(&bytes, 1 << 20, true);
        assert!(index.len() > 3, "{make:?}");
        for buffer in [1, 13, 4096, 32 << 10, 4 << 20] {
            assert!(learn(&bytes, buffer, true).0 == index, "{make:?} in buffers of {buffer}");
        }
    }
}

#[test]
fn the_last_byte_before_an_entry_is_fetched_where_its_low_bits_are_data() {
    // Of zeros a block's codes have one or two bits, its end too.
    let data = tar(&[Part::Zeros(3_000_000)]);
    let bytes = blob(&data, &Make::Flushed(6));
    let (index, _) = learn(&bytes, 1 << 20, true);
    assert!(index.spans.iter().flat_map(|span| &span.entry).filter(|entry| entry.bits > 0).count() > 10);
    prove("zeros", &bytes, &data, index);
}

#[test]
fn an_entry_is_where_its_own_frame_or_member_begins() {
    let data = tar(&[Part::Text(50_000, 1)]);
    for (make, magic) in [(Make::Frames(5_000), &b"\x28\xb5\x2f\xfd"[..]), (Make::Members(5_000), b"\x1f\x8b\x08\x1c")]
    {
        let bytes = blob(&data, &make);
        let (index, _) = learn(&bytes, 1 << 20, true);
        let starts = index.spans.iter().flat_map(|span| &span.entry).filter(|entry| entry.window.is_empty());
        let offsets: Vec<_> = starts.map(|entry| entry.offset as usize).collect();
        assert!(offsets.len() > 7, "{make:?}");
        assert!(offsets.iter().all(|offset| bytes[*offset..].starts_with(magic)), "{make:?}");
    }
}

#[test]
fn an_empty_tar_has_an_index_without_spans() {
    for make in [Make::Plain, Make::Gzip(6), Make::Members(1), Make::Zstd] {
        let bytes = blob(b"", &make);
        let (index, _) = learn(&bytes, 10, false);
        assert!(index.is_empty());
        prove("empty", &bytes, b"", index);
    }
}

#[test]
fn a_flood_of_empty_blocks_costs_no_memory_and_no_entry() {
    // A member whose blocks are stored: 100 KB of noise, then empty ones, then a last one.
    let noise = tar(&[Part::Noise(60_000, 1)]);
    let stored = |last: u8, data: &[u8]| {
        let len = data.len() as u16;
        [&[last][..], &len.to_le_bytes(), &(!len).to_le_bytes(), data].concat()
    };
    let mut bytes = b"\x1f\x8b\x08\0\0\0\0\0\0\xff".to_vec();
    bytes.extend(stored(0, &noise));
    bytes.extend(stored(0, b"").repeat(100_000));
    bytes.extend(stored(1, b"the end"));
    let data = [&noise[..], b"the end"].concat();
    let mut sum = flate2::Crc::new();
    sum.update(&data);
    bytes.extend([sum.sum().to_le_bytes(), (data.len() as u32).to_le_bytes()].concat());
    let (index, whole) = learn(&bytes, 1000, true);
    assert!(whole == data);
    assert_eq!((index.len(), index.spans[1].entry.clone()), (2, None));
    prove("flood", &bytes, &data, index);
}

#[test]
fn a_blob_that_ends_early_or_is_another_is_an_error() {
    let data = tar(&[Part::Text(50_000, 1), Part::Far(50_000, 3)]);
    for make in [Make::Plain, Make::Gzip(6), Make::Members(7_001), Make::Frames(10_000)] {
        let bytes = blob(&data, &make);
        let index = Arc::new(learn(&bytes, 1 << 20, true).0);
        let all = 0..index.len();
        for cut in [0, 1, bytes.len() / 2, bytes.len() - 40] {
            let error = fetch(&index, &bytes[..cut], all.clone()).unwrap_err();
            assert!(error.class() == silk_model::Class::Corrupt, "{error}");
        }
        let other = blob(&tar(&[Part::Text(100_000, 7)]), &make);
        let error = fetch(&index, &other[..other.len().min(bytes.len())], all).unwrap_err();
        assert!(matches!(error, SpanError::WrongDigest { .. } | SpanError::Decode(_)), "{error}");
    }
}

#[test]
fn errors_of_the_input_come_through() {
    struct Breaks;
    impl std::io::Read for Breaks {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the wire was cut"))
        }
    }
    let data = tar(&[Part::Far(50_000, 3)]);
    for make in [Make::Plain, Make::Gzip(6), Make::Frames(10_000)] {
        let bytes = blob(&data, &make);
        let index = Arc::new(learn(&bytes, 1 << 20, true).0);
        let mut spans = read(Arc::clone(&index), 0..index.len(), BufReader::new(bytes[..20].chain(Breaks)));
        let error = loop {
            match spans.next(&mut Vec::new()) {
                Ok(span) => assert!(span.is_some()),
                Err(error) => break error,
            }
        };
        assert!(matches!(&error, SpanError::Input(e) if e.to_string() == "the wire was cut"), "{error:?}");
    }
}

#[test]
fn a_window_that_unfolds_to_too_much_is_an_error() {
    let data = tar(&[Part::Far(200_000, 3)]);
    let bytes = blob(&data, &Make::Gzip(6));
    let mut index = learn(&bytes, 1 << 20, true).0;
    let span = (1..index.len()).find(|span| index.spans[*span].entry.is_some()).unwrap();
    index.spans[span].entry.as_mut().unwrap().window = zstd::bulk::compress(&vec![0; 100 << 20], 1).unwrap();
    let error = fetch(&Arc::new(index), &bytes, span..span + 1).unwrap_err();
    assert!(matches!(error, SpanError::Entry { .. }), "{error}");
}

#[test]
fn a_run_that_begins_without_an_entry_is_an_error() {
    let bytes = blob(&large(), &Make::Zstd);
    let index = Arc::new(learn(&bytes, 1 << 20, false).0);
    assert_eq!(index.segment(2), 0..index.len());
    assert!(index.blob_range(2..3).is_empty());
    assert!(matches!(fetch(&index, &bytes, 2..3), Err(SpanError::Entry { span: 2, .. })));
    let mut beyond = read(Arc::clone(&index), index.len()..index.len() + 1, &b""[..]);
    assert!(matches!(beyond.next(&mut Vec::new()), Err(SpanError::Entry { .. })));
}

/// What comes out of a blob or an index that may be damaged is right or an error.
fn never_wrong(index: Index, blob: &[u8], tar: &[u8]) {
    let Ok(index) = decode(&encode(&index)) else { return };
    let index = Arc::new(index);
    for segment in segments(&index) {
        let Range { start, end } = index.blob_range(segment.clone());
        assert!(start < end && end <= index.blob_size);
        match fetch(&index, blob, segment.clone()) {
            Ok(bytes) => assert!(bytes == slice(tar, &index, &segment), "wrong bytes"),
            Err(error) => assert!(!matches!(error, SpanError::Input(_)), "{error}"),
        }
    }
}

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let part = (0..4_usize, 1..60_000_usize, any::<u64>()).prop_map(|(kind, len, seed)| match kind {
        0 => Part::Text(len, seed),
        1 => Part::Noise(len, seed),
        2 => Part::Zeros(len),
        _ => Part::Far(len, seed),
    });
    vec(part, 0..6)
}

fn makes() -> impl Strategy<Value = Make> {
    (0..6_usize, 0..10_u32, 1_000..80_000_usize).prop_map(|(kind, level, piece)| match kind {
        0 => Make::Plain,
        1 => Make::Gzip(level),
        2 => Make::Flushed(level),
        3 => Make::Members(piece),
        4 => Make::Frames(piece),
        _ => Make::Zstd,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_blob_reads_back_from_anywhere(parts in parts(), make in makes()) {
        let data = tar(&parts);
        let bytes = blob(&data, &make);
        let (index, whole) = learn(&bytes, 100_000, true);
        prop_assert!(whole == data);
        prove("any", &bytes, &data, index);
    }

    #[test]
    fn damage_never_gives_a_wrong_byte(
        parts in parts(), make in makes(), picks in vec((any::<Pick>(), any::<Pick>(), any::<u8>()), 8),
    ) {
        let data = tar(&parts);
        let bytes = blob(&data, &make);
        let index = learn(&bytes, 100_000, true).0;
        prop_assume!(!index.is_empty());
        for (span, place, bit) in picks {
            let mut bad = bytes.clone();
            bad[place.index(bytes.len())] ^= 1 << (bit & 7);
            never_wrong(index.clone(), &bad, &data);
            let mut bad = index.clone();
            let span = span.index(index.len());
            if let Some(entry) = &mut bad.spans[span].entry {
                match bit % 4 {
                    0 => entry.offset ^= 1 << (bit >> 4),
                    1 => entry.bits ^= 1 << (bit >> 6),
                    _ if entry.window.is_empty() => entry.window = vec![bit; 20],
                    _ => *place.get_mut(&mut entry.window[..]) ^= bit | 1,
                }
            }
            never_wrong(bad, &bytes, &data);
            let mut bad = index.clone();
            bad.spans[span].start ^= 1 << (bit & 15);
            never_wrong(bad, &bytes, &data);
            let mut bad = index.clone();
            let mut other = data[..index.range(span).end as usize].to_vec();
            *place.get_mut(&mut other) ^= bit | 1;
            bad.spans[span].digest = SpanDigest::default().then(&other);
            prop_assert!(fetch(&Arc::new(bad), &bytes, index.segment(span)).is_err());
        }
    }
}
