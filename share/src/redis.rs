//! Redis as a fleet's cache: one round trip an image, a bound on all that silk keeps there, and never in a pull's way.
//!
//! Lookups share one connection ([`link`]); each publication makes its own, so that no lookup queues behind ten megabytes
//! on their way out. Layout of keys and values: `docs/formats/share.md`.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use futures::{FutureExt as _, future::BoxFuture};
use redis::{Pipeline, RedisError, Value};
use silk_model::{Class, Digest};
use tokio::{
    task::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    Answer, Backend, BackendError, EnvelopeError, Image, Item, Key, Published, Query, RedisConfig, ShareError, State,
    envelope::{Keys, SEAL, Trust},
    seal,
};

mod door;
mod link;
mod scripts;

use door::{Address, Door, Line, Silence, patiently};
use link::Link;
use scripts::{COST, Scripts, name};

/// Bytes of one image's values that are taken; layers beyond them are pulled as if nothing were known. Three times what
/// an image of 2 GB has.
const MAX_ANSWER: u64 = 96 << 20;
/// An answer from which on the connection is replaced: the library keeps a buffer as large as the largest value for as long
/// as the connection lives.
const FAT_ANSWER: u64 = 1 << 20;
/// Keys of damaged values that are remembered, of 40 bytes each.
const MAX_DAMAGED: usize = 4096;
/// Why what has no key's seal is believed.
const UNSEALED: &str = "no key is configured: who can write there is trusted";
/// How long a publication may stand still, in the background.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);

/// Codes of errors that pass by themselves: a failover under way, a primary that has become a replica or lost its own, one that
/// loads its data, cannot save for the moment, or runs somebody's long script (Redis documentation, "RESP protocol specification"
/// and redis/src/server.c, `shared`).
const PASSING: [&str; 8] =
    ["READONLY", "NOREPLICAS", "MISCONF", "BUSY", "LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN"];

/// A Redis.
#[derive(Debug)]
pub(crate) struct Redis {
    name: String,
    config: RedisConfig,
    keys: Arc<Keys>,
    door: Arc<Door>,
    link: Link,
    /// What lies under these keys is damaged, even if it ends with the right seal.
    damaged: Mutex<HashSet<Key>>,
}

/// A connection of one's own, driven by a task until it is dropped.
struct Own {
    line: Line,
    driver: JoinHandle<()>,
}

impl Redis {
    /// None if no address is configured.
    pub(crate) fn open(config: &RedisConfig, keys: &Arc<Keys>) -> Result<Option<Self>, ShareError> {
        let Some(address) = &config.address else { return Ok(None) };
        let address = Address::parse(address)?;
        let name = format!("redis {address}");
        let tls = match (&address, config.tls) {
            (_, false) => None,
            (Address::Tcp(_), true) => Some(Arc::new(config.certificates())),
            (Address::Unix(_), true) => return Err(ShareError::TlsOnSocket { address: address.to_string() }),
        };
        let door = Arc::new(Door { address, config: config.clone(), scripts: Arc::new(Scripts::default()), tls });
        let link = Link::start(Arc::clone(&door));
        Ok(Some(Self { name, config: config.clone(), keys: Arc::clone(keys), door, link, damaged: Mutex::default() }))
    }

    async fn read(&self, query: &Query<'_>) -> Answer {
        let end = Instant::now() + self.config.deadline();
        let Some(line) = self.link.line(end).await else {
            return Answer { is_away: true, ..Answer::default() };
        };
        let mut keys: Vec<Key> = query.blobs.iter().map(|blob| Key::Layer(*blob)).collect();
        if query.wants_profile {
            keys.push(Key::Profile(query.image.manifest));
        }
        match self.fetch(&line, keys).await {
            Ok((values, too_large)) => {
                self.link.proved();
                self.sort(values, too_large).await
            }
            Err(silence) => {
                let why = silence.to_string();
                self.link.broken(why.clone());
                Answer { trouble: Some(why), ..Answer::default() }
            }
        }
    }

