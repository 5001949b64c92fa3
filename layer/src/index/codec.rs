//! An [`Index`] as a file: `docs/formats/index.md`. Called by the store and by what shares indexes; nothing here blocks.
//!
//! The file is hashed, so one that was torn or has rotted is an error. An index made by somebody else may still be hostile:
//! decoding allocates in proportion to the bytes at hand, and what [`Index`] promises is checked. Whether it tells the
//! truth is seen from [`Index::diff_id`] and from each span's digest.

use sha2::{Digest as _, Sha256};
use silk_model::Class;
use silk_sys::inflate::WINDOW;

use super::{Entry, Index, MAX_SPAN};
use crate::media::Compression;

/// The first bytes of the file.
pub const MAGIC: [u8; 8] = *b"SILKIDX\0";

/// The version that this code writes, and the only one that it reads: an index can always be made again.
pub const VERSION: u32 = 1;

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 64;

/// A file that is not an index, or not one that we read.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Too short, or something else altogether.
    #[error("this is not an index of silk")]
    NotAnIndex,
    /// Written by another silk.
    #[error("the index has version {0}, this silk reads version {VERSION}: it must be made again")]
    Version(u32),
    /// Shorter or longer than its header says.
    #[error("the index has {found} bytes of payload where its header promises {promised}")]
    Length {
        /// By the header.
        promised: u64,
        /// What there is.
        found: u64,
    },
    /// The hash does not match: torn or rotten.
    #[error("the index does not match its own hash: the file is damaged")]
    Hash,
    /// The payload is no postcard of an [`Index`].
    #[error("the index cannot be decoded")]
    Encoding(#[source] postcard::Error),
    /// No builder makes this.
    #[error("the index is impossible at span {span}: {what}")]
    Impossible {
        /// Which one; their number if it is about the whole.
        span: usize,
        /// What is wrong.
        what: &'static str,
    },
}

impl IndexError {
    /// What kind of trouble this is.
    pub fn class(&self) -> Class {
        match self {
            Self::Version(_) => Class::Unsupported,
            _ => Class::Corrupt,
        }
    }
}

/// The file's bytes for an index.
pub fn encode(index: &Index) -> Vec<u8> {
    let mut file = Vec::from(MAGIC);
    file.extend_from_slice(&VERSION.to_le_bytes());
    file.extend_from_slice(&[0; HEADER_LEN - MAGIC.len() - 4]);
    file = postcard::to_extend(index, file).expect("postcard into memory fails for no value of this type");
    let payload = (file.len() - HEADER_LEN) as u64;
    file[16..24].copy_from_slice(&payload.to_le_bytes());
    let hash = hash(&file);
    file[32..HEADER_LEN].copy_from_slice(&hash);
    file
}

/// Of everything but itself.
fn hash(file: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(&file[..32]).chain_update(&file[HEADER_LEN..]).finalize().into()
}

/// The index in a file's bytes.
pub fn decode(file: &[u8]) -> Result<Index, IndexError> {
    let (header, payload) = file.split_at_checked(HEADER_LEN).ok_or(IndexError::NotAnIndex)?;
    if header[..8] != MAGIC {
        return Err(IndexError::NotAnIndex);
    }
    let version = u32::from_le_bytes(header[8..12].try_into().expect("four bytes of a fixed header"));
    if version != VERSION {
        return Err(IndexError::Version(version));
    }
    let promised = u64::from_le_bytes(header[16..24].try_into().expect("eight bytes of a fixed header"));
    let found = payload.len() as u64;
    if promised != found {
        return Err(IndexError::Length { promised, found });
    }
    if header[32..] != hash(file) {
        return Err(IndexError::Hash);
    }
    let (index, rest) = postcard::take_from_bytes::<Index>(payload).map_err(IndexError::Encoding)?;
    if !rest.is_empty() {
        return Err(IndexError::Encoding(postcard::Error::DeserializeBadEncoding));
    }
    check(&index)?;
    Ok(index)
}

/// What every index holds to.
fn check(index: &Index) -> Result<(), IndexError> {
    let mut offset = None;
    for (number, span) in index.spans.iter().enumerate() {
        let impossible = |what| Err(IndexError::Impossible { span: number, what });
        let end = index.start(number + 1);
        if (number == 0 && span.start != 0) || end <= span.start || end - span.start > MAX_SPAN {
            return impossible("it is empty, too long, or not where the one before ends");
        }
        if !span.digest.fits(end) {
            return impossible("its digest is that of another length");
        }
        let Some(entry) = &span.entry else {
            match number {
                0 => return impossible("it has no entry"),
                _ => continue,
            }
        };
        if offset.is_some_and(|before| entry.offset <= before) || entry.offset >= index.blob_size {
            return impossible("its entry is before an earlier one, or outside of the blob");
        }
        if !is_possible(entry, span.start, index) {
            return impossible("no such entry is in a blob of this compression");
        }
        offset = Some(entry.offset);
    }
    let plain = index.compression == Compression::None;
    let fits = index.spans.is_empty() == (index.size == 0) && (!plain || index.blob_size == index.size);
    if fits {
        Ok(())
    } else {
        Err(IndexError::Impossible { span: index.len(), what: "the sizes contradict each other" })
    }
}

