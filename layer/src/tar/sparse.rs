//! Sparse maps: old GNU (type `S`), and PAX versions 0.0, 0.1 (map in the header) and 1.0 (map in the body).
//!
//! The rules are those of Go's reader; the bytes of a sparse file stand in the archive one region after the other.

use super::{
    error::SparseFault,
    header::{BLOCK, Header, numeric},
    pax::decimal,
};
use crate::toc::Extent;

/// A region of data in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    offset: i64,
    len: i64,
}

/// The `GNU.sparse.*` records of a PAX header. Empty where there is none.
#[derive(Debug, Default)]
pub(super) struct Records {
    major: Vec<u8>,
    minor: Vec<u8>,
    name: Vec<u8>,
    size: Vec<u8>,
    realsize: Vec<u8>,
    numblocks: Vec<u8>,
    pub map: Vec<u8>,
}

/// Where the map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// 0.0 and 0.1.
    InHeader,
    /// 1.0.
    InBody,
}

impl Records {
    pub(super) fn field(&mut self, key: &[u8]) -> Option<&mut Vec<u8>> {
        Some(match key.strip_prefix(b"GNU.sparse.")? {
            b"major" => &mut self.major,
            b"minor" => &mut self.minor,
            b"name" => &mut self.name,
            b"size" => &mut self.size,
            b"realsize" => &mut self.realsize,
            b"numblocks" => &mut self.numblocks,
            b"map" => &mut self.map,
            _ => return None,
        })
    }

    /// `None` where the member is not sparse, or in a version that Go does not know (then it is a plain file).
    pub(super) fn version(&self) -> Option<Version> {
        match (&self.major[..], &self.minor[..]) {
            (b"0", b"0" | b"1") => Some(Version::InHeader),
            (b"1", b"0") => Some(Version::InBody),
            (b"", b"") if !self.map.is_empty() => Some(Version::InHeader),
            _ => None,
        }
    }

    /// The plain header of a sparse member holds a made-up name and the size in the archive.
    pub(super) fn rename(&mut self, header: &mut Header) -> Result<(), SparseFault> {
        if !self.name.is_empty() {
            header.name = std::mem::take(&mut self.name);
        }
        let size = if self.size.is_empty() { &self.realsize } else { &self.size };
        if !size.is_empty() {
            header.size = decimal(size).ok_or(SparseFault::Number)?;
        }
        Ok(())
    }

    /// The map of versions 0.0 and 0.1: `offset,length,offset,...`.
    pub(super) fn segments(&self, limit: u64) -> Result<Vec<Segment>, SparseFault> {
        let count = decimal(&self.numblocks).and_then(|n| u64::try_from(n).ok()).ok_or(SparseFault::Number)?;
        let numbers = if self.map.is_empty() { 0 } else { 1 + self.map.iter().filter(|byte| **byte == b',').count() };
        if Some(numbers as u64) != count.checked_mul(2) {
            return Err(SparseFault::Count);
        }
        if count > limit {
            return Err(SparseFault::TooLong);
        }
        if numbers == 0 {
            return Ok(Vec::new());
        }
        pairs(self.map.split(|byte| *byte == b','))
    }
}

fn pairs<'a>(mut numbers: impl Iterator<Item = &'a [u8]>) -> Result<Vec<Segment>, SparseFault> {
    let mut segments = Vec::new();
    while let Some(offset) = numbers.next() {
        let len = numbers.next().ok_or(SparseFault::Count)?;
        let (offset, len) = decimal(offset).zip(decimal(len)).ok_or(SparseFault::Number)?;
        segments.push(Segment { offset, len });
    }
    Ok(segments)
}

/// The map of version 1.0: newline-terminated decimal numbers in whole blocks at the start of the body; first the
/// number of regions, then offset and length of each.
#[derive(Debug)]
pub(super) struct Map1x0 {
    bytes: Vec<u8>,
    newlines: u64,
    /// How many newlines the map has, once its first line is known.
    wanted: Option<u64>,
    byte_limit: u64,
    limit: u64,
}

impl Map1x0 {
    pub(super) fn new(byte_limit: u64, limit: u64) -> Self {
        Self { bytes: Vec::new(), newlines: 0, wanted: None, byte_limit, limit }
    }

