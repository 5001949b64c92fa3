//! The list of backends: asks them in order, publishes to all, remembers who lied.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use bytes::Bytes;
use futures::future::join_all;
use silk_model::Digest;
use tracing::{debug, warn};

use crate::{
    Answer, Backend, BackendError, Config, Found, Image, Item, Join, LayerKnowledge, Published, Query, ShareError,
    State, envelope::Keys, lies::Lies, limit::Limited, queue::Queue, redis::Redis, referrers::Referrers,
};

/// What is known about images, here and elsewhere.
#[derive(Debug)]
pub struct Share {
    members: Vec<Member>,
    lies: Lies,
}

/// Everything known of one image.
#[derive(Debug, Default)]
pub struct Knowledge {
    /// For each blob asked about, in that order.
    pub layers: Vec<Option<Found<LayerKnowledge>>>,
    /// Start profiles, of the first backend that has any.
    pub profiles: Vec<Found<Bytes>>,
}

/// How one backend does.
#[derive(Debug, Clone)]
pub struct BackendStatus {
    /// `redis 10.0.0.5:6379`.
    pub name: String,
    /// Whether it can be used, since when, and why not.
    pub state: State,
    /// Values it gave.
    pub hits: u64,
    /// Values it was asked for and did not have.
    pub misses: u64,
    /// Values it gave that were damaged, foreign, or found to be lies later.
    pub refused: u64,
    /// Values it took.
    pub published: u64,
    /// Values that were to be published and were dropped.
    pub dropped: u64,
    /// The last thing that went wrong, and when.
    pub trouble: Option<(SystemTime, String)>,
}

#[derive(Debug)]
struct Member {
    backend: Arc<dyn Backend>,
    record: Arc<Record>,
    queue: Queue,
}

/// What happened to one backend's values.
#[derive(Debug, Default)]
pub(crate) struct Record {
    hits: AtomicU64,
    misses: AtomicU64,
    refused: AtomicU64,
    pub published: AtomicU64,
    dropped: AtomicU64,
    trouble: Mutex<Option<(SystemTime, String)>>,
    refusals: Limited,
    drops: Limited,
    troubles: Limited,
}

// === impl Share ===

impl Share {
    /// `own` are asked before the configured ones, in order. Must be called on a tokio runtime; waits for nothing.
    ///
    /// # Errors
    /// The configuration contradicts itself, or the key cannot be read.
    pub fn new(config: &Config, own: Vec<Arc<dyn Backend>>) -> Result<Self, ShareError> {
        config.validate()?;
        let keys = Arc::new(Keys::load(config.key_file.as_deref())?);
        let mut backends = own;
        if let Some(redis) = Redis::open(&config.redis, &keys)? {
            backends.push(Arc::new(redis));
        }
        if let Some(referrers) = Referrers::open(&config.referrers, &keys)? {
            backends.push(Arc::new(referrers));
        }
        let members = backends.into_iter().map(|backend| {
            let record = Arc::new(Record::default());
            let queue = Queue::new(Arc::clone(&backend), Arc::clone(&record));
            Member { backend, record, queue }
        });
        Ok(Self { members: members.collect(), lies: Lies::default() })
    }

    /// Is there nobody to ask or to tell?
    pub fn is_alone(&self) -> bool {
        self.members.is_empty()
    }

    /// Everything known of `image`, whose layers have these `blobs`. Of what one backend lacks the layers are asked for at the next,
    /// and start profiles with them; for profiles alone only where nothing else is asked: no pull waits for them. Never
    /// fails and waits for each backend at most as long as it is given: one in trouble is skipped.
    pub async fn image(&self, image: &Image, blobs: &[Digest]) -> Knowledge {
        let mut layers: HashMap<Digest, Found<LayerKnowledge>> = HashMap::new();
        let mut profiles = Vec::new();
        for (place, member) in self.members.iter().enumerate() {
            let mut missing: Vec<Digest> = Vec::new();
            for blob in blobs {
                if !layers.contains_key(blob) && !missing.contains(blob) {
                    missing.push(*blob);
                }
            }
            let wants_profile = profiles.is_empty();
            if missing.is_empty() && !(wants_profile && blobs.is_empty()) {
                break;
            }
            let query = Query { image, blobs: &missing, wants_profile, lies: Some(&self.lies), writes: false };
            let mut answer = member.backend.look_up(&query).await;
            answer
                .layers
                .retain(|found| !self.lies.contains(found.key, found.tag) && missing.contains(&found.value.blob));
            answer.profiles.retain(|found| wants_profile && !self.lies.contains(found.key, found.tag));
            member.note(&query, &answer);
            for found in answer.layers {
                layers.insert(found.value.blob, Found { backend: place, ..found });
            }
            profiles.extend(answer.profiles.into_iter().map(|found| Found { backend: place, ..found }));
        }
        Knowledge { layers: blobs.iter().map(|blob| layers.get(blob).cloned()).collect(), profiles }
    }

    /// Publishes what is known of a layer, in the background, to all backends that do not have it.
    pub fn publish_layer(&self, image: &Image, layer: LayerKnowledge) {
        self.publish(image, Item::Layer(layer));
    }

