//! The store against a temporary directory.

use std::{fs, io::Read as _, os::unix::fs::MetadataExt, sync::Arc};

use silk_layer::{
    decode,
    index::{Builder, Index},
    toc::Toc,
};
use silk_model::Digest;

use super::{database::RESERVED, *};

fn facts(bytes: &[u8]) -> Facts {
    Facts {
        size: bytes.len() as u64,
        entries: 0,
        blob: Digest::of(b"blob"),
        blob_size: bytes.len() as u64,
        source: "registry.example".into(),
        millis: 1,
    }
}

fn index(bytes: &[u8]) -> Index {
    let mut decoder = decode::open_learning(bytes).unwrap();
    let mut builder = Builder::new();
    let mut piece = vec![0; 300_000];
    loop {
        let len = decoder.read(&mut piece).unwrap();
        builder.entries(decoder.take_entries());
        if len == 0 {
            return builder.finish(decoder.compression(), bytes.len() as u64);
        }
        builder.push(&piece[..len]);
    }
}

fn put(store: &Arc<Store>, bytes: &[u8]) -> Digest {
    let id = Digest::of(bytes);
    let mut writer = store.writer(id).unwrap();
    for piece in bytes.chunks(300_000) {
        writer.append(piece).unwrap();
    }
    writer.finish(&Toc::new(bytes.len() as u64, []), &index(bytes), facts(bytes)).unwrap();
    id
}

fn open(root: &Path) -> Arc<Store> {
    Arc::new(Store::open(root, Config::default()).unwrap())
}

#[test]
fn a_layer_is_kept_verbatim_with_holes_and_found_again() {
    let root = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; 1 << 20];
    bytes[..10].fill(7);
    bytes.extend_from_slice(&[9; 1000]);
    let store = open(root.path());
    let id = put(&store, &bytes);
    let path = store.layer_path(&id).join("data");
    let read = fs::read(&path).unwrap();
    assert_eq!(read[..bytes.len()], bytes);
    assert_eq!(read.len() % 4096, 0);
    assert!(
        fs::metadata(&path).unwrap().blocks() * 512 <= 64 << 10,
        "zeros take no space, but for the blocks that a cut divides"
    );
    store.note(store.sync(&[id])).unwrap();
    drop(store);
    let store = open(root.path());
    assert_eq!(store.size(&id), Some(bytes.len() as u64));
    assert!(store.record(&id).unwrap().durable);
    assert_eq!(store.prove(&id).unwrap().finding, Finding::Good);
    assert_eq!(store.toc(&id).unwrap().size(), bytes.len() as u64);
}

#[test]
fn wrong_bytes_and_an_abandoned_writer_leave_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let id = Digest::of(b"something else");
    let mut writer = store.writer(id).unwrap();
    writer.append(b"bytes").unwrap();
    assert!(matches!(store.writer(id), Err(StoreError::Busy(_))));
    let error = writer.finish(&Toc::default(), &index(b"bytes"), facts(b"bytes")).unwrap_err();
    assert!(matches!(error, StoreError::WrongDiffId { .. }), "{error}");
    assert!(!store.layer_path(&id).exists());
    let mut writer = store.writer(id).unwrap();
    writer.append(b"half").unwrap();
    drop(writer);
    assert!(!store.layer_path(&id).exists());
    assert!(!store.whole(&id));
}

#[test]
fn what_was_not_synced_is_believed_for_this_boot_only() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let id = put(&store, b"not synced");
    drop(store);
    let store = open(root.path());
    assert!(store.whole(&id), "a restart of the daemon loses nothing");
    let mut record = store.record(&id).unwrap();
    record.boot = [1; 16];
    store.persist(&[(id, record)]).unwrap();
    drop(store);
    let store = open(root.path());
    assert!(!store.whole(&id), "a restart of the host does");
    assert!(!store.layer_path(&id).join("data").exists());
    assert!(store.layer_path(&id).join("toc").exists());
}

