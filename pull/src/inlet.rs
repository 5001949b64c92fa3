//! The border between the network and the decoder: a bounded channel of pieces, read as a stream and digested on the way.
//!
//! It also holds the layer's turn: a layer whose sender is silent, or as good as, gives it to another, so that a registry that
//! stalls or drips never holds up the others. Bytes that come so slowly are decoded without a turn: they need no processor to
//! speak of.

use std::{
    io::{self, BufRead, Read},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use sha2::{Digest as _, Sha256};
use silk_model::Digest;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{
    fetch::Pieces,
    pace::Pace,
    timing::{Clocks, Part},
};

/// How long a layer whose sender is silent keeps its turn: above any round trip, below what anybody notices.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes a second below which a layer that mostly waits for them needs no turn. As many of them as may be under way (64) make
/// 200 MB of tar a second at the usual third of its size: a quarter of a processor to inflate, at 800 MB/s.
const DRIP: u64 = 1 << 20;

/// The right to decode, and where to get it back.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) permit: Option<OwnedSemaphorePermit>,
    pub(crate) turns: Arc<Semaphore>,
    pub(crate) runtime: Handle,
}

/// Blocks its thread until the next piece arrives.
#[derive(Debug)]
pub(crate) struct Inlet {
    pieces: Pieces,
    piece: Bytes,
    hasher: Sha256,
    bytes: u64,
    failed: Option<silk_registry::Error>,
    /// The stream failed, whoever took the error: the digest of what came proves nothing.
    broken: bool,
    turn: Turn,
    pub(crate) clocks: Arc<Clocks>,
    pace: Pace,
}

impl Inlet {
    pub(crate) fn new(pieces: Pieces, turn: Turn, clocks: Arc<Clocks>) -> Self {
        Self {
            pieces,
            piece: Bytes::new(),
            hasher: Sha256::new(),
            bytes: 0,
            failed: None,
            broken: false,
            turn,
            clocks,
            pace: Pace::begin(),
        }
    }

    /// Did the stream fail?
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    fn next_piece(&mut self) -> Option<Result<Bytes, silk_registry::Error>> {
        let piece = self.pieces.try_recv().map_or_else(|_| self.wait(), Some);
        if let Some(Ok(piece)) = &piece {
            self.pace.came(piece.len() as u64, Duration::ZERO);
        }
        match self.pace.is_drip(PATIENCE, DRIP) {
            None => {}
            Some(true) => {
                self.turn.permit = None;
                self.pace = Pace::begin();
            }
            Some(false) => {
                if self.turn.permit.is_none() {
                    let turns = Arc::clone(&self.turn.turns);
                    let acquired = || self.turn.runtime.block_on(turns.acquire_owned());
                    self.turn.permit = self.clocks.time(Part::Turn, acquired).ok();
                }
                self.pace = Pace::begin();
            }
        }
        piece
    }

    fn wait(&mut self) -> Option<Result<Bytes, silk_registry::Error>> {
        let asked = Instant::now();
        let waited = if self.bytes == 0 { Part::FirstByte } else { Part::Bytes };
        let next = async { tokio::time::timeout(PATIENCE, self.pieces.recv()).await };
        let piece = self.turn.runtime.block_on(next).unwrap_or_else(|_| {
            self.turn.permit = None;
            self.pieces.blocking_recv()
        });
        self.clocks.add(waited, asked.elapsed());
        self.pace.came(0, asked.elapsed());
        piece
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
                // `fill_buf` fails in no other way, and nobody takes the cause of an inlet that is finished.
                Err(_) => return Err(self.failed.expect("a failed read leaves its cause")),
            }
        }
    }
}

impl BufRead for Inlet {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.next_piece() {
                Some(Ok(piece)) => {
                    self.clocks.time(Part::BlobDigest, || self.hasher.update(&piece));
                    self.bytes += piece.len() as u64;
                    self.piece = piece;
                }
                Some(Err(error)) => {
                    self.pieces.close();
                    self.failed = Some(error);
                    self.broken = true;
                    return Err(io::Error::other("the blob's stream failed"));
                }
                None if self.broken => return Err(io::Error::other("the blob's stream failed")),
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
