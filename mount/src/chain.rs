//! Trees from tables of contents: of a layer alone, or on top of those below it.

use std::{collections::BTreeSet, fs, io, path::Path};

use silk_layer::{
    toc::Toc,
    tree::{Below, Built, Dependence, NodeKind, Source, Tree},
};
use silk_model::Digest;

use crate::{Variant, ViewError};

/// A layer's place in an image: `None` is the first, else the chain ID of what is below.
pub(crate) type Place = Option<Digest>;

/// Which view of a layer its place asks for.
pub(crate) fn variant(dependence: Dependence, place: Place) -> Variant {
    match place {
        None if dependence.base_differs => Variant::Base,
        Some(parent) if dependence.consults_below => Variant::Chain(parent),
        // With nothing below, a tree that consults it is the one that finds nothing there.
        _ => Variant::Shared,
    }
}

/// What is found out about a layer that was never shown: on what its tree depends, and the tree for its place unless
/// that is one of [`Variant::Chain`].
pub(crate) fn learn(layer: &Digest, toc: &Toc, place: Place) -> Result<(Dependence, Option<Tree>), ViewError> {
    match build(layer, toc, if place.is_some() { Below::Above(&[]) } else { Below::Base }) {
        // A base with whiteouts (nobody makes them on purpose) is asked again: as a base it may need less than above.
        Ok(Built { dependence, .. }) if place.is_none() && dependence.base_differs => {
            let dependence = Tree::dependence(toc).map_err(|source| ViewError::Tree { layer: *layer, source })?;
            Ok((dependence, None))
        }
        Ok(Built { tree, dependence, .. }) => {
            let alone = !matches!(variant(dependence, place), Variant::Chain(_));
            Ok((dependence, alone.then_some(tree)))
        }
        // A hard link out of the layer leads nowhere without the layers below.
        Err(e) => match Tree::dependence(toc) {
            Ok(dependence) if matches!(variant(dependence, place), Variant::Chain(_)) => Ok((dependence, None)),
            _ => Err(e),
        },
    }
}

/// The tree of a layer for [`Variant::Shared`] or [`Variant::Base`].
pub(crate) fn build_alone(layer: &Digest, toc: &Toc, variant: Variant) -> Result<Tree, ViewError> {
    let below = if variant == Variant::Base { Below::Base } else { Below::Above(&[]) };
    Ok(build(layer, toc, below)?.tree)
}

/// The tree of the top layer of `chain` (base first) on those below it. All of their trees are in memory while it is
/// built; their tables of contents, which `toc` tells, one after the other.
pub(crate) fn build_on(
    chain: &[Digest],
    toc: &dyn Fn(&Digest) -> Result<Toc, ViewError>,
) -> Result<Option<Tree>, ViewError> {
    let mut trees: Vec<Tree> = Vec::with_capacity(chain.len());
    for layer in chain {
        let nearest_first: Vec<_> = trees.iter().rev().collect();
        let below = if trees.is_empty() { Below::Base } else { Below::Above(&nearest_first) };
        let tree = build(layer, &toc(layer)?, below)?.tree;
        trees.push(tree);
    }
    Ok(trees.pop())
}

fn build(layer: &Digest, toc: &Toc, below: Below<'_>) -> Result<Built, ViewError> {
    Tree::build(toc, below).map_err(|source| ViewError::Tree { layer: *layer, source })
}

/// The sources that a tree's files have bytes in, own first.
pub(crate) fn sources(tree: &Tree) -> BTreeSet<Source> {
    let files = tree.nodes.iter().filter_map(|node| match &node.kind {
        NodeKind::File { extents, .. } => Some(extents),
        _ => None,
    });
    files.flatten().map(|extent| extent.source).collect()
}

/// What the file `depends` may say, by (`base_differs`, `consults_below`).
const TEXTS: [(&str, (bool, bool)); 4] = [
    ("nothing\n", (false, false)),
    ("base\n", (true, false)),
    ("below\n", (false, true)),
    ("base below\n", (true, true)),
];

/// Reads a layer's dependence from beside it. `None` where it was never written, or a crash has torn it.
pub(crate) fn read_dependence(path: &Path) -> Option<Dependence> {
    let text = fs::read(path).ok()?;
    let (_, (base_differs, consults_below)) = TEXTS.iter().find(|(known, _)| known.as_bytes() == text)?;
    Some(Dependence { base_differs: *base_differs, consults_below: *consults_below })
}

/// Writes it there.
pub(crate) fn write_dependence(path: &Path, it: Dependence) -> io::Result<()> {
    let text = TEXTS.iter().find(|(_, flags)| *flags == (it.base_differs, it.consults_below));
    fs::write(path, text.map_or("", |(text, _)| text))
}