/// As when a disk is taken away and comes back, or a snapshot of it does.
#[test]
fn privileged_what_was_not_synced_is_believed_while_its_disk_stays_mounted() {
    let (root, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = |program: &str, arguments: &[&Path]| {
        assert!(std::process::Command::new(program).args(arguments).status().unwrap().success());
    };
    let bind = [Path::new("--bind"), disk.path(), root.path()];
    run("mount", &bind);
    let release = rustix::system::uname().release().to_str().unwrap().to_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let is_told = (numbers.next(), numbers.next()) >= (Some(6), Some(8));
    let id = put(&open(root.path()), b"not synced");
    assert!(open(root.path()).whole(&id));
    run("umount", &[root.path()]);
    run("mount", &bind);
    assert_eq!(open(root.path()).whole(&id), !is_told, "before Linux 6.8 nobody can know");
    run("umount", &[root.path()]);
}

/// A copy of a root in use may have a layer's files from before it was whole, and the record from after it was synced.
#[test]
fn files_that_are_older_than_their_record_are_read_back() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let (good, old) = (put(&store, &[1; 20_000]), put(&store, &[2; 20_000]));
    store.note(store.sync(&[good, old])).unwrap();
    for id in [good, old] {
        fs::write(store.layer_path(&id).join("present"), "marks").unwrap();
    }
    lose_a_page(&store, &old);
    drop(store);
    let store = open(root.path());
    assert!(store.whole(&good) && !store.whole(&old));
    assert!(!store.layer_path(&good).join("present").exists());
}

/// A process was killed after it had written the index of another blob of the layer, and before it said so.
#[test]
fn the_index_of_another_blob_is_forgotten() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let id = put(&store, &[1; 20_000]);
    store.evict(&id).unwrap();
    let mut record = store.record(&id).unwrap();
    record.facts.blob_size += 1;
    let (blob, blob_size) = (record.facts.blob, record.facts.blob_size);
    store.persist(&[(id, record)]).unwrap();
    assert!(store.is_known(&id, &blob, blob_size));
    assert!(matches!(store.partial(id), Err(StoreError::Absent(_))));
    assert!(!store.is_known(&id, &blob, blob_size));
    store.writer(id).unwrap();
}

/// Syncs a layer, which fails once a file of it has been replaced by what cannot be synced.
fn settle_failing(store: &Store, id: &Digest) {
    let dir = store.layer_path(id);
    fs::rename(dir.join("index"), dir.join("away")).unwrap();
    std::os::unix::fs::symlink("/dev/null", dir.join("index")).unwrap();
    assert!(store.note(store.sync(&[*id])).is_err());
    fs::rename(dir.join("away"), dir.join("index")).unwrap();
}

/// The disk has other bytes than the page cache had: here the two are one file.
fn lose_a_page(store: &Store, id: &Digest) {
    let data = fs::OpenOptions::new().write(true).open(store.layer_path(id).join("data")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&data, &[0; 4096], 4096).unwrap();
}

#[test]
fn what_failed_to_sync_is_read_back_before_it_is_believed() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let (good, lost) = (put(&store, &[1; 20_000]), put(&store, &[2; 20_000]));
    for id in [good, lost] {
        settle_failing(&store, &id);
        assert!(store.whole(&id) && !store.record(&id).unwrap().durable);
    }
    lose_a_page(&store, &lost);
    drop(store);
    let store = open(root.path());
    assert!(store.whole(&good), "the disk has it");
    assert!(!store.whole(&lost), "the disk does not");
    store.note(store.sync(&[good, lost])).unwrap();
    assert!(store.record(&good).unwrap().durable);
    drop(store);
    let store = open(root.path());
    assert!(store.whole(&good) && !store.whole(&lost));
    assert!(store.toc(&lost).is_ok(), "its names stay");
}

