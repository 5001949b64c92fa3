//! OCI referrers: what is known of an image as an artifact in the image's own repository.
//!
//! One artifact an image, found by the registry's list of what refers to it. Writing merges: the newest revision is read,
//! what is new replaces what it is about, and the whole goes up as the next revision, in place of those before. Two nodes that
//! write at the same time leave two artifacts of one revision; readers take both, the next writer merges them. A revision of
//! which nothing can be believed hides none that is older ([`history`]). Layout: `docs/formats/share.md`.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use silk_model::{Class, Digest};
use silk_registry::{Error, MANIFEST_TYPES, Repository, Selector};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    Answer, Backend, BackendError, EnvelopeError, Image, Item, Key, Published, Query, ReferrersConfig, ShareError,
    State,
    envelope::{Keys, Opened, SEAL, Trust},
    seal,
};

mod artifact;
mod history;

use artifact::{Artifact, Descriptor, EMPTY};
use history::History;

/// The largest value that is read: the index of a layer of 2 GB has about 10 MB.
const MAX_VALUE: u64 = 32 << 20;
/// Bytes of one image's values that are read; layers beyond them are pulled as if nothing were known.
const MAX_ANSWER: u64 = 96 << 20;
/// Values of one key that are read of one artifact. An honest one has a single value, or some that were written at the same time.
const MAX_CANDIDATES: usize = 4;
/// How long a registry is not asked after it failed: its image is being pulled from it, so somebody else is waiting for it.
const REST: Duration = Duration::from_secs(30);
/// Registries whose rest is remembered.
const MAX_RESTING: usize = 256;
/// Why what has no key's seal is believed.
const UNSEALED: &str = "unsigned, which share.referrers.trust_unsigned allows";
/// How long one publication may take, its retries included.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(300);
/// A pull's layers end within seconds of each other: one artifact for all, instead of one revision each.
const GATHERS: Duration = Duration::from_secs(2);

/// Artifacts at registries.
#[derive(Debug)]
pub(crate) struct Referrers {
    config: ReferrersConfig,
    keys: Arc<Keys>,
    /// When which repository failed, and why.
    resting: Mutex<HashMap<String, Rest>>,
    started: SystemTime,
}

#[derive(Debug)]
struct Rest {
    until: Instant,
    since: SystemTime,
    why: String,
}

/// What the next revision is made of.
struct Base {
    artifact: Artifact,
    /// It is one artifact, and the newest.
    is_alone: bool,
    /// What the next revision takes the place of.
    replaces: Vec<Digest>,
}

impl Base {
    fn of(artifacts: &[Artifact], revision: u64) -> Self {
        let mut merged = Artifact::default();
        artifacts.iter().for_each(|artifact| merged.absorb(artifact));
        Self { artifact: merged.at(revision), is_alone: artifacts.len() == 1, replaces: Vec::new() }
    }
}

/// How far a lookup is.
struct Reading {
    wanted: Vec<Key>,
    tried: HashSet<(Key, Digest)>,
    /// Bytes that may still be read.
    left: AtomicU64,
    answer: Answer,
}

/// What became of the candidates for a key.
struct Tried {
    key: Key,
    outcomes: Vec<Result<Result<Opened, EnvelopeError>, Error>>,
    /// One was not read: it would have been too much.
    is_over: bool,
}

impl Referrers {
    /// None if they are neither read nor written.
    pub(crate) fn open(config: &ReferrersConfig, keys: &Arc<Keys>) -> Result<Option<Self>, ShareError> {
        if !config.discover && !config.publish {
            return Ok(None);
        }
        if !config.trust_unsigned && keys.is_empty() {
            return Err(ShareError::NothingToTrust);
        }
        let (config, keys) = (config.clone(), Arc::clone(keys));
        Ok(Some(Self { config, keys, resting: Mutex::default(), started: SystemTime::now() }))
    }

    fn trust(&self) -> Trust {
        if self.config.trust_unsigned { Trust::Unsigned } else { Trust::Sealed }
    }

