//! What is said of a pull's time. Bodies are held back: what waits at least that long is told to have, whatever else the machine does.

use std::time::Duration;

use crate::node::Node;
use silk_pull::{ImageTiming, LayerTiming, Limit, Part, Way};
use silk_testkit::{ALWAYS, Compression, Fake, Fault, ImageSpec, Pushed, noise, tar};

/// Bodies begin this late, or a little later. Half of what a silent layer keeps its turn for.
const HELD: Duration = Duration::from_millis(500);
/// What certainly went by then, also of a wait that began later than the first body on a slow machine.
const WAITED: Duration = Duration::from_millis(250);

/// Lets bodies go once `count` of them were held for [`HELD`].
async fn release(registry: &Fake, count: usize) {
    registry.wait_for_bodies(count).await;
    tokio::time::sleep(HELD).await;
    registry.heal();
}

fn timing(node: &Node, pushed: &Pushed) -> ImageTiming {
    let mut all = node.puller.timings(&pushed.reference);
    assert_eq!(all.len(), 1);
    all.remove(0).timing.unwrap()
}

fn only(timing: &ImageTiming) -> &LayerTiming {
    let [layer] = &timing.layers_timing[..] else { panic!("{timing:?}") };
    layer
}

fn one_layer(registry: &Fake, len: usize) -> Pushed {
    let tar = tar(&[("noise", &noise(1, len))]);
    registry.push_image("library/app:1", &ImageSpec::new().layer(tar, Compression::Gzip))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_link_limits() {
    let (registry, node) = (Fake::start().await, Node::new());
    let pushed = one_layer(&registry, 1_000_000);
    // A second, for what takes a hundredth of one otherwise.
    registry.fault("GET .*/blobs/", Fault::Slow(1_000_000), ALWAYS);
    node.pull(&pushed).await.unwrap();
    let timing = timing(&node, &pushed);
    let layer = only(&timing);
    assert!(layer.spent.on(Part::Bytes) > Duration::from_millis(700), "{timing:?}");
    assert_eq!((layer.way, layer.limit(), timing.limit()), (Way::Streamed, Some(Limit::Link), Some(Limit::Link)));
    // Each moment is behind the one before.
    let moments = [timing.resolve, layer.first_byte, layer.last_byte, layer.ended, timing.time()];
    assert!(moments.iter().all(Option::is_some) && moments.is_sorted(), "{timing:?}");
    let nothing_is_free = [Part::Inflate, Part::BlobDigest, Part::Digest, Part::Scan, Part::Write, Part::Proof];
    assert!(nothing_is_free.iter().all(|part| !layer.spent.on(*part).is_zero()), "{timing:?}");
    assert!(layer.spent.on(Part::Decoder) > Duration::from_millis(700), "the second thread had to wait: {timing:?}");
    // Nothing is kept over a restart.
    let node = node.restart();
    assert_eq!(node.puller.timings(&pushed.reference)[0].timing, None);
    // All is here: the next pull only mounts it.
    node.pull(&pushed).await.unwrap();
    let again = self::timing(&node, &pushed);
    assert_eq!((only(&again).way, only(&again).limit()), (Way::Here, None));
    assert!(again.limit().is_some_and(|limit| matches!(limit, Limit::Mount | Limit::RoundTrips)), "{again:?}");
    // What nobody asked for is no pull.
    let node = node.restart();
    node.ready(&pushed).await.unwrap();
    assert_eq!(node.puller.timings(&pushed.reference)[0].timing, None);
    assert_eq!(node.puller.status(None)[0].time, Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_first_byte_and_a_late_turn_are_told_apart() {
    let (registry, node) = (Fake::start().await, Node::patient());
    let image = (1..3).fold(ImageSpec::new(), |image, seed| {
        image.layer(tar(&[("noise", &noise(seed, 100_000 * seed as usize))]), Compression::Gzip)
    });
    let pushed = registry.push_image("library/app:1", &image);
    registry.fault("GET .*/blobs/", Fault::Hold, ALWAYS);
    let (pulled, ()) = tokio::join!(node.pull(&pushed), release(&registry, 1));
    pulled.unwrap();
    let timing = timing(&node, &pushed);
    // Only one has a turn, whichever comes first.
    let mut layers: Vec<_> = timing.layers_timing.iter().collect();
    layers.sort_by_key(|layer| layer.spent.on(Part::Turn));
    let [first, second] = layers[..] else { panic!("{timing:?}") };
    assert!(first.spent.on(Part::FirstByte) >= WAITED && second.spent.on(Part::Turn) >= WAITED, "{timing:?}");
    assert!(first.first_byte >= Some(WAITED), "{timing:?}");
    assert_eq!(first.limit(), Some(Limit::RoundTrips), "{timing:?}");
    assert_eq!((second.limit(), timing.limit()), (Some(Limit::Turn), Some(Limit::Turn)), "{timing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_a_filled_layer_are_added_up() {
    let registry = Fake::start().await;
    let pushed = one_layer(&registry, 3_000_000);
    let teacher = Node::new();
    teacher.pull(&pushed).await.unwrap();
    let node = Node::with(|config| (config.ranges_at_once, config.range_bytes) = (2, 300_000));
    node.learn_from(&teacher, &pushed);
    registry.fault("GET .*/blobs/", Fault::Hold, ALWAYS);
    node.pull(&pushed).await.unwrap();
    let mounted = timing(&node, &pushed);
    assert_eq!((only(&mounted).way, only(&mounted).ended, mounted.limit()), (Way::Filled, None, None));
    release(&registry, 2).await;
    node.whole(&pushed.layers[0].diff_id).await;
    let timing = timing(&node, &pushed);
    let layer = only(&timing);
    assert!(layer.spent.on(Part::FirstByte) >= 2 * WAITED, "both of them waited: {timing:?}");
    assert!(layer.spent.on(Part::Turn) >= WAITED, "and a third one for them: {timing:?}");
    assert!([Part::Inflate, Part::Write, Part::Scan, Part::Proof].iter().all(|p| !layer.spent.on(*p).is_zero()));
    assert!(layer.ended.is_some() && timing.limit().is_some(), "{timing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_pull_has_no_limit_and_the_next_one_begins_anew() {
    let (registry, node) = (Fake::start().await, Node::new());
    let pushed = one_layer(&registry, 10_000);
    registry.fault("GET .*/blobs/", Fault::status(404), ALWAYS);
    node.pull(&pushed).await.unwrap_err();
    let failed = timing(&node, &pushed);
    assert_eq!((failed.limit(), failed.layers), (None, None), "{failed:?}");
    assert!(failed.resolve.is_some() && only(&failed).first_byte.is_none(), "{failed:?}");
    registry.heal();
    node.ready(&pushed).await.unwrap();
    let timing = timing(&node, &pushed);
    assert!(only(&timing).first_byte.is_some() && timing.limit().is_some(), "{timing:?}");
}
