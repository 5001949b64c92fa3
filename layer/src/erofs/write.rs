//! The second pass: streams a planned image.

use std::{
    io::{self, BufWriter, Write},
    ops::Range,
};

use crate::tree::{Node, NodeId, NodeKind, Source};

use super::{
    Plan, ReadData,
    chunks::{Chunk, File},
    dirs,
    disk::{self, BLOCK, Inode, Layout, NULL_ADDR, SLOT, Super},
    place::{self, Body, Contents, Placed},
};

/// Copies and the writer's buffer go in pieces of this size: large enough that system calls do not count.
const PIECE: usize = 64 << 10;

/// See [`Plan::write`].
pub(super) fn image(plan: &Plan<'_>, out: &mut impl Write, read: &mut ReadData<'_>) -> io::Result<()> {
    let mut out = Counted { out: BufWriter::with_capacity(PIECE, out), at: 0 };
    let root_nid = u16::try_from(plan.placed[0].nid).map_err(|_| broken())?;
    let mut xattrs = false;
    for node in plan.order.iter().map(|&id| &plan.tree.nodes[id as usize]).filter(|node| !node.xattrs.is_empty()) {
        // Some are left out.
        xattrs = xattrs || body_of(node)?.xattr_len > 0;
    }
    let it = Super { root_nid, inodes: plan.order.len() as u64, blocks: plan.blocks, uuid: plan.uuid, xattrs };
    out.put(&disk::head(it, &plan.devices))?;
    let mut buffer = Vec::new();
    for (ino, &id) in (1..).zip(&plan.order) {
        inode(plan, id, ino, &mut buffer, &mut out)?;
    }
    for &id in &plan.order {
        contents(plan, id, &mut out, read)?;
    }
    out.pad_to(plan.size())?;
    out.out.flush()
}

/// The writer and how far it is.
struct Counted<W: Write> {
    out: BufWriter<W>,
    at: u64,
}

impl<W: Write> Counted<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Zeros up to an offset, which is less than a few blocks away.
    fn pad_to(&mut self, offset: u64) -> io::Result<()> {
        const ZEROS: [u8; 512] = [0; 512];
        while self.at < offset {
            self.put(&ZEROS[..(offset - self.at).min(512) as usize])?;
        }
        if self.at == offset { Ok(()) } else { Err(broken()) }
    }
}

/// The plan made sure of this: a mistake of ours that must not become an image.
fn broken() -> io::Error {
    io::Error::other("an EROFS image does not go by its plan")
}

fn body_of(node: &Node) -> io::Result<Body<'_>> {
    place::body(node).map_err(|_| broken())
}

/// Writes an inode with what stands behind it. `buffer` is kept between calls for its memory.
fn inode<W: Write>(plan: &Plan<'_>, id: u32, ino: u32, buffer: &mut Vec<u8>, out: &mut Counted<W>) -> io::Result<()> {
    let (node, placed) = (&plan.tree.nodes[id as usize], &plan.placed[id as usize]);
    let body = body_of(node)?;
    let at = u64::from(placed.nid) * SLOT;
    out.pad_to(at)?;
    buffer.clear();
    let (layout, size) = layout(node, placed, &body);
    let (nlink, xattr_len) = (placed.nlink, body.xattr_len);
    disk::put_inode(buffer, node, Inode { layout, size, ino, nlink, xattr_len });
    if xattr_len > 0 {
        disk::put_xattr_header(buffer);
        for (name, value) in &node.xattrs {
            disk::put_xattr(buffer, name, value);
        }
    }
    if let (Layout::Inline, NodeKind::Symlink(target)) = (layout, &node.kind) {
        buffer.extend(target);
    }
    out.put(buffer)?;
    if let Contents::Chunks { file, bits, .. } = &body.contents {
        out.pad_to(body.indexes(at))?;
        indexes(plan, (file, *bits), placed.block, (buffer, out))?;
    }
    Ok(())
}

fn layout(node: &Node, placed: &Placed, body: &Body<'_>) -> (Layout, u64) {
    match (&node.kind, &body.contents) {
        (NodeKind::Dir(_), _) => (Layout::Plain { block: placed.block }, body.blocks() * BLOCK),
        (NodeKind::File { size, .. }, Contents::Chunks { bits, .. }) => (Layout::Chunks { bits: *bits }, *size),
        (NodeKind::File { .. }, _) => (Layout::Plain { block: 0 }, 0),
        (NodeKind::Symlink(target), Contents::Inline(_)) => (Layout::Inline, target.len() as u64),
        (NodeKind::Symlink(target), _) => (Layout::Plain { block: placed.block }, target.len() as u64),
        (NodeKind::Char(major, minor) | NodeKind::Block(major, minor), _) => {
            (Layout::Special { rdev: disk::rdev(*major, *minor) }, 0)
        }
        (NodeKind::Fifo, _) => (Layout::Special { rdev: 0 }, 0),
    }
}

