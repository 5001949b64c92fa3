//! Mounts that show files with other owners than the file system has (idmapped mounts, Linux 5.12).
//!
//! Such a mount takes its map from a user namespace, and the kernel makes one of those with a process only. So there is one for a
//! moment, which does nothing but be there (user_namespaces(7), mount_setattr(2)). Calls take about a millisecond: the
//! process is a copy of this one; none of them waits for a disk.

#![allow(unsafe_code)]

use std::{
    fs::{self, File},
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    ptr,
};

/// `struct clone_args`, as it was first (`CLONE_ARGS_SIZE_VER0`). `clone3` takes the same arguments on every machine, which
/// `clone` does not.
#[repr(C)]
#[derive(Debug, Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

const _: () = assert!(size_of::<CloneArgs>() == 64 && size_of::<libc::mount_attr>() == 32);

/// Makes a user namespace with these maps: lines of an ID inside, an ID outside, and a length, as `/proc/PID/uid_map` takes
/// them (at most 340 lines, and less than a page). It lasts as long as the descriptor, or a mount that has it. For a moment the process has
/// what descriptors the calling thread has, so that what others close meanwhile is closed a moment later: call it on a thread that has none
/// ([`apart`](crate::apart)).
///
/// # Errors
/// `ENOSPC` where `user.max_user_namespaces` allows no more, `EINVAL` and `EPERM` for maps that the kernel does not take, and
/// what it says else.
pub fn namespace(uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    let child = Child::start()?;
    let path = |name| format!("/proc/{}/{name}", child.0);
    // Whoever may set groups in the namespace outside may map them without giving up setgroups(2) inside.
    fs::write(path("uid_map"), uid_map)?;
    fs::write(path("gid_map"), gid_map)?;
    Ok(File::open(path("ns/user"))?.into())
}

