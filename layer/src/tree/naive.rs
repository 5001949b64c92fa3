//! Opaque markers in a base layer.
//!
//! containerd unpacks a base layer into a plain directory. There an opaque marker removes from its directory what the
//! layer has not unpacked itself, by path: that is, the directories that are only implied, with all they hold. It walks
//! the whole directory for every marker; here the implied directories are listed where they are, so that each is
//! looked at once and a layer of nothing but markers costs nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Node, NodeId, NodeKind, ROOT, path::child};

/// What has to be known about a base layer that has opaque markers.
#[derive(Debug)]
pub(super) struct Naive {
    /// Paths as a trie; 0 is the root. A path outlives what it names.
    paths: Vec<PathEntry>,
    dirs: HashMap<NodeId, DirEntry>,
}

#[derive(Debug, Default)]
struct PathEntry {
    /// An entry of the archive has been unpacked here at some time.
    unpacked: bool,
    below: BTreeMap<Vec<u8>, usize>,
}

#[derive(Debug)]
struct DirEntry {
    path: usize,
    up: Option<(NodeId, Vec<u8>)>,
    /// Names of implied directories, or of directories that have such somewhere inside.
    implied: BTreeSet<Vec<u8>>,
}

impl Naive {
    pub(super) fn new() -> Self {
        let root = DirEntry { path: 0, up: None, implied: BTreeSet::new() };
        Self { paths: vec![PathEntry::default()], dirs: HashMap::from([(ROOT, root)]) }
    }

    /// A directory has been made.
    pub(super) fn made(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        let path = self.path(parent, name);
        self.dirs.insert(id, DirEntry { path, up: Some((parent, name.to_vec())), implied: BTreeSet::new() });
    }

    /// A directory has been made because something inside it is unpacked.
    pub(super) fn implied(&mut self, parent: NodeId, name: &[u8]) {
        let mut place = Some((parent, name.to_vec()));
        while let Some((dir, name)) = place {
            let Some(entry) = self.dirs.get_mut(&dir) else { return };
            // What is listed here is listed all the way up.
            place = if entry.implied.insert(name) { entry.up.clone() } else { None };
        }
    }

    /// An entry of the archive has been unpacked.
    pub(super) fn unpacked(&mut self, parent: NodeId, name: &[u8]) {
        let path = self.path(parent, name);
        self.paths[path].unpacked = true;
    }

    fn path(&mut self, parent: NodeId, name: &[u8]) -> usize {
        let parent = self.dirs.get(&parent).map_or(0, |dir| dir.path);
        if let Some(path) = self.paths[parent].below.get(name) {
            return *path;
        }
        self.paths.push(PathEntry::default());
        let path = self.paths.len() - 1;
        self.paths[parent].below.insert(name.to_vec(), path);
        path
    }

    /// What an opaque marker in `dir` removes: directories and the names to remove from them.
    pub(super) fn opaque(&mut self, nodes: &[Node], dir: NodeId) -> Vec<(NodeId, Vec<u8>)> {
        let mut removed = Vec::new();
        let mut stack = vec![dir];
        while let Some(dir) = stack.pop() {
            let Some(entry) = self.dirs.get_mut(&dir) else { continue };
            for name in std::mem::take(&mut entry.implied) {
                let Some(id) = child(nodes, dir, &name) else { continue };
                let path = self.path(dir, &name);
                if !self.paths[path].unpacked {
                    removed.push((dir, name));
                } else if matches!(nodes[id.0 as usize].kind, NodeKind::Dir(_)) {
                    stack.push(id);
                }
            }
        }
        removed
    }
}
