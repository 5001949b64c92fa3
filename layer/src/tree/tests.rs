//! Trees of small tables: each test is one rule of `build.rs`.

mod hostile;

use std::{borrow::Cow, fmt::Write as _};

use proptest::prelude::*;

use super::*;
use crate::toc::{Entry, Extent, Kind, Toc};

/// An entry from a line: `path` of a file, `path/` of a directory, `path -> target`, `path = hard link's target`,
/// `path c` and `path b` of devices, each with owner 1, mode 0644 or 0755 and time 9.
fn entry(line: &str) -> Entry<'static> {
    let bytes = |text: &str| Cow::Owned(text.as_bytes().to_vec());
    let (path, kind, mode) = if let Some((path, target)) = line.split_once(" -> ") {
        (path, Kind::Symlink(bytes(target)), 0o777)
    } else if let Some((path, target)) = line.split_once(" = ") {
        (path, Kind::Hardlink(bytes(target)), 0o644)
    } else if let Some(path) = line.strip_suffix(" c") {
        (path, Kind::Char { major: 0, minor: 0 }, 0o644)
    } else if line.ends_with('/') {
        (line, Kind::Dir, 0o755)
    } else {
        (line, Kind::File { size: 3, extents: [Extent { logical: 0, offset: 512, len: 3 }].into() }, 0o644)
    };
    let mtime = Time { secs: 9, nanos: 0 };
    Entry { path: bytes(path), kind, mode, uid: 1, gid: 1, mtime, xattrs: Vec::new() }
}

fn entries(lines: &[&str]) -> Vec<Entry<'static>> {
    lines.iter().map(|line| entry(line)).collect()
}

fn toc(entries: &[Entry<'_>]) -> Toc {
    Toc::new(1 << 20, entries)
}

fn build(lines: &[&str], below: Below<'_>) -> Result<Built, TreeError> {
    Tree::build(&toc(&entries(lines)), below)
}

fn base(lines: &[&str]) -> Tree {
    build(lines, Below::Base).unwrap().tree
}

fn above(lines: &[&str], layers: &[&Tree]) -> Tree {
    build(lines, Below::Above(layers)).unwrap().tree
}

fn fault(lines: &[&str]) -> TreeFault {
    build(lines, Below::Above(&[])).unwrap_err().fault
}

/// The tree, a name a word: `a/` a directory, `!a/` an opaque one, `a?` a whiteout, `a>t` a symbolic link.
fn show(tree: &Tree) -> String {
    let mut out = String::new();
    let mut stack = vec![(String::new(), ROOT)];
    while let Some((path, id)) = stack.pop() {
        let node = tree.node(id);
        let opaque = if node.is_opaque() { "!" } else { "" };
        let end = match &node.kind {
            NodeKind::Dir(_) => "/".into(),
            NodeKind::Symlink(target) => format!(">{}", String::from_utf8_lossy(target)),
            NodeKind::Char(0, 0) => "?".into(),
            _ => String::new(),
        };
        if id != ROOT || node.is_opaque() {
            write!(out, "{opaque}{path}{end} ").unwrap();
        }
        if let NodeKind::Dir(children) = &node.kind {
            let join = |name: &[u8]| format!("{path}{}{}", if id == ROOT { "" } else { "/" }, name.escape_ascii());
            stack.extend(children.iter().rev().map(|(name, id)| (join(name), *id)));
        }
    }
    out.trim_end().into()
}

fn find<'t>(tree: &'t Tree, path: &str) -> &'t Node {
    let id = path.split('/').fold(ROOT, |id, name| path::child(&tree.nodes, id, name.as_bytes()).unwrap());
    tree.node(id)
}

