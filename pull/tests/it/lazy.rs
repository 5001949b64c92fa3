//! Layers that another node knows: mounted at once, read before their bytes are here, whole in the end.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use crate::node::{Node, eventually};
use silk_layer::{
    index,
    toc::{self, Entry, Toc},
};
use silk_model::{Class, Digest};
use silk_store::Known;
use silk_testkit::{ALWAYS, Compression, Fake, Fault, ImageSpec, Pushed, noise, tar};

/// Compresses to about a half.
fn text(seed: u64, len: usize) -> Vec<u8> {
    noise(seed, len / 2).iter().flat_map(|b| [b'a' + (b & 15), b'a' + (b >> 4)]).collect()
}

/// An image of one layer, pulled by a node that teaches others.
async fn taught(registry: &Fake, tar: &[u8], compression: Compression) -> (Node, Pushed) {
    let pushed = registry.push_image("library/app:1", &ImageSpec::new().layer(tar, compression));
    let teacher = Node::new();
    teacher.pull(&pushed).await.unwrap();
    (teacher, pushed)
}

fn blobs(pushed: &Pushed) -> String {
    format!("GET .*{}", pushed.layers[0].blob_digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_compression_is_read_before_it_is_here_and_becomes_whole() {
    for compression in [Compression::Gzip, Compression::GzipMembers(700_000), Compression::Plain, Compression::Zstd] {
        let registry = Fake::start().await;
        let tar = tar(&[("text", &text(1, 9_000_000)), ("noise", &noise(2, 5_000_000)), ("end", b"end")]);
        let (teacher, pushed) = taught(&registry, &tar, compression).await;
        let id = pushed.layers[0].diff_id;
        let before = registry.sent(&blobs(&pushed));
        let node = Node::new();
        node.learn_from(&teacher, &pushed);
        node.pull(&pushed).await.unwrap();
        for offset in [13_900_000, 0, 7_000_001, 9_500_000] {
            let end = tar.len().min(offset + 70_000);
            assert_eq!(node.read(&id, offset as u64, end - offset).await.unwrap(), tar[offset..end], "{compression:?}");
        }
        node.whole(&id).await;
        assert_eq!(node.data(&id), tar);
        let renewed = async {
            while node.renewed().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), renewed).await.expect("its mounts are renewed");
        assert_eq!(node.renewed(), [(id, false)]);
        assert_eq!(node.store.record(&id).unwrap().from, "", "proved here");
        let sent = registry.sent(&blobs(&pushed)) - before;
        assert!(sent <= before + before / 10, "{compression:?}: {sent} bytes of {before}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_ready_before_any_byte_and_a_read_fetches_what_it_needs() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(1, 40_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Gzip).await;
    let id = pushed.layers[0].diff_id;
    let node = Node::waiting(1);
    node.learn_from(&teacher, &pushed);
    registry.fault(&blobs(&pushed), Fault::NoAnswer, ALWAYS);
    node.pull(&pushed).await.unwrap();
    assert!(!node.store.whole(&id));
    assert_eq!(node.puller.status(None)[0].layers[0].state, "filling");
    // The registry was gone for a while; the reader only waits.
    let read = tokio::spawn({
        let lazy = node.lazies.get(&id).unwrap();
        let (to, read) = tokio::sync::oneshot::channel();
        lazy.read(33_000_000, 5000, Box::new(|answer| drop(to.send(answer.map(<[u8]>::to_vec)))));
        read
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!read.is_finished());
    registry.heal();
    assert_eq!(read.await.unwrap().unwrap().unwrap(), tar[33_000_000..33_005_000]);
    node.whole(&id).await;
    assert_eq!(node.data(&id), tar);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_fetch_each_span_once() {
    let registry = Fake::start().await;
    let tar = tar(&[("text", &text(3, 12_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Gzip).await;
    let id = pushed.layers[0].diff_id;
    let before = registry.sent(&blobs(&pushed));
    let node = Node::new();
    node.learn_from(&teacher, &pushed);
    node.pull(&pushed).await.unwrap();
    let reads = (0..400_u64).map(|i| {
        let offset = i * 7_919_777 % (tar.len() as u64 - 4096);
        let (node, tar) = (&node, &tar);
        async move {
            let bytes = node.read(&id, offset, 4096).await.unwrap();
            assert_eq!(bytes, tar[offset as usize..offset as usize + 4096]);
        }
    });
    futures::future::join_all(reads).await;
    node.whole(&id).await;
    let sent = registry.sent(&blobs(&pushed)) - before;
    assert!(sent <= before + before / 20, "{sent} bytes of {before}");
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_survive_a_restart() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(5, 20_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Plain).await;
    let id = pushed.layers[0].diff_id;
    let node = Node::waiting_with(1, |config| config.ranges_at_once = 1);
    node.learn_from(&teacher, &pushed);
    // 20 MB in 5 s: it is not whole before the restart.
    registry.fault(&blobs(&pushed), Fault::Slow(4_000_000), ALWAYS);
    node.pull(&pushed).await.unwrap();
    node.read(&id, 10_000_000, 1000).await.unwrap();
    let here = node.lazies.get(&id).unwrap().bytes_here();
    let node = node.restart();
    registry.heal();
    registry.fault(&blobs(&pushed), Fault::NoAnswer, ALWAYS);
    node.pull(&pushed).await.unwrap();
    assert!(node.lazies.get(&id).unwrap().bytes_here() >= here);
    assert_eq!(node.read(&id, 10_000_000, 1000).await.unwrap(), tar[10_000_000..10_001_000], "without a registry");
    registry.heal();
    node.whole(&id).await;
    assert_eq!(node.data(&id), tar);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_of_the_blob_is_never_served() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(6, 8_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Gzip).await;
    let id = pushed.layers[0].diff_id;
    let node = Node::new();
    node.learn_from(&teacher, &pushed);
    registry.fault(&blobs(&pushed), Fault::Flip(5_000_000), 1);
    node.pull(&pushed).await.unwrap();
    assert_eq!(node.read(&id, 5_000_000, 100_000).await.unwrap(), tar[5_000_000..5_100_000], "the next try was good");
    node.whole(&id).await;
    assert_eq!(node.data(&id), tar);
    // A registry that never sends it right: the reader is told, nobody is lied to.
    let node = Node::new();
    node.learn_from(&teacher, &pushed);
    registry.fault(&blobs(&pushed), Fault::Flip(5_000_000), ALWAYS);
    node.pull(&pushed).await.unwrap();
    let error = node.read(&id, 5_000_000, 100_000).await.unwrap_err();
    assert_eq!(error.class, Class::Corrupt, "{error}");
    assert!(error.to_string().contains("sent other bytes than the manifest names"), "{error}");
    assert!(error.to_string().contains(&pushed.reference), "{error}");
    assert!(!node.store.whole(&id));
}

/// What a peer made up.
fn altered(known: &Known, change: impl FnOnce(&mut Vec<Entry<'_>>, &mut index::Index)) -> Known {
    let toc = toc::decode(&known.toc).unwrap();
    let mut entries = toc.entries().collect();
    let mut index = index::decode(&known.index).unwrap();
    change(&mut entries, &mut index);
    Known { toc: toc::encode(&Toc::new(toc.size(), &entries)), index: index::encode(&index), ..known.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_lies_is_dropped_and_the_layer_streams_in() {
    let registry = Fake::start().await;
    let tar = tar(&[("text", &text(7, 12_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Gzip).await;
    let id = pushed.layers[0].diff_id;
    let known = teacher.store.known(&id).unwrap();
    let last = |index: &index::Index| index.spans.iter().rposition(|span| span.entry.is_some()).unwrap();
    let lies = [
        altered(&known, |_, index| {
            let at = last(index);
            index.spans[at].entry.as_mut().unwrap().offset -= 100;
        }),
        altered(&known, |_, index| {
            let at = last(index);
            let entry = index.spans[at].entry.as_mut().unwrap();
            entry.bits = (entry.bits + 1) % 8;
        }),
    ];
    for lie in lies {
        let node = Node::new();
        node.store.learn(&lie, "a liar").unwrap();
        // What is here already is given up with the index: who reads it meanwhile waits, and never fails.
        registry.fault(&blobs(&pushed), Fault::Slow(10_000_000), ALWAYS);
        node.pull(&pushed).await.unwrap();
        let offset = tar.len() - 100_000;
        let end = node.read(&id, offset as u64, 50_000);
        let start = async {
            let mut reads = 0;
            while node.lazies.get(&id).is_some() {
                assert_eq!(node.read(&id, 0, 4096).await.unwrap(), tar[..4096]);
                reads += 1;
            }
            reads
        };
        let (end, reads) = tokio::join!(end, start);
        assert_eq!(end.unwrap(), tar[offset..offset + 50_000]);
        assert!(reads > 0);
        registry.heal();
        node.whole(&id).await;
        assert_eq!(node.data(&id), tar);
        assert!(node.renewed().contains(&(id, true)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_lie_are_replaced_when_the_layer_is_whole() {
    let registry = Fake::start().await;
    let tar = tar(&[("true", &text(8, 3_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Gzip).await;
    let id = pushed.layers[0].diff_id;
    let lie = altered(&teacher.store.known(&id).unwrap(), |entries, _| entries[0].path = b"lie".into());
    let node = Node::new();
    node.store.learn(&lie, "a liar").unwrap();
    node.pull(&pushed).await.unwrap();
    node.whole(&id).await;
    assert_eq!(*node.store.toc(&id).unwrap().entries().next().unwrap().path, *b"true");
    assert_eq!(node.renewed(), [(id, true)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_knowledge_is_refused_and_learned_anew() {
    let registry = Fake::start().await;
    let tar = tar(&[("text", &text(9, 3_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Gzip).await;
    let id = pushed.layers[0].diff_id;
    let known = teacher.store.known(&id).unwrap();
    let node = Node::new();
    for at in [0, known.index.len() / 2, known.index.len() - 1] {
        let mut bad = known.clone();
        bad.index[at] ^= 1;
        assert_eq!(node.store.learn(&bad, "a peer").unwrap_err().class(), Class::Corrupt);
    }
    node.store.learn(&known, "a peer").unwrap();
    let path = node.store.layer_path(&id).join("index");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[known.index.len() / 2] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    node.pull(&pushed).await.unwrap();
    assert_eq!(node.data(&id), tar, "it was streamed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_refused_after_its_time_with_the_cause() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(10, 3_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Plain).await;
    let id = pushed.layers[0].diff_id;
    // Enough for the read when the registry is well again, too.
    let node = Node::with(|config| config.read_wait_secs = 4);
    node.learn_from(&teacher, &pushed);
    registry.fault_status(&blobs(&pushed), 503, ALWAYS);
    node.pull(&pushed).await.unwrap();
    let error = node.read(&id, 0, 4096).await.unwrap_err();
    assert!(error.to_string().contains("503"), "{error}");
    assert!(node.puller.status(None)[0].layers[0].trouble.as_ref().unwrap().contains("503"));
    registry.heal();
    assert_eq!(node.read(&id, 0, 4096).await.unwrap(), tar[..4096]);
    node.whole(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_for_a_registry_that_lets_nobody_in() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(13, 3_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Plain).await;
    let id = pushed.layers[0].diff_id;
    // With it the time between two tries is short, too.
    let node = Node::with(|config| config.read_wait_secs = 4);
    node.learn_from(&teacher, &pushed);
    registry.fault_status(&blobs(&pushed), 403, ALWAYS);
    node.pull(&pushed).await.unwrap();
    let error = node.read(&id, 0, 4096).await.unwrap_err();
    assert!(error.class == Class::Denied && error.to_string().contains("403"), "{error}");
    let healed = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        registry.heal();
    };
    let (read, ()) = tokio::join!(node.read(&id, 0, 4096), healed);
    assert_eq!(read.unwrap(), tar[..4096]);
    node.whole(&id).await;
}

/// Bytes that a pull needs itself, to show the layer, are another matter: containerd may have credentials that silk has not.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_shown_without_what_is_denied_is_left_to_containerd() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(17, 3_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Plain).await;
    let id = pushed.layers[0].diff_id;
    // A read would wait for five minutes.
    let node = Node::new();
    node.learn_from(&teacher, &pushed);
    node.show_needs(id, 1_000_000..1_000_100);
    registry.fault_status(&blobs(&pushed), 403, ALWAYS);
    let error = tokio::time::timeout(Duration::from_secs(60), node.pull(&pushed)).await.unwrap().unwrap_err();
    assert!(error.class() == Class::Denied && error.to_string().contains("403"), "{error}");
    let refused = node.claim(&pushed).await.unwrap_err();
    assert!(refused.to_string().contains("403"), "{refused}");
}

/// All of a layer of one zstd frame comes in one piece, in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_longer_while_bytes_come() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(15, 12_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Zstd).await;
    let id = pushed.layers[0].diff_id;
    let node = Node::with(|config| config.read_wait_secs = 4);
    node.learn_from(&teacher, &pushed);
    registry.fault(&blobs(&pushed), Fault::Slow(1 << 20), ALWAYS);
    let began = Instant::now();
    node.pull(&pushed).await.unwrap();
    assert_eq!(node.read(&id, 11_000_000, 4096).await.unwrap(), tar[11_000_000..11_004_096]);
    assert!(began.elapsed() > Duration::from_secs(8), "it came too soon to tell: {:?}", began.elapsed());
    node.whole(&id).await;
}

/// What nobody reads is asked for by one request at a time, and ever more rarely where waiting hardly helps.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_refuses_is_not_asked_in_bursts() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(16, 12_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Plain).await;
    let id = pushed.layers[0].diff_id;
    let node = Node::with(|config| config.range_bytes = 1 << 20);
    node.learn_from(&teacher, &pushed);
    registry.fault_status(&blobs(&pushed), 403, ALWAYS);
    node.pull(&pushed).await.unwrap();
    // Those under way together fail together, and the next try is eight seconds later.
    registry.wait_for(&blobs(&pushed), 6).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let first = registry.count(&blobs(&pushed));
    tokio::time::sleep(Duration::from_secs(10)).await;
    let asked = registry.count(&blobs(&pushed)) - first;
    assert!((1..=3).contains(&asked), "{asked} requests in 10 s");
    registry.heal();
    assert_eq!(node.read(&id, 0, 4096).await.unwrap(), tar[..4096]);
    node.whole(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_given_up_leaves_what_is_known() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(11, 3_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Plain).await;
    let id = pushed.layers[0].diff_id;
    let node = Node::new();
    node.learn_from(&teacher, &pushed);
    registry.fault(&blobs(&pushed), Fault::NoAnswer, ALWAYS);
    node.pull(&pushed).await.unwrap();
    let waiting = tokio::spawn({
        let lazy = node.lazies.get(&id).unwrap();
        let (to, read) = tokio::sync::oneshot::channel::<bool>();
        lazy.read(0, 4096, Box::new(|answer| to.send(answer.is_ok()).unwrap_or(())));
        drop(lazy);
        read
    });
    node.lazies.give_up(&id);
    assert!(!node.store.layer_path(&id).join("data").exists());
    registry.heal();
    node.pull(&pushed).await.unwrap();
    node.whole(&id).await;
    assert_eq!(node.data(&id), tar);
    let answered = tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap().unwrap();
    assert_ne!(answered, Ok(true), "its bytes were given up");
    assert_eq!(Digest::of(&tar), id);
}

/// Two images that are known; the blob of the first drips.
async fn two_known(registry: &Fake, dripping: &Fake) -> (Node, Pushed, Pushed, Vec<u8>) {
    let (a, b) = (tar(&[("a", &noise(1, 12_000_000))]), tar(&[("b", &noise(2, 3_000_000))]));
    let teacher = Node::new();
    let slow = dripping.push_image("library/slow:1", &ImageSpec::new().layer(&a, Compression::Plain));
    let good = registry.push_image("library/good:1", &ImageSpec::new().layer(&b, Compression::Plain));
    teacher.pull(&slow).await.unwrap();
    teacher.pull(&good).await.unwrap();
    dripping.fault(&blobs(&slow), Fault::Slow(8_000), ALWAYS);
    let node = Node::patient_with(|config| config.range_bytes = 1_000_000);
    node.learn_from(&teacher, &slow);
    node.learn_from(&teacher, &good);
    node.pull(&slow).await.unwrap();
    (node, slow, good, b)
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_a_registry_that_drips_hold_up_no_other_reader() {
    let (registry, dripping) = (Fake::start().await, Fake::start().await);
    let (node, slow, good, b) = two_known(&registry, &dripping).await;
    let lazy = node.lazies.get(&slow.layers[0].diff_id).unwrap();
    for i in (0..16).rev() {
        lazy.read(300_000 + i * 700_000, 4096, Box::new(|_| ()));
    }
    dripping.wait_for_bodies(2).await;
    node.pull(&good).await.unwrap();
    let read = node.read(&good.layers[0].diff_id, 2_000_000, 4096);
    let read = tokio::time::timeout(Duration::from_secs(20), read).await;
    assert_eq!(read.expect("a registry that is well answers").unwrap(), b[2_000_000..2_004_096]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_drips_holds_up_no_other_background() {
    let (registry, dripping) = (Fake::start().await, Fake::start().await);
    let (node, _, good, _) = two_known(&registry, &dripping).await;
    dripping.wait_for_bodies(2).await;
    node.pull(&good).await.unwrap();
    let whole = tokio::time::timeout(Duration::from_secs(20), node.whole(&good.layers[0].diff_id)).await;
    whole.expect("3 MB from a registry that is well are here within 20 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_at_the_end_is_no_lie() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(1, 6_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Plain).await;
    let id = pushed.layers[0].diff_id;
    let node = Node::new();
    node.learn_from(&teacher, &pushed);
    let (toc, away) = (node.store.layer_path(&id).join("toc"), node.store.layer_path(&id).join("away"));
    let before = registry.sent(&blobs(&pushed));
    registry.fault(&blobs(&pushed), Fault::Hold, ALWAYS);
    node.pull(&pushed).await.unwrap();
    registry.wait_for_bodies(1).await;
    // What cannot be read.
    fs::rename(&toc, &away).unwrap();
    fs::create_dir(&toc).unwrap();
    registry.heal();
    let lazy = node.lazies.get(&id).unwrap();
    eventually("all is here", || lazy.arrived().background == tar.len() as u64).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node.read(&id, 1_000_000, 4096).await.unwrap(), tar[1_000_000..1_004_096]);
    fs::remove_dir(&toc).unwrap();
    fs::rename(&away, &toc).unwrap();
    node.whole(&id).await;
    assert_eq!(registry.sent(&blobs(&pushed)) - before, before, "it came once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_not_refused_for_what_was_before_it() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(12, 3_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Plain).await;
    let id = pushed.layers[0].diff_id;
    let node = Node::new();
    node.learn_from(&teacher, &pushed);
    registry.fault(&blobs(&pushed), Fault::error(404, "BLOB_UNKNOWN", "it is gone"), ALWAYS);
    node.pull(&pushed).await.unwrap();
    // The second by a request that was made for it.
    for _ in 0..2 {
        let error = node.read(&id, 0, 4096).await.unwrap_err();
        assert!(error.class == Class::NotFound && error.to_string().contains("it is gone"), "{error}");
    }
    registry.heal();
    assert_eq!(node.read(&id, 0, 4096).await.unwrap(), tar[..4096]);
    node.whole(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_has_another_blob_costs_no_knowledge() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(14, 3_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Plain).await;
    let id = pushed.layers[0].diff_id;
    // With it the time between two tries is short, too.
    let node = Node::with(|config| config.read_wait_secs = 4);
    node.learn_from(&teacher, &pushed);
    let asked =
        || registry.requests().iter().filter(|r| r.path.contains(&pushed.layers[0].blob_digest.to_string())).count();
    let before = asked();
    registry.fault(&blobs(&pushed), Fault::Truncate(1_000_000), ALWAYS);
    node.pull(&pushed).await.unwrap();
    eventually("it was asked for again and again", || asked() >= before + 7).await;
    assert!(node.lazies.size(&id).is_some(), "its index is not believed");
    registry.heal();
    assert_eq!(node.read(&id, 2_000_000, 4096).await.unwrap(), tar[2_000_000..2_004_096]);
    node.whole(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_are_mended_are_asked_for_a_layer_that_fills() {
    let (registry, mirror) = (Fake::start().await, Fake::start().await);
    let tar = tar(&[("noise", &noise(15, 3_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Plain).await;
    let id = pushed.layers[0].diff_id;
    mirror.mirror(&registry);
    // With it the time between two tries is short, too.
    let node = Node::with(|config| config.read_wait_secs = 4);
    node.learn_from(&teacher, &pushed);
    registry.fault_status(&blobs(&pushed), 403, ALWAYS);
    node.pull(&pushed).await.unwrap();
    let error = node.read(&id, 0, 4096).await.unwrap_err();
    assert!(error.to_string().contains("403"), "{error}");
    node.mirror(&registry, &mirror);
    eventually("the mirror is asked", || mirror.count("GET .*/blobs/") > 0).await;
    assert_eq!(node.read(&id, 0, 4096).await.unwrap(), tar[..4096]);
    node.whole(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_read_waits_for_a_disk_that_is_full() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(13, 6_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Plain).await;
    let id = pushed.layers[0].diff_id;
    let disk = SmallDisk::new();
    let node = Node::on(disk.0.path());
    node.learn_from(&teacher, &pushed);
    registry.fault(&blobs(&pushed), Fault::Hold, ALWAYS);
    node.pull(&pushed).await.unwrap();
    let filler = disk.0.path().join("filler");
    assert_eq!(fs::write(&filler, vec![1; 64 << 20]).unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    let (to, mut read) = tokio::sync::oneshot::channel();
    let lazy = node.lazies.get(&id).unwrap();
    lazy.read(0, 4096, Box::new(|answer| drop(to.send(answer.map(<[u8]>::to_vec)))));
    registry.heal();
    let full = || lazy.trouble().is_some_and(|trouble| trouble.contains("No space left"));
    eventually("the disk is full", full).await;
    assert!(read.try_recv().is_err(), "refused");
    fs::remove_file(&filler).unwrap();
    assert_eq!(read.await.unwrap().unwrap(), tar[..4096]);
    node.whole(&id).await;
}

/// A file system of 48 MiB.
pub struct SmallDisk(pub tempfile::TempDir);

impl SmallDisk {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=48m", "silk-test"]).arg(dir.path()).status();
        assert!(mounted.unwrap().success());
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_the_disk_does_not_give_back_are_fetched_again() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(1, 20_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Plain).await;
    let id = pushed.layers[0].diff_id;
    let node = Node::waiting_with(1, |config| config.ranges_at_once = 1);
    node.learn_from(&teacher, &pushed);
    let before = registry.sent(&blobs(&pushed));
    // 20 MB in 5 s: it is not whole before the restart.
    registry.fault(&blobs(&pushed), Fault::Slow(4_000_000), ALWAYS);
    node.pull(&pushed).await.unwrap();
    node.read(&id, tar.len() as u64 - 1000, 1000).await.unwrap();
    let node = node.restart();
    registry.heal();
    registry.fault(&blobs(&pushed), Fault::NoAnswer, ALWAYS);
    node.pull(&pushed).await.unwrap();
    // Of the last span, which is here, and behind which nothing is written that would make a hole of it.
    let data = fs::OpenOptions::new().write(true).open(node.store.layer_path(&id).join("data")).unwrap();
    data.set_len(tar.len() as u64 - 1000).unwrap();
    assert!(node.read(&id, tar.len() as u64 - 1000, 1000).await.is_err(), "never zeros");
    registry.heal();
    node.whole(&id).await;
    assert_eq!(node.data(&id), tar);
    assert!(node.renewed().iter().all(|(_, lied)| !lied), "nobody lied");
    let sent = registry.sent(&blobs(&pushed)) - before;
    assert!(sent < before + before / 2, "{sent} bytes of {before}: the layer was streamed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_hardly_gives_anything_is_given_up() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(9, 2_000_000))]);
    let (teacher, pushed) = taught(&registry, &tar, Compression::Plain).await;
    let id = pushed.layers[0].diff_id;
    let node = Node::waiting(300);
    node.learn_from(&teacher, &pushed);
    // Some eight minutes for all of it.
    registry.fault(&blobs(&pushed), Fault::Slow(4_000), 1);
    node.pull(&pushed).await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(120), node.read(&id, 1_900_000, 4096));
    assert_eq!(read.await.expect("it is asked for again").unwrap(), tar[1_900_000..1_904_096]);
    node.whole(&id).await;
    assert_eq!(node.data(&id), tar);
}
