//! What spans are decoded into, kept from one range to the next.
//!
//! A span's buffer is large enough to be mapped alone: each range had its own, and the kernel cleared its 256 pages for every one. A start of an
//! ML image, of some 210 ranges, made 18,000 page faults so.

use std::sync::{Mutex, PoisonError};

/// Free buffers that are kept: as many as ranges are decoded at once on a few processors. One has [`silk_layer::index::MAX_SPAN`] bytes
/// at most, 1 MiB as a rule.
const KEPT: usize = 4;

static FREE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// A buffer with anything in it, which goes back where it came from.
#[derive(Debug)]
pub(super) struct Buffer(pub(super) Vec<u8>);

impl Buffer {
    pub(super) fn take() -> Self {
        Self(FREE.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT {
            free.push(std::mem::take(&mut self.0));
        }
    }
}
