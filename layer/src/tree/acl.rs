//! POSIX access control lists as Linux and ext4 keep them (`fs/posix_acl.c`), in the form of their extended attributes:
//! four bytes of version, then eight bytes an entry (tag, permissions, user or group).

use super::{
    Node, NodeKind,
    budget::Budget,
    error::{TreeFault, XattrFault},
};

/// Access lists, and those that a directory passes on.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

// Tags of `linux/posix_acl.h`.
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The user or group of entries that have none.
const NO_ID: [u8; 4] = [0xff; 4];

/// Sets a list as `lsetxattr` would, in the form in which the kernel gives it back. An empty one takes the list away. Left
/// out is what is answered with `ENOTSUP`: another version, or a list on a symbolic link.
pub(super) fn set(node: &mut Node, name: &[u8], value: &[u8]) -> Result<(), XattrFault> {
    const VERSION: [u8; 4] = [2, 0, 0, 0];
    let entries = match value.split_first_chunk() {
        None if value.is_empty() => &[],
        None => return Err(XattrFault::Value),
        Some((version, _)) if *version != VERSION => return Ok(()),
        Some((_, entries)) => entries,
    };
    let (entries, rest) = entries.as_chunks::<8>();
    if !rest.is_empty() || !entries.iter().all(is_entry) {
        return Err(XattrFault::Value);
    }
    let is_dir = matches!(node.kind, NodeKind::Dir(_));
    match node.kind {
        NodeKind::Symlink(_) => return Ok(()),
        _ if entries.is_empty() => {
            node.xattrs.remove(name);
            return Ok(());
        }
        _ if (name == DEFAULT && !is_dir) || !is_valid(entries) => return Err(XattrFault::Value),
        _ => {}
    }
    let mut list = VERSION.to_vec();
    for entry in entries {
        let names_somebody = matches!(tag(entry), USER | GROUP);
        list.extend(&entry[..4]);
        list.extend(if names_somebody { &entry[4..] } else { &NO_ID });
    }
    node.xattrs.insert(name.to_vec(), list);
    Ok(())
}

/// Gives a new inode what its directory's default list says (`posix_acl_create`).
pub(super) fn pass_on(dir: &Node, node: &mut Node, budget: &mut Budget) -> Result<(), TreeFault> {
    let list = dir.xattrs.get(DEFAULT).filter(|_| !matches!(node.kind, NodeKind::Symlink(_)));
    let Some(list) = list else { return Ok(()) };
    let names: &[&[u8]] = if matches!(node.kind, NodeKind::Dir(_)) { &[ACCESS, DEFAULT] } else { &[ACCESS] };
    for name in names {
        budget.copy(name, list)?;
        node.xattrs.insert(name.to_vec(), list.clone());
    }
    chmod(node, node.mode);
    Ok(())
}

/// Sets the mode as chmod(2) does: an access list follows it (`posix_acl_chmod`), and one that says no more than the
/// mode does not exist.
pub(super) fn chmod(node: &mut Node, mode: u32) {
    node.mode = mode;
    let Some(list) = node.xattrs.get_mut(ACCESS) else { return };
    let (entries, _) = list[4..].as_chunks_mut::<8>();
    if entries.iter().all(|entry| matches!(tag(entry), USER_OBJ | GROUP_OBJ | OTHER)) {
        node.xattrs.remove(ACCESS);
        return;
    }
    let of_group = if entries.iter().any(|entry| tag(entry) == MASK) { MASK } else { GROUP_OBJ };
    for entry in entries {
        match tag(entry) {
            USER_OBJ => entry[2] = (mode >> 6 & 7) as u8,
            OTHER => entry[2] = (mode & 7) as u8,
            tag if tag == of_group => entry[2] = (mode >> 3 & 7) as u8,
            _ => {}
        }
    }
}

fn tag(entry: &[u8; 8]) -> u16 {
    u16::from_le_bytes([entry[0], entry[1]])
}

/// `posix_acl_from_xattr`.
fn is_entry(entry: &[u8; 8]) -> bool {
    match tag(entry) {
        USER | GROUP => entry[4..] != NO_ID,
        tag => matches!(tag, USER_OBJ | GROUP_OBJ | MASK | OTHER),
    }
}

/// `posix_acl_valid`: owner, users, group, groups, mask, others; a mask where users or groups are named.
fn is_valid(entries: &[[u8; 8]]) -> bool {
    let (mut next, mut needs_mask) = (Some(USER_OBJ), false);
    for entry in entries {
        next = match (next, tag(entry)) {
            (Some(USER_OBJ), USER_OBJ) => Some(USER),
            (Some(USER), GROUP_OBJ) => Some(GROUP),
            (Some(USER), USER) | (Some(GROUP), GROUP) => {
                needs_mask = true;
                next
            }
            (Some(GROUP), MASK) => Some(OTHER),
            (Some(OTHER), OTHER) => None,
            (Some(GROUP), OTHER) if !needs_mask => None,
            _ => return false,
        };
        if u16::from_le_bytes([entry[2], entry[3]]) > 7 {
            return false;
        }
    }
    next.is_none()
}