/// Writes a file's chunk indexes; those of copied chunks count up from `block`.
fn indexes<W: Write>(
    plan: &Plan<'_>,
    (file, bits): (&File<'_>, u32),
    mut block: u32,
    (buffer, out): (&mut Vec<u8>, &mut Counted<W>),
) -> io::Result<()> {
    buffer.clear();
    for (nr, chunk) in (0..).zip(file.chunks(bits)) {
        match chunk {
            Chunk::Hole => disk::put_chunk(buffer, 0, NULL_ADDR),
            Chunk::Direct(source, at) => {
                let slot = plan.sources.iter().position(|s| *s == source).ok_or_else(broken)?;
                disk::put_chunk(buffer, slot as u16 + 1, at);
            }
            Chunk::Copied => {
                disk::put_chunk(buffer, 0, block);
                let range = file.range(bits, nr);
                block += (range.end - range.start).div_ceil(BLOCK) as u32;
            }
        }
        if buffer.len() >= PIECE {
            out.put(buffer)?;
            buffer.clear();
        }
    }
    out.put(buffer)
}

/// Writes what a node keeps in blocks of its own.
fn contents<W: Write>(plan: &Plan<'_>, id: u32, out: &mut Counted<W>, read: &mut ReadData<'_>) -> io::Result<()> {
    let (node, placed) = (&plan.tree.nodes[id as usize], &plan.placed[id as usize]);
    let start = u64::from(placed.block) * BLOCK;
    match &node.kind {
        NodeKind::Dir(names) => {
            out.pad_to(start)?;
            let nid = |NodeId(id)| u64::from(plan.placed[id as usize].nid);
            let ids = (NodeId(id), NodeId(placed.parent));
            dirs::encode((plan.tree, names), ids, nid, |block| out.put(block))?;
        }
        NodeKind::Symlink(target) if matches!(body_of(node)?.contents, Contents::Blocks(_)) => {
            out.pad_to(start)?;
            out.put(target)?;
        }
        NodeKind::File { .. } if plan.copied > 0 => {
            if let Contents::Chunks { file, bits, copied: 1.., .. } = &body_of(node)?.contents {
                out.pad_to(start)?;
                copies(file, *bits, out, read)?;
            }
        }
        _ => return Ok(()),
    }
    out.pad_to(out.at.next_multiple_of(BLOCK))
}

/// Copies the chunks that no address can say.
fn copies<W: Write>(file: &File<'_>, bits: u32, out: &mut Counted<W>, read: &mut ReadData<'_>) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    for (nr, chunk) in (0..).zip(file.chunks(bits)) {
        if chunk != Chunk::Copied {
            continue;
        }
        let range = file.range(bits, nr);
        for start in range.clone().step_by(PIECE) {
            let end = (start + PIECE as u64).min(range.end);
            let piece = &mut piece[..(end - start) as usize];
            fill(file, start, piece, read)?;
            out.put(piece)?;
        }
    }
    Ok(())
}

/// Fills `piece` with the file's bytes from `start` on.
fn fill(file: &File<'_>, start: u64, piece: &mut [u8], read: &mut ReadData<'_>) -> io::Result<()> {
    piece.fill(0);
    for (part, source, offset) in parts(file, start..start + piece.len() as u64) {
        read(source, offset, &mut piece[(part.start - start) as usize..(part.end - start) as usize])?;
    }
    Ok(())
}

/// The parts of a file's range that are no holes: where in the file, whose bytes, and where these are.
fn parts(file: &File<'_>, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, Source, u64)> {
    let extents = file.extents();
    let first = extents.partition_point(|e| e.logical + e.len <= range.start);
    extents[first..].iter().take_while(move |e| e.logical < range.end).map(move |e| {
        let part = e.logical.max(range.start)..(e.logical + e.len).min(range.end);
        (part.clone(), e.source, e.offset + (part.start - e.logical))
    })
}

/// See [`Plan::copied_from`].
pub(super) fn copied_from(plan: &Plan<'_>) -> Vec<(Source, Range<u64>)> {
    let mut all: Vec<(Source, Range<u64>)> = Vec::new();
    if plan.copied == 0 {
        return all;
    }
    for node in plan.order.iter().map(|&id| &plan.tree.nodes[id as usize]) {
        // The plan has seen that each has a body.
        let Ok(Body { contents: Contents::Chunks { file, bits, copied: 1.., .. }, .. }) = place::body(node) else {
            continue;
        };
        for (nr, _) in (0..).zip(file.chunks(bits)).filter(|(_, chunk)| *chunk == Chunk::Copied) {
            for (part, source, at) in parts(&file, file.range(bits, nr)) {
                let end = at + (part.end - part.start);
                match all.last_mut() {
                    Some((last, bytes)) if *last == source && bytes.end == at => bytes.end = end,
                    _ => all.push((source, at..end)),
                }
            }
        }
    }
    all
}
