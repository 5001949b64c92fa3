//! Loop devices: a file as a block device, for kernels that cannot mount EROFS from a file.
//!
//! A device is configured in one step (`LOOP_CONFIGURE`, Linux 5.8) with `LO_FLAGS_AUTOCLEAR`: it exists as long as
//! somebody has it open, first the [`LoopDevice`], then the mount. So a process that dies between any two steps leaves
//! none behind. The structures are those of `linux/loop.h`. Calls take microseconds; none of them waits for a disk.

#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fd::RawFd,
    io::Errno,
    ioctl::{self, Ioctl, IoctlOutput, Opcode, Setter},
};

/// `LOOP_CTL_GET_FREE`.
const GET_FREE: Opcode = 0x4C82;
/// `LOOP_CONFIGURE`.
const CONFIGURE: Opcode = 0x4C0A;
/// `LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR`.
const FLAGS: u32 = 1 | 4;
/// `LO_NAME_SIZE`, with its NUL.
const NAME: usize = 64;
/// How often another process may take the free device that we were told of before we give up. Each try means that
/// somebody else got on, so even two are rare.
const TRIES: u32 = 64;

/// A read-only loop device over a file. Gone when neither this nor a mount has it open any more.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    open: File,
}

impl LoopDevice {
    /// Makes a device with blocks of `block_size` bytes (512 to the page size) over the whole of `backing`. A tail
    /// that does not fill 512 bytes cannot be read through it.
    ///
    /// `name` is what `losetup` shows as the backing file (its first 63 bytes).
    ///
    /// # Errors
    /// `EBUSY` when others took each free device before us, `ENOENT` when `/dev` has no node for it, and what the kernel
    /// says.
    pub fn attach(backing: &File, name: &Path, block_size: u32) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        for _ in 0..TRIES {
            let path = PathBuf::from(format!("/dev/loop{}", get_free(control.as_fd())?));
            let open = OpenOptions::new().read(true).open(&path)?;
            match configure(open.as_fd(), backing, name, block_size) {
                Ok(()) => return Ok(Self { path, open }),
                Err(Errno::BUSY) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(Errno::BUSY.into())
    }

    /// `/dev/loop7`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open device.
    pub fn file(&self) -> &File {
        &self.open
    }
}

/// `struct loop_info64`.
#[repr(C)]
#[derive(Debug)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; NAME],
    crypt_name: [u8; NAME],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
#[derive(Debug)]
struct Config {
    /// `__u32` in C; a descriptor is never negative, and the bytes are the same.
    fd: RawFd,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

fn configure(device: BorrowedFd<'_>, backing: &File, name: &Path, block_size: u32) -> rustix::io::Result<()> {
    let mut file_name = [0; NAME];
    let name = name.as_os_str().as_encoded_bytes();
    let len = name.len().min(NAME - 1);
    file_name[..len].copy_from_slice(&name[..len]);
    let info = Info {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: FLAGS,
        file_name,
        crypt_name: [0; NAME],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let config = Config { fd: backing.as_raw_fd(), block_size, info, reserved: [0; 8] };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, which `Config` mirrors (its size is asserted above), and
    // writes nothing. A descriptor that is no loop device answers with an error.
    unsafe { ioctl::ioctl(device, Setter::<CONFIGURE, Config>::new(config)) }
}

/// Asks for the number of a loop device that nobody uses. Another process may be told the same one.
fn get_free(control: BorrowedFd<'_>) -> rustix::io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument, touches no memory of ours and answers in its return value.
    unsafe { ioctl::ioctl(control, GetFree) }
}

struct GetFree;

// SAFETY: the request has no argument, so there is no pointer to get wrong; the answer is the call's return value, of
// which a negative one has become an error before `output_from_ptr` is called.
unsafe impl Ioctl for GetFree {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        GET_FREE
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(number: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<u32> {
        u32::try_from(number).map_err(|_| Errno::INVAL)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        thread,
    };

    use super::*;

    fn backing(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, content).unwrap();
        (dir, path)
    }

    /// The backing file as the kernel tells it; `None` for a device that is not in use.
    fn backing_of(device: &Path) -> Option<String> {
        let name = device.file_name().unwrap().to_str().unwrap();
        std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok().map(|s| s.trim_end().to_owned())
    }

    #[test]
    fn privileged_a_device_shows_its_file_and_goes_with_its_last_user() {
        let (_dir, path) = backing(&[7; 1536]);
        let device = LoopDevice::attach(&File::open(&path).unwrap(), &path, 512).unwrap();
        assert_eq!(backing_of(device.path()).as_deref(), path.to_str());
        let mut content = Vec::new();
        File::open(device.path()).unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(content, [7; 1536]);
        let written = OpenOptions::new().write(true).open(device.path()).and_then(|mut d| d.write(&[0; 512]));
        assert!(written.is_err(), "read-only");
        let node = device.path().to_owned();
        drop(device);
        // Whoever looks at new devices (udev), and a process that another test makes, may keep it a moment longer.
        let start = std::time::Instant::now();
        while backing_of(&node).as_deref() == path.to_str() {
            assert!(start.elapsed().as_secs() < 20, "it stays");
            thread::yield_now();
        }
    }

    #[test]
    fn privileged_many_at_once_get_a_device_each() {
        let (_dir, path) = backing(&[0; 512]);
        let attach = || LoopDevice::attach(&File::open(&path).unwrap(), &path, 512).unwrap();
        let devices = thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| [attach(), attach()])).collect();
            threads.into_iter().flat_map(|t| t.join().unwrap()).collect::<Vec<_>>()
        });
        let distinct: std::collections::HashSet<_> = devices.iter().map(LoopDevice::path).collect();
        assert_eq!(distinct.len(), 16);
    }

    #[test]
    fn a_block_size_that_the_kernel_does_not_know_is_an_error() {
        let (_dir, path) = backing(&[0; 512]);
        assert!(LoopDevice::attach(&File::open(&path).unwrap(), &path, 77).is_err());
    }
}
