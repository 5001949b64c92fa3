//! How fast what is served is, against EROFS and against an extracted tree:
//!
//! ```sh
//! cargo run -p silk-fuse --example measure -- /some/empty/directory [files] [MiB of the large file]
//! ```
//!
//! As root, on the disk that the directory is on. Each way is an overlay over one lower directory, mounted anew for each
//! round; the data is in the page cache of the disk's file system before it starts. Prints milliseconds and MB/s.

#![allow(clippy::unwrap_used, reason = "a program for people who look on")]

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use silk_fuse::{Config, Object, Reply, Session, Slot, Source as Objects, TreeFiles};
use silk_layer::{
    erofs::{Device, Plan},
    toc::Time,
    tree::{Node, NodeId, NodeKind, Source, SourceExtent, Tree},
};
use silk_model::Digest;

const ROUNDS: usize = 3;

/// Slot 1 is the data file, slot 2 the tree over it.
#[derive(Debug)]
struct Layer {
    data: File,
    size: u64,
    tree: Arc<TreeFiles>,
}

impl Objects for Layer {
    fn find(&self, name: &str) -> Option<Slot> {
        match name {
            "data" => Some(Slot(1)),
            "tree" => Some(Slot(2)),
            _ => None,
        }
    }

    fn object(&self, slot: Slot) -> Option<Object> {
        match slot.0 {
            1 => Some(Object::Data { size: self.size }),
            2 => Some(Object::Tree(self.tree.clone())),
            _ => None,
        }
    }

    fn read(&self, _: Slot, offset: u64, len: u32, reply: Reply) {
        let mut buffer = vec![0; len as usize];
        match self.data.read_exact_at(&mut buffer, offset) {
            Ok(()) => reply.data(&buffer),
            Err(_) => reply.error(rustix::io::Errno::IO),
        }
    }
}

/// Writes the same tree as an extracted one, as a data file, and as an image. Files of 1 to 8 KiB, 100 a directory, and a
/// large one.
fn make(dir: &Path, files: u64, large: u64) {
    let node = |kind, mode| Node { kind, mode, uid: 0, gid: 0, mtime: Time::default(), xattrs: BTreeMap::new() };
    let file = |offset, len| {
        let extent = SourceExtent { source: Source::Own, logical: 0, offset, len };
        node(NodeKind::File { size: len, extents: [extent].into() }, 0o644)
    };
    let mut nodes = vec![node(NodeKind::Dir(BTreeMap::new()), 0o755)];
    let mut data = io::BufWriter::with_capacity(1 << 20, File::create(dir.join("data")).unwrap());
    let (mut at, mut state) = (0u64, 1u64);
    let mut put = |nodes: &mut Vec<Node>, parent: usize, name: String, len: u64, path: &Path| {
        let bytes: Vec<u8> = (0..len.div_ceil(8))
            .flat_map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state.to_be_bytes()
            })
            .take(len as usize)
            .collect();
        fs::write(path.join(&name), &bytes).unwrap();
        data.write_all(&bytes).unwrap();
        data.write_all(&vec![0; (len.next_multiple_of(512) - len + 512) as usize]).unwrap();
        nodes.push(file(at, len));
        at += len.next_multiple_of(512) + 512;
        let id = NodeId(nodes.len() as u32 - 1);
        let NodeKind::Dir(names) = &mut nodes[parent].kind else { unreachable!() };
        names.insert(name.into_bytes().into(), id);
    };
    let extracted = dir.join("extracted");
    fs::create_dir(&extracted).unwrap();
    put(&mut nodes, 0, "large".into(), large, &extracted);
    for nr in 0..files.div_ceil(100) {
        let name = format!("directory-{nr:03}");
        fs::create_dir(extracted.join(&name)).unwrap();
        nodes.push(node(NodeKind::Dir(BTreeMap::new()), 0o755));
        let at = nodes.len() - 1;
        let NodeKind::Dir(names) = &mut nodes[0].kind else { unreachable!() };
        names.insert(name.clone().into_bytes().into(), NodeId(at as u32));
        for file in 0..100 {
            let len = 1024 + (nr * 100 + file) * 7919 % 7168;
            put(&mut nodes, at, format!("some-file-{file:02}"), len, &extracted.join(&name));
        }
    }
    data.flush().unwrap();
    let device = Device { source: Source::Own, size: at, layer: Digest::of(b"layer") };
    let tree = Tree { nodes };
    let plan = Plan::new(&tree, &[device], [1; 16]).unwrap();
    plan.write(&mut File::create(dir.join("erofs")).unwrap(), &mut |_, _, _| unreachable!()).unwrap();
}

