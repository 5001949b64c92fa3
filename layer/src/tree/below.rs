//! What the layers below say: attributes for directories that a layer only implies, and targets of its hard links.

use super::{
    Node, NodeId, NodeKind, ROOT, Tree,
    budget::Budget,
    error::TreeFault,
    path::{child, resolve},
};

/// A directory in the layer at this place below (0 is the direct parent).
type Place = (u32, NodeId);

/// For each directory on one path of the layer's own tree: where the layers below have a directory of that path,
/// nearest layer first.
///
/// containerd's `mkparent` looks every path up from the root in every parent. Entries of one directory follow one
/// another in archives, so the last path is kept: what is common with it is not looked up again.
#[derive(Debug, Default)]
pub(super) struct Chain(Vec<(NodeId, Vec<Place>)>);

impl Chain {
    /// The directory in the layers below whose attributes the last of `dirs` takes over. `names` are the names of `dirs`
    /// without the root's; `is_cut` says below which directories the layer has hidden everything.
    pub(super) fn nearest<'t>(
        &mut self,
        layers: &[&'t Tree],
        (dirs, names): (&[NodeId], &[Vec<u8>]),
        is_cut: impl Fn(NodeId) -> bool,
        budget: &mut Budget,
    ) -> Result<Option<&'t Node>, TreeFault> {
        let common = self.0.iter().zip(dirs).take_while(|((known, _), dir)| known == *dir).count();
        self.0.truncate(common);
        for depth in common..dirs.len() {
            let places = match depth.checked_sub(1) {
                _ if is_cut(dirs[depth]) => Vec::new(),
                None => (0..layers.len() as u32).map(|layer| (layer, ROOT)).collect(),
                Some(above) => descend(layers, &self.0[above].1, &names[..depth], budget)?,
            };
            self.0.push((dirs[depth], places));
        }
        let nearest = self.0.last().and_then(|(_, places)| places.first());
        Ok(nearest.map(|(layer, id)| layers[*layer as usize].node(*id)))
    }
}

/// The places of the directory `path`, given those of its parent. Layers that lack it are passed over, the first that
/// has something else there ends the search. Each layer's symbolic links are resolved in that layer alone.
fn descend(
    layers: &[&Tree],
    parents: &[Place],
    path: &[Vec<u8>],
    budget: &mut Budget,
) -> Result<Vec<Place>, TreeFault> {
    let Some(name) = path.last() else { return Ok(Vec::new()) };
    let mut places = Vec::new();
    for (layer, parent) in parents {
        budget.spend(1)?;
        let nodes = &layers[*layer as usize].nodes;
        let Some(id) = child(nodes, *parent, name) else { continue };
        match nodes[id.0 as usize].kind {
            NodeKind::Dir(_) => places.push((*layer, id)),
            NodeKind::Symlink(_) => match resolve(nodes, path.iter().map(Vec::as_slice), |_| false, budget) {
                Ok(walk) if walk.leaf.is_some() => break,
                Ok(walk) => places.extend(walk.end().map(|id| (*layer, id))),
                Err(TreeFault::TooMuchWork) => return Err(TreeFault::TooMuchWork),
                // containerd fails here; to us it is one more way of not being a directory.
                Err(_) => break,
            },
            _ => break,
        }
    }
    Ok(places)
}

/// The layers as one file system, as overlayfs merges them: the layer's own tree so far on top.
pub(super) struct Merged<'t> {
    pub own: &'t [Node],
    pub layers: &'t [&'t Tree],
}

/// What a name is in the merged view.
enum Found {
    /// The directories that make it up, top first.
    Dir(Vec<Place>),
    Leaf(Place),
}

impl<'t> Merged<'t> {
    /// The inode that `path` names: which layer has it (0 is the layer itself, 1 its direct parent), and its node there.
    /// A symbolic link at the end is not followed. `None` where there is nothing, or a directory.
    pub(super) fn find(&self, path: &'t [u8], budget: &mut Budget) -> Result<Option<Place>, TreeFault> {
        let root: Vec<Place> = (0..=self.layers.len() as u32).map(|layer| (layer, ROOT)).collect();
        let mut dirs = vec![root];
        let mut pending: Vec<&'t [u8]> = path.rsplit(|byte| *byte == b'/').collect();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            budget.spend(1)?;
            let Some(dir) = dirs.last() else { break };
            match name {
                b"" | b"." => continue,
                b".." if dirs.len() > 1 => {
                    dirs.pop();
                    continue;
                }
                b".." => continue,
                _ => {}
            }
            match self.look_up(dir, name, budget)? {
                None => return Ok(None),
                Some(Found::Dir(dir)) => dirs.push(dir),
                Some(Found::Leaf(place)) if pending.iter().all(|name| name.is_empty()) => return Ok(Some(place)),
                Some(Found::Leaf((layer, id))) => {
                    let NodeKind::Symlink(target) = &self.nodes(layer)[id.0 as usize].kind else { return Ok(None) };
                    links += 1;
                    if links > super::path::MAX_LINKS {
                        return Err(TreeFault::SymlinkLoop);
                    }
                    if target.first() == Some(&b'/') {
                        dirs.truncate(1);
                    }
                    budget.spend(target.len() / 8)?;
                    pending.extend(target.rsplit(|byte| *byte == b'/'));
                }
            }
        }
        Ok(None)
    }

    fn nodes(&self, layer: u32) -> &'t [Node] {
        match layer.checked_sub(1) {
            None => self.own,
            Some(below) => &self.layers[below as usize].nodes,
        }
    }

    fn look_up(&self, dir: &[Place], name: &[u8], budget: &mut Budget) -> Result<Option<Found>, TreeFault> {
        let mut places = Vec::new();
        for (layer, parent) in dir {
            budget.spend(1)?;
            let nodes = self.nodes(*layer);
            let Some(id) = child(nodes, *parent, name) else { continue };
            let node = &nodes[id.0 as usize];
            match node.kind {
                NodeKind::Dir(_) => {
                    places.push((*layer, id));
                    if node.is_opaque() {
                        break;
                    }
                }
                _ if places.is_empty() && !node.is_whiteout() => return Ok(Some(Found::Leaf((*layer, id)))),
                _ => break,
            }
        }
        Ok(if places.is_empty() { None } else { Some(Found::Dir(places)) })
    }
}
