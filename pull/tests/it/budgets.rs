//! Each budget at its limit: more is wanted than it allows, never more is in use, and all arrives. The registry holds all
//! bodies back until as many are on their way as may be, so that no timing decides.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::node::{Node, eventually};
use silk_layer::profile::{GRAIN, Profile, Seen};
use silk_model::Use;
use silk_pull::{Budgets, Config, Puller};
use silk_testkit::{ALWAYS, Compression, Fake, Fault, ImageSpec, Pushed, noise, tar};

/// Looks at a budget all the time.
struct Watch {
    puller: Arc<Puller>,
    of: fn(Budgets) -> Use,
    stop: Arc<AtomicBool>,
    looks: tokio::task::JoinHandle<()>,
}

impl Watch {
    /// `of` takes out the one that is looked at.
    fn start(node: &Node, of: fn(Budgets) -> Use) -> Self {
        let (stop, puller) = (Arc::new(AtomicBool::new(false)), Arc::clone(&node.puller));
        let (stopped, looked) = (Arc::clone(&stop), Arc::clone(&puller));
        let looks = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let Use { limit, in_use } = of(looked.budgets());
                assert!(in_use <= limit, "{in_use} of {limit}");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        Self { puller, of, stop, looks }
    }

    /// Waits until `bodies` of blobs are held back, and lets them go. Returns what of the budget was in use.
    async fn full(&self, registry: &Fake, bodies: usize) -> u64 {
        let come = tokio::time::timeout(Duration::from_secs(60), registry.wait_for_bodies(bodies));
        come.await.expect("as many as may be");
        // For more of them, if more may come.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let Use { in_use, .. } = (self.of)(self.puller.budgets());
        assert_eq!(registry.most_bodies().all, bodies);
        registry.heal();
        in_use
    }

    /// At the end all is given back.
    async fn end(self) {
        // What is dropped last may be dropped a moment after whoever waited was told.
        eventually("all is given back", || (self.of)(self.puller.budgets()).in_use == 0).await;
        self.stop.store(true, Ordering::Relaxed);
        self.looks.await.unwrap();
    }
}

fn push(registry: &Fake, tars: &[Vec<u8>]) -> Pushed {
    let image = tars.iter().fold(ImageSpec::new(), |image, tar| image.layer(tar, Compression::Plain));
    registry.push_image("library/app:1", &image)
}

fn hold(registry: &Fake) {
    registry.most_bodies();
    registry.fault("GET .*/blobs/", Fault::Hold, ALWAYS);
}

fn tars(count: u64, len: usize) -> Vec<Vec<u8>> {
    (0..count).map(|seed| tar(&[("noise", &noise(seed + 1, len))])).collect()
}