fn serve(dir: &Path) -> Session {
    let data = File::open(dir.join("data")).unwrap();
    let tree = Arc::new(TreeFiles::open(File::open(dir.join("erofs")).unwrap(), vec![Slot(1)]).unwrap());
    let size = data.metadata().unwrap().len();
    let config = Config { xattrs: tree.has_xattrs(), ..Config::default() };
    Session::mount(&dir.join("fuse"), Arc::new(Layer { data, size, tree }), config).unwrap()
}

fn mount_at(source: &Path, target: &Path, fs_type: &str, options: &str) {
    fs::create_dir_all(target).unwrap();
    mount(source, target, fs_type, MountFlags::empty(), CString::new(options).unwrap().as_c_str()).unwrap();
}

/// All files below a directory with their lengths, after lstat(2) of each.
fn walk(dir: &Path, files: &mut Vec<(PathBuf, u64)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        match meta.is_dir() {
            true => walk(&entry.path(), files),
            false => files.push((entry.path(), meta.len())),
        }
    }
}

fn read(path: &Path, buffer: &mut [u8]) -> u64 {
    let mut file = File::open(path).unwrap();
    let mut sum = 0;
    loop {
        match file.read(buffer).unwrap() {
            0 => return sum,
            some => sum += some as u64,
        }
    }
}

/// Walks twice, reads small files twice, reads the large file twice, and at random places of it: the first four in
/// milliseconds, then MB/s, then thousands a second.
fn measure(merged: &Path) -> Vec<f64> {
    let timed = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    let mut files = Vec::new();
    let mut times = vec![timed(&mut || walk(merged, &mut files)) * 1e3];
    times.push(timed(&mut || walk(merged, &mut Vec::new())) * 1e3);
    let mut buffer = vec![0; 128 << 10];
    for _ in 0..2 {
        let small = files.iter().filter(|(_, len)| *len < 10_000);
        times.push(timed(&mut || small.clone().for_each(|(path, _)| _ = read(path, &mut buffer))) * 1e3);
    }
    let large = merged.join("large");
    for _ in 0..2 {
        let mut sum = 0;
        let time = timed(&mut || sum = read(&large, &mut buffer));
        times.push(sum as f64 / time / 1e6);
    }
    times
}

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let dir = PathBuf::from(&args[1]).canonicalize().unwrap();
    let number = |nr: usize, default| args.get(nr).map_or(default, |text| text.parse().unwrap());
    if !dir.join("erofs").exists() {
        make(&dir, number(2, 20_000), number(3, 512) << 20);
    }
    // Into the page cache.
    read(&dir.join("data"), &mut vec![0; 1 << 20]);
    println!("{:30} walk 1  walk 2  open+read 1   2    large 1    2", "");
    let at = |name: &str| dir.join(name);
    for way in ["extracted", "erofs", "erofs over fuse", "fuse tree"] {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let mut session = None;
            let lower = match way {
                "extracted" => {
                    let mut files = Vec::new();
                    walk(&at("extracted"), &mut files);
                    files.iter().for_each(|(path, _)| _ = read(path, &mut vec![0; 1 << 20]));
                    at("extracted")
                }
                "fuse tree" => {
                    session = Some(serve(&dir));
                    at("fuse/tree")
                }
                _ => {
                    let data = if way == "erofs" {
                        at("data")
                    } else {
                        session = Some(serve(&dir));
                        at("fuse/data")
                    };
                    mount_at(&at("erofs"), &at("mnt"), "erofs", &format!("device={}", data.display()));
                    at("mnt")
                }
            };
            let _ = fs::remove_dir_all(at("upper"));
            let _ = fs::remove_dir_all(at("work"));
            fs::create_dir_all(at("upper")).unwrap();
            fs::create_dir_all(at("work")).unwrap();
            let path = |name: &str| at(name).display().to_string();
            let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), path("upper"), path("work"));
            mount_at(Path::new("overlay"), &at("merged"), "overlay", &options);
            rounds.push(measure(&at("merged")));
            unmount(at("merged"), UnmountFlags::empty()).unwrap();
            if lower == at("mnt") {
                unmount(at("mnt"), UnmountFlags::empty()).unwrap();
            }
            drop(session);
        }
        let median = |nr: usize| {
            let mut values: Vec<_> = rounds.iter().map(|round| round[nr]).collect();
            values.sort_by(f64::total_cmp);
            values[ROUNDS / 2]
        };
        let line: Vec<_> = (0..6).map(|nr| format!("{:8.0}", median(nr))).collect();
        println!("{way:28}{}", line.join(""));
    }
}