    /// Takes a block; answers the map when it is complete.
    pub(super) fn block(&mut self, block: &[u8; BLOCK]) -> Result<Option<Vec<Segment>>, SparseFault> {
        if (self.bytes.len() + BLOCK) as u64 > self.byte_limit {
            return Err(SparseFault::TooLong);
        }
        self.bytes.extend_from_slice(block);
        self.newlines += block.iter().filter(|byte| **byte == b'\n').count() as u64;
        if self.newlines == 0 {
            return Ok(None);
        }
        let wanted = match self.wanted {
            Some(wanted) => wanted,
            None => self.first_line()?,
        };
        if self.newlines < wanted {
            return Ok(None);
        }
        let lines = self.bytes.split(|byte| *byte == b'\n');
        pairs(lines.skip(1).take(wanted as usize - 1)).map(Some)
    }

    fn first_line(&mut self) -> Result<u64, SparseFault> {
        let line = self.bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let count = decimal(line).and_then(|n| u64::try_from(n).ok()).ok_or(SparseFault::Number)?;
        if count > self.limit {
            return Err(SparseFault::TooLong);
        }
        let wanted = 1 + 2 * count;
        self.wanted = Some(wanted);
        Ok(wanted)
    }
}

/// The map of the old GNU format: four regions in the header, 21 in each block that follows.
#[derive(Debug)]
pub(super) struct MapOldGnu {
    pub segments: Vec<Segment>,
    /// Bytes of map read so far, counted as Go does.
    bytes: u64,
    limit: u64,
}

impl MapOldGnu {
    /// Reads the part in the header: the map so far, the file's size, and whether blocks follow.
    pub(super) fn start(header: &[u8; BLOCK], limit: u64) -> Result<(Self, i64, bool), SparseFault> {
        let size = numeric(&header[483..495]).ok_or(SparseFault::Number)?;
        let mut map = Self { segments: Vec::new(), bytes: 0, limit };
        let more = map.table(&header[386..483])?;
        Ok((map, size, more))
    }

    /// Takes a block; whether another follows.
    pub(super) fn block(&mut self, block: &[u8; BLOCK]) -> Result<bool, SparseFault> {
        self.table(block)
    }

    /// Pairs of 12-byte numbers, ended by one that starts with NUL, and a flag behind the last.
    fn table(&mut self, table: &[u8]) -> Result<bool, SparseFault> {
        /// Go's `maxSpecialFileSize`.
        const MAX: u64 = 1 << 20;
        if self.bytes >= MAX {
            return Err(SparseFault::TooLong);
        }
        self.bytes += table.len() as u64;
        let slots = table.len() / 24;
        for slot in table[..slots * 24].chunks_exact(24).take_while(|slot| slot[0] != 0) {
            if self.segments.len() as u64 >= self.limit {
                return Err(SparseFault::TooLong);
            }
            let (offset, len) = numeric(&slot[..12]).zip(numeric(&slot[12..])).ok_or(SparseFault::Number)?;
            self.segments.push(Segment { offset, len });
        }
        Ok(table[slots * 24] != 0)
    }
}

/// Checks a map against the file's size and the bytes that are there, and places it at `start` in the archive.
///
/// Answers the file's size and its extents: without empty ones, and touching ones joined.
pub(super) fn extents(map: &[Segment], size: i64, start: u64, body: u64) -> Result<(u64, Vec<Extent>), SparseFault> {
    let size = u64::try_from(size).map_err(|_| SparseFault::Regions)?;
    let mut extents: Vec<Extent> = Vec::new();
    let (mut end, mut used) = (0, 0_u64);
    for segment in map {
        let logical = u64::try_from(segment.offset).map_err(|_| SparseFault::Regions)?;
        let len = u64::try_from(segment.len).map_err(|_| SparseFault::Regions)?;
        // Both are below 2^63, so the sum is right.
        if logical < end || logical + len > size {
            return Err(SparseFault::Regions);
        }
        match extents.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.logical + last.len == logical => last.len += len,
            _ => extents.push(Extent { logical, offset: start + used, len }),
        }
        end = logical + len;
        used += len;
    }
    match used.cmp(&body) {
        std::cmp::Ordering::Greater => Err(SparseFault::MissingData),
        std::cmp::Ordering::Less => Err(SparseFault::UnreferencedData),
        std::cmp::Ordering::Equal => Ok((size, extents)),
    }
}
