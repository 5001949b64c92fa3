//! Sealing and proving, away from the threads that serve requests: a value of ten megabytes takes them six milliseconds.

use std::sync::Arc;

use bytes::Bytes;
use silk_model::Digest;
use tokio::task::spawn_blocking;

use crate::{
    EnvelopeError, Item, Key,
    envelope::{self, Keys, Opened, Trust},
};

/// From this size on it is worth another thread: half a millisecond of hashing.
const LARGE: usize = 1 << 20;
const NO_PANIC: &str = "hashing does not panic, nor is it cancelled";

/// The envelope of `item`, which belongs to the image `manifest`.
pub(crate) async fn seal(item: &Item, manifest: Digest, keys: &Arc<Keys>) -> Bytes {
    let write = {
        let (item, keys) = (item.clone(), Arc::clone(keys));
        move || match &item {
            Item::Layer(layer) => envelope::of_layer(layer, &keys),
            Item::Profile(profile) => envelope::of_profile(manifest, profile, &keys),
        }
    };
    match item.size() < LARGE {
        true => write().into(),
        false => spawn_blocking(write).await.expect(NO_PANIC).into(),
    }
}

/// What is inside of `bytes`, if it is about `key` and may be believed.
pub(crate) async fn open(bytes: Bytes, key: Key, keys: &Arc<Keys>, trust: Trust) -> Result<Opened, EnvelopeError> {
    match bytes.len() < LARGE {
        true => envelope::open(&bytes, key, keys, trust),
        false => {
            let keys = Arc::clone(keys);
            spawn_blocking(move || envelope::open(&bytes, key, &keys, trust)).await.expect(NO_PANIC)
        }
    }
}
