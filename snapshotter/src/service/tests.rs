//! The service as containerd calls it, on layers that do what the test says.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use silk_model::{Class, Digest, IdMaps, IdRange, chain_ids};
use snapshots_server::Snapshots as _;
use tempfile::TempDir;
use tokio::sync::watch;
use tonic::Code;

use super::*;
use crate::{Claimed, Usage};

mod leases;
mod mapped;

/// The state of the one image that the tests pull.
#[derive(Debug)]
struct Fake {
    layers: Vec<Digest>,
    state: watch::Sender<State>,
    refuse: Mutex<bool>,
    /// Claims are not decided.
    hangs: Mutex<bool>,
    serves: Mutex<bool>,
    late: Mutex<Vec<String>>,
    waits: AtomicUsize,
    caller: Mutex<Option<Caller>>,
    left: Mutex<Vec<(Digest, Option<Digest>)>>,
    claims: AtomicUsize,
    used: Mutex<Vec<(String, bool)>>,
    mapped: Mutex<Vec<(u64, Vec<PathBuf>, IdMaps)>>,
    unmapped: Mutex<Vec<u64>>,
    /// Why the kernel does not map, if it does not.
    unmappable: Mutex<Option<NotReady>>,
    /// Of pulls of images with so many of the layers, by namespace.
    leases: Mutex<HashMap<String, Vec<(String, usize)>>>,
    mnt: PathBuf,
}

fn blob(diff_id: &Digest) -> Digest {
    Digest::of(diff_id.as_bytes())
}

#[tonic::async_trait]
impl Layers for Fake {
    async fn claim(&self, claim: Claim) -> Result<Claimed, Refused> {
        self.claims.fetch_add(1, Ordering::Relaxed);
        let number = claim.parent_chain.len();
        assert_eq!(claim.parent_chain, self.layers[..number]);
        assert_eq!(claim.chain_id, chain_ids(&self.layers)[number]);
        assert_eq!(claim.layer_digest, blob(&self.layers[number]));
        if *self.hangs.lock().unwrap() {
            std::future::pending::<()>().await;
        }
        match *self.refuse.lock().unwrap() {
            true => Err(Refused { reason: "no credentials".into() }),
            false => Ok(Claimed { diff_id: self.layers[number], top: number + 1 == self.layers.len() }),
        }
    }

    fn late(&self, _: &Claim, refused: &Refused) {
        self.late.lock().unwrap().push(refused.to_string());
    }

    fn left(&self, claim: &Claim, below: Option<Digest>) {
        self.left.lock().unwrap().push((claim.chain_id, below));
    }

    async fn ready(&self, chain: RemoteChain, caller: Caller) -> Result<(), NotReady> {
        *self.caller.lock().unwrap() = Some(caller);
        assert!(!chain.image_ref.contains("panic"), "as the test asked");
        self.waits.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.subscribe();
        let ended = state.wait_for(|s| *s != State::Coming).await.unwrap();
        match &*ended {
            State::Failed(cause) => Err(cause.clone()),
            _ => Ok(()),
        }
    }

    async fn leases(&self, namespace: &str, chain: &RemoteChain) -> Vec<String> {
        let all = self.leases.lock().unwrap().get(namespace).cloned().unwrap_or_default();
        all.into_iter().filter(|(_, layers)| *layers == chain.diff_ids.len()).map(|(lease, _)| lease).collect()
    }

    fn state(&self, _: &RemoteChain) -> State {
        self.state.borrow().clone()
    }

    fn lowers(&self, diff_ids: &[Digest]) -> Result<Vec<PathBuf>, NotReady> {
        Ok(diff_ids.iter().rev().map(|id| self.mnt.join(id.short())).collect())
    }

    fn usage(&self, _: &Digest) -> Option<Usage> {
        (*self.state.borrow() == State::Ready).then_some(Usage { size: 7, inodes: 3 })
    }

    fn changed(&self) {}

    fn mapped(&self, id: u64, lowers: &[PathBuf], maps: &IdMaps) -> Result<Vec<PathBuf>, NotReady> {
        if let Some(cause) = &*self.unmappable.lock().unwrap() {
            return Err(cause.clone());
        }
        self.mapped.lock().unwrap().push((id, lowers.to_vec(), maps.clone()));
        Ok((0..lowers.len()).map(|nr| format!("/mapped/{id}/{nr}").into()).collect())
    }

