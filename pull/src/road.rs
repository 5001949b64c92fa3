//! Decode, scan, store: the blocking half of the road, two threads a layer.
//!
//! The first thread digests and inflates the blob into buffers, the second one digests, scans and stores them; three
//! buffers go round between the two. Inflating takes about two thirds of the work, so the pair keeps one core busy and half
//! of another.

use std::{
    io::{self, Read},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use silk_layer::{
    decode,
    tar::{Limits, Scanner},
    toc::Toc,
};
use silk_model::Digest;
use silk_store::{Facts, LayerWriter};

use crate::{LayerError, inlet::Inlet};

/// Bytes of a buffer: large enough that hand-over costs nothing against inflating it (1 ms), small enough to stay in the
/// second-level cache of a core.
const BUFFER: usize = 512 << 10;
/// Buffers of a layer: one being filled, one being stored, one between.
const BUFFERS: usize = 3;

/// What the road needs to know of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) blob: Digest,
    pub(crate) blob_size: u64,
    /// The most bytes that may come out.
    pub(crate) limit: u64,
}

/// Moves one layer from its inlet into the store. Blocks until it is whole and proved, or failed; a failed layer leaves
/// nothing behind.
pub(crate) fn run(
    job: Job,
    mut inlet: Inlet,
    writer: LayerWriter,
    written: &AtomicU64,
    facts: impl FnOnce(&Toc) -> Facts,
) -> Result<(), LayerError> {
    let outcome = thread::scope(|scope| {
        let (full, filled) = mpsc::sync_channel::<Vec<u8>>(BUFFERS);
        let (empty, emptied) = mpsc::sync_channel::<Vec<u8>>(BUFFERS);
        let store = thread::Builder::new()
            .name("silk-store".into())
            .spawn_scoped(scope, move || store(writer, &filled, &empty, written))
            .expect("the system gives a thread");
        let decoded = pour(job, &mut inlet, &full, &emptied);
        drop(full);
        let stored = store.join().map_err(|_| LayerError::Panicked)?;
        // When the store fails, the decoder only sees a closed channel.
        let stored = stored?;
        decoded.map(|()| stored)
    });
    match outcome {
        Ok((scanner, writer)) => {
            prove_blob(job, inlet)?;
            let toc = scanner.finish()?;
            writer.finish(&toc, facts(&toc))?;
            Ok(())
        }
        Err(error) if error.blames_content() && !inlet.is_broken() => {
            // Was the image pushed broken, or did the registry send something else?
            prove_blob(job, inlet)?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// Inflates the blob into buffers.
fn pour(
    job: Job,
    inlet: &mut Inlet,
    full: &mpsc::SyncSender<Vec<u8>>,
    emptied: &mpsc::Receiver<Vec<u8>>,
) -> Result<(), LayerError> {
    let outcome = pour_decoded(job, inlet, full, emptied);
    // The decoder passes a failed read on: its cause is the inlet's.
    match inlet.take_failure() {
        Some(cause) => Err(cause.into()),
        None => outcome,
    }
}

fn pour_decoded(
    job: Job,
    inlet: &mut Inlet,
    full: &mpsc::SyncSender<Vec<u8>>,
    emptied: &mpsc::Receiver<Vec<u8>>,
) -> Result<(), LayerError> {
    let mut decoder = decode::open(inlet).map_err(damaged)?;
    let mut made = 0;
    let mut total = 0;
    loop {
        let mut buffer = match emptied.try_recv() {
            Ok(buffer) => buffer,
            Err(_) if made < BUFFERS => {
                made += 1;
                vec![0; BUFFER]
            }
            // The store has failed when nobody sends: its own error is reported.
            Err(_) => match emptied.recv() {
                Ok(buffer) => buffer,
                Err(_) => return Ok(()),
            },
        };
        buffer.resize(BUFFER, 0);
        let mut len = 0;
        while len < BUFFER {
            match decoder.read(&mut buffer[len..]).map_err(damaged)? {
                0 => break,
                n => len += n,
            }
        }
        buffer.truncate(len);
        total += len as u64;
        if total > job.limit {
            return Err(LayerError::Bomb { compressed: job.blob_size, limit: job.limit });
        }
        if len == 0 || full.send(buffer).is_err() {
            return Ok(());
        }
    }
}

fn damaged(error: io::Error) -> LayerError {
    let typed = decode::DecodeError::of(&error).cloned();
    typed.unwrap_or_else(|| decode::DecodeError::Corrupt { format: "layer's", detail: error.to_string() }).into()
}

/// Digests, scans and stores buffers until no more come.
fn store(
    mut writer: LayerWriter,
    filled: &mpsc::Receiver<Vec<u8>>,
    empty: &mpsc::SyncSender<Vec<u8>>,
    written: &AtomicU64,
) -> Result<(Scanner, LayerWriter), LayerError> {
    let mut scanner = Scanner::new(Limits::default());
    for buffer in filled {
        scanner.push(&buffer)?;
        writer.append(&buffer)?;
        written.store(writer.size(), Ordering::Relaxed);
        // The decoder is gone after the last buffer: nobody needs it back.
        let _ = empty.send(buffer);
    }
    Ok((scanner, writer))
}

fn prove_blob(job: Job, inlet: Inlet) -> Result<(), LayerError> {
    let (found, _) = inlet.finish()?;
    if found == job.blob { Ok(()) } else { Err(LayerError::WrongBlob { expected: job.blob, found }) }
}
