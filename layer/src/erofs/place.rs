//! The first pass: which inode goes where, and whether the tree fits.

use std::collections::BTreeMap;

use crate::tree::{Node, NodeId, NodeKind, Source, SourceExtent, Tree};

use super::{
    Device, ErofsError, MAX_CHUNKS, MAX_COPIED, MAX_DEVICES, Plan,
    chunks::{File, Misfit},
    dirs,
    disk::{self, BLOCK, INODE, SLOT},
};

/// Images end at a page, for whoever maps or loop-mounts them.
const PAGE: u64 = 4096;
/// The longest target of a symbolic link: PATH_MAX without its NUL.
pub(super) const MAX_TARGET: usize = 4095;

/// Where a node goes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Placed {
    /// Inode number: offset in the image by [`SLOT`].
    pub nid: u32,
    /// The first block of what does not stand behind the inode: entries, a long target, copied chunks.
    pub block: u32,
    /// Names that lead to the inode; for a directory `.` and the `..` of its subdirectories too.
    pub nlink: u32,
    /// The directory of its first name.
    pub parent: u32,
}

/// How an inode's contents are kept, and how much room it needs.
#[derive(Debug)]
pub(super) struct Body<'t> {
    /// Bytes of extended attributes behind the inode.
    pub xattr_len: usize,
    /// The rest.
    pub contents: Contents<'t>,
}

/// An inode's contents.
#[derive(Debug)]
pub(super) enum Contents<'t> {
    /// None: an empty file, a device, a pipe.
    None,
    /// Blocks of the image.
    Blocks(u64),
    /// So many bytes behind the attributes.
    Inline(usize),
    /// Chunks of `1 << bits` bytes.
    Chunks { file: File<'t>, bits: u32, chunks: u64, copied: u64 },
}

/// See [`Plan::new`].
pub(super) fn plan<'t>(tree: &'t Tree, devices: &[Device], uuid: [u8; 16]) -> Result<Plan<'t>, ErofsError> {
    let mut pass = Pass { tree, placed: vec![Placed::default(); tree.nodes.len()], order: Vec::new() };
    pass.walk()?;
    let (used, copied) = pass.check(devices)?;
    let devices: Vec<Device> = devices.iter().filter(|d| used.contains_key(&d.source)).cloned().collect();
    // Also keeps the root's number within the superblock's 16 bits: it stands right behind the table.
    if devices.len() > MAX_DEVICES {
        return Err(ErofsError::TooLarge);
    }
    let blocks = pass.place(devices.len())?;
    let sources = devices.iter().map(|d| d.source).collect();
    Ok(Plan { tree, devices, sources, uuid, order: pass.order, placed: pass.placed, blocks, copied })
}

struct Pass<'t> {
    tree: &'t Tree,
    placed: Vec<Placed>,
    order: Vec<u32>,
}

impl<'t> Pass<'t> {
    /// Finds the order of the inodes (a directory's entries side by side, level by level), parents and link counts.
    fn walk(&mut self) -> Result<(), ErofsError> {
        let tree = self.tree;
        if !matches!(tree.nodes.first(), Some(Node { kind: NodeKind::Dir(_), .. })) {
            return Err(ErofsError::Broken { path: "/".into() });
        }
        self.placed[0].nlink = 2;
        self.order.push(0);
        let mut at = 0;
        while let Some(&dir) = self.order.get(at) {
            at += 1;
            let NodeKind::Dir(names) = &tree.nodes[dir as usize].kind else { continue };
            for (name, child) in names {
                self.enter(dir, name, *child)?;
            }
        }
        Ok(())
    }

    /// Takes one name of the directory `dir` into account.
    fn enter(&mut self, dir: u32, name: &[u8], child: NodeId) -> Result<(), ErofsError> {
        let lossy = || String::from_utf8_lossy(name).into_owned();
        let bad = name.is_empty() || name.len() > 255 || name.iter().any(|b| matches!(b, 0 | b'/'));
        if bad || name == b"." || name == b".." {
            return Err(ErofsError::Name { path: self.path(dir), name: lossy() });
        }
        let below = |path: String| format!("{}/{}", path.trim_end_matches('/'), lossy());
        let Some(node) = self.tree.nodes.get(child.0 as usize) else {
            return Err(ErofsError::Broken { path: below(self.path(dir)) });
        };
        let is_dir = matches!(node.kind, NodeKind::Dir(_));
        let it = &mut self.placed[child.0 as usize];
        if it.nlink > 0 && is_dir {
            return Err(ErofsError::DirTwice { path: below(self.path(dir)) });
        }
        if it.nlink == 0 {
            it.parent = dir;
            it.nlink = u32::from(is_dir);
            self.order.push(child.0);
        }
        self.placed[child.0 as usize].nlink += 1;
        self.placed[dir as usize].nlink += u32::from(is_dir);
        Ok(())
    }

