//! Mounts below a root: made, adopted, taken away, on every rung.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use rustix::{
    fs::{XattrFlags, getxattr, setxattr},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};
use silk_layer::{
    erofs::{Device, Plan},
    toc::Time,
    tree::{Node, NodeId, NodeKind, Source, SourceExtent, Tree},
};
use silk_model::Digest;
use silk_mount::{Ground, MountError, Mounts, Rung, RungChoice, Variant, View};

const RUNGS: [RungChoice; 2] = [RungChoice::File, RungChoice::Loop];

/// Of replacements beside mounts of the same view. A few are enough to meet where the old mount goes at once.
const ROUNDS: u32 = 200;

/// A root that takes its mounts with it, also when an assertion fails.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn open(&self, rung: RungChoice) -> Mounts {
        Mounts::open(self.path(), rung, None).unwrap()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for point in mounted_below(self.path()) {
            let _ = unmount(&point, UnmountFlags::DETACH);
        }
    }
}

/// Sets it when it goes, also when an assertion fails: the scope then waits for threads that wait for this.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn mounted_below(dir: &Path) -> Vec<PathBuf> {
    let dir = dir.canonicalize().unwrap();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(&dir)).collect()
}

/// Waits until no loop device has a backing file below `dir`: whoever else looks at new devices (udev) may keep one a
/// moment longer than its mount.
fn no_loops_below(dir: &Path) {
    let start = std::time::Instant::now();
    while !loops_below(dir).is_empty() {
        assert!(start.elapsed().as_secs() < 20, "{:?}", loops_below(dir));
        std::thread::yield_now();
    }
}

/// Backing files below `dir` of loop devices in use.
fn loops_below(dir: &Path) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").unwrap().map(|e| e.unwrap().path());
    let files = devices.filter_map(|d| fs::read_to_string(d.join("loop/backing_file")).ok());
    files.filter(|file| file.starts_with(dir.to_str().unwrap())).collect()
}

/// A layer with one file whose content tells the number, and the view of it.
fn layer(root: &Path, nr: u32) -> (View, PathBuf, PathBuf) {
    let node = |kind, mode| Node { kind, mode, uid: 0, gid: 0, mtime: Time::default(), xattrs: BTreeMap::new() };
    let content = format!("layer {nr}");
    let extent = SourceExtent { source: Source::Own, logical: 0, offset: 512, len: content.len() as u64 };
    let names = [(b"common"[..].into(), NodeId(1)), (format!("file-{nr}").into_bytes().into(), NodeId(1))].into();
    let file = NodeKind::File { size: content.len() as u64, extents: [extent].into() };
    let tree = Tree { nodes: vec![node(NodeKind::Dir(names), 0o755), node(file, 0o644)] };
    let view = View { diff_id: Digest::of(content.as_bytes()), variant: Variant::Shared };
    let dir = root.join(format!("layer {nr}"));
    fs::create_dir_all(&dir).unwrap();
    let mut data = vec![0; 4096];
    data[512..512 + content.len()].copy_from_slice(content.as_bytes());
    fs::write(dir.join("data"), data).unwrap();
    let device = Device { source: Source::Own, size: 1024, layer: view.diff_id };
    let mut image = Vec::new();
    let mut uuid = [0; 16];
    uuid[..4].copy_from_slice(&nr.to_le_bytes());
    let plan = Plan::new(&tree, &[device], uuid).unwrap();
    plan.write(&mut image, &mut |_, _, _| Err(io::ErrorKind::Unsupported.into())).unwrap();
    fs::write(dir.join("erofs"), image).unwrap();
    (view, dir.join("erofs"), dir.join("data"))
}

