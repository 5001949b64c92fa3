//! Spans out of a part of the blob, each verified before it is given out. Called by whoever fills a hole; blocks as its
//! input does.

use std::{
    io::{self, BufRead, Read as _},
    ops::Range,
    sync::Arc,
};

use silk_model::Class;

use super::{Index, window};
use crate::{
    decode::{self, DecodeError, Decoder, Point},
    media::Compression,
};

/// Why a span could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SpanError {
    /// The input's own error.
    #[error(transparent)]
    Input(io::Error),
    /// The blob is damaged, or not the one of the index.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The bytes are not those of the index.
    #[error("span {span} of the layer does not match its digest: its blob or its index is not the right one")]
    WrongDigest {
        /// Its number.
        span: usize,
    },
    /// The index gives no way in.
    #[error("decoding cannot begin at span {span} of the layer: {what}")]
    Entry {
        /// Its number.
        span: usize,
        /// Why not.
        what: &'static str,
    },
}

impl SpanError {
    /// What kind of trouble this is.
    pub fn class(&self) -> Class {
        match self {
            Self::Input(_) => Class::Transient,
            Self::Decode(error) => error.class(),
            Self::WrongDigest { .. } | Self::Entry { .. } => Class::Corrupt,
        }
    }
}

/// Decodes consecutive spans.
#[derive(Debug)]
pub struct Spans<R: BufRead> {
    index: Arc<Index>,
    left: Range<usize>,
    state: State<R>,
}

#[derive(Debug)]
enum State<R: BufRead> {
    Before(R),
    Open(Box<Decoder<R>>),
    Failed,
}

/// Decodes `spans` of the index from `input`, which gives the blob from the start of [`Index::blob_range`] on; of what is
/// behind its end nothing is used.
pub fn read<R: BufRead>(index: Arc<Index>, spans: Range<usize>, input: R) -> Spans<R> {
    Spans { index, left: spans, state: State::Before(input) }
}

impl<R: BufRead> Spans<R> {
    /// Puts the next span's bytes into `out`, in place of what is there, and tells its number; `None`, and `out` as it was, when all
    /// were given. Never more than [`super::MAX_SPAN`] bytes, whatever the blob unfolds to.
    ///
    /// # Errors
    /// See [`SpanError`]; `out` is empty then. After one every further call answers [`SpanError::Entry`].
    pub fn next(&mut self, out: &mut Vec<u8>) -> Result<Option<usize>, SpanError> {
        let result = self.decode(out);
        if result.is_err() {
            out.clear();
            self.state = State::Failed;
        }
        result
    }

    fn decode(&mut self, out: &mut Vec<u8>) -> Result<Option<usize>, SpanError> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let span = self.left.start;
        if span >= self.index.len() {
            return Err(SpanError::Entry { span, what: "the index has no such span" });
        }
        let Range { start, end } = self.index.range(span);
        let len = usize::try_from(end - start).expect("a span that fits into memory");
        let decoder = self.decoder(span)?;
        out.resize(len, 0);
        let mut filled = 0;
        while filled < len {
            match decoder.read(&mut out[filled..]) {
                Ok(0) => return Err(DecodeError::Truncated(name(decoder.compression())).into()),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(typed(error)),
            }
        }
        if !self.index.is_good(span, out) {
            return Err(SpanError::WrongDigest { span });
        }
        self.left.start += 1;
        Ok(Some(span))
    }

    /// The decoder; enters the blob at the first call.
    fn decoder(&mut self, span: usize) -> Result<&mut Decoder<R>, SpanError> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Failed => return Err(SpanError::Entry { span, what: "an earlier span failed" }),
            State::Open(decoder) => self.state = State::Open(decoder),
            State::Before(input) => self.state = State::Open(Box::new(enter(&self.index, span, input)?)),
        }
        let State::Open(decoder) = &mut self.state else { unreachable!("it was opened above") };
        Ok(decoder)
    }
}

fn enter<R: BufRead>(index: &Index, span: usize, input: R) -> Result<Decoder<R>, SpanError> {
    let entry = index.spans[span].entry.as_ref();
    let entry = entry.ok_or(SpanError::Entry { span, what: "the index has no entry there" })?;
    let window = match &entry.window[..] {
        [] => None,
        frame => Some(window::unfold(frame).map_err(|_| SpanError::Entry { span, what: "its window is damaged" })?),
    };
    let point = Point { bits: entry.bits, window: window.as_deref() };
    decode::resume(index.compression, &point, input).map_err(typed)
}

fn typed(error: io::Error) -> SpanError {
    match DecodeError::of(&error) {
        Some(typed) => typed.clone().into(),
        None => SpanError::Input(error),
    }
}

fn name(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "tar",
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
    }
}
