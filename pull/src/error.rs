//! Why an image or a layer did not arrive.

use std::{fmt, ops::Range, sync::Arc};

use silk_layer::{decode::DecodeError, tar::TarError};
use silk_model::{Class, Digest, metrics::Left};
use silk_store::StoreError;

use crate::resolve::ContentsError;

/// What stopped one layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The registry or the network.
    #[error(transparent)]
    Registry(#[from] silk_registry::Error),
    /// The image's reference does not parse.
    #[error(transparent)]
    Reference(#[from] silk_registry::ReferenceError),
    /// The blob is not what the manifest names.
    #[error("the registry sent other bytes than the manifest names: the blob's digest is {found}, expected {expected}")]
    WrongBlob {
        /// The digest in the manifest.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// The compressed stream is damaged although the blob is what the manifest names: the image was pushed broken.
    #[error("the layer was pushed damaged: {0}")]
    Decode(#[from] DecodeError),
    /// The tar is not well-formed although the blob is what the manifest names.
    #[error("the layer's tar is damaged: {0}")]
    Tar(#[from] TarError),
    /// Too many bytes come out.
    #[error(
        "the layer's {compressed} compressed bytes decode to more than {limit} bytes; if that is no bomb, raise \
         pull.max_expansion or pull.expansion_floor_bytes"
    )]
    Bomb {
        /// Bytes of the blob.
        compressed: u64,
        /// The bound.
        limit: u64,
    },
    /// The disk, or the wrong diff ID.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image failed at another layer before this one's turn came.
    #[error("the layer was not fetched: another layer of its image failed first")]
    Abandoned,
    /// A thread of silk's died; its message is in the log.
    #[error("silk failed at this layer (a bug: see silkd's log)")]
    Panicked,
}

impl LayerError {
    /// What kind of trouble it is.
    pub fn class(&self) -> Class {
        match self {
            Self::Registry(e) => e.class(),
            Self::Reference(e) => e.class(),
            Self::WrongBlob { .. } | Self::Decode(_) | Self::Tar(_) => Class::Corrupt,
            Self::Bomb { .. } => Class::Unsupported,
            Self::Store(e) => e.class(),
            Self::Abandoned => Class::Transient,
            Self::Panicked => Class::Internal,
        }
    }

    /// Could other bytes than those of the manifest be the reason? Then the blob's digest is worth knowing.
    pub(crate) fn blames_content(&self) -> bool {
        match self {
            Self::Decode(_) | Self::Tar(_) | Self::Store(StoreError::WrongDiffId { .. }) => true,
            Self::Registry(_)
            | Self::Reference(_)
            | Self::WrongBlob { .. }
            | Self::Bomb { .. }
            | Self::Store(_)
            | Self::Abandoned
            | Self::Panicked => false,
        }
    }
}

/// Why whole layers cannot be shown as a tree.
#[derive(Debug)]
pub struct ShowError {
    /// The layer at fault, if it is one.
    pub diff_id: Option<Digest>,
    /// What kind of trouble it is.
    pub class: Class,
    /// Once these bytes of layers are here, they can be shown.
    pub missing: Vec<(Digest, Range<u64>)>,
    /// What happened.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl fmt::Display for ShowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.source, f)
    }
}

impl std::error::Error for ShowError {}

/// Why an image is not ready. The text is what kubelet and the operator read: image, layer, cause.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// A layer did not arrive.
    #[error("silk cannot pull {image}: layer {number} of {count} ({blob}): {source}")]
    Layer {
        /// The image's reference.
        image: String,
        /// 1 is the base.
        number: usize,
        /// Layers of the image.
        count: usize,
        /// The layer's blob.
        blob: Digest,
        /// The cause.
        source: Arc<LayerError>,
    },
    /// The layers are here but cannot be shown.
    #[error("silk cannot mount {image}: {layer}{source}")]
    Show {
        /// The image's reference.
        image: String,
        /// "layer 2 of 5 (sha256:...): " when one is at fault.
        layer: String,
        /// The cause.
        source: Arc<ShowError>,
    },
    /// Nothing is known of the image: its record is gone.
    #[error("silk does not know image {0} any more: pull it again")]
    Unknown(String),
    /// It failed a moment ago and is not tried again yet.
    #[error("{0}")]
    Recent(String),
}

impl ImageError {
    /// What kind of trouble it is.
    pub fn class(&self) -> Class {
        match self {
            Self::Layer { source, .. } => source.class(),
            Self::Show { source, .. } => source.class,
            Self::Unknown(_) | Self::Recent(_) => Class::Transient,
        }
    }
}

/// Why silk leaves an image to containerd.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refused {
    /// containerd's content store does not give the manifest or the configuration.
    #[error("the image's manifest or configuration cannot be read from containerd: {0}")]
    Contents(#[from] ContentsError),
    /// The manifest or configuration is not what silk understands.
    #[error("the image's {what} cannot be used: {why}")]
    Malformed {
        /// "manifest" or "configuration".
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A layer of a type that silk cannot stream.
    #[error("layer {number} has the media type {media_type}, which silk cannot stream")]
    MediaType {
        /// 1 is the base.
        number: usize,
        /// As the manifest says.
        media_type: String,
    },
    /// A layer that has addresses of its own: registries need not hold it, and containerd asks there first.
    #[error("layer {number} is to be fetched from {url}, and silk asks nobody but registries")]
    Elsewhere {
        /// 1 is the base.
        number: usize,
        /// The first of its addresses.
        url: String,
    },
    /// More layers than one mount can name.
    #[error("it has {layers} layers, and an overlay of silk's mounts takes at most {most}")]
    Layers {
        /// Of the image.
        layers: usize,
        /// The bound.
        most: usize,
    },
    /// What containerd asked for and what the manifest says do not fit.
    #[error("the layer that containerd prepares is not the image's layer {number}")]
    Mismatch {
        /// 1 is the base.
        number: usize,
    },
    /// The layers below are containerd's.
    #[error(
        "containerd unpacked its base layers by itself{}",
        cause.as_ref().map_or(
            ", before silkd's last start or without the labels a remote snapshotter needs".to_owned(),
            |(image, why)| format!(" when silk left {image} to it: {why}")
        )
    )]
    Below {
        /// The image that they were unpacked for, and why silk left it to containerd.
        cause: Option<(String, String)>,
    },
    /// The registry does not let silk in, or does not answer.
    #[error("{0}")]
    Registry(String),
    /// The kernel offers no way to show layers.
    #[error("{0}")]
    Kernel(String),
}

impl Refused {
    /// For the metrics.
    pub(crate) fn kind(&self) -> Left {
        match self {
            Self::Contents(_) => Left::Contents,
            Self::Malformed { .. }
            | Self::MediaType { .. }
            | Self::Elsewhere { .. }
            | Self::Layers { .. }
            | Self::Mismatch { .. } => Left::Image,
            Self::Below { .. } => Left::Below,
            Self::Registry(_) => Left::Registry,
            Self::Kernel(_) => Left::Kernel,
        }
    }
}