    /// What comes until `end`.
    async fn read(&self, repository: &Repository, query: &Query<'_>, end: Instant) -> Answer {
        let layers = query.blobs.iter().map(|blob| Key::Layer(*blob));
        let profile = query.wants_profile.then_some(Key::Profile(query.image.manifest));
        let wanted = layers.chain(profile).collect();
        let (tried, left, answer) = (HashSet::new(), AtomicU64::new(MAX_ANSWER), Answer::default());
        let mut reading = Reading { wanted, tried, left, answer };
        let all = async {
            let mut history = History::of(repository, &query.image.manifest, query.writes)
                .await
                .map_err(|error| error.to_string())?;
            while !reading.wanted.is_empty() {
                let artifacts = history.next().await.map_err(|error| error.to_string())?;
                if artifacts.is_empty() {
                    break;
                }
                self.read_revision(repository, query, &artifacts, &mut reading).await;
            }
            Ok(())
        };
        match timeout_at(end, all).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => reading.answer.trouble = Some(why),
            Err(_) => reading.answer.trouble = Some(format!("{} did not come in time", source(repository))),
        }
        reading.answer
    }

    /// Takes what a revision has. What is left of what is wanted is to be looked for in older ones: all that was not good in this one; what
    /// it does not have, too, if nothing of it was good.
    async fn read_revision(
        &self,
        repository: &Repository,
        query: &Query<'_>,
        artifacts: &[Artifact],
        reading: &mut Reading,
    ) {
        let Reading { wanted, tried, left, answer } = reading;
        let left = &*left;
        let mut reads = FuturesUnordered::new();
        for key in wanted.iter() {
            let mut candidates = candidates(artifacts, *key);
            candidates.retain(|one| tried.insert((*key, one.digest)));
            if !candidates.is_empty() {
                reads.push(self.first(repository, *key, candidates, query, left));
            }
        }
        let (mut good, mut bad, mut over) = (HashSet::new(), HashSet::new(), HashSet::new());
        while let Some(Tried { key, outcomes, is_over }) = reads.next().await {
            bad.insert(key);
            if is_over {
                over.insert(key);
            }
            for outcome in outcomes {
                match outcome {
                    Ok(opened) => {
                        if opened.is_ok() {
                            good.insert(key);
                        }
                        answer.take(key, source(repository), opened, UNSEALED);
                    }
                    Err(error) => answer.trouble = Some(error.to_string()),
                }
            }
        }
        let is_done = |key: &Key| good.contains(key) || over.contains(key);
        wanted.retain(|key| !is_done(key) && (good.is_empty() || bad.contains(key)));
    }

    /// Reads the candidates for `key` until one is good; of start profiles all, which are one when they are joined. Each is
    /// taken off the bytes that are `left` before it is read, good or not.
    async fn first(
        &self,
        repository: &Repository,
        key: Key,
        candidates: Vec<&Descriptor>,
        query: &Query<'_>,
        left: &AtomicU64,
    ) -> Tried {
        let mut outcomes = Vec::new();
        for candidate in candidates {
            // Those that are larger are not read.
            if candidate.size <= MAX_VALUE && !take(left, candidate.size) {
                return Tried { key, outcomes, is_over: true };
            }
            match self.proved(repository, key, candidate, self.trust()).await {
                Ok(Ok(opened)) if query.knows_as_lie(key, opened.tag) => {}
                outcome => {
                    let is_good = matches!(outcome, Ok(Ok(_)));
                    outcomes.push(outcome);
                    if is_good && matches!(key, Key::Layer(_)) {
                        break;
                    }
                }
            }
        }
        Tried { key, outcomes, is_over: false }
    }

    /// Reads a value. One that the registry does not have, or not like this, is as bad as a damaged one.
    async fn proved(
        &self,
        repository: &Repository,
        key: Key,
        value: &Descriptor,
        trust: Trust,
    ) -> Result<Result<Opened, EnvelopeError>, Error> {
        if value.size > MAX_VALUE {
            return Ok(Err(EnvelopeError::TooLarge { limit: MAX_VALUE }));
        }
        match fetch(repository, value, 0).await {
            Ok(bytes) => Ok(seal::open(bytes, key, &self.keys, trust).await),
            Err(error) if matches!(error.class(), Class::NotFound | Class::Corrupt) => {
                Ok(Err(EnvelopeError::Gone(error.to_string())))
            }
            Err(error) => Err(error),
        }
    }

    /// The newest revision of which something can be believed: whoever claims to be newer must not make the next writer take away
    /// what is good. If there is none, the newest; then nothing is taken away.
    async fn base(&self, repository: &Repository, manifest: Digest) -> Result<Base, Error> {
        let mut history = History::of(repository, &manifest, true).await?;
        let mut newest = None;
        loop {
            let artifacts = history.next().await?;
            let is_newest = newest.is_none();
            let is_last = artifacts.is_empty();
            if !is_last && !self.has_good(repository, manifest, &artifacts).await? {
                newest.get_or_insert(artifacts);
                continue;
            }
            let revision = history.highest;
            return Ok(match is_last {
                true => Base::of(&newest.unwrap_or_default(), revision),
                false => {
                    let base = Base::of(&artifacts, revision);
                    Base { is_alone: base.is_alone && is_newest, replaces: history.all, ..base }
                }
            });
        }
    }

    /// Whether any value can be believed; the smallest are looked at first.
    async fn has_good(&self, repository: &Repository, manifest: Digest, artifacts: &[Artifact]) -> Result<bool, Error> {
        let trust = if self.keys.is_empty() { Trust::Unsigned } else { self.trust() };
        let mut values: Vec<_> = artifacts.iter().flat_map(|artifact| artifact.values(manifest)).collect();
        values.sort_by_key(|(_, value)| value.size);
        for (key, value) in values.into_iter().take(MAX_CANDIDATES) {
            if self.proved(repository, key, value, trust).await?.is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes `items` into the next revision, unless all of it is there.
    async fn write(&self, repository: &Repository, image: &Image, items: &[Item]) -> Result<Published, Error> {
        let (mut values, mut refused) = (Vec::new(), Vec::new());
        for item in items {
            let value = seal::seal(item, image.manifest, &self.keys).await;
            let (key, digest, size) = (item.key(image.manifest), Digest::of(&value), value.len() as u64);
            if size > MAX_VALUE {
                refused.push((key, BackendError::TooLarge { size, limit: MAX_VALUE }));
                continue;
            }
            // It asks first whether it is there.
            repository.push_blob(value).await?;
            values.push((key, digest, size));
        }
        if values.is_empty() {
            return Ok(Published { kept: 0, refused });
        }
        // Not before all that takes long: what others write meanwhile would be hidden, and then deleted.
        let base = self.base(repository, image.manifest).await?;
        let mut next = base.artifact.clone();
        for (key, digest, size) in &values {
            if !next.get(*key).any(|there| there.digest == *digest) {
                next.set(*key, *digest, *size);
            }
        }
        if !base.is_alone || base.artifact != next {
            push(repository, image.manifest, next, &base).await?;
        }
        Ok(Published { kept: values.len() as u64, refused })
    }

    /// Writes the next revision without the value of `key` that has this seal.
    async fn take_out(&self, repository: &Repository, manifest: Digest, key: Key, tag: Digest) -> Result<bool, Error> {
        let base = self.base(repository, manifest).await?;
        let (mut gone, mut is_there) = (Vec::new(), false);
        for there in base.artifact.get(key) {
            let at = there.size.saturating_sub(SEAL as u64);
            match fetch(repository, there, at).await {
                Ok(seal) if seal == tag.as_bytes()[..] => {
                    is_there = true;
                    gone.push(there.digest);
                }
                // Registries refuse an artifact that names what they do not have.
                Err(error) if error.class() == Class::NotFound => gone.push(there.digest),
                // Nobody believes that one; the lie may stand beside it.
                Err(error) if error.class() != Class::Corrupt => return Err(error),
                _ => {}
            }
        }
        if !is_there {
            return Ok(false);
        }
        push(repository, manifest, base.artifact.clone().without(&gone), &base).await?;
        Ok(true)
    }

    /// Whether `repository` failed a short while ago.
    fn rests(&self, repository: &str) -> bool {
        let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.get(repository).is_some_and(|rest| Instant::now() < rest.until)
    }

    fn note(&self, repository: &str, failure: Option<&str>) {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(why) = failure else {
            resting.remove(repository);
            return;
        };
        let now = Instant::now();
        if resting.len() >= MAX_RESTING {
            resting.retain(|_, rest| now < rest.until);
        }
        if resting.len() < MAX_RESTING {
            let rest = Rest { until: now + REST, since: SystemTime::now(), why: why.to_owned() };
            resting.insert(repository.to_owned(), rest);
        }
    }
}

impl Backend for Referrers {
    fn name(&self) -> String {
        "referrers".into()
    }

    fn look_up<'a>(&'a self, query: &'a Query<'a>) -> BoxFuture<'a, Answer> {
        async move {
            let Some(repository) = query.image.repository.as_ref().filter(|_| self.config.discover || query.writes)
            else {
                return Answer { is_spared: true, ..Answer::default() };
            };
            let name = repository.to_string();
            if query.writes {
                // It is asked where it writes to, and has more time: nothing to say to those who read.
                return self.read(repository, query, Instant::now() + PUBLISH_DEADLINE).await;
            }
            if self.rests(&name) {
                return Answer { is_away: true, ..Answer::default() };
            }
            let end = Instant::now() + Duration::from_millis(self.config.deadline_millis);
            let answer = self.read(repository, query, end).await;
            self.note(&name, answer.trouble.as_deref());
            answer
        }
        .boxed()
    }

    fn publish<'a>(&'a self, image: &'a Image, items: &'a [Item]) -> BoxFuture<'a, Result<Published, BackendError>> {
        async move {
            let Some(repository) = image.repository.as_ref().filter(|_| self.config.publish) else {
                return Ok(Published::default());
            };
            within(repository, self.write(repository, image, items)).await
        }
        .boxed()
    }

    fn admits<'a>(&'a self, image: &'a Image) -> BoxFuture<'a, Result<(), BackendError>> {
        async move {
            match image.repository.as_ref().filter(|_| self.config.publish) {
                Some(repository) => within(repository, repository.check_push()).await,
                None => Err(BackendError::Refused("share.referrers.publish is false".into())),
            }
        }
        .boxed()
    }

    fn remove<'a>(&'a self, image: &'a Image, key: Key, tag: Digest) -> BoxFuture<'a, Result<bool, BackendError>> {
        async move {
            let Some(repository) = image.repository.as_ref().filter(|_| self.config.publish) else { return Ok(false) };
            within(repository, self.take_out(repository, image.manifest, key, tag)).await
        }
        .boxed()
    }

    fn state(&self) -> State {
        let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let latest = resting.values().filter(|rest| now < rest.until).max_by_key(|rest| rest.until);
        match latest {
            Some(Rest { since, why, .. }) => State::Away { since: *since, why: why.clone() },
            None => State::Up { since: self.started },
        }
    }

    fn gathers(&self) -> Duration {
        GATHERS
    }
}

