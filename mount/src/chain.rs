//! Trees from tables of contents: of a layer alone, or on top of those below it.

use std::collections::BTreeSet;

use silk_layer::{
    toc::Toc,
    tree::{NodeKind, Source, Tree},
};
use silk_model::Digest;

use crate::ViewError;

/// Whether the tree of these contents depends on the layers below.
pub(crate) fn depends(_toc: &Toc) -> bool {
    false
}

/// The tree of a layer on the trees of the layers below it, nearest first.
pub(crate) fn build(_layer: &Digest, _toc: &Toc, _below: &[&Tree]) -> Result<Tree, ViewError> {
    todo!()
}

/// The tree of the top layer of a chain, whose tables of contents `toc` tells.
pub(crate) fn build_on(_chain: &[Digest], _toc: &dyn Fn(&Digest) -> Result<Toc, ViewError>) -> Result<Tree, ViewError> {
    todo!()
}

/// The sources that a tree's files have bytes in, own first.
pub(crate) fn sources(tree: &Tree) -> BTreeSet<Source> {
    let files = tree.nodes.iter().filter_map(|node| match &node.kind {
        NodeKind::File { extents, .. } => Some(extents),
        _ => None,
    });
    files.flatten().map(|extent| extent.source).collect()
}
