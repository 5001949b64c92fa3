//! A regular file as chunks: of which size, and where each one's bytes are.

use std::{borrow::Cow, collections::BTreeSet};

use crate::tree::{Source, SourceExtent};

use super::{
    MAX_COPIED, MAX_FILE_CHUNKS,
    disk::{BLOCK, BLOCK_BITS, MAX_CHUNK_BITS, NULL_ADDR},
};

/// Why a file has no chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Misfit {
    /// Extents out of order or out of bounds.
    Extent,
    /// Longer than 2^63 - 1, or beyond the reach of a block address.
    Range,
    /// Too many chunks, or too much to copy, at any chunk size.
    Scattered,
}

/// A file's chunk size, and what it costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Chunks are of `1 << bits` bytes; the last is shorter.
    pub bits: u32,
    /// How many there are.
    pub chunks: u64,
    /// Bytes of those that must be copied, each rounded up to blocks.
    pub copied: u64,
}

/// Where a chunk's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Nowhere: zeros.
    Hole,
    /// In a data file, from this block on.
    Direct(Source, u32),
    /// At no one address: to be copied into the image.
    Copied,
}

/// A file: its length and its extents with neighbours joined. Those of nearly all files are as they should be, and are
/// borrowed: an image asks several times for each of its files.
#[derive(Debug)]
pub(super) struct File<'t> {
    size: u64,
    extents: Cow<'t, [SourceExtent]>,
}

impl<'t> File<'t> {
    /// Checks the extents: sorted, apart, within the file, and within reach. `None` for an empty file.
    pub(super) fn new(size: u64, extents: &'t [SourceExtent]) -> Result<Option<Self>, Misfit> {
        let mut end = 0;
        let mut as_is = true;
        let mut last: Option<&SourceExtent> = None;
        for extent in extents {
            if extent.len == 0 {
                as_is = false;
                continue;
            }
            let stop = extent.logical.checked_add(extent.len).ok_or(Misfit::Extent)?;
            if extent.logical < end || stop > size {
                return Err(Misfit::Extent);
            }
            let last_block = extent.offset.checked_add(extent.len).ok_or(Misfit::Range)?.div_ceil(BLOCK);
            if last_block > u64::from(NULL_ADDR) {
                return Err(Misfit::Range);
            }
            end = stop;
            as_is &= !last.is_some_and(|last| is_next(last, extent));
            last = Some(extent);
        }
        if i64::try_from(size).is_err() {
            return Err(Misfit::Range);
        }
        let extents = if as_is { Cow::Borrowed(extents) } else { Cow::Owned(joined(extents)) };
        Ok((size > 0).then_some(Self { size, extents }))
    }

