//! mount(2) and umount(2) for EROFS, by the calls that take any number of options and tell what they dislike
//! (`fsopen` and its family, Linux 5.2).

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use rustix::{
    fd::OwnedFd,
    fs::{Advice, CWD, fadvise},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
    },
};
use silk_sys::loop_device::LoopDevice;

use crate::Rung;

/// Blocks of the metadata images, and so of the loop devices below them.
const BLOCK: u32 = 512;
/// `fsconfig` takes strings of 255 bytes.
const MAX_STRING: usize = 255;

/// A mount that the kernel refused: why, and what it said besides.
#[derive(Debug)]
pub(crate) struct Refused {
    pub source: io::Error,
    pub log: String,
}

impl<E: Into<io::Error>> From<E> for Refused {
    fn from(source: E) -> Self {
        Self { source: source.into(), log: String::new() }
    }
}

/// Mounts the image `meta` with its data files, read-only, on the directory `target`.
///
/// A process killed in here leaves nothing: until the last call the mount belongs to a descriptor, and loop devices go
/// with their last user.
pub(crate) fn mount_erofs(rung: Rung, meta: &Path, devices: &[PathBuf], target: &Path) -> Result<(), Refused> {
    match rung {
        Rung::File => {
            let files: Vec<_> = devices.iter().map(|d| Named::open(d)).collect::<io::Result<_>>()?;
            let source = Named::open(meta)?;
            attach(&source.name, files.iter().map(|f| f.name.as_path()), target)?;
        }
        Rung::Loop => {
            let attached = |path: &Path| LoopDevice::attach(&File::open(path)?, path, BLOCK);
            let loops: Vec<_> = devices.iter().map(|d| attached(d)).collect::<io::Result<_>>()?;
            let source = attached(meta)?;
            attach(source.path(), loops.iter().map(LoopDevice::path), target)?;
            // The device has a page cache of its own, which the mount has just emptied and would fill page by page.
            // Advice that is not taken costs time only.
            let _ = fadvise(source.file(), 0, None, Advice::WillNeed);
        }
        Rung::Tree | Rung::None => return Err(Errno::NOTSUP.into()),
    }
    Ok(())
}

/// A file under a name that `fsconfig` takes: its own, or that of its descriptor if it is too long, which may be one of this thread
/// alone.
struct Named {
    name: PathBuf,
    _open: File,
}

impl Named {
    fn open(path: &Path) -> io::Result<Self> {
        use std::os::fd::AsRawFd as _;
        let open = File::open(path)?;
        let name = if path.as_os_str().len() <= MAX_STRING {
            path.to_owned()
        } else {
            format!("/proc/thread-self/fd/{}", open.as_raw_fd()).into()
        };
        Ok(Self { name, _open: open })
    }
}

fn attach<'a>(source: &Path, devices: impl Iterator<Item = &'a Path>, target: &Path) -> Result<(), Refused> {
    let fs = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let made = (|| {
        fsconfig_set_string(&fs, "source", source)?;
        for device in devices {
            fsconfig_set_string(&fs, "device", device)?;
        }
        fsconfig_set_flag(&fs, "ro")?;
        fsconfig_create(&fs)?;
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
    })();
    let mount = made.map_err(|e: Errno| Refused { source: e.into(), log: log(fs) })?;
    move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
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

/// Unmounts all that is mounted on `target`; a mount in use goes when its last user does. Nothing mounted is no error.
pub(crate) fn unmount_all(target: &Path) -> io::Result<()> {
    // Not for ever: each round takes one mount away, and nobody but us mounts here.
    for _ in 0..64 {
        match unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(Errno::BUSY) => unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?,
            Err(e) => return Err(e.into()),
        }
    }
    Err(Errno::BUSY.into())
}
