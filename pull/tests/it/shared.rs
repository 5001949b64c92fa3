//! A layer that two images share, brought by one of them while the other is on its way.

use std::{os::unix::fs::MetadataExt as _, sync::atomic::Ordering, time::Duration};

use silk_model::{Class, Digest};
use silk_testkit::{ALWAYS, Compression, Fake, Fault, ImageSpec, Pushed, noise, tar};

use crate::{node::Node, peer::Peer};

/// `shared`, and a layer of each image's own.
fn push(registry: &Fake, name: &str, shared: &[u8], own: Option<&[u8]>) -> Pushed {
    let image = own.iter().fold(ImageSpec::new(), |image, own| image.layer(own, Compression::Gzip));
    registry.push_image(name, &image.layer(shared, Compression::Gzip))
}

/// The file that a layer's bytes are in: another one if they were written anew.
fn file(node: &Node, diff_id: &Digest) -> u64 {
    std::fs::metadata(node.store.layer_path(diff_id).join("data")).unwrap().ino()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_become_whole_while_others_were_asked_is_left_alone() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(1, 3_000_000))]);
    let (first, second) = (push(&registry, "library/a:1", &tar, None), push(&registry, "library/b:1", &tar, None));
    let id = first.layers[0].diff_id;
    let peer = Peer::new();
    let node = Node::sharing(vec![peer.clone()]);
    registry.fault("GET .*/blobs/", Fault::Hold, ALWAYS);
    node.claim(&first).await.unwrap();
    registry.wait_for_bodies(1).await;
    // The second asks for as long as it may; the first's layer comes meanwhile.
    peer.hangs.store(true, Ordering::Relaxed);
    node.claim(&second).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    registry.heal();
    node.ready(&first).await.unwrap();
    let before = file(&node, &id);
    peer.resume.notify_waiters();
    node.ready(&second).await.unwrap();
    assert!(node.store.whole(&id));
    assert_eq!(node.data(&id), tar);
    assert_eq!(file(&node, &id), before);
    assert!(node.lazies.get(&id).is_none(), "it has no holes");
}

/// It waits for its turn, which it would begin by deleting what is there.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_filled_while_it_waited_for_its_turn_is_not_streamed() {
    for becomes_whole in [true, false] {
        let registry = Fake::start().await;
        let tar = tar(&[("noise", &noise(1, 3_000_000))]);
        let small = push(&registry, "library/base:1", &tar, None);
        let id = small.layers[0].diff_id;
        let teacher = Node::new();
        teacher.pull(&small).await.unwrap();
        let large =
            push(&registry, "library/app:1", &tar, Some(&silk_testkit::tar(&[("large", &noise(2, 9_000_000))])));
        let node = Node::patient_with(|config| (config.layers_at_once, config.layers_under_way) = (1, 1));
        registry.fault(&format!("GET .*{}", large.layers[0].blob_digest), Fault::Hold, ALWAYS);
        node.claim(&large).await.unwrap();
        registry.wait_for_bodies(1).await;
        node.learn_from(&teacher, &small);
        if !becomes_whole {
            registry.fault(&format!("GET .*{}", small.layers[0].blob_digest), Fault::Slow(1_000_000), ALWAYS);
        }
        node.pull(&small).await.unwrap();
        if becomes_whole {
            node.whole(&id).await;
        }
        let before = file(&node, &id);
        // What is on its way slowly stays slow.
        registry.heal();
        node.ready(&large).await.unwrap();
        node.whole(&id).await;
        assert_eq!((node.data(&id), file(&node, &id)), (tar, before));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_layer_goes_away_while_it_is_shown_is_shown_again() {
    let registry = Fake::start().await;
    let image = push(&registry, "library/app:1", &tar(&[("noise", &noise(1, 100_000))]), None);
    let node = Node::new();
    node.fail_shows(2, Class::Precondition);
    node.pull(&image).await.unwrap();
    assert_eq!(node.shown(), [[image.layers[0].diff_id]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_without_which_a_layer_cannot_be_shown_come_first() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(1, 30_000_000))]);
    // Of many segments, and of more ranges than are on their way at once.
    let image = registry.push_image("library/app:1", &ImageSpec::new().layer(&tar, Compression::Plain));
    let id = image.layers[0].diff_id;
    let teacher = Node::new();
    teacher.pull(&image).await.unwrap();
    let node = Node::with(|config| config.range_bytes = 1 << 20);
    node.learn_from(&teacher, &image);
    registry.fault("GET .*/blobs/", Fault::Slow(500_000), ALWAYS);
    let wanted = 25_000_000..27_500_000;
    node.show_needs(id, wanted.clone());
    node.pull(&image).await.unwrap();
    let lazy = node.lazies.get(&id).expect("it is not whole yet");
    let arrived = lazy.arrived();
    assert!(lazy.has(&wanted));
    // In order, all that lies before them would be here as well.
    assert!(arrived.demand + arrived.profile + arrived.background < 20_000_000, "{arrived:?}");
    assert_eq!(node.shown(), [[id]]);
}