#[test]
fn privileged_a_view_is_shown_once_and_hidden_without_a_trace() {
    for rung in RUNGS {
        let root = Root::new();
        let mounts = root.open(rung);
        assert_eq!(mounts.rung(), if rung == RungChoice::File { Rung::File } else { Rung::Loop });
        assert_eq!(mounts.reason(), "");
        assert_eq!(mounted_below(root.path()), [] as [PathBuf; 0], "the probe is gone");
        let (view, meta, data) = layer(root.path(), 1);
        let point = mounts.show(&view, &meta, std::slice::from_ref(&data), Ground::Disk).unwrap();
        assert_eq!(point, mounts.mountpoint(&view));
        assert_eq!(mounts.show(&view, &meta, &[data], Ground::Disk).unwrap(), point);
        assert_eq!(mounted_below(root.path()).len(), 1);
        assert_eq!(fs::read_to_string(point.join("file-1")).unwrap(), "layer 1");
        assert!(fs::write(point.join("new"), "").is_err(), "read-only");
        assert_eq!(loops_below(root.path()).len(), if rung == RungChoice::Loop { 2 } else { 0 });
        assert_eq!(mounts.shown(), [(view.name(), point.clone())]);
        mounts.hide(&view).unwrap();
        mounts.hide(&view).unwrap();
        assert!(!point.exists() && mounts.shown().is_empty() && !mounts.is_shown(&view));
        assert_eq!(mounted_below(root.path()).len(), 0);
        no_loops_below(root.path());
    }
}

#[test]
fn privileged_a_served_view_is_replaced_without_a_moment_in_between() {
    for rung in RUNGS {
        let root = Root::new();
        let mounts = root.open(rung);
        let (view, meta, data) = layer(root.path(), 1);
        let served = data.with_file_name("served");
        fs::copy(&data, &served).unwrap();
        let point = mounts.show(&view, &meta, &[served], Ground::Served).unwrap();
        let file = point.join("file-1");
        let open = fs::File::open(&file).unwrap();
        let (done, looks) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let looker = scope.spawn(|| {
                while !done.load(Relaxed) {
                    assert_eq!(fs::read_to_string(&file).unwrap(), "layer 1");
                    looks.fetch_add(1, Relaxed);
                }
            });
            let _done = Done(&done);
            for _ in 0..20 {
                mounts.replace(&view.name(), &meta, std::slice::from_ref(&data), Ground::Disk).unwrap();
                // On a busy machine all could be over before the first look.
                let before = looks.load(Relaxed);
                while looks.load(Relaxed) == before && !looker.is_finished() {
                    std::thread::yield_now();
                }
            }
        });
        mounts.put_away(Duration::from_secs(3600)).unwrap();
        assert_eq!(mounted_below(root.path()).len(), 21, "somebody may have looked them up");
        mounts.put_away(Duration::ZERO).unwrap();
        assert_eq!(mounted_below(root.path()), [point], "the old ones are gone");
        assert_eq!(fs::read_dir(root.path().join("aside")).unwrap().count(), 0);
        let device = |file: &fs::File| std::os::unix::fs::MetadataExt::dev(&file.metadata().unwrap());
        assert_ne!(device(&open), device(&fs::File::open(&file).unwrap()));
        assert_eq!(io::read_to_string(open).unwrap(), "layer 1", "who has it keeps it");
        mounts.hide(&view).unwrap();
        assert_eq!(mounted_below(root.path()).len(), 0);
        no_loops_below(root.path());
    }
}

#[test]
fn privileged_who_mounts_a_view_while_it_is_replaced_is_not_refused() {
    for rung in RUNGS {
        let root = Root::new();
        let mounts = root.open(rung);
        let [(view, meta, data), (other, other_meta, other_data)] = [1, 2].map(|nr| layer(root.path(), nr));
        let lower = mounts.show(&view, &meta, std::slice::from_ref(&data), Ground::Served).unwrap();
        let below = mounts.show(&other, &other_meta, &[other_data], Ground::Disk).unwrap();
        let options = std::ffi::CString::new(format!("lowerdir={}:{}", lower.display(), below.display())).unwrap();
        let (merged, bound) = (root.path().join("merged"), root.path().join("bound"));
        [&merged, &bound].into_iter().for_each(|dir| fs::create_dir(dir).unwrap());
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // What containerd mounts for a container, and for a view of one layer.
            let look = |merged: &Path, mounted: rustix::io::Result<()>| {
                mounted.unwrap();
                assert_eq!(fs::read_to_string(merged.join("file-1")).unwrap(), "layer 1");
                unmount(merged, UnmountFlags::empty()).unwrap();
            };
            let (done, bind, lower) = (&done, &bound, &lower);
            let threads = [
                scope.spawn(move || {
                    while !done.load(Relaxed) {
                        look(&merged, mount("overlay", &merged, "overlay", MountFlags::empty(), options.as_c_str()));
                    }
                }),
                scope.spawn(move || {
                    while !done.load(Relaxed) {
                        look(bind, rustix::mount::mount_bind_recursive(lower, bind));
                    }
                }),
            ];
            let replaced = Done(done);
            for _ in 0..ROUNDS {
                if threads.iter().any(|thread| thread.is_finished()) {
                    break;
                }
                mounts.replace(&view.name(), &meta, std::slice::from_ref(&data), Ground::Disk).unwrap();
            }
            drop(replaced);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        mounts.hide(&view).unwrap();
        assert_eq!(mounted_below(root.path()), [below], "the replaced ones go with it");
    }
}

