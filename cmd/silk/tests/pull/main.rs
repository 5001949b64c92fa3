//! `silk pull` without silkd: against a real containerd, whose snapshotters answer with ordinary mounts. Needs root, to mount.
//!
//! That a pull with silkd ends well is for the end-to-end tests; here it is compared with the pull of containerd's own
//! client, and made to fail.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{path::Path, process::Stdio};

use silk_api::{containerd::services::content::v1::DeleteContentRequest, namespaced};
use silk_model::Digest;
use silk_testkit::{ALWAYS, Compression, Fake, Fault, ImageSpec, LayerSpec, Pushed};

mod node;
mod registry;

use node::{Node, World};

/// A tar with a file of `bytes` noise; always the same.
fn tar(name: &str, bytes: usize) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let mut state = name.bytes().fold(1_u64, |state, b| state * 31 + u64::from(b));
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    std::fs::write(dir.path().join("etc").join(name), noise.take(bytes).collect::<Vec<_>>()).unwrap();
    let mut command = std::process::Command::new("tar");
    command.args(["--mtime=@0", "--numeric-owner", "-cf", "-", "etc"]).current_dir(dir.path());
    let tar = command.output().unwrap();
    assert!(tar.status.success());
    tar.stdout
}

/// Three layers of three kinds, and an empty one that is there twice.
fn layers() -> [LayerSpec; 5] {
    let empty = LayerSpec::new([0; 1024], Compression::Gzip);
    let base = LayerSpec::new(tar("base", 3 << 20), Compression::Gzip);
    let middle = LayerSpec::new(tar("middle", 100_000), Compression::Zstd);
    let top = LayerSpec::new(tar("top", 10), Compression::Plain);
    [base, empty.clone(), middle, empty, top]
}

fn image() -> ImageSpec {
    layers().into_iter().fold(ImageSpec::new(), ImageSpec::with)
}

fn said(output: &std::process::Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// An index of two images, the first for a machine that is not this one; all of it exists, because some clients fetch all.
fn push_index(fake: &Fake, repository: &str) -> String {
    let own = fake.push_image(&format!("{repository}:own"), &image());
    let other =
        fake.push_image(&format!("{repository}:other"), &ImageSpec::new().layer(tar("x", 1), Compression::Plain));
    let child = |image: &Pushed, architecture: &str| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": image.manifest_digest.to_string(),
            "size": image.manifest.len(),
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let here = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [child(&other, "s390x"), child(&own, here)] });
    let name = format!("{repository}:1");
    fake.put_manifest(&name, "application/vnd.oci.image.index.v1+json", index.to_string());
    format!("{}/{name}", fake.host())
}

async fn nothing_is_left(node: &Node, namespace: &str) {
    assert_eq!(node.world(namespace, "native").await, World::default());
}

