//! Lower directories as containers in user namespaces see them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::mount::{UnmountFlags, unmount};
use silk_layer::{
    erofs::{Device, Plan},
    toc::Time,
    tree::{Node, NodeId, NodeKind, Source, SourceExtent, Tree},
};
use silk_model::{Class, Digest, IdMaps, IdRange};
use silk_mount::{Ground, Mapped, MountError, Mounts, RungChoice, Variant, View};

const RUNGS: [RungChoice; 2] = [RungChoice::File, RungChoice::Loop];
const CONTENT: &str = "a file of user 1000";

/// A root that takes its mounts with it, also when an assertion fails.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn mapped(&self) -> Mapped {
        Mapped::open(self.0.path()).unwrap()
    }

    /// An ordinary lower directory with the file of user 1000.
    fn plain(&self, name: &str) -> PathBuf {
        let dir = self.0.path().join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("file"), CONTENT).unwrap();
        chown(dir.join("file"), Some(1000), Some(100)).unwrap();
        dir
    }

    /// What is mounted below, by its path from the root.
    fn mounted(&self) -> Vec<String> {
        let root = self.0.path().canonicalize().unwrap();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        points.filter_map(|point| Some(point.strip_prefix(&root).ok()?.display().to_string())).collect()
    }

    fn clones(&self) -> Vec<String> {
        self.mounted().into_iter().filter(|point| point.starts_with("mapped/")).collect()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for point in self.mounted().into_iter().rev() {
            let _ = unmount(self.0.path().join(point), UnmountFlags::DETACH);
        }
    }
}

fn maps() -> IdMaps {
    let range = |container, host, length| IdRange { container, host, length };
    IdMaps { uids: vec![range(0, 70000, 1000), range(1000, 90000, 1000)], gids: vec![range(0, 500_000, 65536)] }
}

/// The owners of a lower directory and of the file in it.
fn owners(dir: &Path) -> [(u32, u32); 2] {
    [dir.to_owned(), dir.join("file")].map(|path| path.symlink_metadata().map(|m| (m.uid(), m.gid())).unwrap())
}

/// A layer with the file of user 1000: its view, metadata and data.
fn layer(root: &Path) -> (View, PathBuf, PathBuf) {
    let node = |kind, mode, uid, gid| Node { kind, mode, uid, gid, mtime: Time::default(), xattrs: BTreeMap::new() };
    let extent = SourceExtent { source: Source::Own, logical: 0, offset: 512, len: CONTENT.len() as u64 };
    let root_node = NodeKind::Dir([(b"file"[..].into(), NodeId(1))].into());
    let file = NodeKind::File { size: CONTENT.len() as u64, extents: [extent].into() };
    let tree = Tree { nodes: vec![node(root_node, 0o755, 0, 0), node(file, 0o644, 1000, 100)] };
    let view = View { diff_id: Digest::of(b"layer"), variant: Variant::Shared };
    let mut data = vec![0; 4096];
    data[512..512 + CONTENT.len()].copy_from_slice(CONTENT.as_bytes());
    fs::write(root.join("data"), data).unwrap();
    let device = Device { source: Source::Own, size: 1024, layer: view.diff_id };
    let mut image = Vec::new();
    let plan = Plan::new(&tree, &[device], [7; 16]).unwrap();
    plan.write(&mut image, &mut |_, _, _| Err(io::ErrorKind::Unsupported.into())).unwrap();
    fs::write(root.join("erofs"), image).unwrap();
    (view, root.join("erofs"), root.join("data"))
}

#[test]
fn privileged_layers_and_directories_have_the_owners_of_the_namespace() {
    for rung in RUNGS {
        let root = Root::new();
        let mounts = Mounts::open(root.0.path(), rung, None).unwrap();
        let (view, meta, data) = layer(root.0.path());
        let layer = mounts.show(&view, &meta, &[data], Ground::Disk).unwrap();
        let plain = root.plain("plain");
        let mapped = root.mapped();
        let lowers = [plain.clone(), layer.clone()];
        let points = mapped.map(7, &lowers, &maps()).unwrap();
        assert_eq!(points, ["7/0", "7/1"].map(|name| root.0.path().canonicalize().unwrap().join("mapped").join(name)));
        for point in &points {
            assert_eq!(owners(point), [(70000, 500_000), (90000, 500_100)]);
            assert_eq!(fs::read_to_string(point.join("file")).unwrap(), CONTENT);
            assert!(fs::write(point.join("new"), "").is_err(), "read-only");
        }
        for lower in &lowers {
            assert_eq!(owners(lower), [(0, 0), (1000, 100)], "the lower one is as it was");
        }
        // Another pod beside it.
        let other = IdMaps { uids: vec![IdRange { container: 0, host: 5, length: 2000 }], gids: maps().gids };
        let others = mapped.map(8, &lowers, &other).unwrap();
        assert_eq!(owners(&others[1]), [(5, 500_000), (1005, 500_100)]);
        assert_eq!(owners(&points[1])[1].0, 90000);
        assert_eq!(root.clones().len(), 4);
        mapped.unmap(7).unwrap();
        mapped.unmap(7).unwrap();
        assert_eq!(root.clones(), ["mapped/8/0", "mapped/8/1"]);
        mapped.unmap(8).unwrap();
        assert_eq!(fs::read_dir(root.0.path().join("mapped")).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(plain.join("file")).unwrap(), CONTENT, "nothing is deleted");
        assert!(mounts.is_shown(&view));
    }
}