#[test]
fn privileged_a_view_that_an_earlier_process_served_is_taken_away() {
    let root = Root::new();
    let (view, meta, data) = layer(root.path(), 1);
    let (kept, ..) = layer(root.path(), 2);
    let mounts = root.open(RungChoice::File);
    let served = mounts.show(&view, &meta, std::slice::from_ref(&data), Ground::Served).unwrap();
    let own = mounts.show(&kept, &meta, std::slice::from_ref(&data), Ground::Disk).unwrap();
    assert_eq!([&served, &own, root.path()].map(|point| mounts.is_served(point)), [true, false, false]);
    mounts.replace(&view.name(), &meta, std::slice::from_ref(&data), Ground::Disk).unwrap();
    assert!(!mounts.is_served(&served), "who mounts it now stands on the disk");
    mounts.hide(&view).unwrap();
    mounts.show(&view, &meta, &[data], Ground::Served).unwrap();
    drop(mounts);
    let mounts = root.open(RungChoice::File);
    assert!(!mounts.is_shown(&view) && mounts.is_shown(&kept));
    assert_eq!(mounted_below(root.path()).len(), 1);
    mounts.hide(&kept).unwrap();
}

#[test]
fn privileged_a_view_that_was_unmounted_by_hand_is_mounted_again() {
    for rung in RUNGS {
        let root = Root::new();
        let mounts = root.open(rung);
        let (view, meta, data) = layer(root.path(), 1);
        let point = mounts.show(&view, &meta, std::slice::from_ref(&data), Ground::Disk).unwrap();
        unmount(&point, UnmountFlags::empty()).unwrap();
        assert!(!mounts.is_shown(&view));
        assert_eq!(mounts.show(&view, &meta, &[data], Ground::Disk).unwrap(), point);
        assert_eq!(fs::read_to_string(point.join("file-1")).unwrap(), "layer 1");
    }
}

#[test]
fn privileged_many_threads_make_one_mount() {
    let root = Root::new();
    let mounts = root.open(RungChoice::Auto);
    let (view, meta, data) = layer(root.path(), 1);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| mounts.show(&view, &meta, std::slice::from_ref(&data), Ground::Disk).unwrap());
        }
    });
    assert_eq!(mounted_below(root.path()).len(), 1);
}

#[test]
fn privileged_a_new_process_adopts_mounts_and_clears_the_rest() {
    for rung in RUNGS {
        let root = Root::new();
        let (kept, meta, data) = layer(root.path(), 1);
        let mounts = root.open(rung);
        let point = mounts.show(&kept, &meta, std::slice::from_ref(&data), Ground::Disk).unwrap();
        let inode = fs::metadata(&point).unwrap().dev();
        drop(mounts);
        // What a killed process may leave: an empty directory, a probe, a foreign mount.
        let mnt = root.path().join("mnt");
        fs::create_dir(mnt.join("aaaaaaaaaa")).unwrap();
        fs::create_dir_all(mnt.join(".probe/mnt")).unwrap();
        mount("tmpfs", mnt.join(".probe/mnt"), "tmpfs", MountFlags::empty(), None).unwrap();
        fs::create_dir(mnt.join("bbbbbbbbbb")).unwrap();
        mount("tmpfs", mnt.join("bbbbbbbbbb"), "tmpfs", MountFlags::empty(), None).unwrap();
        let mounts = root.open(rung);
        assert_eq!(mounts.shown(), [(kept.name(), point.clone())]);
        assert_eq!(mounted_below(root.path()), std::slice::from_ref(&point));
        assert_eq!(fs::read_dir(&mnt).unwrap().count(), 2, "it and the probe");
        assert_eq!(mounts.show(&kept, &meta, &[data], Ground::Disk).unwrap(), point);
        assert_eq!(fs::metadata(&point).unwrap().dev(), inode, "the same mount as before");
        assert_eq!(mounts.hide_unknown(&|name| *name != kept.name()).unwrap(), [kept.name()]);
        assert_eq!(mounted_below(root.path()).len(), 0);
        no_loops_below(root.path());
    }
}