#[test]
fn entries_make_a_tree_and_implied_directories_belong_to_root() {
    let tree = base(&["./", "etc/", "etc/passwd", "/usr//lib/./x/../libc.so", "bin -> usr/bin"]);
    assert_eq!(show(&tree), "bin>usr/bin etc/ etc/passwd usr/ usr/lib/ usr/lib/libc.so");
    let (declared, implied) = (find(&tree, "etc"), find(&tree, "usr/lib"));
    assert_eq!((declared.mode, declared.uid, declared.mtime.secs), (0o755, 1, 9));
    assert_eq!((implied.mode, implied.uid, implied.mtime.secs), (0o755, 0, 0));
    let root = tree.node(ROOT);
    assert_eq!((root.mode, root.uid, root.gid, root.mtime.secs), (0o755, 0, 0, 9));
    assert_eq!((tree.inodes(), tree.bytes()), (7, 6));
}

#[test]
fn the_memory_of_a_tree_is_that_of_its_names_and_attributes() {
    let memory = |lines: &[&str]| base(lines).memory();
    let (file, long) = (memory(&["a", "b"]) - memory(&["a"]), memory(&[&"n".repeat(255)]) - memory(&["n"]));
    assert_eq!((file, long), (size_of::<Node>() as u64, 255));
    assert_eq!(memory(&["a -> there"]) - memory(&["a"]), 5);
    // What one directory in the other takes: see `budget.rs`.
    let deep = memory(&[&"d/".repeat(1000)]) / 1000;
    assert!((400..460).contains(&deep), "{deep}");
    let mut layer = entries(&["d/"]);
    layer[0].xattrs = vec![(b"user.a".to_vec(), vec![0; 1000])];
    let attribute = Tree::build(&toc(&layer), Below::Base).unwrap().tree.memory() - memory(&["d/"]);
    assert!((1006..2006).contains(&attribute), "{attribute}");
}

#[test]
fn later_entries_replace_earlier_ones_and_directories_merge() {
    assert_eq!(show(&base(&["a/", "a/x", "a/", "a/y"])), "a/ a/x a/y");
    assert_eq!(show(&base(&["a/", "a/x", "a"])), "a");
    assert_eq!(show(&base(&["a", "a/", "a/x"])), "a/ a/x");
    assert_eq!(show(&base(&["a/", "a/x", "a -> b", "b/"])), "a>b b/");
    let mut merged = entries(&["a/", "a/x", "a/"]);
    merged[0].xattrs = vec![(b"user.a".to_vec(), b"1".to_vec()), (b"user.b".to_vec(), b"1".to_vec())];
    merged[2].xattrs = vec![(b"user.b".to_vec(), b"2".to_vec())];
    merged[2].mode = 0o1700;
    merged[2].mtime.secs = 11;
    let tree = Tree::build(&toc(&merged), Below::Base).unwrap().tree;
    let dir = find(&tree, "a");
    assert_eq!((dir.mode, dir.mtime.secs), (0o1700, 11));
    assert_eq!((&dir.xattrs[&b"user.a"[..]][..], &dir.xattrs[&b"user.b"[..]][..]), (&b"1"[..], &b"2"[..]));
}

#[test]
fn parents_are_resolved_within_the_layer_and_scoped_to_its_root() {
    assert_eq!(show(&base(&["lib -> usr/lib", "lib/x"])), "lib>usr/lib usr/ usr/lib/ usr/lib/x");
    assert_eq!(show(&base(&["a/", "a/l -> ../../../b", "a/l/x"])), "a/ a/l>../../../b b/ b/x");
    assert_eq!(show(&base(&["l -> /b", "b -> c/", "l/x"])), "b>c/ c/ c/x l>/b");
    assert_eq!(show(&base(&["a/", "a/b/", "l -> a/b", "l/../x"])), "a/ a/b/ l>a/b x");
    assert_eq!(show(&base(&["l -> /a/b/../c", "a/", "a/b -> /d/e", "l/x"])), "a/ a/b>/d/e d/ d/c/ d/c/x l>/a/b/../c");
    // As containerd: inside of a relative target `..` takes away the text in front of it.
    assert_eq!(show(&base(&["a/", "a/b/", "l -> a/b", "m -> l/../c", "m/x"])), "a/ a/b/ c/ c/x l>a/b m>l/../c");
    assert_eq!(show(&base(&["f", "m -> f/../c", "m/x"])), "c/ c/x f m>f/../c");
    // Behind a name that is missing nothing is looked up any more.
    assert_eq!(show(&base(&["a -> d", "b/c/a/x"])), "a>d b/ b/c/ b/c/a/ b/c/a/x");
    // The links of the layers below are not seen.
    let below = base(&["lib -> usr/lib", "usr/lib/"]);
    assert_eq!(show(&above(&["lib/x"], &[&below])), "lib/ lib/x");
}

