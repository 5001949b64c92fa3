//! Which extended attributes of an archive end up on an inode: containerd's rules and those of the kernel on ext4.

use super::{Node, NodeKind, error::XattrFault};

/// Access lists, and those that a directory passes on.
const ACL: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

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
    let is_link = matches!(node.kind, NodeKind::Symlink(_));
    let kept = match name {
        b"user." | b"security." => return Err(XattrFault::Name),
        CAPABILITY if !is_capability(value) => return Err(XattrFault::Value),
        ACL | DEFAULT_ACL if !is_acl(value) => return Err(XattrFault::Value),
        ACL => !is_link,
        DEFAULT_ACL if !is_link && !is_dir => return Err(XattrFault::Value),
        DEFAULT_ACL => is_dir,
        _ if name.starts_with(b"user.") => is_file || is_dir,
        _ => name.starts_with(b"security."),
    };
    if kept {
        node.xattrs.insert(name.to_vec(), value.to_vec());
    }
    Ok(())
}

/// Sets the mode as chmod(2) does: an access list follows it (`posix_acl_chmod`), and one that says no more than the
/// mode does not exist.
pub(super) fn chmod(node: &mut Node, mode: u32) {
    /// Tags of `linux/posix_acl.h`.
    const USER_OBJ: u8 = 0x01;
    const GROUP_OBJ: u8 = 0x04;
    const MASK: u8 = 0x10;
    const OTHER: u8 = 0x20;
    node.mode = mode;
    let Some(acl) = node.xattrs.get_mut(ACL) else { return };
    // Behind a head of four bytes: tag, permissions, user or group in eight bytes each.
    let tags: Vec<u8> = acl[4..].chunks_exact(8).map(|entry| entry[0]).collect();
    if tags.iter().all(|tag| matches!(*tag, USER_OBJ | GROUP_OBJ | OTHER)) {
        node.xattrs.remove(ACL);
        return;
    }
    let of_group = if tags.contains(&MASK) { MASK } else { GROUP_OBJ };
    for (entry, tag) in acl[4..].chunks_exact_mut(8).zip(tags) {
        match tag {
            USER_OBJ => entry[2] = (mode >> 6 & 7) as u8,
            OTHER => entry[2] = (mode & 7) as u8,
            _ if tag == of_group => entry[2] = (mode >> 3 & 7) as u8,
            _ => {}
        }
    }
}

/// What a directory that is only implied takes over from the same directory of a layer below.
pub(super) fn inherit(from: &Node, into: &mut Node) {
    let inherited = from.xattrs.iter().filter(|(name, _)| !name.starts_with(b"trusted."));
    into.xattrs.extend(inherited.map(|(name, value)| (name.clone(), value.clone())));
}

/// `struct vfs_cap_data` of revision 2 or `vfs_ns_cap_data` of revision 3 (`cap_convert_nscap` in the kernel).
fn is_capability(value: &[u8]) -> bool {
    /// `VFS_CAP_FLAGS_EFFECTIVE`.
    const FLAGS: u32 = 1;
    let Some(magic) = value.first_chunk() else { return false };
    matches!((u32::from_le_bytes(*magic) & !FLAGS, value.len()), (0x0200_0000, 20) | (0x0300_0000, 24))
}

/// `struct posix_acl_xattr_header` of version 2, then entries of eight bytes (`posix_acl_from_xattr`).
fn is_acl(value: &[u8]) -> bool {
    value.starts_with(&[2, 0, 0, 0]) && value.len() % 8 == 4
}
