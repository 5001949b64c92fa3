//! Makes an index from what a learning decoder finds and the bytes it gives out. Called by the thread that stores them; costs
//! it their SHA-256, and 0.16 ms for each place in a gzip member.

use std::{collections::VecDeque, fmt};

use silk_model::Digest;

use super::{Entry, Index, Span, SpanDigest, window::Trimmer};
use crate::{
    decode::{Found, Piece},
    media::Compression,
};

/// The longest span. Spans end where an entry was found or here: a single zstd frame of any size is verified in pieces of
/// this one.
pub const MAX_SPAN: u64 = 2 << 20;

/// What an entry with a window may cost: one byte for so many bytes of tar since the entry before. It is below 1 %, and
/// 4 KiB for the least distance of two borders, twice what a window takes on average; a dearer one is left out until it is
/// far enough away.
const PRICE: u64 = if cfg!(fuzzing) { 0 } else { 128 };

/// Makes an [`Index`].
pub struct Builder {
    digest: SpanDigest,
    /// Bytes pushed.
    size: u64,
    /// Where the open span began.
    start: u64,
    spans: Vec<Span>,
    /// Where spans will end.
    cuts: VecDeque<u64>,
    entries: Vec<(u64, Entry)>,
    /// An entry whose tail has not come.
    border: Option<(u64, Entry)>,
    trimmer: Option<Trimmer>,
    /// See [`PRICE`].
    pub(super) price: u64,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("size", &self.size).field("spans", &self.spans.len()).finish_non_exhaustive()
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// For a tar of which nothing has come.
    pub fn new() -> Self {
        Self {
            digest: SpanDigest::default(),
            size: 0,
            start: 0,
            spans: Vec::new(),
            cuts: VecDeque::new(),
            entries: Vec::new(),
            border: None,
            trimmer: None,
            price: PRICE,
        }
    }

    /// Takes what [`crate::decode::Decoder::take_entries`] gave, before the bytes that were read with it.
    pub fn entries(&mut self, found: Vec<Found>) {
        for Found(piece) in found {
            match piece {
                Piece::Start { at, offset } => {
                    self.cuts.push_back(at);
                    self.entries.push((at, Entry { offset, bits: 0, window: Vec::new() }));
                }
                Piece::Border { at, offset, bits, window } => {
                    self.cuts.push_back(at);
                    self.border = Some((at, Entry { offset, bits, window }));
                }
                Piece::Tail(Some(tail)) => self.tail(&tail),
                Piece::Tail(None) => self.border = None,
            }
        }
    }

    /// What follows a border has come: now its window can be made small.
    fn tail(&mut self, tail: &[u8]) {
        let Some((at, mut entry)) = self.border.take() else { return };
        let trimmer = self.trimmer.get_or_insert_with(Trimmer::new);
        entry.window = trimmer.trim(&entry.window, tail, entry.bits);
        let distance = at - self.entries.last().map_or(0, |(at, _)| *at);
        if entry.window.len() as u64 * self.price <= distance {
            self.entries.push((at, entry));
        }
    }

    /// Takes the next bytes of the tar.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let cut = self.cuts.front().map_or(u64::MAX, |at| *at).min(self.start + MAX_SPAN);
            let n = cut.saturating_sub(self.size).min(bytes.len() as u64) as usize;
            self.digest.update(&bytes[..n]);
            self.size += n as u64;
            bytes = &bytes[n..];
            if self.size >= cut {
                self.cut();
            }
        }
    }

    /// Ends the open span, if there is one.
    fn cut(&mut self) {
        while self.cuts.front().is_some_and(|at| *at <= self.size) {
            self.cuts.pop_front();
        }
        if self.size > self.start {
            self.spans.push(Span { start: self.start, digest: self.digest.clone(), entry: None });
            self.start = self.size;
        }
    }

    /// The digest of the bytes pushed so far: the diff ID when all have come.
    pub fn digest(&self) -> Digest {
        self.digest.clone().finish(self.size)
    }

    /// The index of the whole tar.
    pub fn finish(mut self, compression: Compression, blob_size: u64) -> Index {
        self.cut();
        let mut entries = self.entries.into_iter().peekable();
        for span in &mut self.spans {
            while let Some((at, entry)) = entries.next_if(|(at, _)| *at <= span.start) {
                span.entry = (at == span.start).then_some(entry);
            }
        }
        Index { compression, blob_size, size: self.size, spans: self.spans }
    }
}
