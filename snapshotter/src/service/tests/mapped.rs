//! Containers in user namespaces, and the mapped layers that they stand on.

use super::*;

fn user_namespace(uids: &str, gids: &str) -> HashMap<String, String> {
    [(idmap::UID_MAP, uids), (idmap::GID_MAP, gids)].map(|(label, value)| (label.to_owned(), value.to_owned())).into()
}

fn lowerdir(mounts: &[Mount]) -> Vec<String> {
    let option = mounts[0].options.iter().find_map(|o| o.strip_prefix("lowerdir="));
    option.unwrap().split(':').map(str::to_owned).collect()
}

impl Test {
    async fn commit(&self, key: &str, name: &str) {
        let (snapshotter, name, key) = ("silk".into(), name.into(), key.into());
        let request = CommitSnapshotRequest { snapshotter, name, key, labels: HashMap::new(), parent: String::new() };
        self.service.commit(Request::new(request)).await.unwrap();
    }

    async fn remove(&self, key: &str) {
        let request = RemoveSnapshotRequest { snapshotter: "silk".into(), key: key.into() };
        self.service.remove(Request::new(request)).await.unwrap();
    }

    fn lower(&self, number: usize) -> PathBuf {
        self.layers.mnt.join(self.layers.layers[number].short())
    }

    fn id(&self, name: &str) -> u64 {
        self.service.0.snapshots.get(name).unwrap().id
    }
}

#[tokio::test]
async fn privileged_a_user_namespace_stands_on_mapped_layers() {
    let test = Test::new(2);
    let names = test.image(None).await;
    test.set(State::Ready);
    let labels = user_namespace("0:1000:10,10:5000:90", "0:2000:100");
    let mounts = test.prepare("k8s.io/9/c", &names[1], labels.clone(), None).await.unwrap();
    let id = test.id("k8s.io/9/c");
    assert_eq!(lowerdir(&mounts), [format!("/mapped/{id}/0"), format!("/mapped/{id}/1")]);
    assert!(!mounts[0].options.iter().any(|o| o.contains("idmap") || o.contains("uidmap")), "{mounts:?}");
    let range = |container, host, length| IdRange { container, host, length };
    let maps = IdMaps { uids: vec![range(0, 1000, 10), range(10, 5000, 90)], gids: vec![range(0, 2000, 100)] };
    let asked = (id, vec![test.lower(1), test.lower(0)], maps);
    assert_eq!(*test.layers.mapped.lock().unwrap(), std::slice::from_ref(&asked));
    assert_eq!(test.service.0.snapshots.mapped(), [id].into());
    // The next silkd.
    let Test { root, layers, service } = test;
    drop(service);
    let test = Test { service: Test::serve(root.path(), &layers), root, layers };
    let request = MountsRequest { snapshotter: "silk".into(), key: "k8s.io/9/c".into() };
    assert_eq!(test.service.mounts(Request::new(request)).await.unwrap().into_inner().mounts, mounts);
    assert_eq!(*test.layers.mapped.lock().unwrap(), [asked.clone(), asked]);
    // One layer alone is bound.
    let (snapshotter, key, parent) = ("silk".to_owned(), "k8s.io/12/v".to_owned(), names[0].clone());
    let view = ViewSnapshotRequest { snapshotter, key, parent, labels };
    let mounts = test.service.view(Request::new(view)).await.unwrap().into_inner().mounts;
    let of_view = test.id("k8s.io/12/v");
    assert_eq!((mounts[0].r#type.as_str(), &mounts[0].source), ("bind", &format!("/mapped/{of_view}/0")));
    // Another without.
    let mounts = test.prepare("k8s.io/13/d", &names[1], HashMap::new(), None).await.unwrap();
    assert_eq!(lowerdir(&mounts), [1, 0].map(|nr| test.lower(nr).display().to_string()));
    for key in ["k8s.io/9/c", "k8s.io/12/v"] {
        test.remove(key).await;
    }
    assert_eq!(*test.layers.unmapped.lock().unwrap(), [id, of_view]);
}

#[tokio::test]
async fn privileged_what_cannot_be_mapped_is_not_made() {
    let test = Test::new(1);
    let names = test.image(None).await;
    test.set(State::Ready);
    *test.layers.unmappable.lock().unwrap() = Some(NotReady::new(Class::Unsupported, "leave remap-ids off"));
    let labels = user_namespace("0:1000:10", "0:1000:10");
    let status = test.prepare("k8s.io/9/c", &names[0], labels, None).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("leave remap-ids off"), "{status}");
    assert_eq!(test.layers.unmapped.lock().unwrap().len(), 1);
    assert_eq!(test.stat("k8s.io/9/c", None).await.unwrap_err().code(), Code::NotFound);
    test.prepare("k8s.io/9/c", &names[0], HashMap::new(), None).await.unwrap();
}

#[tokio::test]
async fn privileged_what_has_the_owners_already_is_not_mapped_again() {
    let test = Test::new(1);
    let names = test.image(None).await;
    test.set(State::Ready);
    let labels = user_namespace("0:1000:10", "0:2000:10");
    // The copy of a containerd that does not know that silk maps.
    test.prepare("k8s.io/5/sha256:0-remap", &names[0], HashMap::new(), None).await.unwrap();
    test.commit("k8s.io/5/sha256:0-remap", "k8s.io/6/sha256:0").await;
    test.service.0.snapshots.update("k8s.io/6/sha256:0", &HashMap::new(), &[]).unwrap();
    let mounts = test.prepare("k8s.io/7/c", "k8s.io/6/sha256:0", labels.clone(), None).await.unwrap();
    let fs = |name| test.service.0.snapshots.dirs.fs(test.id(name)).display().to_string();
    assert_eq!(lowerdir(&mounts), [fs("k8s.io/6/sha256:0"), test.lower(0).display().to_string()]);
    assert_eq!(*test.layers.mapped.lock().unwrap(), []);
    // What a container wrote there has the host's IDs; the layer below has not.
    test.prepare("k8s.io/8/c", &names[0], labels.clone(), None).await.unwrap();
    test.commit("k8s.io/8/c", "k8s.io/9/written").await;
    assert_eq!(test.layers.unmapped.lock().unwrap().last(), Some(&test.id("k8s.io/9/written")));
    let mounts = test.prepare("k8s.io/10/d", "k8s.io/9/written", labels.clone(), None).await.unwrap();
    let id = test.id("k8s.io/10/d");
    assert_eq!(lowerdir(&mounts), [fs("k8s.io/9/written"), format!("/mapped/{id}/0")]);
    assert_eq!(test.layers.mapped.lock().unwrap().last().unwrap().1, [test.lower(0)]);
    // An ordinary layer that containerd unpacked is mapped as any.
    test.prepare("k8s.io/11/e", &names[0], HashMap::new(), None).await.unwrap();
    test.commit("k8s.io/11/e", "k8s.io/12/unpacked").await;
    test.prepare("k8s.io/13/f", "k8s.io/12/unpacked", labels, None).await.unwrap();
    let unpacked = PathBuf::from(fs("k8s.io/12/unpacked"));
    assert_eq!(test.layers.mapped.lock().unwrap().last().unwrap().1, [unpacked, test.lower(0)]);
}
