//! Images from a registry with scripted faults into a real store: what arrives, what does not, and what is said about it.

use std::time::Duration;

use crate::node::{Node, caller, eventually};
use silk_model::{Class, Digest, metrics::ImageState};
use silk_pull::{Broken, Refused, State};
use silk_testkit::{ALWAYS, Compression, Fake, Fault, ImageSpec, LayerSpec, Pushed, noise, tar};

#[tokio::test(flavor = "multi_thread")]
async fn every_compression_arrives_whole_and_verbatim() {
    let registry = Fake::start().await;
    let node = Node::new();
    let tars: Vec<_> = (0..5).map(|i| tar(&[(&format!("file{i}"), &noise(i, 300_000))])).collect();
    let image = ImageSpec::new()
        .layer(&tars[0], Compression::Gzip)
        .layer(&tars[1], Compression::GzipMembers(70_000))
        .layer(&tars[2], Compression::Zstd)
        .layer(&tars[3], Compression::Plain)
        .layer(&tars[4], Compression::Gzip);
    let pushed = registry.push_image("library/app:1", &image);
    node.pull(&pushed).await.unwrap();
    for (tar, layer) in tars.iter().zip(&pushed.layers) {
        assert_eq!(Digest::of(tar), layer.diff_id);
        assert_eq!(node.data(&layer.diff_id), *tar);
        assert_eq!(node.store.record(&layer.diff_id).unwrap().facts.blob, layer.blob_digest);
        assert_eq!(registry.count(&format!("GET .*{}", layer.blob_digest)), 1);
    }
    assert_eq!(node.shown(), [pushed.layers.iter().map(|l| l.diff_id).collect::<Vec<_>>()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_containerd_runs_is_not_refused_for_its_configuration() {
    let registry = Fake::start().await;
    let node = Node::new();
    let image = ImageSpec::new().layer(tar(&[("file", b"x")]), Compression::Gzip);
    let left_out = ["architecture", "os", "config", "history"];
    let others = ["ExposedPorts", "Volumes", "Labels"].map(|key| format!(r#"{{"{key}":{{"a":null}}}}"#));
    let changed = left_out.map(|key| (key, None)).into_iter();
    let changed = changed.chain(others.iter().map(|value| ("config", Some(value.as_str()))));
    for (nr, (key, value)) in changed.chain([("created", Some("null"))]).enumerate() {
        let mut pushed = registry.push_image(&format!("app:{nr}"), &image);
        let mut config: serde_json::Value = serde_json::from_slice(&pushed.config).unwrap();
        match value {
            Some(value) => config[key] = serde_json::from_str(value).unwrap(),
            None => _ = config.as_object_mut().unwrap().remove(key),
        }
        config["rootfs"].as_object_mut().unwrap().remove("type");
        pushed.config = config.to_string().into();
        node.pull(&pushed).await.unwrap_or_else(|error| panic!("{config}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_layer_comes_in_ranges_each_byte_once() {
    let registry = Fake::start().await;
    let node = Node::with(|config| {
        config.range_bytes = 100_000;
        config.bytes_in_flight = 350_000;
    });
    let tar = tar(&[("large", &noise(1, 3_000_000))]);
    let pushed = registry.push_image("library/app:1", &ImageSpec::new().layer(&tar, Compression::Plain));
    node.pull(&pushed).await.unwrap();
    assert_eq!(node.data(&pushed.layers[0].diff_id), tar);
    let blob = format!("GET .*{}", pushed.layers[0].blob_digest);
    assert_eq!(registry.sent(&blob), tar.len() as u64);
    assert_eq!(registry.count(&blob), tar.len().div_ceil(100_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_sends_the_blob_about_once() {
    let registry = Fake::start().await;
    let node = Node::with(|config| config.range_bytes = 100_000);
    let tar = tar(&[("large", &noise(1, 3_000_000))]);
    let pushed = registry.push_image("library/app:1", &ImageSpec::new().layer(&tar, Compression::Plain));
    registry.fault("GET .*blobs", Fault::NoRanges, ALWAYS);
    node.pull(&pushed).await.unwrap();
    assert_eq!(node.data(&pushed.layers[0].diff_id), tar);
    let blob = format!("GET .*{}", pushed.layers[0].blob_digest);
    assert!(registry.count(&blob) <= 2, "{} requests", registry.count(&blob));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_images_that_share_a_layer_fetch_it_once() {
    let registry = Fake::start().await;
    let node = Node::new();
    let base = tar(&[("base", &noise(1, 500_000))]);
    let one = registry.push_image(
        "library/one:1",
        &ImageSpec::new().layer(&base, Compression::Gzip).layer(tar(&[("one", b"1")]), Compression::Gzip),
    );
    let two = registry.push_image(
        "library/two:1",
        &ImageSpec::new().layer(&base, Compression::Gzip).layer(tar(&[("two", b"2")]), Compression::Gzip),
    );
    let (a, b) = tokio::join!(node.pull(&one), node.pull(&two));
    a.unwrap();
    b.unwrap();
    assert_eq!(registry.count(&format!("GET .*{}", one.layers[0].blob_digest)), 1);
}

/// Each way content can be at fault: a sentence that names image, layer and cause, and nothing left behind.
#[tokio::test(flavor = "multi_thread")]
async fn bad_content_fails_with_its_cause_and_leaves_nothing() {
    let good = tar(&[("good", &noise(1, 200_000))]);
    let gzip = Compression::Gzip.apply(&good);
    let truncated = gzip.slice(..gzip.len() / 2);
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let mut lying = tar(&[("liar", &noise(2, 5_000))]);
    lying.truncate(2048);
    let cases = [
        (
            LayerSpec::new(&good, Compression::Gzip).claiming(Digest::of(b"other"), gzip.len() as u64),
            "sent other bytes than the manifest names",
        ),
        (LayerSpec::new(&good, Compression::Gzip).with_diff_id(Digest::of(b"other")), "not its diff ID"),
        (LayerSpec::raw(truncated, media_type, Digest::of(&good)), "truncated"),
        (LayerSpec::new(&lying, Compression::Gzip), "tar is damaged"),
        (LayerSpec::new(tar(&[("bomb", &vec![7; 3 << 20])]), Compression::Gzip), "decode to more than"),
    ];
    for (bad, cause) in cases {
        let registry = Fake::start().await;
        let node = Node::with(|config| {
            config.expansion_floor_bytes = 1 << 20;
            config.max_expansion = 20;
            config.retry_max_secs = 0;
        });
        let image = ImageSpec::new().layer(tar(&[("base", b"fine")]), Compression::Gzip).with(bad);
        let pushed = registry.push_image("library/bad:1", &image);
        let error = node.pull(&pushed).await.expect_err(cause).to_string();
        assert!(error.contains(cause), "{error}");
        assert!(error.contains(&pushed.reference), "{error}");
        assert!(error.contains(&format!("layer 2 of 2 ({})", pushed.layers[1].blob_digest)), "{error}");
        assert!(!node.store.layer_path(&pushed.layers[1].diff_id).exists(), "{cause}");
        let status = node.puller.status(Some(&pushed.reference));
        assert_eq!((status[0].state, status[0].error.as_deref()), ("failed", Some(error.as_str())));
    }
}

/// Zeros take no room.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_zeros_is_no_bomb() {
    let registry = Fake::start().await;
    let node = Node::with(|config| (config.expansion_floor_bytes, config.max_expansion) = (1 << 20, 20));
    let zeros = tar(&[("zeros", &vec![0; 3 << 20])]);
    for (tag, compression) in [Compression::Gzip, Compression::Zstd].into_iter().enumerate() {
        let image = ImageSpec::new().layer([&zeros[..], &vec![0; tag]].concat(), compression);
        node.pull(&registry.push_image(&format!("library/zeros:{tag}"), &image)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_names_itself_and_the_next_try_succeeds() {
    for (fault, cause) in [
        (Fault::status(401), "401"),
        (Fault::status(404), "404"),
        (Fault::too_many_requests("0"), "429"),
        (Fault::status(500), "500"),
        (Fault::CutAfter(0), "silk cannot pull"),
        (Fault::StallAfter(0), "silk cannot pull"),
        (Fault::Flip(1000), "sent other bytes than the manifest names"),
    ] {
        let registry = Fake::start().await;
        let node = Node::waiting_with(1, |config| config.retry_max_secs = 0);
        let image = ImageSpec::new().layer(tar(&[("a", &noise(3, 100_000))]), Compression::Gzip);
        let pushed = registry.push_image("library/app:1", &image);
        registry.fault("GET .*blobs/", fault.clone(), ALWAYS);
        let error = node.pull(&pushed).await.expect_err(&format!("{fault:?}")).to_string();
        assert!(error.contains(cause), "{fault:?}: {error}");
        assert!(error.contains(&pushed.layers[0].blob_digest.to_string()), "{error}");
        assert!(!node.store.layer_path(&pushed.layers[0].diff_id).exists());
        registry.heal();
        node.ready(&pushed).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_not_repeated_to_the_registry_before_its_backoff() {
    let registry = Fake::start().await;
    let node = Node::with(|config| (config.retry_min_secs, config.retry_max_secs) = (3600, 3600));
    let pushed = registry.push_image("library/app:1", &ImageSpec::new().layer(tar(&[("a", b"b")]), Compression::Gzip));
    registry.fault("GET .*blobs/", Fault::status(404), ALWAYS);
    node.pull(&pushed).await.unwrap_err();
    let asked = registry.count("GET .*blobs/");
    assert!(matches!(node.state(&pushed), Ok(State::Failed(_))));
    let soon = tokio::time::timeout(Duration::from_millis(50), node.ready(&pushed)).await;
    assert!(soon.is_err(), "it waits for the backoff");
    assert_eq!(registry.count("GET .*blobs/"), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_that_goes_away_disturbs_nobody() {
    let registry = Fake::start().await;
    let node = Node::new();
    let pushed = registry
        .push_image("library/app:1", &ImageSpec::new().layer(tar(&[("a", &noise(1, 90_000))]), Compression::Gzip));
    registry.fault("GET .*blobs/", Fault::Slow(200_000), 1);
    node.claim(&pushed).await.unwrap();
    let (one, other) =
        tokio::join!(tokio::time::timeout(Duration::from_millis(10), node.ready(&pushed)), node.ready(&pushed));
    assert!(one.is_err());
    other.unwrap();
    assert_eq!(registry.count(&format!("GET .*{}", pushed.layers[0].blob_digest)), 1);
}

/// By its first member's name, which nobody looks at where the type says that it is a tar.
#[tokio::test(flavor = "multi_thread")]
async fn a_plain_layer_may_look_compressed() {
    let registry = Fake::start().await;
    let node = Node::new();
    let tar = [tar(&[("\u{1f}\u{8}", b"first")]), vec![0; 1024]].concat();
    let looks = |magic: &[u8]| {
        let mut tar = tar.clone();
        let shift = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
        let sum = shift(magic) + shift(&tar[..148]) + 8 * 32 + shift(&tar[156..512]) - shift(&tar[..magic.len()]);
        tar[..magic.len()].copy_from_slice(magic);
        tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar
    };
    for (tag, magic) in [&b"\x1f\x8b\x08"[..], b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18abcd"].into_iter().enumerate() {
        let pushed = registry
            .push_image(&format!("library/odd:{tag}"), &ImageSpec::new().layer(looks(magic), Compression::Plain));
        node.pull(&pushed).await.unwrap();
        assert!(node.store.whole(&pushed.layers[0].diff_id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_layers_are_denied_is_left_to_containerd_the_next_time() {
    let registry = Fake::start().await;
    let layers = ImageSpec::new().layer(tar(&[("a", b"b")]), Compression::Gzip);
    let pushed = registry.push_image("library/closed:1", &layers);
    registry.fault("GET .*/blobs/", Fault::status(403), ALWAYS);
    // The manifest is there for all.
    let node = node_fails(&pushed).await;
    let refused = node.claim(&pushed).await.unwrap_err();
    assert!(matches!(&refused, Refused::Registry(why) if why.contains("403")), "{refused}");
    // What may pass is tried again.
    registry.heal();
    let other =
        registry.push_image("library/damaged:1", &ImageSpec::new().layer(tar(&[("c", b"d")]), Compression::Gzip));
    registry.fault("GET .*/blobs/", Fault::status(503), ALWAYS);
    let node = node_fails(&other).await;
    registry.heal();
    node.claim(&other).await.unwrap();
}

/// Pulls an image that does not come.
async fn node_fails(pushed: &Pushed) -> Node {
    let node = Node::with(|config| config.lazy = false);
    node.claim(pushed).await.unwrap();
    node.pull(pushed).await.unwrap_err();
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn what_silk_cannot_pull_is_refused_at_the_first_claim() {
    let registry = Fake::start().await;
    let node = Node::new();
    let odd = LayerSpec::raw(b"x".as_slice(), "application/vnd.example.squashfs", Digest::of(b"x"));
    let pushed = registry.push_image("library/odd:1", &ImageSpec::new().with(odd));
    assert!(matches!(node.claim(&pushed).await, Err(Refused::MediaType { number: 1, .. })));

    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar";
    let a = tar(&[("a", b"b")]);
    let foreign = ImageSpec::new().with(LayerSpec::raw(a.clone(), foreign, Digest::of(&a))).first_at("https://x/a");
    let pushed = registry.push_image("library/foreign:1", &foreign);
    let refused = node.claim(&pushed).await.unwrap_err();
    assert!(matches!(&refused, Refused::Elsewhere { number: 1, url } if url == "https://x/a"), "{refused}");

    let tall = (0..257).fold(ImageSpec::new(), |image, _| image.layer(&a, Compression::Plain));
    let pushed = registry.push_image("library/tall:1", &tall);
    assert!(matches!(node.claim(&pushed).await, Err(Refused::Layers { layers: 257, .. })));

    let pushed =
        registry.push_image("library/closed:1", &ImageSpec::new().layer(tar(&[("a", b"b")]), Compression::Gzip));
    registry.fault("HEAD .*manifests", Fault::status(401), ALWAYS);
    let refused = node.claim(&pushed).await.unwrap_err();
    assert!(matches!(refused, Refused::Registry(_)), "{refused}");
    assert_eq!(registry.count("GET .*blobs/"), 0);
    let status = node.puller.status(Some(&pushed.reference));
    assert_eq!(status[0].state, "refused");
    let refused = || node.puller.images_by_state().into_iter().find(|(state, _)| *state == ImageState::Refused);
    let before = refused().unwrap().1;

    registry.heal();
    node.pull(&pushed).await.unwrap();
    assert_eq!(refused().unwrap().1, before - 1, "it is not refused any more");
    assert_eq!(node.puller.status(Some(&pushed.reference))[0].state, "ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_on_a_base_of_containerds_says_why_it_is_left_to_it() {
    let node = Node::new();
    let chain = |n: u8| Digest::new([n; 32]);
    let claim = |reference: &str, n: u8| silk_pull::Claim {
        namespace: "k8s.io".into(),
        reference: reference.into(),
        manifest: Digest::of(reference.as_bytes()),
        blob: chain(n),
        chain_id: chain(n),
        below: 0,
    };
    let why = |reference: &str| node.puller.status(Some(reference))[0].error.clone().unwrap();
    // Nobody has its manifest.
    node.puller.claim(claim("r.example/refused:1", 1)).await.unwrap_err();
    let cause = why("r.example/refused:1");
    node.puller.left(&claim("r.example/refused:1", 2), Some(chain(1)));
    assert_eq!(why("r.example/refused:1"), cause, "the first cause is the one");
    node.puller.left(&claim("r.example/above:1", 3), Some(chain(2)));
    let above = why("r.example/above:1");
    assert!(
        above.contains("base layers") && above.contains("r.example/refused:1") && above.contains(&cause),
        "{above}"
    );
    node.puller.left(&claim("r.example/unknown:1", 9), Some(chain(8)));
    let unknown = why("r.example/unknown:1");
    assert!(unknown.contains("base layers") && unknown.contains("labels"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_image_needs_no_registry_and_survives_a_restart() {
    let registry = Fake::start().await;
    let node = Node::new();
    let pushed = registry.push_image("library/app:1", &ImageSpec::new().layer(tar(&[("a", b"b")]), Compression::Gzip));
    node.pull(&pushed).await.unwrap();
    registry.stop().await;
    let node = node.restart();
    assert!(matches!(node.state(&pushed), Ok(State::Idle)));
    node.ready(&pushed).await.unwrap();
    let node = node.restart();
    // Its snapshots were removed meanwhile.
    node.puller.retain(|_| false).unwrap();
    assert!(node.puller.wanted().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_layer_is_fetched_again() {
    let registry = Fake::start().await;
    let node = Node::new();
    let pushed = registry.push_image("library/app:1", &ImageSpec::new().layer(tar(&[("a", b"b")]), Compression::Gzip));
    node.pull(&pushed).await.unwrap();
    node.store.evict(&pushed.layers[0].diff_id).unwrap();
    node.ready(&pushed).await.unwrap();
    node.whole(&pushed.layers[0].diff_id).await;
    assert_eq!(registry.count("GET .*blobs/"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_become_durable_when_their_container_has_started_or_in_the_next_process() {
    let registry = Fake::start().await;
    let node = Node::new();
    let one = registry.push_image("library/one:1", &ImageSpec::new().layer(tar(&[("a", b"b")]), Compression::Gzip));
    let two = registry.push_image("library/two:1", &ImageSpec::new().layer(tar(&[("c", b"d")]), Compression::Gzip));
    let becomes_durable = async |node: &Node, pushed: &Pushed| {
        for _ in 0..6000 {
            if node.store.record(&pushed.layers[0].diff_id).unwrap().durable {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within a minute");
    };
    node.pull(&one).await.unwrap();
    becomes_durable(&node, &one).await;
    node.pull(&two).await.unwrap();
    let node = node.restart();
    becomes_durable(&node, &two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_layers_come_first() {
    let registry = Fake::start().await;
    let sizes = [10_000, 90_000, 1_000, 50_000, 70_000, 30_000, 5_000];
    let layers = sizes.iter().map(|size| tar(&[("noise", &noise(*size as u64, *size))]));
    let image = layers.fold(ImageSpec::new(), |image, tar| image.layer(tar, Compression::Plain));
    let pushed = registry.push_image("library/app:1", &image);
    let node = Node::with(|config| config.layers_at_once = 1);
    node.pull(&pushed).await.unwrap();
    let mut by_size: Vec<_> = pushed.layers.iter().collect();
    by_size.sort_by_key(|layer| std::cmp::Reverse(layer.size));
    let asked = registry.matching("GET .*/blobs/").into_iter().map(|request| request.path);
    let place = |path: String| by_size.iter().position(|layer| path.ends_with(&layer.blob_digest.to_string()));
    assert_eq!(asked.filter_map(place).collect::<Vec<_>>(), (0..sizes.len()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_registry_holds_up_nobody_else() {
    let registry = Fake::start().await;
    let node = Node::patient();
    let silent =
        registry.push_image("library/silent:1", &ImageSpec::new().layer(tar(&[("a", b"b")]), Compression::Gzip));
    let other = registry.push_image("library/other:1", &ImageSpec::new().layer(tar(&[("c", b"d")]), Compression::Gzip));
    registry.fault(&format!("GET .*{}", silent.layers[0].blob_digest), Fault::StallAfter(0), ALWAYS);
    node.claim(&silent).await.unwrap();
    registry.wait_for_stalls(1).await;
    node.pull(&other).await.unwrap();
    assert!(matches!(node.state(&silent), Ok(State::Pulling(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_drips_holds_up_nobody_else() {
    let registry = Fake::start().await;
    let node = Node::patient();
    let image = ImageSpec::new().layer(tar(&[("a", &noise(1, 4_000_000))]), Compression::Plain);
    let slow = registry.push_image("library/slow:1", &image);
    let other = registry.push_image("library/other:1", &ImageSpec::new().layer(tar(&[("c", b"d")]), Compression::Gzip));
    // 16 KiB each 0.4 s: never silent for a second, and there in 100 s.
    registry.fault(&format!("GET .*{}", slow.layers[0].blob_digest), Fault::Slow(40_000), ALWAYS);
    node.claim(&slow).await.unwrap();
    registry.wait_for_bodies(1).await;
    node.pull(&other).await.unwrap();
    assert!(matches!(node.state(&slow), Ok(State::Pulling(_))));
    assert_eq!(node.puller.budgets().decoders.in_use, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layers_below_a_broken_one_serve_another_image() {
    let registry = Fake::start().await;
    let node = Node::new();
    let image = ImageSpec::new()
        .layer(tar(&[("base", &noise(1, 90_000))]), Compression::Gzip)
        .layer(tar(&[("top", b"top")]), Compression::Gzip);
    let pushed = registry.push_image("library/broken:1", &image);
    registry.fault(&format!("GET .*{}", pushed.layers[1].blob_digest), Fault::status(404), ALWAYS);
    node.claim(&pushed).await.unwrap();
    node.puller.ready_below(&pushed.manifest_digest, &pushed.reference, 1, &caller(None)).await.unwrap();
    node.ready(&pushed).await.unwrap_err();
    assert_eq!(node.shown(), [vec![pushed.layers[0].diff_id]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_image_frees_its_layers_at_once_and_a_new_claim_keeps_them() {
    let registry = Fake::start().await;
    let node = Node::new();
    let pushed = registry.push_image("library/app:1", &ImageSpec::new().layer(tar(&[("a", b"b")]), Compression::Gzip));
    node.pull(&pushed).await.unwrap();
    let layer = pushed.layers[0].diff_id;
    // Who waits for it stands on its snapshot.
    node.puller.retain(|_| false).unwrap();
    assert!(!node.puller.wanted().contains(&layer));
    // Its snapshot comes a moment after the claim: until the janitor has seen one, the claim alone holds the image.
    node.claim(&pushed).await.unwrap();
    node.puller.retain(|_| false).unwrap();
    assert!(node.puller.wanted().contains(&layer));
    eventually("it is ready", || matches!(node.state(&pushed), Ok(State::Ready(_)))).await;
    node.puller.retain(|_| true).unwrap();
    node.puller.retain(|_| false).unwrap();
    assert!(!node.puller.wanted().contains(&layer));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_be_shown_is_broken_while_no_other_image_has_it() {
    let registry = Fake::start().await;
    let node = Node::waiting(1);
    let image = |top: &[u8]| {
        let base = tar(&[("base", b"base")]);
        ImageSpec::new().layer(base, Compression::Gzip).layer(tar(&[("top", top)]), Compression::Gzip)
    };
    let pushed = registry.push_image("library/app:1", &image(b"one"));
    let base = pushed.layers[0].diff_id;
    node.break_layer(base, Class::NoSpace);
    node.pull(&pushed).await.unwrap_err();
    assert_eq!(node.puller.broken(), [], "not the layer's fault");
    node.break_layer(base, Class::Corrupt);
    node.ready(&pushed).await.unwrap_err();
    let (manifest, reference) = (pushed.manifest_digest, pushed.reference.clone());
    let broken = [Broken { diff_id: base, manifest, reference }];
    assert_eq!(node.puller.broken(), broken);
    // Another image has it, on its way or shown.
    let other = registry.push_image("library/other:1", &image(b"two"));
    registry.fault(&format!("GET .*{}", other.layers[1].blob_digest), Fault::StallAfter(0), ALWAYS);
    node.claim(&other).await.unwrap();
    assert_eq!(node.puller.broken(), []);
    node.ready(&other).await.unwrap_err();
    assert_eq!(node.puller.broken(), [], "that image may still be pulled");
    registry.heal();
    node.ready(&other).await.unwrap_err();
    assert_eq!(node.puller.broken().len(), 2);
    node.store.evict(&base).unwrap();
    assert_eq!(node.puller.broken(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_drips_does_not_hold_up_a_pull_that_began_before() {
    let (registry, dripping) = (Fake::start().await, Fake::start().await);
    let node = Node::patient_with(|config| {
        (config.layers_at_once, config.range_bytes, config.bytes_in_flight) = (4, 100_000, 200_000);
    });
    let good = ImageSpec::new().layer(tar(&[("a", &noise(1, 2_000_000))]), Compression::Plain);
    let good = registry.push_image("library/good:1", &good);
    let slow = ImageSpec::new()
        .layer(tar(&[("b", &noise(2, 1_000_000))]), Compression::Plain)
        .layer(tar(&[("c", &noise(3, 1_000_000))]), Compression::Plain);
    let slow = dripping.push_image("library/slow:1", &slow);
    for layer in &slow.layers {
        dripping.fault(&format!("GET .*{}", layer.blob_digest), Fault::Slow(8_000), ALWAYS);
    }
    registry.fault(&format!("GET .*{}", good.layers[0].blob_digest), Fault::Slow(1_000_000), ALWAYS);
    node.claim(&good).await.unwrap();
    registry.wait_for_bodies(1).await;
    node.claim(&slow).await.unwrap();
    let ready = tokio::time::timeout(Duration::from_secs(15), node.ready(&good)).await;
    ready.expect("2 MB at 1 MB/s are here within 15 s").unwrap();
}
