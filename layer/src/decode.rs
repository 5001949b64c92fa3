//! A layer's blob becomes its tar: decompression as a [`Read`], mostly told by magic bytes. Runs on a decoder's thread and
//! blocks as its input does.
//!
//! Errors are [`std::io::Error`]s: those of the input unchanged, so that the caller finds its own in them, and
//! [`DecodeError`]s of kind `InvalidData` ([`DecodeError::of`] finds them). After an error every further read answers
//! an error, never an early end.

mod frames;
mod learn;
mod members;

use std::{
    fmt,
    io::{self, BufRead, Read},
};

use silk_model::Class;

use self::{
    frames::Frames,
    learn::{Learner, SPACING},
    members::Members,
};
use crate::media::{Compression, MAGIC_LEN};

pub use learn::Found;
pub(crate) use learn::Piece;
#[cfg(test)]
pub(crate) use learn::Spacing;

/// The largest zstd window that is accepted, as a power of two: 128 MiB, `zstd -d`'s own default and what level 22
/// writes. A frame that asks for more would cost that much memory a stream; containerd's decoder would allow it.
pub const MAX_WINDOW_LOG: u32 = 27;

/// A blob that is not what it claims to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ended too early.
    #[error("the {0} stream ends too early: the blob is truncated")]
    Truncated(&'static str),
    /// The input is damaged, or has something behind its end.
    #[error("the {format} stream is damaged: {detail}")]
    Corrupt {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// What the decoder said.
        detail: String,
    },
    /// Asks for a window beyond [`MAX_WINDOW_LOG`].
    #[error("the zstd stream needs a window of more than {} MiB", (1_u32 << MAX_WINDOW_LOG) >> 20)]
    Window,
}

impl DecodeError {
    /// What kind of trouble this is.
    pub fn class(&self) -> Class {
        match self {
            Self::Window => Class::Unsupported,
            Self::Truncated(_) | Self::Corrupt { .. } => Class::Corrupt,
        }
    }

    /// The decoder's error in an error of [`Decoder::read`]; `None` where it came from the input.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<DecodeError> for io::Error {
    fn from(error: DecodeError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Reads a layer's uncompressed bytes.
pub struct Decoder<R: BufRead> {
    inner: Inner<R>,
    state: State,
}

enum Inner<R: BufRead> {
    None(Plain<Start<R>>),
    Gzip(Box<Members<Watched<Start<R>>>>),
    Zstd(Box<Frames<Watched<Start<R>>>>),
}

enum State {
    Reading,
    Ended,
    Failed(DecodeError),
    InputFailed(io::ErrorKind),
}

impl<R: BufRead> fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("compression", &self.compression()).finish_non_exhaustive()
    }
}

/// Looks at the first bytes of `input` and makes the decoder they call for.
pub fn open<R: BufRead + Send>(input: R) -> io::Result<Decoder<R>> {
    begin(input, None)
}

/// As [`open`], and learns on the way where decoding can begin ([`Decoder::take_entries`]).
pub fn open_learning<R: BufRead + Send>(input: R) -> io::Result<Decoder<R>> {
    begin(input, Some(SPACING))
}

/// As [`open_learning`], of a blob that is the tar although it may look like something else.
pub fn open_plain<R: BufRead + Send>(input: R) -> Decoder<R> {
    let input = Start { first: Vec::new(), used: 0, rest: input };
    Decoder { inner: Inner::None(Plain::new(input, Learner::new(Some(SPACING)))), state: State::Reading }
}

pub(crate) fn begin<R: BufRead>(mut input: R, spacing: Option<learn::Spacing>) -> io::Result<Decoder<R>> {
    let learner = Learner::new(spacing);
    let mut first = Vec::with_capacity(MAGIC_LEN);
    input.by_ref().take(MAGIC_LEN as u64).read_to_end(&mut first)?;
    let compression = Compression::detect(&first);
    let input = Start { first, used: 0, rest: input };
    let inner = match compression {
        Compression::None => Inner::None(Plain::new(input, learner)),
        Compression::Gzip => Inner::Gzip(Box::new(Members::new(Watched::new(input), learner))),
        Compression::Zstd => Inner::Zstd(Box::new(Frames::new(Watched::new(input), learner)?)),
    };
    Ok(Decoder { inner, state: State::Reading })
}

/// Where [`resume`] begins.
pub(crate) struct Point<'a> {
    /// gzip: how many of the high bits of the first byte belong to the first block.
    pub(crate) bits: u8,
    /// gzip: the output before it; `None` where a member begins.
    pub(crate) window: Option<&'a [u8]>,
}

/// Goes on from the middle of a blob.
pub(crate) fn resume<R: BufRead>(compression: Compression, point: &Point<'_>, input: R) -> io::Result<Decoder<R>> {
    let input = Start { first: Vec::new(), used: 0, rest: input };
    let off = Learner::new(None);
    let inner = match (compression, point.window) {
        (Compression::None, _) => Inner::None(Plain::new(input, off)),
        (Compression::Gzip, None) => Inner::Gzip(Box::new(Members::new(Watched::new(input), off))),
        (Compression::Gzip, Some(window)) => {
            Inner::Gzip(Box::new(Members::enter(Watched::new(input), window, point.bits)))
        }
        (Compression::Zstd, _) => Inner::Zstd(Box::new(Frames::new(Watched::new(input), off)?)),
    };
    Ok(Decoder { inner, state: State::Reading })
}

