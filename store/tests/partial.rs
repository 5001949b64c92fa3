//! Layers with holes: what is marked is right, over restarts, crashes and damage.

#![allow(clippy::unwrap_used)] // a test's helper panics where the test would

use std::{fs, io::Read as _, path::Path, sync::Arc};

use silk_layer::{
    decode,
    index::{self, Builder, Index},
    toc::{self, Toc},
};
use silk_model::{Class, Digest};
use silk_store::{Config, Known, Store, StoreError, padded};

/// A tar's worth of bytes that differ everywhere but for a hole in the middle.
fn bytes() -> Vec<u8> {
    let mut x = 7_u64;
    let noise = std::iter::repeat_with(|| {
        x = x.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        (x >> 56) as u8
    });
    let mut bytes: Vec<_> = noise.take(5_000_000).collect();
    bytes[2_000_000..3_000_000].fill(0);
    bytes
}

fn known(bytes: &[u8]) -> (Known, Index) {
    let mut decoder = decode::open_learning(bytes).unwrap();
    let mut builder = Builder::new();
    let mut piece = vec![0; 100_000];
    loop {
        let len = decoder.read(&mut piece).unwrap();
        builder.entries(decoder.take_entries());
        if len == 0 {
            break;
        }
        builder.push(&piece[..len]);
    }
    let index = builder.finish(decoder.compression(), bytes.len() as u64);
    let toc = toc::encode(&Toc::new(bytes.len() as u64, []));
    let (diff_id, blob, blob_size) = (Digest::of(bytes), Digest::of(b"blob"), index.blob_size);
    (Known { diff_id, blob, blob_size, toc, index: index::encode(&index) }, index)
}

fn open(root: &Path) -> Arc<Store> {
    Arc::new(Store::open(root, Config::default()).unwrap())
}

fn span<'b>(index: &Index, span: usize, bytes: &'b [u8]) -> &'b [u8] {
    let range = index.range(span);
    &bytes[range.start as usize..range.end as usize]
}

#[test]
fn spans_come_in_any_order_and_the_last_makes_the_layer_whole() {
    let (root, bytes) = (tempfile::tempdir().unwrap(), bytes());
    let (known, index) = known(&bytes);
    let store = open(root.path());
    assert!(matches!(store.partial(known.diff_id), Err(StoreError::Absent(_))), "nothing is known");
    store.learn(&known, "a peer").unwrap();
    let is_known = |blob, size| store.is_known(&known.diff_id, blob, size);
    assert!(is_known(&known.blob, known.blob_size));
    assert!(!is_known(&known.diff_id, known.blob_size) && !is_known(&known.blob, known.blob_size + 1));
    let partial = store.partial(known.diff_id).unwrap();
    assert!(matches!(store.writer(known.diff_id), Err(StoreError::Busy(_))));
    let toc = store.toc(&known.diff_id).unwrap();
    for nr in (0..index.len()).rev() {
        let mut out = vec![1; 1000];
        let at = index.range(nr).start;
        assert_eq!(partial.read(at, &mut out).unwrap_err().class(), Class::NotFound, "a hole is never read");
        assert_eq!(partial.finish(&toc, 1).unwrap_err().class(), Class::NotFound, "nor is it whole");
        partial.fill(nr, span(&index, nr, &bytes), false).unwrap();
        let len = partial.read(at, &mut out).unwrap();
        assert_eq!(
            out[..len.min(bytes.len() - at as usize)],
            bytes[at as usize..][..len.min(bytes.len() - at as usize)]
        );
    }
    assert_eq!(partial.bytes_here(), bytes.len() as u64);
    let mut end = vec![1; 8192];
    let len = partial.read(padded(bytes.len() as u64) - 4096, &mut end).unwrap();
    assert_eq!(len, 4096, "zeros behind the tar, up to a page");
    partial.finish(&toc, 1).unwrap();
    drop(partial);
    assert!(store.whole(&known.diff_id));
    assert_eq!(store.record(&known.diff_id).unwrap().from, "");
    assert!(!store.layer_path(&known.diff_id).join("present").exists());
    assert_eq!(fs::read(store.layer_path(&known.diff_id).join("data")).unwrap()[..bytes.len()], bytes);
    assert_eq!(store.prove(&known.diff_id).unwrap().finding, silk_store::Finding::Good);
    store.evict(&known.diff_id).unwrap();
    assert_eq!(store.known(&known.diff_id).unwrap(), known, "it outlives the data");
}

