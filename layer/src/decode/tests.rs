//! The decoder against whole, joined, cut and damaged streams.

use std::io::{BufReader, Write as _};

use flate2::{GzBuilder, write::GzEncoder};

use super::*;

fn sample() -> Vec<u8> {
    (0..200_000_u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> (n % 24)).to_le_bytes()).collect()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(data, 3).unwrap()
}

/// Reads through an input that gives a few bytes at a time. Learning must change nothing, however close the places are.
fn read(blob: &[u8]) -> io::Result<Vec<u8>> {
    let everywhere = Spacing { starts: 1, blob: 1, tar: 1..2 };
    let through = |spacing| -> io::Result<(Vec<u8>, Option<io::Error>)> {
        let mut out = Vec::new();
        let result = begin(BufReader::with_capacity(7, blob), spacing)?.read_to_end(&mut out);
        Ok((out, result.err()))
    };
    let (out, error) = through(None)?;
    let (same, similar) = through(Some(everywhere))?;
    assert!(error.is_some() || out == same);
    assert_eq!(error.as_ref().map(DecodeError::of), similar.as_ref().map(DecodeError::of));
    error.map_or(Ok(out), Err)
}

fn typed(blob: &[u8]) -> DecodeError {
    DecodeError::of(&read(blob).unwrap_err()).unwrap().clone()
}

#[test]
fn every_format_reads_back() {
    let data = sample();
    assert_eq!(read(&data).unwrap(), data);
    assert_eq!(read(&gzip(&data)).unwrap(), data);
    assert_eq!(read(&zstd(&data)).unwrap(), data);
    assert_eq!(open(&gzip(b"")[..]).unwrap().compression(), Compression::Gzip);
}

#[test]
fn an_empty_or_short_blob_is_a_plain_tar() {
    assert_eq!(read(b"").unwrap(), b"");
    assert_eq!(read(b"abc").unwrap(), b"abc");
}

#[test]
fn members_and_frames_are_joined() {
    let mut a = sample();
    let b = a.split_off(1000);
    assert_eq!(read(&[gzip(&a), gzip(b""), gzip(&b)].concat()).unwrap(), [a.clone(), b.clone()].concat());
    let skippable = [&b"\x53\x2a\x4d\x18\x05\0\0\0"[..], b"hello"].concat();
    let frames = [skippable.clone(), zstd(&a), skippable.clone(), zstd(b""), zstd(&b), skippable].concat();
    assert_eq!(read(&frames).unwrap(), [a, b].concat());
}

#[test]
fn a_gzip_header_with_all_its_fields_is_read() {
    let builder = GzBuilder::new().filename("layer.tar").comment("a comment").extra(vec![1; 300]);
    let mut encoder = builder.write(Vec::new(), flate2::Compression::fast());
    encoder.write_all(b"body").unwrap();
    assert_eq!(read(&encoder.finish().unwrap()).unwrap(), b"body");
}

#[test]
fn a_stream_cut_anywhere_is_truncated_and_never_short() {
    let data = &sample()[..600];
    for (format, blob) in [("gzip", gzip(data)), ("zstd", zstd(data))] {
        for cut in 4..blob.len() {
            assert_eq!(typed(&blob[..cut]), DecodeError::Truncated(format), "{format} cut at {cut}");
        }
    }
}

#[test]
fn damage_is_found() {
    let data = sample();
    for (name, blob) in [("gzip", gzip(&data)), ("zstd", zstd::stream::encode_all(&data[..], 3).unwrap())] {
        let mut bad = blob.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 0x55;
        match read(&bad) {
            Err(error) => assert_eq!(DecodeError::of(&error).unwrap().class(), Class::Corrupt),
            // Without a checksum zstd may read on; the layer's digest finds that.
            Ok(out) => assert!(name == "zstd" && out != data),
        }
    }
    let mut bad_sum = gzip(&data);
    let at = bad_sum.len() - 6;
    bad_sum[at] ^= 1;
    assert!(matches!(typed(&bad_sum), DecodeError::Corrupt { format: "gzip", .. }));
}

#[test]
fn what_follows_the_end_is_passed_over_in_gzip_and_an_error_in_zstd() {
    for tail in [&[0_u8; 512][..], b"\0", b"garbage garbage"] {
        assert_eq!(read(&[&gzip(b"x"), &gzip(b"y"), tail].concat()).unwrap(), b"xy");
        assert!(DecodeError::of(&read(&[&zstd(b"x"), tail].concat()).unwrap_err()).is_some());
    }
    assert!(matches!(
        typed(&[&gzip(b"x")[..], b"\x1f no member"].concat()),
        DecodeError::Corrupt { format: "gzip", .. }
    ));
}

#[test]
fn a_window_beyond_the_bound_is_refused_and_one_at_the_bound_is_not() {
    // Frame header without content size: descriptor 0, window descriptor (log - 10) << 3, then an empty last block.
    let frame = |log: u8| [&b"\x28\xb5\x2f\xfd\x00"[..], &[(log - 10) << 3, 1, 0, 0]].concat();
    assert_eq!(read(&frame(27)).unwrap(), b"");
    assert_eq!(typed(&frame(28)), DecodeError::Window);
    assert_eq!(typed(&frame(41)), DecodeError::Window);
}

#[test]
fn errors_of_the_input_come_through_and_stick() {
    struct Breaks<'a>(&'a [u8]);
    impl Read for Breaks<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buf)? {
                0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the wire was cut")),
                n => Ok(n),
            }
        }
    }
    let data = sample();
    for blob in [data.clone(), gzip(&data), zstd(&data)] {
        let mut decoder = open(BufReader::new(Breaks(&blob[..blob.len() / 2]))).unwrap();
        let error = decoder.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "the wire was cut");
        assert!(DecodeError::of(&error).is_none());
        assert!(decoder.read(&mut [0]).is_err());
    }
    let blob = gzip(&data);
    let mut decoder = open(&blob[..5000]).unwrap();
    assert!(decoder.read_to_end(&mut Vec::new()).is_err());
    assert!(decoder.read(&mut [0]).is_err());
}

#[test]
fn a_blob_that_is_called_plain_is_not_looked_at() {
    for tar in [gzip(b"x"), zstd(b"x"), sample()] {
        let mut decoder = open_plain(&tar[..]);
        let mut out = Vec::new();
        decoder.read_to_end(&mut out).unwrap();
        assert!(out == tar && decoder.compression() == Compression::None);
        assert!(!decoder.take_entries().is_empty());
    }
}