/// A node pulls 8 layers, and `bodies` of them are on their way at once. Returns what of the budget was in use then, and the
/// most bodies afterwards.
async fn streams(bodies: usize, change: impl FnOnce(&mut Config), of: fn(Budgets) -> Use) -> (u64, usize) {
    let (registry, tars) = (Fake::start().await, tars(8, 60_000));
    let pushed = push(&registry, &tars);
    hold(&registry);
    let node = Node::with(change);
    let watch = Watch::start(&node, of);
    let (pulled, in_use) = tokio::join!(node.pull(&pushed), watch.full(&registry, bodies));
    pulled.unwrap();
    for (layer, tar) in pushed.layers.iter().zip(&tars) {
        assert_eq!(node.data(&layer.diff_id), *tar);
    }
    watch.end().await;
    (in_use, registry.most_bodies().all)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_layers_are_decoded_at_once_than_may() {
    let decoders = |now: Budgets| now.decoders;
    assert_eq!(streams(2, |config| config.layers_at_once = 2, decoders).await, (2, 2));
    // Without that bound, the load is over it.
    assert_eq!(streams(8, |config| config.layers_at_once = 8, decoders).await, (8, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_layers_are_under_way_than_may() {
    let change = |config: &mut Config| (config.layers_at_once, config.layers_under_way) = (8, 3);
    assert_eq!(streams(3, change, |now| now.layers_under_way).await, (3, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_bytes_are_in_flight_than_may() {
    let (registry, tars) = (Fake::start().await, tars(4, 600_000));
    let pushed = push(&registry, &tars);
    hold(&registry);
    let node = Node::with(|config| {
        (config.layers_at_once, config.range_bytes, config.bytes_in_flight) = (4, 100_000, 300_000);
    });
    let watch = Watch::start(&node, |now| now.bytes_in_flight);
    // Four layers want two ranges each.
    let (pulled, in_use) = tokio::join!(node.pull(&pushed), watch.full(&registry, 3));
    pulled.unwrap();
    for (layer, tar) in pushed.layers.iter().zip(&tars) {
        assert_eq!(node.data(&layer.diff_id), *tar);
    }
    watch.end().await;
    assert_eq!((in_use, registry.most_bodies().all), (300_000, 3));
}

/// A node on which the layers are known.
async fn known(registry: &Fake, tars: &[Vec<u8>], change: impl FnOnce(&mut Config)) -> (Node, Pushed) {
    let pushed = push(registry, tars);
    let teacher = Node::new();
    teacher.pull(&pushed).await.unwrap();
    let node = Node::with(change);
    node.learn_from(&teacher, &pushed);
    hold(registry);
    (node, pushed)
}

async fn arrives(node: &Node, pushed: &Pushed, tars: &[Vec<u8>]) {
    for (layer, tar) in pushed.layers.iter().zip(tars) {
        node.whole(&layer.diff_id).await;
        assert_eq!(node.data(&layer.diff_id), *tar);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_ranges_come_for_readers_than_may() {
    let (registry, tars) = (Fake::start().await, tars(2, 6_000_000));
    let (node, pushed) = known(&registry, &tars, |config| (config.demand_ranges, config.ranges_at_once) = (3, 1)).await;
    let watch = Watch::start(&node, |now| now.demand_ranges);
    node.pull(&pushed).await.unwrap();
    // Far from each other, and none behind another.
    let reads = (0..16).rev().map(|i| {
        let (node, tar, id) = (&node, &tars[i % 2], pushed.layers[i % 2].diff_id);
        let offset = 300_000 + i / 2 * 700_000;
        async move { assert_eq!(node.read(&id, offset as u64, 4096).await.unwrap(), tar[offset..offset + 4096]) }
    });
    // Three for readers, and one that nobody waits for.
    let (_, in_use) = tokio::join!(futures::future::join_all(reads), watch.full(&registry, 4));
    assert_eq!(in_use, 3);
    arrives(&node, &pushed, &tars).await;
    watch.end().await;
    assert!(registry.most_bodies().all <= 4);
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
    let watch = Watch::start(&node, |now| now.profile_ranges);
    node.pull(&pushed).await.unwrap();
    // What nobody waits for begins behind them.
    assert_eq!(watch.full(&registry, 2).await, 2);
    arrives(&node, &pushed, &tars).await;
    watch.end().await;
    assert!(registry.most_bodies().all <= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_ranges_come_that_nobody_waits_for_than_may() {
    let (registry, tars) = (Fake::start().await, tars(4, 3_000_000));
    let change = |config: &mut Config| (config.ranges_at_once, config.range_bytes) = (2, 300_000);
    let (node, pushed) = known(&registry, &tars, change).await;
    let watch = Watch::start(&node, |now| now.background_ranges);
    node.pull(&pushed).await.unwrap();
    assert_eq!(watch.full(&registry, 2).await, 2);
    arrives(&node, &pushed, &tars).await;
    watch.end().await;
    assert!(registry.most_bodies().all <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_bytes_are_held_while_a_start_goes_on_than_may() {
    let (registry, tars) = (Fake::start().await, tars(1, 6_000_000));
    let change = |config: &mut Config| (config.range_bytes, config.held_bytes) = (700_000, 2_100_000);
    let (node, pushed) = known(&registry, &tars, change).await;
    registry.heal();
    let layer = pushed.layers[0].diff_id;
    let mut profile = Profile::default();
    profile.learn(&Seen { touches: vec![(layer, 80 * GRAIN..81 * GRAIN)], ..Seen::default() });
    node.puller.import_profile(&pushed.manifest_digest, &pushed.reference, profile).await.unwrap();
    node.pull(&pushed).await.unwrap();
    let lazy = node.lazies.get(&layer).unwrap();
    let held = || node.puller.budgets().held_bytes.in_use;
    eventually("what it touches is here", || lazy.arrived().profile > 0).await;
    // As long as it reads.
    let start = async {
        loop {
            let offset = 80 * GRAIN as usize;
            assert_eq!(node.read(&layer, offset as u64, 4096).await.unwrap(), tars[0][offset..offset + 4096]);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let look = async {
        // Three ranges, each of whole segments.
        eventually("as much is held as may", || held() > 1_400_000).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!((1_400_001..=2_100_000).contains(&held()), "{}", held());
        assert_eq!((lazy.arrived().background, lazy.arrived().demand), (0, 0));
        assert_eq!(node.read(&layer, 10_000, 4096).await.unwrap(), tars[0][10_000..14_096]);
        assert!(held() > 0, "the start goes on");
        assert!(lazy.arrived().demand > 0, "a reader does not wait for its end");
    };
    tokio::select! {
        () = start => unreachable!("it goes on"),
        () = look => {}
    }
    arrives(&node, &pushed, &tars).await;
    let arrived = lazy.arrived();
    assert_eq!(arrived.demand + arrived.profile + arrived.background, tars[0].len() as u64);
    eventually("nothing is held", || held() == 0).await;
}
