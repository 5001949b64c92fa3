#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fs, sync::Arc};

use silk_layer::{
    erofs::{Device, Plan},
    index, toc,
    tree::{Node, NodeId, NodeKind, Source as Whose, SourceExtent, Tree},
};
use silk_store::Known;

use super::*;

/// A layer of two million bytes, and these.
fn whole_layer(store: &Arc<Store>) -> (Digest, Vec<u8>) {
    let bytes: Vec<u8> = (0..2_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut decoder = silk_layer::decode::open_learning(&bytes[..]).unwrap();
    let (mut builder, mut piece) = (index::Builder::new(), vec![0; 100_000]);
    loop {
        let len = std::io::Read::read(&mut decoder, &mut piece).unwrap();
        builder.entries(decoder.take_entries());
        if len == 0 {
            break;
        }
        builder.push(&piece[..len]);
    }
    let index = builder.finish(decoder.compression(), bytes.len() as u64);
    let names = toc::Toc::new(bytes.len() as u64, []);
    let id = Digest::of(&bytes);
    let (encoded, blob, blob_size) = (index::encode(&index), Digest::of(b"blob"), index.blob_size);
    store.learn(&Known { diff_id: id, blob, blob_size, toc: toc::encode(&names), index: encoded }, "a peer").unwrap();
    let partial = store.partial(id).unwrap();
    for nr in 0..index.len() {
        let range = index.range(nr);
        partial.fill(nr, &bytes[range.start as usize..range.end as usize], false).unwrap();
    }
    partial.finish(&names, 1).unwrap();
    drop(partial);
    (id, bytes)
}

#[test]
fn privileged_what_was_brought_to_the_page_cache_is_read_by_nobody_and_needs_no_read() {
    let root = tempfile::tempdir().unwrap();
    let served = served(root.path());
    let (id, bytes) = whole_layer(&served.files.store);
    let path = served.path(&id).unwrap();
    let watch = served.files.lazies.watch([id]);
    served.warm(&id, &[4096..300_000, 500_000..900_000]).unwrap();
    assert_eq!(watch.take(), [], "silkd's own reads are not a container's");
    let file = File::open(path).unwrap();
    let read = |range: Range<usize>| {
        let mut found = vec![0; range.len()];
        file.read_exact_at(&mut found, range.start as u64).unwrap();
        assert_eq!(found, bytes[range]);
        watch.take()
    };
    assert_eq!(read(4096..300_000), []);
    assert_eq!(read(500_000..900_000), []);
    assert_ne!(read(1_500_000..1_500_001), []);
}

#[tokio::test]
async fn the_disk_of_a_layer_that_was_read_is_given_back() {
    let root = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(root.path(), silk_store::Config::default()).unwrap());
    let (id, bytes) = whole_layer(&store);
    let lazies = Lazies::new(Arc::clone(&store), &silk_pull::Config::default());
    let files = Files::new(lazies, Slots::open(store.database()).unwrap(), 512);
    // A container that was started before the layer was whole reads through silkd.
    assert_eq!(files.read_whole(&id, 0, 4096).unwrap(), bytes[..4096]);
    files.close(&id);
    assert_eq!(store.evict(&id).unwrap().layers, 1);
    let held = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let held: Vec<_> = held.filter(|to| to.starts_with(root.path().join("layers"))).collect();
    assert!(held.is_empty(), "{held:?}");
}

/// A reader had found it lazy, and it was given up before it could be read.
#[tokio::test]
async fn holes_of_a_layer_that_was_given_up_are_not_read_as_zeros() {
    let root = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(root.path(), silk_store::Config::default()).unwrap());
    let (id, bytes) = whole_layer(&store);
    store.evict(&id).unwrap();
    // Its data file is there, with holes.
    let partial = store.partial(id).unwrap();
    let lazies = Lazies::new(Arc::clone(&store), &silk_pull::Config::default());
    let files = Files::new(lazies, Slots::open(store.database()).unwrap(), 512);
    assert_eq!(files.read_whole(&id, 0, 4096).unwrap_err().kind(), io::ErrorKind::NotFound);
    let index = Arc::clone(partial.index());
    for nr in 0..index.len() {
        let range = index.range(nr);
        partial.fill(nr, &bytes[range.start as usize..range.end as usize], false).unwrap();
    }
    partial.finish(&toc::Toc::new(bytes.len() as u64, []), 1).unwrap();
    assert_eq!(files.read_whole(&id, 0, 4096).unwrap(), bytes[..4096]);
}

fn served(root: &Path) -> Served {
    let store = Arc::new(Store::open(root, silk_store::Config::default()).unwrap());
    let slots = Slots::open(store.database()).unwrap();
    Served::mount(root, Lazies::new(store, &silk_pull::Config::default()), slots, 512).unwrap()
}

/// Writes the metadata image of a tree with one file, whose bytes are in the image.
fn write_image(path: &Path, byte: u8) {
    let node = |kind, mode| Node { kind, mode, uid: 0, gid: 0, mtime: toc::Time::default(), xattrs: BTreeMap::new() };
    // Where no block begins.
    let extent = SourceExtent { source: Whose::Own, logical: 0, offset: 3, len: 4000 };
    let root = NodeKind::Dir([(b"file"[..].into(), NodeId(1))].into());
    let file = NodeKind::File { size: 4000, extents: [extent].into() };
    let tree = Tree { nodes: vec![node(root, 0o755), node(file, 0o644)] };
    let device = Device { source: Whose::Own, size: 8192, layer: Digest::of(b"layer") };
    let plan = Plan::new(&tree, &[device], [0; 16]).unwrap();
    assert!(plan.sources().is_empty());
    let mut image = Vec::new();
    let mut data = |_, _, bytes: &mut [u8]| {
        bytes.fill(byte);
        Ok(())
    };
    plan.write(&mut image, &mut data).unwrap();
    fs::write(path, image).unwrap();
}

#[test]
fn privileged_a_tree_that_lied_leaves_nothing_to_the_next() {
    let root = tempfile::tempdir().unwrap();
    let served = served(root.path());
    let read = |byte| {
        let meta = root.path().join("meta");
        write_image(&meta, byte);
        let file = served.tree("name", &meta, &[]).unwrap().join("file");
        assert_eq!(fs::read(&file).unwrap(), vec![byte; 4000]);
        // As a container that runs.
        File::open(&file).unwrap()
    };
    let ino = |file: &File| std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
    let first = read(1);
    served.gone("name");
    let again = read(1);
    assert_eq!(ino(&again), ino(&first), "the same tree");
    served.gone("name");
    served.lied("name");
    read(2);
}

#[test]
fn privileged_what_an_earlier_silkd_served_is_taken_away() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().canonicalize().unwrap();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap().matches(root.to_str().unwrap()).count();
    let earlier = served(&root);
    earlier.shows_trees(&root);
    assert!(earlier.is_mounted());
    assert_eq!(mounts(), 2);
    let Served { files, session, plain, .. } = earlier;
    std::mem::forget((session, plain));
    drop(files);
    let (lazies, slots) = {
        let store = Arc::new(Store::open(&root.join("other"), silk_store::Config::default()).unwrap());
        let slots = Slots::open(store.database()).unwrap();
        (Lazies::new(store, &silk_pull::Config::default()), slots)
    };
    let now = Served::mount(&root, lazies, slots, 512).unwrap();
    assert_eq!(mounts(), 1);
    drop(now);
    assert_eq!(mounts(), 0);
}
