//! What others say of an image and its layers, true or not: the bytes that are read are the image's own, whoever lied is named, and
//! nobody else.

use std::{
    slice::from_ref,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use silk_layer::{
    index,
    profile::{FADES_AFTER, GRAIN, Profile, Seen, decode, encode},
    toc::{self, Entry, Toc},
};
use silk_model::Digest;
use silk_share::{Backend, Key};
use silk_store::Known;
use silk_testkit::{ALWAYS, Compression, Fake, Fault, ImageSpec, LayerSpec, Pushed, PushedLayer, noise, tar};

use crate::{
    node::{Misnamed, Node, eventually},
    peer::Peer,
};

/// An image of these layers, and what is known of them.
async fn taught(registry: &Fake, name: &str, layers: &[(&[u8], Compression)]) -> (Pushed, Vec<Known>) {
    let image = layers.iter().fold(ImageSpec::new(), |image, (tar, compression)| image.layer(tar, *compression));
    let pushed = registry.push_image(name, &image);
    let teacher = Node::new();
    teacher.pull(&pushed).await.unwrap();
    let known = pushed.layers.iter().map(|layer| teacher.store.known(&layer.diff_id).unwrap()).collect();
    (pushed, known)
}

/// What somebody made up; hashes and seals are right.
fn altered(known: &Known, change: impl FnOnce(&mut Vec<Entry<'_>>, &mut index::Index)) -> Known {
    let (toc, mut index) = (toc::decode(&known.toc).unwrap(), index::decode(&known.index).unwrap());
    let mut entries = toc.entries().collect();
    change(&mut entries, &mut index);
    Known { toc: toc::encode(&Toc::new(toc.size(), &entries)), index: index::encode(&index), ..known.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_a_blob_of_another_size_is_not_used() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(1, 6_000_000))]);
    let (pushed, known) = taught(&registry, "library/app:1", &[(&tar, Compression::Gzip)]).await;
    let layer = &pushed.layers[0];
    for by in [1, 1_000_000_000] {
        let peer = Peer::new();
        peer.say(&altered(&known[0], |_, index| index.blob_size += by));
        let node = Node::sharing(vec![peer.clone()]);
        node.pull(&pushed).await.unwrap();
        let end = tar.len() - 100_000;
        assert_eq!(node.read(&layer.diff_id, end as u64, 100_000).await.unwrap(), tar[end..]);
        node.whole(&layer.diff_id).await;
        assert_eq!(node.data(&layer.diff_id), tar);
        eventually("the truth takes its place", || peer.layer(&layer.blob_digest).unwrap().index == known[0].index)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_wrong_costs_others_nothing() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(2, 3_000_000))]);
    let (pushed, known) = taught(&registry, "library/app:1", &[(&tar, Compression::Gzip)]).await;
    let layer = || LayerSpec::new(&tar, Compression::Gzip);
    let (blob, size) = (pushed.layers[0].blob_digest, layer().blob().len() as u64);
    let wrong =
        [ImageSpec::new().with(layer().with_diff_id(blob)), ImageSpec::new().with(layer().claiming(blob, size + 1))];
    for (n, image) in wrong.into_iter().enumerate() {
        let peer = Peer::new();
        peer.say(&known[0]);
        let wrong = registry.push_image(&format!("library/wrong:{n}"), &image);
        let node = Node::sharing(vec![peer.clone() as Arc<dyn Backend>]);
        node.pull(&wrong).await.unwrap_err();
        // The same node, and what it was told, are good for the image that is right.
        node.pull(&pushed).await.unwrap();
        node.whole(&pushed.layers[0].diff_id).await;
        assert_eq!(node.store.list().len(), 1);
        assert_eq!(peer.removed(), [], "{n}");
        assert!(peer.layer(&blob).is_some(), "{n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_newer_silk_knows_is_left_alone() {
    let registry = Fake::start().await;
    let tars = [1, 2, 3].map(|seed| tar(&[("noise", &noise(seed, 1_000_000))]));
    let layers: Vec<_> = tars.iter().map(|tar| (&tar[..], Compression::Plain)).collect();
    let (pushed, mut known) = taught(&registry, "library/app:1", &layers).await;
    let newer = |bytes: &mut Vec<u8>| bytes[8] = 2;
    newer(&mut known[0].toc);
    newer(&mut known[1].index);
    let peer = Peer::new();
    known[..2].iter().for_each(|known| peer.say(known));
    let mut profile = silk_layer::profile::encode(&Profile::default());
    newer(&mut profile);
    peer.say_profile(pushed.manifest_digest, profile.clone());
    let node = Node::sharing(vec![peer.clone()]);
    node.pull(&pushed).await.unwrap();
    for layer in &pushed.layers[..2] {
        let PushedLayer { diff_id, blob_digest: blob, .. } = *layer;
        let spec = silk_pull::LayerSpec { diff_id, blob, size: 0, media_type: String::new() };
        assert!(silk_pull::is_of(&peer.layer(&blob).unwrap(), &spec), "silk index leaves it alone, too");
    }
    let told = |n: usize| peer.layer(&pushed.layers[n].blob_digest);
    eventually("what it did not know is told", || told(2).is_some()).await;
    let seen = Seen { touches: vec![(pushed.layers[0].diff_id, 0..1)], ..Seen::default() };
    node.puller.learn_start(&pushed.manifest_digest, &pushed.reference, seen).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((&told(0).unwrap().toc[..], &told(1).unwrap().index[..]), (&known[0].toc[..], &known[1].index[..]));
    assert_eq!(peer.profile(&pushed.manifest_digest).unwrap(), profile);
    assert_eq!(peer.removed(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_make_no_tree_cost_a_stream_and_not_the_pull() {
    let registry = Fake::start().await;
    let tars = [4, 5].map(|seed| tar(&[("noise", &noise(seed, 5_000_000))]));
    let layers: Vec<_> = tars.iter().map(|tar| (&tar[..], Compression::Gzip)).collect();
    let (pushed, known) = taught(&registry, "library/app:1", &layers).await;
    let [lower, upper] = [0, 1].map(|n| pushed.layers[n].diff_id);
    for (liar, fails) in [(lower, upper), (lower, lower), (upper, upper)] {
        let peer = Peer::new();
        for known in &known {
            let lies = known.diff_id == liar;
            peer.say(&altered(known, |entries, _| {
                if lies {
                    entries[0].path = b"../up".into()
                }
            }));
        }
        let node = Node::sharing(vec![peer.clone()]);
        node.misname(Misnamed { liar, fails });
        node.pull(&pushed).await.unwrap();
        for (layer, tar) in pushed.layers.iter().zip(&tars) {
            node.whole(&layer.diff_id).await;
            assert_eq!(node.data(&layer.diff_id), *tar);
            let toc = node.store.toc(&layer.diff_id).unwrap();
            assert_eq!(*toc.entries().next().unwrap().path, *b"noise");
        }
        let blob = pushed.layers.iter().find(|layer| layer.diff_id == liar).unwrap().blob_digest;
        eventually("the liar is found", || !peer.removed().is_empty()).await;
        assert_eq!(peer.removed(), [Key::Layer(blob)], "{liar} {fails}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_lies_costs_no_peer_its_name() {
    let registry = Fake::start().await;
    // One range, so that it is known which request is which.
    let tar = tar(&[("noise", &noise(6, 3_000_000))]);
    let (pushed, known) = taught(&registry, "library/app:1", &[(&tar, Compression::Gzip)]).await;
    let layer = &pushed.layers[0];
    let peer = Peer::new();
    peer.say(&known[0]);
    let node = Node::sharing(vec![peer.clone()]);
    registry.fault(&format!("GET .*{}", layer.blob_digest), Fault::Flip(1_500_000), 2);
    node.pull(&pushed).await.unwrap();
    node.whole(&layer.diff_id).await;
    assert_eq!(node.data(&layer.diff_id), tar);
    assert!(node.renewed().contains(&(layer.diff_id, true)), "it had to be streamed");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(peer.removed(), []);
    assert!(peer.layer(&layer.blob_digest).is_some());
}

fn start(pushed: &Pushed, entrypoint: &str, grain: u64) -> Seen {
    let touches = vec![(pushed.layers[0].diff_id, grain * GRAIN..grain * GRAIN + 1)];
    Seen { entrypoint: entrypoint.into(), touches, ..Seen::default() }
}

fn profile_of(starts: &[Seen]) -> Profile {
    let mut profile = Profile::default();
    starts.iter().for_each(|start| profile.learn(start));
    profile
}

/// Waits until a peer has a profile with so many starts.
async fn starts(peer: &Peer, pushed: &Pushed, count: usize) -> Profile {
    let profile = || decode(&peer.profile(&pushed.manifest_digest).unwrap_or_default()).unwrap_or_default();
    eventually("its profile has all starts", || profile().starts.len() == count).await;
    profile()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_is_joined_with_what_each_place_has() {
    let registry = Fake::start().await;
    let pushed = registry.push_image("library/app:1", &ImageSpec::new().layer(tar(&[]), Compression::Plain));
    let (manifest, [a, b, c, d]) = (pushed.manifest_digest, ["a", "b", "c", "d"].map(|name| start(&pushed, name, 1)));
    let (one, other) = (Peer::new(), Peer::new());
    one.say_profile(manifest, encode(&profile_of(from_ref(&a))));
    other.say_profile(manifest, encode(&profile_of(from_ref(&b))));
    let node = Node::sharing(vec![one.clone(), other.clone()]);
    node.puller.learn_start(&manifest, &pushed.reference, c.clone()).await;
    starts(&one, &pushed, 2).await;
    starts(&other, &pushed, 3).await;
    // An operator's file takes nothing away either.
    let stranger = Node::sharing(vec![one.clone(), other.clone()]);
    stranger.puller.import_profile(&manifest, &pushed.reference, profile_of(from_ref(&d))).await.unwrap();
    starts(&one, &pushed, 3).await;
    starts(&other, &pushed, 4).await;
    // What was taken in and then forgotten does not come back.
    let node = Node::sharing(vec![one.clone()]);
    one.say_profile(manifest, encode(&profile_of(&[start(&pushed, "a", 1), start(&pushed, "a", 2)])));
    for _ in 0..FADES_AFTER {
        let seen = Seen { complete: [pushed.layers[0].diff_id].into(), ..start(&pushed, "a", 2) };
        node.puller.learn_start(&manifest, &pushed.reference, seen).await;
        let count = node.puller.profile(&manifest).await.unwrap().starts[0].count;
        let theirs = || decode(&one.profile(&manifest).unwrap()).unwrap().starts[0].count;
        eventually("it is told", || theirs() == count).await;
    }
    let runs = decode(&one.profile(&manifest).unwrap()).unwrap().starts[0].runs.clone();
    assert_eq!(runs.iter().map(|run| run.first).collect::<Vec<_>>(), [2]);
    // Dropped is dropped.
    node.puller.drop_profile(&manifest, &pushed.reference).await.unwrap();
    starts(&one, &pushed, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_cannot_be_asked_loses_no_profile() {
    let registry = Fake::start().await;
    let pushed = registry.push_image("library/app:1", &ImageSpec::new().layer(tar(&[]), Compression::Plain));
    let (manifest, [a, b]) = (pushed.manifest_digest, ["a", "b"].map(|name| start(&pushed, name, 1)));
    let peer = Peer::new();
    peer.say_profile(manifest, encode(&profile_of(&[a])));
    let node = Node::sharing(vec![peer.clone()]);
    peer.mute.store(true, Ordering::Relaxed);
    node.puller.learn_start(&manifest, &pushed.reference, b).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    peer.mute.store(false, Ordering::Relaxed);
    starts(&peer, &pushed, 2).await;
}

/// A lie: what is wrong, and how.
type Lie = (&'static str, fn(&mut Vec<Entry<'_>>, &mut index::Index));

/// A span in the middle, with an entry.
fn middle(index: &index::Index) -> usize {
    let middle = index.len() / 2;
    (middle..index.len()).find(|span| index.spans[*span].entry.is_some()).unwrap()
}

fn entry(index: &mut index::Index) -> &mut index::Entry {
    let at = middle(index);
    index.spans[at].entry.as_mut().unwrap()
}

const LIES: [Lie; 11] = [
    ("an offset", |_, index| entry(index).offset += 1),
    ("an offset far away", |_, index| entry(index).offset += 20_000),
    ("bits", |_, index| entry(index).bits = (entry(index).bits + 3) % 8),
    ("no window", |_, index| {
        entry(index).bits = 0;
        entry(index).window.clear();
    }),
    ("a window that is none", |_, index| entry(index).window = vec![7; 1000]),
    ("a span's digest", |_, index| {
        let at = middle(index);
        let digest = index.spans[at - 1].digest.clone();
        let (a, b) = (index.range(at - 1).end % 64, index.range(at).end % 64);
        index.spans[at].digest = if a == b { digest } else { index.spans[at].digest.clone() };
        index.spans[at].start += 64;
    }),
    ("no entries", |_, index| index.spans.iter_mut().skip(1).for_each(|span| span.entry = None)),
    ("another compression", |_, index| {
        index.compression = silk_layer::media::Compression::Zstd;
        for entry in index.spans.iter_mut().filter_map(|span| span.entry.as_mut()) {
            (entry.bits, entry.window) = (0, vec![]);
        }
    }),
    ("a path", |entries, _| entries[0].path = b"other".into()),
    ("an extent", |entries, _| entries[0].kind = silk_layer::toc::Kind::File { size: 1 << 40, extents: [][..].into() }),
    ("a million files", |entries, _| *entries = vec![entries[0].clone(); 1_000_000]),
];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_said_of_a_layer_its_own_bytes_are_read() {
    let registry = Fake::start().await;
    let tar = tar(&[("text", &text())]);
    let (pushed, known) = taught(&registry, "library/app:1", &[(&tar, Compression::Gzip)]).await;
    let layer = &pushed.layers[0];
    let whole = toc::decode(&known[0].toc).unwrap();
    for (what, lie) in LIES {
        let peer = Peer::new();
        let said = altered(&known[0], lie);
        peer.say(&said);
        // Short ranges, so that entries are used.
        let node = Node::sharing_with(vec![peer.clone()], |config| config.range_bytes = 200_000);
        node.pull(&pushed).await.unwrap();
        let mut at = 0;
        while at < tar.len() {
            let len = (tar.len() - at).min(300_000);
            assert_eq!(node.read(&layer.diff_id, at as u64, len).await.unwrap(), tar[at..at + len], "{what}");
            at += len;
        }
        node.whole(&layer.diff_id).await;
        assert_eq!(node.data(&layer.diff_id), tar, "{what}");
        assert_eq!(node.store.toc(&layer.diff_id).unwrap(), whole, "{what}");
        assert_ne!(said, known[0], "{what}");
        // An index with fewer places is a poor one, and no lie.
        if what != "no entries" {
            eventually(&format!("{what} is found"), || !peer.removed().is_empty()).await;
            assert_eq!(peer.removed(), [Key::Layer(layer.blob_digest)], "{what}");
            eventually("the truth is told", || {
                peer.layer(&layer.blob_digest).is_some_and(|told| told.index == known[0].index)
            })
            .await;
        }
    }
}

/// Words that come again, so that windows matter.
fn text() -> Vec<u8> {
    let (words, chosen) = (noise(7, 256 * 12), noise(8, 1_500_000));
    chosen.chunks(4).flat_map(|c| [&words[usize::from(c[0]) * 12..][..12], c].concat()).collect()
}

/// A node with a layer that is streamed, because what others say of it is no good, and slowly; its diff ID and its tar.
async fn streamed_after_all(registry: &Fake, read_wait_secs: u64) -> (Node, Digest, Vec<u8>) {
    let tar = tar(&[("text", &text())]);
    let (pushed, known) = taught(registry, "library/app:1", &[(&tar, Compression::Gzip)]).await;
    let id = pushed.layers[0].diff_id;
    let peer = Peer::new();
    let (_, lie) = LIES[4];
    peer.say(&altered(&known[0], lie));
    let node = Node::sharing_with(vec![peer], |config| {
        (config.range_bytes, config.ranges_at_once, config.read_wait_secs) = (200_000, 2, read_wait_secs);
    });
    registry.fault("GET .*/blobs/", Fault::Slow(50_000), silk_testkit::ALWAYS);
    node.pull(&pushed).await.unwrap();
    eventually("it is streamed", || node.lazies.get(&id).is_some() && node.lazies.size(&id).is_none()).await;
    (node, id, tar)
}

/// The blob comes slowly: a read waits for as long as bytes come, and no longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_a_layer_that_is_streamed_after_all_has_its_time() {
    let registry = Fake::start().await;
    let (node, id, tar) = streamed_after_all(&registry, 4).await;
    let mut read = Box::pin(node.read(&id, tar.len() as u64 - 5000, 5000));
    tokio::time::timeout(Duration::from_secs(8), &mut read).await.expect_err("bytes come, and it waits for more");
    registry.heal();
    registry.fault("GET .*/blobs/", Fault::NoAnswer, silk_testkit::ALWAYS);
    let error = tokio::time::timeout(Duration::from_secs(20), read).await.expect("it is answered");
    let error = error.map(|bytes| bytes.len()).unwrap_err().to_string();
    assert!(error.contains("in time"), "{error}");
    registry.heal();
}

/// And nobody lets silk in meanwhile: it waits for that, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_a_layer_that_is_streamed_after_all_waits_for_credentials() {
    let registry = Fake::start().await;
    let (node, id, tar) = streamed_after_all(&registry, 300).await;
    registry.heal();
    registry.fault("GET .*/blobs/", Fault::status(403), silk_testkit::ALWAYS);
    let mut read = Box::pin(node.read(&id, tar.len() as u64 - 5000, 5000));
    let lazy = node.lazies.get(&id).unwrap();
    let refused = async {
        eventually("the stream was refused", || lazy.trouble().is_some_and(|trouble| trouble.contains("403"))).await;
    };
    tokio::select! {
        () = refused => {}
        answer = &mut read => panic!("the read did not wait: {answer:?}"),
    }
    registry.heal();
    assert_eq!(read.await.unwrap(), tar[tar.len() - 5000..]);
}

/// A mirror that is away never sends wrong bytes: what others say is found to be no good all the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_lies_is_blamed_although_a_mirror_is_left() {
    let (registry, mirror) = (Fake::start().await, Fake::start().await);
    let tar = tar(&[("text", &text())]);
    let (pushed, known) = taught(&registry, "library/app:1", &[(&tar, Compression::Gzip)]).await;
    let id = pushed.layers[0].diff_id;
    let (_, lie) = LIES[0];
    // Short ranges, so that entries are used.
    let node = Node::mirrored(&registry, &mirror, |config| config.range_bytes = 200_000);
    node.store.learn(&altered(&known[0], lie), "a peer").unwrap();
    node.pull(&pushed).await.unwrap();
    assert!(!node.store.whole(&id), "it is mounted by what was said");
    assert_eq!(node.read(&id, tar.len() as u64 - 5000, 5000).await.unwrap(), tar[tar.len() - 5000..]);
    node.whole(&id).await;
    assert_eq!(node.data(&id), tar);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pull_waits_for_a_profile() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(8, 1_000_000))]);
    let (pushed, known) = taught(&registry, "library/app:1", &[(&tar, Compression::Plain)]).await;
    let (one, slow) = (Peer::new(), Peer::new());
    one.say(&known[0]);
    slow.hangs.store(true, Ordering::Relaxed);
    let node = Node::sharing(vec![one, slow.clone()]);
    let pulled = tokio::time::timeout(Duration::from_secs(30), node.pull(&pushed)).await;
    pulled.expect("all that it needs is known").unwrap();
    node.whole(&pushed.layers[0].diff_id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn others_are_asked_while_the_registry_is() {
    let registry = Fake::start().await;
    let tar = tar(&[("noise", &noise(9, 1_000_000))]);
    let (pushed, known) = taught(&registry, "library/app:1", &[(&tar, Compression::Gzip)]).await;
    let (peer, layer) = (Peer::new(), &pushed.layers[0]);
    peer.say(&known[0]);
    peer.hangs.store(true, Ordering::Relaxed);
    let node = Node::sharing(vec![peer.clone()]);
    let asked = || peer.asked.load(Ordering::Relaxed);
    registry.fault("/manifests/", Fault::NoAnswer, ALWAYS);
    tokio::select! {
        _ = node.claim(&pushed) => panic!("the registry has not answered"),
        () = eventually("the peer is asked meanwhile", || asked() == 1) => {}
    }
    // The claim was given up. One that is not waits for the registry, and its pull for the peer that was asked with it.
    registry.heal();
    node.claim(&pushed).await.unwrap();
    eventually("the peer is asked again", || asked() == 2).await;
    peer.hangs.store(false, Ordering::Relaxed);
    peer.resume.notify_one();
    node.ready(&pushed).await.unwrap();
    assert_eq!(asked(), 2, "the pull asks nobody itself");
    node.whole(&layer.diff_id).await;
    assert_eq!(node.data(&layer.diff_id), tar);
}