fn is_possible(entry: &Entry, start: u64, index: &Index) -> bool {
    match index.compression {
        Compression::None => entry.offset == start && entry.bits == 0 && entry.window.is_empty(),
        Compression::Zstd => entry.bits == 0 && entry.window.is_empty(),
        // A frame of random bytes is a little longer than they.
        Compression::Gzip => {
            entry.bits < 8 && entry.window.len() <= WINDOW + 64 && (entry.bits == 0 || !entry.window.is_empty())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Span, SpanDigest};

    fn sample() -> Index {
        let data: Vec<u8> = (0..700_u16).map(|n| n as u8).collect();
        let digest = |end: usize| SpanDigest::default().then(&data[..end]);
        let window = zstd::bulk::compress(b"the tar before", 1).unwrap();
        let spans = vec![
            Span { start: 0, digest: digest(100), entry: Some(Entry { offset: 0, bits: 0, window: vec![] }) },
            Span { start: 100, digest: digest(640), entry: None },
            Span { start: 640, digest: digest(700), entry: Some(Entry { offset: 400, bits: 7, window }) },
        ];
        Index { compression: Compression::Gzip, blob_size: 500, size: 700, spans }
    }

    #[test]
    fn round_trips() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let empty = Index { compression, blob_size: 0, size: 0, spans: vec![] };
            assert_eq!(decode(&encode(&empty)).unwrap(), empty);
        }
        assert_eq!(decode(&encode(&sample())).unwrap(), sample());
    }

    #[test]
    fn the_layout_on_disk_is_the_documented_one() {
        let mut index = sample();
        index.spans.truncate(1);
        index.size = 100;
        let file = encode(&index);
        assert_eq!(file[..16], *b"SILKIDX\0\x01\0\0\0\0\0\0\0");
        assert_eq!(file[16..24], (file.len() as u64 - 64).to_le_bytes());
        assert_eq!(file[24..32], [0; 8]);
        let digest = &index.spans[0].digest;
        let state = postcard::to_stdvec(digest).unwrap();
        assert_eq!((state.len(), state[32]), (32 + 1 + 36, 36));
        // gzip, 500, 100, one span: 0, its state, an entry: 0, 0, no bytes.
        assert_eq!(file[64..], [&[1, 0xf4, 3, 100, 1, 0][..], &state, &[1, 0, 0, 0]].concat());
        // The chaining value is as in a digest: the padding of nothing leads to the digest of nothing.
        let mut padding = [0; 64];
        padding[0] = 0x80;
        let state = postcard::to_stdvec(&SpanDigest::default().then(&padding)).unwrap();
        assert_eq!(state, [&Sha256::digest(b"")[..], &[0]].concat());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_an_error() {
        let file = encode(&sample());
        for at in 0..file.len() {
            assert!(decode(&file[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut bad = file.clone();
                bad[at] ^= 1 << bit;
                assert!(decode(&bad).is_err(), "flipped at {at}");
            }
        }
        assert!(matches!(decode(&[&file[..], b"x"].concat()), Err(IndexError::Length { .. })));
    }

    #[test]
    fn a_number_of_spans_beyond_all_memory_is_refused() {
        let mut file = encode(&sample())[..HEADER_LEN].to_vec();
        file.extend([1, 0xf4, 3, 0xbc, 5, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
        file[16..24].copy_from_slice(&15_u64.to_le_bytes());
        let sum = hash(&file);
        file[32..64].copy_from_slice(&sum);
        assert!(matches!(decode(&file), Err(IndexError::Encoding(_))));
    }

    #[test]
    fn what_no_builder_makes_is_refused() {
        type Damage = (&'static str, fn(&mut Index));
        let broken: [Damage; 15] = [
            ("hole at the start", |index| index.spans[0].start = 1),
            ("empty span", |index| index.spans[1].start = 640),
            ("backwards", |index| index.spans[1].start = 650),
            ("beyond the end", |index| index.size = 640),
            ("too long", |index| index.size = 640 + MAX_SPAN + 60),
            ("no spans", |index| index.spans.clear()),
            ("no size", |index| index.size = 0),
            ("no way in", |index| index.spans[0].entry = None),
            ("digest of another length", |index| index.spans[1].start = 101),
            ("outside of the blob", |index| index.blob_size = 400),
            ("entries backwards", |index| index.spans[0].entry.as_mut().unwrap().offset = 400),
            ("bits", |index| index.spans[2].entry.as_mut().unwrap().bits = 8),
            ("bits of a member", |index| index.spans[0].entry.as_mut().unwrap().bits = 1),
            ("window", |index| index.spans[2].entry.as_mut().unwrap().window = vec![0; 33 << 10]),
            ("window in zstd", |index| index.compression = Compression::Zstd),
        ];
        for (name, damage) in broken {
            let mut index = sample();
            damage(&mut index);
            assert!(matches!(decode(&encode(&index)), Err(IndexError::Impossible { .. })), "{name}");
        }
        let entry = |offset| Some(Entry { offset, bits: 0, window: vec![] });
        let mut plain = Index { compression: Compression::None, blob_size: 700, ..sample() };
        plain.spans[2].entry = entry(640);
        assert_eq!(decode(&encode(&plain)).unwrap(), plain);
        plain.spans[2].entry = entry(641);
        assert!(matches!(decode(&encode(&plain)), Err(IndexError::Impossible { span: 2, .. })));
        plain.spans[2].entry = None;
        plain.blob_size = 701;
        assert!(matches!(decode(&encode(&plain)), Err(IndexError::Impossible { span: 3, .. })));
    }
}
