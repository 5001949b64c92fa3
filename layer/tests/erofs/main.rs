//! The EROFS writer against the kernel and fsck.erofs: what a tree says is what a mount shows.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fsck;
mod make;
mod menagerie;
mod mounted;
mod random;
mod read;
mod shown;

use std::collections::BTreeMap;

use proptest::prelude::*;
use silk_layer::{
    erofs::{self, ErofsError, Plan},
    tree::{NodeId, NodeKind, Source, SourceExtent},
};

use make::{Image, Make};
use menagerie::{crowd, menagerie};

#[test]
fn privileged_a_mount_shows_the_tree() {
    let make = menagerie();
    let image = Image::of(&make);
    fsck::check(&image);
    mounted::compare(&make, &image);
}

#[test]
fn privileged_an_empty_layer_has_no_device() {
    let make = Make::new(0);
    let image = Image::of(&make);
    assert!(image.sources.is_empty());
    fsck::check(&image);
    mounted::compare(&make, &image);
}

#[test]
fn privileged_a_link_into_a_lower_layer_reads_its_data() {
    let mut make = Make::new(8192);
    make.file(NodeId(0), b"own", 600, &[(0, 512, 600)]);
    let below = make.file(NodeId(0), b"below", 5000, &[(0, 1024, 5000)]);
    let NodeKind::File { extents, .. } = &mut make.node(below).kind else { unreachable!() };
    extents[0].source = Source::Below(3);
    let image = Image::of(&make);
    assert_eq!(image.sources, [Source::Own, Source::Below(3)]);
    fsck::check(&image);
    mounted::compare(&make, &image);
}

#[test]
fn privileged_a_hundred_thousand_names_in_one_directory() {
    let make = crowd();
    let image = Image::of(&make);
    assert!(image.bytes.len() < 20 << 20, "{}", image.bytes.len());
    fsck::check(&image);
    mounted::compare(&make, &image);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn privileged_random_trees_are_shown_as_they_are(entries in random::entries()) {
        let make = random::build(entries);
        let image = Image::of(&make);
        fsck::check(&image);
        mounted::compare(&make, &image);
    }
}

#[test]
fn ordinary_files_are_one_chunk_and_nothing_is_copied() {
    let mut make = Make::new(1 << 20);
    for nr in 0..100u64 {
        make.file(NodeId(0), nr.to_string().as_bytes(), 1 + nr * 1013, &[(0, nr * 512, 1 + nr * 1013)]);
    }
    let devices = make.devices();
    let plan = Plan::new(&make.tree, &devices, [0; 16]).unwrap();
    assert_eq!(plan.copied(), 0);
    // 64 bytes of inode and 8 of index, kept from crossing blocks: five files a block; entries of 12 + 2 bytes.
    assert!(plan.size() < 20_000, "{}", plan.size());
    let image = Image::of(&make);
    assert_eq!(image.bytes.len() as u64, plan.size());
    let head = erofs::inspect(&image.bytes).unwrap();
    assert_eq!((head.size, head.devices.as_slice()), (plan.size(), [devices[0].layer].as_slice()));
}

#[test]
fn a_sparse_file_copies_its_odd_blocks_only() {
    let mut make = Make::new(1 << 20);
    make.file(NodeId(0), b"sparse", 1 << 40, &[(1 << 20, 0, 1 << 19), (1 << 39, 1 << 19, 1000)]);
    let devices = make.devices();
    let plan = Plan::new(&make.tree, &devices, [0; 16]).unwrap();
    // The tail of the last piece does not fill its block. Indexes for 2^40 bytes and copies balance at a few MiB each.
    assert!(plan.copied() > 0 && plan.size() < 20 << 20, "{} of {}", plan.copied(), plan.size());
}

#[test]
fn what_cannot_be_held_is_an_error_that_names_the_path() {
    let error = |change: &dyn Fn(&mut Make, NodeId)| {
        let mut make = Make::new(4096);
        let dir = make.dir(NodeId(0), b"dir", 0o755);
        let file = make.file(dir, b"file", 10, &[(0, 0, 10)]);
        change(&mut make, file);
        Plan::new(&make.tree, &make.devices(), [0; 16]).map(|_| ()).unwrap_err()
    };
    let path = || "/dir/file".to_owned();
    let extent = |logical, offset, len| SourceExtent { source: Source::Own, logical, offset, len };
    let with = |size, extents: &[SourceExtent]| {
        error(&|make, file| make.node(file).kind = NodeKind::File { size, extents: extents.into() })
    };
    assert_eq!(with(10, &[extent(0, 0, 11)]), ErofsError::Extent { path: path() });
    assert_eq!(with(10, &[extent(5, 0, 5), extent(0, 0, 5)]), ErofsError::Extent { path: path() });
    assert_eq!(with(10, &[extent(0, 4090, 10)]), ErofsError::Extent { path: path() });
    assert_eq!(with(10, &[extent(0, u64::MAX, 10)]), ErofsError::Range { path: path() });
    assert_eq!(with(u64::MAX, &[]), ErofsError::Range { path: path() });
    let scattered: Vec<_> = (0..4096).map(|nr| extent(nr << 50, 1, 1)).collect();
    assert_eq!(with(1 << 62, &scattered), ErofsError::Scattered { path: path(), size: 1 << 62 });
    let target = error(&|make, file| make.node(file).kind = NodeKind::Symlink(vec![b'x'; 4096]));
    assert_eq!(target, ErofsError::Symlink { path: path(), len: 4096 });
    let xattr = error(&|make, file| drop(make.node(file).xattrs.insert(b"user.x".to_vec(), vec![0; 65536])));
    assert_eq!(xattr, ErofsError::Xattr { path: path(), name: "user.x".into() });
    let twice = error(&|make, _| make.link(NodeId(0), b"zagain", NodeId(1)));
    assert_eq!(twice, ErofsError::DirTwice { path: "/zagain".into() });
    assert_eq!(error(&|make, _| make.link(NodeId(0), b"gone", NodeId(9))), ErofsError::Broken { path: "/gone".into() });
    for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
        let name_error = error(&|make, file| make.link(NodeId(1), name, file));
        assert!(matches!(name_error, ErofsError::Name { path, .. } if path == "/dir"));
    }
}

#[test]
fn attributes_of_unknown_namespaces_are_left_out() {
    let mut make = Make::new(0);
    make.node(NodeId(0)).xattrs = BTreeMap::from([(b"com.apple.what".to_vec(), b"1".to_vec())]);
    let with = Image::of(&make).bytes;
    make.node(NodeId(0)).xattrs.clear();
    assert!(with == Image::of(&make).bytes);
}

#[test]
fn planning_and_writing_are_fast() {
    // A figure for people, not a check: no timing decides a test.
    let mut make = Make::new(1 << 16);
    for dir in 0..1000u64 {
        let id = make.dir(NodeId(0), format!("dir{dir}").as_bytes(), 0o755);
        for nr in 0..100u64 {
            make.file(id, format!("some-file-name-{nr}").as_bytes(), 512, &[(0, nr * 512, 512)]);
        }
    }
    let start = std::time::Instant::now();
    let image = Image::of(&make);
    eprintln!("101,000 inodes: {:?}, {} bytes", start.elapsed(), image.bytes.len());
    assert_eq!(make.tree.nodes.len(), 101_001);
}
