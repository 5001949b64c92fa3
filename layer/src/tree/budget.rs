//! What one build may take. An archive of some kilobytes can ask for steps, directories and copies of attributes by the million: none of
//! them has bytes of its own in it.

use super::error::TreeFault;
use crate::toc::MAX_ENTRIES;

/// Steps (names looked up in one directory of one layer, some 50 ns each) that a build may take: a thousand for each
/// entry, within bounds. An honest entry takes about ten; a directory that none of 100 layers below knows takes a
/// hundred.
const STEPS_PER_ENTRY: u64 = 1 << 10;
const MIN_STEPS: u64 = 1 << 24;
const MAX_STEPS: u64 = 1 << 30;

/// Directories that a build may make because a path goes through them, those that are replaced again included: so many for each entry,
/// within bounds. A million, in 62,500 paths, takes 465 MB of memory (1.1 GB in a base layer with an opaque marker) and 583 MB of metadata
/// image: each has a node of a `BTreeMap` and a block to itself. The least that are granted are 32 paths as deep as Linux takes them. An
/// honest archive without any entries for directories has fewer of them than files.
const IMPLIED_PER_ENTRY: u64 = 16;
const MIN_IMPLIED: u64 = 1 << 16;
const MAX_IMPLIED: u64 = 1_000_000;

/// Inodes that one build may make, those that are replaced again included: one for each entry of the largest table, one for each
/// directory that may be implied, and the root. That of a file takes some 200 bytes with its name.
pub(super) const MAX_INODES: u32 = (MAX_ENTRIES + MAX_IMPLIED + 1) as u32;

/// Bytes of attributes that inodes may get from others: by a default access list, from a directory below, or with the target of a hard
/// link into a layer below. What an entry itself spells out is bounded by the scanner and does not count. With [`ATTRIBUTE`] it is enough
/// for a list of five entries on 400,000 files.
pub(super) const MAX_COPIED: u64 = 256 << 20;

/// Bytes of memory that an attribute takes beside its own: the first of an inode brings a node of a `BTreeMap`, 544 bytes with room for
/// eleven. In the metadata image it is four.
const ATTRIBUTE: u64 = 600;

/// What is left of it.
#[derive(Debug)]
pub(super) struct Budget {
    steps: u64,
    implied: u64,
    /// What `implied` was.
    most_implied: u64,
    copied: u64,
}

impl Budget {
    /// For a table of so many entries.
    pub(super) fn new(entries: u64) -> Self {
        let steps = entries.saturating_mul(STEPS_PER_ENTRY).clamp(MIN_STEPS, MAX_STEPS);
        let implied = entries.saturating_mul(IMPLIED_PER_ENTRY).clamp(MIN_IMPLIED, MAX_IMPLIED);
        Self { steps, implied, most_implied: implied, copied: MAX_COPIED }
    }

    /// Some steps more of resolving paths.
    pub(super) fn spend(&mut self, steps: usize) -> Result<(), TreeFault> {
        self.steps = self.steps.checked_sub(steps as u64).ok_or(TreeFault::TooMuchWork)?;
        Ok(())
    }

    /// One more directory is implied.
    pub(super) fn imply(&mut self) -> Result<(), TreeFault> {
        self.implied = self.implied.checked_sub(1).ok_or(TreeFault::TooManyImplied(self.most_implied))?;
        Ok(())
    }

    /// An inode gets an attribute from another. Asked for before it is copied.
    pub(super) fn copy(&mut self, name: &[u8], value: &[u8]) -> Result<(), TreeFault> {
        self.copied =
            self.copied.checked_sub(of_attribute(name, value)).ok_or(TreeFault::TooManyAttributes(MAX_COPIED))?;
        Ok(())
    }
}

/// Bytes of memory that an attribute takes.
pub(super) fn of_attribute(name: &[u8], value: &[u8]) -> u64 {
    ATTRIBUTE + (name.len() + value.len()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_implied_by_entries_within_bounds() {
        for (entries, implied) in
            [(0, 65_536), (4096, 65_536), (5000, 80_000), (62_500, 1_000_000), (u64::MAX, 1_000_000)]
        {
            let mut budget = Budget::new(entries);
            let made = (0..).take_while(|_| budget.imply().is_ok()).count();
            assert_eq!(made, implied);
            assert_eq!(budget.imply(), Err(TreeFault::TooManyImplied(implied as u64)));
        }
    }
}