#[test]
fn a_sync_that_goes_well_after_one_that_failed_proves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let (good, lost) = (put(&store, &[1; 20_000]), put(&store, &[2; 20_000]));
    for id in [good, lost] {
        settle_failing(&store, &id);
    }
    lose_a_page(&store, &lost);
    // Another image that has the layers became ready.
    assert!(matches!(store.note(store.sync(&[good, lost])), Err(StoreError::Lost(id)) if id == lost));
    assert!(store.record(&good).unwrap().durable && !store.record(&lost).unwrap().durable);
    assert_eq!(store.lost(), [lost]);
    store.evict(&lost).unwrap();
    assert!(store.lost().is_empty());
    put(&store, &[2; 20_000]);
    store.note(store.sync(&[lost])).unwrap();
    assert!(store.record(&lost).unwrap().durable, "nothing is held against the next");
}

#[test]
fn leftovers_of_a_killed_process_are_swept() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let id = put(&store, b"good");
    let dir = store.layer_path(&Digest::of(b"half"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("data"), b"ha").unwrap();
    drop(store);
    let store = open(root.path());
    assert!(!dir.exists());
    assert!(store.whole(&id));
}

#[test]
fn the_longest_unused_goes_first_and_its_names_stay() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let ids: Vec<_> = [b"a", b"b", b"c"].iter().map(|b| put(&store, *b)).collect();
    for (age, id) in ids.iter().enumerate() {
        let mut record = store.record(id).unwrap();
        record.last_used = 100 - age as u64;
        store.persist(&[(*id, record)]).unwrap();
    }
    let order: Vec<_> = store.unused(|id| *id == ids[1]).into_iter().map(|u| u.diff_id).collect();
    assert_eq!(order, [ids[2], ids[0]]);
    assert_eq!(store.evict(&ids[2]).unwrap(), Evicted { layers: 1, bytes: 1 });
    assert_eq!(store.evict(&ids[2]).unwrap(), Evicted::default());
    assert!(!store.whole(&ids[2]));
    assert!(store.toc(&ids[2]).is_ok());
    assert!(store.whole(&ids[0]));
    // Zeros take nothing of the disk, so dropping them gives nothing back.
    let mut sparse = vec![0; 8 << 20];
    sparse[..100].fill(1);
    let sparse = put(&store, &sparse);
    let bytes = store.unused(|id| *id != sparse)[0].bytes;
    assert!(bytes > 0 && bytes <= 1 << 20, "{bytes}");
    assert!(store.evict(&sparse).unwrap().bytes <= 1 << 20);
}

#[test]
fn a_flipped_byte_is_found() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let id = put(&store, b"a layer's bytes");
    let path = store.layer_path(&id).join("data");
    let mut bytes = fs::read(&path).unwrap();
    bytes[3] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(matches!(store.prove(&id).unwrap().finding, Finding::Bad(_)));
}

#[test]
fn lost_data_and_a_torn_table_of_contents_are_found() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let ids = [put(&store, b"one layer"), put(&store, b"another layer")];
    fs::remove_file(store.layer_path(&ids[0]).join("data")).unwrap();
    fs::write(store.layer_path(&ids[1]).join("toc"), b"torn").unwrap();
    for id in ids {
        assert!(matches!(store.prove(&id).unwrap().finding, Finding::Unreadable(_)));
    }
}

#[test]
fn a_layer_on_its_way_is_not_forgotten() {
    let root = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(root.path(), Config { known_layers: 0, ..Config::default() }).unwrap());
    let (again, other) = (put(&store, b"again"), put(&store, b"other"));
    store.evict(&again).unwrap();
    let mut record = store.record(&other).unwrap();
    record.whole = false;
    store.persist(&[(again, record)]).unwrap();
    let mut writer = store.writer(again).unwrap();
    writer.append(b"again").unwrap();
    store.evict(&other).unwrap();
    writer.finish(&Toc::new(5, []), &index(b"again"), facts(b"again")).unwrap();
    assert!(store.whole(&again));
    assert!(!store.layer_path(&other).exists());
}

