//! Paths: cleaned by their text, then resolved in one layer's tree, symbolic links scoped to its root.
//!
//! As containerd's `filepath.Clean` and continuity's `fs.RootPath`, with two differences: a path that climbs above the
//! root is an error, and a relative link inside of a directory that is reached through a chain of several links starts
//! where the chain ends (to `RootPath` it starts at the target of the first).

use std::slice::Split;

use super::{Node, NodeId, NodeKind, ROOT, budget::Budget, error::TreeFault};
use crate::tree::error::shown;

/// Symbolic links in one resolution, as `fs.RootPath` has it.
pub(super) const MAX_LINKS: u32 = 255;

/// `PATH_MAX` / 2: nobody can name a deeper place in one call.
pub(super) const MAX_DEPTH: usize = 2048;

/// Linux' `NAME_MAX`.
const MAX_NAME: usize = 255;

/// The components of a path by its text: without empty ones, `.` and what `..` cancels.
pub(super) fn clean(path: &[u8]) -> Result<Vec<&[u8]>, TreeFault> {
    if path.contains(&0) {
        return Err(TreeFault::Nul);
    }
    let mut names: Vec<&[u8]> = Vec::new();
    for name in split(path) {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop().ok_or(TreeFault::ClimbsAboveRoot)?;
            }
            _ => names.push(name),
        }
    }
    Ok(names)
}

/// A path as it is spelled, cut before its last name; `None` unless that name is one that [`clean`] keeps. Then the
/// directory's names are those of the first part.
pub(super) fn cut(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = path.iter().rposition(|byte| *byte != b'/')? + 1;
    let start = path[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (dir, name) = (&path[..start], &path[start..end]);
    (!matches!(name, b"." | b"..") && !path.contains(&0)).then_some((dir, name))
}

/// Refuses names that Linux does not have.
pub(super) fn check_name(name: &[u8]) -> Result<(), TreeFault> {
    if name.len() > MAX_NAME { Err(TreeFault::NameTooLong(name.len())) } else { Ok(()) }
}

fn split(path: &[u8]) -> Split<'_, u8, fn(&u8) -> bool> {
    path.split(|byte| *byte == b'/')
}

/// Where a path leads.
#[derive(Debug)]
pub(super) struct Walk<'t> {
    /// The directories that exist, root first.
    pub dirs: Vec<NodeId>,
    /// The names that lead there without symbolic links: those of `dirs` (but the root's), then those that are missing,
    /// or the leaf's.
    pub names: Vec<&'t [u8]>,
    /// What the path ends at where that is no directory.
    pub leaf: Option<NodeId>,
}

impl Walk<'_> {
    /// The node at the end of the path; `None` where something is missing.
    pub(super) fn end(&self) -> Option<NodeId> {
        self.leaf.or_else(|| if self.names.len() < self.dirs.len() { self.dirs.last().copied() } else { None })
    }

    fn not_a_directory(&self) -> TreeFault {
        TreeFault::NotADirectory(shown(&self.names.join(&b'/')))
    }

    /// An error where the path ends at something that is no directory.
    pub(super) fn no_leaf(self) -> Result<Self, TreeFault> {
        if self.leaf.is_some() { Err(self.not_a_directory()) } else { Ok(self) }
    }

    /// Back to the root's start of an absolute link.
    fn restart(&mut self) {
        self.dirs.truncate(1);
        self.names.clear();
    }

    /// `..`, by its text: that of a file is the file's directory.
    fn up(&mut self) {
        self.leaf = None;
        self.names.pop();
        self.dirs.truncate(self.names.len() + 1);
    }
}

/// Resolves all of `path`, its last component too. `is_gap` says which nodes count as missing: whiteouts that the
/// layer itself made.
pub(super) fn resolve<'t>(
    nodes: &'t [Node],
    path: impl IntoIterator<Item = &'t [u8]>,
    is_gap: impl Fn(NodeId) -> bool,
    budget: &mut Budget,
) -> Result<Walk<'t>, TreeFault> {
    let mut walk = Walk { dirs: vec![ROOT], names: Vec::new(), leaf: None };
    // What is still to be gone through, first name last.
    let mut pending: Vec<&'t [u8]> = path.into_iter().collect();
    pending.reverse();
    let mut links = 0;
    while let Some(name) = pending.pop() {
        budget.spend(1)?;
        match name {
            b"" | b"." => continue,
            b".." => {
                walk.up();
                continue;
            }
            _ if walk.leaf.is_some() => return Err(walk.not_a_directory()),
            _ => {}
        }
        match step(nodes, &mut walk, name, &is_gap)? {
            Some(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(TreeFault::SymlinkLoop);
                }
                if target.first() == Some(&b'/') {
                    walk.restart();
                }
                // Reading a target takes about as long as a step for every eight bytes.
                budget.spend(target.len() / 8)?;
                follow(target, &mut pending);
            }
            None if walk.names.len() > MAX_DEPTH => return Err(TreeFault::TooDeep),
            None => {}
        }
    }
    Ok(walk)
}

/// Puts a link's target in front of what is pending. As in `RootPath`, `x/..` inside of a relative one cancels out by
/// its text, whatever `x` is.
fn follow<'t>(target: &'t [u8], pending: &mut Vec<&'t [u8]>) {
    let is_relative = target.first() != Some(&b'/');
    let mut names: Vec<&[u8]> = Vec::new();
    for name in split(target).filter(|name| !matches!(*name, b"" | b".")) {
        let cancels = is_relative && name == b".." && names.last().is_some_and(|last| *last != b"..");
        if cancels {
            names.pop();
        } else {
            names.push(name);
        }
    }
    pending.extend(names.into_iter().rev());
}

/// Goes one name further; answers the target where the name is a symbolic link.
fn step<'t>(
    nodes: &'t [Node],
    walk: &mut Walk<'t>,
    name: &'t [u8],
    is_gap: &impl Fn(NodeId) -> bool,
) -> Result<Option<&'t [u8]>, TreeFault> {
    let missing = walk.names.len() >= walk.dirs.len();
    let dir = if missing { None } else { walk.dirs.last() };
    let child = dir.and_then(|dir| child(nodes, *dir, name)).filter(|id| !is_gap(*id));
    let Some(id) = child else {
        check_name(name)?;
        walk.names.push(name);
        return Ok(None);
    };
    match &nodes[id.0 as usize].kind {
        NodeKind::Symlink(target) => return Ok(Some(target)),
        NodeKind::Dir(_) => walk.dirs.push(id),
        _ => walk.leaf = Some(id),
    }
    walk.names.push(name);
    Ok(None)
}

/// What `name` is in the directory `dir`.
pub(super) fn child(nodes: &[Node], dir: NodeId, name: &[u8]) -> Option<NodeId> {
    match &nodes[dir.0 as usize].kind {
        // Archives mostly have the names of a directory in order: that of a new one is behind all that are there, and a search for it is saved.
        NodeKind::Dir(children) if children.last_key_value().is_some_and(|(last, _)| name <= last) => {
            children.get(name).copied()
        }
        _ => None,
    }
}