    /// The chunk size at which indexes and copies take the least room together: the whole file in one chunk for all but
    /// sparse files, the largest that divides all boundaries for well-formed sparse ones.
    pub(super) fn shape(&self) -> Result<Shape, Misfit> {
        let whole = self.size.next_power_of_two().trailing_zeros().clamp(BLOCK_BITS, MAX_CHUNK_BITS);
        let mut best: Option<(u64, Shape)> = None;
        for bits in (BLOCK_BITS..=whole).rev() {
            let chunks = self.size.div_ceil(1 << bits);
            let indexes = chunks * 8;
            if chunks > MAX_FILE_CHUNKS || best.is_some_and(|(cost, _)| cost <= indexes) {
                break;
            }
            let copied = self.copied(bits);
            let cost = indexes + copied;
            if copied <= MAX_COPIED && best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, Shape { bits, chunks, copied }));
            }
        }
        best.map(|(_, shape)| shape).ok_or(Misfit::Scattered)
    }

    /// How many bytes must be copied with chunks of this size: those of chunks that an extent starts or ends inside of,
    /// and of all chunks of an extent that lies between blocks.
    fn copied(&self, bits: u32) -> u64 {
        let last = (self.size - 1) >> bits;
        let (mut chunks, mut next, mut tail) = (0, 0, false);
        let mut count = |from: u64, to: u64| {
            let from = from.max(next);
            if from <= to {
                chunks += to - from + 1;
                next = to + 1;
                tail |= to == last;
            }
        };
        for extent in self.extents.iter() {
            let end = extent.logical + extent.len;
            let (first, final_) = (extent.logical >> bits, (end - 1) >> bits);
            if !aligned(extent) {
                count(first, final_);
                continue;
            }
            if !extent.logical.is_multiple_of(1 << bits) {
                count(first, first);
            }
            if end != self.size && !end.is_multiple_of(1 << bits) {
                count(final_, final_);
            }
        }
        let short = ((last + 1) << bits) - self.size.next_multiple_of(BLOCK);
        // At most MAX_FILE_CHUNKS chunks of at most 2^40 bytes.
        (chunks << bits) - if tail { short } else { 0 }
    }

    /// The chunks of `1 << bits` bytes in order.
    pub(super) fn chunks(&self, bits: u32) -> impl Iterator<Item = Chunk> {
        let mut at = 0;
        (0..self.size.div_ceil(1 << bits)).map(move |nr| {
            let start = nr << bits;
            let end = (start + (1 << bits)).min(self.size);
            while self.extents.get(at).is_some_and(|e| e.logical + e.len <= start) {
                at += 1;
            }
            match self.extents.get(at) {
                Some(e) if e.logical >= end => Chunk::Hole,
                None => Chunk::Hole,
                Some(e) if aligned(e) && e.logical <= start && e.logical + e.len >= end => {
                    // `File::new` has checked that block addresses fit.
                    Chunk::Direct(e.source, ((e.offset + (start - e.logical)) / BLOCK) as u32)
                }
                Some(_) => Chunk::Copied,
            }
        })
    }

    /// The sources that some chunk points into.
    pub(super) fn direct_sources(&self, bits: u32) -> impl Iterator<Item = Source> {
        self.chunks(bits).filter_map(|chunk| match chunk {
            Chunk::Direct(source, _) => Some(source),
            Chunk::Hole | Chunk::Copied => None,
        })
    }

    /// Blocks of the image at which the file's copies must not begin: one of them would follow a chunk in a data file, or go before
    /// one, by its number alone. Where EROFS lies over block devices Linux (its iomap, seen on 6.18) goes on
    /// reading the first's device then, whatever holes are between the two.
    pub(super) fn mistakable(&self, bits: u32) -> BTreeSet<u64> {
        let mut starts = BTreeSet::new();
        // Blocks of copies so far; the end of the last chunk that is no hole: a block of a data file, or of the copies.
        let (mut copied, mut last) = (0, None);
        for (nr, chunk) in (0..).zip(self.chunks(bits)) {
            let range = self.range(bits, nr);
            let blocks = (range.end - range.start).div_ceil(BLOCK);
            match chunk {
                Chunk::Hole => {}
                Chunk::Direct(_, at) => {
                    let at = u64::from(at);
                    if last == Some(None) {
                        starts.extend(at.checked_sub(copied));
                    }
                    last = Some(Some(at + blocks));
                }
                Chunk::Copied => {
                    if let Some(Some(end)) = last {
                        starts.extend(end.checked_sub(copied));
                    }
                    copied += blocks;
                    last = Some(None);
                }
            }
        }
        starts
    }

    /// The extents, joined.
    pub(super) fn extents(&self) -> &[SourceExtent] {
        &self.extents
    }

    /// Bytes from the start of chunk `nr` to its end.
    pub(super) fn range(&self, bits: u32, nr: u64) -> std::ops::Range<u64> {
        let start = nr << bits;
        start..(start + (1 << bits)).min(self.size)
    }
}

/// Whether an extent goes on where `last` ends, in the file and in the data file.
fn is_next(last: &SourceExtent, extent: &SourceExtent) -> bool {
    last.source == extent.source && last.logical + last.len == extent.logical && last.offset + last.len == extent.offset
}

/// Extents (that are in order, and apart) without empty ones, neighbours joined.
fn joined(extents: &[SourceExtent]) -> Vec<SourceExtent> {
    let mut joined: Vec<SourceExtent> = Vec::with_capacity(extents.len());
    for extent in extents.iter().filter(|e| e.len > 0) {
        match joined.last_mut() {
            Some(last) if is_next(last, extent) => last.len += extent.len,
            _ => joined.push(*extent),
        }
    }
    joined
}

