//! What a place for shared knowledge can do, and the values that travel.
//!
//! The node's own store implements this too, in the daemon: it is the first of the list. A backend proves what it
//! returns as far as can be done without the layer itself, and says what it refused.

use std::{fmt, sync::Arc, time::SystemTime};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use silk_model::Digest;
use silk_registry::Repository;

use crate::{
    BackendError, EnvelopeError,
    envelope::{OVERHEAD, Opened},
    lies::Lies,
};

/// The image that something is known of.
#[derive(Debug, Clone)]
pub struct Image {
    /// Where it lies; none when its registry is not to be asked.
    pub repository: Option<Repository>,
    /// The digest of its manifest: of one platform's, not of an index. Without a repository, of whatever it stands for.
    pub manifest: Digest,
}

/// What is known of a layer. Both parts are what the layer's formats make of them, already compressed.
#[derive(Clone, PartialEq, Eq)]
pub struct LayerKnowledge {
    /// The digest of its blob, which it is found by.
    pub blob: Digest,
    /// The digest of the uncompressed layer.
    pub diff_id: Digest,
    /// Its table of contents.
    pub toc: Bytes,
    /// Its random-access index.
    pub index: Bytes,
}

/// What a value is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// The layer with this blob.
    Layer(Digest),
    /// The start profiles of the image with this manifest, or of whatever the caller lets a digest stand for.
    Profile(Digest),
}

/// A value to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// What is known of a layer.
    Layer(LayerKnowledge),
    /// The start profiles of the image.
    Profile(Bytes),
}

/// A value, and who gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<T> {
    /// The value, proved against its seal.
    pub value: T,
    /// For people: `redis 10.0.0.5:6379`, `referrers of registry.example/app`.
    pub source: String,
    /// What it is about.
    pub key: Key,
    /// Which value: another one of the same key has another tag.
    pub tag: Digest,
    /// Why it is believed, for people; empty where that is no question.
    pub(crate) why: &'static str,
    /// The place of its backend in the list; set by [`crate::Share`].
    pub(crate) backend: usize,
}

/// Makes one value of an image's start profiles and those that a backend has; none: what it has is to stay.
pub type Join = Arc<dyn Fn(&[Found<Bytes>]) -> Option<Bytes> + Send + Sync>;

/// What is asked of a backend.
#[derive(Debug)]
pub struct Query<'a> {
    /// The image that is about to be pulled.
    pub image: &'a Image,
    /// Blobs of the layers that nothing is known of yet.
    pub blobs: &'a [Digest],
    /// Whether a start profile is wanted as well.
    pub wants_profile: bool,
    pub(crate) lies: Option<&'a Lies>,
    /// Who asks is about to write what it makes of the answer.
    pub(crate) writes: bool,
}

/// What a backend has. Nothing of it is an error: what could not be had is missing, and `trouble` says why.
#[derive(Debug, Default)]
pub struct Answer {
    /// Of the blobs asked for, in any order.
    pub layers: Vec<Found<LayerKnowledge>>,
    /// Start profiles.
    pub profiles: Vec<Found<Bytes>>,
    /// What it holds but must not be believed.
    pub refused: Vec<Refused>,
    /// Why there may be less than there is.
    pub trouble: Option<String>,
    /// It was in trouble before, and was not asked now.
    pub is_away: bool,
    /// This image is none that it is asked about.
    pub is_spared: bool,
}

/// What became of values that were to be published.
#[derive(Debug, Default)]
pub struct Published {
    /// How many the backend has now; 0 also where it is not to take any.
    pub kept: u64,
    /// Those that it will not take, and why.
    pub refused: Vec<(Key, BackendError)>,
}

/// A value that was not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What it was to be about.
    pub key: Key,
    /// Where it lies.
    pub source: String,
    /// Why.
    pub why: EnvelopeError,
}

/// Whether a backend can be used now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It can.
    Up {
        /// Since when.
        since: SystemTime,
    },
    /// It cannot, and is not asked.
    Away {
        /// Since when.
        since: SystemTime,
        /// What happened.
        why: String,
    },
}

/// A place where knowledge is kept.
pub trait Backend: fmt::Debug + Send + Sync {
    /// For people: `redis 10.0.0.5:6379`.
    fn name(&self) -> String;

