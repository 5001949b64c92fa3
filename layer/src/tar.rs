//! Reads a tar as it streams by and notes what is in it and where: bytes in, a [`Toc`] out.
//!
//! Called by the decoder's thread for every chunk of a layer, so file bodies are skipped without being looked at and
//! nothing here blocks. The meaning of an archive is that of Go's `archive/tar` reader, because containerd unpacks with
//! it: what it accepts we accept with the same meaning, what it refuses we refuse. In particular:
//!
//! - v7, ustar, star, old GNU and PAX headers; checksums of unsigned and of signed bytes;
//! - the archive ends with two blocks of zeros, with one at the very end, or without any at a block's border; the padding
//!   of the last member may be missing; what follows the end is counted in [`Toc::size`] and not looked at;
//! - type NUL with a trailing slash is a directory (v7);
//! - global PAX headers must be well formed but are **not applied**: neither Go nor containerd does;
//! - unknown type flags are an error, as containerd has it.
//!
//! Wider than containerd in one point: sparse files of the old GNU format (type `S`) are accepted; containerd refuses
//! that type although Go reads it.

mod error;
mod header;
mod limits;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

pub use error::{LimitKind, PaxFault, SparseFault, TarError};
pub use limits::Limits;

use smallvec::SmallVec;

use crate::toc::{Entry, Extent, Kind, Time, Toc};
pub(crate) use error::shown;
use header::{BLOCK, Format, Header};
use pax::Pax;
use sparse::{Map1x0, MapOldGnu, Segment};

/// A push parser: feed it the uncompressed layer in chunks of any size, then [`Scanner::finish`].
///
/// The result does not depend on how the bytes were cut into chunks. After an error every further call answers the
/// same error.
#[derive(Debug)]
pub struct Scanner {
    limits: Limits,
    toc: Toc,
    /// Bytes of memory of all entries as they are handed out.
    memory: u64,
    /// Bytes seen so far.
    pos: u64,
    block: [u8; BLOCK],
    /// How much of `block` is filled.
    filled: usize,
    state: State,
    pending: Pending,
    failed: Option<TarError>,
}

/// What the next bytes are.
#[derive(Debug)]
enum State {
    /// A header, or the first block of the end marker.
    Header,
    /// The second block of the end marker.
    SecondZero,
    /// A member's body and padding, of no interest.
    Skip { body: u64, pad: u64 },
    /// The body of a PAX header or of a GNU long name, collected.
    Special(Special),
    /// Blocks that continue an old GNU sparse map.
    OldGnu(Box<Partial>, MapOldGnu),
    /// The sparse map at the start of a body (PAX sparse 1.0).
    Map1x0(Box<Partial>, Map1x0),
    /// Behind the end marker.
    End,
}

/// A pseudo member that describes the next one.
#[derive(Debug)]
struct Special {
    flag: u8,
    name: Vec<u8>,
    offset: u64,
    left: u64,
    pad: u64,
    bytes: Vec<u8>,
}

/// A sparse file whose map is not complete yet.
#[derive(Debug)]
struct Partial {
    entry: Entry<'static>,
    size: i64,
    /// Bytes of the member that are still to come, map included where it is in the body.
    body: u64,
    pad: u64,
}

