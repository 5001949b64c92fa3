//! Reads of a tree's files: which may come from a data file, from the image and from holes at once.

use fuser::{Errno, ReplyData};
use silk_layer::erofs::read::{Piece, Place};

use crate::{Object, Reply, Slot, Source, TreeFiles, node::Node, reply::Gather, serve::Answer};

/// Answers a read of `len` bytes at `offset`, now or when the source has what is missing.
pub(crate) fn tree(source: &dyn Source, tree: &TreeFiles, node: Node, (offset, len): (u64, u32), reply: ReplyData) {
    let pieces = match tree.map(node, offset, len).and_then(|pieces| place(source, tree, node.slot, &pieces)) {
        Ok(pieces) => pieces,
        Err(error) => return reply.error(error),
    };
    match pieces.as_slice() {
        [] => reply.data(&[]),
        // All but sparse files.
        [(len, At::Data(slot, from))] => source.read(*slot, *from, *len, Reply::kernel(reply, *len as usize)),
        pieces => gather(source, tree, node.slot, pieces, reply),
    }
}

/// Where a piece of a read is.
#[derive(Clone, Copy)]
enum At {
    Here(Place),
    Data(Slot, u64),
}

/// Finds the data files behind the pieces. No image is believed about what lies within a data file.
fn place(source: &dyn Source, tree: &TreeFiles, of: Slot, pieces: &[Piece]) -> Answer<Vec<(u32, At)>> {
    let place = |piece: &Piece| {
        // No more than the read's.
        let len = u32::try_from(piece.len).map_err(|_| Errno::EIO)?;
        let Place::Device(nr, from) = piece.place else { return Ok((len, At::Here(piece.place))) };
        let slot = tree.device(nr)?;
        match source.object(slot) {
            Some(Object::Data { size }) if from + piece.len <= size => Ok((len, At::Data(slot, from))),
            Some(_) => Err(tree.broken(of, &"a file's bytes are outside of its layer's data")),
            None => Err(Errno::ESTALE),
        }
    };
    pieces.iter().map(place).collect()
}

/// Puts a read together.
fn gather(source: &dyn Source, tree: &TreeFiles, slot: Slot, pieces: &[(u32, At)], reply: ReplyData) {
    // At most what the kernel has asked for, 1 MiB.
    let mut buffer = vec![0; pieces.iter().map(|(len, _)| *len as usize).sum()];
    let (mut at, mut missing) = (0, 0);
    let mut parts = Vec::new();
    for (len, place) in pieces {
        let range = at..at + *len as usize;
        at = range.end;
        match place {
            At::Here(place) => {
                if let Err(error) = tree.copy(slot, *place, &mut buffer[range]) {
                    return reply.error(error);
                }
            }
            At::Data(slot, from) => {
                missing += range.len();
                parts.push((*slot, *from, range));
            }
        }
    }
    if parts.is_empty() {
        return reply.data(&buffer);
    }
    let gather = Gather::new(reply, buffer, missing);
    for (slot, from, range) in parts {
        let len = range.len() as u32;
        source.read(slot, from, len, gather.part(range));
    }
}
