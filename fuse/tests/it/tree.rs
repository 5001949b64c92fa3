//! Trees: what they show is what EROFS shows of the same image.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::MetadataExt as _,
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use proptest::prelude::*;
use rustix::io::Errno;
use silk_fuse::{Config, Session, TreeFiles};
use silk_layer::tree::{NodeId, Source};

use crate::{
    erofs::Erofs,
    make::{Image, Make},
    menagerie::{crowd, menagerie},
    random,
    same::same,
    shown::shows,
    store::{Mode, Served},
};

fn compare(served: &Served, make: &Make, slot: u32) {
    let image = Image::of(make);
    let tree = served.serve_tree(&image, make, slot);
    shows(make, &tree);
    let erofs = Erofs::mount(&image.path, &image.devices, &image.dir.path().join("erofs"));
    // Once from the pages and entries that the first look has left, once anew.
    same(&erofs.0, &tree);
    served.session().forget(silk_fuse::Slot(slot), &format!("tree-{slot}"));
    same(&erofs.0, &tree);
}

#[test]
fn privileged_one_of_everything_is_shown_as_erofs_shows_it() {
    let mut make = menagerie();
    // An access list: mode bits alone would give the group less or more.
    let acl = [2u32, 0x0006_0001, u32::MAX, 0x0006_0002, 1234, 0x0004_0004, u32::MAX, 0x0006_0010, u32::MAX, 0x20, !0];
    let acl = acl.into_iter().flat_map(u32::to_le_bytes).collect();
    let file = make.file(NodeId(0), b"list", 10, &[(0, 512, 10)]);
    make.node(file).mode = 0o660;
    make.node(file).xattrs.insert(b"system.posix_acl_access".to_vec(), acl);
    compare(&Served::new(), &make, 0);
}

#[test]
fn privileged_a_hundred_thousand_names_are_shown_as_erofs_shows_them() {
    compare(&Served::new(), &crowd(), (1 << 24) - 2);
}

#[test]
fn privileged_a_link_into_a_lower_layer_reads_its_data() {
    let mut make = Make::new(8192);
    make.file(NodeId(0), b"own", 600, &[(0, 512, 600)]);
    let below = make.file(NodeId(0), b"below", 5000, &[(0, 1024, 5000)]);
    let silk_layer::tree::NodeKind::File { extents, .. } = &mut make.node(below).kind else { unreachable!() };
    extents[0].source = Source::Below(3);
    compare(&Served::new(), &make, 7);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn privileged_random_trees_are_shown_as_erofs_shows_them(entries in random::entries()) {
        compare(&Served::new(), &random::build(entries), 3);
    }
}

#[test]
fn privileged_absence_is_kept_within_a_tree() {
    let served = Served::new();
    let make = menagerie();
    let tree = served.serve_tree(&Image::of(&make), &make, 1);
    for _ in 0..3 {
        assert!(!tree.join("nothing").exists());
        let long = fs::metadata(tree.join("x".repeat(256))).unwrap_err();
        assert_eq!(long.raw_os_error(), Some(Errno::NAMETOOLONG.raw_os_error()));
        let file = fs::metadata(tree.join("etc/passwd/below")).unwrap_err();
        assert_eq!(file.raw_os_error(), Some(Errno::NOTDIR.raw_os_error()));
    }
}

#[test]
fn privileged_a_read_of_many_pieces_waits_for_all() {
    let served = Served::new();
    let mut make = Make::new(1 << 20);
    let pieces: Vec<_> = (0..20u64).map(|nr| (nr << 13, (19 - nr) << 14, 4096)).collect();
    let file = make.file(NodeId(0), b"pieces", 160 << 10, &pieces);
    let silk_layer::tree::NodeKind::File { extents, .. } = make.node(file).kind.clone() else { unreachable!() };
    let tree = served.serve_tree(&Image::of(&make), &make, 1);
    served.store.set(2, Mode::Keep);
    let path = tree.join("pieces");
    thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read(&path));
        let mut kept = served.store.kept(20);
        kept.sort_by_key(|kept| kept.offset);
        kept.into_iter().for_each(|kept| served.store.answer(kept));
        assert!(reader.join().unwrap().unwrap() == make.contents(160 << 10, &extents, 0, 160 << 10));
    });
    // One of them fails: the whole read does, and the next one does not.
    served.session().forget(silk_fuse::Slot(1), "tree-1");
    thread::scope(|scope| {
        let reader = scope.spawn(|| fs::File::open(&path).unwrap().read(&mut [0; 160 << 10]));
        let mut kept = served.store.kept(20);
        served.store.set(2, Mode::Answer);
        kept.swap_remove(7).reply.error(Errno::IO);
        kept.into_iter().for_each(|kept| served.store.answer(kept));
        // The kernel may have read page by page on, after the failure.
        let _ = reader.join().unwrap();
    });
    assert!(fs::read(&path).unwrap() == make.contents(160 << 10, &extents, 0, 160 << 10));
}

#[test]
fn privileged_a_damaged_image_gives_errors() {
    let served = Served::new();
    let make = menagerie();
    let mut image = Image::of(&make);
    let tree = served.serve_tree(&image, &make, 1);
    let mut file = fs::OpenOptions::new().write(true).open(&image.path).unwrap();
    file.seek(SeekFrom::Start(4096)).unwrap();
    file.write_all(&vec![0xFF; image.bytes.len() - 4096]).unwrap();
    for _ in 0..4 {
        let error = fs::read_dir(tree.join("etc")).and_then(|mut dir| dir.next().unwrap().map(|_| ())).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
    }
    file.set_len(1).unwrap();
    let error = fs::read_dir(tree.join("etc")).and_then(|mut dir| dir.next().unwrap().map(|_| ())).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
    fs::write(&image.path, &image.bytes).unwrap();
    assert!(fs::read_dir(tree.join("etc")).unwrap().count() > 3);
    assert!(TreeFiles::open(fs::File::open(&image.path).unwrap(), Vec::new()).is_err(), "of other data files");
    image.bytes[1030] ^= 1;
    fs::write(&image.path, &image.bytes).unwrap();
    assert!(TreeFiles::open(fs::File::open(&image.path).unwrap(), vec![silk_fuse::Slot(2)]).is_err());
}

#[test]
fn privileged_inode_numbers_are_the_same_in_every_session() {
    let mut served = Served::new();
    let make = menagerie();
    let image = Image::of(&make);
    let tree = served.serve_tree(&image, &make, 5);
    let numbers = |path: &std::path::Path| {
        ["", "etc", "etc/passwd", "../data-6"].map(|p| fs::metadata(path.join(p)).unwrap().ino())
    };
    let first = numbers(&tree);
    served.session.take().unwrap().unmount();
    let store: Arc<_> = served.store.clone();
    served.session = Some(Session::mount(&served.at, store, Config::default()).unwrap());
    assert_eq!(numbers(&tree), first);
}

#[test]
fn privileged_a_program_runs_from_a_tree() {
    let served = Served::new();
    let mut program = fs::read("/bin/cat").unwrap();
    let mut make = Make::new(program.len());
    let len = program.len() as u64;
    let file = make.file(NodeId(0), b"cat", len, &[(0, 0, len)]);
    make.node(file).mode = 0o755;
    let tree = served.serve_tree(&Image::of(&make), &make, 1);
    program.resize(program.len().next_multiple_of(4096), 0);
    served.store.add("data-2", 2, program);
    let mut child = Command::new(tree.join("cat")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"it runs").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"it runs");
}
