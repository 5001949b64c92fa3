//! The artifact's manifest: an OCI image manifest whose layers are envelopes. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use silk_model::Digest;
use silk_registry::{Manifest, Referrer};

use crate::Key;

/// What silk's artifacts are; the version is the envelope's.
pub(super) const ARTIFACT_TYPE: &str = "application/vnd.silk.knowledge.v1";
/// An envelope with what is known of a layer.
const LAYER_TYPE: &str = "application/vnd.silk.knowledge.layer.v1";
/// An envelope with an image's start profiles.
const PROFILE_TYPE: &str = "application/vnd.silk.knowledge.profile.v1";
/// The blob of a layer.
const BLOB: &str = "vnd.silk.blob";
/// Which artifact replaces which, in decimal.
const REVISION: &str = "vnd.silk.revision";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image specification, "Guidance for an Empty Descriptor".
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
pub(super) const EMPTY: &[u8] = b"{}";
/// Values in one artifact; an image has at most a few hundred layers.
const MAX_VALUES: usize = 1024;

/// What an artifact holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Artifact {
    pub revision: u64,
    values: Vec<Descriptor>,
}

/// Where a value lies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    media_type: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    pub digest: Digest,
    pub size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Artifact {
    /// None if the bytes are not a manifest with a bearable number of values.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let Document { mut layers, annotations } = serde_json::from_slice(bytes).ok()?;
        layers.retain(|layer| matches!(layer.media_type.as_str(), LAYER_TYPE | PROFILE_TYPE));
        layers.sort();
        (layers.len() <= MAX_VALUES).then(|| Self { revision: revision(&annotations), values: layers })
    }

    /// The same as another revision.
    pub(super) fn at(self, revision: u64) -> Self {
        Self { revision, ..self }
    }

    /// The values of `key`: one, unless two nodes wrote at the same time.
    pub(super) fn get(&self, key: Key) -> impl Iterator<Item = &Descriptor> {
        self.values.iter().filter(move |value| value.is_of(key))
    }

    /// Those that are of this image, as far as one can tell.
    pub(super) fn values(&self, manifest: Digest) -> impl Iterator<Item = (Key, &Descriptor)> {
        let key = move |value: &Descriptor| match value.media_type.as_str() {
            PROFILE_TYPE => Some(Key::Profile(manifest)),
            _ => value.annotations.get(BLOB)?.parse().ok().map(Key::Layer),
        };
        self.values.iter().filter_map(move |value| Some((key(value)?, value)))
    }

    /// The value of `key` is this one, and no other. Where there are too many, others give way.
    pub(super) fn set(&mut self, key: Key, digest: Digest, size: u64) {
        self.values.retain(|value| !value.is_of(key));
        self.values.truncate(MAX_VALUES - 1);
        let (media_type, annotations) = match key {
            Key::Layer(blob) => (LAYER_TYPE, BTreeMap::from([(BLOB.to_owned(), blob.to_string())])),
            Key::Profile(_) => (PROFILE_TYPE, BTreeMap::new()),
        };
        self.values.push(Descriptor { media_type: media_type.into(), annotations, digest, size });
        self.values.sort();
    }

    /// Takes over what `other` has.
    pub(super) fn absorb(&mut self, other: &Self) {
        self.values.extend(other.values.iter().cloned());
        self.values.sort();
        self.values.dedup();
        self.values.truncate(MAX_VALUES);
    }

    /// The rest of it.
    pub(super) fn without(mut self, gone: &[Digest]) -> Self {
        self.values.retain(|value| !gone.contains(&value.digest));
        self
    }

    /// The document for an image, and its entry in the list of that image's referrers.
    pub(super) fn manifest(&self, image: &Manifest) -> (Bytes, Referrer) {
        let empty = Descriptor {
            media_type: EMPTY_TYPE.into(),
            annotations: BTreeMap::new(),
            digest: Digest::of(EMPTY),
            size: EMPTY.len() as u64,
        };
        // A manifest must have a layer.
        let layers = if self.values.is_empty() { std::slice::from_ref(&empty) } else { &self.values };
        let annotations = BTreeMap::from([(REVISION.to_owned(), self.revision.to_string())]);
        let document = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": { "mediaType": EMPTY_TYPE, "digest": empty.digest, "size": empty.size },
            "layers": layers,
            "subject": { "mediaType": image.media_type, "digest": image.digest, "size": image.bytes.len() },
            "annotations": annotations,
        });
        let bytes = Bytes::from(document.to_string());
        let referrer = Referrer {
            media_type: MANIFEST_TYPE.into(),
            digest: Digest::of(&bytes),
            size: bytes.len() as u64,
            artifact_type: ARTIFACT_TYPE.into(),
            annotations,
        };
        (bytes, referrer)
    }
}