#[test]
fn marks_outlive_the_process_and_after_a_crash_only_good_spans_do() {
    let (root, bytes) = (tempfile::tempdir().unwrap(), bytes());
    let (known, index) = known(&bytes);
    let store = open(root.path());
    store.learn(&known, "a peer").unwrap();
    let partial = store.partial(known.diff_id).unwrap();
    for nr in [0, 2, 3] {
        partial.fill(nr, span(&index, nr, &bytes), false).unwrap();
    }
    drop((partial, store));
    let store = open(root.path());
    let partial = store.partial(known.diff_id).unwrap();
    assert_eq!((0..5).map(|nr| partial.has(nr)).collect::<Vec<_>>(), [true, false, true, true, false]);
    drop((partial, store));
    // Another boot, and one of the spans never reached the disk.
    let dir = root.path().join("layers/sha256").join(known.diff_id.hex());
    let mut marks = fs::read(dir.join("present")).unwrap();
    marks[8] ^= 1;
    fs::write(dir.join("present"), marks).unwrap();
    let mut data = fs::read(dir.join("data")).unwrap();
    data[index.range(2).start as usize..][..4096].fill(0);
    fs::write(dir.join("data"), data).unwrap();
    let store = open(root.path());
    let partial = store.partial(known.diff_id).unwrap();
    assert_eq!((0..5).map(|nr| partial.has(nr)).collect::<Vec<_>>(), [true, false, false, true, false]);
    // Zeros are written where another process may have left something.
    for nr in 0..index.len() {
        partial.fill(nr, span(&index, nr, &bytes), false).unwrap();
    }
    assert_eq!(fs::read(dir.join("data")).unwrap()[..bytes.len()], bytes);
    // Marks of another index say nothing.
    drop((partial, store));
    let mut marks = fs::read(dir.join("present")).unwrap();
    marks[30] ^= 1;
    fs::write(dir.join("present"), marks).unwrap();
    let store = open(root.path());
    assert_eq!(store.partial(known.diff_id).unwrap().bytes_here(), 0);
}

