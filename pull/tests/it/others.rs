//! An image whose blobs do not arrive, while containerd pulls another one with the same layers and asks for nothing new.

use std::time::Duration;

use crate::node::{Node, caller};
use silk_pull::Config;
use silk_testkit::{ALWAYS, Compression, Fake, Fault, ImageSpec, LayerSpec, Pushed, noise, tar};

/// An image of two layers, the upper of which was pushed broken.
fn broken(registry: &Fake, name: &str) -> Pushed {
    let top = tar(&[("top", &noise(1, 100_000))]);
    let cut = Compression::Gzip.apply(&top);
    let cut = cut.slice(..cut.len() / 2);
    let top = LayerSpec::raw(cut, "application/vnd.oci.image.layer.v1.tar+gzip", silk_model::Digest::of(&top));
    registry.push_image(name, &ImageSpec::new().layer(tar(&[("base", b"base")]), Compression::Gzip).with(top))
}

/// The same layers, well-made.
fn mended(registry: &Fake, name: &str, compression: Compression) -> Pushed {
    let image = ImageSpec::new()
        .layer(tar(&[("base", b"base")]), Compression::Gzip)
        .layer(tar(&[("top", &noise(1, 100_000))]), compression);
    registry.push_image(name, &image)
}

/// Of a node that would wait for an hour before it tried the same again.
fn stubbornly(config: &mut Config) {
    (config.retry_min_secs, config.retry_max_secs) = (3600, 3600);
}

fn stubborn() -> Node {
    Node::with(stubbornly)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_pushed_again_is_pulled_from_its_new_blobs_at_once() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let registry = Fake::start().await;
        let node = stubborn();
        let old = broken(&registry, "library/app:1");
        node.pull(&old).await.unwrap_err();
        let asked = registry.count(&format!("GET .*{}", old.layers[1].blob_digest));
        let new = mended(&registry, "library/app:1", compression);
        node.ready_again(&new, "second", &old).await.unwrap();
        assert!(node.store.whole(&old.layers[1].diff_id));
        assert_eq!(node.store.record(&old.layers[1].diff_id).unwrap().facts.blob, new.layers[1].blob_digest);
        assert_eq!(registry.count(&format!("GET .*{}", old.layers[1].blob_digest)), asked, "the broken one again");
        let status = node.puller.status(None);
        assert_eq!((status.len(), status[0].state, status[0].manifest), (1, "ready", old.manifest_digest));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_layer_and_another_repository_serve_as_well() {
    let registry = Fake::start().await;
    let node = stubborn();
    let old = broken(&registry, "library/app:1");
    node.pull(&old).await.unwrap_err();
    let new = mended(&registry, "library/other:7", Compression::Gzip);
    node.hold(&new, "second");
    let (unrelated, any) = (caller(Some("unrelated")), caller(None));
    let below = |caller| node.puller.ready_below(&old.manifest_digest, &old.reference, 2, caller);
    below(&unrelated).await.unwrap_err();
    below(&any).await.unwrap();
    assert_eq!(registry.count(&format!("GET .*library/other/blobs/{}", new.layers[1].blob_digest)), 1);
    // What was learned below is known at the top.
    node.ready(&old).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_was_under_way_is_followed_by_one_from_what_the_caller_brings() {
    let registry = Fake::start().await;
    let node = Node::waiting_with(1, stubbornly);
    let old = mended(&registry, "library/app:1", Compression::Gzip);
    registry.fault(&format!("GET .*{}", old.layers[1].blob_digest), Fault::StallAfter(0), ALWAYS);
    node.claim(&old).await.unwrap();
    registry.wait_for_stalls(1).await;
    let new = mended(&registry, "library/app:1", Compression::Zstd);
    node.ready_again(&new, "second", &old).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_source_is_the_last_and_the_error_is_of_the_latest() {
    let registry = Fake::start().await;
    let node = stubborn();
    let old = mended(&registry, "library/app:1", Compression::Gzip);
    let blob = |pushed: &Pushed| format!("GET .*{}", pushed.layers[1].blob_digest);
    registry.fault(&blob(&old), Fault::status(404), ALWAYS);
    node.pull(&old).await.unwrap_err();
    let new = broken(&registry, "library/new:1");
    let error = node.ready_again(&new, "second", &old).await.unwrap_err().to_string();
    assert!(error.contains("library/new@") && error.contains(&new.layers[1].blob_digest.to_string()), "{error}");
    assert!(error.contains("truncated"), "{error}");
    // Nothing new: the backoff holds.
    let asked = registry.count(&blob(&new));
    let again = tokio::time::timeout(Duration::from_millis(50), node.ready_again(&new, "third", &old)).await;
    assert!(again.is_err(), "it waits");
    assert_eq!(registry.count(&blob(&new)), asked);
    // The registry has the old one again: a third image brings nothing but another try.
    registry.heal();
    let third = broken(&registry, "library/third:1");
    node.ready_again(&third, "fourth", &old).await.unwrap();
    assert_eq!(node.store.record(&old.layers[1].diff_id).unwrap().facts.blob, old.layers[1].blob_digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pulls_of_the_same_layers_are_known_by_their_leases() {
    let registry = Fake::start().await;
    let node = Node::new();
    let image = mended(&registry, "library/app:1", Compression::Gzip);
    node.hold(&image, "same");
    node.hold(&mended(&registry, "library/again:1", Compression::Zstd), "again");
    let shorter = ImageSpec::new().layer(tar(&[("base", b"base")]), Compression::Gzip);
    node.hold(&registry.push_image("library/base:1", &shorter), "base");
    let diff_ids: Vec<_> = image.layers.iter().map(|l| l.diff_id).collect();
    let mut leases = node.puller.leases_of("k8s.io", &diff_ids).await;
    leases.sort();
    assert_eq!(leases, ["again", "same"]);
}