    /// What it knows of an image, in one round trip if that is possible, and within its own deadline. A backend that is
    /// away answers nothing at once.
    fn look_up<'a>(&'a self, query: &'a Query<'a>) -> BoxFuture<'a, Answer>;

    /// Keeps `items` of one image, in place of what it has of the same keys. Called in the background, one call at a time,
    /// and again after an error that may pass.
    fn publish<'a>(&'a self, image: &'a Image, items: &'a [Item]) -> BoxFuture<'a, Result<Published, BackendError>>;

    /// Whether it would take values of this image now: asked by who is about to spend minutes on making some. By
    /// default nothing speaks against it.
    fn admits<'a>(&'a self, _: &'a Image) -> BoxFuture<'a, Result<(), BackendError>> {
        async { Ok(()) }.boxed()
    }

    /// Removes the value of `key` if it still is the one with `tag`; says whether it was. Called as [`Backend::publish`].
    fn remove<'a>(&'a self, image: &'a Image, key: Key, tag: Digest) -> BoxFuture<'a, Result<bool, BackendError>>;

    /// Whether it can be used now.
    fn state(&self) -> State;

    /// How long to wait for more of the same image before publishing, so that it becomes one call.
    fn gathers(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

// === impls ===

impl Key {
    /// The digest of the blob or manifest.
    pub fn digest(&self) -> &Digest {
        match self {
            Self::Layer(digest) | Self::Profile(digest) => digest,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(blob) => write!(f, "the index of layer {blob}"),
            Self::Profile(manifest) => write!(f, "the start profile of {manifest}"),
        }
    }
}

impl Item {
    /// What it is about, as part of the image `manifest`.
    pub fn key(&self, manifest: Digest) -> Key {
        match self {
            Self::Layer(layer) => Key::Layer(layer.blob),
            Self::Profile(_) => Key::Profile(manifest),
        }
    }

    /// Bytes of its envelope.
    pub fn size(&self) -> usize {
        OVERHEAD
            + match self {
                Self::Layer(layer) => layer.toc.len() + layer.index.len(),
                Self::Profile(profile) => profile.len(),
            }
    }
}

impl<T> Found<T> {
    /// `tag` tells this value from others of the same key: a digest of it, for one.
    pub fn new(value: T, source: String, key: Key, tag: Digest) -> Self {
        Self { value, source, key, tag, why: "", backend: 0 }
    }

    /// Who gave it and why it is believed, for people: `redis 10.0.0.5:6379 (sealed with the fleet's key)`.
    pub fn origin(&self) -> String {
        let Self { source, why, .. } = self;
        if why.is_empty() { source.clone() } else { format!("{source} ({why})") }
    }

    /// The same finding with another value in it: who keeps one to distrust it later does not need its bytes.
    pub fn with<U>(self, value: U) -> Found<U> {
        let Self { source, key, tag, why, backend, .. } = self;
        Found { value, source, key, tag, why, backend }
    }
}

impl<'a> Query<'a> {
    /// A question of one's own: nobody is known to have lied.
    pub fn new(image: &'a Image, blobs: &'a [Digest], wants_profile: bool) -> Self {
        Self { image, blobs, wants_profile, lies: None, writes: false }
    }

    /// For an image's start profiles, to write them anew.
    pub(crate) fn of_writer(image: &'a Image) -> Self {
        Self { writes: true, ..Self::new(image, &[], true) }
    }

    /// Whether this value of `key` has lied before. It would be dropped from the answer; another one may be better.
    pub fn knows_as_lie(&self, key: Key, tag: Digest) -> bool {
        self.lies.is_some_and(|lies| lies.contains(key, tag))
    }
}

impl Answer {
    /// Sorts an opened envelope in; `unsealed` says why one without the fleet's key is believed.
    pub(crate) fn take(
        &mut self,
        key: Key,
        source: String,
        opened: Result<Opened, EnvelopeError>,
        unsealed: &'static str,
    ) {
        let is_sealed = opened.as_ref().is_ok_and(|opened| opened.is_sealed);
        let why = if is_sealed { "sealed with the fleet's key" } else { unsealed };
        match (opened, key) {
            (Err(why), key) => self.refused.push(Refused { key, source, why }),
            (Ok(Opened { diff_id, parts: [toc, index], tag, .. }), Key::Layer(blob)) => {
                let layer = LayerKnowledge { blob, diff_id, toc, index };
                self.layers.push(Found { why, ..Found::new(layer, source, key, tag) });
            }
            (Ok(Opened { parts: [profile, _], tag, .. }), Key::Profile(_)) => {
                self.profiles.push(Found { why, ..Found::new(profile, source, key, tag) });
            }
        }
    }
}

impl State {
    /// Whether it can be used.
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }
}

impl fmt::Debug for LayerKnowledge {
    /// Without the bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { blob, diff_id, toc, index } = self;
        write!(f, "LayerKnowledge({blob}, {diff_id}, {} + {} bytes)", toc.len(), index.len())
    }
}
