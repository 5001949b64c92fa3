//! Inode numbers: the same for the same inode in every process that serves the mount, so that one can take over from
//! another.

use fuser::INodeNo;

use crate::Slot;

/// Bits of an inode's number within its object. An image has at most 2^36 inodes.
const BITS: u32 = 40;
/// Numbers within an object start here: with slot 0 the mount's root directory is 1, and 0 is no inode.
const FIRST: u64 = 2;

/// An inode of some object: 0 for a data file, a tree's own number for an inode of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node {
    pub slot: Slot,
    pub nid: u64,
}

impl Node {
    /// The inode with a number of the kernel's; `None` for the root directory and for numbers never given out.
    pub(crate) fn of(ino: INodeNo) -> Option<Self> {
        let slot = Slot(u32::try_from(ino.0 >> BITS).ok()?);
        let nid = (ino.0 & ((1 << BITS) - 1)).checked_sub(FIRST)?;
        Some(Self { slot, nid })
    }

    /// The kernel's number of the inode; `None` for one that no number can say.
    pub(crate) fn ino(self) -> Option<INodeNo> {
        let inside = self.nid < (1 << BITS) - FIRST && self.slot.0 < 1 << (64 - BITS);
        inside.then(|| INodeNo(u64::from(self.slot.0) << BITS | (self.nid + FIRST)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_both_ways() {
        assert_eq!(Node::of(INodeNo::ROOT), None);
        assert_eq!(Node::of(INodeNo(0)), None);
        for (slot, nid) in [(0, 0), (0, 36), (1, 0), ((1 << 24) - 1, (1 << 40) - 3)] {
            let node = Node { slot: Slot(slot), nid };
            assert_eq!(node.ino().and_then(Node::of), Some(node));
        }
        assert_eq!(Node { slot: Slot(1 << 24), nid: 0 }.ino(), None);
        assert_eq!(Node { slot: Slot(0), nid: (1 << 40) - 2 }.ino(), None);
    }
}