#[test]
fn paths_that_cannot_be_are_errors() {
    assert_eq!(fault(&["../x"]), TreeFault::ClimbsAboveRoot);
    assert_eq!(fault(&["a/../../x"]), TreeFault::ClimbsAboveRoot);
    assert_eq!(fault(&["/../x"]), TreeFault::ClimbsAboveRoot);
    assert_eq!(fault(&["a", "b = ../a"]), TreeFault::LinkClimbsAboveRoot("../a".into()));
    assert_eq!(fault(&["a\0b"]), TreeFault::Nul);
    assert_eq!(fault(&[&"n".repeat(256)]), TreeFault::NameTooLong(256));
    assert_eq!(fault(&[&format!("{}/x", "n".repeat(256))]), TreeFault::NameTooLong(256));
    assert_eq!(fault(&["a", "a/b"]), TreeFault::NotADirectory("a".into()));
    assert_eq!(fault(&["d/a", "d/a/b/c"]), TreeFault::NotADirectory("d/a".into()));
    assert_eq!(fault(&["a -> b", "b -> a", "a/x"]), TreeFault::SymlinkLoop);
    assert_eq!(fault(&["a -> "]), TreeFault::EmptyTarget);
    assert_eq!(fault(&["d/", "a = d"]), TreeFault::LinkToDirectory("d".into()));
    assert_eq!(fault(&["x", "a = x/.."]), TreeFault::LinkToDirectory("x/..".into()));
    assert_eq!(fault(&["a = b"]), TreeFault::NoLinkTarget("b".into()));
    assert_eq!(fault(&[".wh."]), TreeFault::WhiteoutName);
    assert_eq!(fault(&["a/.wh..."]), TreeFault::WhiteoutName);
    let error = build(&["x", "x/y"], Below::Base).unwrap_err();
    assert_eq!(error.to_string(), "the layer's entry \"x/y\" cannot be unpacked: \"x\" is not a directory");
}

#[test]
fn a_whiteout_hides_a_name_as_long_as_255_bytes() {
    let name = "n".repeat(255);
    assert_eq!(show(&above(&[&format!(".wh.{name}")], &[])), format!("{name}?"));
}

#[test]
fn hard_links_share_an_inode_and_their_header_applies_to_it() {
    let mut linked = entries(&["a", "l -> a", "d/b = a", "c = ./l"]);
    linked[0].xattrs = vec![(b"security.capability".to_vec(), [vec![0, 0, 0, 2], vec![0; 16]].concat())];
    linked[2].mode = 0o4711;
    linked[2].uid = 5;
    linked[2].mtime.secs = 12;
    let tree = Tree::build(&toc(&linked), Below::Base).unwrap().tree;
    assert_eq!(show(&tree), "a c>a d/ d/b l>a");
    assert_eq!(tree.inodes(), 4);
    let file = find(&tree, "a");
    assert_eq!((file.mode, file.uid, file.mtime.secs), (0o4711, 5, 12));
    assert!(file.xattrs.is_empty(), "chown takes capabilities away");
    assert_eq!(find(&tree, "l").mode, 0o777);
    // What a replaced name stood for lives on under its other name.
    assert_eq!(base(&["a", "b = a", "a"]).inodes(), 3);
}