/// What pseudo members said about the next real one.
#[derive(Debug, Default)]
struct Pending {
    pax: Option<Pax>,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

impl Scanner {
    /// A scanner at the start of an archive.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            toc: Toc::default(),
            memory: 0,
            pos: 0,
            block: [0; BLOCK],
            filled: 0,
            state: State::Header,
            pending: Pending::default(),
            failed: None,
        }
    }

    /// Bytes seen so far.
    pub fn position(&self) -> u64 {
        self.pos
    }

    /// Members found so far.
    pub fn entries(&self) -> u64 {
        self.toc.count()
    }

    /// Takes the next bytes of the archive.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), TarError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.advance(chunk);
        self.failed = result.as_ref().err().cloned();
        result
    }

    /// The archive is complete.
    pub fn finish(self) -> Result<Toc, TarError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let truncated = |path: &[u8], missing| Err(TarError::Truncated { path: shown(path), missing });
        match &self.state {
            State::Header | State::SecondZero if self.filled > 0 => {
                return Err(TarError::TruncatedHeader { offset: self.pos - self.filled as u64 });
            }
            State::Skip { body, .. } if *body > 0 => {
                let path = self.toc.entries().last().map(|entry| entry.path).unwrap_or_default();
                return truncated(&path, *body);
            }
            State::Special(special) => return truncated(&special.name, special.left),
            State::OldGnu(partial, _) => {
                return truncated(&partial.entry.path, partial.body + (BLOCK - self.filled) as u64);
            }
            State::Map1x0(partial, _) => return truncated(&partial.entry.path, partial.body - self.filled as u64),
            State::Header | State::SecondZero | State::Skip { .. } | State::End => {}
        }
        let mut toc = self.toc;
        toc.set_size(self.pos);
        Ok(toc)
    }

    fn advance(&mut self, mut chunk: &[u8]) -> Result<(), TarError> {
        while !chunk.is_empty() {
            let used = match &mut self.state {
                State::End => chunk.len(),
                State::Skip { body, pad } => {
                    let from_body = clamp(*body, chunk.len());
                    let from_pad = clamp(*pad, chunk.len() - from_body);
                    *body -= from_body as u64;
                    *pad -= from_pad as u64;
                    if *body == 0 && *pad == 0 {
                        self.state = State::Header;
                    }
                    from_body + from_pad
                }
                State::Special(special) => {
                    let used = clamp(special.left, chunk.len());
                    special.bytes.extend_from_slice(&chunk[..used]);
                    special.left -= used as u64;
                    used
                }
                State::Header | State::SecondZero | State::OldGnu(..) | State::Map1x0(..) => {
                    let used = chunk.len().min(BLOCK - self.filled);
                    self.block[self.filled..self.filled + used].copy_from_slice(&chunk[..used]);
                    self.filled += used;
                    used
                }
            };
            self.pos += used as u64;
            chunk = &chunk[used..];
            if self.filled == BLOCK {
                self.filled = 0;
                self.on_block()?;
            }
            self.settle()?;
        }
        Ok(())
    }

    /// A whole block has been collected.
    fn on_block(&mut self) -> Result<(), TarError> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::SecondZero if self.block == [0; BLOCK] => self.state = State::End,
            State::SecondZero => return Err(TarError::StrayZeros { offset: self.pos - 2 * BLOCK as u64 }),
            State::OldGnu(partial, mut map) => {
                let more = map.block(&self.block).map_err(|fault| partial.fault(fault))?;
                if more {
                    self.state = State::OldGnu(partial, map);
                } else {
                    self.sparse_file(*partial, map.segments)?;
                }
            }
            State::Map1x0(mut partial, mut map) => {
                partial.body -= BLOCK as u64;
                let done = map.block(&self.block).map_err(|fault| partial.fault(fault))?;
                match done {
                    Some(segments) => self.sparse_file(*partial, segments)?,
                    None => self.map_in_body(partial, map)?,
                }
            }
            _ if self.block == [0; BLOCK] => self.state = State::SecondZero,
            _ => self.on_header()?,
        }
        Ok(())
    }

    /// Leaves states that want no further bytes.
    fn settle(&mut self) -> Result<(), TarError> {
        match &mut self.state {
            State::Special(special) if special.left == 0 => {
                let pad = special.pad;
                let State::Special(special) = std::mem::replace(&mut self.state, State::Skip { body: 0, pad }) else {
                    return Ok(());
                };
                self.on_special(special)?;
            }
            _ => {}
        }
        if matches!(self.state, State::Skip { body: 0, pad: 0 }) {
            self.state = State::Header;
        }
        Ok(())
    }

    fn on_header(&mut self) -> Result<(), TarError> {
        let offset = self.pos - BLOCK as u64;
        let header = Header::parse(&self.block).map_err(|fault| fault.at(offset, &self.block))?;
        match header.flag {
            b'x' | b'g' | b'L' | b'K' => {
                let size = body_size(header.size, &header.name)?;
                self.check(&header.name, size, self.limits.special_bytes, LimitKind::SpecialBytes)?;
                self.state = State::Special(Special {
                    flag: header.flag,
                    name: header.name,
                    offset,
                    left: size,
                    pad: padding(size),
                    bytes: Vec::new(),
                });
                Ok(())
            }
            _ => self.on_member(header, offset),
        }
    }

    fn on_special(&mut self, special: Special) -> Result<(), TarError> {
        let parse = |bytes: &[u8]| {
            Pax::parse(bytes).map_err(|fault| TarError::Pax {
                offset: special.offset,
                path: shown(&special.name),
                fault,
            })
        };
        match special.flag {
            b'x' => self.pending.pax = Some(parse(&special.bytes)?),
            // As Go's reader: a global header is a member of its own, so what was said about "the next one" is spent.
            b'g' => {
                parse(&special.bytes)?;
                self.pending = Pending::default();
            }
            b'L' => self.pending.long_name = header::text(&special.bytes).to_vec(),
            _ => self.pending.long_link = header::text(&special.bytes).to_vec(),
        }
        Ok(())
    }

    /// A real member: applies what was said about it, in the order of Go's `Reader.next`.
    fn on_member(&mut self, mut header: Header, offset: u64) -> Result<(), TarError> {
        let Pending { pax, long_name, long_link } = std::mem::take(&mut self.pending);
        let mut pax = pax.unwrap_or_default();
        // Before PAX may override the size: Go refuses a negative one in the header itself.
        if !header_only(header.flag) {
            body_size(header.size, &header.name)?;
        }
        let mut mtime = Time { secs: header.mtime, nanos: 0 };
        pax.merge(&mut header, &mut mtime).map_err(|fault| TarError::Pax {
            offset,
            path: shown(&header.name),
            fault,
        })?;
        if !long_name.is_empty() {
            header.name = long_name;
        }
        if !long_link.is_empty() {
            header.link = long_link;
        }
        if header.flag == 0 {
            header.flag = if header.name.last() == Some(&b'/') { b'5' } else { b'0' };
        }
        let body = if header_only(header.flag) { 0 } else { body_size(header.size, &header.name)? };
        // Type S has its own map and looks at no PAX record of one.
        let version = pax.sparse.version().filter(|_| header.flag != b'S');
        if version.is_some() {
            pax.sparse.rename(&mut header).map_err(|fault| sparse_error(&header.name, fault))?;
        }
        let xattrs = std::mem::take(&mut pax.xattrs);
        let entry = self.entry(&mut header, mtime, xattrs)?;
        let partial = Partial { entry, size: header.size, body, pad: padding(body) };
        match version {
            _ if header.flag == b'S' => self.old_gnu(partial, header.format),
            Some(_) if header_only(header.flag) => Err(partial.fault(SparseFault::NotAFile)),
            Some(sparse::Version::InBody) => {
                let map = Map1x0::new(self.limits.special_bytes, self.limits.extents);
                self.map_in_body(Box::new(partial), map)
            }
            Some(sparse::Version::InHeader) => {
                let segments = pax.sparse.segments(self.limits.extents).map_err(|fault| partial.fault(fault))?;
                self.sparse_file(partial, segments)
            }
            None => self.plain(partial),
        }
    }

    fn entry(
        &self,
        header: &mut Header,
        mtime: Time,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<Entry<'static>, TarError> {
        let path = std::mem::take(&mut header.name);
        let link = std::mem::take(&mut header.link);
        self.check(&path, path.len() as u64, self.limits.path_bytes, LimitKind::PathBytes)?;
        self.check(&path, link.len() as u64, self.limits.path_bytes, LimitKind::LinkBytes)?;
        let bytes: u64 = xattrs.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum();
        self.check(&path, bytes, self.limits.xattr_bytes, LimitKind::XattrBytes)?;
        let (major, minor) = header.device();
        let kind = match header.flag {
            b'0' | b'S' => Kind::File { size: 0, extents: SmallVec::new() },
            b'1' => Kind::Hardlink(link.into()),
            b'2' => Kind::Symlink(link.into()),
            b'3' => Kind::Char { major, minor },
            b'4' => Kind::Block { major, minor },
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            flag => return Err(TarError::UnknownType { path: shown(&path), flag }),
        };
        // chown(2) takes the low 32 bits of the number that the archive gives; all ones means "leave as it is".
        let (uid, gid) = (header.uid as u32, header.gid as u32);
        Ok(Entry { path: path.into(), kind, mode: (header.mode & 0o7777) as u32, uid, gid, mtime, xattrs })
    }

    fn old_gnu(&mut self, partial: Partial, format: Format) -> Result<(), TarError> {
        // The star format has the same type flag and another layout.
        if format != Format::Gnu {
            return Err(partial.fault(SparseFault::Format));
        }
        let (map, size, more) =
            MapOldGnu::start(&self.block, self.limits.extents).map_err(|fault| partial.fault(fault))?;
        let partial = Partial { size, ..partial };
        if more {
            self.state = State::OldGnu(Box::new(partial), map);
            return Ok(());
        }
        self.sparse_file(partial, map.segments)
    }

    fn map_in_body(&mut self, partial: Box<Partial>, map: Map1x0) -> Result<(), TarError> {
        if partial.body < BLOCK as u64 {
            return Err(partial.fault(SparseFault::MapTruncated));
        }
        self.state = State::Map1x0(partial, map);
        Ok(())
    }

    fn sparse_file(&mut self, mut partial: Partial, segments: Vec<Segment>) -> Result<(), TarError> {
        let (size, extents) =
            sparse::extents(&segments, partial.size, self.pos, partial.body).map_err(|fault| partial.fault(fault))?;
        self.check(&partial.entry.path, size, self.limits.file_bytes, LimitKind::FileBytes)?;
        partial.entry.kind = Kind::File { size, extents: extents.into() };
        self.admit(partial)
    }

    fn plain(&mut self, mut partial: Partial) -> Result<(), TarError> {
        if let Kind::File { size, extents } = &mut partial.entry.kind {
            *size = partial.body;
            if partial.body > 0 {
                extents.push(Extent { logical: 0, offset: self.pos, len: partial.body });
            }
            self.check(&partial.entry.path, partial.body, self.limits.file_bytes, LimitKind::FileBytes)?;
        }
        self.admit(partial)
    }

    /// Takes a complete entry into the table, within the limits, and goes on behind its body.
    fn admit(&mut self, partial: Partial) -> Result<(), TarError> {
        let Partial { entry, body, pad, .. } = partial;
        self.check(&entry.path, self.toc.count() + 1, self.limits.entries, LimitKind::Entries)?;
        self.memory += footprint(&entry);
        self.check(&entry.path, self.memory, self.limits.memory, LimitKind::Memory)?;
        self.toc.push(&entry);
        self.check(&entry.path, self.toc.packed_len(), self.limits.table, LimitKind::Memory)?;
        self.state = State::Skip { body, pad };
        Ok(())
    }

    fn check(&self, path: &[u8], value: u64, limit: u64, what: LimitKind) -> Result<(), TarError> {
        if value > limit {
            return Err(TarError::Limit { path: shown(path), limit, what });
        }
        Ok(())
    }
}

