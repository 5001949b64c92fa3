//! Which extended attributes of an archive end up on an inode: containerd's rules and those of the kernel on ext4.

use super::{
    Node, NodeKind, acl,
    budget::Budget,
    error::{TreeFault, XattrFault},
};

/// The file capabilities, which chown(2) drops.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

/// Linux' `XATTR_NAME_MAX`.
const MAX_NAME: usize = 255;

/// The size of a value has 16 bits in EROFS; Linux' `XATTR_SIZE_MAX` is one more.
const MAX_VALUE: usize = 65535;

/// Sets an attribute as `lsetxattr` would. Left out, as containerd does with a warning: `trusted.*`, `user.*` on
/// anything but files and directories, and what the file system answers with `ENOTSUP`.
pub(super) fn set(node: &mut Node, name: &[u8], value: &[u8]) -> Result<(), XattrFault> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(XattrFault::Name);
    }
    if value.len() > MAX_VALUE {
        return Err(XattrFault::Size);
    }
    let is_dir = matches!(node.kind, NodeKind::Dir(_));
    let is_file = matches!(node.kind, NodeKind::File { .. });
    let kept = match name {
        b"security." => return Err(XattrFault::Name),
        b"user." if is_file || is_dir => return Err(XattrFault::Name),
        // Linux does not look at an empty one before somebody reads it.
        CAPABILITY if !value.is_empty() && !is_capability(value) => return Err(XattrFault::Value),
        acl::ACCESS | acl::DEFAULT => return acl::set(node, name, value),
        _ if name.starts_with(b"user.") => is_file || is_dir,
        _ => name.starts_with(b"security."),
    };
    if kept {
        node.xattrs.insert(name.to_vec(), value.to_vec());
    }
    Ok(())
}

/// What a directory that is only implied takes over from the same directory of a layer below.
pub(super) fn inherit(from: &Node, into: &mut Node, budget: &mut Budget) -> Result<(), TreeFault> {
    for (name, value) in from.xattrs.iter().filter(|(name, _)| !name.starts_with(b"trusted.")) {
        budget.copy(name, value)?;
        into.xattrs.insert(name.clone(), value.clone());
    }
    Ok(())
}

/// `struct vfs_cap_data` of revision 2 or `vfs_ns_cap_data` of revision 3 (`cap_convert_nscap` in the kernel).
fn is_capability(value: &[u8]) -> bool {
    /// `VFS_CAP_FLAGS_EFFECTIVE`.
    const FLAGS: u32 = 1;
    let Some(magic) = value.first_chunk() else { return false };
    matches!((u32::from_le_bytes(*magic) & !FLAGS, value.len()), (0x0200_0000, 20) | (0x0300_0000, 24))
}
