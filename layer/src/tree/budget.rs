//! What one build may take. An archive of some kilobytes can ask for steps and copies of attributes by the million: none of them has
//! bytes of its own in it.

use super::error::TreeFault;

/// Steps (names looked up in one directory of one layer, some 50 ns each) that a build may take: a thousand for each
/// entry, within bounds. An honest entry takes about ten; a directory that none of 100 layers below knows takes a
/// hundred.
const STEPS_PER_ENTRY: u64 = 1 << 10;
const MIN_STEPS: u64 = 1 << 24;
const MAX_STEPS: u64 = 1 << 30;

/// Inodes that one build may make, those that are replaced again included: twice the scanner's limit on entries, so
/// that as many directories may be implied. An inode takes some 200 bytes.
pub(super) const MAX_INODES: u32 = 8_000_000;

/// Bytes of attributes that inodes may get from others: by a default access list, from a directory below, or with the target of a hard
/// link into a layer below. What an entry itself spells out is bounded by the scanner and does not count. With [`ATTRIBUTE`] it is enough
/// for a list of five entries on 400,000 files: three times what all of `/usr` of a developer's machine holds.
pub(super) const MAX_COPIED: u64 = 256 << 20;

/// Bytes of memory that an attribute takes beside its own: the first of an inode brings a node of a `BTreeMap`, 544 bytes with room for
/// eleven. In the metadata image it is four.
const ATTRIBUTE: u64 = 600;

/// What is left of it.
#[derive(Debug)]
pub(super) struct Budget {
    steps: u64,
    copied: u64,
}

impl Budget {
    /// For a table of so many entries.
    pub(super) fn new(entries: u64) -> Self {
        let steps = entries.saturating_mul(STEPS_PER_ENTRY).clamp(MIN_STEPS, MAX_STEPS);
        Self { steps, copied: MAX_COPIED }
    }

    /// Some steps more of resolving paths.
    pub(super) fn spend(&mut self, steps: usize) -> Result<(), TreeFault> {
        self.steps = self.steps.checked_sub(steps as u64).ok_or(TreeFault::TooMuchWork)?;
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