#[test]
fn above_a_base_whiteouts_become_nodes_and_opaque_markers_attributes() {
    let built = build(&["a/", "a/.wh.x", "a/.wh..wh..opq", ".wh.b"], Below::Above(&[])).unwrap();
    assert_eq!(show(&built.tree), "!a/ a/x? b?");
    assert_eq!(built.dependence, Dependence { base_differs: true, consults_below: false });
    let node = find(&built.tree, "b");
    assert_eq!((node.mode, node.uid, node.gid), (0, 1, 1));
    assert_eq!(show(&above(&[".wh..wh..opq"], &[])), "!/");
    // As containerd: it takes this name for an ordinary whiteout.
    assert_eq!(show(&above(&[".wh..wh.aufs"], &[])), ".wh.aufs?");
}

#[test]
fn whiteouts_and_entries_of_one_name() {
    assert_eq!(show(&above(&[".wh.a", "a"], &[])), "a");
    assert_eq!(show(&above(&[".wh.a", "a/", "a/x"], &[])), "a/ a/x");
    // containerd fails from here on.
    assert_eq!(show(&above(&["a", ".wh.a"], &[])), "a");
    assert_eq!(show(&above(&["a/", "a/x", ".wh.a"], &[])), "!a/ a/x");
    assert_eq!(show(&above(&[".wh.a", ".wh.a"], &[])), "a?");
    let below = base(&["a/", "a/b/", "a/b/y"]);
    let built = build(&[".wh.a", "a/b/x"], Below::Above(&[&below])).unwrap();
    assert_eq!(show(&built.tree), "!a/ a/b/ a/b/x");
    assert_eq!(find(&built.tree, "a/b").uid, 0);
    assert!(!built.used_below && !built.dependence.consults_below);
    // A device 0:0 of the archive's own is a file like any other.
    assert_eq!(fault(&["a c", "a/x"]), TreeFault::NotADirectory("a".into()));
}

#[test]
fn in_a_base_whiteouts_remove_what_the_layer_has_made_so_far() {
    assert_eq!(show(&base(&["a", "b/", "b/x", ".wh.a", ".wh.b", ".wh.c"])), "");
    assert_eq!(show(&base(&[".wh.a", "a"])), "a");
    assert_eq!(show(&base(&["a", "b = a", ".wh.a"])), "b");
    // An opaque marker spares what was unpacked, and removes what is only implied with all it holds.
    assert_eq!(show(&base(&["a/", "a/x", "a/d/y", "a/.wh..wh..opq", "a/z"])), "a/ a/x a/z");
    assert_eq!(show(&base(&["a/d/y", "a/d/", ".wh..wh..opq"])), "");
    assert_eq!(show(&base(&["a/d/y", "a/", "a/d/", "a/e/z", ".wh..wh..opq"])), "a/ a/d/ a/d/y");
    assert_eq!(show(&base(&["a/d/e/y", "a/", "a/d/", ".wh..wh..opq"])), "a/ a/d/");
    // By path: what was unpacked once is spared even when it has become implied since.
    assert_eq!(show(&base(&["a/", ".wh.a", "a/x/y", ".wh..wh..opq"])), "a/");
    assert_eq!(show(&base(&["a/b/x", ".wh..wh..opq", "a/b/x", ".wh..wh..opq"])), "");
    assert_eq!(show(&base(&["l -> d", "l/x/y", "d/.wh..wh..opq"])), "d/ l>d");
    assert_eq!(show(&base(&["x", "d/y", ".wh..wh..opq/"])), "x");
    assert_eq!(show(&base(&["x", "d/y", ".wh..wh..opq/z/.."])), "x");
}