    /// The values of `keys`, and which are too large, in one round trip: as many bytes of each as are sure to fit. Only those that are
    /// larger cost more: one to learn by how much, and one for as many of them as are bearable together.
    async fn fetch(&self, line: &Line, keys: Vec<Key>) -> Result<(Vec<(Key, Value)>, Vec<Key>), Silence> {
        let most = self.config.max_value_bytes;
        let share = (MAX_ANSWER / keys.len().max(1) as u64).min(most);
        let mut all = redis::pipe();
        for key in &keys {
            // One byte more, so that it is seen what is larger.
            all.cmd("GETRANGE").arg(name(*key)).arg(0).arg(share);
        }
        all.add_command(self.door.scripts.renew(&keys, self.config.expiry_secs));
        let mut values = self.ask(line, &all, keys.len() + 1).await?;
        let renewed = values.pop();
        check(&values)?;
        if matches!(renewed, Some(Value::ServerError(error)) if error.code() == "NOSCRIPT") {
            // Somebody flushed the scripts: a new connection loads them.
            self.link.renew();
        }
        let (cut, mut values): (Vec<_>, Vec<_>) =
            keys.into_iter().zip(values).partition(|(_, value)| length(value) > share);
        let cut: Vec<Key> = cut.into_iter().map(|(key, _)| key).collect();
        if share == most || cut.is_empty() {
            return Ok((values, cut));
        }
        let mut all = redis::pipe();
        for key in &cut {
            all.cmd("STRLEN").arg(name(*key));
        }
        let lengths = self.ask(line, &all, cut.len()).await?;
        check(&lengths)?;
        let lengths = lengths.into_iter().map(|length| redis::from_redis_value::<u64>(length).unwrap_or(u64::MAX));
        let (large, too_large): (Vec<_>, Vec<_>) =
            cut.into_iter().zip(lengths).partition(|(_, length)| *length <= most);
        let mut left = MAX_ANSWER.saturating_sub(values.iter().map(|(_, value)| length(value)).sum());
        let (mut all, mut asked) = (redis::pipe(), Vec::new());
        for (key, length) in large.into_iter().filter(|(_, length)| *length > 0) {
            if length <= left {
                left -= length;
                all.cmd("GETRANGE").arg(name(key)).arg(0).arg(length - 1);
                asked.push(key);
            }
        }
        if !asked.is_empty() {
            let found = self.ask(line, &all, asked.len()).await?;
            check(&found)?;
            values.extend(asked.into_iter().zip(found));
        }
        Ok((values, too_large.into_iter().map(|(key, _)| key).collect()))
    }

    /// So many answers, errors among them.
    async fn ask(&self, line: &Line, all: &Pipeline, count: usize) -> Result<Vec<Value>, Silence> {
        let mut connection = line.connection.clone();
        let call = connection.send_packed_commands(all, 0, count);
        patiently(self.config.deadline(), || line.traffic.received(), call).await
    }

    async fn sort(&self, values: Vec<(Key, Value)>, too_large: Vec<Key>) -> Answer {
        let limit = self.config.max_value_bytes;
        if values.iter().map(|(_, value)| length(value)).sum::<u64>() > FAT_ANSWER {
            self.link.renew();
        }
        let mut answer = Answer::default();
        let too_large = too_large.into_iter().map(|key| (key, None));
        for (key, value) in values.into_iter().map(|(key, value)| (key, Some(value))).chain(too_large) {
            let opened = match value {
                None => Err(EnvelopeError::TooLarge { limit }),
                Some(Value::BulkString(value)) if value.is_empty() => continue,
                Some(Value::BulkString(value)) => {
                    seal::open(value.into(), key, &self.keys, Trust::of_fleet(&self.keys)).await
                }
                _ => Err(EnvelopeError::Foreign),
            };
            if opened.is_err() {
                let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
                if damaged.len() >= MAX_DAMAGED {
                    damaged.clear();
                }
                damaged.insert(key);
            }
            answer.take(key, self.name.clone(), opened, UNSEALED);
        }
        answer
    }

    /// A connection for the background, unless Redis is known to be away.
    async fn own(&self) -> Result<Own, BackendError> {
        if self.link.line(Instant::now() + PUBLISH_DEADLINE).await.is_none() {
            let why = match self.link.state() {
                State::Away { why, .. } => why,
                State::Up { .. } => "it has just come back".into(),
            };
            return Err(BackendError::Away(why));
        }
        let (line, driver) = self.door.open().await.map_err(BackendError::Away)?;
        Ok(Own { line, driver: tokio::spawn(driver) })
    }

