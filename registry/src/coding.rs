//! Bodies that were compressed on the way (`Content-Encoding`, RFC 9110 8.4), though silk asks for what is stored.
//!
//! Proxies do so, and caches that keep what they made for another client (containerd offers gzip and zstd). Digests are of what is
//! stored, so both are undone, as containerd undoes them. What comes out at a time is bounded.

use std::io;

use bytes::{Buf as _, Bytes};
use flate2::{Decompress, FlushDecompress, Status};
use reqwest::{
    Response,
    header::{self, HeaderMap},
};
use zstd::stream::raw::{DParameter, Decoder as Zstd, Operation as _};

use crate::Transport;

/// Bytes that come out at a time, at most.
const PIECE: usize = 64 << 10;
/// Binary logarithm of zstd's window: RFC 9659 allows 8 MiB in HTTP.
const WINDOW_LOG: u32 = 23;

/// A coding that can be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Zstd,
}

/// A body as it was before it was compressed.
#[derive(Debug)]
pub(crate) struct Body {
    response: Response,
    coding: Option<Coding>,
    decoder: Option<Decoder>,
    /// What the decoder has not seen.
    input: Bytes,
}

enum Decoder {
    Gzip(Decompress),
    Zstd(Zstd<'static>),
}

impl Coding {
    /// Others are let through: storage says `aws-chunked`, for instance, of what is plain, and digests tell.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        match headers.get(header::CONTENT_ENCODING)?.to_str().ok()?.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

impl Body {
    /// Of a response whose bytes are of that coding, or as they are stored.
    pub(crate) fn new(response: Response, coding: Option<Coding>) -> Self {
        Self { response, coding, decoder: None, input: Bytes::new() }
    }

    /// How many bytes there are, if that is known.
    pub(crate) fn length(&self) -> Option<u64> {
        self.response.content_length().filter(|_| self.coding.is_none())
    }

    /// The next bytes; `None` at the end. Dropping the future loses nothing.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Transport> {
        let Some(coding) = self.coding else { return self.response.chunk().await.map_err(Transport::new) };
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(Decoder::new(coding).map_err(Transport::damaged)?),
        };
        loop {
            let mut output = vec![0; PIECE];
            let (read, written) = decoder.step(&self.input, &mut output).map_err(Transport::damaged)?;
            self.input.advance(read);
            if written > 0 {
                output.truncate(written);
                return Ok(Some(output.into()));
            }
            if !self.input.is_empty() {
                if read == 0 {
                    return Err(Transport::damaged(io::ErrorKind::InvalidData.into()));
                }
                continue;
            }
            match self.response.chunk().await.map_err(Transport::new)? {
                Some(bytes) => self.input = bytes,
                None => return Ok(None),
            }
        }
    }
}

impl Decoder {
    fn new(coding: Coding) -> io::Result<Self> {
        match coding {
            Coding::Gzip => Ok(Self::Gzip(Decompress::new_gzip(15))),
            Coding::Zstd => {
                let mut decoder = Zstd::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
                Ok(Self::Zstd(decoder))
            }
        }
    }

    /// How many bytes of `input` were read, and written to `output`.
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<(usize, usize)> {
        match self {
            Self::Gzip(inflate) => {
                let before = (inflate.total_in(), inflate.total_out());
                let status = inflate.decompress(input, output, FlushDecompress::None)?;
                let moved = (inflate.total_in() - before.0, inflate.total_out() - before.1);
                if status == Status::StreamEnd {
                    // Another member may follow.
                    *inflate = Decompress::new_gzip(15);
                }
                Ok((moved.0 as usize, moved.1 as usize))
            }
            Self::Zstd(decoder) => {
                let status = decoder.run_on_buffers(input, output)?;
                Ok((status.bytes_read, status.bytes_written))
            }
        }
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Gzip(_)) { "gzip" } else { "zstd" })
    }
}