    fn serves(&self, lowers: &[PathBuf]) -> bool {
        *self.serves.lock().unwrap() && lowers.iter().any(|lower| lower.starts_with(&self.mnt))
    }

    fn unmapped(&self, id: u64) {
        self.unmapped.lock().unwrap().push(id);
    }

    fn used(&self, _: &RemoteChain, key: &str, starts: bool) {
        self.used.lock().unwrap().push((key.to_owned(), starts));
    }
}

struct Test {
    root: TempDir,
    layers: Arc<Fake>,
    service: Service,
}

impl Test {
    fn new(layers: u8) -> Self {
        let root = tempfile::tempdir().unwrap();
        let layers: Vec<_> = (1..=layers).map(|n| Digest::new([n; 32])).collect();
        let mnt = root.path().join("mnt");
        layers.iter().for_each(|id| std::fs::create_dir_all(mnt.join(id.short())).unwrap());
        let layers = Arc::new(Fake {
            layers,
            state: watch::Sender::new(State::Coming),
            refuse: Mutex::default(),
            hangs: Mutex::default(),
            serves: Mutex::default(),
            late: Mutex::default(),
            waits: AtomicUsize::default(),
            caller: Mutex::default(),
            left: Mutex::default(),
            claims: AtomicUsize::default(),
            used: Mutex::default(),
            mapped: Mutex::default(),
            unmapped: Mutex::default(),
            unmappable: Mutex::default(),
            leases: Mutex::default(),
            mnt,
        });
        let service = Self::serve(root.path(), &layers);
        Self { root, layers, service }
    }

    fn serve(root: &Path, layers: &Arc<Fake>) -> Service {
        let db = redb::Database::create(root.join("silk.redb")).unwrap();
        let snapshots = Snapshots::open(Arc::new(db), root).unwrap();
        Service::new(snapshots, Arc::<Fake>::clone(layers))
    }

    fn labels(&self, number: usize) -> HashMap<String, String> {
        let (diff_id, chain) = (self.layers.layers[number], chain_ids(&self.layers.layers));
        let pairs = [
            ("containerd.io/snapshot.ref", chain[number].to_string()),
            ("containerd.io/snapshot/cri.image-ref", "r.example/image:1".to_owned()),
            ("containerd.io/snapshot/cri.manifest-digest", Digest::of(b"manifest").to_string()),
            ("containerd.io/snapshot/cri.layer-digest", blob(&diff_id).to_string()),
        ];
        pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
    }

    async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
        lease: Option<&str>,
    ) -> Result<Vec<Mount>, Status> {
        let (snapshotter, key, parent) = ("silk".to_owned(), key.to_owned(), parent.to_owned());
        let request = leased(PrepareSnapshotRequest { snapshotter, key, parent, labels }, lease);
        self.service.prepare(request).await.map(|r| r.into_inner().mounts)
    }

    /// Prepares a layer as the metadata layer does, and finds the snapshot as it does.
    async fn layer(&self, number: usize, parent: &str, lease: Option<&str>) -> String {
        let labels = self.labels(number);
        let target = labels["containerd.io/snapshot.ref"].clone();
        let key = format!("k8s.io/{number}/extract-1-x {target}");
        let status = self.prepare(&key, parent, labels, lease).await.unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists, "{status}");
        let filter = format!(r#"labels."containerd.io/snapshot.ref"=={target},parent=="{parent}""#);
        let found = self.list(&[&filter]).await;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].parent, parent);
        found[0].name.clone()
    }

    async fn image(&self, lease: Option<&str>) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for number in 0..self.layers.layers.len() {
            let parent = names.last().cloned().unwrap_or_default();
            names.push(self.layer(number, &parent, lease).await);
        }
        names
    }

    async fn list(&self, filters: &[&str]) -> Vec<Info> {
        use tokio_stream::StreamExt as _;
        let filters = filters.iter().map(|f| (*f).to_owned()).collect();
        let request = Request::new(ListSnapshotsRequest { snapshotter: "silk".into(), filters });
        let parts: Vec<_> = self.service.list(request).await.unwrap().into_inner().collect().await;
        parts.into_iter().flat_map(|part| part.unwrap().info).collect()
    }

    async fn stat(&self, key: &str, lease: Option<&str>) -> Result<Info, Status> {
        stat(self.service.clone(), key.to_owned(), lease.map(str::to_owned)).await
    }

    /// A Stat in the background, once it waits.
    async fn waiter(&self, key: &str, lease: Option<&str>) -> tokio::task::JoinHandle<Result<Info, Status>> {
        let before = self.layers.waits.load(Ordering::Relaxed);
        let task = tokio::spawn(stat(self.service.clone(), key.to_owned(), lease.map(str::to_owned)));
        while self.layers.waits.load(Ordering::Relaxed) == before {
            assert!(!task.is_finished(), "it did not wait");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        task
    }

    fn set(&self, state: State) {
        self.layers.state.send_replace(state);
    }

    fn fail(&self, class: Class) {
        self.set(State::Failed(NotReady::new(class, "image r.example/image:1, layer 2: the registry is on fire")));
    }
}

