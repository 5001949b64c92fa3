//! The seam to the rest of silk: who pulls, keeps and shows the layers that remote snapshots stand for.
//!
//! Implemented where the rooms are joined, and by fakes in tests.

use std::{fmt, path::PathBuf, sync::Arc};

use silk_model::{Class, Digest, IdMaps};

use crate::Usage;

/// A layer that containerd prepares with the labels of a remote snapshotter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// containerd's namespace.
    pub namespace: String,
    /// The image as containerd names it.
    pub image_ref: String,
    /// The manifest for this platform; it is in containerd's content store.
    pub manifest_digest: Digest,
    /// The compressed blob.
    pub layer_digest: Digest,
    /// The chain ID that the layer will have (label `containerd.io/snapshot.ref`).
    pub chain_id: Digest,
    /// Diff IDs of the layers below, base first; all of them are remote.
    pub parent_chain: Vec<Digest>,
}

/// What a [`Claim`] turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    /// The layer.
    pub diff_id: Digest,
    /// Is it the last layer of its image? The pull of the image waits for this one.
    pub top: bool,
}

/// Why an image is left to containerd. A whole sentence, for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// Names the image and the cause.
    pub reason: String,
}

/// Why a chain cannot be mounted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NotReady {
    /// What kind of trouble it is: decides the gRPC code.
    pub class: Class,
    /// A sentence that names image, layer and cause: kubelet shows it to people.
    pub message: Arc<str>,
}

impl NotReady {
    /// From anything that can be printed.
    pub fn new(class: Class, message: impl fmt::Display) -> Self {
        Self { class, message: message.to_string().into() }
    }
}

/// A chain of remote layers and the image it was claimed for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RemoteChain {
    /// containerd's namespace when it was claimed.
    pub namespace: String,
    /// The image as containerd named it.
    pub image_ref: String,
    /// The image's manifest.
    pub image: Digest,
    /// The layers, base first; never empty.
    pub diff_ids: Vec<Digest>,
    /// Is this the image's whole chain?
    pub top: bool,
}

/// The pull that waits for a chain: what containerd holds for it may name other sources of the layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// containerd's namespace.
    pub namespace: String,
    /// Its lease, when containerd tells.
    pub lease: Option<String>,
}

/// How far a chain is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// [`Layers::lowers`] will answer within milliseconds.
    Ready,
    /// On its way.
    Coming,
    /// Neither here nor on its way.
    Failed(NotReady),
}

/// Layers of images, pulled and shown by someone else.
#[tonic::async_trait]
pub trait Layers: fmt::Debug + Send + Sync + 'static {
    /// Takes a layer of an image, or refuses the whole image. The first call for an image may take up to a second;
    /// later ones take milliseconds: containerd's Prepare waits for it. Starts the pull of the image.
    ///
    /// # Errors
    /// Why the image is left to containerd.
    async fn claim(&self, claim: Claim) -> Result<Claimed, Refused>;

    /// A claim was given up, undecided, and its future dropped: the image is left to containerd. Must return at once.
    fn late(&self, claim: &Claim, refused: &Refused);

    /// A layer was left to containerd without a claim, because the one below it, with chain ID `below`, is not remote.
    /// Must return at once.
    fn left(&self, claim: &Claim, below: Option<Digest>);

    /// Ends when all layers of the chain are whole, proved and mountable, whatever becomes of those above it. Starts the pull of the image, with backoff
    /// after a failure, when it is neither here nor on its way. Dropping the future leaves the pull going for others. The
    /// caller's pull may be of another image with the same layers: its blobs serve as well.
    ///
    /// # Errors
    /// Why the pull failed.
    async fn ready(&self, chain: RemoteChain, caller: Caller) -> Result<(), NotReady>;

    /// containerd's leases whose pulls are of an image with exactly the layers of the chain. Takes milliseconds, at most a
    /// few seconds.
    async fn leases(&self, namespace: &str, chain: &RemoteChain) -> Vec<String>;

    /// Is the chain mountable now? Never waits. Starts the pull again when it failed.
    fn state(&self, chain: &RemoteChain) -> State;

    /// Mount points of a chain given base first; the result is top first, as overlayfs wants it. Mounts what is not
    /// mounted yet. Blocks for milliseconds: called from threads that may block.
    ///
    /// # Errors
    /// When a layer is not whole or cannot be mounted.
    fn lowers(&self, diff_ids: &[Digest]) -> Result<Vec<PathBuf>, NotReady>;

    /// Are reads of one of these directories, as [`Layers::lowers`] gave them, answered by this process? Then who stands on it loses it with
    /// the process. Must return at once. None is unless implemented.
    fn serves(&self, _lowers: &[PathBuf]) -> bool {
        false
    }

    /// Shows what lies below the snapshot `id`, a container's in a user namespace, with the owners of that: mount points of layers and other
    /// directories, top first, as the result is. What is shown already stays. Blocks for milliseconds.
    ///
    /// # Errors
    /// When the kernel cannot.
    fn mapped(&self, id: u64, lowers: &[PathBuf], maps: &IdMaps) -> Result<Vec<PathBuf>, NotReady>;

    /// A snapshot is gone or final: what [`Layers::mapped`] showed for it, if anything, is taken away. Blocks for milliseconds.
    fn unmapped(&self, id: u64);

    /// A snapshot `key` was made on the chain, and is about to be read: by a container that starts right on it, if `starts`; else
    /// it is only looked at, or copied. Must return at once. Does nothing unless implemented.
    fn used(&self, _chain: &RemoteChain, _key: &str, _starts: bool) {}

    /// What the layer takes, once it is whole; [`None`] until then. Must return at once.
    fn usage(&self, diff_id: &Digest) -> Option<Usage>;

    /// Snapshots of remote layers came or went: [`Snapshots::in_use`](crate::Snapshots::in_use) and
    /// [`Snapshots::remote_chains`](crate::Snapshots::remote_chains) say something new. Must return at once.
    fn changed(&self);

    /// Ends when the data of layers that no snapshot stands for any more is deleted, as far as it is not kept. Does nothing unless implemented.
    async fn given_back(&self) {}
}
