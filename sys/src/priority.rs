//! How urgent the calling thread is, against the other threads of its control group.

#![allow(unsafe_code)]

use std::{io, marker::PhantomData};

/// How far a thread stands behind others, as a nice value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// Its work is for what will run, and must not take processors from what runs now: a thirtieth of the weight of an ordinary thread.
    Now = 15,
    /// Nobody waits for its work: a seventieth.
    All = 19,
}

/// From now on the calling thread runs, and uses disks, when nobody else wants to.
///
/// # Errors
/// What the kernel says; the thread runs as before, or its disk's priority only is as before.
pub fn idle() -> io::Result<()> {
    /// `IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0)`, for `IOPRIO_WHO_PROCESS` 1.
    const DISK_IDLE: libc::c_int = 3 << 13;
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread; the kernel reads one structure, which lives until the call returns.
    let scheduled = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_IDLE, &raw const parameters) };
    // SAFETY: no memory is passed.
    let disk = unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, DISK_IDLE) };
    if scheduled == 0 && disk == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// While it lives, the thread that made it gets the processors after others.
#[derive(Debug)]
pub struct Lowered {
    before: libc::c_int,
    /// It is of one thread.
    _thread: PhantomData<*const ()>,
}

/// Lowers the calling thread. To raise it again needs `CAP_SYS_NICE`, which root has: without, it stays low.
pub fn lowered(behind: Behind) -> Lowered {
    // SAFETY: no memory is passed; on Linux, 0 is the calling thread. It cannot fail for one's own thread.
    let before = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    // Work at an ordinary priority is as right.
    let _ = nice(behind as libc::c_int);
    Lowered { before, _thread: PhantomData }
}

impl Drop for Lowered {
    fn drop(&mut self) {
        let _ = nice(self.before);
    }
}

fn nice(value: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is passed; on Linux, 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Field 19 of proc_pid_stat(5).
    fn now() -> libc::c_int {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().parse().unwrap()
    }

    #[test]
    fn a_thread_is_lowered_for_a_while() {
        let before = now();
        let lowered = lowered(Behind::Now);
        assert_eq!(now(), Behind::Now as libc::c_int);
        drop(lowered);
        // Not everybody may raise it again.
        assert!(now() == before || nice(before).is_err());
    }

    #[test]
    fn a_thread_becomes_idle() {
        std::thread::spawn(|| idle().unwrap()).join().unwrap();
    }
}
