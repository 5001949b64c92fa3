//! Images from tar bytes: blobs, config, manifest and index.

use std::io::Write as _;

use bytes::Bytes;
use flate2::{Compression as Level, write::GzEncoder};
use serde_json::{Value, json};
use silk_model::Digest;

/// How a layer's tar is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    Plain,
    /// One gzip member.
    Gzip,
    /// Several gzip members of this many bytes of tar each, as pigz and bgzip write them.
    GzipMembers(usize),
    /// One zstd frame.
    Zstd,
}

/// A layer to be pushed.
#[derive(Debug, Clone)]
pub struct LayerSpec {
    blob: Bytes,
    media_type: MediaType,
    diff_id: Digest,
    /// What the manifest says, if not the truth.
    claimed: Option<(Digest, u64)>,
}

#[derive(Debug, Clone)]
enum MediaType {
    Of(Compression),
    Raw(String),
}

/// An image to be pushed.
#[derive(Debug, Clone, Default)]
pub struct ImageSpec {
    layers: Vec<LayerSpec>,
    docker: bool,
    indexed: bool,
    urls: Vec<String>,
    command: Vec<String>,
}

/// An image that a registry has.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// `127.0.0.1:PORT/repository:tag`.
    pub reference: String,
    /// Of what the tag names: the index if there is one, else the manifest.
    pub digest: Digest,
    /// Of the manifest.
    pub manifest_digest: Digest,
    /// The manifest itself.
    pub manifest: Bytes,
    /// Of the config.
    pub config_digest: Digest,
    /// The config itself.
    pub config: Bytes,
    /// Base layer first.
    pub layers: Vec<PushedLayer>,
}

/// A layer of a pushed image, as its manifest describes it.
#[derive(Debug, Clone)]
pub struct PushedLayer {
    /// Of the stored bytes.
    pub blob_digest: Digest,
    /// Of the stored bytes.
    pub size: u64,
    /// Of the tar.
    pub diff_id: Digest,
    /// Of the stored bytes.
    pub media_type: String,
}

/// The documents of an image.
pub(crate) struct Built {
    pub blobs: Vec<(Digest, Bytes)>,
    /// Media type and bytes; what the tag names is the last.
    pub manifests: Vec<(String, Bytes)>,
    pub pushed: Pushed,
}

impl Compression {
    /// The stored form of `tar`.
    pub fn apply(self, tar: &[u8]) -> Bytes {
        let gzip = |part: &[u8]| {
            let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
            encoder.write_all(part).expect("memory takes all writes");
            encoder.finish().expect("memory takes all writes")
        };
        match self {
            Self::Plain => tar.to_vec(),
            Self::Gzip => gzip(tar),
            Self::GzipMembers(size) => tar.chunks(size.max(1)).flat_map(gzip).collect(),
            Self::Zstd => zstd::bulk::compress(tar, 1).expect("memory takes all writes"),
        }
        .into()
    }
}

impl LayerSpec {
    /// An honest layer.
    pub fn new(tar: impl AsRef<[u8]>, compression: Compression) -> Self {
        let tar = tar.as_ref();
        let media_type = MediaType::Of(compression);
        Self { blob: compression.apply(tar), media_type, diff_id: Digest::of(tar), claimed: None }
    }

    /// Any bytes under any media type.
    pub fn raw(blob: impl Into<Bytes>, media_type: &str, diff_id: Digest) -> Self {
        Self { blob: blob.into(), media_type: MediaType::Raw(media_type.into()), diff_id, claimed: None }
    }

    /// The config gives this diff ID instead of the true one.
    #[must_use]
    pub fn with_diff_id(self, diff_id: Digest) -> Self {
        Self { diff_id, ..self }
    }

    /// The manifest gives this digest and size; the registry serves the true bytes under them.
    #[must_use]
    pub fn claiming(self, digest: Digest, size: u64) -> Self {
        Self { claimed: Some((digest, size)), ..self }
    }

    /// The stored bytes.
    pub fn blob(&self) -> &Bytes {
        &self.blob
    }
}

impl ImageSpec {
    /// An image without layers, with OCI media types.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an honest layer on top.
    #[must_use]
    pub fn layer(self, tar: impl AsRef<[u8]>, compression: Compression) -> Self {
        self.with(LayerSpec::new(tar, compression))
    }

