//! Which blobs are layers that silk can stream, by media type, and how they are compressed, mostly by their first bytes.

use serde::{Deserialize, Serialize};

/// How a layer's blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Compression {
    /// Not at all: the blob is the tar.
    None,
    /// gzip (RFC 1952), one member or several.
    Gzip,
    /// Zstandard (RFC 8878), one frame or several.
    Zstd,
}

/// How many first bytes of a blob [`Compression::detect`] needs to be sure.
pub const MAGIC_LEN: usize = 8;

impl Compression {
    /// By magic bytes, as containerd's `DetectCompression`: it unpacks by what a blob is, not by what it is called, but for those
    /// that are called plain ([`is_plain`]).
    ///
    /// A zstd blob may start with a skippable frame; one of those is told apart only with eight bytes at hand.
    pub fn detect(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, _, _, _, _, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// The media types of layers: OCI image specification `media-types.md`, and Docker's image manifest v2 schema 2.
///
/// Non-distributable ("foreign") layers are ordinary ones that registries may refuse to hold. Not among them:
/// encrypted layers, and anything that is no tar.
const LAYERS: [&str; 11] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// OCI's types of layers that are not compressed.
const PLAIN: [&str; 2] =
    ["application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar"];

/// Whether a blob of this media type is the tar, whatever its first bytes look like, as containerd's `DiffCompression` has it.
/// All other types, Docker's uncompressed ones included, say nothing: what such a blob is [`Compression::detect`] tells.
pub fn is_plain(media_type: &str) -> bool {
    PLAIN.contains(&media_type)
}

/// Whether silk can stream a blob of this media type.
pub fn is_layer(media_type: &str) -> bool {
    LAYERS.contains(&media_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_from_the_rest() {
        assert!(is_layer("application/vnd.oci.image.layer.v1.tar+zstd"));
        assert!(is_layer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"));
        for other in [
            "",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.oci.image.layer.v1.erofs",
            "application/vnd.in-toto+json",
            "application/vnd.oci.image.config.v1+json",
        ] {
            assert!(!is_layer(other), "{other}");
        }
    }

    #[test]
    fn only_types_of_oci_say_plain() {
        assert!(is_plain("application/vnd.oci.image.layer.v1.tar"));
        assert!(is_plain("application/vnd.oci.image.layer.nondistributable.v1.tar"));
        assert!(!is_plain("application/vnd.oci.image.layer.v1.tar+gzip"));
        assert!(!is_plain("application/vnd.docker.image.rootfs.diff.tar"));
    }

    #[test]
    fn compression_is_told_by_magic_as_containerd_does() {
        assert_eq!(Compression::detect(b"\x1f\x8b\x08\0"), Compression::Gzip);
        assert_eq!(Compression::detect(b"\x1f\x8b\x07\0"), Compression::None);
        assert_eq!(Compression::detect(b"\x28\xb5\x2f\xfd"), Compression::Zstd);
        assert_eq!(Compression::detect(b"\x5f\x2a\x4d\x18\x01\0\0\0x"), Compression::Zstd);
        assert_eq!(Compression::detect(b"\x5f\x2a\x4d\x18\x01\0\0"), Compression::None);
        assert_eq!(Compression::detect(b""), Compression::None);
        assert_eq!(Compression::detect(b"etc/\0\0\0\0"), Compression::None);
    }
}
