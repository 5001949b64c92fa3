//! Each budget at its limit: more is wanted than it allows, never more is in use, and all arrives.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::node::{Node, noise, tar};
use silk_layer::profile::{GRAIN, Profile, Seen};
use silk_model::Use;
use silk_pull::{Budgets, Config, Puller};
use silk_testkit::{ALWAYS, Compression, Fake, Fault, ImageSpec, Pushed};

/// Looks at the budgets all the time.
struct Watch {
    stop: Arc<AtomicBool>,
    looks: tokio::task::JoinHandle<u64>,
}

impl Watch {
    /// `of` takes out the one that is looked at.
    fn start(puller: &Arc<Puller>, of: fn(Budgets) -> Use) -> Self {
        let (stop, puller) = (Arc::new(AtomicBool::new(false)), Arc::clone(puller));
        let stopped = Arc::clone(&stop);
        let looks = tokio::spawn(async move {
            let mut most = 0;
            while !stopped.load(Ordering::Relaxed) {
                let Use { limit, in_use } = of(puller.budgets());
                assert!(in_use <= limit, "{in_use} of {limit}");
                most = most.max(in_use);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(of(puller.budgets()).in_use, 0, "all was given back");
            most
        });
        Self { stop, looks }
    }

    /// The most that was in use, once nothing is.
    async fn most(self) -> u64 {
        // What is dropped last may be dropped a moment after whoever waited was told.
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.stop.store(true, Ordering::Relaxed);
        self.looks.await.unwrap()
    }
}

fn push(registry: &Fake, tars: &[Vec<u8>]) -> Pushed {
    let image = tars.iter().fold(ImageSpec::new(), |image, tar| image.layer(tar, Compression::Plain));
    registry.push_image("library/app:1", &image)
}

fn tars(count: u64, len: usize) -> Vec<Vec<u8>> {
    (0..count).map(|seed| tar(&[("noise", &noise(seed + 1, len))])).collect()
}

/// The most bodies that were on their way at once while a node pulled 8 layers, and the most that it said were in use.
async fn streams(change: impl FnOnce(&mut Config), of: fn(Budgets) -> Use) -> (usize, u64) {
    let (registry, tars) = (Fake::start().await, tars(8, 60_000));
    let pushed = push(&registry, &tars);
    // 0.1 s a layer.
    registry.fault("GET .*/blobs/", Fault::Slow(600_000), ALWAYS);
    let node = Node::with(change);
    let watch = Watch::start(&node.puller, of);
    registry.most_bodies();
    node.pull(&pushed).await.unwrap();
    for (layer, tar) in pushed.layers.iter().zip(&tars) {
        assert_eq!(node.data(&layer.diff_id), *tar);
    }
    (registry.most_bodies().all, watch.most().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_layers_are_decoded_at_once_than_may() {
    let most = streams(|config| config.layers_at_once = 2, |now| now.decoders).await;
    assert_eq!(most, (2, 2));
    // Without that bound, the load is over it.
    assert!(streams(|config| config.layers_at_once = 8, |now| now.decoders).await.0 > 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_layers_are_under_way_than_may() {
    let change = |config: &mut Config| (config.layers_at_once, config.layers_under_way) = (8, 3);
    assert_eq!(streams(change, |now| now.layers_under_way).await, (3, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_bytes_are_in_flight_than_may() {
    let (registry, tars) = (Fake::start().await, tars(4, 600_000));
    let pushed = push(&registry, &tars);
    // 20 ms a range.
    registry.fault("GET .*/blobs/", Fault::Slow(5_000_000), ALWAYS);
    let node = Node::with(|config| {
        (config.layers_at_once, config.range_bytes, config.bytes_in_flight) = (4, 100_000, 300_000);
    });
    let watch = Watch::start(&node.puller, |now| now.bytes_in_flight);
    registry.most_bodies();
    node.pull(&pushed).await.unwrap();
    for (layer, tar) in pushed.layers.iter().zip(&tars) {
        assert_eq!(node.data(&layer.diff_id), *tar);
    }
    // Four layers want two ranges each.
    assert_eq!((registry.most_bodies().ranges, watch.most().await), (3, 300_000));
}

/// A node on which the layers are known, and a slow registry.
async fn known(registry: &Fake, tars: &[Vec<u8>], change: impl FnOnce(&mut Config)) -> (Node, Pushed) {
    let pushed = push(registry, tars);
    let teacher = Node::new();
    teacher.pull(&pushed).await.unwrap();
    let node = Node::with(change);
    node.learn_from(&teacher, &pushed);
    // 50 ms a segment of 256 KiB.
    registry.fault("GET .*/blobs/", Fault::Slow(5_000_000), ALWAYS);
    registry.most_bodies();
    (node, pushed)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_ranges_come_for_readers_than_may() {
    let (registry, tars) = (Fake::start().await, tars(2, 6_000_000));
    let (node, pushed) = known(&registry, &tars, |config| (config.demand_ranges, config.ranges_at_once) = (3, 1)).await;
    let watch = Watch::start(&node.puller, |now| now.demand_ranges);
    node.pull(&pushed).await.unwrap();
    // Far from each other, and none behind another.
    let reads = (0..16).rev().map(|i| {
        let (node, tar, id) = (&node, &tars[i % 2], pushed.layers[i % 2].diff_id);
        let offset = 300_000 + i / 2 * 700_000;
        async move { assert_eq!(node.read(&id, offset as u64, 4096).await.unwrap(), tar[offset..offset + 4096]) }
    });
    futures::future::join_all(reads).await;
    let bodies = registry.most_bodies().all;
    for layer in &pushed.layers {
        node.whole(&layer.diff_id).await;
    }
    assert!(bodies <= 4, "{bodies} bodies for three readers' ranges and one that nobody waits for");
    assert_eq!(watch.most().await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_ranges_come_for_a_start_than_may() {
    let (registry, tars) = (Fake::start().await, tars(2, 6_000_000));
    let (node, pushed) =
        known(&registry, &tars, |config| (config.profile_ranges, config.ranges_at_once) = (2, 1)).await;
    let mut profile = Profile::default();
    let touches = (0..16).map(|i| {
        let offset = (300_000 + i / 2 * 700_000) / GRAIN * GRAIN;
        (pushed.layers[i as usize % 2].diff_id, offset..offset + GRAIN)
    });
    profile.learn(&Seen { touches: touches.collect(), ..Seen::default() });
    node.puller.import_profile(&pushed.manifest_digest, &pushed.reference, profile).await.unwrap();
    let watch = Watch::start(&node.puller, |now| now.profile_ranges);
    node.pull(&pushed).await.unwrap();
    for (layer, tar) in pushed.layers.iter().zip(&tars) {
        node.whole(&layer.diff_id).await;
        assert_eq!(node.data(&layer.diff_id), *tar);
    }
    // One more that nobody waits for.
    let bodies = registry.most_bodies().all;
    assert!(bodies <= 3, "{bodies} bodies");
    assert_eq!(watch.most().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_ranges_come_that_nobody_waits_for_than_may() {
    let (registry, tars) = (Fake::start().await, tars(4, 3_000_000));
    let change = |config: &mut Config| (config.ranges_at_once, config.range_bytes) = (2, 300_000);
    let (node, pushed) = known(&registry, &tars, change).await;
    let watch = Watch::start(&node.puller, |now| now.background_ranges);
    node.pull(&pushed).await.unwrap();
    for (layer, tar) in pushed.layers.iter().zip(&tars) {
        node.whole(&layer.diff_id).await;
        assert_eq!(node.data(&layer.diff_id), *tar);
    }
    assert_eq!((registry.most_bodies().all, watch.most().await), (2, 2));
}
