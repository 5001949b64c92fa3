//! Directories: a name by halving, as the kernel looks it up, and listings that go on where they stopped.

use std::{cmp::Ordering, ops::ControlFlow};

use super::{
    super::{dirs::ENTRY, disk::BLOCK},
    Inode, Kind, Layout, ReadAt, ReadError, Reader, Window, damaged, u16_at, u64_at,
};

/// Read at once when a name is looked up: the whole of an ordinary directory, and the last steps in a large one.
const SEARCH: usize = 4096;
/// Read at once when a directory is listed: some 500 names of it.
const LIST: usize = 16 << 10;
const BLOCK_LEN: usize = BLOCK as usize;

/// An entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'b> {
    /// Its name; `.` and `..` are among them.
    pub name: &'b [u8],
    /// The inode's number.
    pub nid: u64,
    /// What the inode is.
    pub kind: Kind,
    /// Where a listing goes on behind it. Never 0, and growing.
    pub next: u64,
}

/// Offset of a directory's blocks in the image, and how many they are.
fn blocks(dir: &Inode) -> Result<(u64, u64), ReadError> {
    match (dir.kind, dir.layout) {
        (Kind::Dir, Layout::At(at)) if dir.size.is_multiple_of(BLOCK) => Ok((at, dir.size / BLOCK)),
        _ => damaged("a directory", dir.at()),
    }
}

/// A block with entries.
struct Entries<'b> {
    bytes: &'b [u8],
    count: usize,
    at: u64,
}

impl<'b> Entries<'b> {
    fn of(bytes: &'b [u8], at: u64) -> Result<Self, ReadError> {
        // The first name starts where the entries end.
        let names = usize::from(u16_at(bytes, 8));
        if names == 0 || !names.is_multiple_of(ENTRY) || names >= bytes.len() {
            return damaged("a directory's block", at);
        }
        Ok(Self { bytes, count: names / ENTRY, at })
    }

    fn name(&self, nr: usize) -> Result<&'b [u8], ReadError> {
        let from = usize::from(u16_at(self.bytes, nr * ENTRY + 8));
        let to = if nr + 1 < self.count { usize::from(u16_at(self.bytes, (nr + 1) * ENTRY + 8)) } else { BLOCK_LEN };
        let Some(name) = self.bytes.get(from..to) else { return damaged("a name", self.at) };
        // Zeros fill the block behind its last name.
        let name = name.split(|b| *b == 0).next().unwrap_or_default();
        if name.is_empty() || name.contains(&b'/') { damaged("a name", self.at) } else { Ok(name) }
    }

    fn nid(&self, nr: usize) -> u64 {
        u64_at(self.bytes, nr * ENTRY)
    }

    fn kind(&self, nr: usize) -> Result<Kind, ReadError> {
        Ok(match self.bytes[nr * ENTRY + 10] {
            1 => Kind::File,
            2 => Kind::Dir,
            3 => Kind::Char,
            4 => Kind::Block,
            5 => Kind::Fifo,
            7 => Kind::Symlink,
            _ => return damaged("an entry's type", self.at),
        })
    }
}

/// See [`Reader::find`].
pub(super) fn find<R: ReadAt>(image: &Reader<R>, dir: &Inode, name: &[u8]) -> Result<Option<u64>, ReadError> {
    let (at, blocks) = blocks(dir)?;
    let mut window = Window::new(SEARCH);
    // The last block whose first name is not behind the wanted one.
    let (mut low, mut high) = (0, blocks);
    while low < high {
        let middle = low + (high - low) / 2;
        let block = at.saturating_add(middle * BLOCK);
        let entries = Entries::of(image.bytes(&mut window, block, BLOCK_LEN)?, block)?;
        match entries.name(0)?.cmp(name) {
            Ordering::Equal => return Ok(Some(entries.nid(0))),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    let Some(last) = low.checked_sub(1) else { return Ok(None) };
    let block = at.saturating_add(last * BLOCK);
    let entries = Entries::of(image.bytes(&mut window, block, BLOCK_LEN)?, block)?;
    let (mut low, mut high) = (1, entries.count);
    while low < high {
        let middle = low + (high - low) / 2;
        match entries.name(middle)?.cmp(name) {
            Ordering::Equal => return Ok(Some(entries.nid(middle))),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    Ok(None)
}

/// See [`Reader::list`]. A place is an entry's offset in the directory.
pub(super) fn list<R: ReadAt>(
    image: &Reader<R>,
    dir: &Inode,
    from: u64,
    each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    let (at, blocks) = blocks(dir)?;
    let mut window = Window::new(LIST);
    let mut first = (from % BLOCK) as usize / ENTRY;
    for nr in from / BLOCK..blocks {
        let block = at.saturating_add(nr * BLOCK);
        let entries = Entries::of(image.bytes(&mut window, block, BLOCK_LEN)?, block)?;
        for entry in first..entries.count {
            let last = entry + 1 == entries.count;
            let next = if last { (nr + 1) * BLOCK } else { nr * BLOCK + ((entry + 1) * ENTRY) as u64 };
            let (name, nid, kind) = (entries.name(entry)?, entries.nid(entry), entries.kind(entry)?);
            if each(Entry { name, nid, kind, next }).is_break() {
                return Ok(());
            }
        }
        first = 0;
    }
    Ok(())
}
