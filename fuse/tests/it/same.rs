//! Two directory trees that must show the same.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fs::{self, File, Metadata},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, MetadataExt as _},
    },
    path::Path,
};

use rustix::fs::{lgetxattr, llistxattr};

/// Fails unless `b` shows what `a` shows: all that stat(2) says but device and inode numbers and the size for reading,
/// names in their order and their types, targets, attributes, bytes, and which names are of one inode.
pub fn same(a: &Path, b: &Path) {
    let mut inodes = HashMap::new();
    compare(a, b, &mut inodes);
    let distinct: std::collections::HashSet<_> = inodes.values().collect();
    assert_eq!(distinct.len(), inodes.len());
}

fn facts(m: &Metadata) -> impl PartialEq + std::fmt::Debug {
    let times = [(m.atime(), m.atime_nsec()), (m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec())];
    (m.mode(), m.nlink(), m.uid(), m.gid(), m.rdev(), m.size(), m.blocks(), times)
}

fn compare(a: &Path, b: &Path, inodes: &mut HashMap<u64, u64>) {
    let (x, y) = match (fs::symlink_metadata(a), fs::symlink_metadata(b)) {
        // An overlay lists whiteouts of directories that it does not merge.
        (Err(x), Err(y)) if x.raw_os_error() == y.raw_os_error() => return,
        (x, y) => (x.unwrap(), y.unwrap()),
    };
    assert_eq!(facts(&x), facts(&y), "{b:?}");
    assert_eq!(*inodes.entry(x.ino()).or_insert(y.ino()), y.ino(), "{b:?}");
    assert_eq!(xattrs(a), xattrs(b), "{b:?}");
    if x.is_dir() {
        let list = |path: &Path| {
            let entries = fs::read_dir(path).unwrap().map(|e| e.unwrap());
            entries.map(|e| (e.file_name(), e.file_type().unwrap())).collect::<Vec<_>>()
        };
        let names = list(b);
        assert_eq!(list(a), names, "{b:?}");
        for (name, _) in names {
            compare(&a.join(&name), &b.join(&name), inodes);
        }
    } else if x.is_symlink() {
        assert_eq!(fs::read_link(a).unwrap(), fs::read_link(b).unwrap());
    } else if x.is_file() {
        bytes(a, b, x.len());
    }
}

/// Of huge sparse files, some.
fn bytes(a: &Path, b: &Path, len: u64) {
    let (a, b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let pieces = if len <= 2 << 20 { vec![0] } else { (0..64).map(|nr| len / 64 * nr).chain([len - 4097]).collect() };
    for from in pieces {
        let room = (len as usize + 1).min(2 << 20);
        let mut buffers = [vec![0xAA; room], vec![0x55; room]];
        let mut read = |file: &File, nr: usize| {
            let mut at = 0;
            loop {
                match file.read_at(&mut buffers[nr][at..], from + at as u64).unwrap() {
                    0 => break at,
                    some => at += some,
                }
            }
        };
        let lens = (read(&a, 0), read(&b, 1));
        assert_eq!(lens.0, lens.1);
        assert!(buffers[0][..lens.0] == buffers[1][..lens.1]);
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Result<Vec<u8>, i32>> {
    let mut list = vec![0; 1 << 17];
    let len = llistxattr(path, &mut list).unwrap();
    let names = list[..len].split(|b| *b == 0).filter(|n| !n.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 1 << 16];
        let len = lgetxattr(path, OsStr::from_bytes(name), &mut value).map_err(|e| e.raw_os_error())?;
        Ok(value[..len].to_vec())
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}
