//! Overlays over trees.

use std::{
    ffi::{CString, OsStr},
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::lgetxattr,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};
use silk_layer::tree::{NodeId, NodeKind, OPAQUE};

use crate::{
    erofs::Erofs,
    make::{Image, Make},
    menagerie::menagerie,
    same::same,
    store::Served,
};

/// An overlay; unmounted when dropped.
struct Overlay(PathBuf);

impl Overlay {
    /// `lowers` are in overlayfs' order: top first.
    fn mount(dir: &Path, lowers: &[&Path]) -> Self {
        let [upper, work, merged] = ["upper", "work", "merged"].map(|part| dir.join(part));
        for part in [dir, &upper, &work, &merged] {
            fs::create_dir(part).unwrap();
        }
        let lowers: Vec<_> = lowers.iter().map(|l| l.to_str().unwrap()).collect();
        let options = format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), upper.display(), work.display());
        let options = CString::new(options).unwrap();
        mount("overlay", &merged, "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
        Self(merged)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn privileged_an_overlay_over_a_tree_is_one_over_erofs() {
    let served = Served::new();
    let make = menagerie();
    let image = Image::of(&make);
    let tree = served.serve_tree(&image, &make, 1);
    let erofs = Erofs::mount(&image.path, &image.devices, &image.dir.path().join("erofs"));
    let dir = served.dir.path();
    let over_tree = Overlay::mount(&dir.join("over-tree"), &[&tree]);
    let over_erofs = Overlay::mount(&dir.join("over-erofs"), &[&erofs.0]);
    let names = |path: &Path| fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(names(&over_tree.0), names(&over_erofs.0));
    // The root's attributes are the upper directory's.
    for name in names(&over_tree.0) {
        for _ in 0..2 {
            same(&over_erofs.0.join(&name), &over_tree.0.join(&name));
        }
    }
}

fn layers() -> (Make, Make) {
    let mut base = Make::new(1 << 16);
    let etc = base.dir(NodeId(0), b"etc", 0o755);
    base.file(etc, b"passwd", 1000, &[(0, 512, 1000)]);
    base.file(etc, b"gone", 10, &[(0, 512, 10)]);
    let opt = base.dir(NodeId(0), b"opt", 0o755);
    base.file(opt, b"old", 10, &[(0, 512, 10)]);
    let mut upper = Make::new(1 << 16);
    let etc = upper.dir(NodeId(0), b"etc", 0o700);
    upper.special(etc, b"gone", NodeKind::Char(0, 0));
    upper.file(etc, b"new", 600, &[(0, 1024, 600)]);
    let opt = upper.dir(NodeId(0), b"opt", 0o750);
    upper.node(opt).xattrs.insert(OPAQUE.to_vec(), b"y".to_vec());
    upper.file(opt, b"fresh", 10, &[(0, 512, 10)]);
    (base, upper)
}

#[test]
fn privileged_whiteouts_and_opaque_directories_hide_what_is_below() {
    let served = Served::new();
    let (base, upper) = layers();
    let base_tree = served.serve_tree(&Image::of(&base), &base, 1);
    let upper_tree = served.serve_tree(&Image::of(&upper), &upper, 11);
    let mut value = [0; 1];
    assert_eq!(lgetxattr(upper_tree.join("opt"), OsStr::from_bytes(OPAQUE), &mut value), Ok(1));
    assert_eq!(&value, b"y");
    let overlay = Overlay::mount(&served.dir.path().join("overlay"), &[&upper_tree, &base_tree]);
    let merged = &overlay.0;
    let names = |dir: &str| {
        let mut names: Vec<_> = fs::read_dir(merged.join(dir)).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["etc", "opt"]);
    assert_eq!(names("etc"), ["new", "passwd"]);
    assert_eq!(names("opt"), ["fresh"]);
    assert!(!merged.join("etc/gone").exists() && !merged.join("opt/old").exists());
    assert_eq!(fs::metadata(merged.join("etc")).unwrap().mode() & 0o7777, 0o700);
    let passwd = fs::read(base_tree.join("etc/passwd")).unwrap();
    assert!(passwd.len() == 1000 && fs::read(merged.join("etc/passwd")).unwrap() == passwd);
    // What a container writes.
    fs::write(merged.join("etc/gone"), "here").unwrap();
    fs::write(merged.join("etc/passwd"), "changed").unwrap();
    fs::remove_dir_all(merged.join("opt")).unwrap();
    fs::rename(merged.join("etc/new"), merged.join("etc/newer")).unwrap();
    assert_eq!(names("etc"), ["gone", "newer", "passwd"]);
    assert_eq!(names(""), ["etc"]);
    assert!(fs::read(base_tree.join("etc/passwd")).unwrap() == passwd);
}
