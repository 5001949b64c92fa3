//! What a start is known to touch comes first, and readers join it.

use std::{ops::Range, sync::atomic::Ordering, time::Duration};

use crate::{
    node::{Node, eventually},
    peer::Peer,
};
use silk_layer::profile::{GRAIN, Profile, Seen, decode};
use silk_model::Digest;
use silk_testkit::{ALWAYS, Compression, Fake, Fault, ImageSpec, Pushed, noise, tar};

/// An image of two layers of noise, pulled by a node that teaches others.
async fn taught(registry: &Fake) -> (Node, Pushed, [Vec<u8>; 2]) {
    let tars = [1, 2].map(|seed| tar(&[("noise", &noise(seed, 24_000_000))]));
    let image = tars.iter().fold(ImageSpec::new(), |image, tar| image.layer(tar, Compression::Plain));
    let pushed = registry.push_image("library/app:1", &image);
    let teacher = Node::new();
    teacher.pull(&pushed).await.unwrap();
    (teacher, pushed, tars)
}

fn profile(touches: &[(Digest, Range<u64>)]) -> Profile {
    let mut profile = Profile::default();
    profile.learn(&Seen { touches: touches.to_vec(), ..Seen::default() });
    profile
}

/// Which bytes of blobs were asked for, since `skip` requests.
fn asked(registry: &Fake, skip: usize) -> Vec<(Digest, Range<u64>)> {
    let requests = registry.matching("GET .*/blobs/").into_iter().skip(skip);
    let range = |request: &silk_testkit::Request| {
        let (from, to) = request.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        let blob = request.path.rsplit('/').next()?.parse().ok()?;
        Some((blob, from.parse().ok()?..to.parse::<u64>().ok()? + 1))
    };
    requests.filter_map(|request| range(&request)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_is_fetched_before_all_else() {
    let registry = Fake::start().await;
    let (teacher, pushed, tars) = taught(&registry).await;
    let [one, two] = [0, 1].map(|nr| pushed.layers[nr].clone());
    // Neighbours in the last place, far behind each other in the others.
    let touches = [
        (two.diff_id, 20_000_000..20_000_001),
        (one.diff_id, 9_000_000..9_100_000),
        (two.diff_id, 3_000_000..3_000_001),
        (two.diff_id, 3_250_000..3_250_001),
    ];
    let node = Node::new();
    node.learn_from(&teacher, &pushed);
    let kept = node.puller.import_profile(&pushed.manifest_digest, &pushed.reference, profile(&touches)).await;
    assert_eq!(node.puller.profile(&pushed.manifest_digest).await.unwrap(), kept.unwrap());
    let before = registry.count("GET .*/blobs/");
    registry.fault("GET .*/blobs/", Fault::Slow(60_000_000), ALWAYS);
    node.pull(&pushed).await.unwrap();
    let lazies = [&one, &two].map(|layer| node.lazies.get(&layer.diff_id).unwrap());
    for (layer, tar) in [&one, &two].into_iter().zip(&tars) {
        node.whole(&layer.diff_id).await;
        assert_eq!(node.data(&layer.diff_id), *tar);
    }
    let asked = asked(&registry, before);
    // They go out together, and nothing else does before all of them are here.
    for (blob, at) in [(two.blob_digest, 20_000_000), (one.blob_digest, 9_050_000), (two.blob_digest, 3_000_000)] {
        let (_, range) = asked[..3].iter().find(|(b, range)| *b == blob && range.contains(&at)).unwrap();
        assert!(range.end - range.start < 3 << 20, "{at}: {asked:?}");
        assert!(at != 3_000_000 || range.contains(&3_250_000), "neighbours come together: {asked:?}");
    }
    let arrived = lazies.map(|lazy| lazy.arrived());
    assert!(arrived.iter().all(|a| a.profile >= 100_000 && a.demand == 0), "{arrived:?}");
    assert!(arrived.iter().map(|a| a.profile).sum::<u64>() < 10 << 20, "{arrived:?}");
    for (arrived, tar) in arrived.iter().zip(&tars) {
        assert_eq!(arrived.profile + arrived.background, tar.len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_of_an_image_starts_as_the_last_one_did() {
    let registry = Fake::start().await;
    let [base, old, new] = [1, 2, 3].map(|seed| tar(&[("noise", &noise(seed, 24_000_000))]));
    let push = |name, layers: [&[u8]; 2]| {
        let image = layers.iter().fold(ImageSpec::new(), |image, tar| image.layer(*tar, Compression::Plain));
        registry.push_image(name, &image)
    };
    let (old, new) = (push("library/app:1", [&base, &old]), push("library/app:2", [&base, &new]));
    // More than a range, which the background may have.
    let small = tar(&[("small", &noise(4, 7_000_000))]);
    let newer = push("library/app:3", [&base, &small]);
    let stranger = push("library/other:2", [&base, &small]);
    let teacher = Node::new();
    let peer = Peer::new();
    for image in [&old, &new, &newer, &stranger] {
        teacher.pull(image).await.unwrap();
        image.layers.iter().for_each(|layer| peer.say(&teacher.store.known(&layer.diff_id).unwrap()));
    }
    let starter = Node::sharing(vec![peer.clone()]);
    let shared = &old.layers[0];
    let touches = vec![(old.layers[1].diff_id, 0..1), (shared.diff_id, 20_000_000..20_000_001)];
    let seen = Seen { entrypoint: "app".into(), touches, ..Seen::default() };
    starter.puller.learn_start(&old.manifest_digest, &old.reference, seen).await;
    let name = old.reference.strip_suffix(":1").unwrap();
    let repository = Digest::of(format!("repository {} {name}", std::env::consts::ARCH).as_bytes());
    let told = || peer.profile(&repository).is_some_and(|profile| !decode(&profile).unwrap().starts.is_empty());
    eventually("the repository's is told", told).await;
    for (image, by_profile, news) in [(&new, true, false), (&newer, true, true), (&stranger, false, false)] {
        // Until it is seen who asks.
        registry.fault("GET .*/blobs/", Fault::Hold, ALWAYS);
        let node = Node::sharing_with(vec![peer.clone()], |config| config.ranges_at_once = 1);
        let before = registry.count("GET .*/blobs/");
        node.pull(image).await.unwrap();
        let [lazy, top] = [0, 1].map(|nr| node.lazies.get(&image.layers[nr].diff_id).unwrap());
        registry.wait_for("GET .*/blobs/", before + 1 + usize::from(news)).await;
        registry.heal();
        for layer in &image.layers {
            node.whole(&layer.diff_id).await;
        }
        assert_eq!(lazy.arrived().profile > 0, by_profile);
        assert_eq!(top.arrived().profile > 0, news, "a small layer that is new comes first");
        assert!(node.warmed().is_empty(), "all that its start reads is seen");
        // The start is over then.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(node.puller.profile(&image.manifest_digest).await.unwrap(), Profile::default(), "not its own");
    }
    starter.puller.drop_profile(&new.manifest_digest, &new.reference).await.unwrap();
    assert!(told(), "nothing was known of that one");
    starter.puller.drop_profile(&old.manifest_digest, &old.reference).await.unwrap();
    eventually("it is dropped there, too", || !told()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_start_touches_is_brought_to_the_page_cache_but_for_some() {
    let registry = Fake::start().await;
    let (teacher, pushed, _) = taught(&registry).await;
    let layer = pushed.layers[1].diff_id;
    // Each is a run of one grain.
    let touches: Vec<_> = (0..10).map(|nr| (layer, nr * 2_000_000..nr * 2_000_000 + 1)).collect();
    let node = Node::new();
    node.learn_from(&teacher, &pushed);
    node.puller.import_profile(&pushed.manifest_digest, &pushed.reference, profile(&touches)).await.unwrap();
    node.pull(&pushed).await.unwrap();
    let warmed = node.lazies.get(&layer).unwrap().warmed();
    node.whole(&layer).await;
    let grains = touches.iter().map(|(_, bytes)| bytes.start / GRAIN * GRAIN);
    let (left, expected): (Vec<_>, Vec<_>) = grains.partition(|start| start / GRAIN % 8 == 7);
    assert_eq!(left.len(), 1);
    let brought = || {
        let mut starts: Vec<_> =
            node.warmed().iter().map(|(of, bytes)| (*of == layer).then_some(bytes.start)).collect();
        starts.sort();
        starts
    };
    // The second says it to who watches.
    let done = || brought().len() >= expected.len() && warmed.load(Ordering::Relaxed);
    eventually("all of it is brought", done).await;
    assert_eq!(brought(), expected.into_iter().map(Some).collect::<Vec<_>>(), "{left:?} is its reader's");
    assert!(node.warmed().iter().all(|(_, bytes)| bytes.end - bytes.start == GRAIN));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_joins_what_comes_by_profile() {
    let registry = Fake::start().await;
    let (teacher, pushed, tars) = taught(&registry).await;
    let layer = pushed.layers[1].clone();
    let node = Node::waiting(1);
    node.learn_from(&teacher, &pushed);
    let touches = [(layer.diff_id, 10_000_000..10_000_001)];
    node.puller.import_profile(&pushed.manifest_digest, &pushed.reference, profile(&touches)).await.unwrap();
    let before = registry.count("GET .*/blobs/");
    registry.fault("GET .*/blobs/", Fault::NoAnswer, 1);
    node.pull(&pushed).await.unwrap();
    registry.wait_for("GET .*/blobs/", before + 1).await;
    let lazy = node.lazies.get(&layer.diff_id).unwrap();
    let bytes = node.read(&layer.diff_id, 10_000_000, 1000).await.unwrap();
    assert_eq!(bytes, tars[1][10_000_000..10_001_000]);
    assert_eq!(lazy.arrived().demand, 0, "nothing was fetched for the reader alone");
    assert!(lazy.arrived().profile > 0);
    node.whole(&layer.diff_id).await;
    let mut ranges: Vec<_> =
        asked(&registry, before).into_iter().filter(|(blob, _)| *blob == layer.blob_digest).collect();
    ranges.sort_by_key(|(_, range)| range.start);
    ranges.dedup();
    assert!(ranges.windows(2).all(|pair| pair[0].1.end <= pair[1].1.start), "fetched twice: {ranges:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_teach_what_a_start_touches() {
    let node = Node::new();
    let [one, two, other] = [1, 2, 3].map(|nr: u8| Digest::of(&[nr]));
    node.lazies.note_read(&one, 0, 10);
    let watch = node.lazies.watch([one, two]);
    for (layer, offset, len) in [(&two, 5 * GRAIN, 4096), (&other, 0, 1), (&one, 0, 1), (&two, 5 * GRAIN + 4096, 4096)]
    {
        node.lazies.note_read(layer, offset, len);
    }
    node.lazies.note_read(&one, GRAIN, 3 * GRAIN as usize);
    let touches = watch.take();
    assert_eq!(touches, [(two, 5 * GRAIN..5 * GRAIN + 4096), (one, 0..1), (one, GRAIN..4 * GRAIN)]);
    assert_eq!(watch.take(), []);
    drop(watch);
    let manifest = Digest::of(b"manifest");
    let seen = Seen { entrypoint: "app".into(), touches, complete: [one, two].into() };
    node.puller.learn_start(&manifest, "localhost:1/app:1", seen.clone()).await;
    let mut learned = Profile::default();
    learned.learn(&seen);
    assert_eq!(node.puller.profile(&manifest).await.unwrap(), learned);
    let node = tokio::time::timeout(Duration::from_secs(60), async { node.restart() }).await.unwrap();
    assert_eq!(node.puller.profile(&manifest).await.unwrap(), learned, "kept");
    assert!(node.puller.drop_profile(&manifest, "localhost:1/app:1").await.unwrap());
    assert!(!node.puller.drop_profile(&manifest, "localhost:1/app:1").await.unwrap());
}
