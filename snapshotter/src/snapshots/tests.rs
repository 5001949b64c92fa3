//! The rules of containerd's snapshots, what survives a restart, and remote snapshots.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::labels::REF;

fn open(root: &TempDir) -> Arc<Snapshots> {
    let db = Database::create(root.path().join("silk.redb")).unwrap();
    Snapshots::open(Arc::new(db), root.path()).unwrap()
}

fn new(kind: Kind, key: &str, parent: &str) -> New {
    New { kind, key: key.into(), parent: parent.into(), labels: labels(&[("l", key)]) }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn last(name: &str, key: &str) -> Final {
    Final { name: name.into(), key: key.into(), parent: String::new(), labels: labels(&[("c", name)]) }
}

/// A committed snapshot.
fn commit(snapshots: &Snapshots, name: &str, parent: &str) {
    let key = format!("{name} in the making");
    snapshots.create(new(Kind::Active, &key, parent), &[]).unwrap();
    snapshots.commit(last(name, &key)).unwrap();
}

fn remote(image: u8, layer: u8, top: bool) -> Remote {
    Remote {
        namespace: "k8s.io".into(),
        image_ref: format!("image {image}"),
        image: Digest::new([image; 32]),
        chain_id: Digest::new([layer + 100; 32]),
        diff_id: Digest::new([layer; 32]),
        top,
    }
}

fn names(snapshots: &Snapshots) -> Vec<String> {
    snapshots.list(&Filters::parse(&[]).unwrap()).iter().map(|s| s.name.clone()).collect()
}

#[test]
fn a_snapshot_becomes_final() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(&root);
    let active = snapshots.create(new(Kind::Active, "a/b c", ""), &[]).unwrap();
    assert_eq!((active.kind, active.created), (Kind::Active, active.updated));
    fs::write(snapshots.dirs.fs(active.id).join("file"), vec![0; 100_000]).unwrap();
    snapshots.commit(last("name", "a/b c")).unwrap();
    assert!(matches!(snapshots.get("a/b c"), Err(SnapshotError::NotFound(_))));
    let committed = snapshots.get("name").unwrap();
    assert_eq!((committed.kind, committed.id), (Kind::Committed, active.id));
    assert_eq!(committed.labels, labels(&[("c", "name")]), "labels are replaced, not inherited");
    assert_eq!(committed.created, committed.updated);
    assert!(committed.usage.inodes == 2 && committed.usage.size > 100_000, "{:?}", committed.usage);
}

#[test]
fn what_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(&root);
    commit(&snapshots, "base", "");
    snapshots.create(new(Kind::Active, "active", "base"), &[]).unwrap();
    snapshots.create(new(Kind::View, "view", "base"), &[]).unwrap();
    let create = |key, parent| snapshots.create(new(Kind::Active, key, parent), &[]).unwrap_err();
    assert!(matches!(create("active", "base"), SnapshotError::Exists(_)));
    assert!(matches!(create("base", ""), SnapshotError::Exists(_)));
    assert!(matches!(create("x", "missing"), SnapshotError::NoParent(_)));
    assert!(matches!(create("x", "active"), SnapshotError::ParentNotCommitted(_)));
    assert!(matches!(create("", ""), SnapshotError::Nameless));
    let commit = |name, key| snapshots.commit(last(name, key)).unwrap_err();
    assert!(matches!(commit("x", "missing"), SnapshotError::NotFound(_)));
    assert!(matches!(commit("x", "view"), SnapshotError::NotActive { kind: Kind::View, .. }));
    assert!(matches!(commit("x", "base"), SnapshotError::NotActive { kind: Kind::Committed, .. }));
    assert!(matches!(commit("base", "active"), SnapshotError::Exists(_)));
    let other = Final { parent: "other".into(), ..last("x", "active") };
    assert!(matches!(snapshots.commit(other), Err(SnapshotError::OtherParent { .. })));
    let error = snapshots.remove("base").unwrap_err();
    assert!(matches!(error, SnapshotError::HasChildren(_)) && error.to_string().contains("remove"));
    assert!(matches!(snapshots.remove("missing"), Err(SnapshotError::NotFound(_))));
    for gone in ["active", "view", "base"] {
        snapshots.remove(gone).unwrap();
    }
    assert!(names(&snapshots).is_empty());
}

#[test]
fn a_commit_may_bring_the_parent() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(&root);
    commit(&snapshots, "base", "");
    snapshots.create(new(Kind::Active, "key", ""), &[]).unwrap();
    let missing = Final { parent: "missing".into(), ..last("name", "key") };
    assert!(matches!(snapshots.commit(missing), Err(SnapshotError::NoParent(_))));
    snapshots.commit(Final { parent: "base".into(), ..last("name", "key") }).unwrap();
    assert_eq!(snapshots.get("name").unwrap().parent, "base");
    assert!(matches!(snapshots.remove("base"), Err(SnapshotError::HasChildren(_))));
}

