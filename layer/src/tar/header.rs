//! One header block: v7, ustar, star and old GNU, as `archive/tar` of Go reads them (`reader.go`, `strconv.go`).

use super::error::{TarError, shown};

/// Bytes in a block of a tar.
pub(super) const BLOCK: usize = 512;

/// The dialect of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    /// ustar, and PAX, which shares its headers.
    Ustar,
    /// Schily's star before PAX.
    Star,
    /// GNU tar's own.
    Gnu,
}

/// The fields of a header. Numbers may be negative: base-256 can say so.
#[derive(Debug)]
pub(super) struct Header {
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub flag: u8,
    pub mode: i64,
    pub uid: i64,
    pub gid: i64,
    pub size: i64,
    pub mtime: i64,
    pub major: i64,
    pub minor: i64,
    pub format: Format,
}

/// Why a block is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderFault {
    Checksum,
    Number(&'static str),
}

impl HeaderFault {
    pub(super) fn at(self, offset: u64, block: &[u8; BLOCK]) -> TarError {
        match self {
            Self::Checksum => TarError::NotAHeader { offset },
            Self::Number(field) => TarError::Number { offset, path: shown(text(&block[..100])), field },
        }
    }
}

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, HeaderFault> {
        let format = format(block).ok_or(HeaderFault::Checksum)?;
        let number =
            |from: usize, len: usize, field| numeric(&block[from..from + len]).ok_or(HeaderFault::Number(field));
        let mut header = Self {
            name: text(&block[..100]).to_vec(),
            link: text(&block[157..257]).to_vec(),
            flag: block[156],
            mode: number(100, 8, "mode")?,
            uid: number(108, 8, "owner")?,
            gid: number(116, 8, "group")?,
            size: number(124, 12, "size")?,
            mtime: number(136, 12, "modification time")?,
            major: 0,
            minor: 0,
            format,
        };
        if format == Format::V7 {
            return Ok(header);
        }
        header.major = number(329, 8, "device major number")?;
        header.minor = number(337, 8, "device minor number")?;
        let prefix = match format {
            Format::V7 => &[],
            Format::Ustar => text(&block[345..500]),
            Format::Star => {
                number(476, 12, "access time")?;
                number(488, 12, "change time")?;
                text(&block[345..476])
            }
            Format::Gnu => gnu_prefix(block),
        };
        if !prefix.is_empty() {
            header.name = [prefix, b"/", &header.name].concat();
        }
        Ok(header)
    }

    /// Major and minor number as mknod(2) takes them: 12 and 20 bits, higher ones fall off.
    pub(super) fn device(&self) -> (u32, u32) {
        (self.major as u32 & 0xfff, self.minor as u32 & 0xf_ffff)
    }
}

/// The GNU format has no prefix, but Go before 1.8 wrote one by mistake: where the times that belong there do not
/// parse and the prefix is ASCII, it is meant (golang.org/issues/12594).
fn gnu_prefix(block: &[u8; BLOCK]) -> &[u8] {
    let time = |from: usize| block[from] == 0 || numeric(&block[from..from + 12]).is_some();
    let prefix = text(&block[345..500]);
    if (time(345) && time(357)) || !prefix.is_ascii() { &[] } else { prefix }
}

/// The dialect by its magic bytes, or `None` where the checksum does not match.
fn format(block: &[u8; BLOCK]) -> Option<Format> {
    let claimed = octal(&block[148..156])?;
    let (unsigned, signed) = checksums(block);
    if claimed != unsigned && claimed != signed {
        return None;
    }
    Some(match (&block[257..263], &block[263..265], &block[508..]) {
        (b"ustar\0", _, b"tar\0") => Format::Star,
        (b"ustar\0", ..) => Format::Ustar,
        (b"ustar ", b" \0", _) => Format::Gnu,
        _ => Format::V7,
    })
}

/// The sum of the bytes as POSIX has it, unsigned, and as Sun's tar had it, signed; the checksum's own field counts
/// as spaces.
fn checksums(block: &[u8; BLOCK]) -> (i64, i64) {
    let mut unsigned = 8 * i64::from(b' ');
    let mut high = 0;
    for part in [&block[..148], &block[156..]] {
        unsigned += part.iter().map(|byte| u32::from(*byte)).sum::<u32>() as i64;
        high += part.iter().map(|byte| u32::from(byte >> 7)).sum::<u32>() as i64;
    }
    (unsigned, unsigned - 256 * high)
}

/// The bytes before the first NUL.
pub(super) fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Base-256 (big-endian two's complement with the top bit set) or octal; `None` where it is no number of 64 bits.
pub(super) fn numeric(bytes: &[u8]) -> Option<i64> {
    match bytes.first() {
        Some(first) if first & 0x80 != 0 => {
            let invert = if first & 0x40 != 0 { 0xff } else { 0 };
            let mut value = 0_u64;
            for (index, byte) in bytes.iter().enumerate() {
                let byte = (byte ^ invert) & if index == 0 { 0x7f } else { 0xff };
                if value >> 56 != 0 {
                    return None;
                }
                value = value << 8 | u64::from(byte);
            }
            let value = i64::try_from(value).ok()?;
            Some(if invert == 0 { value } else { !value })
        }
        _ => octal(bytes),
    }
}

/// Octal digits among spaces and NULs; nothing at all is zero.
fn octal(bytes: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = bytes.iter().position(|byte| !blank(byte)) else { return Some(0) };
    let end = bytes.iter().rposition(|byte| !blank(byte))?;
    let mut value = 0_i64;
    for byte in text(&bytes[start..=end]) {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value = value.checked_mul(8)? | i64::from(digit);
    }
    Some(value)
}
