//! The structures of `fs/erofs/erofs_fs.h`, encoded. All numbers are little-endian.

use silk_model::Digest;

use crate::{toc::Time, tree::NodeKind};

use super::Device;

/// Block size: what a tar aligns its members to, and the smallest that the kernel takes (from Linux 6.4).
pub(super) const BLOCK: u64 = 512;
/// `blkszbits`.
pub(super) const BLOCK_BITS: u32 = BLOCK.trailing_zeros();
/// Inode numbers count these, from the image's first byte (`meta_blkaddr` is 0).
pub(super) const SLOT: u64 = 32;
/// `sizeof(struct erofs_inode_extended)`.
pub(super) const INODE: u64 = 64;
/// `EROFS_SUPER_OFFSET`.
const SUPER_OFFSET: usize = 1024;
/// `sizeof(struct erofs_super_block)`; the device table follows it.
const SUPER: usize = 128;
/// `sizeof(struct erofs_deviceslot)`.
const DEVICE_SLOT: usize = 128;
/// `EROFS_SUPER_MAGIC_V1`.
const MAGIC: u32 = 0xE0F5_E1E2;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM | EROFS_FEATURE_COMPAT_MTIME`.
const FEATURE_COMPAT: u32 = 0x1 | 0x2;
/// No inode of the image has extended attributes: a `feature_compat` of our own, which the kernel does not look at.
const NO_XATTRS: u32 = 1 << 31;
/// `EROFS_FEATURE_INCOMPAT_CHUNKED_FILE`.
const CHUNKED_FILE: u32 = 0x4;
/// `EROFS_FEATURE_INCOMPAT_DEVICE_TABLE`.
const DEVICE_TABLE: u32 = 0x8;
/// `EROFS_CHUNK_FORMAT_INDEXES`.
pub(super) const CHUNK_INDEXES: u32 = 0x20;
/// `EROFS_CHUNK_FORMAT_BLKBITS_MASK`: chunks are at most 512 << 31 bytes.
pub(super) const MAX_CHUNK_BITS: u32 = BLOCK_BITS + 0x1f;
/// `EROFS_NULL_ADDR`: a chunk that is a hole.
pub(super) const NULL_ADDR: u32 = u32::MAX;
/// Volume name of the images that this writer makes; raised when their content changes for the same tree, so that older
/// ones are made anew.
const VOLUME: [u8; 16] = *b"silk-layer-2\0\0\0\0";

/// How many bytes the checksum covers, from the image's start.
const SUMMED: usize = SUPER_OFFSET + BLOCK as usize;

/// What the head of an image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Length of the whole image in bytes.
    pub size: u64,
    /// Number of the root directory's inode.
    pub root: u64,
    /// As given to [`super::Plan::new`].
    pub uuid: [u8; 16],
    /// Whether inodes may have extended attributes.
    pub xattrs: bool,
    /// The layers whose data files the image wants as `device=` options, in this order.
    pub devices: Vec<Digest>,
}

/// An image that is not (or no longer) one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Shorter than its superblock or its device table.
    #[error("the metadata image is cut off")]
    Short,
    /// No EROFS, its checksum is wrong, or a device is no layer.
    #[error("the metadata image's superblock is damaged")]
    Damaged,
    /// Written by another version.
    #[error("the metadata image was written by another version of silk")]
    Version,
}

/// Reads the head of an image that [`super::Plan::write`] has made: `image` is all of it, or at least
/// [`super::MAX_HEAD`] bytes. Tells whether it is one, not whether what follows the head is whole.
pub fn inspect(image: &[u8]) -> Result<Head, HeadError> {
    let mut sum = [0; BLOCK as usize];
    sum.copy_from_slice(image.get(SUPER_OFFSET..SUMMED).ok_or(HeadError::Short)?);
    let u32_at = |at: usize| u32::from_le_bytes([sum[at], sum[at + 1], sum[at + 2], sum[at + 3]]);
    let u16_at = |at: usize| u16::from_le_bytes([sum[at], sum[at + 1]]);
    let (magic, expected, blocks) = (u32_at(0), u32_at(4), u32_at(36));
    let (root, count) = (u64::from(u16_at(14)), usize::from(u16_at(86)));
    let xattrs = u32_at(8) & NO_XATTRS == 0;
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&sum[48..64]);
    let ours = sum[64..80] == VOLUME;
    sum[4..8].fill(0);
    if magic != MAGIC || expected != checksum(&sum) {
        return Err(HeadError::Damaged);
    }
    if !ours {
        return Err(HeadError::Version);
    }
    let table = image.get(SUPER_OFFSET + SUPER..).and_then(|rest| rest.get(..count * DEVICE_SLOT));
    let devices = table.ok_or(HeadError::Short)?.chunks_exact(DEVICE_SLOT).map(device_tag);
    Ok(Head { size: u64::from(blocks) * BLOCK, root, uuid, xattrs, devices: devices.collect::<Result<_, _>>()? })
}

/// The layer in a device's slot.
fn device_tag(slot: &[u8]) -> Result<Digest, HeadError> {
    let hex = std::str::from_utf8(&slot[..64]).map_err(|_| HeadError::Damaged)?;
    format!("sha256:{hex}").parse().map_err(|_| HeadError::Damaged)
}

/// The kernel's `crc32c(~0, ...)`, which lacks the final inversion of the usual one. With blocks of at most 1024 bytes
/// it covers one block from the superblock on (`erofs_superblock_csum_verify`).
fn checksum(block: &[u8; BLOCK as usize]) -> u32 {
    !crc32c::crc32c(block)
}

/// Where the first inode starts: at the block behind the device table, so that the checksum covers no inode.
pub(super) fn inodes_start(devices: usize) -> u64 {
    (SUPER_OFFSET + SUPER + devices * DEVICE_SLOT).next_multiple_of(BLOCK as usize) as u64
}

/// What the superblock says of this image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Super {
    pub root_nid: u16,
    pub inodes: u64,
    pub blocks: u32,
    pub uuid: [u8; 16],
    pub xattrs: bool,
}

/// The image from its first byte up to [`inodes_start`].
pub(super) fn head(it: Super, devices: &[Device]) -> Vec<u8> {
    let mut head = vec![0; SUPER_OFFSET];
    put32(&mut head, MAGIC);
    put32(&mut head, 0); // checksum, below
    put32(&mut head, if it.xattrs { FEATURE_COMPAT } else { FEATURE_COMPAT | NO_XATTRS });
    head.extend([BLOCK_BITS as u8, 0]); // blkszbits, sb_extslots
    put16(&mut head, it.root_nid);
    put64(&mut head, it.inodes);
    head.extend([0; 12]); // build_time, build_time_nsec: for compact inodes
    put32(&mut head, it.blocks);
    head.extend([0; 8]); // meta_blkaddr, xattr_blkaddr
    head.extend(it.uuid);
    head.extend(VOLUME);
    let incompat = if devices.is_empty() { CHUNKED_FILE } else { CHUNKED_FILE | DEVICE_TABLE };
    put32(&mut head, incompat);
    put16(&mut head, 0); // compression
    put16(&mut head, devices.len() as u16);
    put16(&mut head, ((SUPER_OFFSET + SUPER) / DEVICE_SLOT) as u16); // devt_slotoff
    head.resize(SUPER_OFFSET + SUPER, 0);
    for device in devices {
        put_device(&mut head, device);
    }
    head.resize(inodes_start(devices.len()) as usize, 0);
    let mut sum = [0; BLOCK as usize];
    sum.copy_from_slice(&head[SUPER_OFFSET..SUMMED]);
    head[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&checksum(&sum).to_le_bytes());
    head
}

fn put_device(out: &mut Vec<u8>, device: &Device) {
    let start = out.len();
    out.extend(device.layer.hex().as_bytes()); // tag: 64 bytes
    // A size that does not fit is clipped: the field only feeds statfs, and no chunk's address goes beyond it.
    put32(out, u32::try_from(device.size.div_ceil(BLOCK)).unwrap_or(u32::MAX));
    out.resize(start + DEVICE_SLOT, 0); // mapped_blkaddr 0: chunks name their device
}

/// `EROFS_INODE_*` and what goes with it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Layout {
    /// Contents in whole blocks, from this one on.
    Plain { block: u32 },
    /// Contents right behind the attributes.
    Inline,
    /// A list of chunks of `1 << bits` bytes behind the attributes.
    Chunks { bits: u32 },
    /// A device's number, or nothing.
    Special { rdev: u32 },
}

/// The parts of an inode that are not in the tree's node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inode {
    pub layout: Layout,
    pub size: u64,
    pub ino: u32,
    pub nlink: u32,
    pub xattr_len: usize,
}

/// `struct erofs_inode_extended`.
pub(super) fn put_inode(out: &mut Vec<u8>, node: &crate::tree::Node, it: Inode) {
    let (layout, union) = match it.layout {
        Layout::Plain { block } => (0, block),
        Layout::Special { rdev } => (0, rdev),
        Layout::Inline => (2, 0),
        Layout::Chunks { bits } => (4, (bits - BLOCK_BITS) | CHUNK_INDEXES),
    };
    let Time { secs, nanos } = node.mtime;
    put16(out, 1 | layout << 1); // EROFS_INODE_LAYOUT_EXTENDED
    put16(out, xattr_count(it.xattr_len));
    put16(out, (file_type_bits(&node.kind) | node.mode & 0o7777) as u16);
    put16(out, 0);
    put64(out, it.size);
    put32(out, union);
    put32(out, it.ino);
    put32(out, node.uid);
    put32(out, node.gid);
    put64(out, secs as u64); // time64_t: negative seconds are before 1970
    put32(out, nanos);
    put32(out, it.nlink);
    out.extend([0; 16]);
}

/// `struct erofs_inode_chunk_index`. Device 0 is the image itself.
pub(super) fn put_chunk(out: &mut Vec<u8>, device: u16, block: u32) {
    put16(out, 0);
    put16(out, device);
    put32(out, block);
}

/// `S_IFMT` of an inode.
fn file_type_bits(kind: &NodeKind) -> u32 {
    match kind {
        NodeKind::Fifo => 0o010_000,
        NodeKind::Char(..) => 0o020_000,
        NodeKind::Dir(_) => 0o040_000,
        NodeKind::Block(..) => 0o060_000,
        NodeKind::File { .. } => 0o100_000,
        NodeKind::Symlink(_) => 0o120_000,
    }
}

/// `FT_*`, the kinds in a directory entry.
pub(super) fn entry_type(kind: &NodeKind) -> u8 {
    match kind {
        NodeKind::File { .. } => 1,
        NodeKind::Dir(_) => 2,
        NodeKind::Char(..) => 3,
        NodeKind::Block(..) => 4,
        NodeKind::Fifo => 5,
        NodeKind::Symlink(_) => 7,
    }
}

/// The kernel's `new_encode_dev`: 12 bits of major, 20 of minor. Higher bits are lost, as in mknod(2), which takes the
/// same form.
pub(super) fn rdev(major: u32, minor: u32) -> u32 {
    let (major, minor) = (major & 0xfff, minor & 0xf_ffff);
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// `struct erofs_xattr_ibody_header`.
pub(super) const XATTR_HEADER: usize = 12;
/// `i_xattr_icount` is 16 bits wide: the header and 65,534 times four bytes.
const XATTR_MAX: usize = XATTR_HEADER + 4 * (u16::MAX as usize - 1);

/// Attributes of one name the format cannot hold.
pub(super) struct XattrTooLong;

/// `EROFS_XATTR_INDEX_*` and the rest of the name. `None` for a namespace that the kernel does not know: no file
/// system would take it, and containerd drops what is refused with ENOTSUP.
fn xattr_index(name: &[u8]) -> Option<(u8, &[u8])> {
    const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    match name {
        b"system.posix_acl_access" => Some((2, b"")),
        b"system.posix_acl_default" => Some((3, b"")),
        _ => PREFIXES.iter().find_map(|(prefix, index)| Some((*index, name.strip_prefix(*prefix)?))),
    }
}

/// Bytes of one attribute in the inode's body; 0 when it is left out.
pub(super) fn xattr_len(name: &[u8], value: &[u8]) -> Result<usize, XattrTooLong> {
    let Some((index, rest)) = xattr_index(name) else { return Ok(0) };
    let empty = rest.is_empty() && !matches!(index, 2 | 3);
    if empty || rest.len() > 255 || value.len() > usize::from(u16::MAX) {
        return Err(XattrTooLong);
    }
    Ok((4 + rest.len() + value.len()).next_multiple_of(4))
}

/// Length of the whole body for attributes of `sum` bytes.
pub(super) fn xattr_body_len(sum: usize) -> Result<usize, XattrTooLong> {
    match sum {
        0 => Ok(0),
        _ if XATTR_HEADER + sum > XATTR_MAX => Err(XattrTooLong),
        _ => Ok(XATTR_HEADER + sum),
    }
}

/// `i_xattr_icount`.
fn xattr_count(body: usize) -> u16 {
    if body == 0 { 0 } else { ((body - XATTR_HEADER) / 4 + 1) as u16 }
}

/// Length of the body that an `i_xattr_icount` stands for.
pub(super) fn xattr_body(count: u16) -> usize {
    if count == 0 { 0 } else { XATTR_HEADER + 4 * (usize::from(count) - 1) }
}

/// What [`xattr_index`] has made two parts of.
pub(super) fn xattr_name(index: u8, rest: &[u8]) -> Option<Vec<u8>> {
    let prefix: &[u8] = match index {
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        _ => return None,
    };
    Some([prefix, rest].concat())
}

/// The body, whose length [`xattr_body_len`] has found not to be 0.
pub(super) fn put_xattr_header(out: &mut Vec<u8>) {
    out.extend([0; XATTR_HEADER]); // no name filter, nothing shared
}

/// One attribute of a body.
pub(super) fn put_xattr(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let Some((index, rest)) = xattr_index(name) else { return };
    out.extend([rest.len() as u8, index]);
    put16(out, value.len() as u16);
    out.extend(rest);
    out.extend(value);
    let padding = (rest.len() + value.len()).next_multiple_of(4) - rest.len() - value.len();
    out.extend([0; 4].iter().take(padding));
}

pub(super) fn put16(out: &mut Vec<u8>, n: u16) {
    out.extend(n.to_le_bytes());
}

pub(super) fn put32(out: &mut Vec<u8>, n: u32) {
    out.extend(n.to_le_bytes());
}

pub(super) fn put64(out: &mut Vec<u8>, n: u64) {
    out.extend(n.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_does() {
        assert_eq!(rdev(0, 0), 0);
        assert_eq!(rdev(1, 3), 0x103);
        assert_eq!(rdev(259, 0x12345), 0x1231_0345);
        assert_eq!(rdev(4096, 1 << 20), 0, "as mknod(2) cuts them");
    }

    #[test]
    fn a_head_is_recognised_and_a_damaged_one_is_not() {
        let it = Super { root_nid: 36, inodes: 1, blocks: 8, uuid: [7; 16], xattrs: false };
        let layers: Vec<_> = (0..5u8).map(|n| Digest::of(&[n])).collect();
        let devices = layers.iter().map(|layer| Device { source: crate::tree::Source::Own, size: 1, layer: *layer });
        let image = head(it, &devices.collect::<Vec<_>>());
        assert_eq!(inspect(&image), Ok(Head { size: 4096, root: 36, uuid: [7; 16], xattrs: false, devices: layers }));
        for at in [1024, 1028, 1060, 1100, 1535] {
            let mut bad = image.clone();
            bad[at] ^= 1;
            assert_eq!(inspect(&bad), Err(HeadError::Damaged), "{at}");
        }
        assert_eq!(inspect(&image[..1535]), Err(HeadError::Short));
        assert_eq!(inspect(&image[..1700]), Err(HeadError::Short));
    }
}