impl Partial {
    fn fault(&self, fault: SparseFault) -> TarError {
        sparse_error(&self.entry.path, fault)
    }
}

fn sparse_error(path: &[u8], fault: SparseFault) -> TarError {
    TarError::Sparse { path: shown(path), fault }
}

/// Bytes of memory an entry takes, its own structure and what it points to.
fn footprint(entry: &Entry<'_>) -> u64 {
    let kind = match &entry.kind {
        Kind::File { extents, .. } => extents.len() * size_of::<Extent>(),
        Kind::Symlink(target) | Kind::Hardlink(target) => target.len(),
        _ => 0,
    };
    let pair = size_of::<(Vec<u8>, Vec<u8>)>();
    let xattrs: usize = entry.xattrs.iter().map(|(name, value)| pair + name.len() + value.len()).sum();
    (size_of::<Entry<'_>>() + entry.path.len() + kind + xattrs) as u64
}

/// Types that have no body whatever their size field says.
fn header_only(flag: u8) -> bool {
    matches!(flag, b'1'..=b'6')
}

fn body_size(size: i64, path: &[u8]) -> Result<u64, TarError> {
    u64::try_from(size).map_err(|_| TarError::NegativeSize { path: shown(path), size })
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// The smaller of a count of bytes and a length.
fn clamp(left: u64, len: usize) -> usize {
    usize::try_from(left).map_or(len, |left| left.min(len))
}
