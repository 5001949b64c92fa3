//! A node without containerd: a store in a temporary directory and a puller on it.

use std::{
    collections::HashMap,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use silk_model::{Class, Digest, chain_ids};
use silk_pull::{
    Caller, Claim, Claimed, Config, Contents, ContentsError, Held, ImageError, Lazies, Puller, ReadError, Refused,
    Seams, Show, ShowError, State,
};
use silk_registry::Registry;
use silk_share::{Backend, Share};
use silk_store::Store;
pub use silk_testkit::eventually;
use silk_testkit::{Fake, PATIENCE, Pushed};
use tempfile::TempDir;

/// containerd's content store, and what its leases hold.
#[derive(Debug, Default)]
struct Documents {
    blobs: Mutex<HashMap<Digest, Vec<u8>>>,
    held: Mutex<HashMap<String, Vec<Held>>>,
}

impl Contents for Documents {
    fn read<'a>(&'a self, _: &'a str, digest: &'a Digest, _: u64) -> BoxFuture<'a, Result<Vec<u8>, ContentsError>> {
        let found = self.blobs.lock().unwrap().get(digest).cloned();
        Box::pin(async move { found.ok_or(ContentsError { digest: *digest, message: "not found".into() }) })
    }

    fn held<'a>(&'a self, _: &'a str, lease: Option<&'a str>) -> BoxFuture<'a, Result<Vec<Held>, String>> {
        let held = self.held.lock().unwrap();
        let held: Vec<_> = match lease {
            Some(lease) => held.get(lease).cloned().unwrap_or_default(),
            None => held.values().flatten().cloned().collect(),
        };
        Box::pin(async move { Ok(held) })
    }
}

/// Remembers which chains were shown, and which layers were to be shown anew; cannot show chains with a layer that the test
/// broke.
#[derive(Debug, Default)]
struct Shown {
    shown: Mutex<Vec<Vec<Digest>>>,
    renewed: Mutex<Vec<(Digest, bool)>>,
    warmed: Mutex<Vec<(Digest, Range<u64>)>>,
    broken: Mutex<Option<(Digest, Class)>>,
    /// So many more fail, whatever is shown.
    fail: Mutex<Option<(u32, Class)>>,
    /// These bytes of a layer have to be here.
    needs: Mutex<Option<Needs>>,
    /// Layers that cannot be shown by names from elsewhere: until it is whole, one of them, whoever is to blame, breaks the other.
    misnamed: Mutex<Option<(Misnamed, Arc<Store>)>>,
}

/// Bytes of a layer, and who knows whether they are here.
type Needs = (Arc<Lazies>, Digest, Range<u64>);

/// Whose names are wrong, and which layer's tree cannot be made by them.
#[derive(Debug, Clone, Copy)]
pub struct Misnamed {
    pub liar: Digest,
    pub fails: Digest,
}

impl Show for Shown {
    fn possible(&self) -> Result<(), String> {
        Ok(())
    }

    fn lazily(&self) -> bool {
        true
    }

    fn renew(&self, diff_id: &Digest, lied: bool) {
        self.renewed.lock().unwrap().push((*diff_id, lied));
    }

    fn put_away(&self, _: Duration) {}

    fn warm(&self, diff_id: &Digest, bytes: &[Range<u64>]) -> bool {
        self.warmed.lock().unwrap().extend(bytes.iter().map(|bytes| (*diff_id, bytes.clone())));
        true
    }

    fn forget(&self, _: &Digest) {}