#[test]
fn a_table_that_was_just_checked_does_not_hide_that_its_file_is_damaged() {
    let (root, bytes) = (tempfile::tempdir().unwrap(), bytes());
    let (known, _) = known(&bytes);
    let store = open(root.path());
    store.learn(&known, "a peer").unwrap();
    let path = store.layer_path(&known.diff_id).join("toc");
    let mut damaged = known.toc.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&path, damaged).unwrap();
    assert!(matches!(store.toc(&known.diff_id), Err(StoreError::Toc { .. })));
    fs::write(&path, &known.toc).unwrap();
    for asked in ["first", "again"] {
        assert_eq!(store.toc(&known.diff_id).unwrap(), toc::decode(&known.toc).unwrap(), "{asked}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (root, bytes) = (tempfile::tempdir().unwrap(), bytes());
    let (known, _) = known(&bytes);
    let store = open(root.path());
    let other = Known { diff_id: Digest::of(b"other"), ..known.clone() };
    assert!(matches!(store.learn(&other, "a liar"), Err(StoreError::Foreign { .. })));
    let short = Known { toc: toc::encode(&Toc::new(512, [])), ..known.clone() };
    assert!(matches!(store.learn(&short, "a liar"), Err(StoreError::Foreign { .. })));
    let longer = Known { blob_size: known.blob_size - 1, ..known.clone() };
    assert!(matches!(store.learn(&longer, "who knows"), Err(StoreError::OtherBlob { .. })));
    assert!(store.record(&known.diff_id).is_none());
    store.learn(&known, "a peer").unwrap();
    fs::write(store.layer_path(&known.diff_id).join("toc"), b"torn").unwrap();
    assert_eq!(store.partial(known.diff_id).unwrap_err().class(), Class::Corrupt);
    assert!(!store.is_known(&known.diff_id, &known.blob, known.blob_size), "it is forgotten");
    store.writer(known.diff_id).unwrap();
}

#[test]
fn a_whole_layer_can_be_evicted_whoever_still_reads_it() {
    let (root, bytes) = (tempfile::tempdir().unwrap(), bytes());
    let (known, index) = known(&bytes);
    let store = open(root.path());
    store.learn(&known, "a peer").unwrap();
    let partial = store.partial(known.diff_id).unwrap();
    (0..index.len()).for_each(|nr| partial.fill(nr, span(&index, nr, &bytes), false).unwrap());
    partial.finish(&Toc::new(bytes.len() as u64, []), 1).unwrap();
    assert_eq!(store.evict(&known.diff_id).unwrap().layers, 1);
    let again = store.partial(known.diff_id).unwrap();
    again.fill(0, span(&index, 0, &bytes), false).unwrap();
    partial.discard(true).unwrap();
    drop(partial);
    let mut read = [0; 10];
    again.read(0, &mut read).unwrap();
    assert_eq!(read, bytes[..10], "it is another's now");
    assert!(store.is_known(&known.diff_id, &known.blob, known.blob_size));
    assert!(store.layer_path(&known.diff_id).join("data").exists());
}

#[test]
fn several_layers_are_learned_at_once() {
    let root = tempfile::tempdir().unwrap();
    let layers = [known_of(b"first"), known_of(b"second"), known_of(b"third")];
    let store = open(root.path());
    store.learn(&layers[0], "a peer").unwrap();
    let checked = layers.clone().map(|known| store.checked(known, "another peer").unwrap());
    store.learn_all(&checked).unwrap();
    for (known, from) in layers.iter().zip(["a peer", "another peer", "another peer"]) {
        assert_eq!(store.known(&known.diff_id).unwrap(), *known);
        assert_eq!(store.record(&known.diff_id).unwrap().from, from, "what is known stays as it is");
    }
}

#[test]
fn a_layer_that_is_discarded_reads_no_more() {
    let (root, bytes) = (tempfile::tempdir().unwrap(), bytes());
    let (known, index) = known(&bytes);
    let store = open(root.path());
    store.learn(&known, "a peer").unwrap();
    let partial = store.partial(known.diff_id).unwrap();
    partial.fill(0, span(&index, 0, &bytes), false).unwrap();
    partial.discard(false).unwrap();
    assert!(partial.read(0, &mut [0; 10]).is_err() && partial.fill(1, span(&index, 1, &bytes), false).is_err());
    assert!(store.is_known(&known.diff_id, &known.blob, known.blob_size));
    assert!(!store.layer_path(&known.diff_id).join("data").exists());
    let again = store.partial(known.diff_id).unwrap();
    drop(partial);
    assert!(store.partial(known.diff_id).is_err(), "the old one gives nothing away that is not its own");
    drop(again);
    store.drop_partials(|_| false).unwrap();
    assert!(!store.layer_path(&known.diff_id).join("present").exists());
    // Of many that are known, those used longest ago are forgotten.
    let store = {
        drop(store);
        Arc::new(Store::open(root.path(), Config { known_layers: 0, ..Config::default() }).unwrap())
    };
    let other = known_of(b"another layer");
    store.learn(&other, "a peer").unwrap();
    assert!(store.record(&known.diff_id).is_none() && store.record(&other.diff_id).is_none());
}

fn known_of(bytes: &[u8]) -> Known {
    known(bytes).0
}

#[test]
fn a_layer_that_is_given_up_as_it_becomes_whole_is_either() {
    let (root, bytes) = (tempfile::tempdir().unwrap(), bytes());
    let (known, index) = known(&bytes);
    let store = open(root.path());
    let data = store.layer_path(&known.diff_id).join("data");
    for round in 0..60u64 {
        store.learn(&known, "a peer").unwrap();
        let partial = store.partial(known.diff_id).unwrap();
        for nr in 0..index.len() {
            partial.fill(nr, span(&index, nr, &bytes), false).unwrap();
        }
        let toc = store.toc(&known.diff_id).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| _ = partial.finish(&toc, 1));
            std::thread::sleep(std::time::Duration::from_micros(100 * round));
            let _ = partial.discard(false);
        });
        drop(partial);
        assert!(!store.whole(&known.diff_id) || data.exists(), "round {round}: whole, and without data");
        store.evict(&known.diff_id).unwrap();
    }
}

