//! Watches containers start, and teaches what they touch: reads where layers are served by silkd; where the kernel shows them
//! alone, what it tells of its reads, or else its page cache.
//!
//! A watch is one thread of idle priority that looks a few times and ends when a look brings nothing new. Only starts that
//! read some layer first teach: elsewhere the pages of others are in memory, and reads do not come by. Whatever goes wrong
//! here, the container knows nothing of it.

use std::{
    collections::{HashMap, HashSet},
    io,
    ops::Range,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use silk_api::{
    Connect,
    containerd::services::containers::v1::{GetContainerRequest, containers_client::ContainersClient},
    namespaced,
};
use silk_layer::profile::{GRAIN, Seen, entrypoint};
use silk_model::Digest;
use silk_mount::{Device, Pages, Rung, Trace};
use silk_pull::{Puller, Watch};
use silk_snapshotter::RemoteChain;
use tokio::runtime::Handle;

use crate::views::StoreViews;

/// When to look, in seconds after the container's snapshot was made. A look at the page cache costs some 10 µs a file of the
/// image.
const LOOKS: [u64; 6] = [1, 2, 4, 8, 16, 30];

/// A look that brings nothing new before this says nothing: the container may not have begun.
const SETTLES: Duration = Duration::from_secs(4);

/// Fewer grains are no start: a client that only makes a container reads `/etc/passwd` and `/etc/group` for it. What a program of less than half
/// a megabyte touches is not worth a profile. Where bytes were brought before they were read, most reads are not seen.
const BEGUN: usize = 8;

/// A container that has not begun by then is not waited for.
const BEGINS: Duration = Duration::from_secs(8);

/// Starts that are watched at once: others teach nothing.
const WATCHES: usize = 4;

/// How the kernel's traces of all silkds of a machine are called.
const TRACES: &str = "silk-";

/// How long containerd may take to name a container.
const ANSWER: Duration = Duration::from_secs(2);

/// Grains that one watch takes: 4 GiB.
const MOST: usize = silk_layer::profile::MAX_GRAINS as usize;

/// What is needed to watch.
#[derive(Debug)]
pub struct Starts {
    views: Arc<StoreViews>,
    puller: Arc<Puller>,
    containerd: Connect,
    places: Arc<Places>,
}

/// Places of the watches that may go on at once.
#[derive(Debug)]
struct Places {
    state: Mutex<Free>,
    /// Told when [`Free`] changes.
    changed: Condvar,
}

#[derive(Debug)]
struct Free {
    /// Names of traces that nobody uses, [`WATCHES`] when nothing is watched.
    names: Vec<String>,
    stopping: bool,
}

/// A watch's place: the name of its trace.
#[derive(Debug)]
struct Place {
    name: String,
    places: Arc<Places>,
}

impl Places {
    fn free(&self) -> MutexGuard<'_, Free> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>) -> Option<Place> {
        let mut free = self.free();
        let name = if free.stopping { None } else { free.names.pop() }?;
        Some(Place { name, places: Arc::clone(self) })
    }

    /// Waits until a moment; says false as soon as watches are to end.
    fn sleep_until(&self, moment: Instant) -> bool {
        let left = moment.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.free(), left, |free| !free.stopping);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stopping
    }

    /// Ends all watches.
    fn stop(&self) {
        let mut free = self.free();
        free.stopping = true;
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(free, ANSWER, |free| free.names.len() < WATCHES);
        if waited.is_ok_and(|(_, late)| late.timed_out()) {
            tracing::warn!("traces of the kernel stay until silkd starts again");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.free().names.push(std::mem::take(&mut self.name));
        self.places.changed.notify_all();
    }
}

/// A layer of a container that is about to start.
#[derive(Debug)]
struct Layer {
    diff_id: Digest,
    /// Nobody read it before, so that every touch is seen.
    fresh: bool,
    /// What its mount has in memory; not where reads come by.
    pages: Option<Pages>,
    /// Some reads do not come by.
    warmed: Option<Arc<AtomicBool>>,
}

/// First touches, in order.
#[derive(Debug, Default)]
struct Touches {
    seen: HashSet<(Digest, u64)>,
    touches: Vec<(Digest, Range<u64>)>,
    /// Grains that these touch.
    grains: usize,
}

impl Touches {
    fn add(&mut self, layer: Digest, bytes: Range<u64>) {
        let new = self.known(layer, bytes.clone());
        if new > 0 {
            self.grains += new;
            self.touches.push((layer, bytes));
        }
    }

    /// Notes bytes; says how many grains are new.
    fn known(&mut self, layer: Digest, bytes: Range<u64>) -> usize {
        let before = self.seen.len();
        for grain in bytes.start / GRAIN..bytes.end.div_ceil(GRAIN) {
            if self.seen.len() < MOST {
                self.seen.insert((layer, grain));
            }
        }
        self.seen.len() - before
    }
}