    /// Publishes an image's start profiles, in the background. They replace what was there.
    pub fn publish_profile(&self, image: &Image, profile: Bytes) {
        self.publish(image, Item::Profile(profile));
    }

    /// Publishes an image's start profiles, in the background: at each backend, what `join` makes of those that are there.
    pub fn join_profile(&self, image: &Image, join: &Join) {
        self.members.iter().for_each(|member| member.queue.join(image, join));
    }

    fn publish(&self, image: &Image, item: Item) {
        for member in &self.members {
            member.queue.publish(image, item.clone());
        }
    }

    /// Publishes now, once, and says how it went at each backend: for who waits for it.
    pub async fn publish_now(&self, image: &Image, items: &[Item]) -> Vec<(String, Result<Published, BackendError>)> {
        let mut outcomes = Vec::new();
        for Member { backend, record, .. } in &self.members {
            let outcome = backend.publish(image, items).await;
            if let Ok(Published { kept, .. }) = &outcome {
                record.published.fetch_add(*kept, Ordering::Relaxed);
            }
            outcomes.push((backend.name(), outcome));
        }
        outcomes
    }

    /// Asks each backend whether it would take values of `image` now.
    pub async fn admits(&self, image: &Image) -> Vec<(String, Result<(), BackendError>)> {
        let ask = |member: &Member| {
            let backend = Arc::clone(&member.backend);
            async move { (backend.name(), backend.admits(image).await) }
        };
        join_all(self.members.iter().map(ask)).await
    }

    /// What each backend has of these layers, in the order of [`Share::admits`]: for who looks what is left to publish. No
    /// backend is asked in place of another, and nothing of it is counted.
    pub async fn holdings(&self, image: &Image, blobs: &[Digest]) -> Vec<Answer> {
        let query = Query { image, blobs, wants_profile: false, lies: Some(&self.lies), writes: true };
        join_all(self.members.iter().map(|member| member.backend.look_up(&query))).await
    }

    /// `found` has lied: it is not used again, whoever offers it, its source is named in the log, and it is removed there in
    /// the background if that is allowed.
    pub fn distrust<T>(&self, image: &Image, found: &Found<T>, why: &str) {
        let Found { source, key, tag, backend, .. } = found;
        warn!("{key} from {source} is wrong and not used any more: {why}");
        self.lies.remember(*key, *tag);
        if let Some(member) = self.members.get(*backend) {
            member.record.refused.fetch_add(1, Ordering::Relaxed);
            member.record.note_trouble(format!("{key} from {source} was wrong: {why}"));
            member.queue.remove(image, *key, *tag);
        }
    }

    /// How each backend does, in the order in which they are asked.
    pub fn status(&self) -> Vec<BackendStatus> {
        let status = |Member { backend, record, .. }: &Member| BackendStatus {
            name: backend.name(),
            state: backend.state(),
            hits: record.hits.load(Ordering::Relaxed),
            misses: record.misses.load(Ordering::Relaxed),
            refused: record.refused.load(Ordering::Relaxed),
            published: record.published.load(Ordering::Relaxed),
            dropped: record.dropped.load(Ordering::Relaxed),
            trouble: record.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        self.members.iter().map(status).collect()
    }
}

// === impl Member ===

impl Member {
    fn note(&self, query: &Query<'_>, answer: &Answer) {
        let record = &self.record;
        let hits = (answer.layers.len() + answer.profiles.len().min(1)) as u64;
        let asked = (query.blobs.len() + usize::from(query.wants_profile)) as u64;
        record.hits.fetch_add(hits, Ordering::Relaxed);
        // What was not answered is not known to be missing, and what was refused is there.
        if !answer.is_away && !answer.is_spared && answer.trouble.is_none() {
            let good: HashSet<_> = answer
                .layers
                .iter()
                .map(|found| found.key)
                .chain(answer.profiles.iter().map(|found| found.key))
                .collect();
            let bad: HashSet<_> = answer.refused.iter().map(|refused| refused.key).collect();
            let refused = bad.difference(&good).count() as u64;
            record.misses.fetch_add(asked.saturating_sub(hits + refused), Ordering::Relaxed);
        }
        record.refused.fetch_add(answer.refused.len() as u64, Ordering::Relaxed);
        debug!(backend = self.backend.name(), hits, asked, refused = answer.refused.len(), "looked up");
        for refused in &answer.refused {
            let message = format!("{} from {} is not believed: {}", refused.key, refused.source, refused.why);
            record.refusals.warn(format_args!("{message}"));
            record.note_trouble(message);
        }
        if let Some(trouble) = &answer.trouble {
            record.troubles.warn(format_args!("{} did not answer: {trouble}", self.backend.name()));
            record.note_trouble(trouble.clone());
        }
    }
}

// === impl Record ===

impl Record {
    fn note_trouble(&self, message: String) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some((SystemTime::now(), message));
    }

    /// How many were dropped.
    #[cfg(test)]
    pub(crate) fn count_dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// A value was not published, or not removed.
    pub(crate) fn dropped(&self, message: fmt::Arguments<'_>) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.drops.warn(message);
        self.note_trouble(message.to_string());
    }
}