/// A layer is made again at the moment its eviction begins: whole with its data, or not whole.
fn evicted_and_made(store: &Arc<Store>, id: &Digest, make: &dyn Fn() -> Result<(), StoreError>) {
    std::thread::scope(|scope| {
        let evicting = scope.spawn(|| store.evict(id));
        while store.whole(id) && !evicting.is_finished() {
            std::hint::spin_loop();
        }
        make().unwrap();
        evicting.join().unwrap().unwrap();
    });
    assert!(!store.whole(id) || store.layer_path(id).join("data").exists(), "whole without data");
}

#[test]
fn a_layer_that_is_wanted_again_as_it_is_evicted_has_its_data() {
    let (root, bytes) = (tempfile::tempdir().unwrap(), bytes());
    let (known, index) = known(&bytes);
    let store = open(root.path());
    let make = || {
        let partial = store.partial(known.diff_id)?;
        for nr in 0..index.len() {
            partial.fill(nr, span(&index, nr, &bytes), false)?;
        }
        partial.finish(&store.toc(&known.diff_id)?, 1)
    };
    store.learn(&known, "a peer").unwrap();
    for _ in 0..300 {
        make().unwrap();
        evicted_and_made(&store, &known.diff_id, &make);
        let _ = store.evict(&known.diff_id);
    }
}

#[test]
fn a_layer_that_streams_in_again_as_it_is_evicted_has_its_data() {
    let (root, bytes) = (tempfile::tempdir().unwrap(), bytes());
    let (known, index) = known(&bytes);
    let store = open(root.path());
    let data = store.layer_path(&known.diff_id).join("data");
    let toc = Toc::new(bytes.len() as u64, []);
    let make = || {
        let facts = silk_store::Facts {
            size: bytes.len() as u64,
            entries: 0,
            blob: known.blob,
            blob_size: index.blob_size,
            source: String::new(),
            millis: 1,
        };
        let mut writer = store.writer(known.diff_id)?;
        writer.append(&bytes)?;
        writer.finish(&toc, &index, facts)
    };
    for _ in 0..300 {
        if !store.whole(&known.diff_id) {
            make().unwrap();
        }
        for name in ["erofs", "erofs-base", "depends"] {
            std::fs::write(store.layer_path(&known.diff_id).join(name), vec![1; 1 << 20]).unwrap();
        }
        evicted_and_made(&store, &known.diff_id, &make);
        let _ = store.evict(&known.diff_id);
        let _ = std::fs::remove_file(&data);
    }
}

