//! Which pages of a file the kernel has in memory (`cachestat`, Linux 6.5).
//!
//! Looking reads nothing and brings nothing into memory. Calls take microseconds and wait for no disk.

#![allow(unsafe_code)]

use std::{
    io,
    ops::Range,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// The number of `cachestat` on every architecture but Alpha (`asm-generic/unistd.h`); libc does not have it on all.
const CACHESTAT: libc::c_long = 451;

/// Ranges are told in pages of this size; where the kernel's are larger, whole ones.
const PAGE: u64 = 4096;

/// `struct cachestat_range` of `linux/mman.h`.
#[repr(C)]
struct CachestatRange {
    off: u64,
    len: u64,
}

/// `struct cachestat` of `linux/mman.h`.
#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cache: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// How many pages of a range of a file are in memory.
///
/// # Errors
/// `ENOSYS` before Linux 6.5, `EOPNOTSUPP` for what has no pages, `EPERM` for a file that is not the caller's to write.
pub fn pages(file: BorrowedFd<'_>, bytes: Range<u64>) -> io::Result<u64> {
    // The kernel takes no bytes for all.
    if bytes.is_empty() {
        return Ok(0);
    }
    let range = CachestatRange { off: bytes.start, len: bytes.end - bytes.start };
    let mut found = Cachestat::default();
    // SAFETY: both structures are laid out as the kernel's and live until the call returns; it writes to the second only.
    let answer = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut found, 0) };
    if answer == 0 { Ok(found.cache) } else { Err(io::Error::last_os_error()) }
}

/// The ranges of a file of `size` bytes that are in memory, in order, in whole pages; at most `most` of them.
///
/// # Errors
/// As [`pages`].
pub fn ranges(file: BorrowedFd<'_>, size: u64, most: usize) -> io::Result<Vec<Range<u64>>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    // Halves that are neither empty nor full are halved again; the last one added is looked at first.
    let mut left = Vec::new();
    left.push(0..size.div_ceil(PAGE));
    while let Some(part) = left.pop() {
        let all = part.end - part.start;
        let cached = pages(file, part.start * PAGE..part.end * PAGE)?;
        if cached == 0 {
            continue;
        }
        if cached < all && all > 1 {
            let middle = part.start + all / 2;
            left.extend([middle..part.end, part.start..middle]);
            continue;
        }
        let bytes = part.start * PAGE..(part.end * PAGE).min(size);
        if let Some(last) = found.last_mut().filter(|last| last.end == bytes.start) {
            last.end = bytes.end;
        } else if found.len() < most {
            found.push(bytes);
        } else {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::{fd::AsFd as _, unix::fs::FileExt as _};

    use super::*;

    #[test]
    fn what_was_written_is_in_memory_to_the_page() {
        // tmpfs would do: its pages are in memory, or nowhere.
        let file = tempfile::tempfile().unwrap();
        let size = 100 * PAGE + 1;
        file.set_len(size).unwrap();
        assert_eq!(ranges(file.as_fd(), size, 100).unwrap(), []);
        for page in [3, 4, 5, 60, 100] {
            file.write_all_at(&[1], page * PAGE).unwrap();
        }
        let found = [3 * PAGE..6 * PAGE, 60 * PAGE..61 * PAGE, 100 * PAGE..size];
        // A file system may keep larger folios than it was asked for.
        let ranges = ranges(file.as_fd(), size, 100).unwrap();
        assert!(ranges == found || ranges.iter().map(|r| r.end - r.start).sum::<u64>() >= 4 * PAGE, "{ranges:?}");
        assert_eq!(super::ranges(file.as_fd(), size, 1).unwrap().len(), 1);
        assert_eq!(pages(file.as_fd(), 0..0).unwrap(), 0);
    }
}
