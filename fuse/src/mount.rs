//! The mount itself: made, found again, taken away, and its connection ended.
//!
//! silk mounts by itself and hands the device to `fuser` (`Session::from_fd`), which then never unmounts: what
//! fuser 0.18 does at the end takes a mount that somebody has unmounted for a live one, and unmounts what lies below.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, Statx, StatxAttributes, StatxFlags, openat, statx},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
    },
};

use crate::FuseError;

/// The largest read that the kernel asks for at once (`fs.fuse.max_pages_limit` is 256 pages).
const READ: u32 = 1 << 20;

/// Resolves the mount point, makes its directory where there is none, and takes away the mounts that an earlier process
/// has left there. Those may be dead (ENOTCONN) or not: nobody else mounts here, and nothing asks them anything.
pub(crate) fn clear(at: &Path) -> Result<PathBuf, FuseError> {
    let invalid = || FuseError::io("mount on", at, ErrorKind::InvalidInput);
    // The last part is not resolved: a dead mount answers no question.
    let (parent, name) = at.parent().zip(at.file_name()).ok_or_else(invalid)?;
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let at = parent.canonicalize().map_err(|e| FuseError::io("resolve", parent, e))?.join(name);
    match DirBuilder::new().mode(0o700).create(&at) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(FuseError::io("create", &at, e)),
        _ => {}
    }
    sweep(&at).map(|()| at)
}

/// Takes away the mounts that an earlier process has left at a place.
pub(crate) fn sweep(at: &Path) -> Result<(), FuseError> {
    // Not for ever: each round takes one mount away.
    for _ in 0..64 {
        let Some(id) = mounted(at) else { return Ok(()) };
        let fs_type = fs_type(id).map_err(|e| FuseError::io("read", Path::new("/proc/self/mountinfo"), e))?;
        if !fs_type.starts_with("fuse") {
            return Err(FuseError::InTheWay { path: at.to_owned(), fs_type });
        }
        tracing::warn!(path = %at.display(), "took away a mount that an earlier process left");
        force(at).map_err(|e| FuseError::io("unmount", at, e))?;
    }
    Err(FuseError::io("unmount", at, Errno::BUSY))
}

/// A mount that is nowhere yet. It goes with its descriptor.
pub(crate) struct New(OwnedFd);

/// Makes a mount, and the device that its requests come from.
pub(crate) fn new(at: &Path) -> Result<(OwnedFd, New), FuseError> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(FuseError::NoDevice)?;
    let refused = |source: Errno, log| FuseError::Refused { path: at.to_owned(), source: source.into(), log };
    let fs = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| refused(e, String::new()))?;
    let made = (|| {
        fsconfig_set_string(&fs, "source", "silk")?;
        fsconfig_set_string(&fs, "subtype", "silk")?;
        fsconfig_set_string(&fs, "fd", device.as_raw_fd().to_string())?;
        fsconfig_set_string(&fs, "rootmode", "40000")?;
        fsconfig_set_string(&fs, "user_id", rustix::process::getuid().as_raw().to_string())?;
        fsconfig_set_string(&fs, "group_id", rustix::process::getgid().as_raw().to_string())?;
        fsconfig_set_string(&fs, "max_read", READ.to_string())?;
        // Containers' users come through an overlay; the kernel checks them against modes and owners.
        fsconfig_set_flag(&fs, "allow_other")?;
        fsconfig_set_flag(&fs, "default_permissions")?;
        fsconfig_set_flag(&fs, "ro")?;
        fsconfig_create(&fs)?;
        // An overlay has flags of its own, so devices and setuid programs work through one. Here they are nobody's.
        let flags =
            MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags)
    })();
    let mount = made.map_err(|e| refused(e, log(fs)))?;
    Ok((device.into(), New(mount)))
}