#[test]
fn labels_change_and_nothing_else_does() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(&root);
    let before = snapshots.create(new(Kind::Active, "key", ""), &[]).unwrap();
    let given: HashMap<_, _> = [("l", "2"), ("x.y/z", "3"), ("e", "")].map(|(k, v)| (k.into(), v.into())).into();
    let update = |fields: &[&str]| {
        let fields: Vec<_> = fields.iter().map(|f| (*f).to_owned()).collect();
        snapshots.update("key", &given, &fields).map(|s| s.labels.clone())
    };
    assert_eq!(update(&["labels.x.y/z"]).unwrap(), labels(&[("l", "key"), ("x.y/z", "3")]));
    assert_eq!(update(&["labels.l", "labels.e"]).unwrap(), labels(&[("l", "2"), ("x.y/z", "3")]));
    assert_eq!(update(&["labels.missing", "labels.l"]).unwrap(), labels(&[("l", "2"), ("x.y/z", "3")]));
    assert!(matches!(update(&["labels", "parent"]), Err(SnapshotError::Field { .. })));
    assert_eq!(update(&[]).unwrap(), labels(&[("l", "2"), ("x.y/z", "3")]));
    let after = snapshots.get("key").unwrap();
    assert_eq!((after.created, &after.parent), (before.created, &before.parent));
    assert!(after.updated != before.updated);
}

#[test]
fn everything_is_there_after_a_restart_and_leftovers_are_not() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(&root);
    commit(&snapshots, "base", "");
    let active = snapshots.create(new(Kind::Active, "active", "base"), &[]).unwrap();
    let gone = snapshots.create(new(Kind::Active, "gone", ""), &[]).unwrap();
    snapshots.remove("gone").unwrap();
    let base = snapshots.commit_remote("", labels(&[]), remote(1, 1, false)).unwrap();
    snapshots.commit_remote(&base.name, labels(&[(REF, "r")]), remote(1, 2, true)).unwrap();
    let everything = Filters::parse(&[]).unwrap();
    let before = (snapshots.list(&everything), snapshots.in_use(), snapshots.remote_chains());
    drop(snapshots);
    // A crash between making a directory and the transaction.
    fs::create_dir_all(root.path().join("snapshots/99/fs")).unwrap();
    let snapshots = open(&root);
    assert_eq!((snapshots.list(&everything), snapshots.in_use(), snapshots.remote_chains()), before);
    assert!(snapshots.clean_up(Duration::from_secs(60)));
    assert!(!root.path().join("snapshots/99").exists());
    assert!(snapshots.dirs.fs(active.id).exists() && !snapshots.dirs.fs(gone.id).exists());
    let next = snapshots.create(new(Kind::Active, "next", ""), &[]).unwrap();
    assert!(next.id > gone.id, "IDs are never used twice");
}

#[test]
fn nothing_stands_on_a_chain_that_lost_a_record() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(&root);
    commit(&snapshots, "base", "");
    commit(&snapshots, "middle", "base");
    let low = snapshots.commit_remote("", labels(&[]), remote(1, 1, false)).unwrap();
    let top = snapshots.commit_remote(&low.name, labels(&[]), remote(1, 2, true)).unwrap();
    assert_eq!(snapshots.stack("middle").unwrap().ordinary.len(), 2);
    assert_eq!(snapshots.chain(&top).unwrap().diff_ids.len(), 2);
    drop(snapshots);
    let db = Database::create(root.path().join("silk.redb")).unwrap();
    let write = db.begin_write().unwrap();
    let table = redb::TableDefinition::<&str, &[u8]>::new("snapshots");
    for name in ["base", &low.name] {
        write.open_table(table).unwrap().insert(name, [1, 0xff].as_slice()).unwrap();
    }
    write.commit().unwrap();
    drop(db);
    let snapshots = open(&root);
    for (name, lost) in [("middle", "base"), (&top.name, &low.name)] {
        let refused = snapshots.stack(name).unwrap_err();
        assert!(matches!(&refused, SnapshotError::NoParent(parent) if parent == lost), "{refused}");
    }
    assert!(snapshots.chain(&top).is_none() && snapshots.remote_chains().is_empty());
}

