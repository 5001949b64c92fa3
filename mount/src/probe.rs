//! Tries what this kernel can do, by doing it: a tiny layer is mounted and its files read.
//!
//! The layer's two files stay between starts: silkd must start on a disk that is full.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use silk_layer::{
    erofs::{Device, Plan},
    toc::Time,
    tree::{Node, NodeId, NodeKind, Source, SourceExtent, Tree},
};
use silk_model::Digest;

use crate::{MountError, Rung, RungChoice, kernel};

/// Below `<root>/mnt`: no name of a view has a dot.
pub(crate) const DIR: &str = ".probe";

/// The first way that works, with why the ones before it (or all) do not.
pub(crate) fn probe(mnt: &Path, choice: RungChoice, trees: bool) -> Result<(Rung, String), MountError> {
    let dir = mnt.join(DIR);
    clear(mnt)?;
    let (image, data) = provide(&dir).map_err(|e| MountError::io("write a probe in", &dir, e))?;
    let rungs: &[Rung] = match choice {
        RungChoice::Auto => &[Rung::File, Rung::Loop],
        RungChoice::File => &[Rung::File],
        RungChoice::Loop => &[Rung::Loop],
        RungChoice::Tree => &[],
    };
    let mut reasons = Vec::new();
    let mut found = Rung::None;
    for rung in rungs {
        match attempt(*rung, &dir, (&image, &data)) {
            Ok(()) => {
                found = *rung;
                break;
            }
            Err(e) => reasons.push(format!("{rung}: {}{}", e.source, e.log)),
        }
    }
    clear(mnt)?;
    if found == Rung::None && trees && matches!(choice, RungChoice::Auto | RungChoice::Tree) {
        found = Rung::Tree;
    }
    Ok((found, reasons.join("; ")))
}

/// Unmounts what a probe, this one or one that was killed, left.
fn clear(mnt: &Path) -> Result<(), MountError> {
    let target = mnt.join(DIR).join("mnt");
    kernel::unmount_all(&target).map_err(|e| MountError::io("unmount", &target, e))
}

const PAGE: usize = 4096;

/// Two blocks, of which the probe's first file is the second.
fn data() -> Vec<u8> {
    (0..1024u32).map(|n| (n * 7 % 251) as u8).collect()
}

/// The image and its data file, written unless they are there.
fn provide(dir: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let node = |kind, mode| Node { kind, mode, uid: 0, gid: 0, mtime: Time::default(), xattrs: BTreeMap::new() };
    let file = |offset, size| {
        let extent = SourceExtent { source: Source::Own, logical: 0, offset, len: size };
        node(NodeKind::File { size, extents: [extent].into() }, 0o644)
    };
    let root = NodeKind::Dir([(b"cut"[..].into(), NodeId(2)), (b"file"[..].into(), NodeId(1))].into());
    // The kernel reads both pages of the second one at once; the data file ends behind the first.
    let tree = Tree { nodes: vec![node(root, 0o755), file(512, 512), file(0, 2 * PAGE as u64)] };
    let device = Device { source: Source::Own, size: 2 * PAGE as u64, layer: Digest::of(b"probe") };
    let plan = Plan::new(&tree, &[device], [0; 16]).map_err(io::Error::other)?;
    let mut image = Vec::new();
    plan.write(&mut image, &mut |_, _, _| Err(io::ErrorKind::Unsupported.into()))?;
    let mut bytes = data();
    bytes.resize(PAGE, 0);
    fs::create_dir_all(dir.join("mnt"))?;
    let paths = (dir.join("erofs"), dir.join("data"));
    put(&paths.0, &image)?;
    put(&paths.1, &bytes)?;
    Ok(paths)
}

fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|there| there == bytes) { Ok(()) } else { fs::write(path, bytes) }
}

fn attempt(rung: Rung, dir: &Path, (image, device): (&Path, &PathBuf)) -> Result<(), kernel::Refused> {
    let target = dir.join("mnt");
    kernel::mount_erofs(rung, image, std::slice::from_ref(device), &target)?;
    let read = fs::read(target.join("file"));
    let shows_zeros = rung == Rung::File && fs::read(target.join("cut")).is_ok();
    kernel::unmount_all(&target)?;
    if read? != data()[512..] {
        return Err(io::Error::other("the probe's file reads wrong").into());
    }
    // Without Linux's eade54040384 (7.0, and stable kernels of April 2026: 6.12, 6.18) EROFS takes a part of a read of a file below it for all,
    // and what did not come for zeros: whoever reads next gets them, after a container was killed while it read, or after a read that failed.
    if shows_zeros {
        return Err(io::Error::other("this kernel shows zeros where a read was cut short").into());
    }
    Ok(())
}
