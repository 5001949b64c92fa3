//! From a table of contents to the tree that containerd's unpacking would leave. Pure computation, called once a layer.
//!
//! The model is `archive.Apply` of containerd (`pkg/archive/tar.go`, the same in 1.6 to 2.2) as `diff/apply` calls it:
//! into the upper directory of an overlay with whiteouts converted, and for a base layer into a plain directory.
//!
//! - Entries are taken in order. A later one replaces an earlier one of its name; a directory on a directory only takes
//!   the new owner, mode and attributes. The root's entry is passed over, except that its time is kept.
//! - Parents are found with the symbolic links of this layer alone, scoped to its root. Missing ones are made: 0755,
//!   owned by root, or with mode, owner, time and attributes of that path in the nearest layer below that has it as a
//!   directory.
//! - A hard link shares its target's inode, and the link's header is applied to that inode.
//! - Above a base, a whiteout becomes a character device 0:0 and an opaque marker an attribute of its directory. In
//!   a base they remove what the layer has made so far.
//! - Times before 1970 and from 2262 on become 1970. Attributes: see `xattrs.rs`.
//!
//! Where containerd fails although the OCI specification gives the archive a meaning, the meaning is taken: a whiteout
//! of a name that the layer has made hides what is below (a directory becomes opaque); so does one under which the layer
//! then makes something; a hard link may lead into a layer below; a directory's time is of no interest once the
//! directory is gone. Stricter than containerd: a path that climbs above the root is an error and not cut off.
//!
//! Not imitated: directories that containerd makes for the name of a *global* PAX header (as if it were a file), files of
//! that name which it removes, and the clock: directories that are implied, and not known below, are of 1970, as are whiteouts.

use std::{collections::HashMap, mem};

use super::{
    Name, Node, NodeId, NodeKind, ROOT, Source, Tree, acl,
    below::{Chain, Merged},
    budget::{Budget, MAX_INODES},
    error::{TreeError, TreeFault, shown},
    naive::Naive,
    node::bounded,
    path::{check_name, child, clean, cut, resolve},
    xattrs,
};
use crate::toc::{Entry, Kind, Time, Toc};

/// Prefix of whiteouts, and the name of the marker that makes a directory opaque (OCI image specification, layer.md).
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";

/// What lies under a layer.
#[derive(Debug, Clone, Copy)]
pub enum Below<'a> {
    /// Nothing: the layer is the first of its image.
    Base,
    /// These layers, the direct parent first.
    Above(&'a [&'a Tree]),
}

/// A tree and what it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The tree.
    pub tree: Tree,
    /// For which other places the tree holds.
    pub dependence: Dependence,
    /// Something of the layers below went into this tree. Where not, it is the tree of every chain that has nothing to
    /// add either: the one built above no layers at all.
    pub used_below: bool,
}

/// Whether a layer's tree depends on the layer's place in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dependence {
    /// The tree is another one where the layer is the first of its image: it has whiteouts or opaque markers.
    pub base_differs: bool,
    /// The tree may be another one for each chain of parents: directories are implied, or hard links lead out of the
    /// layer. [`Built::used_below`] tells for a given chain.
    pub consults_below: bool,
}

impl Tree {
    /// The tree that `toc` leaves behind on top of what is `below`.
    pub fn build(toc: &Toc, below: Below<'_>) -> Result<Built, TreeError> {
        Builder::new(toc, below).run(toc)
    }

    /// Whether the tree of `toc` depends on the layer's place. Costs as much as one build.
    pub fn dependence(toc: &Toc) -> Result<Dependence, TreeError> {
        let mut builder = Builder { probing: true, ..Builder::new(toc, Below::Above(&[])) };
        match builder.run(toc) {
            Ok(built) => Ok(built.dependence),
            // What a hard link out of the layer leads to may be what makes the rest possible.
            Err(_) if builder.dependence.consults_below => {
                let base_differs = toc.entries().any(|entry| is_marker(&entry.path));
                Ok(Dependence { base_differs, consults_below: true })
            }
            Err(error) => Err(error),
        }
    }
}

