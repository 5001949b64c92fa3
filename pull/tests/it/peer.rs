//! A place where nodes share, in memory: it says what the test wants it to say, and keeps what it was told.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use silk_model::Digest;
use silk_share::{Answer, Backend, BackendError, Found, Image, Item, Key, LayerKnowledge, Published, Query, State};
use silk_store::Known;
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub struct Peer {
    layers: Mutex<HashMap<Digest, LayerKnowledge>>,
    profiles: Mutex<HashMap<Digest, Bytes>>,
    removed: Mutex<Vec<Key>>,
    /// It does not answer questions.
    pub mute: AtomicBool,
    /// It does not answer before it is told to.
    pub hangs: AtomicBool,
    pub resume: Notify,
    /// How often it was asked about layers.
    pub asked: AtomicUsize,
}

impl Peer {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// It says this of a layer.
    pub fn say(&self, known: &Known) {
        let Known { diff_id, blob, toc, index, .. } = known;
        let (toc, index) = (toc.clone().into(), index.clone().into());
        let known = LayerKnowledge { blob: *blob, diff_id: *diff_id, toc, index };
        self.layers.lock().unwrap().insert(*blob, known);
    }

    pub fn say_profile(&self, manifest: Digest, profile: impl Into<Bytes>) {
        self.profiles.lock().unwrap().insert(manifest, profile.into());
    }

    pub fn layer(&self, blob: &Digest) -> Option<LayerKnowledge> {
        self.layers.lock().unwrap().get(blob).cloned()
    }

    pub fn profile(&self, manifest: &Digest) -> Option<Bytes> {
        self.profiles.lock().unwrap().get(manifest).cloned()
    }

    /// What nodes found to be lies.
    pub fn removed(&self) -> Vec<Key> {
        self.removed.lock().unwrap().clone()
    }
}

fn tag(parts: [&Bytes; 2]) -> Digest {
    Digest::of(&parts.map(|part| part.to_vec()).concat())
}

impl Backend for Peer {
    fn name(&self) -> String {
        "a peer".into()
    }

    fn look_up<'a>(&'a self, query: &'a Query<'a>) -> BoxFuture<'a, Answer> {
        async move {
            self.asked.fetch_add(usize::from(!query.blobs.is_empty()), Ordering::Relaxed);
            if self.hangs.load(Ordering::Relaxed) {
                self.resume.notified().await;
            }
            if self.mute.load(Ordering::Relaxed) {
                return Answer { trouble: Some("it is mute".into()), ..Answer::default() };
            }
            let found = |known: LayerKnowledge| {
                let (key, tag) = (Key::Layer(known.blob), tag([&known.toc, &known.index]));
                Found::new(known, self.name(), key, tag)
            };
            let layers = query.blobs.iter().filter_map(|blob| self.layer(blob)).map(found).collect();
            let manifest = query.image.manifest;
            let profile = self.profile(&manifest).filter(|_| query.wants_profile);
            let found = |profile: Bytes| {
                let tag = tag([&profile, &Bytes::new()]);
                Found::new(profile, self.name(), Key::Profile(manifest), tag)
            };
            Answer { layers, profiles: profile.into_iter().map(found).collect(), ..Answer::default() }
        }
        .boxed()
    }

    fn publish<'a>(&'a self, image: &'a Image, items: &'a [Item]) -> BoxFuture<'a, Result<Published, BackendError>> {
        async move {
            for item in items {
                match item {
                    Item::Layer(known) => drop(self.layers.lock().unwrap().insert(known.blob, known.clone())),
                    Item::Profile(profile) => self.say_profile(image.manifest, profile.clone()),
                }
            }
            Ok(Published { kept: items.len() as u64, ..Published::default() })
        }
        .boxed()
    }

    fn remove<'a>(&'a self, _: &'a Image, key: Key, _: Digest) -> BoxFuture<'a, Result<bool, BackendError>> {
        async move {
            self.removed.lock().unwrap().push(key);
            self.layers.lock().unwrap().remove(key.digest());
            Ok(true)
        }
        .boxed()
    }

    fn state(&self) -> State {
        State::Up { since: std::time::SystemTime::UNIX_EPOCH }
    }
}
