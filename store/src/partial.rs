//! A layer whose names and random access are known, while its bytes arrive in any order.
//!
//! ```text
//! <layer>/data      the tar at its full length; what has not come yet is a hole
//! <layer>/present   which spans of the layer's index are in `data` (docs/formats/store.md)
//! ```
//!
//! A span is marked after its bytes are written, and bytes are only given for what is marked: a reader sees a span's
//! verified bytes or learns that they are missing, never a hole's zeros. Marks outlive silkd. After a crash of the host they
//! are believed only where the bytes still have the span's digest.
//!
//! [`Partial::fill`] and [`Partial::read`] may be called from any thread; they block for the disk only.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use silk_layer::{
    index::Index,
    toc::{self, Toc},
};
use silk_model::{Class, Digest};

use crate::{Facts, LayerRecord, Store, StoreError, claim::Claim, drop_data, known, record, writer};

/// What `present` starts with, the version included.
const MAGIC: &[u8; 8] = b"silkprs1";
/// Bytes before the marks: the magic, the boot that wrote the marks, and the first half of the index's digest.
const HEADER: usize = 8 + 16 + 16;
/// A span that is here; all else is missing.
const HERE: u8 = 1;

/// A layer on disk that may have holes. One at a time a layer; the files stay when it is dropped.
#[derive(Debug)]
pub struct Partial {
    store: Arc<Store>,
    diff_id: Digest,
    index: Arc<Index>,
    data: File,
    data_path: PathBuf,
    present: File,
    present_path: PathBuf,
    here: Vec<AtomicBool>,
    bytes_here: AtomicU64,
    /// The data file was made by this process: where nothing was written it reads as zeros.
    fresh: bool,
    /// Its bytes were given up: others may write the layer anew.
    closed: AtomicBool,
    claim: Mutex<Option<Claim>>,
}

impl Store {
    /// Opens the data file of a layer that is known but not whole, with the spans that an earlier process left.
    ///
    /// # Errors
    /// [`StoreError::Absent`] when names or index are not known, one of class `Corrupt` when they are damaged (they are
    /// forgotten), [`StoreError::Busy`] when the layer is being written, [`StoreError::Whole`] when it
    /// was.
    pub fn partial(self: &Arc<Self>, diff_id: Digest) -> Result<Partial, StoreError> {
        let claim = self.claim(diff_id)?;
        let (index, digest) = self.sound_index(&diff_id).or_else(|error| {
            let is_others = matches!(error, StoreError::OtherBlob { .. });
            if error.class() == Class::Corrupt || is_others {
                tracing::warn!(%diff_id, %error, "what was known of a layer is damaged: it is learned anew");
                self.unlearn(&diff_id)?;
            }
            Err(if is_others { StoreError::Absent(diff_id) } else { error })
        })?;
        self.open_partial(claim, index, &digest)
    }

    /// The index and its file's digest, if names and index are as they were written and fit the layer.
    pub(crate) fn sound_index(&self, diff_id: &Digest) -> Result<(Index, Digest), StoreError> {
        let (index, digest) = self.read_index(diff_id)?;
        // Whole is enough: it was decoded when it was learned, and is again where its tree is made.
        self.check_toc(diff_id)?;
        let facts = self.record(diff_id).ok_or(StoreError::Absent(*diff_id))?.facts;
        known::fits(diff_id, facts.size, &index)?;
        if index.blob_size != facts.blob_size {
            // Files are written before the record: a process that ended in between may leave the index of another blob of the layer.
            return Err(StoreError::OtherBlob { blob: facts.blob, expected: facts.blob_size, found: index.blob_size });
        }
        Ok((index, digest))
    }

