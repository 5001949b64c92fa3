//! Pieces of a blob's range, from an async stream to a thread that reads them.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};

use crate::fetch::Pieces;

/// Blocks its thread until the next piece arrives. A failed read carries the registry's error.
#[derive(Debug)]
pub(super) struct PieceReader {
    pieces: Pieces,
    piece: Bytes,
}

impl PieceReader {
    pub(super) fn new(pieces: Pieces) -> Self {
        Self { pieces, piece: Bytes::new() }
    }
}

impl BufRead for PieceReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => {
                    self.pieces.close();
                    return Err(io::Error::other(error));
                }
                None => break,
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, n: usize) {
        self.piece.advance(n);
    }
}

impl Read for PieceReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(out.len());
        out[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}
