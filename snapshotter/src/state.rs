//! All snapshots in memory, with what is asked of them often: children, layers, lookups. No I/O.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use silk_model::Digest;

use crate::{Kind, RemoteChain, Snapshot, SnapshotError, labels};

/// The snapshots of a root.
#[derive(Debug, Default)]
pub(crate) struct Table {
    by_name: BTreeMap<String, Arc<Snapshot>>,
    children: HashMap<String, usize>,
    /// Remote snapshots by chain ID and parent: there is one of each.
    remote: HashMap<(Digest, String), Arc<Snapshot>>,
    layers: HashMap<Digest, u32>,
}

/// What lies below a snapshot, as an overlay needs it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Stack {
    /// IDs of ordinary snapshots, top first.
    pub(crate) ordinary: Vec<u64>,
    /// Those of them that were not made for a layer of an image.
    pub(crate) loose: HashSet<u64>,
    /// How many of them stand on the topmost copy of an image with other owners; [`None`] if there is no such copy.
    pub(crate) on_copy: Option<usize>,
    /// The remote snapshots below all of those: the topmost one's name, and their layers.
    pub(crate) remote: Option<(String, RemoteChain)>,
}

impl Table {
    pub(crate) fn get(&self, name: &str) -> Result<&Arc<Snapshot>, SnapshotError> {
        self.by_name.get(name).ok_or_else(|| SnapshotError::NotFound(name.to_owned()))
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub(crate) fn has_children(&self, name: &str) -> bool {
        self.children.contains_key(name)
    }

    /// Remote ones first: containerd takes the first snapshot of a chain ID that it is shown.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Snapshot>> {
        let remote = |wanted: bool| self.by_name.values().filter(move |s| s.remote.is_some() == wanted);
        remote(true).chain(remote(false))
    }

    /// The remote snapshot of a chain ID on a parent.
    pub(crate) fn remote(&self, chain_id: &Digest, parent: &str) -> Option<&Arc<Snapshot>> {
        self.remote.get(&(*chain_id, parent.to_owned()))
    }

    pub(crate) fn insert(&mut self, snapshot: Snapshot) {
        let snapshot = Arc::new(snapshot);
        if !snapshot.parent.is_empty() {
            *self.children.entry(snapshot.parent.clone()).or_default() += 1;
        }
        if let Some(remote) = &snapshot.remote {
            *self.layers.entry(remote.diff_id).or_default() += 1;
            self.remote.insert((remote.chain_id, snapshot.parent.clone()), Arc::clone(&snapshot));
        }
        self.by_name.insert(snapshot.name.clone(), snapshot);
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<Arc<Snapshot>> {
        let snapshot = self.by_name.remove(name)?;
        if let Some(count) = self.children.get_mut(&snapshot.parent) {
            *count -= 1;
            if *count == 0 {
                self.children.remove(&snapshot.parent);
            }
        }
        if let Some(remote) = &snapshot.remote {
            self.remote.remove(&(remote.chain_id, snapshot.parent.clone()));
            if let Some(count) = self.layers.get_mut(&remote.diff_id) {
                *count -= 1;
                if *count == 0 {
                    self.layers.remove(&remote.diff_id);
                }
            }
        }
        Some(snapshot)
    }

    /// How many snapshots stand for each layer.
    pub(crate) fn layers(&self) -> &HashMap<Digest, u32> {
        &self.layers
    }

    /// A parent that a new snapshot may have; [`None`] for none.
    pub(crate) fn parent(&self, name: &str) -> Result<Option<&Arc<Snapshot>>, SnapshotError> {
        if name.is_empty() {
            return Ok(None);
        }
        let parent = self.by_name.get(name).ok_or_else(|| SnapshotError::NoParent(name.to_owned()))?;
        match parent.kind {
            Kind::Committed => Ok(Some(parent)),
            Kind::Active | Kind::View => Err(SnapshotError::ParentNotCommitted(name.to_owned())),
        }
    }

    /// The chain from `name` down. One is missing where its record was damaged: what stands on it would show too little.
    fn down<'a>(&'a self, mut name: &'a str) -> Result<Vec<&'a Arc<Snapshot>>, SnapshotError> {
        let mut chain = Vec::new();
        while !name.is_empty() {
            let snapshot = self.by_name.get(name).ok_or_else(|| SnapshotError::NoParent(name.to_owned()))?;
            name = &snapshot.parent;
            chain.push(snapshot);
        }
        Ok(chain)
    }

    /// What lies below a child of `parent`.
    pub(crate) fn stack(&self, parent: &str) -> Result<Stack, SnapshotError> {
        let down = self.down(parent)?;
        let ordinary = || down.iter().take_while(|s| s.remote.is_none());
        let remote = down.iter().find(|s| s.remote.is_some());
        Ok(Stack {
            ordinary: ordinary().map(|s| s.id).collect(),
            loose: ordinary().filter(|s| !s.labels.contains_key(labels::REF)).map(|s| s.id).collect(),
            on_copy: ordinary().position(|s| s.labels.contains_key(labels::COPIED)),
            remote: remote.and_then(|s| Some((s.name.clone(), self.chain(s)?))),
        })
    }

    /// The chain of a remote snapshot; [`None`] if one of it is missing.
    pub(crate) fn chain(&self, top: &Snapshot) -> Option<RemoteChain> {
        let remote = top.remote.as_ref()?;
        let down = self.down(&top.name).ok()?;
        let mut diff_ids: Vec<_> = down.iter().map_while(|s| s.remote.as_ref()).map(|r| r.diff_id).collect();
        diff_ids.reverse();
        Some(RemoteChain {
            namespace: remote.namespace.clone(),
            image_ref: remote.image_ref.clone(),
            image: remote.image,
            diff_ids,
            top: remote.top,
        })
    }

    /// The chains that must be mountable: of images' last layers, and of layers that carry an ordinary snapshot or nothing.
    pub(crate) fn remote_chains(&self) -> Vec<RemoteChain> {
        let ordinary: HashSet<_> =
            self.by_name.values().filter(|s| s.remote.is_none()).map(|s| s.parent.as_str()).collect();
        let tip = |s: &&Arc<Snapshot>| {
            let top = s.remote.as_ref().is_some_and(|r| r.top);
            top || ordinary.contains(s.name.as_str()) || !self.has_children(&s.name)
        };
        self.remote.values().filter(tip).filter_map(|s| self.chain(s)).collect()
    }
}
