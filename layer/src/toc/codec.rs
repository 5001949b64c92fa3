//! A [`Toc`] as a file: `docs/formats/toc.md`. Called by the store; nothing here blocks.
//!
//! The payload is hashed, so a file that was torn or has rotted is an error and never a wrong tree. A table made by
//! somebody else may still be hostile: decoding allocates no more than the bytes at hand unfold to, up to
//! [`MAX_UNFOLDED`], and the result's invariants are checked.

use std::io::{self, Read as _, Write as _};

use silk_model::{Class, Digest};

use super::{Entry, Extent, Kind, Toc};

/// The first bytes of the file.
pub const MAGIC: [u8; 8] = *b"SILKTOC\0";

/// The version that this code writes, and the only one that it reads: a table can always be made again from the data.
pub const VERSION: u32 = 1;

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 64;

/// The most bytes of postcard that a payload may unfold to: the entries, and two numbers of 64 bits.
pub const MAX_UNFOLDED: u64 = MAX_PACKED + 20;

/// The most bytes that the entries may take: what a scanner takes, a hundred bytes for each of [`MAX_ENTRIES`].
pub const MAX_PACKED: u64 = 384 << 20;

/// The most entries of a table: all of `/usr` of a developer's machine holds 135,000.
pub const MAX_ENTRIES: u64 = 4_000_000;

/// zstd's default: 5 times smaller than postcard, 150 MB/s with serialising; more effort is not worth it for files of
/// this size (100 KB for a layer of Debian).
const LEVEL: i32 = 3;

/// A file that is not a table of contents, or not one that we read.
#[derive(Debug, thiserror::Error)]
pub enum TocError {
    /// Too short, or something else altogether.
    #[error("this is not a table of contents of silk")]
    NotAToc,
    /// Written by another silk.
    #[error("the table of contents has version {0}, this silk reads version {VERSION}: it must be made again")]
    Version(u32),
    /// Shorter or longer than its header says.
    #[error("the table of contents has {found} bytes of payload where its header promises {promised}")]
    Length {
        /// By the header.
        promised: u64,
        /// What there is.
        found: u64,
    },
    /// The hash does not match: torn or rotten.
    #[error("the table of contents does not match its own hash: the file is damaged")]
    Hash,
    /// Unfolds to more than [`MAX_UNFOLDED`], or to another length than its header says.
    #[error("the table of contents unfolds to more or less than the {promised} bytes that its header promises")]
    Unfolded {
        /// By the header.
        promised: u64,
    },
    /// The payload is no zstd.
    #[error("the table of contents cannot be decompressed")]
    Compression(#[source] io::Error),
    /// The payload is no postcard of a [`Toc`].
    #[error("the table of contents cannot be decoded")]
    Encoding(#[source] postcard::Error),
    /// An entry that no scanner makes.
    #[error("entry {index} of the table of contents is impossible: {what}")]
    Impossible {
        /// Which one.
        index: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl TocError {
    /// What kind of trouble this is.
    pub fn class(&self) -> Class {
        match self {
            Self::Version(_) => Class::Unsupported,
            _ => Class::Corrupt,
        }
    }
}

/// The file's bytes for a table.
pub fn encode(toc: &Toc) -> Vec<u8> {
    let head = postcard::to_stdvec(&(toc.size, toc.count)).expect("postcard into memory fails for no number");
    let unfolded = head.len() as u64 + toc.packed_len();
    let mut file = compress(vec![0; HEADER_LEN], &[&head, &toc.packed], unfolded)
        .expect("zstd into memory at a valid level does not fail");
    let (header, payload) = file.split_at_mut(HEADER_LEN);
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&unfolded.to_le_bytes());
    header[24..32].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    header[32..].copy_from_slice(Digest::of(payload).as_bytes());
    file
}

/// Appends one zstd frame of these `parts`, which have `len` bytes together.
fn compress(out: Vec<u8>, parts: &[&[u8]], len: u64) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(out, LEVEL)?;
    encoder.set_pledged_src_size(Some(len))?;
    parts.iter().try_for_each(|part| encoder.write_all(part))?;
    encoder.finish()
}

/// Are these the bytes of a table, whole and of this version? Much quicker than decoding them.
///
/// # Errors
/// When they are not.
pub fn check(file: &[u8]) -> Result<(), TocError> {
    Payload::of(file).map(drop)
}

/// The table in a file's bytes.
pub fn decode(file: &[u8]) -> Result<Toc, TocError> {
    Payload::of(file)?.decode()
}

/// What follows a file's header, proved against the digest there.
#[derive(Debug, Clone, Copy)]
pub struct Payload<'f> {
    bytes: &'f [u8],
    digest: Digest,
    /// How many bytes they promise to unfold to.
    unfolded: u64,
}

impl<'f> Payload<'f> {
    /// That of a file's bytes.
    ///
    /// # Errors
    /// When they are no table, not whole, or of another version.
    pub fn of(file: &'f [u8]) -> Result<Self, TocError> {
        let (header, payload) = file.split_at_checked(HEADER_LEN).ok_or(TocError::NotAToc)?;
        if header[..8] != MAGIC {
            return Err(TocError::NotAToc);
        }
        let long =
            |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes of a fixed header"));
        let version = long(8) as u32;
        if version != VERSION {
            return Err(TocError::Version(version));
        }
        let (unfolded, promised, found) = (long(16), long(24), payload.len() as u64);
        if promised != found {
            return Err(TocError::Length { promised, found });
        }
        let digest = Digest::of(payload);
        if header[32..] != digest.as_bytes()[..] {
            return Err(TocError::Hash);
        }
        Ok(Self { bytes: payload, digest, unfolded })
    }

