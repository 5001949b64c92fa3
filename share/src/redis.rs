//! Redis as a fleet's cache: one round trip an image, a bound on all that silk keeps there, and never in a pull's way.
//!
//! Lookups share one connection ([`link`]); each publication makes its own, so that no lookup queues behind ten megabytes
//! on their way out. Layout of keys and values: `docs/formats/share.md`.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use futures::{FutureExt as _, future::BoxFuture};
use redis::{Cmd, RedisError, Value};
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
        let door = Arc::new(Door { address, config: config.clone(), scripts: Arc::new(Scripts::default()) });
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
            Ok(values) => {
                self.link.proved();
                self.sort(values).await
            }
            Err(silence) => {
                let why = silence.to_string();
                self.link.broken(why.clone());
                Answer { trouble: Some(why), ..Answer::default() }
            }
        }
    }

    /// The values of `keys`, in one round trip: as many bytes of each as are sure to fit. Only what is larger than that
    /// and still bearable costs a second one.
    async fn fetch(&self, line: &Line, keys: Vec<Key>) -> Result<Vec<(Key, Value)>, Silence> {
        let most = self.config.max_value_bytes;
        let share = (MAX_ANSWER / keys.len().max(1) as u64).min(most);
        let renewal = self.door.scripts.renew(&keys, self.config.expiry_secs);
        let mut values = self.get(line, keys, share, Some(renewal)).await?;
        let is_cut = |value: &Value| matches!(value, Value::BulkString(bytes) if bytes.len() as u64 > share);
        let (cut, whole): (Vec<_>, Vec<_>) = values.into_iter().partition(|(_, value)| is_cut(value));
        values = whole;
        if share == most || cut.is_empty() {
            values.extend(cut);
            return Ok(values);
        }
        let taken: u64 = values.iter().map(|(_, value)| length(value)).sum();
        let share = (MAX_ANSWER.saturating_sub(taken) / cut.len() as u64).min(most);
        let keys = cut.into_iter().map(|(key, _)| key).collect();
        values.extend(self.get(line, keys, share, None).await?);
        Ok(values)
    }

    /// One byte more than `most` of each value, so that it is seen what is larger.
    async fn get(
        &self,
        line: &Line,
        keys: Vec<Key>,
        most: u64,
        renewal: Option<Cmd>,
    ) -> Result<Vec<(Key, Value)>, Silence> {
        let mut all = redis::pipe();
        for key in &keys {
            all.cmd("GETRANGE").arg(name(*key)).arg(0).arg(most);
        }
        let renews = renewal.is_some();
        renewal.into_iter().for_each(|renewal| {
            all.add_command(renewal);
        });
        let mut connection = line.connection.clone();
        let replies = keys.len() + usize::from(renews);
        let call = connection.send_packed_commands(&all, 0, replies);
        let mut values = patiently(self.config.deadline(), || line.traffic.received(), call).await?;
        if renews && matches!(values.pop(), Some(Value::ServerError(error)) if error.code() == "NOSCRIPT") {
            // Somebody flushed the scripts: a new connection loads them.
            self.link.renew();
        }
        match values.iter().find(|value| matches!(value, Value::ServerError(error) if error.code() != "WRONGTYPE")) {
            Some(Value::ServerError(error)) => Err(Silence::Failed(error.clone().into())),
            _ => Ok(keys.into_iter().zip(values).collect()),
        }
    }

    async fn sort(&self, values: Vec<(Key, Value)>) -> Answer {
        let limit = self.config.max_value_bytes;
        if values.iter().map(|(_, value)| length(value)).sum::<u64>() > FAT_ANSWER {
            self.link.renew();
        }
        let mut answer = Answer::default();
        for (key, value) in values {
            let opened = match value {
                Value::BulkString(value) if value.is_empty() => continue,
                Value::BulkString(value) if value.len() as u64 > limit => Err(EnvelopeError::TooLarge { limit }),
                Value::BulkString(value) => {
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
        let (size, limit) =
            (item.size() as u64, self.config.max_value_bytes.min(self.config.max_bytes.saturating_sub(COST)));
        if size > limit {
            return Err(BackendError::TooLarge { size, limit });
        }
        let key = item.key(image.manifest);
        let value = seal::seal(item, image.manifest, &self.keys).await;
        let is_damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        if !is_damaged && own.stored_seal(key).await? == value[value.len() - SEAL..] {
            return Ok(());
        }
        let call = self.door.scripts.put(key, &value, self.config.expiry_secs, self.config.max_bytes);
        let mut connection = own.line.connection.clone();
        own.ask(call.invoke_async::<()>(&mut connection)).await
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
            Silence::Failed(error) if error.is_io_error() => BackendError::Away(error.to_string()),
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

/// Bytes of a value.
fn length(value: &Value) -> u64 {
    match value {
        Value::BulkString(bytes) => bytes.len() as u64,
        _ => 0,
    }
}
