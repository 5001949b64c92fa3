//! Pieces of a blob's range, from an async stream to a thread that reads them.

use std::{
    io::{self, BufRead, Read},
    sync::Arc,
};

use bytes::{Buf, Bytes};

use crate::{
    fetch::Pieces,
    timing::{Clocks, Part},
};

/// Blocks its thread until the next piece arrives. A failed read carries the registry's error.
#[derive(Debug)]
pub(super) struct PieceReader {
    pieces: Pieces,
    piece: Bytes,
    clocks: Arc<Clocks>,
    waits_for: Part,
}

impl PieceReader {
    pub(super) fn new(pieces: Pieces, clocks: Arc<Clocks>) -> Self {
        Self { pieces, piece: Bytes::new(), clocks, waits_for: Part::FirstByte }
    }
}

impl BufRead for PieceReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            let piece = self.clocks.time(self.waits_for, || self.pieces.blocking_recv());
            self.waits_for = Part::Bytes;
            match piece {
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
