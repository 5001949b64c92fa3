//! Trees from tables of contents: of a layer alone, or on top of those below it.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    path::Path,
    rc::Rc,
};

use silk_layer::{
    toc::Toc,
    tree::{Below, Built, Dependence, NodeKind, Source, Tree},
};
use silk_model::Digest;

use crate::{Variant, ViewError};

/// Bytes of memory that the trees of a chain may take together while one is built on the others. A file takes some 200 with its name, so
/// these are five million: more than one layer may have, and 40 times all of `/usr` of a developer's machine. What [`Tree::build`] lets a
/// single layer take comes on top, for the last one.
const MAX_TREES: u64 = 1 << 30;

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
///
/// # Errors
/// When a layer has no tree, or their trees take more than [`MAX_TREES`] bytes of memory.
pub(crate) fn build_on(
    chain: &[Digest],
    toc: &dyn Fn(&Digest) -> Result<Toc, ViewError>,
) -> Result<Option<Tree>, ViewError> {
    build_within(chain, toc, MAX_TREES)
}

/// The same, within other bounds.
fn build_within(
    chain: &[Digest],
    toc: &dyn Fn(&Digest) -> Result<Toc, ViewError>,
    limit: u64,
) -> Result<Option<Tree>, ViewError> {
    let mut trees: Vec<Rc<Tree>> = Vec::with_capacity(chain.len());
    // A chain may hold a layer often. One that asks for what is below it has another tree in each place: its directories may take after
    // what came in between, and its links lead so many layers down.
    let mut shared: HashMap<&Digest, Rc<Tree>> = HashMap::new();
    let mut memory = 0;
    for (at, layer) in chain.iter().enumerate() {
        if let Some(tree) = shared.get(layer) {
            trees.push(Rc::clone(tree));
            continue;
        }
        if memory > limit {
            return Err(ViewError::Chain { layer: *layer, limit });
        }
        let nearest_first: Vec<_> = trees.iter().rev().map(Rc::as_ref).collect();
        let below = if trees.is_empty() { Below::Base } else { Below::Above(&nearest_first) };
        let Built { tree, dependence, .. } = build(layer, &toc(layer)?, below)?;
        memory += tree.memory();
        let tree = Rc::new(tree);
        let is_base_only = at == 0 && dependence.base_differs;
        if !dependence.consults_below && !is_base_only {
            shared.insert(layer, Rc::clone(&tree));
        }
        trees.push(tree);
    }
    drop(shared);
    Ok(trees.pop().map(Rc::unwrap_or_clone))
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

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, cell::RefCell};

    use silk_layer::{
        toc::{Entry, Extent, Kind, Time},
        tree::{Node, ROOT},
    };
    use silk_model::Class;

    use super::*;

    /// Layers by their names, and the names of those whose tables were read.
    struct Layers {
        known: HashMap<Digest, (&'static str, Toc)>,
        read: RefCell<Vec<&'static str>>,
    }

    impl Layers {
        /// Paths with a slash at their end are directories of that mode, `a = b` are hard links, others files.
        fn new(layers: &[(&'static str, &[&str], u32)]) -> Self {
            let known = layers.iter().map(|(name, lines, mode)| {
                let entries: Vec<_> = lines.iter().map(|line| entry(line, *mode)).collect();
                (id(name), (*name, Toc::new(1 << 20, &entries)))
            });
            Self { known: known.collect(), read: RefCell::default() }
        }

        fn build(&self, chain: &[&str], limit: u64) -> Result<Tree, ViewError> {
            let chain: Vec<_> = chain.iter().map(|name| id(name)).collect();
            let toc = |layer: &Digest| {
                let (name, toc) = &self.known[layer];
                self.read.borrow_mut().push(name);
                Ok(toc.clone())
            };
            build_within(&chain, &toc, limit).map(Option::unwrap)
        }
    }

    fn id(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn entry(line: &str, mode: u32) -> Entry<'static> {
        let bytes = |text: &str| Cow::Owned(text.as_bytes().to_vec());
        let (path, kind) = match line.split_once(" = ") {
            Some((path, target)) => (path, Kind::Hardlink(bytes(target))),
            None if line.ends_with('/') => (line, Kind::Dir),
            None => (line, Kind::File { size: 3, extents: [Extent { logical: 0, offset: 512, len: 3 }].into() }),
        };
        let mtime = Time { secs: 9, nanos: 0 };
        Entry { path: bytes(path), kind, mode, uid: 1, gid: 1, mtime, xattrs: Vec::new() }
    }

    fn child<'t>(tree: &'t Tree, name: &str) -> &'t Node {
        let NodeKind::Dir(names) = &tree.node(ROOT).kind else { panic!("the root is a directory") };
        tree.node(names[name.as_bytes()])
    }

    #[test]
    fn a_layer_that_a_chain_repeats_is_read_and_built_once() {
        let layers = Layers::new(&[
            ("base", &["etc/", "a"], 0o700),
            ("same", &["b", ".wh.c"], 0o600),
            ("top", &["etc/x"], 0o644),
        ]);
        let repeated = layers.build(&["base", "same", "same", "base", "same", "top"], MAX_TREES).unwrap();
        assert_eq!(*layers.read.borrow(), ["base", "same", "top"]);
        assert_eq!(repeated, layers.build(&["base", "top"], MAX_TREES).unwrap());
        assert_eq!(child(&repeated, "etc").mode, 0o700);
        // As a base it is another: what it takes away, it takes away from itself.
        layers.read.borrow_mut().clear();
        layers.build(&["same", "same", "same", "top"], MAX_TREES).unwrap();
        assert_eq!(*layers.read.borrow(), ["same", "same", "top"]);
    }

    #[test]
    fn a_layer_that_asks_for_what_is_below_is_built_for_each_place() {
        let layers = Layers::new(&[
            ("base", &["etc/", "a"], 0o700),
            ("implies", &["etc/x"], 0o644),
            ("between", &["etc/"], 0o711),
            ("links", &["b = a"], 0o644),
        ]);
        let tree = layers.build(&["base", "implies", "between", "implies"], MAX_TREES).unwrap();
        assert_eq!(child(&tree, "etc").mode, 0o711);
        assert_eq!(*layers.read.borrow(), ["base", "implies", "between", "implies"]);
        let tree = layers.build(&["base", "links", "links"], MAX_TREES).unwrap();
        assert_eq!(sources(&tree), [Source::Below(2)].into());
    }

    #[test]
    fn trees_of_a_chain_that_are_too_large_together_are_refused() {
        let names: Vec<_> = (0..1000).map(|n| format!("d/{n}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let layers = Layers::new(&[("base", &["a"], 0o644), ("implies", &names, 0o644), ("top", &["d/x"], 0o644)]);
        let one = layers.build(&["base", "implies"], MAX_TREES).unwrap().memory();
        let chain = ["base", "implies", "implies", "implies", "top"];
        assert!(layers.build(&chain, 4 * one).is_ok());
        let error = layers.build(&chain, 2 * one).unwrap_err();
        assert_eq!((error.class(), error.layer()), (Class::Unsupported, Some(id("implies"))));
        // What is shared counts once.
        let layers = Layers::new(&[("base", &["d/", "d/a"], 0o755), ("top", &["d/x"], 0o644)]);
        let one = layers.build(&["base"], MAX_TREES).unwrap().memory();
        let chain = [["base"; 100].to_vec(), vec!["top"]].concat();
        assert!(layers.build(&chain, one).is_ok());
    }
}