    /// Checks every file's contents. Tells which sources some chunk points into, and how many bytes must be copied.
    fn check(&self, devices: &[Device]) -> Result<(BTreeMap<Source, ()>, u64), ErofsError> {
        let sizes: BTreeMap<Source, u64> = devices.iter().map(|d| (d.source, d.size)).collect();
        let mut used = BTreeMap::new();
        let (mut all_chunks, mut all_copied) = (0, 0);
        let is_file = |id: &&u32| matches!(self.tree.nodes[**id as usize].kind, NodeKind::File { .. });
        for &id in self.order.iter().filter(is_file) {
            let Contents::Chunks { file, bits, chunks, copied } = self.body(id)?.contents else { continue };
            let inside = |e: &SourceExtent| sizes.get(&e.source).is_some_and(|size| e.offset + e.len <= *size);
            if !file.extents().iter().all(inside) {
                return Err(ErofsError::Extent { path: self.path(id) });
            }
            used.extend(file.direct_sources(bits).map(|source| (source, ())));
            all_chunks += chunks;
            all_copied += copied;
            if all_chunks > MAX_CHUNKS || all_copied > MAX_COPIED {
                return Err(ErofsError::TooLarge);
            }
        }
        Ok((used, all_copied))
    }

    /// Gives every inode its number and every directory, long target and copy its blocks. Returns the image's length.
    fn place(&mut self, devices: usize) -> Result<u32, ErofsError> {
        let mut at = disk::inodes_start(devices);
        // From the first behind the inodes, until that is known.
        let mut block = 0;
        let mut copying = Vec::new();
        for nr in 0..self.order.len() {
            let id = self.order[nr];
            let body = self.body(id)?;
            at = at.next_multiple_of(SLOT);
            // Not asked for by the format, except that contents behind an inode end in the block where they start;
            // but an inode across two blocks costs the kernel an allocation.
            let together = match body.contents {
                Contents::Inline(len) => INODE + (body.xattr_len + len) as u64,
                _ => INODE,
            };
            if at % BLOCK + together > BLOCK {
                at = at.next_multiple_of(BLOCK);
            }
            self.placed[id as usize].nid = u32::try_from(at / SLOT).map_err(|_| ErofsError::TooLarge)?;
            at = body.end(at);
            self.placed[id as usize].block = u32::try_from(block).map_err(|_| ErofsError::TooLarge)?;
            block += body.blocks();
            if matches!(body.contents, Contents::Chunks { copied: 1.., .. }) {
                copying.push(nr);
            }
        }
        let end = self.shift(at.div_ceil(BLOCK), &copying)? + block;
        let all = (end * BLOCK).next_multiple_of(PAGE) / BLOCK;
        u32::try_from(all).map_err(|_| ErofsError::TooLarge)
    }

    /// Moves all blocks up by `first`, and those of the files in `copying`, places in the order, by some more if they must not be
    /// where they are ([`File::mistakable`]); with them all that follow. Returns by how much the last was moved.
    fn shift(&mut self, mut first: u64, copying: &[usize]) -> Result<u64, ErofsError> {
        let mut copying = copying.iter().peekable();
        for nr in 0..self.order.len() {
            let id = self.order[nr];
            let at = u64::from(self.placed[id as usize].block);
            if copying.next_if_eq(&&nr).is_some()
                && let Contents::Chunks { file, bits, .. } = self.body(id)?.contents
            {
                let mistakable = file.mistakable(bits);
                while mistakable.contains(&(at + first)) {
                    first += 1;
                }
            }
            self.placed[id as usize].block = u32::try_from(at + first).map_err(|_| ErofsError::TooLarge)?;
        }
        Ok(first)
    }

    fn body(&self, id: u32) -> Result<Body<'t>, ErofsError> {
        body(&self.tree.nodes[id as usize]).map_err(|misfit| misfit.at(self.path(id)))
    }

    /// The path of a node, for people.
    fn path(&self, mut id: u32) -> String {
        let mut parts = Vec::new();
        while id != 0 {
            let parent = self.placed[id as usize].parent;
            let NodeKind::Dir(names) = &self.tree.nodes[parent as usize].kind else { break };
            let name = names.iter().find(|(_, child)| child.0 == id).map(|(name, _)| name.as_slice());
            parts.push(String::from_utf8_lossy(name.unwrap_or_default()).into_owned());
            id = parent;
        }
        parts.push(String::new());
        parts.reverse();
        if parts.len() == 1 { "/".into() } else { parts.join("/") }
    }
}

/// What is wrong with a node, before its path is known.
#[derive(Debug)]
pub(super) enum NodeMisfit {
    File(Misfit, u64),
    Symlink(usize),
    Xattr(String),
}

