//! OCI referrers: what is known of an image as an artifact in the image's own repository.
//!
//! One artifact an image, found by the registry's list of what refers to it. Writing merges: the newest revision is read,
//! what is new replaces what it is about, and the whole goes up as the next revision, in place of those before. Two nodes that
//! write at the same time leave two artifacts of one revision; readers take both, the next writer merges them. Layout:
//! `docs/formats/share.md`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};
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

use artifact::{ARTIFACT_TYPE, Artifact, Descriptor, EMPTY};

/// The largest value that is read: the index of a layer of 2 GB has about 10 MB.
const MAX_VALUE: u64 = 32 << 20;
/// Bytes of one image's values that are read; layers beyond them are pulled as if nothing were known.
const MAX_ANSWER: u64 = 96 << 20;
/// Artifacts of the newest revision that are read: as many nodes as can be expected to publish within one second.
const MAX_ARTIFACTS: usize = 8;
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

/// The artifacts of the newest revision.
#[derive(Debug, Default)]
struct Newest {
    revision: u64,
    artifacts: Vec<Artifact>,
    /// All artifacts of this and older revisions.
    digests: Vec<Digest>,
}

impl Referrers {
    /// None if they are neither read nor written.
    pub(crate) fn open(config: &ReferrersConfig, keys: &Arc<Keys>) -> Result<Option<Self>, ShareError> {
        if !config.discover && !config.publish {
            return Ok(None);
        }
        if config.discover && !config.trust_unsigned && keys.is_empty() {
            return Err(ShareError::NothingToTrust);
        }
        let (config, keys) = (config.clone(), Arc::clone(keys));
        Ok(Some(Self { config, keys, resting: Mutex::default(), started: SystemTime::now() }))
    }

    fn trust(&self) -> Trust {
        if self.config.trust_unsigned { Trust::Unsigned } else { Trust::Sealed }
    }

    /// What comes until `end`.
    async fn read(&self, repository: &Repository, query: &Query<'_>, end: Instant) -> Result<Answer, String> {
        let late = || format!("{} did not come in time", source(repository));
        let newest = timeout_at(end, newest(repository, query.image.manifest)).await.map_err(|_| late())?;
        let newest = newest.map_err(|error| error.to_string())?;
        let mut left = MAX_ANSWER;
        let mut reads = FuturesUnordered::new();
        let layers = query.blobs.iter().map(|blob| Key::Layer(*blob));
        for key in layers.chain(query.wants_profile.then_some(Key::Profile(query.image.manifest))) {
            let mut candidates: Vec<&Descriptor> = newest.artifacts.iter().flat_map(|one| one.get(key)).collect();
            candidates.sort();
            candidates.dedup();
            let size =
                candidates.iter().map(|one| one.size).filter(|size| *size <= MAX_VALUE).max().unwrap_or_default();
            if !candidates.is_empty() && size <= left {
                left -= size;
                reads.push(self.first(repository, key, candidates, query));
            }
        }
        let mut answer = Answer::default();
        loop {
            match timeout_at(end, reads.next()).await {
                Ok(None) => return Ok(answer),
                Err(_) => {
                    answer.trouble = Some(late());
                    return Ok(answer);
                }
                Ok(Some((key, outcomes))) => {
                    for outcome in outcomes {
                        match outcome {
                            Ok(opened) => answer.take(key, source(repository), opened, UNSEALED),
                            Err(error) => answer.trouble = Some(error.to_string()),
                        }
                    }
                }
            }
        }
    }

    /// Reads the candidates for `key` until one is good.
    async fn first(
        &self,
        repository: &Repository,
        key: Key,
        candidates: Vec<&Descriptor>,
        query: &Query<'_>,
    ) -> (Key, Vec<Result<Result<Opened, EnvelopeError>, Error>>) {
        let mut outcomes = Vec::new();
        for candidate in candidates {
            if candidate.size > MAX_VALUE {
                outcomes.push(Ok(Err(EnvelopeError::TooLarge { limit: MAX_VALUE })));
                continue;
            }
            match fetch(repository, candidate, 0).await {
                Ok(bytes) => match seal::open(bytes, key, &self.keys, self.trust()).await {
                    Ok(opened) if query.knows_as_lie(key, opened.tag) => {}
                    opened => {
                        let is_good = opened.is_ok();
                        outcomes.push(Ok(opened));
                        if is_good {
                            break;
                        }
                    }
                },
                Err(error) => outcomes.push(Err(error)),
            }
        }
        (key, outcomes)
    }