#[test]
fn a_remote_layer_has_one_snapshot_on_each_parent() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(&root);
    commit(&snapshots, "ordinary", "");
    let base = snapshots.commit_remote("", labels(&[(REF, "r")]), remote(1, 1, false)).unwrap();
    let again = snapshots.commit_remote("", labels(&[]), remote(1, 1, false)).unwrap();
    assert_eq!(base, again);
    let other = snapshots.commit_remote("ordinary", labels(&[]), remote(1, 1, false)).unwrap();
    assert_ne!(base.name, other.name);
    assert_eq!(snapshots.in_use()[&Digest::new([1; 32])], 2);
    assert!(matches!(
        snapshots.commit_remote("missing", labels(&[]), remote(1, 2, true)),
        Err(SnapshotError::NoParent(_))
    ));
    snapshots.remove(&other.name).unwrap();
    assert_eq!(snapshots.in_use()[&Digest::new([1; 32])], 1);
    assert!(!snapshots.dirs.fs(base.id).exists());
    assert_eq!(names(&snapshots), [base.name.as_str(), "ordinary"], "remote ones are listed first");
}

#[test]
fn chains_are_of_the_images_that_need_them() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(&root);
    let base = snapshots.commit_remote("", labels(&[]), remote(1, 1, false)).unwrap();
    let one = snapshots.commit_remote(&base.name, labels(&[]), remote(1, 2, true)).unwrap();
    let two = snapshots.commit_remote(&base.name, labels(&[]), remote(2, 3, true)).unwrap();
    let images = |snapshots: &Snapshots| {
        let mut chains: Vec<_> =
            snapshots.remote_chains().into_iter().map(|c| (c.image_ref, c.diff_ids.len(), c.top)).collect();
        chains.sort();
        chains
    };
    let [image_1, image_2] = ["image 1", "image 2"].map(str::to_owned);
    assert_eq!(images(&snapshots), [(image_1.clone(), 2, true), (image_2.clone(), 2, true)]);
    snapshots.remove(&one.name).unwrap();
    assert_eq!(images(&snapshots), [(image_2.clone(), 2, true)]);
    // A container on the base, by an image that ends there.
    snapshots.create(new(Kind::Active, "container", &base.name), &[root.path().to_owned()]).unwrap();
    assert_eq!(images(&snapshots), [(image_1, 1, false), (image_2, 2, true)]);
    let stack = snapshots.stack(&two.name).unwrap();
    assert!(stack.ordinary.is_empty());
    let (name, chain) = stack.remote.unwrap();
    assert_eq!((name, chain.diff_ids), (two.name.clone(), vec![Digest::new([1; 32]), Digest::new([3; 32])]));
}

#[test]
fn a_layer_claimed_again_belongs_to_the_latest_image() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(&root);
    let base = snapshots.commit_remote("", labels(&[]), remote(1, 1, true)).unwrap();
    let child = snapshots.commit_remote(&base.name, labels(&[]), remote(3, 5, true)).unwrap();
    let again = snapshots.commit_remote("", labels(&[]), remote(2, 1, false)).unwrap();
    assert_eq!((&again.name, again.id), (&base.name, base.id));
    assert_eq!(again.remote.as_ref().unwrap().image_ref, "image 2");
    assert_eq!(snapshots.chain(&child).unwrap().diff_ids.len(), 2);
    assert!(matches!(snapshots.remove(&base.name), Err(SnapshotError::HasChildren(_))));
    assert_eq!(snapshots.in_use()[&Digest::new([1; 32])], 1);
}

#[test]
fn a_remote_layer_keeps_the_label_it_is_found_by() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(&root);
    let chain_id = remote(1, 1, true).chain_id.to_string();
    let base = snapshots.commit_remote("", labels(&[(REF, &chain_id)]), remote(1, 1, true)).unwrap();
    let stolen = HashMap::from([(REF.to_owned(), "sha256:other".to_owned())]);
    let after = snapshots.update(&base.name, &stolen, &[]).unwrap();
    assert_eq!(after.labels, labels(&[(REF, &chain_id)]));
}

#[test]
fn privileged_the_upper_directory_has_the_owner_of_what_it_hides() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(&root);
    let lower = root.path().join("lower");
    fs::create_dir(&lower).unwrap();
    std::os::unix::fs::chown(&lower, Some(12), Some(34)).unwrap();
    let owner_of = |id| snapshots.dirs.fs(id).metadata().map(|m| (m.uid(), m.gid())).unwrap();
    let on = |new: New| owner_of(snapshots.create(new, std::slice::from_ref(&lower)).unwrap().id);
    commit(&snapshots, "base", "");
    assert_eq!(on(new(Kind::Active, "a", "base")), (12, 34));
    let mapped = labels(&[(idmap::UID_MAP, "0:1000:10"), (idmap::GID_MAP, "0:2000:10")]);
    assert_eq!(on(New { labels: mapped, ..new(Kind::Active, "b", "base") }), (1000, 2000));
    let bad = New { labels: labels(&[(idmap::UID_MAP, "nonsense")]), ..new(Kind::Active, "c", "base") };
    assert!(matches!(snapshots.create(bad, &[]), Err(SnapshotError::IdMap(_))));
}