/// What is known of a node beside the node.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    /// A directory that no entry was needed for.
    implied: bool,
    /// One that took over something from below.
    inherits: bool,
    /// A whiteout made from a whiteout entry.
    whiteout: bool,
    /// A directory made in place of such a whiteout, or implied inside of one: what is below has no say in it.
    cut: bool,
}

/// A directory's entry: its path, the directory that it led to, and the count of `removals` up to which it does.
struct DirEntry {
    path: Vec<u8>,
    id: NodeId,
    removals: u64,
    mtime: Time,
}

struct Builder<'a> {
    layers: &'a [&'a Tree],
    is_base: bool,
    /// Hard links out of the layer are taken for granted.
    probing: bool,
    nodes: Vec<Node>,
    marks: Vec<Mark>,
    budget: Budget,
    chain: Chain,
    /// The parent of the last entry: its path as the archive spells it, its node, and the count of `removals` up to
    /// which that holds. Entries of one directory follow one another in archives.
    last_parent: Option<(Vec<u8>, NodeId, u64)>,
    /// How many directories and symbolic links have been removed.
    removals: u64,
    /// Directory entries, whose times are set at the end.
    dirs: Vec<DirEntry>,
    /// Own copies of inodes from below that hard links lead to.
    copies: HashMap<(u32, NodeId), NodeId>,
    naive: Option<Naive>,
    dependence: Dependence,
    used_below: bool,
}

impl<'a> Builder<'a> {
    fn new(toc: &Toc, below: Below<'a>) -> Self {
        let (layers, is_base) = match below {
            Below::Base => (&[][..], true),
            Below::Above(layers) => (layers, false),
        };
        // Anywhere in the path: what follows the marker may cancel out by its text. A marker too many costs only work.
        let is_marker = |entry: Entry<'_>| entry.path.split(|byte| *byte == b'/').any(|name| name == OPAQUE_MARKER);
        let has_markers = || toc.entries().any(is_marker);
        // Hardly more are made.
        let inodes = toc.count().min(MAX_INODES.into()) as usize + 1;
        let (mut nodes, mut marks) = (Vec::with_capacity(inodes), Vec::with_capacity(inodes));
        nodes.push(Node::fresh_dir());
        marks.push(Mark::default());
        Self {
            layers,
            is_base,
            probing: false,
            nodes,
            marks,
            budget: Budget::new(toc.count()),
            chain: Chain::default(),
            last_parent: None,
            removals: 0,
            dirs: Vec::new(),
            copies: HashMap::new(),
            naive: (is_base && has_markers()).then(Naive::new),
            dependence: Dependence::default(),
            used_below: false,
        }
    }

    fn run(&mut self, toc: &Toc) -> Result<Built, TreeError> {
        for entry in toc.entries() {
            self.apply(&entry).map_err(|fault| TreeError { path: shown(&entry.path), fault })?;
        }
        for dir in mem::take(&mut self.dirs) {
            self.set_dir_time(&dir).map_err(|fault| TreeError { path: shown(&dir.path), fault })?;
        }
        Ok(self.compact())
    }

