//! EROFS mounts, to compare with or to stand on what is served.

use std::{
    ffi::CString,
    fs,
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// An EROFS mount of an image over data files; unmounted when dropped.
pub struct Erofs(pub PathBuf);

impl Erofs {
    pub fn mount(image: &Path, devices: &[PathBuf], target: &Path) -> Self {
        fs::create_dir(target).unwrap();
        let options: Vec<_> = devices.iter().map(|d| format!("device={}", d.display())).collect();
        let options = CString::new(options.join(",")).unwrap();
        mount(image, target, "erofs", MountFlags::RDONLY, options.as_c_str()).unwrap();
        Self(target.to_owned())
    }
}

impl Drop for Erofs {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}