impl<R: BufRead> Decoder<R> {
    /// How the blob is compressed.
    pub fn compression(&self) -> Compression {
        match &self.inner {
            Inner::None(_) => Compression::None,
            Inner::Gzip(_) => Compression::Gzip,
            Inner::Zstd(_) => Compression::Zstd,
        }
    }

    /// What was learned since the last call, for [`crate::index::Builder::entries`]; nothing without [`open_learning`].
    ///
    /// After a read that ended at byte `n` of the tar, every place to cut before `n` has been given, and none beyond `n`.
    /// So a caller that takes them after each read, and gives them to the builder before the bytes, is right. At most
    /// 32 KiB and some compressed bytes for each MiB that was read wait here to be taken.
    pub fn take_entries(&mut self) -> Vec<Found> {
        let learner = match &mut self.inner {
            Inner::None(plain) => &mut plain.learner,
            Inner::Gzip(members) => &mut members.learner,
            Inner::Zstd(frames) => &mut frames.learner,
        };
        learner.take()
    }

    /// Tells the input's own error from the decompressor's, types the latter, and remembers both.
    fn fail(&mut self, error: io::Error) -> io::Error {
        let (format, of_input) = match &mut self.inner {
            Inner::None(_) => return error,
            Inner::Gzip(members) => ("gzip", members.input.failure.take()),
            Inner::Zstd(frames) => ("zstd", frames.input.failure.take()),
        };
        if let Some(of_input) = of_input {
            self.state = State::InputFailed(of_input.kind());
            return of_input;
        }
        let typed = if error.kind() == io::ErrorKind::UnexpectedEof {
            DecodeError::Truncated(format)
        } else if wants_too_much(&error) {
            DecodeError::Window
        } else {
            DecodeError::Corrupt { format, detail: error.to_string() }
        };
        self.state = State::Failed(typed.clone());
        typed.into()
    }
}

fn wants_too_much(error: &io::Error) -> bool {
    use zstd::zstd_safe::zstd_sys::ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge as TOO_LARGE;
    error.get_ref().and_then(|inner| inner.downcast_ref::<zstd::Error>()).is_some_and(|error| error.is(TOO_LARGE))
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &self.state {
            _ if buf.is_empty() => return Ok(0),
            State::Reading => {}
            State::Ended => return Ok(0),
            State::Failed(error) => return Err(error.clone().into()),
            State::InputFailed(kind) => return Err((*kind).into()),
        }
        let result = match &mut self.inner {
            Inner::None(plain) => plain.read(buf),
            Inner::Gzip(members) => members.read(buf),
            Inner::Zstd(frames) => frames.read(buf),
        };
        match result {
            Ok(0) => {
                self.state = State::Ended;
                Ok(0)
            }
            Ok(n) => Ok(n),
            Err(error) => Err(self.fail(error)),
        }
    }
}

/// No compression.
struct Plain<R> {
    input: R,
    /// Bytes read.
    at: u64,
    learner: Learner,
}

impl<R: BufRead> Plain<R> {
    fn new(input: R, learner: Learner) -> Self {
        Self { input, at: 0, learner }
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buf)?;
        self.learner.plain(self.at..self.at + n as u64);
        self.at += n as u64;
        Ok(n)
    }
}

/// The input with the bytes put back that were looked at.
struct Start<R> {
    first: Vec<u8>,
    used: usize,
    rest: R,
}

impl<R: BufRead> Read for Start<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.used == self.first.len() {
            return self.rest.read(buf);
        }
        let n = (&self.first[self.used..]).read(buf)?;
        self.used += n;
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Start<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used == self.first.len() { self.rest.fill_buf() } else { Ok(&self.first[self.used..]) }
    }

    fn consume(&mut self, amount: usize) {
        if self.used == self.first.len() {
            self.rest.consume(amount);
        } else {
            self.used += amount;
        }
    }
}

/// Keeps the input's error aside, because decompressors may dress it up as one of theirs.
struct Watched<R> {
    input: R,
    failure: Option<io::Error>,
}

impl<R> Watched<R> {
    fn new(input: R) -> Self {
        Self { input, failure: None }
    }

    fn keep(failure: &mut Option<io::Error>, error: io::Error) -> io::Error {
        let stand_in = io::Error::from(error.kind());
        *failure = Some(error);
        stand_in
    }
}

impl<R: BufRead> Read for Watched<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.input.read(buf).map_err(|error| Self::keep(&mut self.failure, error))
    }
}

impl<R: BufRead> BufRead for Watched<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let Self { input, failure } = self;
        // An interrupted call is tried again here: behind the decompressors nobody would know to.
        loop {
            match input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Self::keep(failure, error)),
                Ok(_) => break,
            }
        }
        input.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.input.consume(amount);
    }
}

#[cfg(test)]
mod tests;
