//! What all tests need: values, and waiting for what must come.

use std::sync::Arc;

use bytes::Bytes;
use silk_model::Digest;
use silk_share::{Backend, BackendStatus, Config, Image, LayerKnowledge, RedisConfig, Share};
pub use silk_testkit::eventually;

use crate::server::Server;

/// Bytes that do not repeat.
pub fn noise(seed: u64, length: usize) -> Bytes {
    let byte = |i: u64| ((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ (seed << 7)) >> 56) as u8;
    (0..length as u64).map(byte).collect()
}

/// Layer number `n`, of about `size` bytes.
pub fn layer(n: u64, size: usize) -> LayerKnowledge {
    LayerKnowledge {
        blob: Digest::of(&n.to_le_bytes()),
        diff_id: Digest::of(&(n + 1_000_000).to_le_bytes()),
        toc: noise(n, size / 4),
        index: noise(n + 1, size - size / 4),
    }
}

pub fn image(n: u64) -> Image {
    Image { repository: None, manifest: Digest::of(&(n + 2_000_000).to_le_bytes()) }
}

/// The key of a layer in Redis.
pub fn key(n: u64) -> String {
    format!("silk:1:layer:{}", layer(n, 0).blob.hex())
}

/// Waits long for a slow machine: what is not answered at all is still noticed.
pub fn config(server: &Server) -> RedisConfig {
    RedisConfig { address: Some(server.address()), deadline_millis: 5000, ..RedisConfig::default() }
}

pub fn share_with(redis: RedisConfig) -> Share {
    Share::new(&Config { redis, ..Config::default() }, Vec::new()).unwrap()
}

pub fn share(server: &Server) -> Share {
    share_with(config(server))
}

pub fn with_own(server: &Server, own: Arc<dyn Backend>) -> Share {
    Share::new(&Config { redis: config(server), ..Config::default() }, vec![own]).unwrap()
}

pub fn status(share: &Share) -> BackendStatus {
    share.status().pop().unwrap()
}

pub async fn wait_up(share: &Share) {
    eventually("redis is up", || status(share).state.is_up()).await;
}

/// Publishes and waits for it.
pub async fn put(share: &Share, n: u64, size: usize) {
    let outcomes = share.publish_now(&image(0), &[silk_share::Item::Layer(layer(n, size))]).await;
    outcomes.into_iter().for_each(|(_, outcome)| assert!(outcome.unwrap().refused.is_empty()));
}

/// Whether layer `n` is found.
pub async fn has(share: &Share, n: u64) -> bool {
    share.image(&image(0), &[layer(n, 0).blob]).await.layers[0].is_some()
}
