//! From a reference to the layers: index, manifest and configuration, on the way put into containerd's content store.

use std::collections::BTreeMap;

use bytes::Bytes;
use oci_spec::image::{self as oci, ImageIndex};
use serde::{Deserialize, de::IgnoredAny};
use silk_model::{Digest, DigestError, chain_ids};
use silk_registry::{MANIFEST_TYPES, Reference, Repository, Selector};

use super::{
    labels::{self, is_config, is_index, is_layer, is_manifest},
    platform::Platform,
};
use crate::failure::Failure;

/// The largest document that is read: what registries take at most is 4 MiB, containerd reads 8 MiB.
const MAX_DOCUMENT: u64 = 8 << 20;
/// Indexes inside of indexes. One level is allowed by the specification and used by nobody known.
const MAX_NESTING: usize = 4;

/// A document or a layer, as who refers to it describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    pub annotations: BTreeMap<String, String>,
}

/// An image, its documents in containerd.
#[derive(Debug, Clone)]
pub struct Image {
    pub reference: Reference,
    /// What the reference names: the index if there is one, else the manifest.
    pub target: Descriptor,
    pub manifest: Descriptor,
    pub config: Descriptor,
    /// None when its configuration does not say.
    pub platform: Option<Platform>,
    /// Base first.
    pub layers: Vec<Layer>,
}

/// A layer of it.
#[derive(Debug, Clone)]
pub struct Layer {
    pub descriptor: Descriptor,
    pub diff_id: Digest,
    pub chain_id: Digest,
}

/// What is wrong with a document.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// It does not parse.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A digest in it does not.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// It is of a type that is no image.
    #[error("its media type is {0:?}, which is no image; artifacts and manifests of schema 1 cannot be unpacked")]
    NoImage(String),
    /// An index's bytes under a manifest's type, or the reverse.
    #[error("its media type is {0:?}, but its content is of the other kind")]
    Mislabelled(String),
    /// Indexes in indexes in indexes.
    #[error("it is nested in more than {MAX_NESTING} indexes")]
    Nested,
    /// Larger than any honest one.
    #[error("it has {0} bytes, and silk reads at most {MAX_DOCUMENT}")]
    TooLarge(u64),
    /// A layer that cannot be unpacked.
    #[error("its layer {number} has the media type {media_type:?}, which cannot be unpacked")]
    LayerType {
        /// 1 is the base.
        number: usize,
        /// As it says.
        media_type: String,
    },
    /// Configuration and manifest disagree.
    #[error("it has {diff_ids} diff IDs for the manifest's {layers} layers")]
    Count {
        /// In the configuration.
        diff_ids: usize,
        /// In the manifest.
        layers: usize,
    },
}

/// What a configuration says of the layers (containerd's `unpackConfig`). Some builders write null for what they do not know,
/// and those in Go for an empty list.
#[derive(Debug, Deserialize)]
struct Config {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    rootfs: Option<RootFs>,
}

impl Config {
    /// What it is made for; none when it does not say.
    fn platform(&self) -> Option<Platform> {
        let told = |text: &Option<String>| text.clone().unwrap_or_default();
        let architecture = self.architecture.as_deref().filter(|text| !text.is_empty())?;
        Some(Platform::new(&told(&self.os), architecture, &told(&self.variant)))
    }

    /// Of the layers, base first.
    fn diff_ids(&self) -> &[String] {
        self.rootfs.as_ref().and_then(|rootfs| rootfs.diff_ids.as_deref()).unwrap_or_default()
    }
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<String>>,
}

/// What is read of a manifest; here too null is an empty list.
#[derive(Debug, Deserialize)]
struct Manifest {
    config: oci::Descriptor,
    layers: Option<Vec<oci::Descriptor>>,
}

impl Manifest {
    /// Base first.
    fn layers(&self) -> &[oci::Descriptor] {
        self.layers.as_deref().unwrap_or_default()
    }
}

/// Where an image's documents go.
pub trait Keep {
    /// A document: the one kept already, else the one that `fetch` gets.
    async fn document(
        &self,
        descriptor: &Descriptor,
        fetch: impl Future<Output = Result<Bytes, Failure>>,
    ) -> Result<Bytes, Failure>;

    /// Labels a document that is kept.
    async fn label(&self, digest: &Digest, labels: BTreeMap<String, String>) -> Result<(), Failure>;
}

/// Keeps no document.
#[derive(Debug)]
pub struct Nowhere;