/// A layer whose name begins like another's takes days to make: here the mount says that it is of such a one.
#[test]
fn privileged_what_is_mounted_for_another_name_that_begins_alike_is_not_used() {
    for rung in RUNGS {
        let root = Root::new();
        let (view, meta, data) = layer(root.path(), 1);
        let devices = std::slice::from_ref(&data);
        let point = root.open(rung).show(&view, &meta, devices, Ground::Disk).unwrap();
        let dir = point.parent().unwrap();
        let mut of = [0; 32];
        assert_eq!(getxattr(dir, "trusted.silk.of", &mut of).unwrap(), of.len());
        let say = |bytes: &[u8]| setxattr(dir, "trusted.silk.of", bytes, XattrFlags::empty()).unwrap();
        let (mut other, mut unlike) = (of, of);
        other[31] ^= 1;
        unlike[0] ^= 1;
        say(&other);
        let mounts = root.open(rung);
        assert!(!mounts.is_shown(&view));
        let refused = mounts.show(&view, &meta, devices, Ground::Disk).unwrap_err();
        assert!(matches!(&refused, MountError::Taken { point: taken } if *taken == point), "{refused}");
        mounts.replace(&view.name(), &meta, devices, Ground::Disk).unwrap();
        mounts.disown(&view.name()).unwrap();
        assert_eq!(mounted_below(root.path()), std::slice::from_ref(&point), "it is the other's");
        drop(mounts);
        for nobodys in [&of[..31], &[], &unlike] {
            say(nobodys);
            assert_eq!(root.open(rung).shown(), []);
            assert_eq!(mounted_below(root.path()).len(), 0);
            root.open(rung).show(&view, &meta, devices, Ground::Disk).unwrap();
        }
        assert!(root.open(rung).is_shown(&view));
    }
}

