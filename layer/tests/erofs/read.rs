//! The reader: an image says what its tree says, and a damaged one gives errors.

use std::{collections::HashMap, io, ops::ControlFlow};

use proptest::prelude::*;
use silk_layer::{
    erofs::read::{Inode, Kind, Place, ReadAt, ReadError, Reader, Window},
    tree::{NodeId, NodeKind, Source},
};

use crate::{
    make::{Image, Make, SOURCES},
    menagerie::{crowd, menagerie},
    random,
};

struct Bytes<'b>(&'b [u8]);

impl ReadAt for Bytes<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.0.get(from..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn open(image: &Image) -> Reader<Bytes<'_>> {
    let reader = Reader::open(Bytes(&image.bytes), image.bytes.len() as u64).unwrap();
    assert_eq!(reader.devices().len(), image.sources.len());
    reader
}

/// Fails unless the image, read by its reader, is the tree.
fn compare(make: &Make, image: &Image) {
    let reader = open(image);
    let mut nids = HashMap::new();
    let mut open = vec![(NodeId(0), reader.root(), reader.root())];
    while let Some((id, nid, parent)) = open.pop() {
        if nids.insert(id, nid).is_some_and(|known| known == nid) {
            continue;
        }
        let inode = reader.inode(&mut Window::new(512), nid).unwrap();
        let node = &make.tree.nodes[id.0 as usize];
        let same = (node.mode, node.uid, node.gid, node.mtime) == (inode.mode, inode.uid, inode.gid, inode.mtime);
        assert!(same && inode.nid == nid, "{node:?} {inode:?}");
        assert_eq!(reader.xattrs(&inode).unwrap(), node.xattrs);
        assert_eq!(inode.has_xattrs(), !node.xattrs.is_empty());
        contents(make, image, (&reader, &inode), id);
        if let NodeKind::Dir(names) = &node.kind {
            let listed = listing(&reader, &inode, parent);
            assert!(names.keys().map(|name| &name[..]).eq(listed.iter().map(|(name, _, _)| &name[..])));
            for (name, nid, kind) in listed {
                assert_eq!(reader.find(&inode, &name).unwrap(), Some(nid));
                assert_eq!(reader.inode(&mut Window::new(64), nid).unwrap().kind, kind);
                open.push((names[&name[..]], nid, inode.nid));
                let other = [name.as_slice(), b"\x01"].concat();
                assert_eq!(reader.find(&inode, &other).unwrap().is_some(), names.contains_key(&other[..]));
            }
        }
    }
    assert_eq!(nids.len(), make.tree.nodes.len());
}

/// All entries but `.` and `..`, listed in two halves and at once.
fn listing(reader: &Reader<Bytes<'_>>, dir: &Inode, parent: u64) -> Vec<(Vec<u8>, u64, Kind)> {
    let mut all = Vec::new();
    let each = &mut |entry: silk_layer::erofs::read::Entry<'_>| {
        all.push((entry.name.to_vec(), entry.nid, entry.kind, entry.next));
        ControlFlow::Continue(())
    };
    reader.list(dir, 0, each).unwrap();
    assert!(all.iter().zip(&all[1..]).all(|(a, b)| a.0 < b.0 && a.3 < b.3));
    for (nr, step) in [(all.len() / 2, 1), (all.len() - 1, 0)] {
        let mut again = Vec::new();
        let each = &mut |entry: silk_layer::erofs::read::Entry<'_>| {
            again.push(entry.name.to_vec());
            if again.len() > 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        reader.list(dir, all[nr - step].3, each).unwrap();
        assert!(again.iter().eq(all[nr + 1 - step..].iter().take(4).map(|e| &e.0)));
    }
    let dots: Vec<_> =
        all.extract_if(.., |e| matches!(e.0.as_slice(), b"." | b"..")).map(|e| (e.0, e.1, e.2)).collect();
    assert_eq!(dots, [(b".".to_vec(), dir.nid, Kind::Dir), (b"..".to_vec(), parent, Kind::Dir)]);
    all.into_iter().map(|e| (e.0, e.1, e.2)).collect()
}