/// For people.
fn source(repository: &Repository) -> String {
    format!("referrers of {repository}")
}

async fn within<T>(repository: &Repository, call: impl Future<Output = Result<T, Error>>) -> Result<T, BackendError> {
    match timeout(PUBLISH_DEADLINE, call).await {
        Ok(done) => done.map_err(BackendError::Registry),
        Err(_) => Err(BackendError::Slow(format!("{repository} took more than {} s", PUBLISH_DEADLINE.as_secs()))),
    }
}

/// Takes `bytes` off what is left; false if that is less.
fn take(left: &AtomicU64, bytes: u64) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
}

/// The values of `key` that are tried, in this order.
fn candidates(artifacts: &[Artifact], key: Key) -> Vec<&Descriptor> {
    let mut candidates: Vec<_> = artifacts.iter().flat_map(|one| one.get(key).take(MAX_CANDIDATES)).collect();
    candidates.sort();
    candidates.dedup();
    candidates
}

/// The bytes of a value from `start` on.
async fn fetch(repository: &Repository, descriptor: &Descriptor, start: u64) -> Result<Bytes, Error> {
    let Descriptor { digest, size, .. } = *descriptor;
    let mut stream = repository.blob(digest, size).read(start..size);
    let mut bytes = Vec::with_capacity((size - start) as usize);
    while let Some(piece) = stream.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.into())
}

async fn push(repository: &Repository, subject: Digest, next: Artifact, base: &Base) -> Result<(), Error> {
    let image = repository.manifest(&Selector::Digest(subject), MANIFEST_TYPES).await?;
    repository.push_blob(Bytes::from_static(EMPTY)).await?;
    let revision = next.revision.saturating_add(1);
    let (manifest, referrer) = next.at(revision).manifest(&image);
    repository.push_referrer(&subject, &referrer, manifest, &base.replaces).await
}
