//! Inodes as system calls leave them.

use std::collections::BTreeMap;

use super::{Node, NodeKind, Source, SourceExtent, acl, error::TreeFault, xattrs};
use crate::toc::{Entry, Kind, Time};

/// The owner that chown(2) leaves as it is.
const UNCHANGED: u32 = u32::MAX;

impl Node {
    /// As the calls that make inodes leave it for root.
    pub(super) fn fresh(kind: NodeKind) -> Self {
        let mode = if matches!(kind, NodeKind::Symlink(_)) { 0o777 } else { 0 };
        Self { kind, mode, uid: 0, gid: 0, mtime: Time::default(), xattrs: BTreeMap::new() }
    }

    /// A directory that is made because something needs it.
    pub(super) fn fresh_dir() -> Self {
        Self { mode: 0o755, ..Self::fresh(NodeKind::Dir(BTreeMap::new())) }
    }

    /// What an entry other than a hard link makes, before [`Node::stamp`].
    pub(super) fn of(kind: &Kind<'_>) -> Result<Self, TreeFault> {
        let kind = match kind {
            Kind::File { size, extents } => {
                let own = extents.iter().map(|extent| SourceExtent {
                    source: Source::Own,
                    logical: extent.logical,
                    offset: extent.offset,
                    len: extent.len,
                });
                NodeKind::File { size: *size, extents: own.collect() }
            }
            Kind::Dir => NodeKind::Dir(BTreeMap::new()),
            Kind::Symlink(target) if target.is_empty() => return Err(TreeFault::EmptyTarget),
            Kind::Symlink(target) => NodeKind::Symlink(target.to_vec()),
            Kind::Char { major, minor } => NodeKind::Char(*major, *minor),
            Kind::Block { major, minor } => NodeKind::Block(*major, *minor),
            // A hard link has no inode of its own; the caller has followed it.
            Kind::Fifo | Kind::Hardlink(_) => NodeKind::Fifo,
        };
        Ok(Self::fresh(kind))
    }

    /// Gives an inode what an entry's header says: chown, attributes, chmod (which symbolic links do not have), time.
    pub(super) fn stamp(&mut self, entry: &Entry<'_>) -> Result<(), TreeFault> {
        self.chown(entry);
        for (name, value) in &entry.xattrs {
            xattrs::set(self, name, value)
                .map_err(|fault| TreeFault::Xattr { name: super::error::shown(name), fault })?;
        }
        if !matches!(self.kind, NodeKind::Symlink(_)) {
            acl::chmod(self, entry.mode);
        }
        self.mtime = bounded(entry.mtime);
        Ok(())
    }

    /// chown(2), which takes file capabilities away from everything but directories.
    pub(super) fn chown(&mut self, entry: &Entry<'_>) {
        if entry.uid != UNCHANGED {
            self.uid = entry.uid;
        }
        if entry.gid != UNCHANGED {
            self.gid = entry.gid;
        }
        if !matches!(self.kind, NodeKind::Dir(_)) {
            self.xattrs.remove(xattrs::CAPABILITY);
        }
    }

    /// Makes a directory opaque.
    pub(super) fn cover(&mut self) {
        self.xattrs.insert(super::OPAQUE.to_vec(), b"y".to_vec());
    }
}

/// containerd's `boundTime`: what does not fit into 64 bits of nanoseconds since 1970 becomes 1970.
pub(super) fn bounded(time: Time) -> Time {
    let nanos = i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    if (0..=i128::from(i64::MAX)).contains(&nanos) { time } else { Time::default() }
}