fn contents(make: &Make, image: &Image, (reader, inode): (&Reader<Bytes<'_>>, &Inode), id: NodeId) {
    match &make.tree.nodes[id.0 as usize].kind {
        NodeKind::Dir(_) => assert_eq!(inode.kind, Kind::Dir),
        NodeKind::Symlink(target) => assert_eq!(&reader.target(inode).unwrap(), target),
        NodeKind::Char(..) => assert_eq!(inode.kind, Kind::Char),
        NodeKind::Block(..) => assert_eq!(inode.kind, Kind::Block),
        NodeKind::Fifo => assert_eq!((inode.kind, inode.size), (Kind::Fifo, 0)),
        NodeKind::File { size, extents } => {
            assert_eq!((inode.kind, inode.size), (Kind::File, *size));
            let ends = extents.iter().map(|e| e.logical.saturating_sub(600)..e.logical + e.len + 600);
            for range in ends.chain([0..5000, 511..513, size.saturating_sub(7)..size + 9, size + 1..size + 2]) {
                let found = read(make, image, (reader, inode), range.start, range.end - range.start);
                let len = range.end - range.start;
                let expected =
                    make.contents(*size, extents, range.start.min(*size), len.min(size.saturating_sub(range.start)));
                assert!(found == expected, "{range:?} of {inode:?}");
            }
        }
    }
}

fn read(make: &Make, image: &Image, (reader, inode): (&Reader<Bytes<'_>>, &Inode), offset: u64, len: u64) -> Vec<u8> {
    let mut found = Vec::new();
    for piece in reader.map(&mut Window::new(64), inode, offset, len).unwrap() {
        let at = found.len();
        found.resize(at + piece.len as usize, 0);
        match piece.place {
            Place::Hole => {}
            Place::Image(from) => reader.copy(from, &mut found[at..]).unwrap(),
            Place::Device(device, from) => {
                let mut data = make.data(image.sources[device]);
                data.resize(data.len().next_multiple_of(512), 0);
                found[at..].copy_from_slice(&data[from as usize..][..piece.len as usize]);
            }
        }
    }
    found
}

#[test]
fn one_of_everything_is_read_as_it_was_written() {
    let make = menagerie();
    let image = Image::of(&make);
    compare(&make, &image);
    let mut lower = Make::new(8192);
    let file = lower.file(NodeId(0), b"below", 5000, &[(0, 1024, 5000)]);
    let NodeKind::File { extents, .. } = &mut lower.node(file).kind else { unreachable!() };
    extents[0].source = Source::Below(3);
    assert_eq!(SOURCES.len(), lower.devices().len());
    compare(&lower, &Image::of(&lower));
}

#[test]
fn a_huge_directory_is_read_as_it_was_written() {
    let make = crowd();
    compare(&make, &Image::of(&make));
}

#[test]
fn a_whole_file_is_one_piece() {
    let mut make = Make::new(1 << 20);
    make.file(NodeId(0), b"file", 700_001, &[(0, 1024, 700_001)]);
    let image = Image::of(&make);
    let reader = open(&image);
    let root = reader.inode(&mut Window::new(64), reader.root()).unwrap();
    let file = reader.find(&root, b"file").unwrap().unwrap();
    let file = reader.inode(&mut Window::new(64), file).unwrap();
    let pieces = reader.map(&mut Window::new(64), &file, 100_000, 1 << 20).unwrap();
    assert_eq!(pieces.len(), 1);
    assert_eq!((pieces[0].len, pieces[0].place), (600_001, Place::Device(0, 101_024)));
}

#[test]
fn another_file_is_no_image() {
    let image = Image::of(&Make::new(0));
    let open = |bytes: &[u8]| Reader::open(Bytes(bytes), bytes.len() as u64).map(|_| ()).unwrap_err();
    assert!(matches!(open(b""), ReadError::Head(_)));
    assert!(matches!(open(&[0; 4096]), ReadError::Head(_)));
    assert!(matches!(open(&image.bytes[..image.bytes.len() - 1]), ReadError::Head(_)));
}

/// Asks everything of everything that can be reached by names.
fn ask_all(reader: &Reader<Bytes<'_>>) {
    let mut open = vec![reader.root()];
    // Damage may make circles.
    for _ in 0..300 {
        let Some(nid) = open.pop() else { return };
        let Ok(inode) = reader.inode(&mut Window::new(512), nid) else { continue };
        let _ = (reader.xattrs(&inode), reader.target(&inode), reader.find(&inode, b"name"));
        for offset in [0, 1000, inode.size / 2, inode.size.saturating_sub(1), u64::MAX] {
            for piece in reader.map(&mut Window::new(512), &inode, offset, 1 << 20).unwrap_or_default() {
                assert!(piece.len > 0 && piece.len <= 1 << 20);
                if let Place::Image(at) = piece.place {
                    reader.copy(at, &mut vec![0; piece.len as usize]).unwrap();
                }
            }
        }
        let _ = reader.list(&inode, 0, &mut |entry| {
            open.push(entry.nid);
            ControlFlow::Continue(())
        });
        let _ = reader.list(&inode, nid, &mut |_| ControlFlow::Continue(()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_are_read_as_they_were_written(entries in random::entries()) {
        let make = random::build(entries);
        compare(&make, &Image::of(&make));
    }

    #[test]
    fn damage_gives_errors(
        entries in random::entries(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
    ) {
        let make = random::build(entries);
        let mut image = Image::of(&make);
        for (at, byte) in damage {
            // The head has a checksum; what is behind it has none until the whole image is checked.
            let behind = 1536 + 128 * image.sources.len();
            let at = behind + at.index(image.bytes.len() - behind);
            image.bytes[at] = byte;
        }
        if let Ok(reader) = Reader::open(Bytes(&image.bytes), image.bytes.len() as u64) {
            ask_all(&reader);
        }
    }
}