    fn show(&self, diff_ids: &[Digest]) -> Result<(), ShowError> {
        let failed = |class, missing| Err(ShowError { diff_id: None, class, missing, source: "for a moment".into() });
        if let Some((left, class)) = self.fail.lock().unwrap().as_mut().filter(|(left, _)| *left > 0) {
            *left -= 1;
            return failed(*class, Vec::new());
        }
        if let Some((lazies, diff_id, bytes)) = &*self.needs.lock().unwrap()
            && lazies.get(diff_id).is_some_and(|lazy| !lazy.has(bytes))
        {
            return failed(Class::Transient, vec![(*diff_id, bytes.clone())]);
        }
        if let Some((diff_id, class)) = self.broken.lock().unwrap().filter(|(broken, _)| diff_ids.contains(broken)) {
            let (missing, source) = (Vec::new(), "as the test asked".into());
            return Err(ShowError { diff_id: Some(diff_id), class, missing, source });
        }
        let misnamed = self.misnamed.lock().unwrap();
        if let Some((Misnamed { liar, fails }, _)) = misnamed.as_ref().filter(|(it, store)| !store.whole(&it.liar)) {
            assert!(diff_ids.contains(liar) && diff_ids.contains(fails));
            let (missing, source) = (Vec::new(), "a tree that cannot be".into());
            return Err(ShowError { diff_id: Some(*fails), class: Class::Corrupt, missing, source });
        }
        self.shown.lock().unwrap().push(diff_ids.to_vec());
        Ok(())
    }
}

/// The pull that asks.
pub fn caller(lease: Option<&str>) -> Caller {
    Caller { namespace: "k8s.io".into(), lease: lease.map(str::to_owned) }
}

pub struct Node {
    pub store: Arc<Store>,
    pub puller: Arc<Puller>,
    pub lazies: Arc<Lazies>,
    config: Config,
    documents: Arc<Documents>,
    shown: Arc<Shown>,
    others: Vec<Arc<dyn Backend>>,
    root: TempDir,
    silence: u64,
}

/// Seconds after which a silent registry is given up, twice, where no test waits for that: longer than a machine pauses.
const SILENCE: u64 = 10;

/// No first contact ends because the machine is slow.
fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config { first_contact_millis: 30_000, ..Config::default() };
    change(&mut config);
    config
}