/// Each range would cost all that lies before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_sends_a_layer_once() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(1, 60_000_000))]);
    // Of many segments, as compressed noise is not.
    let image = registry.push_image("library/app:1", &ImageSpec::new().layer(&tar, Compression::Plain));
    let id = image.layers[0].diff_id;
    let blobs = format!("GET .*{}", image.layers[0].blob_digest);
    let teacher = Node::new();
    teacher.pull(&image).await.unwrap();
    let size = registry.sent(&blobs);
    let node = Node::new();
    node.learn_from(&teacher, &image);
    // What an answer sends before it is given up is some buffers of the kernel's.
    registry.fault(&blobs, Fault::NoRanges, ALWAYS);
    node.pull(&image).await.unwrap();
    for offset in [59_000_000, 30_000_000, 100] {
        assert_eq!(node.read(&id, offset, 5000).await.unwrap(), tar[offset as usize..offset as usize + 5000]);
    }
    node.whole(&id).await;
    assert_eq!(node.data(&id), tar);
    let sent = registry.sent(&blobs) - size;
    assert!(sent < 3 * size, "{sent} bytes of {size}");
}

/// The registry of the image that opened it does not give it any more; another image's has it, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_comes_from_the_repository_of_whoever_has_it() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(1, 30_000_000))]);
    let (first, second) = (push(&registry, "library/a:1", &tar, None), push(&registry, "library/b:1", &tar, None));
    let id = first.layers[0].diff_id;
    let teacher = Node::new();
    teacher.pull(&first).await.unwrap();
    let node = Node::with(|config| config.read_wait_secs = 2);
    node.learn_from(&teacher, &first);
    registry.fault("GET .*library/a/blobs/", Fault::status(403), ALWAYS);
    node.pull(&first).await.unwrap();
    let refused = node.read(&id, 20_000_000, 5000).await.unwrap_err();
    assert_eq!(refused.class, Class::Denied);
    node.pull(&second).await.unwrap();
    assert_eq!(node.read(&id, 20_000_000, 5000).await.unwrap(), tar[20_000_000..20_005_000]);
    node.whole(&id).await;
    assert_eq!(node.data(&id), tar);
}

/// A mirror has a damaged copy: known or not, the layer comes from the registry itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_with_a_damaged_copy_is_left() {
    for is_known in [false, true] {
        let (registry, mirror) = (Fake::start().await, Fake::start().await);
        let tar = tar(&[("noise", &noise(1, 9_000_000))]);
        let image = push(&registry, "library/app:1", &tar, None);
        push(&mirror, "library/app:1", &tar, None);
        let id = image.layers[0].diff_id;
        let teacher = Node::new();
        teacher.pull(&image).await.unwrap();
        mirror.fault("GET .*/blobs/", Fault::Flip(5_000_000), ALWAYS);
        let node = Node::mirrored(&registry, &mirror, |_| {});
        if is_known {
            node.learn_from(&teacher, &image);
        }
        node.pull(&image).await.unwrap();
        assert_eq!(node.read(&id, 8_000_000, 5000).await.unwrap(), tar[8_000_000..8_005_000]);
        node.whole(&id).await;
        assert_eq!(node.data(&id), tar);
        assert!(mirror.count("GET .*/blobs/") > 0);
        let known = node.store.record(&id).unwrap();
        assert_eq!(known.from, "", "proved here");
    }
}