#[test]
fn privileged_a_full_disk_does_not_stop_a_new_process() {
    let root = Root::new();
    let options = c"size=256k";
    mount("tmpfs", root.path(), "tmpfs", MountFlags::empty(), Some(options)).unwrap();
    let rung = root.open(RungChoice::Auto).rung();
    assert_ne!(rung, Rung::None);
    let image = root.path().join("mnt/.probe/erofs");
    let good = fs::read(&image).unwrap();
    // What a crash of the host has torn is written again.
    fs::write(&image, &good[..good.len() / 2]).unwrap();
    assert_eq!(root.open(RungChoice::Auto).rung(), rung);
    assert_eq!(fs::read(&image).unwrap(), good);

    let mut filler = fs::File::create(root.path().join("filler")).unwrap();
    assert_eq!(io::copy(&mut io::repeat(1), &mut filler).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(root.open(RungChoice::Auto).rung(), rung);
    fs::remove_file(&image).unwrap();
    io::copy(&mut io::repeat(1), &mut filler).unwrap_err();
    let error = Mounts::open(root.path(), RungChoice::Auto, None).unwrap_err();
    assert_eq!(error.class(), silk_model::Class::NoSpace, "{error}");
}

#[test]
fn privileged_a_view_in_use_goes_with_its_last_user() {
    for rung in RUNGS {
        let root = Root::new();
        let mounts = root.open(rung);
        let (view, meta, data) = layer(root.path(), 1);
        let point = mounts.show(&view, &meta, &[data], Ground::Disk).unwrap();
        let open = fs::File::open(point.join("file-1")).unwrap();
        mounts.hide(&view).unwrap();
        assert!(!point.exists());
        assert_eq!(io::read_to_string(&open).unwrap(), "layer 1", "who has it open still reads it");
        drop(open);
        no_loops_below(root.path());
    }
}

#[test]
fn privileged_an_overlay_outlives_the_views_it_stands_on() {
    for rung in RUNGS {
        let root = Root::new();
        let mounts = root.open(rung);
        let lowers: Vec<_> = [2, 1].map(|nr| layer(root.path(), nr)).into_iter().collect();
        let points: Vec<_> =
            lowers.iter().map(|(v, m, d)| mounts.show(v, m, std::slice::from_ref(d), Ground::Disk).unwrap()).collect();
        let merged = overlay(root.path(), &points);
        for (view, ..) in &lowers {
            mounts.hide(view).unwrap();
        }
        assert_eq!(fs::read_to_string(merged.join("common")).unwrap(), "layer 2");
        assert_eq!(fs::read_to_string(merged.join("file-1")).unwrap(), "layer 1");
        unmount(&merged, UnmountFlags::empty()).unwrap();
        no_loops_below(root.path());
    }
}

#[test]
fn privileged_a_hundred_layers_fit_in_one_overlay() {
    let root = Root::new();
    let mounts = root.open(RungChoice::Auto);
    let points: Vec<_> = (0..100)
        .rev()
        .map(|nr| {
            let (view, meta, data) = layer(root.path(), nr);
            mounts.show(&view, &meta, &[data], Ground::Disk).unwrap()
        })
        .collect();
    assert_eq!(points.iter().collect::<HashSet<_>>().len(), 100);
    // With silk's default root in place of this test's.
    let mnt = root.path().join("mnt").canonicalize().unwrap();
    let name = points[0].strip_prefix(&mnt).unwrap().as_os_str().len();
    assert!(("/var/lib/silk/mnt/".len() + name + 1) * 100 + 500 < 4096);
    let short = PathBuf::from(format!("/tmp/silk-{}", std::process::id()));
    std::os::unix::fs::symlink(root.path().join("mnt"), &short).unwrap();
    let points: Vec<_> = points.iter().map(|p| short.join(p.strip_prefix(&mnt).unwrap())).collect();
    let merged = overlay(root.path(), &points);
    fs::remove_file(&short).unwrap();
    for nr in 0..100 {
        assert_eq!(fs::read_to_string(merged.join(format!("file-{nr}"))).unwrap(), format!("layer {nr}"));
    }
    assert_eq!(fs::read_to_string(merged.join("common")).unwrap(), "layer 99");
}

#[test]
fn privileged_a_refused_mount_says_why_and_leaves_nothing() {
    for rung in RUNGS {
        let root = Root::new();
        let mounts = root.open(rung);
        let (view, meta, data) = layer(root.path(), 1);
        let error = mounts.show(&view, &meta, &[], Ground::Disk).unwrap_err();
        assert!(matches!(&error, MountError::Devices { given: 0, .. }), "{error}");
        // A directory is no data file, and the kernel says so.
        let error = mounts.show(&view, &meta, &[root.path().to_owned()], Ground::Disk).unwrap_err();
        assert!(matches!(&error, MountError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("layer 1/erofs"), "{error}");
        fs::write(&meta, vec![0; 8192]).unwrap();
        assert!(mounts.show(&view, &meta, &[data], Ground::Disk).is_err());
        assert_eq!(fs::read_dir(root.path().join("mnt")).unwrap().count(), 1, "the probe");
        assert_eq!(mounted_below(root.path()).len(), 0);
        no_loops_below(root.path());
        assert!(mounts.show(&view, &root.path().join("none"), &[], Ground::Disk).is_err());
    }
}

#[test]
fn privileged_paths_of_any_length_and_spelling_are_mounted() {
    let root = Root::new();
    let long = root.path().join("a,b:c d\\e=\"f\"\n").join("x".repeat(200)).join("y".repeat(200));
    fs::create_dir_all(&long).unwrap();
    for rung in RUNGS {
        let mounts = Mounts::open(&long, rung, None).unwrap();
        let (view, meta, data) = layer(&long, 7);
        for ground in [Ground::Served, Ground::Disk] {
            mounts.hide(&view).unwrap();
            let point = mounts.show(&view, &meta, std::slice::from_ref(&data), ground).unwrap();
            assert_eq!(fs::read_to_string(point.join("file-7")).unwrap(), "layer 7");
        }
        drop(mounts);
        let mounts = Mounts::open(&long, rung, None).unwrap();
        assert_eq!(mounts.shown().len(), 1);
        mounts.hide(&view).unwrap();
    }
}

fn overlay(root: &Path, lowers: &[PathBuf]) -> PathBuf {
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| root.join(name));
    for dir in [&upper, &work, &merged] {
        fs::create_dir(dir).unwrap();
    }
    let lowers: Vec<_> = lowers.iter().map(|l| l.to_str().unwrap()).collect();
    let options = format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), upper.display(), work.display());
    assert!(options.len() < 4096, "{}", options.len());
    let options = std::ffi::CString::new(options).unwrap();
    mount("overlay", &merged, "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
    merged
}