/// Whether a block of the file is a block of the data file.
fn aligned(extent: &SourceExtent) -> bool {
    extent.offset % BLOCK == extent.logical % BLOCK
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn extents() -> impl Strategy<Value = Vec<SourceExtent>> {
        let number =
            prop_oneof![0u64..5000, (0u64..40).prop_map(|n| n * 512), (0u32..64).prop_map(|n| 1 << n), any::<u64>()];
        vec((number.clone(), number.clone(), number), 0..8).prop_map(|triples| {
            let mut at = 0u64;
            let pieces = triples.into_iter().map(|(gap, offset, len)| {
                let logical = at.wrapping_add(gap);
                at = logical.wrapping_add(len);
                SourceExtent { source: Source::Own, logical, offset, len }
            });
            pieces.collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_extents_are_refused_or_stay_within_the_limits(extents in extents(), size in any::<u64>()) {
            let end = extents.last().map_or(0, |e| e.logical.wrapping_add(e.len));
            for size in [size, end, end.wrapping_add(1)] {
                let Ok(Some(file)) = File::new(size, &extents) else { continue };
                if let Ok(shape) = file.shape() {
                    prop_assert!(shape.chunks <= MAX_FILE_CHUNKS && shape.copied <= MAX_COPIED);
                }
            }
        }

        #[test]
        fn what_is_copied_is_what_was_counted(extents in extents(), tail in 0u64..3000, bits in 9u32..20) {
            let size = extents.last().map_or(0, |e| e.logical.wrapping_add(e.len)).wrapping_add(tail);
            let Ok(Some(file)) = File::new(size, &extents) else { return Ok(()) };
            prop_assume!(size >> bits < 100_000);
            let copies = (0..).zip(file.chunks(bits)).filter(|(_, chunk)| *chunk == Chunk::Copied);
            let bytes = copies.map(|(nr, _)| {
                let range = file.range(bits, nr);
                (range.end - range.start).next_multiple_of(BLOCK)
            });
            prop_assert_eq!(bytes.sum::<u64>(), file.copied(bits));
        }
    }

    #[test]
    fn copies_are_not_mistaken_for_what_follows_in_a_data_file() {
        let piece = |logical, block: u64, len| SourceExtent { source: Source::Own, logical, offset: block * 512, len };
        let starts = |size, extents: &[_]| {
            let file = File::new(size, extents).unwrap().unwrap();
            file.mistakable(9).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(starts(5120, &[piece(0, 30, 1024), piece(4096, 40, 1024)]), []);
        // A chunk, a hole, two copies; another chunk before the hole behind them.
        assert_eq!(starts(5120, &[piece(512, 30, 512), piece(2148, 31, 512)]), [31]);
        assert_eq!(starts(5120, &[piece(512, 30, 512), piece(2148, 31, 512), piece(3072, 90, 512)]), [31, 88]);
        assert_eq!(starts(5120, &[piece(100, 9, 512), piece(1024, 1, 512)]), [], "there is no block -1");
    }

    #[test]
    fn the_largest_chunk_that_divides_the_boundaries_is_taken() {
        let piece = |logical, offset, len| SourceExtent { source: Source::Own, logical, offset, len };
        let shape = |size, extents: &[_]| File::new(size, extents).unwrap().unwrap().shape().unwrap();
        assert_eq!(shape(700, &[piece(0, 512, 700)]), Shape { bits: 10, chunks: 1, copied: 0 });
        assert_eq!(shape(1 << 45, &[]), Shape { bits: 40, chunks: 32, copied: 0 });
        let two = [piece(0, 512, 8192), piece(65536, 16384, 8192)];
        assert_eq!(shape(1 << 20, &two), Shape { bits: 13, chunks: 128, copied: 0 });
        assert_eq!(shape(1000, &[piece(0, 1, 1000)]), Shape { bits: 10, chunks: 1, copied: 1024 });
    }
}
