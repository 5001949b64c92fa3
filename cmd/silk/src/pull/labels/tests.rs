//! Against what containerd's client writes.

use silk_model::{Digest, chain_ids};

use super::*;
use crate::pull::{
    Platform,
    image::{Descriptor, Layer},
};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn descriptor(media_type: &str, digest: Digest) -> Descriptor {
    Descriptor { media_type: media_type.to_owned(), digest, size: 1, annotations: BTreeMap::new() }
}

fn image(layers: usize) -> Image {
    let diff_ids: Vec<_> = (0..layers).map(|i| Digest::of(format!("diff {i}").as_bytes())).collect();
    let chain_ids = chain_ids(&diff_ids);
    let layer = |i: usize| Layer {
        descriptor: descriptor(GZIP, Digest::of(format!("blob {i}").as_bytes())),
        diff_id: diff_ids[i],
        chain_id: chain_ids[i],
    };
    Image {
        reference: "registry.example:5000/team/app:1".parse().unwrap(),
        target: descriptor(MANIFEST, Digest::of(b"m")),
        manifest: descriptor(MANIFEST, Digest::of(b"m")),
        config: descriptor("application/vnd.oci.image.config.v1+json", Digest::of(b"c")),
        platform: Some(Platform::new("linux", "amd64", "")),
        layers: (0..layers).map(layer).collect(),
    }
}

#[test]
fn children_are_numbered_by_kind() {
    let config = "application/vnd.docker.container.image.v1+json";
    let of = |types: &[&str]| {
        let numbered = types.iter().enumerate().map(|(i, t)| (*t, i.to_string())).collect::<Vec<_>>();
        children(numbered)
            .into_iter()
            .map(|(k, v)| format!("{}={v}", &k["containerd.io/gc.ref.content".len()..]))
            .collect::<Vec<_>>()
    };
    assert_eq!(of(&[config, GZIP, GZIP]), [".config=0", ".l.0=1", ".l.1=2"]);
    let index = "application/vnd.oci.image.index.v1+json";
    assert_eq!(of(&[MANIFEST, MANIFEST, index, "x/y"]), [".0=2", ".1=3", ".m.0=0", ".m.1=1"]);
}

#[test]
fn sources_are_sorted_and_named_once() {
    for (reference, host) in [
        ("busybox", "docker.io"),
        ("127.0.0.1:5000/a/b", "127.0.0.1"),
        ("registry.example/a", "registry.example"),
        ("[::1]:5000/a", "::1"),
    ] {
        let key = source_key(&reference.parse().unwrap());
        assert_eq!(key, format!("containerd.io/distribution.source.{host}"));
    }
    assert_eq!(add_source("k", "", "b").as_deref(), Some("b"));
    assert_eq!(add_source("k", "a,c", "b").as_deref(), Some("a,b,c"));
    assert_eq!(add_source("k", "a,b", "b").as_deref(), Some("a,b"));
    assert_eq!(add_source("k", &"a".repeat(4094), "b"), None);
}

#[test]
fn a_snapshot_is_told_of_its_image() {
    let image = image(3);
    let labels = snapshot(&image, 1, false);
    let get = |key: &str| labels.get(&format!("containerd.io/snapshot{key}")).cloned().unwrap();
    let layers = &image.layers;
    assert_eq!(get(".ref"), layers[1].chain_id.to_string());
    assert_eq!(get("/cri.image-ref"), "registry.example:5000/team/app:1");
    assert_eq!(get("/cri.manifest-digest"), Digest::of(b"m").to_string());
    assert_eq!(get("/cri.layer-digest"), layers[1].descriptor.digest.to_string());
    assert_eq!(get("/cri.image-layers"), format!("{},{}", layers[1].descriptor.digest, layers[2].descriptor.digest));
    assert_eq!(get("/diff-id"), layers[1].diff_id.to_string());
    assert_eq!(get("/parent-chain-id"), layers[0].chain_id.to_string());
    assert_eq!(labels.len(), 7);
    assert_eq!(snapshot(&image, 0, false).len(), 6, "the base has no parent");
    assert_eq!(snapshot(&image, 1, true).keys().collect::<Vec<_>>(), [SNAPSHOT_REF]);
}

#[test]
fn the_list_of_layers_stops_where_containerd_would_refuse_it() {
    let labels = snapshot(&image(100), 0, false);
    let list = &labels[LAYERS];
    assert_eq!(list.split(',').count(), (MAX_LABEL - LAYERS.len() + 1) / 72);
    assert!(fits(LAYERS, list));
}

#[test]
fn annotations_reach_the_snapshotter_but_set_nothing_of_ours() {
    let mut image = image(1);
    let annotations = [
        ("containerd.io/snapshot/remote/x".to_owned(), "1".to_owned()),
        ("containerd.io/snapshot/cri.image-ref".to_owned(), "evil".to_owned()),
        ("containerd.io/snapshot/long".to_owned(), "x".repeat(MAX_LABEL)),
        ("org.example".to_owned(), "2".to_owned()),
    ];
    image.layers[0].descriptor.annotations = annotations.into();
    let labels = snapshot(&image, 0, false);
    assert_eq!(labels["containerd.io/snapshot/remote/x"], "1");
    assert_eq!(labels["containerd.io/snapshot/cri.image-ref"], image.reference.to_string());
    assert_eq!(labels.len(), 7, "{labels:?}");
}