    /// Writes `items` into the next revision, unless all of it is there.
    async fn write(&self, repository: &Repository, image: &Image, items: &[Item]) -> Result<Published, Error> {
        let newest = newest(repository, image.manifest).await?;
        let mut next = newest.merged();
        for item in items {
            let value = seal::seal(item, image.manifest, &self.keys).await;
            let (key, digest, size) = (item.key(image.manifest), Digest::of(&value), value.len() as u64);
            if !next.get(key).any(|there| there.digest == digest) {
                repository.push_blob(value).await?;
                next.set(key, digest, size);
            }
        }
        if newest.artifacts.len() != 1 || newest.artifacts[0] != next {
            push(repository, image.manifest, next, &newest).await?;
        }
        Ok(Published { kept: items.len() as u64, ..Published::default() })
    }

    /// Writes the next revision without the value of `key` that has this seal.
    async fn take_out(&self, repository: &Repository, manifest: Digest, key: Key, tag: Digest) -> Result<bool, Error> {
        let newest = newest(repository, manifest).await?;
        let next = newest.merged();
        let mut gone = Vec::new();
        for there in next.get(key) {
            let at = there.size.saturating_sub(SEAL as u64);
            if fetch(repository, there, at).await? == tag.as_bytes()[..] {
                gone.push(there.digest);
            }
        }
        if gone.is_empty() {
            return Ok(false);
        }
        push(repository, manifest, next.without(&gone), &newest).await?;
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
            let Some(repository) = query.image.repository.as_ref().filter(|_| self.config.discover || query.writes) else {
                return Answer::default();
            };
            let name = repository.to_string();
            if self.rests(&name) {
                return Answer { is_away: true, ..Answer::default() };
            }
            let end = Instant::now() + Duration::from_millis(self.config.deadline_millis);
            let answer = self.read(repository, query, end).await;
            let answer = answer.unwrap_or_else(|why| Answer { trouble: Some(why), ..Answer::default() });
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

/// The artifacts of the newest revision that refer to `subject`. One that is damaged counts as not there.
async fn newest(repository: &Repository, subject: Digest) -> Result<Newest, Error> {
    let mut listed = repository.referrers(&subject, ARTIFACT_TYPE).await?;
    // Not all registries list annotations: then the manifests themselves have to say it.
    let revision = listed.iter().map(artifact::listed_revision).max().unwrap_or_default();
    let digests = listed.iter().map(|referrer| referrer.digest).collect();
    listed.retain(|referrer| artifact::listed_revision(referrer) == revision);
    listed.sort_by_key(|referrer| referrer.digest);
    listed.truncate(MAX_ARTIFACTS);
    let manifests = listed.into_iter().map(|referrer| async move {
        match repository.manifest(&Selector::Digest(referrer.digest), &[&referrer.media_type]).await {
            Ok(manifest) => Ok(Artifact::parse(&manifest.bytes)),
            Err(error) if matches!(error.class(), Class::NotFound | Class::Corrupt) => Ok(None),
            Err(error) => Err(error),
        }
    });
    let manifests: Result<Vec<_>, _> = join_all(manifests).await.into_iter().collect();
    let mut artifacts: Vec<Artifact> = manifests?.into_iter().flatten().collect();
    let revision = artifacts.iter().map(|artifact| artifact.revision).max().unwrap_or(revision);
    artifacts.retain(|artifact| artifact.revision == revision);
    Ok(Newest { revision, artifacts, digests })
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

async fn push(repository: &Repository, subject: Digest, next: Artifact, newest: &Newest) -> Result<(), Error> {
    let image = repository.manifest(&Selector::Digest(subject), MANIFEST_TYPES).await?;
    repository.push_blob(Bytes::from_static(EMPTY)).await?;
    let (manifest, referrer) = next.at(newest.revision.saturating_add(1)).manifest(&image);
    repository.push_referrer(&subject, &referrer, manifest, &newest.digests).await
}

impl Newest {
    /// All of them as one.
    fn merged(&self) -> Artifact {
        let mut merged = Artifact::default().at(self.revision);
        self.artifacts.iter().for_each(|artifact| merged.absorb(artifact));
        merged
    }
}