impl NodeMisfit {
    fn at(self, path: String) -> ErofsError {
        match self {
            Self::File(Misfit::Extent, _) => ErofsError::Extent { path },
            Self::File(Misfit::Range, _) => ErofsError::Range { path },
            Self::File(Misfit::Scattered, size) => ErofsError::Scattered { path, size },
            Self::Symlink(len) => ErofsError::Symlink { path, len },
            Self::Xattr(name) => ErofsError::Xattr { path, name },
        }
    }
}

/// How a node is kept. Both passes ask this, so that they agree.
pub(super) fn body(node: &Node) -> Result<Body<'_>, NodeMisfit> {
    let xattr_len = xattr_len(node)?;
    let contents = match &node.kind {
        NodeKind::Dir(names) => Contents::Blocks(dirs::blocks(names)),
        NodeKind::File { size, extents } => file(*size, extents).map_err(|misfit| NodeMisfit::File(misfit, *size))?,
        NodeKind::Symlink(target) => {
            if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
                return Err(NodeMisfit::Symlink(target.len()));
            }
            if INODE as usize + xattr_len + target.len() <= BLOCK as usize {
                Contents::Inline(target.len())
            } else {
                Contents::Blocks((target.len() as u64).div_ceil(BLOCK))
            }
        }
        NodeKind::Char(..) | NodeKind::Block(..) | NodeKind::Fifo => Contents::None,
    };
    Ok(Body { xattr_len, contents })
}

fn file(size: u64, extents: &[SourceExtent]) -> Result<Contents<'_>, Misfit> {
    let Some(file) = File::new(size, extents)? else { return Ok(Contents::None) };
    let shape = file.shape()?;
    Ok(Contents::Chunks { file, bits: shape.bits, chunks: shape.chunks, copied: shape.copied })
}

fn xattr_len(node: &Node) -> Result<usize, NodeMisfit> {
    let misfit = |name: &[u8]| NodeMisfit::Xattr(String::from_utf8_lossy(name).into_owned());
    let mut sum = 0;
    for (name, value) in &node.xattrs {
        sum += disk::xattr_len(name, value).map_err(|_| misfit(name))?;
        disk::xattr_body_len(sum).map_err(|_| misfit(name))?;
    }
    // Cannot fail: the loop has just asked for each sum.
    disk::xattr_body_len(sum).map_err(|_| misfit(b""))
}

impl Body<'_> {
    /// Where the chunks' indexes start, of an inode at `at`.
    pub(super) fn indexes(&self, at: u64) -> u64 {
        (at + INODE + self.xattr_len as u64).next_multiple_of(8)
    }

    /// Where an inode at `at` ends with all that stands behind it.
    fn end(&self, at: u64) -> u64 {
        match self.contents {
            Contents::None | Contents::Blocks(_) => at + INODE + self.xattr_len as u64,
            Contents::Inline(len) => at + INODE + (self.xattr_len + len) as u64,
            Contents::Chunks { chunks, .. } => self.indexes(at) + chunks * 8,
        }
    }

    /// How many blocks it takes elsewhere.
    pub(super) fn blocks(&self) -> u64 {
        match self.contents {
            Contents::None | Contents::Inline(_) => 0,
            Contents::Blocks(blocks) => blocks,
            Contents::Chunks { copied, .. } => copied / BLOCK,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toc::Time;

    fn node(kind: NodeKind) -> Node {
        Node { kind, mode: 0o644, uid: 0, gid: 0, mtime: Time::default(), xattrs: BTreeMap::new() }
    }

    /// A file of a chunk in the data file, a hole, a copied chunk, a hole, and another chunk in the data file.
    #[test]
    fn copies_do_not_stand_beside_chunks_of_a_data_file() {
        let device = Device { source: Source::Own, size: 1 << 20, layer: silk_model::Digest::of(b"layer") };
        let mut mistakable = 0;
        for block in 0..64 {
            let piece =
                |logical, block: u64| SourceExtent { source: Source::Own, logical, offset: block * 512, len: 512 };
            let extents = [piece(512, block), piece(2148, 200), piece(4096, 64 - block)].into_iter().collect();
            let names = [(b"file"[..].into(), NodeId(1))].into();
            let tree = Tree { nodes: vec![node(NodeKind::Dir(names)), node(NodeKind::File { size: 8192, extents })] };
            let plan = plan(&tree, std::slice::from_ref(&device), [0; 16]).unwrap();
            let Contents::Chunks { file, bits, copied, .. } = body(&tree.nodes[1]).unwrap().contents else {
                panic!("a file has chunks");
            };
            // Two blocks behind that of the directory.
            let (copies, dir) = (plan.placed[1].block, plan.placed[0].block);
            assert_eq!((copied, bits), (1024, 9));
            assert!(u64::from(copies) != block + 1 && u64::from(copies) + 2 != 64 - block, "{block}");
            mistakable += u64::from(copies != dir + 1);
            assert_eq!(plan.blocks % 8, 0);
            assert!(file.mistakable(bits).len() == 2 || block > 61);
        }
        assert_eq!(mistakable, 2);
    }
}