impl Descriptor {
    fn is_of(&self, key: Key) -> bool {
        match key {
            Key::Layer(blob) => {
                self.media_type == LAYER_TYPE && self.annotations.get(BLOB).is_some_and(|text| text.parse() == Ok(blob))
            }
            Key::Profile(_) => self.media_type == PROFILE_TYPE,
        }
    }
}

/// The revision that a list of referrers gives; 0 if it gives none.
pub(super) fn listed_revision(referrer: &Referrer) -> u64 {
    revision(&referrer.annotations)
}

fn revision(annotations: &BTreeMap<String, String>) -> u64 {
    annotations.get(REVISION).and_then(|text| text.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Key {
        Key::Layer(Digest::of(&[n]))
    }

    fn image() -> Manifest {
        Manifest { media_type: MANIFEST_TYPE.into(), digest: Digest::of(b"image"), bytes: Bytes::from_static(b"image") }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut artifact = Artifact { revision: 7, ..Artifact::default() };
        artifact.set(key(1), Digest::of(b"a"), 1);
        artifact.set(Key::Profile(Digest::of(b"image")), Digest::of(b"p"), 2);
        artifact.set(key(1), Digest::of(b"b"), 3);
        let (bytes, referrer) = artifact.manifest(&image());
        assert_eq!(Artifact::parse(&bytes).unwrap(), artifact);
        assert_eq!((listed_revision(&referrer), referrer.digest), (7, Digest::of(&bytes)));
        assert_eq!(artifact.get(key(1)).map(|value| value.size).collect::<Vec<_>>(), [3]);
        assert_eq!(artifact.get(key(2)).count(), 0);

        let empty = artifact.without(&[Digest::of(b"b"), Digest::of(b"p")]);
        assert_eq!(Artifact::parse(&empty.manifest(&image()).0).unwrap(), empty, "an empty one is a manifest too");
    }

    #[test]
    fn two_of_one_revision_become_one() {
        let (mut one, mut two) = (Artifact::default(), Artifact::default());
        one.set(key(1), Digest::of(b"a"), 1);
        one.set(key(2), Digest::of(b"x"), 1);
        two.set(key(1), Digest::of(b"b"), 1);
        two.set(key(2), Digest::of(b"x"), 1);
        one.absorb(&two);
        assert_eq!((one.get(key(1)).count(), one.get(key(2)).count()), (2, 1));
        one.set(key(1), Digest::of(b"c"), 1);
        assert_eq!(one.get(key(1)).count(), 1);
    }

    #[test]
    fn hostile_documents() {
        for bad in ["", "3", "{\"layers\": 3}", "{\"layers\": [{}]}"] {
            assert_eq!(Artifact::parse(bad.as_bytes()), None, "{bad}");
        }
        let many = json!({ "layers": vec![Descriptor {
            media_type: LAYER_TYPE.into(), annotations: BTreeMap::new(), digest: Digest::of(b"x"), size: u64::MAX,
        }; MAX_VALUES + 1] });
        assert_eq!(Artifact::parse(many.to_string().as_bytes()), None);
        let foreign = json!({ "layers": [], "annotations": { REVISION: "-1" } });
        assert_eq!(Artifact::parse(foreign.to_string().as_bytes()).unwrap().revision, 0);
    }
}
