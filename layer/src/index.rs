//! Random access into a layer's blob: which bytes of the blob become which bytes of the tar, and what those must be.
//!
//! The tar is cut into [`Span`]s. Decoding can begin at those with an [`Entry`]; each is verified alone. [`read()`] decodes a
//! run of spans from the part of the blob that [`Index::blob_range`] names. An index is made while a layer streams in, by
//! [`crate::decode::open_learning`] and [`Builder`], and kept as [`encode`]'s bytes. Pure computing; [`Spans`] blocks as its
//! input does.
//!
//! # Digests
//! Spans are digested by the SHA-256 that makes the layer's diff ID: a [`SpanDigest`] is its state behind the span. A span
//! is good when its bytes lead from the state before it to its own. So digesting costs nothing where the diff ID is computed
//! anyway, an index tells by itself which diff ID it leads to ([`Index::diff_id`]), and a layer whose spans are all good
//! is proved, in whatever order they came.

mod build;
mod codec;
mod digest;
mod read;
mod window;

pub use build::{Builder, MAX_SPAN};
pub use codec::{HEADER_LEN, IndexError, MAGIC, VERSION, decode, encode};
pub use digest::SpanDigest;
pub use read::{SpanError, Spans, read};

use std::ops::Range;

use serde::{Deserialize, Serialize};
use silk_model::Digest;

use crate::{media::Compression, toc::bytes};

/// Random access into one blob. What [`decode`] gives holds to all that is said here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// How the blob is compressed.
    pub compression: Compression,
    /// Bytes of the blob.
    pub blob_size: u64,
    /// Bytes of the tar.
    pub size: u64,
    /// They cover the tar in order, none is empty or longer than [`MAX_SPAN`]; the first has an entry.
    pub spans: Vec<Span>,
}

/// A piece of the tar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Its first byte in the tar.
    pub start: u64,
    /// The digest of the tar up to its end.
    pub digest: SpanDigest,
    /// Decoding can begin here.
    pub entry: Option<Entry>,
}

/// How to begin decoding at a span.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The byte of the blob to begin at. Later entries have larger ones.
    pub offset: u64,
    /// gzip: how many of that byte's high bits belong to the span; 0: all of them. The low ones belong to what is before.
    pub bits: u8,
    /// gzip: one zstd frame that holds the tar before the span, up to 32 KiB, in which bytes that are not referred to are
    /// zero. Empty: a member begins here.
    #[serde(with = "bytes")]
    pub window: Vec<u8>,
}

impl Index {
    /// How many spans there are.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether the tar is empty.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The bytes of the tar that a span covers.
    ///
    /// # Panics
    /// If there is no such span.
    pub fn range(&self, span: usize) -> Range<u64> {
        self.spans[span].start..self.start(span + 1)
    }

    /// The first byte of a span; the size for the one behind the last.
    fn start(&self, span: usize) -> u64 {
        self.spans.get(span).map_or(self.size, |span| span.start)
    }

    /// The spans that hold these bytes of the tar, as far as it goes.
    pub fn spans_of(&self, bytes: Range<u64>) -> Range<usize> {
        let end = bytes.end.min(self.size);
        if bytes.start >= end {
            return 0..0;
        }
        let first = self.spans.partition_point(|span| span.start <= bytes.start) - 1;
        first..self.spans.partition_point(|span| span.start < end)
    }

    /// The smallest run of spans that holds `span`, begins at an entry and ends before another or at the end.
    ///
    /// # Panics
    /// If there is no such span.
    pub fn segment(&self, span: usize) -> Range<usize> {
        let first = self.spans[..=span].iter().rposition(|span| span.entry.is_some()).unwrap_or(0);
        first..self.next_entry(span + 1)
    }

    /// The first span with an entry, from `span` on; their number if there is none.
    fn next_entry(&self, span: usize) -> usize {
        let later = self.spans.get(span..).unwrap_or_default();
        later.iter().position(|span| span.entry.is_some()).map_or(self.len(), |n| span + n)
    }

    /// The bytes of the blob that are needed to decode a run of spans, which begins at one with an entry; some more if
    /// it does not end before another or at the end.
    ///
    /// # Panics
    /// If `spans` is not in the index.
    pub fn blob_range(&self, spans: Range<usize>) -> Range<u64> {
        let Some(entry) = self.spans[spans.start..].first().and_then(|span| span.entry.as_ref()) else { return 0..0 };
        // A byte whose low bits are before the next entry is needed here too.
        let next = self.spans.get(self.next_entry(spans.end)).and_then(|span| span.entry.as_ref());
        let end = next.map_or(self.blob_size, |next| next.offset + u64::from(next.bits > 0));
        entry.offset..end
    }

    /// Whether these are the span's bytes.
    ///
    /// # Panics
    /// If there is no such span.
    pub fn is_good(&self, span: usize, bytes: &[u8]) -> bool {
        let Range { start, end } = self.range(span);
        let before = span.checked_sub(1).map_or_else(SpanDigest::default, |before| self.spans[before].digest.clone());
        bytes.len() as u64 == end - start && before.then(bytes) == self.spans[span].digest
    }

    /// The digest of a tar of which all spans are good.
    pub fn diff_id(&self) -> Digest {
        self.spans.last().map_or_else(SpanDigest::default, |span| span.digest.clone()).finish(self.size)
    }
}

#[cfg(test)]
mod tests;
