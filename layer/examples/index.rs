//! What learning costs: `index BLOB...`, layers as they lie in a registry or an OCI layout.
//!
//! For each: how fast it becomes its tar and its diff ID without and with learning, on one thread and, as in a pull, on two
//! (medians of three, each try in turn), how large the index is, and how long it takes to read back its segments, each alone.

use std::{
    fs,
    io::Read as _,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};
use silk_layer::{
    decode::{self, Decoder, Found},
    index::{Builder, Index, encode, read},
};

/// As in the road of a pull.
const BUFFER: usize = 512 << 10;
const ROUNDS: usize = 3;

type Input<'a> = &'a [u8];

fn main() {
    for path in std::env::args().skip(1) {
        let blob = fs::read(&path).expect("a readable blob");
        let (index, size) = one_thread(&blob, true);
        let index = index.expect("it was learned");
        let tries: [&dyn Fn(); 4] = [
            &|| drop(one_thread(&blob, false)),
            &|| drop(one_thread(&blob, true)),
            &|| drop(two_threads(&blob, false)),
            &|| drop(two_threads(&blob, true)),
        ];
        let mut times = [const { Vec::new() }; 4];
        for _ in 0..ROUNDS {
            for (run, times) in tries.iter().zip(&mut times) {
                let start = Instant::now();
                run();
                times.push(start.elapsed());
            }
        }
        let rates = times.map(|mut times| {
            times.sort();
            size as f64 / 1e6 / times[ROUNDS / 2].max(Duration::from_nanos(1)).as_secs_f64()
        });
        print(&path, &index, size, rates);
        read_back(&blob, index);
    }
}

/// Each segment alone: all are verified, so all together are the layer.
fn read_back(blob: &[u8], index: Index) {
    let index = Arc::new(index);
    let (mut next, mut out, mut times) = (0, Vec::new(), Vec::new());
    while next < index.len() {
        let run = index.segment(next);
        next = run.end;
        let start = Instant::now();
        let range = index.blob_range(run.clone());
        let mut spans = read(Arc::clone(&index), run, &blob[range.start as usize..range.end as usize]);
        while spans.next(&mut out).expect("a whole layer").is_some() {}
        times.push((start.elapsed(), range.end - range.start));
    }
    times.sort();
    let largest = times.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
    if let (Some((median, _)), Some((most, _))) = (times.get(times.len() / 2), times.last()) {
        println!("    read back: {median:?} a segment, at most {most:?}; at most {largest} bytes of blob");
    }
}

fn print(path: &str, index: &Index, size: u64, [one, one_learning, two, two_learning]: [f64; 4]) {
    let entries: Vec<_> = index.spans.iter().filter_map(|span| span.entry.as_ref()).collect();
    let windows: usize = entries.iter().map(|entry| entry.window.len()).sum();
    let file = encode(index).len();
    let more = |without: f64, with: f64| 100.0 * (without / with - 1.0);
    println!(
        "{path}: {:?}, {:.1} MB -> {:.1} MB; one thread {one:.0} -> {one_learning:.0} MB/s ({:+.1} % time), \
         two {two:.0} -> {two_learning:.0} MB/s ({:+.1} % time); index {file} bytes ({:.3} %), {} spans, {} entries, {} bytes a window",
        index.compression,
        index.blob_size as f64 / 1e6,
        size as f64 / 1e6,
        more(one, one_learning),
        more(two, two_learning),
        100.0 * file as f64 / size as f64,
        index.len(),
        entries.len(),
        windows / entries.len().max(1),
    );
}

fn open(blob: &[u8], learning: bool) -> Decoder<Input<'_>> {
    if learning { decode::open_learning(blob) } else { decode::open(blob) }.expect("memory does not fail")
}

/// Fills a buffer; empty at the end.
fn fill(decoder: &mut Decoder<Input<'_>>, buffer: &mut Vec<u8>) -> Vec<Found> {
    buffer.resize(BUFFER, 0);
    let mut len = 0;
    while len < BUFFER {
        match decoder.read(&mut buffer[len..]).expect("a whole layer") {
            0 => break,
            n => len += n,
        }
    }
    buffer.truncate(len);
    decoder.take_entries()
}

/// What is done with the bytes.
enum Sink {
    Digest(Sha256),
    Index(Box<Builder>),
}

impl Sink {
    fn new(learning: bool) -> Self {
        if learning { Self::Index(Box::new(Builder::new())) } else { Self::Digest(Sha256::new()) }
    }

    fn take(&mut self, buffer: &[u8], found: Vec<Found>) {
        match self {
            Self::Digest(digest) => digest.update(buffer),
            Self::Index(builder) => {
                builder.entries(found);
                builder.push(buffer);
            }
        }
    }

    fn finish(self, blob: &[u8], decoder: &Decoder<Input<'_>>) -> Option<Index> {
        match self {
            Self::Digest(digest) => {
                std::hint::black_box(digest.finalize());
                None
            }
            Self::Index(builder) => Some(builder.finish(decoder.compression(), blob.len() as u64)),
        }
    }
}

fn one_thread(blob: &[u8], learning: bool) -> (Option<Index>, u64) {
    let (mut decoder, mut sink, mut buffer) = (open(blob, learning), Sink::new(learning), Vec::new());
    let mut size = 0;
    loop {
        let found = fill(&mut decoder, &mut buffer);
        sink.take(&buffer, found);
        size += buffer.len() as u64;
        if buffer.is_empty() {
            return (sink.finish(blob, &decoder), size);
        }
    }
}

fn two_threads(blob: &[u8], learning: bool) -> Option<Index> {
    let (full, filled) = mpsc::sync_channel::<(Vec<u8>, Vec<Found>)>(3);
    let (empty, emptied) = mpsc::sync_channel::<Vec<u8>>(3);
    let mut decoder = open(blob, learning);
    let sink = thread::scope(|scope| {
        let store = scope.spawn(move || {
            let mut sink = Sink::new(learning);
            for (buffer, found) in filled {
                sink.take(&buffer, found);
                let _ = empty.send(buffer);
            }
            sink
        });
        let mut made = 0;
        loop {
            let mut buffer = match emptied.try_recv() {
                Ok(buffer) => buffer,
                Err(_) if made < 3 => {
                    made += 1;
                    Vec::new()
                }
                Err(_) => emptied.recv().expect("the other thread lives"),
            };
            let found = fill(&mut decoder, &mut buffer);
            let last = buffer.is_empty();
            full.send((buffer, found)).expect("the other thread lives");
            if last {
                break;
            }
        }
        drop(full);
        store.join().expect("it does not panic")
    });
    sink.finish(blob, &decoder)
}