    fn open_partial(self: &Arc<Self>, claim: Claim, index: Index, digest: &Digest) -> Result<Partial, StoreError> {
        let diff_id = claim.diff_id;
        let dir = self.layer_path(&diff_id);
        let (data_path, present_path) = (dir.join("data"), dir.join("present"));
        let head = header(&self.boot, digest);
        let marks = match fs::read(&present_path) {
            // They speak for the data file that is there, if it is.
            Ok(bytes) if is_of(&bytes, &head, index.len()) && has_len(&data_path, writer::padded(index.size)) => {
                Some(bytes)
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(StoreError::io("read", &present_path, e)),
            _ => None,
        };
        let fresh = marks.is_none();
        if fresh {
            drop_data(&dir)?;
        }
        let open = |path: &PathBuf| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let data = open(&data_path).map_err(|e| StoreError::io("open", &data_path, e))?;
        data.set_len(writer::padded(index.size)).map_err(|e| StoreError::io("extend", &data_path, e))?;
        let here = (0..index.len()).map(|_| AtomicBool::new(false)).collect();
        let present = open(&present_path).map_err(|e| StoreError::io("open", &present_path, e))?;
        let partial = Partial {
            store: Arc::clone(self),
            diff_id,
            index: Arc::new(index),
            data,
            data_path,
            present,
            present_path,
            here,
            bytes_here: AtomicU64::new(0),
            fresh,
            closed: AtomicBool::new(false),
            claim: Mutex::new(Some(claim)),
        };
        partial.believe(&head, marks.as_deref())?;
        Ok(partial)
    }
}

fn header(boot: &[u8; 16], index: &Digest) -> Vec<u8> {
    [MAGIC.as_slice(), boot, &index.as_bytes()[..16]].concat()
}

fn has_len(path: &Path, len: u64) -> bool {
    fs::metadata(path).is_ok_and(|data| data.len() == len)
}

/// Is it a file of marks for this index, of whatever boot?
fn is_of(bytes: &[u8], head: &[u8], spans: usize) -> bool {
    bytes.len() == HEADER + spans && bytes[..8] == head[..8] && bytes[24..HEADER] == head[24..]
}

impl Partial {
    /// Takes over the marks of an earlier process, or starts without.
    fn believe(&self, head: &[u8], marks: Option<&[u8]>) -> Result<(), StoreError> {
        let same_boot = marks.is_some_and(|bytes| bytes[..HEADER] == *head);
        let mut next = head.to_vec();
        next.resize(HEADER + self.index.len(), 0);
        for span in 0..self.index.len() {
            let marked = marks.is_some_and(|bytes| bytes[HEADER + span] == HERE);
            if marked && (same_boot || self.is_good(span)) {
                next[HEADER + span] = HERE;
                self.note(span);
            }
        }
        let (head, marks) = next.split_at(HEADER);
        // The header last: with it the marks are believed, whatever of them was written.
        let written = self
            .present
            .set_len(next.len() as u64)
            .and_then(|()| self.present.write_all_at(marks, HEADER as u64))
            .and_then(|()| self.present.write_all_at(head, 0));
        written.map_err(|e| StoreError::io("write", &self.present_path, e))
    }

    /// Does the disk give the span's bytes? One that it does not give is fetched again like one that is missing.
    fn is_good(&self, span: usize) -> bool {
        let range = self.index.range(span);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        match self.data.read_exact_at(&mut bytes, range.start) {
            Ok(()) => self.index.is_good(span, &bytes),
            Err(error) => {
                tracing::warn!(path = %self.data_path.display(), span, %error, "bytes of a layer cannot be read back");
                false
            }
        }
    }

    fn note(&self, span: usize) {
        if !self.here[span].swap(true, Ordering::Release) {
            let range = self.index.range(span);
            self.bytes_here.fetch_add(range.end - range.start, Ordering::Relaxed);
        }
    }

    /// The layer.
    pub fn diff_id(&self) -> Digest {
        self.diff_id
    }

    /// Its index.
    pub fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// Is the span here? Reads no disk.
    pub fn has(&self, span: usize) -> bool {
        self.here[span].load(Ordering::Acquire) && !self.closed.load(Ordering::Acquire)
    }

    /// Uncompressed bytes that are here.
    pub fn bytes_here(&self) -> u64 {
        self.bytes_here.load(Ordering::Relaxed)
    }

    /// The first span at or after `from` that is missing.
    pub fn missing_from(&self, from: usize) -> Option<usize> {
        (from..self.index.len()).find(|span| !self.has(*span))
    }

    /// The spans of a range of the tar, if any of them is missing.
    pub fn hole(&self, bytes: Range<u64>) -> Option<Range<usize>> {
        let spans = self.index.spans_of(bytes);
        spans.clone().any(|span| !self.has(span)).then_some(spans)
    }

    /// Stores a span. The caller has verified the bytes ([`silk_layer::index::Spans`] does). `is_wanted`: somebody reads it now or
    /// soon, so that it is kept in memory.
    ///
    /// # Errors
    /// What the file system says; class `NoSpace` when the disk is full. The span stays missing.
    pub fn fill(&self, span: usize, bytes: &[u8], is_wanted: bool) -> Result<(), StoreError> {
        self.check_open()?;
        if self.has(span) {
            return Ok(());
        }
        let start = self.index.range(span).start;
        let ways = &self.store.ways;
        let write = |run: &[u8], at| {
            if is_wanted { ways.write_cached(&self.data, run, at) } else { ways.write(&self.data, run, at) }
        };
        // A process that was killed may have left anything where zeros belong.
        let written = if self.fresh { writer::write_sparse(bytes, start, write) } else { write(bytes, start) };
        written.map_err(|e| StoreError::io("write", &self.data_path, e))?;
        self.present
            .write_all_at(&[HERE], (HEADER + span) as u64)
            .map_err(|e| StoreError::io("write", &self.present_path, e))?;
        self.note(span);
        Ok(())
    }