#[test]
fn implied_directories_take_after_the_nearest_layer_that_has_them() {
    let attrs = |lines: &[&str], uid| {
        let mut layer = entries(lines);
        for entry in &mut layer {
            (entry.uid, entry.mode) = (uid, 0o2750);
            entry.xattrs = vec![(b"user.x".to_vec(), b"1".to_vec()), (b"trusted.y".to_vec(), b"1".to_vec())];
        }
        Tree::build(&toc(&layer), Below::Above(&[])).unwrap().tree
    };
    let bottom = attrs(&["a/", "a/b/", "c/"], 10);
    let top = attrs(&["a/", "c -> d", "d/", "f"], 20);
    let built = build(&["a/b/x", "c/x", "f/x", "new/x"], Below::Above(&[&top, &bottom])).unwrap();
    let uid = |path| find(&built.tree, path).uid;
    assert_eq!((uid("a"), uid("a/b"), uid("c"), uid("f"), uid("new")), (20, 10, 20, 0, 0));
    let dir = find(&built.tree, "a/b");
    assert_eq!((dir.mode, dir.mtime.secs), (0o2750, 9));
    assert_eq!(dir.xattrs.keys().collect::<Vec<_>>(), [b"user.x"]);
    assert!(built.used_below && built.dependence.consults_below);
    // A file, or a whiteout, in between ends the search.
    let gone = attrs(&[".wh.a"], 30);
    assert_eq!(find(&above(&["a/b/x"], &[&gone, &top, &bottom]), "a/b").uid, 0);
    // Nothing found: the same tree as above nothing.
    let built = build(&["new/x"], Below::Above(&[&top, &bottom])).unwrap();
    assert!(!built.used_below && built.dependence.consults_below);
    assert_eq!(built.tree, above(&["new/x"], &[]));
}

#[test]
fn a_directory_implied_in_a_setgid_directory_has_its_group() {
    let mut layer = entries(&["a/", "a/b/x"]);
    (layer[0].mode, layer[0].gid) = (0o2775, 50);
    let tree = Tree::build(&toc(&layer), Below::Base).unwrap().tree;
    assert_eq!((find(&tree, "a/b").gid, find(&tree, "a/b").mode, find(&tree, "a/b/x").gid), (50, 0o755, 1));
}

#[test]
fn hard_links_lead_into_the_layers_below() {
    let bottom = base(&["bin/", "bin/a", "bin/w", "o/", "o/x", "lib -> bin", "l -> bin/a"]);
    let middle = above(&["bin/b = bin/a", "bin/.wh.w", "o/", "o/.wh..wh..opq"], &[&bottom]);
    let layers = [&middle, &bottom];
    let built = build(&["c = lib/a", "d = bin/b", "e = /bin/a", "s = l"], Below::Above(&layers)).unwrap();
    assert_eq!(show(&built.tree), "c d e s>bin/a");
    assert!(built.used_below && built.dependence.consults_below);
    assert_eq!(built.tree.inodes(), 4, "c and e are one inode");
    let source = |path| match &find(&built.tree, path).kind {
        NodeKind::File { extents, .. } => extents[0].source,
        other => panic!("{other:?}"),
    };
    assert_eq!((source("c"), source("d")), (Source::Below(2), Source::Below(2)));
    for hidden in ["x = bin/w", "x = o/x", "x = nowhere/a", "x = bin/a/b"] {
        let error = build(&[hidden], Below::Above(&layers)).unwrap_err();
        assert!(matches!(error.fault, TreeFault::NoLinkTarget(_)), "{hidden}");
    }
    // What the layer itself hides is not there.
    let error = build(&[".wh.bin", "x = bin/a"], Below::Above(&layers)).unwrap_err();
    assert_eq!(error.fault, TreeFault::NoLinkTarget("bin/a".into()));
    // Its own half of a merged directory does not hide the other.
    assert_eq!(show(&above(&["bin/z", "x = bin/a"], &layers)), "bin/ bin/z x");
}

#[test]
fn dependence_is_told_without_the_layers_below() {
    let of = |lines: &[&str]| {
        let found = Tree::dependence(&toc(&entries(lines))).unwrap();
        (found.base_differs, found.consults_below)
    };
    assert_eq!(of(&["a/", "a/x", "b"]), (false, false));
    assert_eq!(of(&["a/x"]), (false, true));
    assert_eq!(of(&["a/x", "a"]), (false, false));
    assert_eq!(of(&["a = b"]), (false, true));
    assert_eq!(of(&["a = b", "a/x", ".wh.c"]), (true, true), "b may be a link to a directory");
    assert!(Tree::dependence(&toc(&entries(&["a", "a/x"]))).is_err());
    assert_eq!(of(&[".wh.a"]), (true, false));
    assert_eq!(of(&["a/.wh..wh..opq"]), (true, true));
}

