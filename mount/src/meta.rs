//! A view's metadata image on disk: the EROFS image, then a trailer with its checksum.
//!
//! An image is made under another name and renamed when it is complete, but never synced: a sync would push the whole
//! layer's bytes to the disk before the first container may start. Instead every image that was not just made is read
//! and summed before it is mounted; one that a crash of the host has torn is made again. The reading is no loss: it
//! brings the image into the page cache in large pieces, where the kernel would fetch it in single pages.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read as _, Write},
    path::{Path, PathBuf},
};

use silk_layer::erofs::{MAX_HEAD, Plan, inspect};
use silk_layer::tree::Source;
use silk_model::Digest;

use crate::{View, ViewError};

/// What the trailer starts with; the crc32c of all before the trailer follows, little-endian.
const MARK: &[u8; 12] = b"silk erofs 1";
/// Bytes of the trailer.
const TRAILER: u64 = 16;
/// Images are read in pieces of this size; at least [`MAX_HEAD`], so that the head is in the first.
const PIECE: usize = 1 << 20;
const _: () = assert!(PIECE >= MAX_HEAD);

/// Checks an image that may be there. `None` when it is not, is damaged, or is none of this view: it must be made.
/// Otherwise the layers whose data files it wants, in their order.
pub(crate) fn open(path: &Path, view: &View) -> Result<Option<Vec<Digest>>, ViewError> {
    match sum(path, view) {
        Ok(devices) => Ok(devices),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ViewError::io("read", path, e)),
    }
}

/// The layers that an image of some view wants, by its head alone; `None` if it has none that can be read.
pub(crate) fn wanted(path: &Path) -> Option<Vec<Digest>> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(MAX_HEAD as u64).read_to_end(&mut head).ok()?;
    Some(inspect(&head).ok()?.devices)
}

fn sum(path: &Path, view: &View) -> io::Result<Option<Vec<Digest>>> {
    let mut file = File::open(path)?;
    let Some(size) = file.metadata()?.len().checked_sub(TRAILER) else { return Ok(None) };
    let mut piece = vec![0; PIECE.min(size as usize)];
    let (mut left, mut crc, mut head) = (size, 0, None);
    while left > 0 {
        let piece = &mut piece[..(PIECE as u64).min(left) as usize];
        file.read_exact(piece)?;
        head = head.or_else(|| Some(inspect(piece)));
        crc = crc32c::crc32c_append(crc, piece);
        left -= piece.len() as u64;
    }
    let mut trailer = [0; TRAILER as usize];
    file.read_exact(&mut trailer)?;
    let whole = trailer == trailer_of(crc);
    Ok(head.and_then(Result::ok).filter(|h| whole && h.size == size && h.uuid == view.uuid()).map(|h| h.devices))
}

fn trailer_of(crc: u32) -> [u8; TRAILER as usize] {
    let mut trailer = [0; TRAILER as usize];
    trailer[..MARK.len()].copy_from_slice(MARK);
    trailer[MARK.len()..].copy_from_slice(&crc.to_le_bytes());
    trailer
}

/// Writes the image of `plan` to `path`. `data` tells a source's data file.
pub(crate) fn write(path: &Path, plan: &Plan<'_>, data: &dyn Fn(Source) -> PathBuf) -> Result<(), ViewError> {
    let mut unfinished = path.as_os_str().to_owned();
    // No image's name: whoever looks for images does not see it. The next try writes over one that was left.
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    let written = write_to(&unfinished, plan, data).and_then(|()| fs::rename(&unfinished, path));
    written.map_err(|e| {
        // Disk space for the rest; a second failure would say nothing new.
        let _ = fs::remove_file(&unfinished);
        ViewError::io("write", path, e)
    })
}

fn write_to(path: &Path, plan: &Plan<'_>, data: &dyn Fn(Source) -> PathBuf) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let mut out = Summed { out: BufWriter::with_capacity(PIECE, File::create(path)?), crc: 0 };
    let mut open: Option<(Source, File)> = None;
    plan.write(&mut out, &mut |source, offset, bytes| {
        let file = match &open {
            Some((have, file)) if *have == source => file,
            _ => &open.insert((source, File::open(data(source))?)).1,
        };
        file.read_exact_at(bytes, offset)
    })?;
    let trailer = trailer_of(out.crc);
    out.out.write_all(&trailer)?;
    out.out.flush()
}

/// Sums what it writes.
struct Summed<W> {
    out: W,
    crc: u32,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.out.write(bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, &bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use silk_layer::{
        toc::Time,
        tree::{Node, NodeKind, Tree},
    };

    use super::*;
    use crate::Variant;

    #[test]
    fn a_torn_or_foreign_image_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("erofs");
        let view = View { diff_id: Digest::of(b"layer"), variant: Variant::Shared };
        let kind = NodeKind::Dir(BTreeMap::new());
        let root = Node { kind, mode: 0o755, uid: 0, gid: 0, mtime: Time::default(), xattrs: BTreeMap::new() };
        let tree = Tree { nodes: vec![root] };
        assert!(open(&path, &view).unwrap().is_none(), "not there");
        write(&path, &Plan::new(&tree, &[], view.uuid()).unwrap(), &|_| unreachable!()).unwrap();
        assert_eq!(open(&path, &view).unwrap(), Some(vec![]));
        assert_eq!(open(&path, &View { variant: Variant::Base, ..view }).unwrap(), None, "of another view");
        let good = fs::read(&path).unwrap();
        for at in [0, 1024, 2000, good.len() - 17, good.len() - 16, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, bad).unwrap();
            assert_eq!(open(&path, &view).unwrap(), None, "{at}");
        }
        for len in [0, 15, 16, 1000, 4096, good.len() - 1] {
            fs::write(&path, &good[..len]).unwrap();
            assert_eq!(open(&path, &view).unwrap(), None, "{len}");
        }
    }
}