impl Starts {
    /// Asks this containerd what containers run. `root` is silk's: one process uses it, so traces are named after it.
    pub fn new(root: &Path, views: Arc<StoreViews>, puller: Arc<Puller>, containerd: Connect) -> io::Result<Arc<Self>> {
        let id = root.metadata()?;
        let name = |nr| format!("{TRACES}{:x}-{:x}-{nr}", id.dev(), id.ino());
        if let Err(error) = Trace::sweep(TRACES) {
            tracing::debug!(%error, "the kernel does not tell of reads");
        }
        let free = Free { names: (0..WATCHES).map(name).collect(), stopping: false };
        let places = Places { state: Mutex::new(free), changed: Condvar::new() };
        Ok(Arc::new(Self { views, puller, containerd, places: Arc::new(places) }))
    }

    /// Ends all watches: they teach nothing. Waits for them, for [`ANSWER`] at most.
    pub fn stop(&self) {
        self.places.stop();
    }

    /// A snapshot was made on a chain, for a container that starts on it if `starts`. Returns within a millisecond; the watch
    /// goes on without the caller. Must be called on a thread of the runtime.
    pub fn begins(self: &Arc<Self>, chain: &RemoteChain, key: &str, starts: bool) {
        let layers: Vec<_> = (1..=chain.diff_ids.len()).filter_map(|end| self.layer(&chain.diff_ids[..end])).collect();
        if !starts || !chain.top || !layers.iter().any(|layer| layer.fresh) {
            return;
        }
        let Some(place) = self.places.take() else { return };
        let served = layers.iter().filter(|layer| layer.pages.is_none()).map(|layer| layer.diff_id);
        let watch = self.views.lazies.watch(served);
        let (starts, chain, key, runtime) = (Arc::clone(self), chain.clone(), key.to_owned(), Handle::current());
        let began = Instant::now();
        let thread = std::thread::Builder::new().name("silk-starts".to_owned());
        let spawned = thread.spawn(move || starts.watch(&chain, &key, (layers, watch, began), &runtime, place));
        if let Err(error) = spawned {
            tracing::warn!(%error, "a start is not watched");
        }
    }

    fn layer(&self, chain: &[Digest]) -> Option<Layer> {
        let diff_id = *chain.last()?;
        // A layer may lie in a chain twice.
        if chain.iter().filter(|id| **id == diff_id).count() > 1 {
            return None;
        }
        let (lazy, served) = (self.views.lazies.get(&diff_id), self.is_served(&diff_id));
        let (pages, fresh) = self.views.pages(chain)?;
        Some(Layer { diff_id, fresh, pages: (!served).then_some(pages), warmed: lazy.map(|lazy| lazy.warmed()) })
    }

    /// Do reads of the layer come by?
    fn is_served(&self, diff_id: &Digest) -> bool {
        self.views.views.mounts().rung() == Rung::Tree || self.views.lazies.get(diff_id).is_some()
    }

    fn watch(
        self: &Arc<Self>,
        chain: &RemoteChain,
        key: &str,
        (mut layers, watch, began): (Vec<Layer>, Watch, Instant),
        runtime: &Handle,
        place: Place,
    ) {
        let mut seer = Seer::new(&place.name, &layers, self.views.views.mounts().rung());
        if let Err(error) = silk_sys::priority::idle() {
            tracing::debug!(%error, "starts are watched at an ordinary priority");
        }
        let mut touches = Touches::default();
        if seer.trace.is_none() {
            for layer in layers.iter_mut().filter(|layer| !layer.fresh) {
                layer.look(&mut |layer, bytes| _ = touches.known(layer, bytes));
            }
        }
        let mut container = None;
        for look_at in LOOKS.map(Duration::from_secs) {
            if !place.places.sleep_until(began + look_at) {
                return;
            }
            if container.is_none() {
                container = runtime.block_on(self.container(key));
            }
            let before = touches.touches.len();
            watch.take().into_iter().for_each(|(layer, bytes)| touches.add(layer, bytes));
            seer.look(&mut layers, &mut |layer, bytes| touches.add(layer, bytes));
            let settles = if touches.grains >= BEGUN { SETTLES } else { BEGINS };
            if touches.touches.len() == before && look_at >= settles {
                break;
            }
        }
        let least = if layers.iter().any(Layer::is_warmed) { 1 } else { BEGUN };
        if touches.grains < least {
            tracing::debug!(key, "no start was seen");
            return;
        }
        // One that became whole meanwhile may be read where nobody sees it.
        for layer in layers.iter_mut().filter(|layer| layer.pages.is_none()) {
            let is_read = touches.touches.iter().any(|(id, _)| *id == layer.diff_id);
            layer.fresh &= is_read || self.is_served(&layer.diff_id);
        }
        let all = touches.seen.len() < MOST;
        let seen = Seen {
            entrypoint: container.unwrap_or_default(),
            touches: touches.touches,
            complete: layers.iter().filter(|layer| layer.is_seen() && all).map(|layer| layer.diff_id).collect(),
        };
        drop((layers, watch, seer));
        runtime.block_on(self.puller.learn_start(&chain.image, &chain.image_ref, seen));
    }