/// Its image was removed a moment ago.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_being_given_up_is_waited_for() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(1, 3_000_000))]);
    let image = push(&registry, "library/a:1", &tar, None);
    let id = image.layers[0].diff_id;
    let teacher = Node::new();
    teacher.pull(&image).await.unwrap();
    let node = Node::new();
    node.learn_from(&teacher, &image);
    let going = node.store.partial(id).unwrap();
    node.claim(&image).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    going.discard(false).unwrap();
    node.ready(&image).await.unwrap();
    assert_eq!(node.data(&id), tar);
}

/// Waiting for bytes, and looking now and then whether others have them, begins no wait anew: a registry is given up when its time is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_registry_is_given_up_in_time() {
    let registry = Fake::start().await;
    let image = push(&registry, "library/a:1", &tar(&[("noise", &noise(1, 1_000_000))]), None);
    let node = Node::waiting(4);
    registry.fault("GET .*/blobs/", Fault::Hold, ALWAYS);
    node.claim(&image).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), node.ready(&image)).await;
    ended.expect("it is given up").unwrap_err();
}

/// Where the other image's registry is no better, the first one's has all of it.
#[tokio::test(flavor = "multi_thread")]
async fn another_images_registry_costs_this_one_nothing() {
    let (slow, other) = (Fake::start().await, Fake::start().await);
    let tar = tar(&[("noise", &noise(1, 9_000_000))]);
    let (first, second) = (push(&slow, "library/a:1", &tar, None), push(&other, "library/b:1", &tar, None));
    let node = Node::waiting(30);
    slow.fault("GET .*/blobs/", Fault::Slow(200_000), ALWAYS);
    node.claim(&first).await.unwrap();
    slow.wait_for_bodies(1).await;
    node.claim(&second).await.unwrap();
    let asked = other.count("GET .*/blobs/");
    other.fault("GET .*/blobs/", Fault::status(403), ALWAYS);
    node.ready(&first).await.unwrap();
    node.ready(&second).await.unwrap();
    assert_eq!(node.data(&first.layers[0].diff_id), tar);
    assert!(other.count("GET .*/blobs/") > asked, "it was not asked");
}

/// Its registry is as good as silent; that of another image, which has the layer, too, is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_goes_on_from_the_registry_of_another_image() {
    for (is_known, fault) in [(false, Fault::Slow(10_000)), (false, Fault::Hold), (true, Fault::Hold)] {
        let (slow, quick) = (Fake::start().await, Fake::start().await);
        let tar = tar(&[("noise", &noise(1, 15_000_000))]);
        let (first, second) = (push(&slow, "library/a:1", &tar, None), push(&quick, "library/b:1", &tar, None));
        let (id, size) = (first.layers[0].diff_id, first.layers[0].size);
        let node = Node::patient_with(|_| {});
        if is_known {
            let teacher = Node::new();
            teacher.pull(&first).await.unwrap();
            node.learn_from(&teacher, &first);
        }
        slow.fault("GET .*/blobs/", fault, ALWAYS);
        node.claim(&first).await.unwrap();
        slow.wait_for_bodies(1).await;
        let sent = quick.sent("GET .*/blobs/");
        let pulled = tokio::time::timeout(Duration::from_secs(60), async {
            node.pull(&second).await.unwrap();
            assert_eq!(node.read(&id, 100, 5000).await.unwrap(), tar[100..5100]);
            node.ready(&first).await.unwrap();
            node.whole(&id).await;
        });
        pulled.await.expect("the slow registry holds it up");
        assert_eq!(node.data(&id), tar);
        let sent = quick.sent("GET .*/blobs/") - sent;
        // First contact asks for a byte.
        assert!(sent <= size + 1, "it was begun anew: {sent} bytes of {size}");
    }
}
