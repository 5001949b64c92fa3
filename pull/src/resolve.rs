//! From a manifest in containerd's content store to the list of layers.

use std::{fmt, sync::Arc};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use silk_model::{Digest, chain_ids};

use crate::error::Refused;

/// The most bytes a manifest or configuration may have: containerd's own limit for manifests it fetches is 8 MiB.
const MAX_DOCUMENT: u64 = 8 << 20;

/// Layers of one image. mount(2) takes 4,096 bytes of options, where each takes 13 (`silk_mount`'s names) and a container's own
/// directories a few hundred in all. Docker stops at 127.
const MAX_LAYERS: usize = 256;

/// Where manifests and configurations are read from: containerd's content store.
pub trait Contents: fmt::Debug + Send + Sync + 'static {
    /// The blob `digest` as `namespace` sees it, at most `limit` bytes.
    fn read<'a>(
        &'a self,
        namespace: &'a str,
        digest: &'a Digest,
        limit: u64,
    ) -> BoxFuture<'a, Result<Vec<u8>, ContentsError>>;

    /// The blobs that a lease of `namespace` holds, or all of its leases, with the repositories that they came from; the latest
    /// first. The error is a sentence for the log.
    fn held<'a>(&'a self, namespace: &'a str, lease: Option<&'a str>) -> BoxFuture<'a, Result<Vec<Held>, String>>;
}

/// A blob that a pull holds.
#[derive(Debug, Clone)]
pub struct Held {
    /// The blob.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Registry, without its port, and repository.
    pub repositories: Vec<(String, String)>,
    /// The leases that hold it, of those asked for.
    pub leases: Vec<String>,
}

/// The content store did not give a blob.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{digest}: {message}")]
pub struct ContentsError {
    /// The blob.
    pub digest: Digest,
    /// What containerd said.
    pub message: String,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSpec {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Digest of the blob at the registry.
    pub blob: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// As the manifest says; the compression is mostly detected from the bytes, as containerd does (`silk_layer::media`).
    pub media_type: String,
}

/// An image as silk pulls it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// containerd's namespace that asked first.
    pub namespace: String,
    /// The full reference.
    pub reference: String,
    /// Digest of the manifest (of the platform's, where the image is an index).
    pub manifest: Digest,
    /// Base first.
    pub layers: Vec<LayerSpec>,
}

impl ImageSpec {
    /// Diff IDs, base first.
    pub fn diff_ids(&self) -> Vec<Digest> {
        self.layers.iter().map(|l| l.diff_id).collect()
    }

    /// Chain IDs, base first.
    pub fn chain_ids(&self) -> Vec<Digest> {
        chain_ids(&self.diff_ids())
    }
}

/// What silk needs of a manifest. What else it says, and whether that is as the specification asks, is containerd's to judge.
#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    urls: Option<Vec<String>>,
}

/// What silk needs of a configuration. How its containers run is not silk's to judge: builders leave out what the
/// specification asks for, and write null where it has none, and containerd runs those images.
#[derive(Debug, Deserialize)]
struct Configuration {
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// Reads and checks an image's manifest and configuration.
pub(crate) async fn resolve(
    contents: &Arc<dyn Contents>,
    namespace: &str,
    reference: &str,
    manifest: &Digest,
) -> Result<ImageSpec, Refused> {
    let bytes = contents.read(namespace, manifest, MAX_DOCUMENT).await?;
    let Manifest { config, layers: descriptors } = parse("manifest", &bytes)?;
    let config = digest("manifest", &config.digest)?;
    let bytes = contents.read(namespace, &config, MAX_DOCUMENT).await?;
    let Configuration { rootfs: RootFs { diff_ids } } = parse("configuration", &bytes)?;
    if descriptors.is_empty() || descriptors.len() != diff_ids.len() {
        return Err(Refused::Malformed {
            what: "configuration",
            why: format!("it names {} diff IDs for the manifest's {} layers", diff_ids.len(), descriptors.len()),
        });
    }
    if descriptors.len() > MAX_LAYERS {
        return Err(Refused::Layers { layers: descriptors.len(), most: MAX_LAYERS });
    }
    let layers = descriptors.into_iter().zip(&diff_ids).enumerate().map(|(i, (descriptor, diff_id))| {
        let Descriptor { media_type, digest: blob, size, urls } = descriptor;
        if !silk_layer::media::is_layer(&media_type) {
            return Err(Refused::MediaType { number: i + 1, media_type });
        }
        if let Some(url) = urls.and_then(|urls| urls.into_iter().next()) {
            return Err(Refused::Elsewhere { number: i + 1, url });
        }
        let (diff_id, blob) = (digest("configuration", diff_id)?, digest("manifest", &blob)?);
        Ok(LayerSpec { diff_id, blob, size, media_type })
    });
    Ok(ImageSpec {
        namespace: namespace.to_owned(),
        reference: reference.to_owned(),
        manifest: *manifest,
        layers: layers.collect::<Result<_, _>>()?,
    })
}

fn parse<T: serde::de::DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(bytes).map_err(|e| Refused::Malformed { what, why: e.to_string() })
}

fn digest(what: &'static str, text: &str) -> Result<Digest, Refused> {
    text.parse().map_err(|e: silk_model::DigestError| Refused::Malformed { what, why: e.to_string() })
}