#[test]
fn times_are_bounded_and_those_of_directories_set_at_the_end_by_path() {
    let last = i64::MAX / 1_000_000_000;
    for (secs, nanos, kept) in [(-1, 5, false), (0, 0, true), (last, 854_775_807, true), (last, 854_775_808, false)] {
        let mut layer = entries(&["a", "d/"]);
        layer.iter_mut().for_each(|entry| entry.mtime = Time { secs, nanos });
        let tree = Tree::build(&toc(&layer), Below::Base).unwrap().tree;
        let expected = if kept { Time { secs, nanos } } else { Time::default() };
        assert_eq!((find(&tree, "a").mtime, find(&tree, "d").mtime), (expected, expected), "{secs}.{nanos}");
    }
    // A directory that a link has replaced hands its time to where the link leads.
    let mut layer = entries(&["a/", "b", "a -> b", "gone/", "gone -> nowhere"]);
    layer[0].mtime.secs = 77;
    assert_eq!(find(&Tree::build(&toc(&layer), Below::Base).unwrap().tree, "b").mtime.secs, 77);
}

#[test]
fn an_owner_of_all_ones_is_left_as_it_is() {
    let mut layer = entries(&["a/", "a/", "b"]);
    layer[1].uid = u32::MAX;
    layer[2].gid = u32::MAX;
    let tree = Tree::build(&toc(&layer), Below::Base).unwrap().tree;
    assert_eq!((find(&tree, "a").uid, find(&tree, "b").gid), (1, 0));
}

#[test]
fn attributes_that_linux_would_not_take_are_left_out_or_errors() {
    let tree = |line: &str, name: &str, value: &[u8]| {
        let mut layer = entries(&[line]);
        layer[0].xattrs = vec![(name.into(), value.to_vec())];
        Tree::build(&toc(&layer), Below::Above(&[])).map(|built| built.tree.nodes[1].xattrs.len())
    };
    for kept in ["user.a", "security.selinux", "user.overlay.opaque"] {
        assert_eq!(tree("f", kept, b"v").unwrap(), 1, "{kept}");
    }
    for left_out in ["trusted.overlay.opaque", "trusted.a", "com.apple.x", "system.nfs4_acl", "a"] {
        assert_eq!(tree("f", left_out, b"y").unwrap(), 0, "{left_out}");
    }
    assert_eq!(tree("l -> x", "user.a", b"v").unwrap(), 0);
    assert_eq!(tree("c c", "user.a", b"v").unwrap(), 0);
    assert_eq!(tree("d/", "user.a", b"").unwrap(), 1);
    let fault = |name: &str, value: &[u8]| match tree("f", name, value).unwrap_err().fault {
        TreeFault::Xattr { fault, .. } => fault,
        other => panic!("{other}"),
    };
    assert_eq!(fault("", b""), XattrFault::Name);
    assert_eq!(fault("user.", b""), XattrFault::Name);
    assert_eq!(fault(&format!("user.{}", "n".repeat(251)), b""), XattrFault::Name);
    assert_eq!(fault("user.a", &vec![0; 65536]), XattrFault::Size);
    assert_eq!(fault("security.capability", b"123"), XattrFault::Value);
    assert_eq!(tree("f", "security.capability", b"").unwrap(), 1);
    assert_eq!(tree("s -> f", "user.", b"").unwrap(), 0);
}

/// An access list of tags and permissions; users and groups are 7.
fn acl(tags: &[(u8, u8)]) -> Vec<u8> {
    let id = |tag: u8| if matches!(tag, 2 | 8) { [7, 0, 0, 0] } else { [255; 4] };
    let entries = tags.iter().flat_map(|(tag, perm)| [&[*tag, 0, *perm, 0][..], &id(*tag)].concat());
    [2, 0, 0, 0].into_iter().chain(entries).collect()
}