    /// Files of which this is the same have the same table.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The table.
    ///
    /// # Errors
    /// When nobody made it of a tar.
    pub fn decode(&self) -> Result<Toc, TocError> {
        let mut packed = unfold(self.bytes, self.unfolded)?;
        let (size, rest) = postcard::take_from_bytes(&packed).map_err(TocError::Encoding)?;
        let (count, mut rest) = postcard::take_from_bytes::<u64>(rest).map_err(TocError::Encoding)?;
        let head = packed.len() - rest.len();
        if count > MAX_ENTRIES {
            return Err(TocError::Impossible { index: MAX_ENTRIES, what: "no scanner takes so many" });
        }
        for index in 0..count {
            let entry;
            (entry, rest) = postcard::take_from_bytes(rest).map_err(TocError::Encoding)?;
            check_entry(&entry, size).map_err(|what| TocError::Impossible { index, what })?;
        }
        if !rest.is_empty() {
            return Err(TocError::Encoding(postcard::Error::DeserializeBadEncoding));
        }
        packed.drain(..head);
        Ok(Toc { size, count, packed })
    }
}

fn unfold(payload: &[u8], promised: u64) -> Result<Vec<u8>, TocError> {
    if promised > MAX_UNFOLDED {
        return Err(TocError::Unfolded { promised });
    }
    let decoder = zstd::Decoder::with_buffer(payload).map_err(TocError::Compression)?;
    // Room for all of it at once, if it is not much better folded than real tables are (5 to 6 times).
    let room = (promised + 1).min(payload.len() as u64 * 32);
    let mut plain = Vec::with_capacity(room as usize);
    decoder.take(promised + 1).read_to_end(&mut plain).map_err(TocError::Compression)?;
    if plain.len() as u64 != promised {
        return Err(TocError::Unfolded { promised });
    }
    Ok(plain)
}

/// What every entry of a scanner holds to.
fn check_entry(entry: &Entry<'_>, tar: u64) -> Result<(), &'static str> {
    if entry.mode > 0o7777 {
        return Err("its mode has more than twelve bits");
    }
    if entry.mtime.nanos >= 1_000_000_000 {
        return Err("its nanoseconds make a second");
    }
    let Kind::File { size, extents } = &entry.kind else { return Ok(()) };
    let mut end = 0;
    for Extent { logical, offset, len } in extents {
        let fits = |from: &u64, into: u64| from.checked_add(*len).is_some_and(|end| end <= into);
        if *len == 0 || *logical < end || !fits(logical, *size) || !fits(offset, tar) {
            return Err("its extents overlap or lie outside of the file or of the tar");
        }
        end = logical + len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toc::{
        Time,
        bounded::{MAX_EXTENTS, MAX_XATTRS},
    };

    fn sample() -> Toc {
        let entry = |path: &'static [u8], kind| Entry {
            path: path.into(),
            kind,
            mode: 0o4755,
            uid: u32::MAX,
            gid: 7,
            mtime: Time { secs: -1, nanos: 999_999_999 },
            xattrs: vec![(b"user.a".to_vec(), vec![0, 255]), (b"user.b".to_vec(), vec![])],
        };
        let extents = [Extent { logical: 0, offset: 512, len: 3 }, Extent { logical: 9, offset: 515, len: 1 }];
        let entries = [
            entry(b"\xff/not utf-8", Kind::File { size: 10, extents: extents[..].into() }),
            entry(b"l", Kind::Symlink(b"\xfe".into())),
            entry(b"h", Kind::Hardlink(b"l".into())),
            entry(b"c", Kind::Char { major: 1, minor: 3 }),
            entry(b"b", Kind::Block { major: 8, minor: 0 }),
            entry(b"d", Kind::Dir),
            entry(b"f", Kind::Fifo),
        ];
        Toc::new(2048, &entries)
    }

    #[test]
    fn round_trips() {
        for toc in [sample(), Toc::default()] {
            assert_eq!(decode(&encode(&toc)).unwrap(), toc);
        }
    }

    #[test]
    fn an_entry_takes_little_more_than_its_names() {
        let file = Kind::File { size: 5000, extents: [Extent { logical: 0, offset: 1 << 30, len: 5000 }].into() };
        let path = [b'p'; 60];
        let mtime = Time { secs: 1_700_000_000, nanos: 1 };
        let entry = Entry { path: path[..].into(), kind: file, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: vec![] };
        let toc = Toc::new(1 << 31, &vec![entry; 1000]);
        assert!(toc.packed_len() < 1000 * 90, "{}", toc.packed_len());
    }

    #[test]
    fn the_layout_on_disk_is_the_documented_one() {
        let file = encode(&Toc::default());
        assert_eq!(file[..16], *b"SILKTOC\0\x01\0\0\0\0\0\0\0");
        assert_eq!(zstd::bulk::decompress(&file[64..], 16).unwrap(), [0, 0]);
        assert_eq!(
            zstd::bulk::decompress(&encode(&sample())[64..], 1 << 10).unwrap()[..21],
            *b"\x80\x10\x07\x0b\xff/not utf-8\x00\x0a\x02\x00\x80\x04"
        );
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_an_error() {
        let file = encode(&sample());
        for at in 0..file.len() {
            assert!(decode(&file[..at]).is_err(), "cut at {at}");
            let mut bad = file.clone();
            bad[at] ^= 1;
            // Bytes 12 to 16 are reserved.
            assert!(decode(&bad).is_err() || (12..16).contains(&at), "flipped at {at}");
        }
    }

    fn forged(plain: &[u8], promised: u64) -> Vec<u8> {
        let payload = zstd::bulk::compress(plain, 1).unwrap();
        let mut file = encode(&Toc::default())[..16].to_vec();
        file.extend_from_slice(&promised.to_le_bytes());
        file.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        file.extend_from_slice(Digest::of(&payload).as_bytes());
        file.extend_from_slice(&payload);
        file
    }

    #[test]
    fn a_forged_table_is_refused() {
        let bomb = vec![0; 4 << 20];
        assert!(matches!(decode(&forged(&bomb, 2)), Err(TocError::Unfolded { .. })));
        assert!(matches!(decode(&forged(&bomb, u64::MAX)), Err(TocError::Unfolded { .. })));
        // A count of entries beyond all memory.
        let count = [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert!(matches!(decode(&forged(&count, count.len() as u64)), Err(TocError::Impossible { .. })));
        // Lists within one entry that fold to nothing: of a directory's attributes, of a file's extents.
        let many = |head: &[u8], each: &[u8], count: usize| {
            let len: u64 = count as u64;
            let len = postcard::to_stdvec(&len).unwrap();
            let plain = [head, &len[..], &each.repeat(count), &[0; 8]].concat();
            decode(&forged(&plain, plain.len() as u64))
        };
        let dir = [1, 1, 1, b'd', 1, 0, 0, 0, 0, 0];
        let file = [1, 1, 1, b'f', 0, 1];
        for (head, each, most) in [(&dir[..], &[0, 0][..], MAX_XATTRS), (&file[..], &[0, 0, 1][..], MAX_EXTENTS)] {
            let refused = many(head, each, most + 1);
            assert!(matches!(refused, Err(TocError::Encoding(postcard::Error::SerdeDeCustom))), "{refused:?}");
        }
        assert!(!matches!(many(&dir, &[0, 0], MAX_XATTRS), Err(TocError::Encoding(postcard::Error::SerdeDeCustom))));
        let mut outside = sample();
        outside.set_size(515);
        assert!(matches!(decode(&encode(&outside)), Err(TocError::Impossible { index: 0, .. })));
    }
}
