//! Layers learned ahead of time: streamed from a registry for their names and index alone, without a store.

use silk_layer::{
    index::{self, Index, IndexError},
    toc::{self, Toc, TocError},
};
use silk_model::Digest;
use silk_registry::Blob;
use silk_share::LayerKnowledge;
use silk_store::StoreError;

use crate::{
    Config, LayerError, LayerSpec,
    budget::{Budget, Counts},
    road::Sink,
    sources::Sources,
};

/// Learns layers, as many at once and within as much memory as a node pulls them.
#[derive(Debug)]
pub struct Learner(Budget);

impl Learner {
    /// Nothing is under way yet.
    pub fn new(config: Config) -> Self {
        Self(Budget::new(config))
    }

    /// Streams the layer's `blob` once its turn comes, and proves both digests. Must be called on a tokio runtime; a layer
    /// that is under way goes on when this is dropped.
    ///
    /// # Errors
    /// What keeps a pull from having the layer too, but for the disk.
    pub async fn learn(&self, layer: &LayerSpec, blob: &Blob, counts: Counts) -> Result<LayerKnowledge, LayerError> {
        let place = self.0.place().await?;
        let diff_id = layer.diff_id;
        let known = self.0.stream(place, layer, Sources::new(blob.clone()), counts, move || Ok(Known(diff_id))).await?;
        let Encoded { toc, index } = known;
        Ok(LayerKnowledge { blob: layer.blob, diff_id, toc: toc.into(), index: index.into() })
    }
}

/// Whether a node could use what somebody else says of a layer: both parts are intact and lead to it, or a newer silk has said it,
/// for newer nodes.
pub fn is_of(known: &LayerKnowledge, layer: &LayerSpec) -> bool {
    let LayerKnowledge { blob, diff_id, toc, index } = known;
    let (toc, index) = match (toc::decode(toc), index::decode(index)) {
        (Ok(toc), Ok(index)) => (toc, index),
        (Err(TocError::Version(version)), _) => return version > toc::VERSION,
        (_, Err(IndexError::Version(version))) => return version > index::VERSION,
        (Err(_), _) | (_, Err(_)) => return false,
    };
    (*blob, *diff_id, index.diff_id()) == (layer.blob, layer.diff_id, layer.diff_id)
        && (index.size, index.blob_size) == (toc.size(), layer.size)
}

/// Keeps no bytes of the layer with this diff ID.
struct Known(Digest);

struct Encoded {
    toc: Vec<u8>,
    index: Vec<u8>,
}

impl Sink for Known {
    type Kept = Encoded;

    fn append(&mut self, _: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }

    fn finish(self, toc: &Toc, index: &Index) -> Result<Encoded, StoreError> {
        let (expected, found) = (self.0, index.diff_id());
        if found != expected {
            return Err(StoreError::WrongDiffId { expected, found });
        }
        Ok(Encoded { toc: toc::encode(toc), index: index::encode(index) })
    }
}