#[test]
fn privileged_what_is_shown_already_stays_until_its_lower_is_replaced() {
    for rung in RUNGS {
        let root = Root::new();
        let mounts = Mounts::open(root.0.path(), rung, None).unwrap();
        let (view, meta, data) = layer(root.0.path());
        let layer = mounts.show(&view, &meta, std::slice::from_ref(&data), Ground::Disk).unwrap();
        let mapped = root.mapped();
        let lowers = [layer, root.plain("plain")];
        let points = mapped.map(1, &lowers, &maps()).unwrap();
        let device = || points[0].metadata().unwrap().dev();
        let before = device();
        assert_eq!(mapped.map(1, &lowers, &maps()).unwrap(), points);
        assert_eq!((root.clones().len(), device()), (2, before));
        // It was not whole, and is now.
        mounts.replace(&view.name(), &meta, &[data], Ground::Disk).unwrap();
        mounts.put_away(Duration::ZERO).unwrap();
        assert_eq!(owners(&points[0]), [(70000, 500_000), (90000, 500_100)], "the old one lives as long as its clone");
        assert_eq!(mapped.map(1, &lowers, &maps()).unwrap(), points);
        assert_eq!(device(), lowers[0].metadata().unwrap().dev());
        assert_ne!(device(), before);
        assert_eq!(owners(&points[0]), [(70000, 500_000), (90000, 500_100)]);
        assert_eq!(
            root.clones(),
            ["mapped/1/0", "mapped/1/1", "mapped/1/0"],
            "over the old one, if somebody was told of it"
        );
        mapped.unmap(1).unwrap();
        assert_eq!(root.clones(), [""; 0]);
    }
}

#[test]
fn privileged_an_overlay_outlives_its_clones() {
    let root = Root::new();
    let [lower, upper, work, merged] =
        [root.plain("lower"), root.0.path().join("u"), root.0.path().join("w"), root.0.path().join("m")];
    [&upper, &work, &merged].into_iter().for_each(|dir| fs::create_dir(dir).unwrap());
    chown(&upper, Some(70000), Some(500_000)).unwrap();
    let mapped = root.mapped();
    let point = &mapped.map(1, std::slice::from_ref(&lower), &maps()).unwrap()[0];
    let options = format!("lowerdir={},upperdir={},workdir={}", point.display(), upper.display(), work.display());
    let options = std::ffi::CString::new(options).unwrap();
    rustix::mount::mount("overlay", &merged, "overlay", rustix::mount::MountFlags::empty(), options.as_c_str())
        .unwrap();
    mapped.unmap(1).unwrap();
    assert_eq!(root.clones(), [""; 0]);
    assert_eq!(owners(&merged), [(70000, 500_000), (90000, 500_100)]);
    // What is copied up keeps the owner that was seen.
    fs::write(merged.join("file"), "other").unwrap();
    assert_eq!(owners(&upper)[1], (90000, 500_100));
    assert_eq!(fs::read_to_string(lower.join("file")).unwrap(), CONTENT);
    unmount(&merged, UnmountFlags::empty()).unwrap();
}

#[test]
fn privileged_a_new_process_keeps_those_of_its_snapshots_only() {
    let root = Root::new();
    let lowers = [root.plain("plain")];
    let points = root.mapped().map(3, &lowers, &maps()).unwrap();
    root.mapped().map(4, &lowers, &maps()).unwrap();
    // As after a reboot, and somebody's own.
    fs::create_dir_all(root.0.path().join("mapped/5/0")).unwrap();
    fs::create_dir(root.0.path().join("mapped/notes")).unwrap();
    let mapped = root.mapped();
    mapped.sweep(&|id| id == 3).unwrap();
    assert_eq!(root.clones(), ["mapped/3/0"]);
    let mut left: Vec<_> = fs::read_dir(root.0.path().join("mapped"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["3", "notes"]);
    // A snapshot of which there are directories only.
    unmount(&points[0], UnmountFlags::empty()).unwrap();
    assert_eq!(owners(&mapped.map(3, &lowers, &maps()).unwrap()[0])[1], (90000, 500_100));
    mapped.unmap(3).unwrap();
    assert_eq!(fs::read_to_string(lowers[0].join("file")).unwrap(), CONTENT);
}

#[test]
fn privileged_a_file_system_that_cannot_is_named() {
    let root = Root::new();
    let mapped = root.mapped();
    // No kernel maps owners of processes.
    let error = mapped.map(1, &[PathBuf::from("/proc")], &maps()).unwrap_err();
    assert_eq!(error.class(), Class::Unsupported);
    let said = error.to_string();
    assert!(
        matches!(error, MountError::NotMapped { .. }) && said.contains("/proc") && said.contains("remap-ids"),
        "{said}"
    );
    let twice = IdMaps { uids: maps().uids, gids: vec![maps().gids[0], maps().gids[0]] };
    let error = mapped.map(2, &[root.plain("plain")], &twice).unwrap_err();
    assert_eq!(error.class(), Class::Invalid, "{error}");
    [1, 2].into_iter().for_each(|id| mapped.unmap(id).unwrap());
    assert_eq!(fs::read_dir(root.0.path().join("mapped")).unwrap().count(), 0);
}
