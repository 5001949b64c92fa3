//! Labels and keys that containerd sends and silk acts on.

use std::collections::{BTreeMap, HashMap};

use silk_model::Digest;

use crate::Claim;

/// The chain ID that a snapshot will have: set by everything that unpacks images.
pub(crate) const REF: &str = "containerd.io/snapshot.ref";
/// The image as the user named it (containerd's `pkg/snapshotters/annotations.go`, as the next two).
const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
/// The manifest of the image, for this platform.
const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// The compressed layer.
const LAYER: &str = "containerd.io/snapshot/cri.layer-digest";

/// What containerd calls the copy of an image that it makes with other owners, for containers with a user namespace
/// (`client/snapshotter_opts_unix.go`).
const COPY: &str = "-remap";

/// Silk's own label of such a copy: its files have the owners of a user namespace, and none must be mapped again.
pub(crate) const COPIED: &str = "silk/copied-for-user-namespace";

/// Is a snapshot with this key made to copy all of its parent?
pub(crate) fn is_copy(key: &str) -> bool {
    key.ends_with(COPY)
}

/// Labels as they are kept: containerd drops those without a value.
pub(crate) fn kept(labels: HashMap<String, String>) -> BTreeMap<String, String> {
    labels.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

/// What a Prepare with these labels claims, apart from the parent; [`None`] when it is an ordinary one.
///
/// containerd's metadata layer names snapshots `<namespace>/<number>/<key>`.
pub(crate) fn claim(key: &str, namespace: Option<&str>, labels: &HashMap<String, String>) -> Option<Claim> {
    let digest = |label| labels.get(label)?.parse::<Digest>().ok();
    let mut parts = key.splitn(3, '/');
    let prefix = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), Some(number), Some(_)) if number.bytes().all(|b| b.is_ascii_digit()) => Some(name),
        _ => None,
    };
    Some(Claim {
        namespace: prefix.or(namespace)?.to_owned(),
        image_ref: labels.get(IMAGE_REF)?.clone(),
        manifest_digest: digest(MANIFEST)?,
        layer_digest: digest(LAYER)?,
        chain_id: digest(REF)?,
        parent_chain: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(leave_out: &str) -> HashMap<String, String> {
        let digest = Digest::of(b"x").to_string();
        let all = [(REF, digest.as_str()), (IMAGE_REF, "r/i:1"), (MANIFEST, &digest), (LAYER, &digest)];
        all.into_iter().filter(|(k, _)| *k != leave_out).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn a_claim_needs_every_label_and_a_namespace() {
        let key = "k8s.io/42/extract-1-x sha256:00";
        assert_eq!(claim(key, None, &labels("")).unwrap().namespace, "k8s.io");
        assert_eq!(claim("plain", Some("moby"), &labels("")).unwrap().namespace, "moby");
        assert!(claim("a/b/c", None, &labels("")).is_none());
        for label in [REF, IMAGE_REF, MANIFEST, LAYER] {
            assert!(claim(key, None, &labels(label)).is_none(), "{label}");
        }
    }
}