/// What becomes of an access list.
fn listed(line: &str, name: &str, list: &[u8]) -> Result<Option<Vec<u8>>, TreeFault> {
    let mut layer = entries(&[line]);
    layer[0].xattrs = vec![(name.as_bytes().to_vec(), list.to_vec())];
    let mut tree = Tree::build(&toc(&layer), Below::Base).map_err(|error| error.fault)?.tree;
    Ok(tree.nodes.pop().unwrap().xattrs.pop_first().map(|(_, value)| value))
}

/// As Linux 6.18 has it on ext4, seen there.
#[test]
fn access_lists_are_checked_as_the_kernel_does() {
    const ACCESS: &str = "system.posix_acl_access";
    const DEFAULT: &str = "system.posix_acl_default";
    let good = [&[(1, 6), (4, 4), (16, 4), (32, 4)][..], &[(1, 6), (2, 1), (2, 2), (4, 4), (8, 3), (16, 4), (32, 4)]];
    for list in good.map(acl) {
        assert_eq!(listed("f", ACCESS, &list), Ok(Some(list.clone())));
        assert_eq!(listed("s -> f", ACCESS, &list), Ok(None));
        assert!(listed("f", DEFAULT, &list).is_err(), "a file has none");
        let mut other = list.clone();
        other[0] = 1;
        assert_eq!(listed("f", ACCESS, &other), Ok(None), "another version");
    }
    // Only users and groups are looked at.
    let mut odd = acl(good[0]);
    odd[8..12].fill(3);
    assert_eq!(listed("d/", DEFAULT, &odd), Ok(Some(acl(good[0]))));
    for nothing in [&b""[..], &[2, 0, 0, 0]] {
        for line in ["f", "d/", "s -> f"] {
            assert_eq!(listed(line, DEFAULT, nothing), Ok(None), "{line}");
        }
    }
    let (mut nobody, cut) = (acl(good[1]), acl(good[1])[..50].to_vec());
    nobody[16..20].fill(255);
    let bad = [
        &[(32, 4), (1, 6), (4, 4)][..],
        &[(1, 6), (1, 6), (4, 4), (32, 4)],
        &[(1, 6), (4, 4)],
        &[(1, 6), (2, 6), (4, 4), (32, 4)],
        &[(1, 9), (4, 4), (32, 4)],
        &[(1, 6), (3, 6), (4, 4), (16, 4), (32, 4)],
    ];
    for list in bad.map(acl).into_iter().chain([nobody, cut, b"123".to_vec()]) {
        let fault = listed("d/", DEFAULT, &list).unwrap_err();
        assert_eq!(fault, TreeFault::Xattr { name: DEFAULT.into(), fault: XattrFault::Value }, "{list:?}");
    }
}

#[test]
fn a_default_access_list_is_passed_on() {
    let list = acl(&[(1, 7), (2, 6), (4, 5), (16, 7), (32, 1)]);
    let mut layer = entries(&["d/", "d/f", "d/e/", "d/made/f", "d/s -> f"]);
    layer[0].xattrs = vec![(b"system.posix_acl_default".to_vec(), list.clone())];
    let tree = Tree::build(&toc(&layer), Below::Base).unwrap().tree;
    let access = |path| find(&tree, path).xattrs.get(&b"system.posix_acl_access"[..]).cloned();
    let default = |path| find(&tree, path).xattrs.get(&b"system.posix_acl_default"[..]).cloned();
    assert_eq!((access("d"), default("d")), (None, Some(list.clone())));
    let file = acl(&[(1, 6), (2, 6), (4, 5), (16, 4), (32, 4)]);
    assert_eq!((access("d/f"), default("d/f")), (Some(file.clone()), None));
    let dir = acl(&[(1, 7), (2, 6), (4, 5), (16, 5), (32, 5)]);
    assert_eq!((access("d/e"), default("d/e")), (Some(dir.clone()), Some(list.clone())));
    assert_eq!((access("d/made"), default("d/made")), (Some(dir), Some(list)));
    assert_eq!(access("d/made/f"), Some(file));
    assert_eq!((access("d/s"), default("d/s")), (None, None));
}