impl Node {
    /// Bytes of layers that were brought to the page cache, in order.
    pub fn warmed(&self) -> Vec<(Digest, Range<u64>)> {
        self.shown.warmed.lock().unwrap().clone()
    }

    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::waiting_with(SILENCE, change)
    }

    /// A node that asks others.
    pub fn sharing(others: Vec<Arc<dyn Backend>>) -> Self {
        Self::sharing_with(others, |_| {})
    }

    pub fn sharing_with(others: Vec<Arc<dyn Backend>>, change: impl FnOnce(&mut Config)) -> Self {
        Self::open(config(change), Arc::default(), others, tempfile::tempdir().unwrap(), SILENCE)
    }

    /// A node whose store lies there.
    pub fn on(disk: &Path) -> Self {
        Self::open(config(|_| {}), Arc::default(), vec![], tempfile::tempdir_in(disk).unwrap(), SILENCE)
    }

    /// A node that asks a mirror first.
    pub fn mirrored(registry: &Fake, mirror: &Fake, change: impl FnOnce(&mut Config)) -> Self {
        let root = tempfile::tempdir().unwrap();
        put_mirror(root.path(), registry, mirror);
        Self::open(config(change), Arc::default(), vec![], root, SILENCE)
    }

    /// From now on the operator wants a mirror asked first.
    pub fn mirror(&self, registry: &Fake, mirror: &Fake) {
        put_mirror(self.root.path(), registry, mirror);
    }

    /// A node that decodes one layer at a time and never gives a silent registry up.
    pub fn patient() -> Self {
        Self::patient_with(|config| config.layers_at_once = 1)
    }

    /// A node that never gives a silent registry up.
    pub fn patient_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::waiting_with(3600, change)
    }

    /// A node that gives a silent registry up after so many seconds, twice.
    pub fn waiting(secs: u64) -> Self {
        Self::waiting_with(secs, |_| {})
    }

    pub fn waiting_with(secs: u64, change: impl FnOnce(&mut Config)) -> Self {
        Self::open(config(change), Arc::default(), vec![], tempfile::tempdir().unwrap(), secs)
    }

    fn open(
        config: Config,
        documents: Arc<Documents>,
        others: Vec<Arc<dyn Backend>>,
        root: TempDir,
        silence: u64,
    ) -> Self {
        let store = Arc::new(Store::open(root.path(), silk_store::Config::default()).unwrap());
        // No waiting: a fault is given up after one more try.
        let registry = silk_registry::Config {
            attempts: 2,
            retry_delay_ms: 1,
            stall_timeout_secs: silence,
            response_timeout_secs: silence,
            docker_config: Some("/nonexistent/config.json".into()),
            hosts_dirs: vec![root.path().join("certs.d")],
            ..Default::default()
        };
        let shown = Arc::new(Shown::default());
        let share = Arc::new(Share::new(&silk_share::Config::default(), others.clone()).unwrap());
        let seams = Seams { contents: Arc::clone(&documents) as Arc<_>, show: Arc::clone(&shown) as Arc<_>, share };
        let registry = Registry::new(registry).unwrap();
        let lazies = Lazies::new(Arc::clone(&store), &config);
        let puller = Puller::new(config.clone(), registry, Arc::clone(&lazies), seams).unwrap();
        Self { store, puller, lazies, config, documents, shown, others, root, silence }
    }

    /// The daemon ends and starts again.
    pub fn restart(self) -> Self {
        let Self { store, puller, lazies, config, documents, others, root, silence, .. } = self;
        for diff_id in lazies.list() {
            lazies.stop(&diff_id);
        }
        drop((puller, lazies));
        // A pull that has just ended still syncs its layers.
        let start = Instant::now();
        while Arc::strong_count(&store) > 1 {
            assert!(start.elapsed() < PATIENCE, "somebody still has the store");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        drop(store);
        Self::open(config, documents, others, root, silence)
    }

    /// containerd prepares all layers.
    pub async fn claim(&self, pushed: &Pushed) -> Result<Vec<Claimed>, Refused> {
        {
            let mut documents = self.documents.blobs.lock().unwrap();
            documents.insert(pushed.manifest_digest, pushed.manifest.to_vec());
            documents.insert(pushed.config_digest, pushed.config.to_vec());
        }
        let diff_ids: Vec<_> = pushed.layers.iter().map(|l| l.diff_id).collect();
        let mut claimed = Vec::new();
        for (below, (layer, chain_id)) in pushed.layers.iter().zip(chain_ids(&diff_ids)).enumerate() {
            let claim = Claim {
                namespace: "k8s.io".into(),
                reference: pushed.reference.clone(),
                manifest: pushed.manifest_digest,
                blob: layer.blob_digest,
                chain_id,
                below,
            };
            claimed.push(self.puller.claim(claim).await?);
        }
        assert!(claimed.last().is_some_and(|c| c.top));
        Ok(claimed)
    }

    pub async fn ready(&self, pushed: &Pushed) -> Result<(), ImageError> {
        self.puller.ready(&pushed.manifest_digest, &pushed.reference, &caller(None)).await
    }

    /// containerd pulls `pushed` with a lease, knows its chain already, and so asks for that of the image `as_image`.
    pub async fn ready_again(&self, pushed: &Pushed, lease: &str, as_image: &Pushed) -> Result<(), ImageError> {
        self.hold(pushed, lease);
        self.puller.ready(&as_image.manifest_digest, &as_image.reference, &caller(Some(lease))).await
    }

    /// containerd has fetched an image's documents for a pull.
    pub fn hold(&self, pushed: &Pushed, lease: &str) {
        let reference: silk_registry::Reference = pushed.reference.parse().unwrap();
        let host = reference.host().split(':').next().unwrap().to_owned();
        let repositories = vec![(host, reference.path().to_owned())];
        let mut held = self.documents.held.lock().unwrap();
        let mut blobs = self.documents.blobs.lock().unwrap();
        for (digest, bytes) in [(pushed.config_digest, &pushed.config), (pushed.manifest_digest, &pushed.manifest)] {
            blobs.insert(digest, bytes.to_vec());
            let size = bytes.len() as u64;
            held.entry(lease.to_owned())
                .or_default()
                .insert(0, Held { digest, size, repositories: repositories.clone(), leases: vec![lease.to_owned()] });
        }
    }

    pub fn state(&self, pushed: &Pushed) -> Result<State, ImageError> {
        self.puller.state(&pushed.manifest_digest, &pushed.reference)
    }

    pub async fn pull(&self, pushed: &Pushed) -> Result<(), ImageError> {
        self.claim(pushed).await.unwrap();
        self.ready(pushed).await
    }

    /// So many more images cannot be shown.
    pub fn fail_shows(&self, count: u32, class: Class) {
        *self.shown.fail.lock().unwrap() = Some((count, class));
    }

    /// A layer cannot be shown before these bytes are here.
    pub fn show_needs(&self, diff_id: Digest, bytes: Range<u64>) {
        *self.shown.needs.lock().unwrap() = Some((Arc::clone(&self.lazies), diff_id, bytes));
    }

    /// From now on a layer cannot be shown.
    pub fn break_layer(&self, diff_id: Digest, class: Class) {
        *self.shown.broken.lock().unwrap() = Some((diff_id, class));
    }

    /// From now on what others say of the names is wrong.
    pub fn misname(&self, misnamed: Misnamed) {
        *self.shown.misnamed.lock().unwrap() = Some((misnamed, Arc::clone(&self.store)));
    }

    /// A layer's tar as the store has it.
    pub fn data(&self, diff_id: &Digest) -> Vec<u8> {
        let mut data = std::fs::read(self.store.layer_path(diff_id).join("data")).unwrap();
        data.truncate(usize::try_from(self.store.size(diff_id).unwrap()).unwrap());
        data
    }

    pub fn shown(&self) -> Vec<Vec<Digest>> {
        self.shown.shown.lock().unwrap().clone()
    }
}

