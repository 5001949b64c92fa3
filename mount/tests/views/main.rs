//! From tars to the merged view of an overlay: whiteouts, opaque directories, layers that depend on those below them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod at_once;
mod fake;
mod lies;

use std::{
    fs, io,
    os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use rustix::mount::{UnmountFlags, unmount};
use silk_model::{Class, Digest};
use silk_mount::{LayerFiles, Mounts, Rung, RungChoice, Trace, Traced, Trees, Variant, View, ViewError, Views};

use crate::fake::{Layers, RUNGS, Tar, base, read};

#[test]
fn privileged_whiteouts_and_opaque_directories_hide_what_is_below() {
    for rung in RUNGS {
        let layers = Layers::new();
        let views = layers.views(rung);
        let upper = Tar::new()
            .dir("etc/", 0o755, 1)
            .file("etc/.wh.gone", "")
            .file("etc/new", "new")
            .dir("opt/", 0o700, 2)
            .file("opt/.wh..wh..opq", "")
            .file("opt/fresh", "fresh");
        let chain = [layers.add(&base()), layers.add(&upper)];
        let merged = layers.overlay(&views, &chain, "m");
        assert_eq!(read(&merged.join("etc/passwd")) + &read(&merged.join("etc/new")), "rootnew");
        assert!(!merged.join("etc/gone").exists());
        assert!(!merged.join("opt/old").exists());
        assert_eq!(read(&merged.join("opt/fresh")), "fresh");
        assert_eq!((fs::metadata(merged.join("etc")).unwrap().uid(), read(&merged.join("bin"))), (1, "busybox".into()));
        let view = View { diff_id: chain[1], variant: Variant::Shared };
        let whiteout = fs::symlink_metadata(views.mounts().mountpoint(&view).join("etc/gone")).unwrap();
        assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
        fs::write(merged.join("etc/passwd"), "changed").unwrap();
        assert_eq!(read(&views.lowers(&layers, &chain).unwrap()[1].join("etc/passwd")), "root");
    }
}

#[test]
fn privileged_pages_tell_what_was_read_to_the_page() {
    for rung in RUNGS {
        let layers = Layers::new();
        let content = "0123456789abcdef".repeat(256 * 64);
        let tar = Tar::new()
            .dir("deep/", 0o755, 0)
            .file("deep/large", &content)
            .hard_link("deep/name", "deep/large")
            .file("small", "all of it")
            .file("untouched", &content);
        let chain = [layers.add(&tar)];
        let views = layers.views(rung);
        let point = views.lowers(&layers, &chain).unwrap().remove(0);
        let (pages, first) = views.pages(&layers, &chain).unwrap();
        assert!(first);
        assert!(!views.pages(&layers, &chain).unwrap().1, "somebody may have read it");
        assert_eq!(pages.now().unwrap(), [], "opening is not reading");
        let large = fs::File::open(point.join("deep/name")).unwrap();
        rustix::fs::fadvise(&large, 0, None, rustix::fs::Advice::Random).unwrap();
        for (page, len) in [(3, 2 * 4096), (40, 1)] {
            large.read_exact_at(&mut vec![0; len], page * 4096).unwrap();
        }
        read(&point.join("small"));
        // The bytes of `deep/large` follow two headers, those of `small` three and its own.
        let large = 1024;
        let small = large + content.len() as u64 + 1024;
        let page = |nr: u64| large + nr * 4096;
        let mut found = pages.now().unwrap();
        found.sort_by_key(|(_, bytes)| bytes.start);
        let expected = [page(3)..page(5), page(40)..page(41), small..small + 9];
        assert_eq!(found, expected.map(|bytes| (chain[0], bytes)), "{rung:?}");
        // Mounted again: nobody has read that one, and the old one is still seen.
        views.renew_layer(&layers, &chain[0], false).unwrap();
        let (again, first) = views.pages(&layers, &chain).unwrap();
        assert!(first);
        assert_eq!(again.now().unwrap(), []);
        assert_eq!(pages.now().unwrap().len(), 3);
    }
}

#[test]
fn privileged_the_kernel_tells_what_is_read_in_order() {
    let layers = Layers::new();
    let content = "0123456789abcdef".repeat(256 * 64);
    let tar = Tar::new().file("first", &content).file("second", &content).file("small", "all of it");
    let chain = [layers.add(&tar)];
    let views = layers.views(RungChoice::File);
    if views.mounts().rung() != Rung::File {
        return;
    }
    let point = views.lowers(&layers, &chain).unwrap().remove(0);
    let (pages, _) = views.pages(&layers, &chain).unwrap();
    let name = format!("silk-test-{}", std::process::id());
    let mut trace = Trace::start(&name).unwrap();
    let count = |reads: &[Traced]| reads.iter().filter(|r| r.device == pages.device().unwrap()).count();
    let (reads, all) = trace.take().unwrap();
    assert_eq!((count(&reads), all), (0, true));
    let read = |file: &str, page: u64| {
        let file = fs::File::open(point.join(file)).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
        file.read_exact_at(&mut [0; 9], page * 4096).unwrap();
    };
    for (file, page) in [("second", 40), ("first", 3), ("small", 0)] {
        read(file, page);
    }
    let (reads, all) = trace.take().unwrap();
    assert!(all);
    // Other mounts of the machine are traced too.
    let ours = reads.iter().filter(|read| read.device == pages.device().unwrap());
    let bytes: Vec<_> = ours.flat_map(|read| pages.behind(read.nid, read.bytes.clone()).unwrap()).collect();
    let (first, size) = (512, content.len() as u64);
    let (second, small) = (first + size + 512, first + 2 * (size + 512));
    let page = |file: u64, nr: u64| (chain[0], file + nr * 4096..file + (nr + 1) * 4096);
    assert_eq!(bytes, [page(second, 40), page(first, 3), (chain[0], small..small + 9)]);
    assert_eq!(count(&trace.take().unwrap().0), 0);
    // A trace that goes on is not swept.
    Trace::sweep(&name).unwrap();
    read("first", 9);
    assert_eq!(count(&trace.take().unwrap().0), 1);
}

#[test]
fn privileged_a_layer_that_depends_on_its_parents_has_a_view_for_each_chain() {
    for rung in RUNGS {
        let layers = Layers::new();
        let views = layers.views(rung);
        let other = Tar::new().dir("etc/", 0o711, 99).file("bin", "toybox").file("opt", "a file");
        let (base, other) = (layers.add(&base()), layers.add(&other));
        // `etc` is implied, and `sh` is a second name of a lower layer's file.
        let top = layers.add(&Tar::new().file("etc/added", "added").hard_link("sh", "bin"));
        let on_base = layers.overlay(&views, &[base, top], "base");
        let on_other = layers.overlay(&views, &[other, top], "other");
        let etc = |merged: &Path| fs::metadata(merged.join("etc")).map(|m| (m.mode() & 0o7777, m.uid())).unwrap();
        assert_eq!((etc(&on_base), etc(&on_other)), ((0o750, 42), (0o711, 99)));
        assert_eq!((read(&on_base.join("sh")), read(&on_other.join("sh"))), ("busybox".into(), "toybox".into()));
        assert_eq!(read(&on_base.join("etc/added")), "added");
        assert_eq!(views.mounts().shown().len(), 4);
        // The lower layer goes: the view with its data in it must too, or the disk would keep that.
        // A program that another test starts has its open files for a moment.
        unmount(&on_base, UnmountFlags::DETACH).unwrap();
        views.hide_layer(&layers, &base).unwrap();
        let chain = |below| View { diff_id: top, variant: Variant::Chain(below) };
        assert!(!views.mounts().is_shown(&chain(base)) && views.mounts().is_shown(&chain(other)));
        assert_eq!(views.mounts().shown().len(), 2);
        // As the first layer of an image it links to nothing.
        let error = views.lowers(&layers, &[top]).unwrap_err();
        assert!(matches!(&error, ViewError::Tree { layer, .. } if *layer == top), "{error}");
        assert_eq!(error.class(), Class::Corrupt);
    }
}

/// Shows empty trees, and remembers what it was told of them.
#[derive(Debug)]
struct Told(PathBuf, Mutex<Vec<String>>);

impl Trees for Told {
    fn tree(&self, name: &str, _: &Path, _: &[Digest]) -> io::Result<PathBuf> {
        fs::create_dir_all(self.0.join(name))?;
        Ok(self.0.join(name))
    }

    fn gone(&self, name: &str) {
        self.1.lock().unwrap().push(format!("gone {name}"));
    }

    fn lied(&self, name: &str) {
        self.1.lock().unwrap().push(format!("lied {name}"));
    }
}

#[test]
fn privileged_trees_that_lied_are_told_from_those_that_are_gone() {
    let layers = Layers::new();
    let id = layers.add(&Tar::new().file("file", "app"));
    let trees = Arc::new(Told(layers.root.join("trees"), Mutex::default()));
    let views = Views::new(Mounts::open(&layers.root, RungChoice::Tree, Some(trees.clone())).unwrap());
    let name = View { diff_id: id, variant: Variant::Shared }.name();
    views.lowers(&layers, &[id]).unwrap();
    views.hide_layer(&layers, &id).unwrap();
    assert_eq!(std::mem::take(&mut *trees.1.lock().unwrap()), [format!("gone {name}")]);
    views.lowers(&layers, &[id]).unwrap();
    views.renew_layer(&layers, &id, true).unwrap();
    let told = [format!("gone {name}"), format!("lied {name}")];
    assert_eq!(std::mem::take(&mut *trees.1.lock().unwrap()), told);
    // Damaged bytes are not to be shown by the same numbers either.
    views.lowers(&layers, &[id]).unwrap();
    views.drop_damaged(&layers, &id, || assert_eq!(*trees.1.lock().unwrap(), told)).unwrap();
}

#[test]
fn privileged_mounts_from_files_are_not_kept_where_that_is_no_way() {
    let layers = Layers::new();
    let id = layers.add(&Tar::new().file("file", "app"));
    let shown = |choice| layers.views(choice).mounts().shown().len();
    let views = layers.views(RungChoice::Auto);
    views.lowers(&layers, &[id]).unwrap();
    let kept = usize::from(views.mounts().rung() == Rung::Loop);
    drop(views);
    assert_eq!(shown(RungChoice::Loop), kept);
    layers.views(RungChoice::Loop).lowers(&layers, &[id]).unwrap();
    assert_eq!((shown(RungChoice::Auto), shown(RungChoice::Loop)), (1, 1), "loop devices serve everywhere");
}

#[test]
fn privileged_a_base_with_whiteouts_has_a_view_of_its_own() {
    let layers = Layers::new();
    let views = layers.views(RungChoice::Auto);
    let odd = layers.add(&Tar::new().file("a", "a").file(".wh.b", "").dir("d/", 0o755, 0));
    let base = layers.add(&Tar::new().file("b", "b"));
    let alone = views.lowers(&layers, &[odd]).unwrap();
    let above = views.lowers(&layers, &[base, odd]).unwrap();
    assert_eq!(views.mounts().mountpoint(&View { diff_id: odd, variant: Variant::Base }), alone[0]);
    assert_ne!(alone[0], above[0]);
    assert!(!alone[0].join("b").exists() && above[0].join("b").exists());
}

#[test]
fn privileged_a_restart_decodes_nothing_and_keeps_the_mounts() {
    for rung in RUNGS {
        let layers = Layers::new();
        let (base, top) = (layers.add(&base()), layers.add(&Tar::new().file("etc/added", "added")));
        let chain = [base, top];
        let views = layers.views(rung);
        let lowers = views.lowers(&layers, &chain).unwrap();
        drop(views);
        layers.decoded.lock().unwrap().clear();
        let views = layers.views(rung);
        views.sweep(&layers, &chain).unwrap();
        assert_eq!(views.lowers(&layers, &chain).unwrap(), lowers);
        // After a reboot: images, no mounts.
        for lower in &lowers {
            unmount(lower, UnmountFlags::empty()).unwrap();
        }
        let views = layers.views(rung);
        views.sweep(&layers, &chain).unwrap();
        assert_eq!(views.lowers(&layers, &chain).unwrap(), lowers);
        assert_eq!(*layers.decoded.lock().unwrap(), []);
        // A layer that is gone takes its mounts with it.
        layers.known.lock().unwrap().remove(&base);
        fs::remove_dir_all(layers.layer_path(&base)).unwrap();
        let views = layers.views(rung);
        views.sweep(&layers, &[top]).unwrap();
        assert!(!lowers[1].exists());
        assert!(matches!(views.lowers(&layers, &chain), Err(ViewError::NotWhole(gone)) if gone == base));
    }
}

#[test]
fn privileged_a_torn_image_is_made_again() {
    let layers = Layers::new();
    let chain = [layers.add(&base())];
    let lowers = layers.views(RungChoice::Auto).lowers(&layers, &chain).unwrap();
    for torn in [b"".as_slice(), &[0; 8192]] {
        unmount(&lowers[0], UnmountFlags::empty()).unwrap();
        fs::write(layers.layer_path(&chain[0]).join("erofs"), torn).unwrap();
        fs::write(layers.layer_path(&chain[0]).join("depends"), "").unwrap();
        let views = layers.views(RungChoice::Auto);
        views.sweep(&layers, &chain).unwrap();
        assert_eq!(views.lowers(&layers, &chain).unwrap(), lowers);
        assert_eq!(read(&lowers[0].join("bin")), "busybox");
    }
}

#[test]
fn privileged_an_image_of_another_silk_is_made_again_although_it_is_mounted() {
    for rung in RUNGS {
        let layers = Layers::new();
        let chain = [layers.add(&base())];
        let lowers = layers.views(rung).lowers(&layers, &chain).unwrap();
        let meta = layers.layer_path(&chain[0]).join("erofs");
        let made = fs::read(&meta).unwrap();
        // The file alone: what is mounted keeps its own.
        let mut other = made.clone();
        let name = other.windows(11).position(|w| w == b"silk-layer-").unwrap();
        other[name + 11] += 1;
        fs::remove_file(&meta).unwrap();
        fs::write(&meta, other).unwrap();
        let views = layers.views(rung);
        layers.decoded.lock().unwrap().clear();
        views.sweep(&layers, &chain).unwrap();
        assert_eq!(views.lowers(&layers, &chain).unwrap(), lowers);
        assert_eq!(fs::read(&meta).unwrap(), made);
        assert_eq!(*layers.decoded.lock().unwrap(), chain);
        assert_eq!(read(&lowers[0].join("bin")), "busybox");
    }
}

#[test]
fn privileged_a_chain_whose_layer_is_missing_says_which() {
    let layers = Layers::new();
    let views = layers.views(RungChoice::Auto);
    let (base, missing) = (layers.add(&base()), Digest::of(b"missing"));
    let error = views.lowers(&layers, &[base, missing]).unwrap_err();
    assert!(matches!(error, ViewError::NotWhole(layer) if layer == missing));
    assert!(views.show_top(&layers, &[]).unwrap().is_none());
    let point = views.show_top(&layers, &[missing, base]).unwrap().unwrap();
    assert_eq!(read(&point.join("bin")), "busybox", "a layer that depends on nothing needs no other");
}

/// Not a test of its own: what the next one starts and kills. Shows, replaces and hides until then.
#[test]
#[ignore = "started by privileged_a_killed_process_leaks_nothing"]
fn child_that_is_killed() {
    let Ok(root) = std::env::var(CHILD) else { return };
    let rung = if root.ends_with("loop") { RungChoice::Loop } else { RungChoice::File };
    let layers = Layers::at(Path::new(&root));
    let chain = three(&layers);
    let views = layers.views(rung);
    views.sweep(&layers, &chain).unwrap();
    loop {
        views.lowers(&layers, &chain).unwrap();
        chain.iter().for_each(|layer| views.renew_layer(&layers, layer, false).unwrap());
        for layer in &chain {
            views.hide_layer(&layers, layer).unwrap();
            for file in ["erofs", "depends"] {
                let _ = fs::remove_file(layers.layer_path(layer).join(file));
            }
        }
    }
}

/// The child's root, in its environment.
const CHILD: &str = "SILK_TEST_CHILD_ROOT";

fn three(layers: &Layers) -> [Digest; 3] {
    [base(), Tar::new().file("etc/added", "added"), Tar::new().file("top", "top")].map(|tar| layers.add(&tar))
}

#[test]
fn privileged_a_killed_process_leaks_nothing() {
    use std::process::{Command, Stdio};
    for rung in RUNGS {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(format!("{rung:?}").to_lowercase());
        let mounts_below =
            || fs::read_to_string("/proc/self/mountinfo").unwrap().matches(root.to_str().unwrap()).count();
        let mut left = 0;
        for kill in 0..20u64 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "child_that_is_killed"])
                .env(CHILD, &root)
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            // Anywhere from before its first step to well into its rounds; each moment must be a good one.
            std::thread::sleep(std::time::Duration::from_millis(kill * 7));
            assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
            child.kill().unwrap();
            child.wait().unwrap();
            left += mounts_below();
            let layers = Layers::at(&root);
            let chain = three(&layers);
            let views = layers.views(rung);
            views.sweep(&layers, &chain).unwrap();
            assert_eq!(read(&views.lowers(&layers, &chain).unwrap()[1].join("etc/added")), "added");
            for layer in &chain {
                views.hide_layer(&layers, layer).unwrap();
            }
            assert_eq!(fs::read_dir(root.join("mnt")).unwrap().count(), 1, "the probe");
            assert_eq!(mounts_below(), 0);
        }
        assert!(left > 0, "no moment was one with something to leak");
        let in_use = || {
            let devices = fs::read_dir("/sys/block").unwrap().map(|e| e.unwrap().path().join("loop/backing_file"));
            devices
                .filter_map(|file| fs::read_to_string(file).ok())
                .any(|file| file.starts_with(root.to_str().unwrap()))
        };
        let start = std::time::Instant::now();
        while in_use() {
            assert!(start.elapsed().as_secs() < 20, "loop devices are left");
            std::thread::yield_now();
        }
    }
}