    /// Reads bytes of spans that are here; beyond the tar's end, zeros up to a multiple of 4096, then nothing.
    ///
    /// # Errors
    /// [`StoreError::Absent`] when some of them are missing; what the file system says, which includes a file that is too short.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<usize, StoreError> {
        self.check_open()?;
        let end = (offset + out.len() as u64).min(self.index.size);
        if offset < end && self.hole(offset..end).is_some() {
            return Err(StoreError::Absent(self.diff_id));
        }
        let read = read_at(&self.data, offset, out).and_then(|len| {
            if offset + (len as u64) < end { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(len) }
        });
        read.map_err(|e| StoreError::io("read", &self.data_path, e))
    }

    /// Takes back that a span is here, since its bytes cannot be read. Not for a layer that is whole.
    ///
    /// # Errors
    /// What the file system says; the span is missing until the process ends all the same.
    pub fn lose(&self, span: usize) -> Result<(), StoreError> {
        let unmarked = self.present.write_all_at(&[0], (HEADER + span) as u64);
        if self.here[span].swap(false, Ordering::AcqRel) {
            let range = self.index.range(span);
            self.bytes_here.fetch_sub(range.end - range.start, Ordering::Relaxed);
        }
        unmarked.map_err(|e| StoreError::io("write", &self.present_path, e))
    }

    /// Makes the layer whole once no span is missing: all of them verified, an index that leads to the diff ID is the
    /// proof of the bytes. `toc` is what the caller has read in them. Not durable yet: see [`Store::sync`].
    ///
    /// # Errors
    /// [`StoreError::Absent`] when a span is missing; what the file system or the database says.
    pub fn finish(&self, toc: &Toc, millis: u64) -> Result<(), StoreError> {
        if self.missing_from(0).is_some() {
            return Err(StoreError::Absent(self.diff_id));
        }
        let names = toc::encode(toc);
        // Against `discard`: the layer is given up, or becomes whole.
        let changing = self.store.changing();
        self.check_open()?;
        let known = self.store.record(&self.diff_id).ok_or(StoreError::Absent(self.diff_id))?;
        // A full disk must not cost the names that are there.
        if self.store.read_known(&self.diff_id, "toc").ok().as_ref() != Some(&names) {
            writer::write_new(&self.store.layer_path(&self.diff_id).join("toc"), &names)?;
        }
        let facts = Facts { entries: toc.count(), millis, ..known.facts };
        let record = LayerRecord {
            whole: true,
            durable: false,
            boot: self.store.boot,
            last_used: record::now(),
            from: String::new(),
            facts,
        };
        self.store.persist(&[(self.diff_id, record)])?;
        drop(changing);
        // It is whole: marks that stay go when the store opens.
        if let Err(error) = fs::remove_file(&self.present_path) {
            tracing::debug!(path = %self.present_path.display(), %error, "marks of a whole layer stay");
        }
        // Who reads it still keeps this: it may be evicted all the same.
        self.release();
        Ok(())
    }

    fn release(&self) {
        drop(self.claim.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Deletes the bytes, and names and index too if they lied. Whoever still holds this gets [`StoreError::Absent`].
    ///
    /// # Errors
    /// What the file system or the database says.
    pub fn discard(&self, lied: bool) -> Result<(), StoreError> {
        let changing = self.store.changing();
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let is_whole = self.store.whole(&self.diff_id);
        drop(changing);
        if is_whole {
            // It became so a moment ago: who wants it gone evicts it.
            self.release();
            return Ok(());
        }
        if self.claim.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            // It was whole, and was evicted: what is there now is another's.
            return Ok(());
        }
        let forgotten = if lied { self.store.unlearn(&self.diff_id) } else { Ok(()) };
        let dropped = forgotten.and_then(|()| drop_data(&self.store.layer_path(&self.diff_id)));
        self.release();
        dropped
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Acquire) { Err(StoreError::Absent(self.diff_id)) } else { Ok(()) }
    }
}

/// Reads until the buffer is full or the file ends.
///
/// # Errors
/// What the file system says.
pub fn read_at(file: &File, offset: u64, out: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < out.len() {
        match file.read_at(&mut out[len..], offset + len as u64) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}
