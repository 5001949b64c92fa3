//! Directories: blocks of 512 bytes, each with its entries first and their names behind, sorted bytewise across blocks
//! as the kernel's binary search wants, `.` and `..` in their place among the others.

use std::ops::Bound;

use crate::tree::{Names, NodeId, Tree};

use super::disk::{self, BLOCK, put16, put64};

/// `sizeof(struct erofs_dirent)`.
pub(super) const ENTRY: usize = 12;
/// A block.
const BLOCK_LEN: usize = BLOCK as usize;

/// All names of a directory in the order of their bytes. `own` is the directory, `parent` the one above it.
fn entries(names: &Names, own: NodeId, parent: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
    let part = |from: Bound<&[u8]>, to: Bound<&[u8]>| {
        names.range::<[u8], _>((from, to)).map(|(name, id)| (name.as_slice(), *id))
    };
    let (dot, dots): (&[u8], &[u8]) = (b".", b"..");
    part(Bound::Unbounded, Bound::Excluded(dot))
        .chain([(dot, own)])
        .chain(part(Bound::Excluded(dot), Bound::Excluded(dots)))
        .chain([(dots, parent)])
        .chain(part(Bound::Excluded(dots), Bound::Unbounded))
}

/// How many blocks a directory of these names takes. A name has at most 255 bytes, so each fits in a block.
pub(super) fn blocks(names: &Names) -> u64 {
    let mut blocks = 1;
    let mut used = 0;
    for (name, _) in entries(names, NodeId(0), NodeId(0)) {
        let len = ENTRY + name.len();
        if used + len > BLOCK_LEN {
            blocks += 1;
            used = 0;
        }
        used += len;
    }
    blocks
}

/// Calls `emit` with each block in turn. `nid` tells an inode's number.
pub(super) fn encode<E>(
    (tree, names): (&Tree, &Names),
    (own, parent): (NodeId, NodeId),
    nid: impl Fn(NodeId) -> u64,
    mut emit: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut block = Vec::with_capacity(BLOCK_LEN);
    let mut pending: Vec<(&[u8], NodeId)> = Vec::with_capacity(BLOCK_LEN / (ENTRY + 1));
    let mut used = 0;
    let mut flush = |pending: &mut Vec<(&[u8], NodeId)>| {
        block.clear();
        let mut name_at = pending.len() * ENTRY;
        for (name, id) in pending.iter() {
            put64(&mut block, nid(*id));
            put16(&mut block, name_at as u16);
            block.extend([disk::entry_type(&tree.nodes[id.0 as usize].kind), 0]);
            name_at += name.len();
        }
        for (name, _) in pending.drain(..) {
            block.extend(name);
        }
        block.resize(BLOCK_LEN, 0);
        emit(&block)
    };
    for (name, id) in entries(names, own, parent) {
        let len = ENTRY + name.len();
        if used + len > BLOCK_LEN {
            flush(&mut pending)?;
            used = 0;
        }
        used += len;
        pending.push((name, id));
    }
    flush(&mut pending)
}