fn leased<T>(message: T, lease: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(lease) = lease {
        request.metadata_mut().insert(waits::LEASE, lease.parse().unwrap());
    }
    request
}

async fn stat(service: Service, key: String, lease: Option<String>) -> Result<Info, Status> {
    let request = leased(StatSnapshotRequest { snapshotter: "silk".into(), key }, lease.as_deref());
    service.stat(request).await.map(|r| r.into_inner().info.unwrap())
}

#[tokio::test]
async fn every_layer_exists_and_the_top_one_waits() {
    for lease in [None, Some("lease")] {
        let test = Test::new(3);
        let names = test.image(lease).await;
        for name in &names[..2] {
            assert_eq!(&test.stat(name, lease).await.unwrap().name, name);
        }
        let waiter = test.waiter(&names[2], lease).await;
        for name in &names {
            assert_eq!(&test.stat(name, None).await.unwrap().name, name, "a list does not wait");
        }
        assert!(!waiter.is_finished());
        test.set(State::Ready);
        assert_eq!(waiter.await.unwrap().unwrap().name, names[2]);
        test.stat(&names[2], lease).await.unwrap();
    }
}

#[tokio::test]
async fn a_failed_pull_says_why_and_the_next_try_waits_again() {
    let test = Test::new(2);
    let names = test.image(Some("one")).await;
    let waiters = [test.waiter(&names[1], Some("one")).await, test.waiter(&names[1], Some("two")).await];
    test.fail(Class::NotFound);
    for waiter in waiters {
        let status = waiter.await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "not NotFound, which containerd tries again at once");
        assert_eq!(status.message(), "image r.example/image:1, layer 2: the registry is on fire");
    }
    assert_eq!(test.stat(&names[1], None).await.unwrap().name, names[1], "a list does not wait");
    // The pull is tried again: metadata knows the snapshots, so there is no Prepare.
    test.set(State::Coming);
    let lower = test.waiter(&names[0], Some("three")).await;
    let top = test.waiter(&names[1], Some("three")).await;
    let caller = Caller { namespace: "k8s.io".into(), lease: Some("three".into()) };
    assert_eq!(*test.layers.caller.lock().unwrap(), Some(caller), "its lease holds the manifest of that pull");
    test.set(State::Ready);
    lower.await.unwrap().unwrap();
    top.await.unwrap().unwrap();
}