    fn apply(&mut self, entry: &Entry<'_>) -> Result<(), TreeFault> {
        let spelled = cut(&entry.path);
        let known = spelled.and_then(|(dir, name)| match &self.last_parent {
            Some((last, id, removals)) if last == dir && *removals == self.removals => Some((*id, name)),
            _ => None,
        });
        let (parent, name) = match known {
            Some(known) => known,
            None => {
                let mut parents = clean(&entry.path)?;
                let Some(name) = parents.pop() else {
                    if entry.kind == Kind::Dir {
                        self.nodes[0].mtime = bounded(entry.mtime);
                    }
                    return Ok(());
                };
                let parent = self.parent(parents)?;
                self.last_parent = spelled.map(|(dir, _)| (dir.to_vec(), parent, self.removals));
                (parent, name)
            }
        };
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            self.dependence.base_differs = true;
            return if name == OPAQUE_MARKER { self.opaque(parent) } else { self.whiteout(parent, hidden, entry) };
        }
        check_name(name)?;
        self.place(parent, name, entry)
    }

    /// The directory at `path`, made where it is missing.
    fn parent(&mut self, path: Vec<&[u8]>) -> Result<NodeId, TreeFault> {
        let is_gap = |id: NodeId| self.marks[id.0 as usize].whiteout;
        let walk = resolve(&self.nodes, path, is_gap, &mut self.budget)?.no_leaf()?;
        match walk.end() {
            Some(id) => Ok(id),
            None => {
                let names = walk.names.iter().map(|name| name.to_vec()).collect();
                let dirs = walk.dirs;
                self.imply(dirs, names)
            }
        }
    }

    /// Makes the directories for the names that lead on from `dirs`, as `mkparent`.
    fn imply(&mut self, mut dirs: Vec<NodeId>, names: Vec<Vec<u8>>) -> Result<NodeId, TreeFault> {
        let mut parent = ROOT;
        for depth in dirs.len() - 1..names.len() {
            let name = &names[depth];
            parent = dirs[depth];
            let covers = child(&self.nodes, parent, name).is_some();
            self.budget.imply()?;
            let id = self.add(parent, name, Node::fresh_dir())?;
            dirs.push(id);
            let cut = covers || self.marks[parent.0 as usize].cut;
            self.marks[id.0 as usize] = Mark { implied: !cut, cut, ..Mark::default() };
            if covers {
                // In place of a whiteout: what is below stays hidden.
                self.nodes[id.0 as usize].cover();
            }
            if let Some(naive) = &mut self.naive {
                naive.implied(parent, name);
            }
            self.take_over(&dirs, &names[..=depth])?;
            parent = id;
        }
        Ok(parent)
    }

    /// Gives a directory that is implied the attributes of the same one below.
    fn take_over(&mut self, dirs: &[NodeId], names: &[Vec<u8>]) -> Result<(), TreeFault> {
        let Some(id) = dirs.last().filter(|_| !self.layers.is_empty()) else { return Ok(()) };
        let is_cut = |id: NodeId| self.marks[id.0 as usize].cut;
        if let Some(from) = self.chain.nearest(self.layers, (dirs, names), is_cut, &mut self.budget)? {
            let node = &mut self.nodes[id.0 as usize];
            (node.uid, node.gid, node.mtime) = (from.uid, from.gid, from.mtime);
            acl::chmod(node, from.mode);
            xattrs::inherit(from, node, &mut self.budget)?;
            self.marks[id.0 as usize].inherits = true;
        }
        Ok(())
    }

    fn opaque(&mut self, dir: NodeId) -> Result<(), TreeFault> {
        if !self.is_base {
            self.nodes[dir.0 as usize].cover();
        } else if let Some(naive) = &mut self.naive {
            for (dir, name) in naive.opaque(&self.nodes, dir) {
                self.remove(dir, &name);
            }
        }
        Ok(())
    }

    fn whiteout(&mut self, parent: NodeId, name: &[u8], entry: &Entry<'_>) -> Result<(), TreeFault> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(TreeFault::WhiteoutName);
        }
        check_name(name)?;
        let existing = child(&self.nodes, parent, name);
        if self.is_base {
            self.remove(parent, name);
        } else if let Some(id) = existing {
            let node = &mut self.nodes[id.0 as usize];
            if matches!(node.kind, NodeKind::Dir(_)) {
                node.cover();
            }
        } else {
            let id = self.add(parent, name, Node::fresh(NodeKind::Char(0, 0)))?;
            self.nodes[id.0 as usize].chown(entry);
            self.marks[id.0 as usize].whiteout = true;
        }
        Ok(())
    }

    /// Unpacks an entry that is no marker.
    fn place(&mut self, parent: NodeId, name: &[u8], entry: &Entry<'_>) -> Result<(), TreeFault> {
        let existing = child(&self.nodes, parent, name);
        let id = match existing.filter(|id| entry.kind == Kind::Dir && self.is_dir(*id)) {
            Some(id) => id,
            None => {
                if existing.is_some() {
                    self.remove(parent, name);
                }
                match &entry.kind {
                    Kind::Hardlink(target) => {
                        let id = self.target(target)?;
                        self.name(parent, name, id);
                        id
                    }
                    kind => self.add(parent, name, Node::of(kind)?)?,
                }
            }
        };
        self.nodes[id.0 as usize].stamp(entry)?;
        if entry.kind == Kind::Dir {
            let (path, removals, mtime) = (entry.path.to_vec(), self.removals, bounded(entry.mtime));
            self.dirs.push(DirEntry { path, id, removals, mtime });
        }
        if let Some(naive) = &mut self.naive {
            naive.unpacked(parent, name);
        }
        Ok(())
    }

    /// The inode that a hard link leads to: the layer's own, or a copy of one from below.
    fn target(&mut self, target: &[u8]) -> Result<NodeId, TreeFault> {
        clean(target).map_err(|fault| match fault {
            TreeFault::ClimbsAboveRoot => TreeFault::LinkClimbsAboveRoot(shown(target)),
            other => other,
        })?;
        let id = match self.own_target(target)? {
            Some(id) => id,
            None => self.target_below(target)?,
        };
        if self.is_dir(id) { Err(TreeFault::LinkToDirectory(shown(target))) } else { Ok(id) }
    }

    fn own_target(&mut self, target: &[u8]) -> Result<Option<NodeId>, TreeFault> {
        let (parents, name) = match target.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&target[..slash], &target[slash + 1..]),
            None => (&b""[..], target),
        };
        let is_gap = |id: NodeId| self.marks[id.0 as usize].whiteout;
        let walk = resolve(&self.nodes, parents.split(|byte| *byte == b'/'), is_gap, &mut self.budget)?;
        match name {
            b"" | b"." => return Ok(walk.end()),
            b".." => return Err(TreeFault::LinkToDirectory(shown(target))),
            _ => {}
        }
        Ok(walk.no_leaf()?.end().and_then(|dir| child(&self.nodes, dir, name)))
    }

    fn target_below(&mut self, target: &[u8]) -> Result<NodeId, TreeFault> {
        self.dependence.consults_below = true;
        if self.probing {
            return self.insert(Node::fresh(NodeKind::Fifo));
        }
        let merged = Merged { own: &self.nodes, layers: self.layers };
        let missing = || TreeFault::NoLinkTarget(shown(target));
        let place = merged.find(target, &mut self.budget)?.ok_or_else(missing)?;
        self.used_below = true;
        let Some(below) = place.0.checked_sub(1) else { return Ok(place.1) };
        if let Some(copy) = self.copies.get(&place) {
            return Ok(*copy);
        }
        let found = self.layers[below as usize].node(place.1);
        found.xattrs.iter().try_for_each(|(name, value)| self.budget.copy(name, value))?;
        let mut node = found.clone();
        if let NodeKind::File { extents, .. } = &mut node.kind {
            for extent in extents {
                extent.source = Source::Below(match extent.source {
                    Source::Own => place.0,
                    Source::Below(further) => place.0 + further,
                });
            }
        }
        let id = self.insert(node)?;
        self.copies.insert(place, id);
        Ok(id)
    }

    /// Sets a directory entry's time on whatever its path leads to in the end.
    fn set_dir_time(&mut self, dir: &DirEntry) -> Result<(), TreeFault> {
        if dir.removals == self.removals {
            self.nodes[dir.id.0 as usize].mtime = dir.mtime;
            return Ok(());
        }
        match resolve(&self.nodes, clean(&dir.path)?, |_| false, &mut self.budget) {
            Ok(walk) => {
                if let Some(id) = walk.end() {
                    self.nodes[id.0 as usize].mtime = dir.mtime;
                }
                Ok(())
            }
            Err(TreeFault::TooMuchWork) => Err(TreeFault::TooMuchWork),
            // Gone, and something else in its place.
            Err(_) => Ok(()),
        }
    }

    fn is_dir(&self, id: NodeId) -> bool {
        matches!(self.nodes[id.0 as usize].kind, NodeKind::Dir(_))
    }

    fn insert(&mut self, node: Node) -> Result<NodeId, TreeFault> {
        let id = self.nodes.len() as u32;
        if id >= MAX_INODES {
            return Err(TreeFault::TooManyInodes(MAX_INODES));
        }
        self.nodes.push(node);
        self.marks.push(Mark::default());
        Ok(NodeId(id))
    }

    /// Makes a new inode under a name. A directory with the setgid bit passes its group on, as in every Linux file system,
    /// and one with a default access list passes that on.
    fn add(&mut self, parent: NodeId, name: &[u8], mut node: Node) -> Result<NodeId, TreeFault> {
        /// `S_ISGID`.
        const SETGID: u32 = 0o2000;
        let above = &self.nodes[parent.0 as usize];
        if above.mode & SETGID != 0 {
            node.gid = above.gid;
        }
        acl::pass_on(above, &mut node, &mut self.budget)?;
        let is_dir = matches!(node.kind, NodeKind::Dir(_));
        let id = self.insert(node)?;
        self.name(parent, name, id);
        if let Some(naive) = self.naive.as_mut().filter(|_| is_dir) {
            naive.made(parent, name, id);
        }
        Ok(id)
    }

    fn name(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        if let NodeKind::Dir(children) = &mut self.nodes[parent.0 as usize].kind {
            children.insert(Name::from_slice(name), id);
        }
    }

    /// Takes a name away. What only it led to stays behind as garbage until [`Builder::compact`].
    fn remove(&mut self, parent: NodeId, name: &[u8]) {
        let NodeKind::Dir(children) = &mut self.nodes[parent.0 as usize].kind else { return };
        if let Some(id) = children.remove(name)
            && matches!(self.nodes[id.0 as usize].kind, NodeKind::Dir(_) | NodeKind::Symlink(_))
        {
            self.removals += 1;
        }
    }

    /// Keeps what names lead to, numbered parents first and by name.
    fn compact(&mut self) -> Built {
        const UNSEEN: u32 = u32::MAX;
        let mut numbers = vec![UNSEEN; self.nodes.len()];
        let mut next = 0;
        let mut stack = vec![ROOT];
        while let Some(id) = stack.pop() {
            let number = &mut numbers[id.0 as usize];
            if *number != UNSEEN {
                continue;
            }
            *number = next;
            next += 1;
            let mark = self.marks[id.0 as usize];
            self.dependence.consults_below |= mark.implied;
            self.used_below |= mark.inherits;
            if let NodeKind::Dir(children) = &self.nodes[id.0 as usize].kind {
                stack.extend(children.values().rev());
            }
        }
        // Garbage goes behind.
        for (number, garbage) in numbers.iter_mut().filter(|number| **number == UNSEEN).zip(next..) {
            *number = garbage;
        }
        renumber(&mut self.nodes, numbers);
        self.nodes.truncate(next as usize);
        if self.nodes.capacity() / 2 > self.nodes.len() {
            // A tree may stay while those above it are built.
            self.nodes.shrink_to_fit();
        }
        let tree = Tree { nodes: mem::take(&mut self.nodes) };
        Built { tree, dependence: self.dependence, used_below: self.used_below }
    }
}

/// Puts each node at its number. In place: a second list would be the most memory that a build takes.
fn renumber(nodes: &mut [Node], mut numbers: Vec<u32>) {
    for node in &mut *nodes {
        if let NodeKind::Dir(children) = &mut node.kind {
            children.values_mut().for_each(|id| id.0 = numbers[id.0 as usize]);
        }
    }
    for at in 0..nodes.len() {
        while numbers[at] as usize != at {
            let to = numbers[at] as usize;
            nodes.swap(at, to);
            numbers.swap(at, to);
        }
    }
}

/// Whether a path is that of a whiteout or an opaque marker.
fn is_marker(path: &[u8]) -> bool {
    clean(path).is_ok_and(|names| names.last().is_some_and(|name| name.starts_with(WHITEOUT)))
}
