//! Decode, scan, store: the blocking half of the road, two threads a layer.
//!
//! The first thread digests and inflates the blob into buffers, and notes where inflating could begin again; the second
//! one digests, scans and indexes them and hands them to a [`Sink`]: the store's, or one that keeps what is learned alone.
//! Three buffers go round between the two. Inflating takes about two thirds of the work, so the pair keeps one core busy
//! and half of another.

use std::{
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use silk_layer::{
    decode,
    index::{Builder, Index},
    media::Compression,
    tar::{Limits, Scanner},
    toc::Toc,
};
use silk_model::Digest;
use silk_store::StoreError;

use crate::{
    LayerError,
    inlet::Inlet,
    spans,
    timing::{Clocks, Part},
};

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
    /// The blob is the tar, whatever it looks like.
    pub(crate) plain: bool,
    /// The most bytes that may come out.
    pub(crate) limit: Limit,
}

/// How much may come out of a blob.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    /// Bytes of blocks that are not zeros alone.
    pub(crate) data: u64,
    /// Bytes. Zeros take no room on disk, but time.
    pub(crate) all: u64,
}

/// Where a layer's road ends. One that is dropped unfinished leaves nothing behind.
pub(crate) trait Sink: Send {
    /// What is there afterwards.
    type Kept;

    /// Takes the next bytes of the tar. Blocks.
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// The blob was proved; whether it leads to the diff ID is checked here. Blocks.
    fn finish(self, toc: &Toc, index: &Index) -> Result<Self::Kept, StoreError>;
}

/// Moves one layer from its inlet into its sink. Blocks until it is whole and proved, or failed.
pub(crate) fn run<S: Sink>(job: Job, mut inlet: Inlet, sink: S, written: &AtomicU64) -> Result<S::Kept, LayerError> {
    let clocks = Arc::clone(&inlet.clocks);
    let stored_in = spans::part!("store");
    let outcome = thread::scope(|scope| {
        let (full, filled) = mpsc::sync_channel::<Filled>(BUFFERS);
        let (empty, emptied) = mpsc::sync_channel::<Vec<u8>>(BUFFERS);
        let store = thread::Builder::new()
            .name("silk-store".into())
            .spawn_scoped(scope, || stored_in.in_scope(|| store(sink, filled, empty, written, &clocks)))
            .expect("the system gives a thread");
        let decoded = spans::part!("decode").in_scope(|| pour(job, &mut inlet, &full, &emptied));
        drop(full);
        let stored = store.join().map_err(|_| LayerError::Panicked)?;
        // When the store fails, the decoder only sees a closed channel.
        let stored = stored?;
        decoded.map(|compression| (stored, compression))
    });
    match outcome {
        Ok((Stored { scanner, builder, sink }, compression)) => {
            let _proved_in = spans::part!("prove").entered();
            prove_blob(job, inlet)?;
            clocks.time(Part::Proof, || {
                let toc = scanner.finish()?;
                let index = builder.finish(compression, job.blob_size);
                Ok(sink.finish(&toc, &index)?)
            })
        }
        Err(error) if error.blames_content() && !inlet.is_broken() => {
            // Was the image pushed broken, or did the registry send something else?
            prove_blob(job, inlet)?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// A buffer of the tar, and the places up to its end where decoding can begin.
struct Filled {
    bytes: Vec<u8>,
    entries: Vec<decode::Found>,
}

/// Inflates the blob into buffers.
fn pour(
    job: Job,
    inlet: &mut Inlet,
    full: &mpsc::SyncSender<Filled>,
    emptied: &mpsc::Receiver<Vec<u8>>,
) -> Result<Compression, LayerError> {
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
    full: &mpsc::SyncSender<Filled>,
    emptied: &mpsc::Receiver<Vec<u8>>,
) -> Result<Compression, LayerError> {
    let clocks = Arc::clone(&inlet.clocks);
    let open = || if job.plain { Ok(decode::open_plain(inlet)) } else { decode::open_learning(inlet) };
    let opened = clocks.time_reading(Part::Inflate, open);
    let mut decoder = opened.map_err(damaged)?;
    let compression = decoder.compression();
    let mut made = 0;
    let (mut total, mut data) = (0, 0);
    loop {
        let mut buffer = match emptied.try_recv() {
            Ok(buffer) => buffer,
            Err(_) if made < BUFFERS => {
                made += 1;
                vec![0; BUFFER]
            }
            // The store has failed when nobody sends: its own error is reported.
            Err(_) => match clocks.time(Part::Store, || emptied.recv()) {
                Ok(buffer) => buffer,
                Err(_) => return Ok(compression),
            },
        };
        buffer.resize(BUFFER, 0);
        let len = clocks.time_reading(Part::Inflate, || fill(&mut decoder, &mut buffer)).map_err(damaged)?;
        buffer.truncate(len);
        total += len as u64;
        data += data_in(&buffer);
        if let Some(limit) = job.limit.passed(data, total) {
            return Err(LayerError::Bomb { compressed: job.blob_size, limit });
        }
        let filled = Filled { bytes: buffer, entries: decoder.take_entries() };
        if len == 0 || full.send(filled).is_err() {
            return Ok(compression);
        }
    }
}

impl Limit {
    fn passed(&self, data: u64, all: u64) -> Option<u64> {
        [(data, self.data), (all, self.all)].into_iter().find_map(|(is, most)| (is > most).then_some(most))
    }
}

/// Bytes of the blocks that are not zeros alone.
fn data_in(bytes: &[u8]) -> u64 {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).filter(|block| **block != ZEROS[..block.len()]).map(|block| block.len() as u64).sum()
}

/// Reads until the buffer is full, or no more comes.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match from.read(&mut buffer[len..])? {
            0 => break,
            n => len += n,
        }
    }
    Ok(len)
}

fn damaged(error: io::Error) -> LayerError {
    let typed = decode::DecodeError::of(&error).cloned();
    typed.unwrap_or_else(|| decode::DecodeError::Corrupt { format: "layer's", detail: error.to_string() }).into()
}

/// A layer that went by.
struct Stored<S> {
    scanner: Scanner,
    builder: Builder,
    sink: S,
}

/// Digests, scans, indexes and stores buffers until no more come.
fn store<S: Sink>(
    mut sink: S,
    filled: mpsc::Receiver<Filled>,
    empty: mpsc::SyncSender<Vec<u8>>,
    written: &AtomicU64,
    clocks: &Clocks,
) -> Result<Stored<S>, LayerError> {
    let (mut scanner, mut builder) = (Scanner::new(Limits::default()), Builder::new());
    while let Ok(Filled { bytes, entries }) = clocks.time(Part::Decoder, || filled.recv()) {
        clocks.time(Part::Scan, || scanner.push(&bytes))?;
        clocks.time(Part::Index, || builder.entries(entries));
        clocks.time(Part::Digest, || builder.push(&bytes));
        clocks.time(Part::Write, || sink.append(&bytes))?;
        written.store(scanner.position(), Ordering::Relaxed);
        // The decoder is gone after the last buffer: nobody needs it back.
        let _ = empty.send(bytes);
    }
    Ok(Stored { scanner, builder, sink })
}

fn prove_blob(job: Job, inlet: Inlet) -> Result<(), LayerError> {
    let (found, _) = inlet.finish()?;
    if found == job.blob { Ok(()) } else { Err(LayerError::WrongBlob { expected: job.blob, found }) }
}
