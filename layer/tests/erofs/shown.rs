//! A directory against the tree that it must show.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _, fs::MetadataExt as _},
    path::Path,
};

use rustix::fs::{lgetxattr, llistxattr, major, minor};
use silk_layer::tree::{Node, NodeId, NodeKind};

use crate::make::Make;

/// Fails unless the directory `top` shows the tree.
pub fn shows(make: &Make, top: &Path) {
    let mut inodes = HashMap::new();
    node(make, NodeId(0), top, &mut inodes);
    // Hard links, and only they, share an inode.
    let distinct: std::collections::HashSet<_> = inodes.values().collect();
    assert_eq!(distinct.len(), inodes.len());
    assert_eq!(inodes.len(), make.tree.nodes.len());
}

fn node(make: &Make, id: NodeId, path: &Path, inodes: &mut HashMap<NodeId, u64>) {
    let it = &make.tree.nodes[id.0 as usize];
    let meta = fs::symlink_metadata(path).unwrap();
    assert_eq!(*inodes.entry(id).or_insert(meta.ino()), meta.ino(), "{path:?}");
    assert_eq!(meta.mode(), it.mode | kind_bits(&it.kind), "{path:?}");
    assert_eq!((meta.uid(), meta.gid()), (it.uid, it.gid), "{path:?}");
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (it.mtime.secs, i64::from(it.mtime.nanos)), "{path:?}");
    assert_eq!(meta.nlink(), links(make, id), "{path:?}");
    xattrs(it, path);
    match &it.kind {
        NodeKind::Dir(names) => {
            let mut found: Vec<_> =
                fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().as_bytes().to_vec()).collect();
            found.sort();
            assert!(names.keys().map(|name| &name[..]).eq(found.iter().map(|name| &name[..])), "{path:?}");
            assert!(fs::symlink_metadata(path.join("no such name")).is_err());
            for (name, child) in names {
                node(make, *child, &path.join(OsStr::from_bytes(name)), inodes);
            }
        }
        NodeKind::File { size, extents } => {
            assert_eq!(meta.len(), *size, "{path:?}");
            let file = fs::File::open(path).unwrap();
            let check = |from: u64, len: u64| {
                let expected = make.contents(*size, extents, from, len);
                let mut found = vec![0xAA; expected.len()];
                file.read_exact_at(&mut found, from).unwrap();
                assert!(found == expected, "{path:?} at {from}");
            };
            if *size <= 1 << 21 {
                check(0, *size);
            } else {
                check(0, 4096);
                check(size - 4096, 4096);
                for e in extents {
                    check(e.logical.saturating_sub(5000), e.len + 10_000);
                }
            }
        }
        NodeKind::Symlink(target) => assert_eq!(fs::read_link(path).unwrap().as_os_str().as_bytes(), target),
        NodeKind::Char(a, b) | NodeKind::Block(a, b) => assert_eq!((major(meta.rdev()), minor(meta.rdev())), (*a, *b)),
        NodeKind::Fifo => {}
    }
}

fn xattrs(it: &Node, path: &Path) {
    let mut list = vec![0; 1 << 17];
    let len = llistxattr(path, &mut list).unwrap();
    let names: Vec<_> = list[..len].split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
    let mut found = BTreeMap::new();
    for name in names {
        let mut value = vec![0; 1 << 16];
        let len = lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
        found.insert(name.to_vec(), value[..len].to_vec());
    }
    assert!(found == it.xattrs, "{path:?}: {:?} and {:?}", found.keys(), it.xattrs.keys());
}

fn links(make: &Make, id: NodeId) -> u64 {
    // Too slow to count for every file of a huge tree; those have no hard links.
    if make.tree.nodes.len() > 5000 && id != NodeId(0) {
        return 1;
    }
    let is_dir = |id: &NodeId| matches!(make.tree.nodes[id.0 as usize].kind, NodeKind::Dir(_));
    if let NodeKind::Dir(names) = &make.tree.nodes[id.0 as usize].kind {
        return 2 + names.values().filter(|id| is_dir(id)).count() as u64;
    }
    let dirs =
        make.tree.nodes.iter().filter_map(|n| if let NodeKind::Dir(names) = &n.kind { Some(names) } else { None });
    dirs.flat_map(|names| names.values()).filter(|n| **n == id).count() as u64
}

fn kind_bits(kind: &NodeKind) -> u32 {
    match kind {
        NodeKind::Dir(_) => 0o040_000,
        NodeKind::File { .. } => 0o100_000,
        NodeKind::Symlink(_) => 0o120_000,
        NodeKind::Char(..) => 0o020_000,
        NodeKind::Block(..) => 0o060_000,
        NodeKind::Fifo => 0o010_000,
    }
}
