//! Random trees.

use proptest::{collection::vec, prelude::*, sample::Index};
use silk_layer::{
    toc::Time,
    tree::{Extents, NodeId, NodeKind, SourceExtent},
};

use crate::make::{Make, SOURCES};

const DATA: u64 = 1 << 17;

#[derive(Debug, Clone)]
pub enum What {
    Dir,
    Link(Index),
    File(u64, Vec<(u64, u64, u64, Index)>),
    Symlink(Vec<u8>),
    Char(u32, u32),
    Fifo,
}

pub type Attributes = (u32, u32, u32, i64, u32, Vec<(Vec<u8>, Vec<u8>)>);

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("no slash, no NUL", |b| !matches!(b, 0 | b'/'));
    let short = vec(byte.clone(), 1..20);
    prop_oneof![4 => short, 1 => vec(byte, 250..=255)].prop_filter("no dots", |n| n != b"." && n != b"..")
}

fn what() -> impl Strategy<Value = What> {
    // (gap before, offset, length), each of whole blocks or not.
    let number = |max: u64| prop_oneof![(0..max / 512).prop_map(|n| n * 512), 0..max];
    let piece = (number(1 << 15), number(DATA / 2), number(1 << 14), any::<Index>());
    prop_oneof![
        3 => Just(What::Dir),
        1 => any::<Index>().prop_map(What::Link),
        4 => (0u64..2000, vec(piece, 0..6)).prop_map(|(tail, pieces)| What::File(tail, pieces)),
        1 => vec(1u8..=255, 1..600).prop_map(What::Symlink),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(a, b)| What::Char(a, b)),
        1 => Just(What::Fifo),
    ]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let name = (prop::sample::select(vec!["user.", "trusted.", "security.x"]), "[a-z]{1,40}");
    let xattr = (name.prop_map(|(a, b)| format!("{a}{b}").into_bytes()), vec(any::<u8>(), 0..300));
    (0u32..0o10000, any::<u32>(), any::<u32>(), -(1i64 << 40)..1 << 40, 0u32..1_000_000_000, vec(xattr, 0..4))
}

/// What [`build`] makes a tree of.
pub type Entries = Vec<(Index, Vec<u8>, What, Attributes)>;

pub fn entries() -> impl Strategy<Value = Entries> {
    vec((any::<Index>(), name(), what(), attributes()), 0..120)
}

pub fn build(entries: Entries) -> Make {
    let mut make = Make::new(DATA as usize);
    let (mut dirs, mut files) = (vec![NodeId(0)], Vec::new());
    for (dir, name, what, attributes) in entries {
        let dir = *dir.get(&dirs);
        if matches!(&make.node(dir).kind, NodeKind::Dir(names) if names.contains_key(&name[..])) {
            continue;
        }
        let id = match what {
            What::Dir => {
                dirs.push(make.dir(dir, &name, 0));
                dirs[dirs.len() - 1]
            }
            What::Link(_) if files.is_empty() => continue,
            What::Link(to) => {
                make.link(dir, &name, *to.get(&files));
                continue;
            }
            What::File(tail, pieces) => {
                let mut at = 0;
                let mut extents = Extents::new();
                for (gap, offset, len, source) in pieces {
                    let logical = at + gap;
                    extents.push(SourceExtent { source: *source.get(&SOURCES), logical, offset, len });
                    at = logical + len;
                }
                make.special(dir, &name, NodeKind::File { size: at + tail, extents })
            }
            What::Symlink(target) => make.symlink(dir, &name, &target),
            What::Char(a, b) => make.special(dir, &name, NodeKind::Char(a, b)),
            What::Fifo => make.special(dir, &name, NodeKind::Fifo),
        };
        let node = make.node(id);
        let is_link = matches!(node.kind, NodeKind::Symlink(_));
        if !matches!(node.kind, NodeKind::Dir(_)) {
            files.push(id);
        }
        let (mode, uid, gid, secs, nanos, xattrs) = attributes;
        (node.uid, node.gid, node.mtime) = (uid, gid, Time { secs, nanos });
        node.mode = if is_link { 0o777 } else { mode };
        // The kernel shows user attributes on files and directories only.
        let shown = matches!(node.kind, NodeKind::Dir(_) | NodeKind::File { .. });
        node.xattrs = xattrs.into_iter().filter(|(name, _)| shown || !name.starts_with(b"user.")).collect();
    }
    make
}