#[test]
fn marks_whose_data_is_gone_are_not_believed() {
    let (root, bytes) = (tempfile::tempdir().unwrap(), bytes());
    let (known, index) = known(&bytes);
    let store = open(root.path());
    store.learn(&known, "a peer").unwrap();
    let partial = store.partial(known.diff_id).unwrap();
    partial.fill(0, span(&index, 0, &bytes), false).unwrap();
    drop(partial);
    // silkd drops the layer's bytes and is killed between the two files.
    fs::remove_file(store.layer_path(&known.diff_id).join("data")).unwrap();
    drop(store);
    let store = open(root.path());
    let partial = store.partial(known.diff_id).unwrap();
    let mut out = vec![1; 1000];
    match partial.read(0, &mut out) {
        Err(error) => assert_eq!(error.class(), Class::NotFound),
        Ok(_) => assert!(out[..] == bytes[..1000], "wrong bytes: {:?} instead of {:?}", &out[..8], &bytes[..8]),
    }
}

#[test]
fn marks_that_outlived_their_layer_do_not_speak_for_what_became_of_its_data() {
    let (root, bytes) = (tempfile::tempdir().unwrap(), bytes());
    let (known, index) = known(&bytes);
    let store = open(root.path());
    store.learn(&known, "a peer").unwrap();
    let partial = store.partial(known.diff_id).unwrap();
    (0..index.len()).for_each(|nr| partial.fill(nr, span(&index, nr, &bytes), false).unwrap());
    let [marks, data, unsynced] =
        ["present", "data", "unsynced"].map(|name| store.layer_path(&known.diff_id).join(name));
    let all = fs::read(&marks).unwrap();
    partial.finish(&store.toc(&known.diff_id).unwrap(), 1).unwrap();
    drop((partial, store));
    // silkd was killed between the record and the end of the marks.
    fs::write(&marks, all).unwrap();
    let store = open(root.path());
    assert!(store.whole(&known.diff_id));
    drop(store);
    // The disk lost a page, and the next silkd finds that out.
    let mut lost = fs::read(&data).unwrap();
    lost[..4096].fill(0);
    fs::write(&data, lost).unwrap();
    fs::write(&unsynced, []).unwrap();
    let store = open(root.path());
    assert!(!store.whole(&known.diff_id));
    let partial = store.partial(known.diff_id).unwrap();
    assert_eq!(partial.read(0, &mut [1; 1000]).unwrap_err().class(), Class::NotFound);
}

/// What is asked for was not whole a moment ago, and is now: nothing of it may be touched, and what others say of it comes too late.
#[test]
fn a_whole_layer_is_neither_opened_with_holes_nor_written_again() {
    let (root, bytes) = (tempfile::tempdir().unwrap(), bytes());
    let (known, index) = known(&bytes);
    let store = open(root.path());
    store.learn(&known, "a peer").unwrap();
    let partial = store.partial(known.diff_id).unwrap();
    for nr in 0..index.len() {
        partial.fill(nr, span(&index, nr, &bytes), false).unwrap();
    }
    partial.finish(&Toc::new(bytes.len() as u64, []), 1).unwrap();
    drop(partial);
    let data = store.layer_path(&known.diff_id).join("data");
    for refused in [store.partial(known.diff_id).map(drop), store.writer(known.diff_id).map(drop)] {
        assert!(matches!(refused, Err(StoreError::Whole(_))), "{refused:?}");
        assert!(store.whole(&known.diff_id));
        assert_eq!(fs::read(&data).unwrap()[..bytes.len()], bytes);
    }
    assert!(store.evict(&known.diff_id).unwrap().layers == 1, "nobody keeps the right to write it");
    store.partial(known.diff_id).unwrap();
}

#[test]
fn a_layer_on_its_way_keeps_its_own_names() {
    let (root, bytes) = (tempfile::tempdir().unwrap(), bytes());
    let (known, _) = known(&bytes);
    let store = open(root.path());
    let writer = store.writer(known.diff_id).unwrap();
    store.learn(&known, "a peer").unwrap();
    assert!(!store.is_known(&known.diff_id, &known.blob, known.blob_size), "somebody writes it");
    drop(writer);
    store.learn(&known, "a peer").unwrap();
    assert!(store.is_known(&known.diff_id, &known.blob, known.blob_size));
}