impl Keep for Nowhere {
    async fn document(
        &self,
        descriptor: &Descriptor,
        fetch: impl Future<Output = Result<Bytes, Failure>>,
    ) -> Result<Bytes, Failure> {
        let bytes = fetch.await?;
        match Digest::of(&bytes) {
            found if found == descriptor.digest => Ok(bytes),
            found => Err(Failure::WrongDigest { expected: descriptor.digest, found }),
        }
    }

    async fn label(&self, _: &Digest, _: BTreeMap<String, String>) -> Result<(), Failure> {
        Ok(())
    }
}

/// Asks the registry, and keeps what it finds.
pub async fn resolve(
    reference: &Reference,
    repository: &Repository,
    store: &impl Keep,
    wanted: &Platform,
) -> Result<Image, Failure> {
    let top = repository.manifest(&reference.selector(), MANIFEST_TYPES).await?;
    let media_type = kind(&top.media_type, &top.bytes).map_err(|why| malformed("manifest", top.digest, why))?;
    let (digest, size) = (top.digest, top.bytes.len() as u64);
    let target = Descriptor { media_type, digest, size, annotations: BTreeMap::new() };
    let mut bytes = store.document(&target, async { Ok(top.bytes) }).await?;
    let mut manifest = target.clone();
    for nesting in 0.. {
        if is_manifest(&manifest.media_type) {
            break;
        }
        if nesting == MAX_NESTING {
            return Err(malformed("index", manifest.digest, Malformed::Nested));
        }
        let index: ImageIndex = parse("index", manifest.digest, &bytes)?;
        let children = index.manifests().iter().map(|child| (child.media_type().as_ref(), child.digest().to_string()));
        store.label(&manifest.digest, labels::children(children)).await?;
        manifest = choose(&index, wanted).map_err(|e| e.of("index", manifest.digest))?;
        bytes = store.document(&manifest, fetch_manifest(repository, &manifest)).await?;
        kind(&manifest.media_type, &bytes).map_err(|why| malformed("manifest", manifest.digest, why))?;
    }
    unfold(reference, repository, store, Documents { target, manifest, bytes }).await
}

struct Documents {
    target: Descriptor,
    manifest: Descriptor,
    /// Of the manifest.
    bytes: Bytes,
}

/// From the manifest down.
async fn unfold(
    reference: &Reference,
    repository: &Repository,
    store: &impl Keep,
    documents: Documents,
) -> Result<Image, Failure> {
    let Documents { target, manifest, bytes } = documents;
    let document: Manifest = parse("manifest", manifest.digest, &bytes)?;
    let fault = |why| malformed("manifest", manifest.digest, why);
    let described = [&document.config].into_iter().chain(document.layers());
    let children = described.map(|child| (child.media_type().as_ref(), child.digest().to_string()));
    let config = descriptor(&document.config).map_err(fault)?;
    if !is_config(&config.media_type) {
        return Err(fault(Malformed::NoImage(config.media_type)));
    }
    store.label(&manifest.digest, labels::children(children)).await?;
    let bytes = store.document(&config, fetch_config(repository, &config)).await?;
    store.label(&config.digest, BTreeMap::new()).await?;
    let content: Config = parse("configuration", config.digest, &bytes)?;
    let diff_ids = content.diff_ids().iter().map(|id| id.parse()).collect::<Result<Vec<Digest>, _>>();
    let diff_ids = diff_ids.map_err(|e| malformed("configuration", config.digest, e.into()))?;
    let layers = document.layers().iter().map(descriptor).collect::<Result<Vec<_>, _>>().map_err(fault)?;
    if let Some(at) = layers.iter().position(|layer| !is_layer(&layer.media_type)) {
        return Err(fault(Malformed::LayerType { number: at + 1, media_type: layers[at].media_type.clone() }));
    }
    if layers.len() != diff_ids.len() {
        let why = Malformed::Count { diff_ids: diff_ids.len(), layers: layers.len() };
        return Err(malformed("configuration", config.digest, why));
    }
    let chained = diff_ids.iter().copied().zip(chain_ids(&diff_ids));
    let layers = layers.into_iter().zip(chained);
    let layers = layers.map(|(descriptor, (diff_id, chain_id))| Layer { descriptor, diff_id, chain_id }).collect();
    Ok(Image { reference: reference.clone(), target, manifest, config, platform: content.platform(), layers })
}

async fn fetch_manifest(repository: &Repository, manifest: &Descriptor) -> Result<Bytes, Failure> {
    check_size("manifest", manifest)?;
    let selector = Selector::Digest(manifest.digest);
    Ok(repository.manifest(&selector, &[&manifest.media_type]).await?.bytes)
}