    /// The name of a container's entrypoint, by the key of its snapshot: containerd's is `<namespace>/<number>/<key>`, and all
    /// clients give a container and its snapshot one name.
    async fn container(&self, key: &str) -> Option<String> {
        let mut parts = key.splitn(3, '/');
        let (namespace, _, id) = (parts.next()?, parts.next()?, parts.next()?);
        let mut client = ContainersClient::new(self.containerd.channel.clone());
        let request = namespaced(namespace, GetContainerRequest { id: id.to_owned() });
        let answer = tokio::time::timeout(ANSWER, client.get(request)).await.ok()?.ok()?.into_inner().container?;
        (answer.snapshot_key == id).then_some(())?;
        args(&answer.spec?.value).map(|args| entrypoint(&args))
    }
}

/// Looks at mounts that the kernel shows alone.
#[derive(Debug)]
struct Seer {
    /// Where the kernel tells of reads.
    trace: Option<Trace>,
    /// The layers, by their mounts' devices.
    devices: HashMap<Device, usize>,
}

impl Seer {
    fn new(name: &str, layers: &[Layer], rung: Rung) -> Self {
        let devices = layers.iter().enumerate().filter_map(|(nr, layer)| {
            let pages = layer.pages.as_ref()?;
            Some((pages.device().ok()?, nr))
        });
        let devices: HashMap<_, _> = devices.collect();
        let trace = (rung == Rung::File && !devices.is_empty()).then(|| Trace::start(name)).and_then(|trace| {
            trace.inspect_err(|error| tracing::debug!(%error, "the kernel does not tell of reads")).ok()
        });
        Self { trace, devices }
    }

    /// Tells what was read since the last look, in order if the kernel tells it.
    fn look(&mut self, layers: &mut [Layer], each: &mut dyn FnMut(Digest, Range<u64>)) {
        let Some(trace) = &mut self.trace else {
            layers.iter_mut().for_each(|layer| layer.look(each));
            return;
        };
        let (reads, all) = trace.take().unwrap_or_else(|error| {
            tracing::debug!(%error, "what the kernel reads cannot be seen");
            (Vec::new(), false)
        });
        if !all {
            layers.iter_mut().for_each(|layer| layer.fresh = false);
        }
        for read in reads {
            let Some(layer) = self.devices.get(&read.device).map(|nr| &mut layers[*nr]) else { continue };
            let Some(pages) = &layer.pages else { continue };
            match pages.behind(read.nid, read.bytes) {
                Ok(found) => found.into_iter().for_each(|(layer, bytes)| each(layer, bytes)),
                Err(error) => {
                    tracing::debug!(diff_id = %layer.diff_id, %error, "a read of a layer is not understood");
                    layer.fresh = false;
                }
            }
        }
    }
}

impl Layer {
    /// Was every touch seen?
    fn is_seen(&self) -> bool {
        self.fresh && !self.is_warmed()
    }

    fn is_warmed(&self) -> bool {
        self.warmed.as_ref().is_some_and(|warmed| warmed.load(Ordering::Relaxed))
    }

    /// Tells what is in memory of it.
    fn look(&mut self, each: &mut dyn FnMut(Digest, Range<u64>)) {
        let Some(pages) = &self.pages else { return };
        match pages.now() {
            Ok(found) => found.into_iter().for_each(|(layer, bytes)| each(layer, bytes)),
            Err(error) => {
                self.fresh = false;
                tracing::debug!(diff_id = %self.diff_id, %error, "what is in memory of a layer cannot be seen");
            }
        }
    }
}

/// `process.args` of an OCI runtime specification.
fn args(spec: &[u8]) -> Option<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Spec {
        process: Process,
    }
    #[derive(serde::Deserialize)]
    struct Process {
        args: Vec<String>,
    }
    Some(serde_json::from_slice::<Spec>(spec).ok()?.process.args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_found_in_a_specification() {
        let spec = br#"{"ociVersion":"1.1.0","process":{"user":{},"args":["sh","-c","x"],"cwd":"/"},"root":{}}"#;
        assert_eq!(args(spec), Some(vec!["sh".into(), "-c".into(), "x".into()]));
        assert_eq!(args(b"{}"), None);
    }

    #[test]
    fn only_first_touches_count() {
        let (mut touches, layer) = (Touches::default(), Digest::of(b""));
        touches.known(layer, 0..1);
        for bytes in [0..10, 0..GRAIN + 1, GRAIN..GRAIN + 2, 5 * GRAIN..6 * GRAIN] {
            touches.add(layer, bytes);
        }
        assert_eq!(touches.touches, [(layer, 0..GRAIN + 1), (layer, 5 * GRAIN..6 * GRAIN)]);
    }
}
