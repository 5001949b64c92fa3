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