    async fn put(&self, own: &Own, image: &Image, item: &Item) -> Result<(), BackendError> {
        let (size, limit) = (
            item.size() as u64,
            self.config.max_value_bytes.min(self.config.max_bytes.saturating_sub(COST)).min(MAX_ANSWER),
        );
        if size > limit {
            return Err(BackendError::TooLarge { size, limit });
        }
        let key = item.key(image.manifest);
        let value = seal::seal(item, image.manifest, &self.keys).await;
        let is_damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner).contains(&key);
        if !is_damaged && own.stored_seal(key).await? == value[value.len() - SEAL..] {
            return Ok(());
        }
        let call = self.door.scripts.put(key, &value, self.config.expiry_secs, self.config.max_bytes);
        let mut connection = own.line.connection.clone();
        own.ask(call.invoke_async::<()>(&mut connection)).await?;
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        Ok(())
    }
}

impl Backend for Redis {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn look_up<'a>(&'a self, query: &'a Query<'a>) -> BoxFuture<'a, Answer> {
        self.read(query).boxed()
    }

    fn publish<'a>(&'a self, image: &'a Image, items: &'a [Item]) -> BoxFuture<'a, Result<Published, BackendError>> {
        async move {
            let own = self.own().await?;
            let mut published = Published::default();
            for item in items {
                match self.put(&own, image, item).await {
                    Ok(()) => published.kept += 1,
                    Err(error) if error.class() == Class::Transient => return Err(error),
                    Err(error) => published.refused.push((item.key(image.manifest), error)),
                }
            }
            Ok(published)
        }
        .boxed()
    }

    fn admits<'a>(&'a self, _: &'a Image) -> BoxFuture<'a, Result<(), BackendError>> {
        async move { self.own().await.map(drop) }.boxed()
    }

    fn remove<'a>(&'a self, _: &'a Image, key: Key, tag: Digest) -> BoxFuture<'a, Result<bool, BackendError>> {
        async move {
            let own = self.own().await?;
            let call = self.door.scripts.remove(key, tag.as_bytes());
            let mut connection = own.line.connection.clone();
            own.ask(call.invoke_async::<bool>(&mut connection)).await
        }
        .boxed()
    }

    fn state(&self) -> State {
        self.link.state()
    }
}

impl Own {
    /// The seal of what is stored under `key`, if anything is.
    async fn stored_seal(&self, key: Key) -> Result<Vec<u8>, BackendError> {
        let mut connection = self.line.connection.clone();
        let call = redis::cmd("GETRANGE").arg(name(key)).arg(-(SEAL as isize)).arg(-1).to_owned();
        let sealed = self.ask(call.query_async::<Vec<u8>>(&mut connection)).await;
        match sealed {
            // A value of another type is not the same one; what it is the script will find out.
            Err(BackendError::Refused(_)) => Ok(Vec::new()),
            sealed => sealed,
        }
    }

    async fn ask<T>(&self, call: impl Future<Output = Result<T, RedisError>>) -> Result<T, BackendError> {
        let done = patiently(PUBLISH_DEADLINE, || self.line.traffic.both(), call).await;
        done.map_err(|silence| match silence {
            Silence::Failed(error) if error.code() == Some("OOM") => BackendError::Full(error.to_string()),
            Silence::Failed(error) if error.is_io_error() || may_pass(&error) => BackendError::Away(error.to_string()),
            Silence::Failed(error) => BackendError::Refused(error.to_string()),
            Silence::Slow(_) => BackendError::Slow(silence.to_string()),
        })
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A value of another type is an answer; any other error is about Redis, not about a value.
fn check(values: &[Value]) -> Result<(), Silence> {
    match values.iter().find(|value| matches!(value, Value::ServerError(error) if error.code() != "WRONGTYPE")) {
        Some(Value::ServerError(error)) => Err(Silence::Failed(error.clone().into())),
        _ => Ok(()),
    }
}

/// Whether the same call may succeed a failover later. Before Redis 7 an error within a script has the script's place for a code,
/// and its own among the words.
fn may_pass(error: &RedisError) -> bool {
    let words = error.to_string();
    PASSING.iter().any(|code| error.code() == Some(code) || words.contains(&format!("-{code} ")))
}

/// Bytes of a value.
fn length(value: &Value) -> u64 {
    match value {
        Value::BulkString(bytes) => bytes.len() as u64,
        _ => 0,
    }
}
