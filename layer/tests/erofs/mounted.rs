//! A mounted image against the tree it was made of.

use std::{fs, path::PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{
    make::{Image, Make},
    shown::shows,
};

/// Unmounts when dropped, also when an assertion fails.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

/// Mounts the image file-backed and compares every inode and every byte (of huge sparse files those around extents).
pub fn compare(make: &Make, image: &Image) {
    let target = image.dir.path().join("mnt");
    fs::create_dir(&target).unwrap();
    let options: Vec<_> = image.devices.iter().map(|d| format!("device={}", d.display())).collect();
    let options = std::ffi::CString::new(options.join(",")).unwrap();
    mount(&image.path, &target, "erofs", MountFlags::RDONLY, options.as_c_str()).unwrap();
    let _mount = Mount(target.clone());
    shows(make, &target);
}