async fn fetch_config(repository: &Repository, config: &Descriptor) -> Result<Bytes, Failure> {
    check_size("configuration", config)?;
    let mut stream = repository.blob(config.digest, config.size).read(0..config.size);
    let mut bytes = Vec::with_capacity(config.size as usize);
    while let Some(piece) = stream.next().await? {
        bytes.extend_from_slice(&piece);
    }
    let found = Digest::of(&bytes);
    if found != config.digest {
        return Err(Failure::WrongDigest { expected: config.digest, found });
    }
    Ok(bytes.into())
}

fn check_size(what: &'static str, document: &Descriptor) -> Result<(), Failure> {
    match document.size {
        0..=MAX_DOCUMENT => Ok(()),
        size => Err(malformed(what, document.digest, Malformed::TooLarge(size))),
    }
}

/// What a document is, by the registry's word if that means something, else by its own, else by its shape. Bytes that are
/// a manifest to one reader and an index to another are refused (containerd's `validateMediaType`).
fn kind(media_type: &str, bytes: &[u8]) -> Result<String, Malformed> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        #[serde(default)]
        media_type: String,
        manifests: Option<Vec<IgnoredAny>>,
        layers: Option<Vec<IgnoredAny>>,
        config: Option<IgnoredAny>,
        fs_layers: Option<IgnoredAny>,
    }
    let shape: Shape = serde_json::from_slice(bytes)?;
    let known = |text: &str| is_index(text) || is_manifest(text);
    let (index, image) = (shape.manifests.is_some(), shape.layers.is_some() || shape.config.is_some());
    let said = [media_type, &shape.media_type].into_iter().find(|text| known(text));
    let kind = match said {
        Some(said) => said,
        None if index => "application/vnd.oci.image.index.v1+json",
        None if image && shape.fs_layers.is_none() => "application/vnd.oci.image.manifest.v1+json",
        None => return Err(Malformed::NoImage(media_type.to_owned())),
    };
    let other =
        if is_index(kind) { image || is_manifest(&shape.media_type) } else { index || is_index(&shape.media_type) };
    if other { Err(Malformed::Mislabelled(kind.to_owned())) } else { Ok(kind.to_owned()) }
}

/// Why no manifest of an index was chosen.
#[derive(Debug)]
enum NotChosen {
    Malformed(Malformed),
    NoPlatform { wanted: Platform, has: Vec<Platform> },
}

impl NotChosen {
    fn of(self, what: &'static str, digest: Digest) -> Failure {
        match self {
            Self::Malformed(why) => malformed(what, digest, why),
            Self::NoPlatform { wanted, has } => Failure::NoPlatform { wanted, has },
        }
    }
}

/// The manifest that runs best on `wanted`; where none says so, the first that does not say what it is for.
fn choose(index: &ImageIndex, wanted: &Platform) -> Result<Descriptor, NotChosen> {
    let offered = index.manifests().iter().filter(|m| {
        let media_type = m.media_type().as_ref();
        is_manifest(media_type) || is_index(media_type)
    });
    let platform = |manifest: &oci::Descriptor| manifest.platform().as_ref().map(Platform::from);
    let ranked = offered.clone().filter_map(|manifest| match platform(manifest) {
        Some(platform) => Some((wanted.rank(&platform)?, manifest)),
        None => Some((usize::MAX, manifest)),
    });
    match ranked.min_by_key(|(rank, _)| *rank) {
        Some((_, manifest)) => descriptor(manifest).map_err(NotChosen::Malformed),
        None => {
            let has = offered.filter_map(platform).collect();
            Err(NotChosen::NoPlatform { wanted: wanted.clone(), has })
        }
    }
}

impl From<&oci::Platform> for Platform {
    fn from(platform: &oci::Platform) -> Self {
        let variant = platform.variant().as_deref().unwrap_or_default();
        Self::new(&platform.os().to_string(), &platform.architecture().to_string(), variant)
    }
}

fn descriptor(descriptor: &oci::Descriptor) -> Result<Descriptor, Malformed> {
    Ok(Descriptor {
        media_type: descriptor.media_type().to_string(),
        digest: descriptor.digest().to_string().parse()?,
        size: descriptor.size(),
        annotations: descriptor.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
    })
}

fn parse<'a, T: Deserialize<'a>>(what: &'static str, digest: Digest, bytes: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|e| malformed(what, digest, e.into()))
}

fn malformed(what: &'static str, digest: Digest, why: Malformed) -> Failure {
    Failure::Document { what, digest, why }
}

#[cfg(test)]
mod tests;