/// Makes a mount that is attached nowhere (`open_tree` with `OPEN_TREE_CLONE`) show its files as the map of the user namespace says:
/// an owner that the namespace knows as its 0 inside is shown as the ID outside. It becomes read-only, and
/// private: nothing that is mounted in its original shows up in it.
///
/// # Errors
/// `EINVAL` when the file system of the mount cannot be mapped, or the mount is one that was mapped before, `ENOSYS` before Linux
/// 5.12, and what the kernel says else.
pub fn apply(mount: BorrowedFd<'_>, userns: BorrowedFd<'_>) -> io::Result<()> {
    let userns = u64::try_from(userns.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: userns,
    };
    let (mount, path, flags) = (mount.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: the kernel reads the empty string and one structure of the size it is told; both live until the call returns.
    let done = unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount, path, flags, &raw const attr, size_of::<libc::mount_attr>())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A process that waits to be killed. Killed and reaped when dropped.
#[derive(Debug)]
struct Child(libc::pid_t);

impl Child {
    fn start() -> io::Result<Self> {
        let flags = libc::CLONE_NEWUSER as u64;
        let args = CloneArgs { flags, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
        let parent = std::process::id();
        let before = Blocked::all()?;
        // SAFETY: the kernel reads one structure of the size it is told. Memory and stack of the new process are copies, and it has one
        // thread, of which no lock that another thread held is ever taken: it only makes system calls.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
        if pid == 0 {
            wait_for_the_end(parent);
        }
        let failed = io::Error::last_os_error();
        drop(before);
        match libc::pid_t::try_from(pid) {
            Ok(pid) if pid > 0 => Ok(Self(pid)),
            _ => Err(failed),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: the number is that of our child until it is reaped, which only this does; no memory is passed. A child that is
        // killed ends, so the wait does.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            while libc::waitpid(self.0, ptr::null_mut(), 0) == -1
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
        }
    }
}

/// What the child does. Descriptors first: a silkd that is killed must leave nobody who holds its FUSE device, or what waits for that
/// waits for ever. Then it ends with the thread that made it, also when that has ended just before.
fn wait_for_the_end(parent: u32) -> ! {
    // SAFETY: no memory is passed but null pointers where the kernel takes them, and nothing is used that was closed. These
    // calls take no locks and touch no memory but `errno`, which is this process's own.
    unsafe {
        libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0);
        libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        if libc::syscall(libc::SYS_getppid) == libc::c_long::from(parent) {
            loop {
                let none = ptr::null::<libc::c_void>();
                libc::syscall(libc::SYS_ppoll, none, 0, none, none, 0);
            }
        }
        libc::syscall(libc::SYS_exit_group, 0);
    }
    // No process gets past its end.
    loop {
        std::hint::spin_loop();
    }
}

/// While it lives, no signal is delivered to this thread, and so none to a child that it makes: handlers write to descriptors.
struct Blocked(libc::sigset_t);

impl Blocked {
    fn all() -> io::Result<Self> {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: the first call fills the set that the second reads, which fills the other; both live until it returns.
        let failed = unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr())
        };
        match failed {
            // SAFETY: the call has filled it.
            0 => Ok(Self(unsafe { before.assume_init() })),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the kernel reads one set, and is told not to write the other. With a set that it has given it cannot fail.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        os::{
            fd::AsFd as _,
            unix::fs::{MetadataExt as _, chown},
        },
        path::Path,
    };

    use rustix::{
        fs::{CWD, Mode, OFlags, openat},
        mount::{OpenTreeFlags, open_tree},
    };

    use super::*;

    /// The owner of a name in a mount that is attached nowhere.
    fn owner(mount: &OwnedFd, name: &str) -> (u32, u32) {
        let file = openat(mount, name, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).unwrap();
        let meta = File::from(file).metadata().unwrap();
        (meta.uid(), meta.gid())
    }

    fn clone_of(dir: &Path) -> OwnedFd {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, dir, flags).unwrap()
    }

    /// The state of a process (proc_pid_stat(5)), while there is one.
    fn state(pid: libc::pid_t) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }

    fn eventually(what: &str, holds: impl Fn() -> bool) {
        let start = std::time::Instant::now();
        while !holds() {
            assert!(start.elapsed().as_secs() < 20, "{what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn privileged_owners_are_shown_as_the_maps_say() {
        let dir = tempfile::tempdir().unwrap();
        for (name, uid, gid) in [("root", 0, 0), ("user", 1000, 100), ("edge", 1009, 9), ("nobody", 1010, 10)] {
            fs::write(dir.path().join(name), name).unwrap();
            chown(dir.path().join(name), Some(uid), Some(gid)).unwrap();
        }
        let userns = namespace("0 70000 10\n1000 90000 10\n", "0 500 10\n100 5 1\n").unwrap();
        let mount = clone_of(dir.path());
        apply(mount.as_fd(), userns.as_fd()).unwrap();
        assert_eq!(owner(&mount, "root"), (70000, 500));
        assert_eq!(owner(&mount, "user"), (90000, 5));
        assert_eq!(owner(&mount, "edge"), (90009, 509));
        assert_eq!(owner(&mount, "nobody"), (65534, 65534), "in no range");
        let written = openat(&mount, "root", OFlags::WRONLY, Mode::empty());
        assert_eq!(written.unwrap_err(), rustix::io::Errno::ROFS);
        assert_eq!(fs::metadata(dir.path().join("user")).unwrap().uid(), 1000, "the file is as it was");
        assert_eq!(
            apply(mount.as_fd(), userns.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::EPERM),
            "mapped already"
        );
    }

    #[test]
    fn privileged_the_child_has_nothing_and_goes() {
        let child = Child::start().unwrap();
        let pid = child.0;
        let descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        eventually("it keeps descriptors", || descriptors() == 0);
        drop(child);
        assert_eq!(state(pid), None, "it is reaped");
        // As when silkd is killed: the child ends with the thread that made it, once it waits.
        let left = std::thread::spawn(|| {
            let child = std::mem::ManuallyDrop::new(Child::start().unwrap());
            eventually("it does not wait", || state(child.0) == Some('S'));
            child.0
        });
        let left = left.join().unwrap();
        eventually("it outlives who made it", || state(left) == Some('Z'));
        drop(Child(left));
        assert_eq!(state(left), None);
    }

    #[test]
    fn privileged_maps_that_the_kernel_does_not_take_are_errors() {
        assert!(namespace("0 0 4294967295\n", "0 0 4294967295\n").is_ok(), "all IDs as they are");
        for (uids, gids) in [("nonsense", "0 0 1"), ("0 0 1", "nonsense"), ("0 5 10\n5 100 10\n", "0 0 1")] {
            assert_eq!(namespace(uids, gids).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{uids:?} {gids:?}");
        }
    }

    #[test]
    fn privileged_many_threads_make_them_at_once() {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let make = || (0..20).for_each(|n| drop(namespace(&format!("0 {n} 1"), "0 0 1").unwrap()));
                scope.spawn(move || crate::apart::run(make).unwrap());
            }
        });
    }
}