/// By a clock that was ahead, or one that is behind now.
#[test]
fn what_was_used_in_the_future_is_forgotten_first() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), Config { known_layers: 2, ..Config::default() }).unwrap();
    let now = record::now();
    let known = |name: &[u8], last_used| {
        let record = LayerRecord {
            whole: false,
            durable: false,
            boot: store.boot,
            last_used,
            from: String::new(),
            facts: facts(name),
        };
        (Digest::of(name), record)
    };
    let [ahead, old, new] = [known(b"ahead", now + 1_000_000), known(b"old", 5), known(b"new", now)];
    store.persist(&[ahead.clone(), old.clone(), new.clone()]).unwrap();
    store.forget_oldest().unwrap();
    let left = [&ahead, &old, &new].map(|(id, _)| store.record(id).is_some());
    assert_eq!(left, [false, true, true]);
}

#[test]
fn a_second_daemon_is_told_so() {
    let root = tempfile::tempdir().unwrap();
    let _store = open(root.path());
    let error = Store::open(root.path(), Config::default()).unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
}

#[test]
fn what_the_database_gives_up_is_taken_back() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let file = fs::OpenOptions::new().write(true).open(root.path().join("silk.redb")).unwrap();
    let reserved = || file.metadata().unwrap().blocks() * 512;
    assert!(reserved() >= RESERVED);
    // As redb does when records go; the file system drops what is behind the end.
    let len = file.metadata().unwrap().len();
    file.set_len(len + 4096).unwrap();
    file.set_len(len).unwrap();
    assert!(reserved() < RESERVED);
    store.check().unwrap();
    assert!(reserved() >= RESERVED && file.metadata().unwrap().len() == len);
}

/// A layer's tar has the bytes of files that only root may read in an image.
#[test]
fn others_on_the_host_read_nothing() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("layers/sha256")).unwrap();
    fs::write(root.path().join("silk.redb"), b"").unwrap();
    let _store = open(root.path());
    for (name, mode) in [("layers", 0o700), ("silk.redb", 0o600)] {
        assert_eq!(fs::metadata(root.path().join(name)).unwrap().mode() & 0o777, mode, "{name}");
    }
}

#[test]
fn what_a_newer_silk_has_written_stays_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let id = put(&store, b"newer");
    let path = store.layer_path(&id);
    let mut record = store.record(&id).unwrap().encode();
    record[0] += 1;
    let write = store.db.begin_write().unwrap();
    write.open_table(LAYERS).unwrap().insert(id.as_bytes(), &record[..]).unwrap();
    write.commit().unwrap();
    drop(store);
    let error = Store::open(root.path(), Config::default()).unwrap_err();
    assert!(matches!(error, StoreError::Version { diff_id, version } if diff_id == id && version == record[0]));
    assert!(path.join("data").exists() && path.join("toc").exists());
}

#[test]
fn a_table_of_another_silk_is_made_anew_for_a_whole_layer() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    // An empty tar, as far as its reader is concerned.
    let id = put(&store, &[0; 1024]);
    let toc = store.toc(&id).unwrap();
    let path = store.layer_path(&id).join("toc");
    let written = fs::read(&path).unwrap();
    let mut other = written.clone();
    other[8] += 1;
    fs::write(&path, &other).unwrap();
    assert_eq!(store.prove(&id).unwrap().finding, Finding::Good);
    assert_eq!(fs::read(&path).unwrap(), written);
    assert_eq!(store.toc(&id).unwrap(), toc);
    // What is damaged is another matter.
    other[8] -= 1;
    other[written.len() - 1] ^= 1;
    fs::write(&path, &other).unwrap();
    assert!(matches!(store.toc(&id), Err(StoreError::Toc { .. })));
}
