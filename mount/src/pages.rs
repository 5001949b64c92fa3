//! Which bytes of data files somebody read through a mount.
//!
//! Nobody reads a layer's data but through the pages of its mount's files. So these tell, without anything having been in
//! the readers' way, what was read of a mount since it was made, with what the kernel read ahead. The tree is walked by the
//! metadata image; each file is opened, which reads no data. Where the kernel tells of each read
//! ([`Trace`](crate::Trace)), they come in order, and nothing is walked.

use std::{
    collections::HashSet,
    fs::File,
    io,
    ops::{ControlFlow, Range},
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
};
use silk_layer::erofs::read::{Inode, Kind, Place, ReadAt, ReadError, Reader, Window};
use silk_model::Digest;
use silk_sys::resident;

use crate::trace::Device;

/// Inodes of a directory's files lie side by side: some thirty are read at once.
const INODES: usize = 4096;

/// Ranges of one mount that are told. A start has some hundreds.
const MAX: usize = 1 << 16;

/// A mount whose pages are looked at. Keeps it alive, also after another took its place.
#[derive(Debug)]
pub struct Pages {
    root: File,
    image: Reader<Image>,
}

#[derive(Debug)]
struct Image(File);

impl ReadAt for Image {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

/// One look at all files.
struct Walk<'a> {
    pages: &'a Pages,
    /// Inodes with several names that were looked at.
    seen: HashSet<u64>,
    found: Vec<(Digest, Range<u64>)>,
}

impl Pages {
    pub(crate) fn open(mountpoint: &Path, meta: &Path) -> Result<Self, ReadError> {
        let meta = File::open(meta)?;
        let size = meta.metadata()?.len();
        Ok(Self { root: File::open(mountpoint)?, image: Reader::open(Image(meta), size)? })
    }

    /// The device number of the mount's file system.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn device(&self) -> io::Result<Device> {
        let device = self.root.metadata()?.dev();
        Ok((rustix::fs::major(device), rustix::fs::minor(device)))
    }

    /// The bytes of layers' tars that a range of a file holds, by its number in the metadata image.
    ///
    /// # Errors
    /// What reading the image says.
    pub fn behind(&self, nid: u64, bytes: Range<u64>) -> Result<Vec<(Digest, Range<u64>)>, ReadError> {
        let inode = self.image.inode(&mut Window::new(128), nid)?;
        if inode.kind != Kind::File {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        self.add(&inode, bytes.start..bytes.end.min(inode.size), &mut found)?;
        Ok(found)
    }

    fn add(&self, inode: &Inode, bytes: Range<u64>, found: &mut Vec<(Digest, Range<u64>)>) -> Result<(), ReadError> {
        if bytes.is_empty() {
            return Ok(());
        }
        for piece in self.image.map(&mut Window::new(128), inode, bytes.start, bytes.end - bytes.start)? {
            if let Place::Device(nr, at) = piece.place {
                found.extend(self.image.devices().get(nr).map(|layer| (*layer, at..at + piece.len)));
            }
        }
        Ok(())
    }

    /// The bytes of layers' tars that are in memory now, in no order of time. Takes some 10 µs a file; blocks for the disk that the
    /// metadata image is on.
    ///
    /// # Errors
    /// When the kernel cannot tell (before Linux 6.5), or what reading the image or opening a file says.
    pub fn now(&self) -> Result<Vec<(Digest, Range<u64>)>, ReadError> {
        let mut walk = Walk { pages: self, seen: HashSet::new(), found: Vec::new() };
        // Paths below the mount, as the kernel takes them: those beyond its limit cannot have been opened by them either.
        let mut dirs = vec![(Vec::new(), self.image.root())];
        let mut window = Window::new(INODES);
        while let Some((path, nid)) = dirs.pop() {
            let dir = self.image.inode(&mut window, nid)?;
            let mut entries = Vec::new();
            self.image.list(&dir, 0, &mut |entry| {
                if !matches!(entry.name, b"." | b"..") && matches!(entry.kind, Kind::Dir | Kind::File) {
                    let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    entries.push(([&path, separator, entry.name].concat(), entry.nid, entry.kind));
                }
                ControlFlow::Continue(())
            })?;
            for (path, nid, kind) in entries {
                match kind {
                    Kind::Dir => dirs.push((path, nid)),
                    _ => walk.file(&path, self.image.inode(&mut window, nid)?)?,
                }
            }
            if walk.found.len() >= MAX {
                break;
            }
        }
        Ok(walk.found)
    }
}

impl Walk<'_> {
    fn file(&mut self, path: &[u8], inode: Inode) -> Result<(), ReadError> {
        if inode.size == 0 || (inode.nlink > 1 && !self.seen.insert(inode.nid)) {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
        let file = match openat(&self.pages.root, path, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NAMETOOLONG) => return Ok(()),
            Err(error) => return Err(io::Error::from(error).into()),
        };
        let ranges = resident::ranges(file.as_fd(), inode.size, MAX - self.found.len().min(MAX))?;
        for range in ranges {
            self.pages.add(&inode, range, &mut self.found)?;
        }
        Ok(())
    }
}
