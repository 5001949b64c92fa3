//! The answer to a read: given at once or much later, from any thread, exactly once.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::io::Errno;

/// A read that waits for its answer. Dropped without one, it is an EIO.
#[derive(Debug)]
pub struct Reply {
    /// How many bytes answer it. The reader has clipped the read to the file's length, so fewer are never right: the
    /// kernel would take the file's end for reached and cut the file.
    expected: usize,
    to: Option<To>,
}

/// Who waits for the bytes.
#[derive(Debug)]
enum To {
    Kernel(fuser::ReplyData),
    Part(Arc<Gather>, usize),
}

impl Reply {
    /// An answer of `expected` bytes to a read of the kernel's.
    pub(crate) fn kernel(reply: fuser::ReplyData, expected: usize) -> Self {
        Self { expected, to: Some(To::Kernel(reply)) }
    }

    /// Answers with the bytes: all that were asked for.
    pub fn data(mut self, bytes: &[u8]) {
        if bytes.len() != self.expected {
            tracing::error!(expected = self.expected, given = bytes.len(), "a read was answered with a wrong length");
            return;
        }
        match self.to.take() {
            Some(To::Kernel(reply)) => reply.data(bytes),
            Some(To::Part(gather, at)) => gather.put(at, bytes),
            None => {}
        }
    }

    /// Fails the read.
    pub fn error(mut self, error: Errno) {
        self.fail(error);
    }

    fn fail(&mut self, error: Errno) {
        match self.to.take() {
            Some(To::Kernel(reply)) => reply.error(fuser::Errno::from_i32(error.raw_os_error())),
            Some(To::Part(gather, _)) => gather.fail(error),
            None => {}
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.fail(Errno::IO);
    }
}

/// A read whose bytes come from several places.
#[derive(Debug)]
pub(crate) struct Gather(Mutex<Option<Waiting>>);

#[derive(Debug)]
struct Waiting {
    reply: fuser::ReplyData,
    buffer: Vec<u8>,
    missing: usize,
}

impl Gather {
    /// A read of as many bytes as `buffer` has, of which the caller has filled all but `missing`.
    pub(crate) fn new(reply: fuser::ReplyData, buffer: Vec<u8>, missing: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Waiting { reply, buffer, missing }))))
    }

    /// The answer for a part of the bytes. Parts must not overlap.
    pub(crate) fn part(self: &Arc<Self>, range: Range<usize>) -> Reply {
        Reply { expected: range.len(), to: Some(To::Part(self.clone(), range.start)) }
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing waits any more when another part has failed.
        let Some(it) = waiting.as_mut() else { return };
        it.buffer[at..at + bytes.len()].copy_from_slice(bytes);
        it.missing -= bytes.len();
        if it.missing == 0
            && let Some(it) = waiting.take()
        {
            it.reply.data(&it.buffer);
        }
    }

    fn fail(&self, error: Errno) {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(it) = waiting {
            it.reply.error(fuser::Errno::from_i32(error.raw_os_error()));
        }
    }
}