impl New {
    /// Shows the mount at `at`. Call it once the kernel knows the session: then nobody ever waits in it.
    pub(crate) fn attach(self, at: &Path) -> io::Result<Mounted> {
        let stat = look(&self.0, "", AtFlags::EMPTY_PATH)?;
        move_mount(&self.0, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        Ok(Mounted { at: at.to_owned(), id: stat.stx_mnt_id, device })
    }
}

/// A mount of ours.
#[derive(Debug)]
pub(crate) struct Mounted {
    at: PathBuf,
    /// The kernel's number of the mount.
    id: u64,
    /// The kernel's number of the file system; its second half is that of the connection behind it.
    device: (u32, u32),
}

impl Mounted {
    /// Whether it is known not to be where it was attached any more.
    pub(crate) fn is_gone(&self) -> bool {
        // Before Linux 5.8 the kernel does not tell.
        let tells = |stat: &Statx| stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
        let stat = look(CWD, &self.at, AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| tells(&stat) && mount_of(&stat) != Some(self.id))
    }

    /// Unmounts. A mount in use is taken away from its place all the same, and its connection ends. Nothing is done when
    /// another mount is there: somebody has unmounted ours.
    pub(crate) fn unmount(&self) -> io::Result<()> {
        // The kernel gives a mount's number to the next one.
        if mounted(&self.at) != Some(self.id) || !fs_type(self.id)?.starts_with("fuse") {
            return Ok(());
        }
        match unmount(&self.at, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => force(&self.at),
            other => Ok(other?),
        }
    }

    /// Sets how much the kernel reads ahead; for speed alone, so what it dislikes stays as it is.
    pub(crate) fn read_ahead(&self, bytes: u32) {
        let file = format!("/sys/class/bdi/{}:{}/read_ahead_kb", self.device.0, self.device.1);
        if let Err(error) = fs::write(&file, (bytes.min(READ) >> 10).to_string()) {
            tracing::debug!(file, %error, "readahead stays as it is");
        }
    }

    /// Ends the connection, wherever the file system is still mounted. Only while the connection is known to stand:
    /// the kernel gives its number to others afterwards.
    pub(crate) fn abort(&self) -> io::Result<()> {
        // A mount of our own: that at /sys/fs/fuse/connections is there only if somebody made it.
        let fs = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&fs)?;
        let control = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let file = format!("{}/abort", self.device.1);
        let file = openat(&control, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        File::from(file).write_all(b"1")
    }
}

/// Takes the topmost mount away and ends its connection, so that whoever waits in it gets an error.
fn force(at: &Path) -> io::Result<()> {
    Ok(unmount(at, UnmountFlags::NOFOLLOW | UnmountFlags::FORCE | UnmountFlags::DETACH)?)
}

/// The number of the mount whose root is at `at`, if there is one. Asks no file system, so a dead one does not matter.
fn mounted(at: &Path) -> Option<u64> {
    mount_of(&look(CWD, at, AtFlags::SYMLINK_NOFOLLOW).ok()?)
}

/// The number of the mount that something is the root of.
fn mount_of(stat: &Statx) -> Option<u64> {
    stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT).then_some(stat.stx_mnt_id)
}

fn look(dir: impl AsFd, path: impl rustix::path::Arg, flags: AtFlags) -> rustix::io::Result<Statx> {
    statx(dir, path, flags | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT, StatxFlags::MNT_ID)
}

/// The type of a mount: in its line of mountinfo (proc_pid_mountinfo(5)), behind the lone dash.
fn fs_type(id: u64) -> io::Result<String> {
    let text = fs::read("/proc/self/mountinfo")?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| line.split(' ').next().and_then(|n| n.parse().ok()) == Some(id));
    let behind = line.and_then(|line| line.split_once(" - ")).map(|(_, behind)| behind);
    Ok(behind.and_then(|text| text.split(' ').next()).unwrap_or_default().to_owned())
}

/// The messages of a file system that was being configured: one a read, each with a letter and a space before it.
fn log(fs: OwnedFd) -> String {
    let mut fs = File::from(fs);
    let (mut text, mut message) = (String::new(), [0; 512]);
    // The kernel keeps eight.
    for _ in 0..8 {
        match fs.read(&mut message) {
            Ok(len) if len > 2 => text.push_str(&format!("; {}", String::from_utf8_lossy(&message[2..len]).trim_end())),
            _ => break,
        }
    }
    text
}