/// What both clients leave of one image; silk's is the same, down to the labels that garbage collection follows.
async fn compare(node: &Node, snapshotter: &str, reference: &str, layers: usize) {
    node.ctr_pull("ctr", snapshotter, reference).await;
    let output = node.pull("silk", &["--snapshotter", snapshotter, reference]).await;
    assert!(output.status.success());
    let line = String::from_utf8_lossy(&output.stdout);
    let (ours, mut theirs) = (node.world("silk", snapshotter).await, node.world("ctr", snapshotter).await);
    assert!(
        line.starts_with(&format!("pulled {reference} in ")) && line.contains(&format!(": {layers} layers, ")),
        "{line}"
    );
    // Up to 1.7 ctr unpacks after the pull, without the label that tells the chain ID beforehand.
    for (name, (_, chain_id)) in &mut theirs.snapshots {
        name.clone_into(chain_id);
    }
    // From 2.0 on ctr also fetches the documents of other platforms.
    theirs.blobs.retain(|digest, labels| {
        let document = !labels.contains_key("containerd.io/uncompressed");
        ours.blobs.contains_key(digest) || !document
    });
    assert_eq!(ours.snapshots.len(), layers);
    assert_eq!((&ours.leases, &ours.unfinished), (&vec![], &vec![]));
    assert_eq!(ours, theirs);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pull_leaves_what_containerds_client_leaves() {
    let Some(registry) = registry::start().await else { return };
    let fake = Fake::start().await;
    let plain = registry.push("team/plain:1", &fake.push_image("plain:1", &image()), &layers()).await;
    let indexed = push_index(&fake, "team/indexed");
    let docker = fake
        .push_image(
            "docker:1",
            &ImageSpec::new().layer(tar("a", 9), Compression::Gzip).layer(tar("b", 9), Compression::Gzip).docker(),
        )
        .reference;
    for binary in node::generations() {
        for snapshotter in ["native", "overlayfs"] {
            let node = Node::start(&binary).await;
            compare(&node, snapshotter, &plain, 5).await;
            let node = Node::start(&binary).await;
            compare(&node, snapshotter, &indexed, 5).await;
            let node = Node::start(&binary).await;
            compare(&node, snapshotter, &docker, 2).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_second_pull_fetches_nothing() {
    let fake = Fake::start().await;
    let Pushed { reference, layers, .. } = fake.push_image("app:1", &image());
    let blobs = "^GET .*/blobs/";
    for binary in node::generations() {
        let node = Node::start(&binary).await;
        assert!(node.pull("a", &["--snapshotter", "native", &reference]).await.status.success());
        let before = fake.count(blobs);
        let output = node.pull("a", &["--snapshotter", "native", &reference]).await;
        assert!(String::from_utf8_lossy(&output.stdout).contains("5 layers, "), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).ends_with("(5 here already)\n"), "{output:?}");
        assert_eq!(fake.count(blobs), before);

        // The snapshots are here, a blob is not: only --local brings it back.
        let blob = layers[2].blob_digest.to_string();
        let request = namespaced("a", DeleteContentRequest { digest: blob.clone() });
        node.content().delete(request).await.unwrap();
        let output = node.pull("a", &["--snapshotter", "native", "-q", &reference]).await;
        assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
        assert!(!node.world("a", "native").await.blobs.contains_key(&blob));
        let output = node.pull("a", &["--snapshotter", "native", "--local", &reference]).await;
        assert!(String::from_utf8_lossy(&output.stdout).ends_with("(4 here already)\n"), "{output:?}");
        assert!(node.world("a", "native").await.blobs.contains_key(&blob));
    }
}

/// Pulls `reference`; it must fail with all these words and leave nothing.
async fn fails(node: &Node, reference: &str, words: &[&str]) {
    let (code, text) = said(&node.pull("a", &["--snapshotter", "native", reference]).await);
    assert_eq!(code, Some(1), "{text}");
    let line = text.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    words.iter().for_each(|word| assert!(line.contains(word), "{word:?} is not in {line:?}"));
    nothing_is_left(node, "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_failed_pull_names_its_cause_and_leaves_nothing() {
    let fake = Fake::start().await;
    let Pushed { reference, layers, .. } = fake.push_image("app:1", &image());
    let third = layers[2].blob_digest.to_string();
    let lie = LayerSpec::new(tar("lie", 99), Compression::Gzip).with_diff_id(Digest::of(b"another"));
    let lying = fake.push_image("lie:1", &image().with(lie)).reference;
    for binary in node::generations() {
        let node = Node::start(&binary).await;
        let middle = format!("/blobs/{third}");
        let place = format!("cannot pull {reference}: layer 3 of 5 ({third}): ");
        fake.fault(&middle, Fault::Flip(7), ALWAYS);
        fails(&node, &reference, &[&place, "unexpected commit digest"]).await;
        fake.heal();
        fake.fault(&middle, Fault::status(404), ALWAYS);
        fails(&node, &reference, &[&place, "404"]).await;
        fake.heal();
        fake.fault("/manifests/", Fault::status(403), ALWAYS);
        fails(&node, &reference, &["cannot pull", "403"]).await;
        fake.heal();
        fails(&node, &lying, &["layer 6 of 6", "its uncompressed bytes are", &Digest::of(b"another").to_string()])
            .await;
        assert!(node.pull("a", &["--snapshotter", "native", &reference]).await.status.success(), "all is well again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_is_no_image_for_here_is_refused() {
    let fake = Fake::start().await;
    let indexed = fake.push_image("app:1", &image().indexed()).reference;
    let artifact = serde_json::json!({
        "schemaVersion": 2,
        "config": { "mediaType": "application/x", "digest": Digest::of(b"{}").to_string(), "size": 2 },
        "layers": [],
    });
    fake.put_manifest("thing:1", "application/vnd.oci.image.manifest.v1+json", artifact.to_string());
    let artifact = format!("{}/thing:1", fake.host());
    for binary in node::generations() {
        let node = Node::start(&binary).await;
        fails(&node, &artifact, &["the manifest sha256:", "application/x", "no image"]).await;
        let (code, text) =
            said(&node.pull("a", &["--snapshotter", "native", "--platform", "linux/riscv64", &indexed]).await);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains("not made for linux/riscv64, only for linux/s390x, linux/"), "{text}");
        fails(&node, &format!("{}/nothing:1", fake.host()), &["404"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pull_without_its_snapshotter_says_so() {
    let fake = Fake::start().await;
    let reference = fake.push_image("app:1", &image()).reference;
    for binary in node::generations() {
        let node = Node::start(&binary).await;
        let (code, text) = said(&node.pull("a", &["--snapshotter", "silk", &reference]).await);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("snapshotter not loaded: silk"), "{text}");
        nothing_is_left(&node, "a").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pull_that_waits_for_silkd_needs_one() {
    let fake = Fake::start().await;
    let reference = fake.push_image("app:1", &image()).reference;
    for binary in node::generations() {
        let node = Node::start(&binary).await;
        let wait = ["--snapshotter", "native", "--wait", &reference];
        let (code, text) = said(&node.pull("a", &wait).await);
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains("error: silkd does not answer on "), "{text}");
        nothing_is_left(&node, "a").await;
        assert!(node.pull("a", &[&["--local"], wait.as_slice()].concat()).await.status.success());
    }
}

async fn interrupt(binary: &Path, signal: &str, code: i32) {
    let fake = Fake::start().await;
    let Pushed { reference, layers, .. } = fake.push_image("app:1", &image());
    let node = Node::start(binary).await;
    fake.fault(&format!("/blobs/{}", layers[0].blob_digest), Fault::StallAfter(1 << 20), ALWAYS);
    let mut command = node.silk("a", &["--snapshotter", "native", &reference]);
    let pull = command.stdout(Stdio::null()).spawn().unwrap();
    fake.wait_for_stalls(1).await;
    let pid = pull.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
    let (status, text) = said(&pull.wait_with_output().await.unwrap());
    assert_eq!(status, Some(code), "{text}");
    assert!(text.ends_with("error: interrupted\n"), "{text}");
    nothing_is_left(&node, "a").await;
    // What was written of the blob is gone on with, or not there; either way the pull ends well.
    fake.heal();
    assert!(node.pull("a", &["--snapshotter", "native", &reference]).await.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_interrupted_pull_leaves_nothing() {
    for binary in node::generations() {
        interrupt(&binary, "-INT", 130).await;
        interrupt(&binary, "-TERM", 143).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_pulls_of_one_image_at_once_all_end_well() {
    let fake = Fake::start().await;
    let Pushed { reference, layers, .. } = fake.push_image("app:1", &image());
    for binary in node::generations() {
        let node = Node::start(&binary).await;
        let base = format!("^GET .*/blobs/{}", layers[0].blob_digest);
        let before = fake.count(&base);
        let pull = || async { node.pull("a", &["--snapshotter", "native", &reference]).await.status.success() };
        assert_eq!(tokio::join!(pull(), pull(), pull()), (true, true, true));
        assert_eq!(fake.count(&base), before + 1, "one writes, the others wait for it");
        let world = node.world("a", "native").await;
        assert_eq!((world.snapshots.len(), &world.unfinished, &world.leases), (5, &vec![], &vec![]));
    }
}