    /// Adds any layer on top.
    #[must_use]
    pub fn with(mut self, layer: LayerSpec) -> Self {
        self.layers.push(layer);
        self
    }

    /// With Docker's media types.
    #[must_use]
    pub fn docker(self) -> Self {
        Self { docker: true, ..self }
    }

    /// The tag names an index of this image and one for another architecture (which does not exist).
    #[must_use]
    pub fn indexed(self) -> Self {
        Self { indexed: true, ..self }
    }

    /// Its first layer can be had here too.
    #[must_use]
    pub fn first_at(self, url: &str) -> Self {
        Self { urls: vec![url.to_owned()], ..self }
    }

    /// What its containers run.
    #[must_use]
    pub fn command(self, command: &[&str]) -> Self {
        Self { command: command.iter().map(|&word| word.to_owned()).collect(), ..self }
    }

    /// As [`Fake::push_image`](crate::Fake::push_image) stores it.
    pub(crate) fn build(&self, reference: String) -> Built {
        let layers: Vec<PushedLayer> = self.layers.iter().map(|layer| self.describe(layer)).collect();
        let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let config = document(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Cmd": self.command },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": [],
        }));
        let config_digest = Digest::of(&config);
        let descriptor = |media_type: &str, digest: &Digest, size: u64| -> Value {
            json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
        };
        let media_type = self.name("manifest.v1+json", "manifest.v2+json");
        let mut descriptors: Vec<_> =
            layers.iter().map(|l| descriptor(&l.media_type, &l.blob_digest, l.size)).collect();
        if let Some(first) = descriptors.first_mut().filter(|_| !self.urls.is_empty()) {
            first["urls"] = json!(self.urls);
        }
        let manifest = document(&json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": descriptor(&self.name("config.v1+json", "container.image.v1+json"), &config_digest, config.len() as u64),
            "layers": descriptors,
        }));
        let manifest_digest = Digest::of(&manifest);
        let mut manifests = vec![(media_type.clone(), manifest.clone())];
        if self.indexed {
            let mut other = descriptor(&media_type, &Digest::of(b"no such manifest"), 1);
            other["platform"] = json!({ "architecture": "s390x", "os": "linux" });
            let mut own = descriptor(&media_type, &manifest_digest, manifest.len() as u64);
            own["platform"] = json!({ "architecture": architecture(), "os": "linux" });
            let media_type = self.name("index.v1+json", "manifest.list.v2+json");
            let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": [other, own] });
            manifests.push((media_type, document(&index)));
        }
        let digest = Digest::of(&manifests[manifests.len() - 1].1);
        let blobs = self.layers.iter().zip(&layers).map(|(spec, layer)| (layer.blob_digest, spec.blob.clone()));
        let blobs = blobs.chain([(config_digest, config.clone())]).collect();
        let pushed = Pushed { reference, digest, manifest_digest, manifest, config_digest, config, layers };
        Built { blobs, manifests, pushed }
    }

    fn describe(&self, layer: &LayerSpec) -> PushedLayer {
        let (blob_digest, size) = layer.claimed.unwrap_or((Digest::of(&layer.blob), layer.blob.len() as u64));
        let media_type = match &layer.media_type {
            MediaType::Raw(name) => name.clone(),
            MediaType::Of(Compression::Plain) => self.name("layer.v1.tar", "image.rootfs.diff.tar"),
            MediaType::Of(Compression::Gzip | Compression::GzipMembers(_)) => {
                self.name("layer.v1.tar+gzip", "image.rootfs.diff.tar.gzip")
            }
            MediaType::Of(Compression::Zstd) => self.name("layer.v1.tar+zstd", "image.rootfs.diff.tar.zstd"),
        };
        PushedLayer { blob_digest, size, diff_id: layer.diff_id, media_type }
    }

    fn name(&self, oci: &str, docker: &str) -> String {
        match self.docker {
            false => format!("application/vnd.oci.image.{oci}"),
            true if docker.starts_with("manifest.") => format!("application/vnd.docker.distribution.{docker}"),
            true => format!("application/vnd.docker.{docker}"),
        }
    }
}

fn document(value: &Value) -> Bytes {
    serde_json::to_vec(value).expect("a JSON value can be written").into()
}

/// This machine's architecture in Go's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
