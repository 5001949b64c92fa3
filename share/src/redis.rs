//! Redis as a fleet's cache: one round trip an image, a bound on all that silk keeps there, and never in a pull's way.
//!
//! Lookups share one connection ([`link`]); each publication makes its own, so that no lookup queues behind ten megabytes
//! on their way out. Layout of keys and values: `docs/formats/share.md`.

use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use redis::{RedisError, Value};
use silk_model::Digest;
use tokio::{
    task::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    Answer, Backend, BackendError, EnvelopeError, Image, Item, Key, Query, RedisConfig, ShareError, State,
    envelope::{self, Keys, SEAL, Trust},
};

mod link;
mod scripts;

use link::{Address, Door, Line, Link, Silence, patiently};
use scripts::{Scripts, name};

/// Bytes of one image's values that are taken in one answer; layers beyond them are pulled as if nothing were known. Three
/// times what an image of 2 GB has.
const MAX_ANSWER: u64 = 96 << 20;
/// An answer from which on the connection is replaced: the library keeps a buffer as large as the largest value for as long
/// as the connection lives.
const FAT_ANSWER: u64 = 1 << 20;
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
        Ok(Some(Self { name, config: config.clone(), keys: Arc::clone(keys), door, link }))
    }

    async fn read(&self, query: &Query<'_>) -> Answer {
        let end = Instant::now() + self.config.deadline();
        let Some(line) = self.link.line(end).await else { return Answer::default() };
        let mut keys: Vec<Key> = query.blobs.iter().map(|blob| Key::Layer(*blob)).collect();
        if query.wants_profile {
            keys.push(Key::Profile(query.image.manifest));
        }
        let RedisConfig { max_value_bytes, expiry_secs, .. } = self.config;
        let call = self.door.scripts.read(&keys, max_value_bytes, MAX_ANSWER, expiry_secs);
        let mut connection = line.connection.clone();
        let call = call.invoke_async::<Vec<Value>>(&mut connection);
        let left = end.saturating_duration_since(Instant::now());
        match patiently(left, || line.traffic.received(), call).await {
            Ok(values) => {
                self.link.proved();
                self.sort(&keys, values)
            }
            Err(silence) => {
                let why = silence.to_string();
                self.link.broken(why.clone());
                Answer { trouble: Some(why), ..Answer::default() }
            }
        }
    }

    fn sort(&self, keys: &[Key], values: Vec<Value>) -> Answer {
        let mut answer = Answer::default();
        let mut bytes = 0;
        for (key, value) in keys.iter().zip(values) {
            let opened = match value {
                Value::Nil => continue,
                Value::BulkString(value) => {
                    bytes += value.len() as u64;
                    envelope::open(&Bytes::from(value), *key, &self.keys, Trust::of_fleet(&self.keys))
                }
                Value::Int(size) if size > 0 => {
                    Err(EnvelopeError::TooLarge { size: size as u64, limit: self.config.max_value_bytes })
                }
                _ => Err(EnvelopeError::Foreign),
            };
            answer.take(*key, self.name.clone(), opened);
        }
        if bytes > FAT_ANSWER {
            self.link.renew();
        }
        answer
    }

    /// A connection for the background, unless lookups have found Redis away.
    async fn own(&self) -> Result<Own, BackendError> {
        if let State::Away { why, .. } = self.link.state() {
            return Err(BackendError::Away(why));
        }
        let (line, driver) = self.door.open().await.map_err(BackendError::Away)?;
        Ok(Own { line, driver: tokio::spawn(driver) })
    }

    async fn put(&self, own: &mut Own, image: &Image, item: &Item) -> Result<(), BackendError> {
        let (size, limit) = (item.size() as u64, self.config.max_value_bytes.min(self.config.max_bytes));
        if size > limit {
            return Err(BackendError::TooLarge { size, limit });
        }
        let key = item.key(image.manifest);
        let value = match item {
            Item::Layer(layer) => envelope::of_layer(layer, &self.keys),
            Item::Profile(profile) => envelope::of_profile(image.manifest, profile, &self.keys),
        };
        if own.seal(key).await? == value[value.len() - SEAL..] {
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

    fn publish<'a>(&'a self, image: &'a Image, items: &'a [Item]) -> BoxFuture<'a, Result<u64, BackendError>> {
        async move {
            let mut own = self.own().await?;
            // One that is refused does not keep the others out.
            let mut outcome = Ok(());
            for item in items {
                outcome = outcome.and(self.put(&mut own, image, item).await);
            }
            outcome.map(|()| items.len() as u64)
        }
        .boxed()
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
    /// The seal of what is stored under `key`: whether the same value is there already.
    async fn seal(&self, key: Key) -> Result<Vec<u8>, BackendError> {
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