#[test]
fn an_access_list_follows_the_mode_as_with_chmod() {
    let of = |list: Vec<u8>| {
        let mut layer = entries(&["f"]);
        layer[0].mode = 0o640;
        layer[0].xattrs = vec![(b"system.posix_acl_access".to_vec(), list)];
        let mut node = Tree::build(&toc(&layer), Below::Base).unwrap().tree.nodes.pop().unwrap();
        node.xattrs.pop_first().map(|(_, value)| value)
    };
    let list = |mask| {
        acl(&[(1, if mask == 7 { 7 } else { 6 }), (2, 5), (4, 7), (16, mask), (32, if mask == 7 { 7 } else { 0 })])
    };
    assert_eq!(of(list(7)), Some(list(4)));
    assert_eq!(of(acl(&[(1, 7), (4, 7), (32, 7)])), None);
}

/// Entries of few names, so that they meet.
fn lines() -> impl Strategy<Value = Vec<String>> {
    let name = prop::sample::select(vec!["a", "b", "c", ".", ".."]);
    let path = prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    let line = (path.clone(), path, 0..10).prop_map(|(path, other, kind)| match kind {
        0..3 => format!("{path}/"),
        3 => format!("{path} -> {other}"),
        4 => format!("{path} -> /{other}"),
        5 => format!("{path} = {other}"),
        6 => format!("{path}/.wh.{}", &other[..1]),
        7 => format!("{path}/.wh..wh..opq"),
        _ => path,
    });
    prop::collection::vec(line, 1..14)
}

/// The table of those lines that can be unpacked after those in front of them, and its tree.
fn build_some(lines: &[String], below: Below<'_>) -> (Toc, Built) {
    let mut kept = Vec::new();
    for line in lines {
        kept.push(entry(line));
        if Tree::build(&toc(&kept), below).is_err() {
            kept.pop();
        }
    }
    let kept = toc(&kept);
    let built = Tree::build(&kept, below).unwrap();
    (kept, built)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// What [`Dependence`] and [`Built::used_below`] promise to those who share a tree between places.
    #[test]
    fn trees_depend_on_their_place_only_as_told(bottom in lines(), middle in lines(), top in lines()) {
        let bottom = build_some(&bottom, Below::Base).1.tree;
        let middle = build_some(&middle, Below::Above(&[&bottom])).1.tree;
        let (toc, built) = build_some(&top, Below::Above(&[&middle, &bottom]));
        let told = Tree::dependence(&toc).unwrap();
        prop_assert_eq!(built.dependence, told);
        prop_assert!(told.consults_below || !built.used_below);
        let alone = Tree::build(&toc, Below::Above(&[]));
        if !built.used_below {
            prop_assert_eq!(&built.tree, &alone.as_ref().unwrap().tree);
        }
        if let (Ok(alone), Ok(base)) = (alone, Tree::build(&toc, Below::Base)) {
            prop_assert!(told.base_differs || alone.tree == base.tree);
            prop_assert_eq!(base.dependence.base_differs, told.base_differs);
        }
    }

    /// Every node is reached by exactly the names that lead to it, directories by one.
    #[test]
    fn trees_are_trees(bottom in lines(), top in lines()) {
        let bottom = build_some(&bottom, Below::Base).1.tree;
        let top = build_some(&top, Below::Above(&[&bottom])).1.tree;
        for tree in [&bottom, &top] {
            let mut names = vec![0; tree.nodes.len()];
            names[0] = 1;
            let mut stack: Vec<NodeId> = vec![ROOT];
            while let Some(id) = stack.pop() {
                let NodeKind::Dir(children) = &tree.node(id).kind else { continue };
                children.values().for_each(|child| names[child.0 as usize] += 1);
                stack.extend(children.values().rev());
            }
            for (node, names) in tree.nodes.iter().zip(names) {
                prop_assert!(names == 1 || names > 1 && !matches!(node.kind, NodeKind::Dir(_)));
            }
        }
    }
}