#[tokio::test]
async fn one_waiter_goes_and_the_other_stays() {
    let test = Test::new(1);
    let names = test.image(None).await;
    assert_eq!(test.layer(0, "", None).await, names[0], "the snapshot is the same");
    let first = test.waiter(&names[0], None).await;
    let second = test.waiter(&names[0], None).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert!(!second.is_finished());
    test.set(State::Ready);
    second.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_layer_that_is_here_is_not_claimed_again() {
    let test = Test::new(2);
    let names = test.image(None).await;
    assert_eq!(test.layers.claims.load(Ordering::Relaxed), 2);
    test.image(None).await;
    assert_eq!(test.layers.claims.load(Ordering::Relaxed), 4);
    test.set(State::Ready);
    *test.layers.refuse.lock().unwrap() = true;
    assert_eq!(test.image(None).await, names, "the registry is not needed any more");
    assert_eq!(test.layers.claims.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn what_cannot_be_claimed_is_an_ordinary_snapshot() {
    let test = Test::new(2);
    *test.layers.refuse.lock().unwrap() = true;
    let mounts = test.prepare("k8s.io/1/extract a", "", test.labels(0), None).await.unwrap();
    assert_eq!(mounts[0].r#type, "bind");
    let mut labels = test.labels(0);
    labels.remove("containerd.io/snapshot/cri.manifest-digest");
    test.prepare("k8s.io/2/extract a", "", labels, None).await.unwrap();
    assert_eq!(test.layers.claims.load(Ordering::Relaxed), 1);
    // Its children are ordinary, too.
    *test.layers.refuse.lock().unwrap() = false;
    let commit = CommitSnapshotRequest {
        snapshotter: "silk".into(),
        name: "k8s.io/3/base".into(),
        key: "k8s.io/1/extract a".into(),
        labels: test.labels(0),
        parent: String::new(),
    };
    test.service.commit(Request::new(commit)).await.unwrap();
    test.prepare("k8s.io/4/extract b", "k8s.io/3/base", test.labels(1), None).await.unwrap();
    assert_eq!(test.layers.claims.load(Ordering::Relaxed), 1);
    let chain = chain_ids(&test.layers.layers);
    assert_eq!(*test.layers.left.lock().unwrap(), [(chain[1], Some(chain[0]))]);
}

#[tokio::test]
async fn a_claim_that_takes_too_long_is_given_up_with_its_cause() {
    let test = Test::new(1);
    *test.layers.hangs.lock().unwrap() = true;
    let mounts = test.prepare("k8s.io/1/extract a", "", test.labels(0), None).await.unwrap();
    assert_eq!(mounts[0].r#type, "bind");
    let said = "silk did not learn about r.example/image:1 within 5 s, from containerd and the registry";
    assert_eq!(*test.layers.late.lock().unwrap(), [said]);
}

#[tokio::test]
async fn containers_stand_on_the_mounts_of_their_layers() {
    let test = Test::new(2);
    let names = test.image(None).await;
    let prepare = |key, parent| test.prepare(key, parent, HashMap::new(), None);
    let status = prepare("k8s.io/9/c", &names[1]).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("r.example/image:1 is still being pulled"), "{status}");
    test.fail(Class::Denied);
    let status = prepare("k8s.io/9/c", &names[1]).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("on fire"), "{status}");
    test.set(State::Ready);
    let mounts = prepare("k8s.io/9/c", &names[1]).await.unwrap();
    let lower = |n: usize| test.layers.mnt.join(test.layers.layers[n].short()).display().to_string();
    let lowerdir = format!("lowerdir={}:{}", lower(1), lower(0));
    assert!(mounts[0].options.contains(&lowerdir), "{mounts:?}");
    // A layer that was built on top, and a container on that.
    let commit = CommitSnapshotRequest {
        snapshotter: "silk".into(),
        name: "k8s.io/10/built".into(),
        key: "k8s.io/9/c".into(),
        labels: HashMap::new(),
        parent: String::new(),
    };
    test.service.commit(Request::new(commit)).await.unwrap();
    let mounts = prepare("k8s.io/11/d", "k8s.io/10/built").await.unwrap();
    let built = test.service.0.snapshots.get("k8s.io/10/built").unwrap();
    let lowerdir =
        format!("lowerdir={}:{}:{}", test.service.0.snapshots.dirs.fs(built.id).display(), lower(1), lower(0));
    assert!(mounts[0].options.contains(&lowerdir), "{mounts:?}");
    let request = MountsRequest { snapshotter: "silk".into(), key: "k8s.io/11/d".into() };
    assert_eq!(test.service.mounts(Request::new(request)).await.unwrap().into_inner().mounts, mounts);
    let request = MountsRequest { snapshotter: "silk".into(), key: names[0].clone() };
    assert_eq!(test.service.mounts(Request::new(request)).await.unwrap_err().code(), Code::FailedPrecondition);
    // One layer alone is bound read-only.
    let (snapshotter, key, parent) = ("silk".to_owned(), "k8s.io/12/v".to_owned(), names[0].clone());
    let view = ViewSnapshotRequest { snapshotter, key, parent, labels: HashMap::new() };
    let mounts = test.service.view(Request::new(view)).await.unwrap().into_inner().mounts;
    assert_eq!((mounts[0].r#type.as_str(), mounts[0].source.as_str()), ("bind", lower(0).as_str()));
}

#[tokio::test]
async fn what_containerd_copies_is_no_start() {
    let test = Test::new(1);
    let names = test.image(None).await;
    test.set(State::Ready);
    let copy = format!("k8s.io/2/{}-remap", Digest::of(b"copy"));
    for key in ["k8s.io/1/c", &copy] {
        test.prepare(key, &names[0], HashMap::new(), None).await.unwrap();
    }
    assert_eq!(*test.layers.used.lock().unwrap(), [("k8s.io/1/c".to_owned(), true), (copy, false)]);
}

#[tokio::test]
async fn usage_is_unknown_until_it_is_final() {
    let test = Test::new(1);
    let names = test.image(None).await;
    let usage = |key: &str| {
        let request = UsageRequest { snapshotter: "silk".into(), key: key.into() };
        test.service.usage(Request::new(request))
    };
    assert_eq!(usage(&names[0]).await.unwrap_err().code(), Code::NotFound);
    test.set(State::Ready);
    assert_eq!(usage(&names[0]).await.unwrap().into_inner(), UsageResponse { size: 7, inodes: 3 });
    test.prepare("k8s.io/9/c", &names[0], HashMap::new(), None).await.unwrap();
    assert!(usage("k8s.io/9/c").await.unwrap().into_inner().inodes == 1);
}

#[tokio::test]
async fn a_removed_snapshot_is_gone_for_its_waiters() {
    let test = Test::new(1);
    let names = test.image(None).await;
    let waiter = test.waiter(&names[0], None).await;
    let request = RemoveSnapshotRequest { snapshotter: "silk".into(), key: names[0].clone() };
    test.service.remove(Request::new(request)).await.unwrap();
    test.set(State::Ready);
    assert_eq!(waiter.await.unwrap().unwrap_err().code(), Code::NotFound, "containerd prepares it again");
    assert!(test.service.0.snapshots.in_use().is_empty());
}

#[tokio::test]
async fn after_a_restart_a_pull_that_is_tried_again_waits() {
    let test = Test::new(1);
    let names = test.image(Some("one")).await;
    let Test { root, layers, service } = test;
    drop(service);
    let test = Test { service: Test::serve(root.path(), &layers), root, layers };
    let waiter = test.waiter(&names[0], Some("two")).await;
    test.set(State::Ready);
    waiter.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_panic_is_one_callers_error() {
    let test = Test::new(1);
    let mut labels = test.labels(0);
    labels.insert("containerd.io/snapshot/cri.image-ref".into(), "panic".into());
    test.prepare("k8s.io/1/x", "", labels, Some("l")).await.unwrap_err();
    let name = test.list(&[]).await[0].name.clone();
    assert_eq!(test.stat(&name, Some("l")).await.unwrap_err().code(), Code::Internal);
    assert_eq!(test.stat(&name, None).await.unwrap().name, name);
}

#[tokio::test]
async fn a_long_list_comes_in_parts() {
    use tokio_stream::StreamExt as _;
    let test = Test::new(1);
    for n in 0..250 {
        test.prepare(&format!("k8s.io/{n}/x"), "", HashMap::new(), None).await.unwrap();
    }
    let request = Request::new(ListSnapshotsRequest { snapshotter: "silk".into(), filters: vec![] });
    let parts: Vec<_> = test.service.list(request).await.unwrap().into_inner().collect().await;
    assert_eq!(parts.iter().map(|p| p.as_ref().unwrap().info.len()).collect::<Vec<_>>(), [100, 100, 50]);
    let request = Request::new(ListSnapshotsRequest { snapshotter: "silk".into(), filters: vec!["a b".into()] });
    assert_eq!(test.service.list(request).await.err().unwrap().code(), Code::InvalidArgument);
}

/// Who would lose its image if silkd ended now.
#[tokio::test]
async fn containers_on_what_is_served_are_counted_until_they_are_started_on_something_else() {
    let test = Test::new(1);
    let names = test.image(None).await;
    test.set(State::Ready);
    let (snapshots, serves) = (&test.service.0.snapshots, |serves| *test.layers.serves.lock().unwrap() = serves);
    let prepare = async |key: &str, parent: &str| test.prepare(key, parent, HashMap::new(), None).await.unwrap();
    serves(true);
    prepare("early", &names[0]).await;
    prepare("early too", &names[0]).await;
    prepare("of its own", "").await;
    assert_eq!(snapshots.on_served(), 2);
    serves(false);
    prepare("late", &names[0]).await;
    assert_eq!(snapshots.on_served(), 2, "who was started before stands on it still");
    let request = MountsRequest { snapshotter: "silk".into(), key: "early".into() };
    test.service.mounts(Request::new(request)).await.unwrap();
    assert_eq!(snapshots.on_served(), 1, "it was started again");
    let request = RemoveSnapshotRequest { snapshotter: "silk".into(), key: "early too".into() };
    test.service.remove(Request::new(request)).await.unwrap();
    assert_eq!(snapshots.on_served(), 0);
}