impl Node {
    /// Which layers were to be shown anew, and whether their names had lied.
    pub fn renewed(&self) -> Vec<(Digest, bool)> {
        self.shown.renewed.lock().unwrap().clone()
    }

    /// Takes what another node knows of the image's layers.
    pub fn learn_from(&self, other: &Self, pushed: &Pushed) {
        for layer in &pushed.layers {
            self.store.learn(&other.store.known(&layer.diff_id).unwrap(), "a peer").unwrap();
        }
    }

    /// Reads of a layer's data file as the kernel would.
    pub async fn read(&self, diff_id: &Digest, offset: u64, len: usize) -> Result<Vec<u8>, ReadError> {
        let Some(lazy) = self.lazies.get(diff_id) else {
            // While names that lied are replaced it is neither.
            self.whole(diff_id).await;
            let data = self.data(diff_id);
            return Ok(data[offset as usize..data.len().min(offset as usize + len)].to_vec());
        };
        let (to, read) = tokio::sync::oneshot::channel();
        lazy.read(offset, len, Box::new(|answer| drop(to.send(answer.map(<[u8]>::to_vec)))));
        read.await.expect("a read is answered")
    }

    /// Returns when the layer is whole; fails the test when that takes a minute.
    pub async fn whole(&self, diff_id: &Digest) {
        let whole = || self.store.whole(diff_id) && self.lazies.get(diff_id).is_none();
        eventually(&format!("{diff_id} is whole"), whole).await;
    }
}

fn put_mirror(root: &Path, registry: &Fake, mirror: &Fake) {
    let dir = root.join("certs.d").join(registry.host());
    std::fs::create_dir_all(&dir).unwrap();
    let hosts = format!("server = \"{}\"\n[host.\"{}\"]\n", registry.url(), mirror.url());
    std::fs::write(dir.join("hosts.toml"), hosts).unwrap();
}
