//! Labels that containerd's client sets. Pure.
//!
//! Names and rules: containerd's `core/images/mediatypes.go` (children), `core/remotes/docker/handler.go` (sources),
//! `pkg/snapshotters/annotations.go` and `core/unpack/unpacker.go` (snapshots).

use std::collections::{BTreeMap, HashMap};

use silk_registry::Reference;

use super::image::Image;

/// containerd refuses a label whose key and value are longer together (`pkg/labels/validate.go`).
const MAX_LABEL: usize = 4096;

/// Keys with this prefix reach a snapshotter.
const SNAPSHOT: &str = "containerd.io/snapshot/";
/// The chain ID that a snapshot will have.
const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// How to unpack a blob's bytes: set on a layer's blob once its diff ID is proved.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// What keeps an image's snapshots from garbage collection: set on its configuration.
pub fn snapshot_of(snapshotter: &str) -> String {
    format!("containerd.io/gc.ref.snapshot.{snapshotter}")
}

/// What keeps the children of a document from garbage collection: set on the document, a label a child.
pub fn children<'a>(children: impl IntoIterator<Item = (&'a str, String)>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut used: HashMap<&str, usize> = HashMap::new();
    for (media_type, digest) in children {
        let key = match media_type {
            _ if is_config(media_type) => "containerd.io/gc.ref.content.config",
            _ if is_manifest(media_type) => "containerd.io/gc.ref.content.m.",
            _ if is_layer(media_type) => "containerd.io/gc.ref.content.l.",
            _ => "containerd.io/gc.ref.content.",
        };
        let index = used.entry(key).or_default();
        let label = if *index > 0 || key.ends_with('.') { format!("{key}{index}") } else { key.to_owned() };
        *index += 1;
        labels.insert(label, digest);
    }
    labels
}

/// The key under which a blob's source is kept: the registry's host without its port.
pub fn source_key(reference: &Reference) -> String {
    let host = reference.host();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    format!("containerd.io/distribution.source.{}", name.trim_matches(['[', ']']))
}

/// The sources of a blob with one more repository; none when containerd would not take it.
pub fn add_source(key: &str, sources: &str, repository: &str) -> Option<String> {
    let mut all: Vec<_> = sources.split(',').filter(|source| !source.is_empty()).chain([repository]).collect();
    all.sort_unstable();
    all.dedup();
    let value = all.join(",");
    fits(key, &value).then_some(value)
}

/// The labels for the snapshot of layer number `index`: of silk, unless `local`.
pub fn snapshot(image: &Image, index: usize, local: bool) -> HashMap<String, String> {
    let layer = &image.layers[index];
    let mut labels: HashMap<String, String> = layer
        .descriptor
        .annotations
        .iter()
        .filter(|(key, value)| key.starts_with(SNAPSHOT) && fits(key, value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut set = |key: &str, value: String| labels.insert(key.to_owned(), value);
    set(SNAPSHOT_REF, layer.chain_id.to_string());
    if local {
        return labels;
    }
    set("containerd.io/snapshot/cri.image-ref", image.reference.to_string());
    set("containerd.io/snapshot/cri.manifest-digest", image.manifest.digest.to_string());
    set("containerd.io/snapshot/cri.layer-digest", layer.descriptor.digest.to_string());
    set(LAYERS, layers_from(image, index));
    // Since containerd 2.3.
    set("containerd.io/snapshot/diff-id", layer.diff_id.to_string());
    if let Some(below) = index.checked_sub(1) {
        set("containerd.io/snapshot/parent-chain-id", image.layers[below].chain_id.to_string());
    }
    labels
}

const LAYERS: &str = "containerd.io/snapshot/cri.image-layers";

/// The blobs from layer number `index` to the top, as many as a label holds.
fn layers_from(image: &Image, index: usize) -> String {
    let mut list = String::new();
    for layer in &image.layers[index..] {
        let digest = layer.descriptor.digest.to_string();
        let longer = if list.is_empty() { digest } else { format!("{list},{digest}") };
        if !fits(LAYERS, &longer) {
            break;
        }
        list = longer;
    }
    list
}

fn fits(key: &str, value: &str) -> bool {
    key.len() + value.len() <= MAX_LABEL
}

/// A container's configuration.
pub fn is_config(media_type: &str) -> bool {
    matches!(media_type, "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json")
}

/// One image.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json"
    )
}

/// Several.
pub fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

/// A layer, as containerd tells one.
pub fn is_layer(media_type: &str) -> bool {
    let base = media_type.split('+').next().unwrap_or_default();
    media_type.starts_with("application/vnd.oci.image.layer.")
        || matches!(
            base,
            "application/vnd.docker.image.rootfs.diff.tar"
                | "application/vnd.docker.image.rootfs.diff.tar.gzip"
                | "application/vnd.docker.image.rootfs.diff.tar.zstd"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        )
}

#[cfg(test)]
mod tests;
