//! System calls that may wait for this very process: of what it serves through FUSE.
//!
//! A process that is killed while a thread of it waits so never ends: the kernel lets go of a request that nobody will answer
//! only when the device that it came from is closed, and the waiting thread itself keeps that open, as all threads share their
//! descriptors. What runs here has descriptors of its own.

#![allow(unsafe_code)]

use std::{io, panic, thread};

/// The first descriptor that is none of the standard ones.
const FIRST: libc::c_uint = 3;

/// Runs a function on a thread of its own, and waits for it. It has no descriptors but the standard ones, and those that it
/// opens itself: it must use no other, nor wake a runtime, which writes to one.
///
/// # Errors
/// When the thread cannot be started.
pub fn run<R: Send>(f: impl FnOnce() -> R + Send) -> io::Result<R> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("silk-apart".into()).spawn_scoped(scope, || {
            let (last, unshare) = (libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE);
            // SAFETY: no memory is passed; what is closed is this thread's copy, of which nothing was used yet. Before Linux
            // 5.9 there is no such call: then the thread is as any other.
            unsafe { libc::syscall(libc::SYS_close_range, FIRST, last, unshare) };
            f()
        })?;
        Ok(thread.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked)))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{fs, os::fd::AsRawFd as _};

    use super::*;

    #[test]
    fn descriptors_are_its_own() {
        let file = tempfile::tempfile().unwrap();
        let path = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
        assert!(run(|| fs::symlink_metadata(&path).is_err()).unwrap(), "it has those of others");
        assert!(fs::symlink_metadata(&path).is_ok(), "those of others are closed");
    }
}
