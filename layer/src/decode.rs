//! A layer's blob becomes its tar: decompression as a [`Read`], told by magic bytes. Runs on a decoder's thread and
//! blocks as its input does.
//!
//! Errors are [`std::io::Error`]s: those of the input unchanged, so that the caller finds its own in them, and
//! [`DecodeError`]s of kind `InvalidData` ([`DecodeError::of`] finds them). After an error every further read answers
//! an error, never an early end.

use std::{
    fmt,
    io::{self, BufRead, Read},
};

use flate2::bufread::MultiGzDecoder;
use silk_model::Class;

use crate::media::{Compression, MAGIC_LEN};

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
    None(Start<R>),
    Gzip(Box<MultiGzDecoder<Watched<Start<R>>>>),
    Zstd(Box<zstd::Decoder<'static, Watched<Start<R>>>>),
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
pub fn open<R: BufRead + Send>(mut input: R) -> io::Result<Decoder<R>> {
    let mut first = Vec::with_capacity(MAGIC_LEN);
    input.by_ref().take(MAGIC_LEN as u64).read_to_end(&mut first)?;
    let compression = Compression::detect(&first);
    let start = Start { first, used: 0, rest: input };
    let inner = match compression {
        Compression::None => Inner::None(start),
        Compression::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(Watched { input: start, failure: None }))),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(Watched { input: start, failure: None })?;
            decoder.window_log_max(MAX_WINDOW_LOG)?;
            Inner::Zstd(Box::new(decoder))
        }
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

    /// Tells the input's own error from the decompressor's, types the latter, and remembers both.
    fn fail(&mut self, error: io::Error) -> io::Error {
        let (format, of_input) = match &mut self.inner {
            Inner::None(_) => return error,
            Inner::Gzip(decoder) => ("gzip", decoder.get_mut().failure.take()),
            Inner::Zstd(decoder) => ("zstd", decoder.get_mut().failure.take()),
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
            Inner::None(input) => input.read(buf),
            Inner::Gzip(decoder) => decoder.read(buf),
            Inner::Zstd(decoder) => decoder.read(buf),
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
