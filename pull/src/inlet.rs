//! The border between the network and the decoder: a bounded channel of pieces, read as a stream and digested on the way.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use sha2::{Digest as _, Sha256};
use silk_model::Digest;

use crate::fetch::Pieces;

/// Blocks its thread until the next piece arrives.
#[derive(Debug)]
pub(crate) struct Inlet {
    pieces: Pieces,
    piece: Bytes,
    hasher: Sha256,
    bytes: u64,
    failed: Option<silk_registry::Error>,
}

impl Inlet {
    pub(crate) fn new(pieces: Pieces) -> Self {
        Self { pieces, piece: Bytes::new(), hasher: Sha256::new(), bytes: 0, failed: None }
    }

    /// The registry's error that ended the stream, which the decoder only saw as a failed read.
    pub(crate) fn take_failure(&mut self) -> Option<silk_registry::Error> {
        self.failed.take()
    }

    /// Reads what the decoder left, and tells the digest of everything.
    pub(crate) fn finish(mut self) -> Result<(Digest, u64), silk_registry::Error> {
        loop {
            match self.fill_buf().map(<[u8]>::len) {
                Ok(0) => return Ok((Digest::new(self.hasher.finalize().into()), self.bytes)),
                Ok(n) => self.consume(n),
                // `fill_buf` fails in no other way.
                Err(_) => return Err(self.failed.expect("a failed read leaves its cause")),
            }
        }
    }
}

impl BufRead for Inlet {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => {
                    self.hasher.update(&piece);
                    self.bytes += piece.len() as u64;
                    self.piece = piece;
                }
                Some(Err(error)) => {
                    self.pieces.close();
                    self.failed = Some(error);
                    return Err(io::Error::other("the blob's stream failed"));
                }
                None if self.failed.is_some() => return Err(io::Error::other("the blob's stream failed")),
                None => break,
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, n: usize) {
        self.piece.advance(n);
    }
}

impl Read for Inlet {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(out.len());
        out[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}
