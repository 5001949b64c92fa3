//! PAX extended headers: `length key=value` records, as Go's `parsePAX` and `mergePAX` read them.
//!
//! The last record of a key counts, and an empty value means "as the plain header says"; an extended attribute may be
//! empty.

use std::collections::HashSet;

use super::{error::PaxFault, header::Header, sparse::Records};
use crate::toc::Time;

/// The records that matter. Empty where there is none.
#[derive(Debug, Default)]
pub(super) struct Pax {
    path: Vec<u8>,
    linkpath: Vec<u8>,
    size: Vec<u8>,
    uid: Vec<u8>,
    gid: Vec<u8>,
    mtime: Vec<u8>,
    atime: Vec<u8>,
    ctime: Vec<u8>,
    pub sparse: Records,
    /// In the order of their last mention.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The prefix of records that hold an extended attribute.
const XATTR: &[u8] = b"SCHILY.xattr.";

impl Pax {
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, PaxFault> {
        let mut pax = Self::default();
        // The regions of sparse version 0.0: offset, length, offset, ... in records of their own.
        let mut regions: Vec<&[u8]> = Vec::new();
        while !bytes.is_empty() {
            let Record { key, value, rest } = record(bytes)?;
            bytes = rest;
            let expected: &[u8] =
                if regions.len().is_multiple_of(2) { b"GNU.sparse.offset" } else { b"GNU.sparse.numbytes" };
            if matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes") {
                if key != expected || value.contains(&b',') {
                    return Err(PaxFault::SparseOrder);
                }
                regions.push(value);
            } else if let Some(name) = key.strip_prefix(XATTR) {
                pax.xattrs.push((name.to_vec(), value.to_vec()));
            } else if let Some(field) = pax.field(key) {
                *field = value.to_vec();
            }
        }
        if !regions.is_empty() {
            pax.sparse.map = regions.join(&b',');
        }
        keep_last(&mut pax.xattrs);
        Ok(pax)
    }

    fn field(&mut self, key: &[u8]) -> Option<&mut Vec<u8>> {
        Some(match key {
            b"path" => &mut self.path,
            b"linkpath" => &mut self.linkpath,
            b"size" => &mut self.size,
            b"uid" => &mut self.uid,
            b"gid" => &mut self.gid,
            b"mtime" => &mut self.mtime,
            b"atime" => &mut self.atime,
            b"ctime" => &mut self.ctime,
            _ => return self.sparse.field(key),
        })
    }

    /// Overrides the plain header's fields. Sparse records are another step.
    pub(super) fn merge(&mut self, header: &mut Header, mtime: &mut Time) -> Result<(), PaxFault> {
        for (value, field) in [(&mut self.path, &mut header.name), (&mut self.linkpath, &mut header.link)] {
            if !value.is_empty() {
                *field = std::mem::take(value);
            }
        }
        let numbers = [
            (&self.size, &mut header.size, "size"),
            (&self.uid, &mut header.uid, "uid"),
            (&self.gid, &mut header.gid, "gid"),
        ];
        for (value, field, name) in numbers {
            if !value.is_empty() {
                *field = decimal(value).ok_or(PaxFault::Value(name))?;
            }
        }
        for (value, name) in [(&self.atime, "atime"), (&self.ctime, "ctime")] {
            if !value.is_empty() {
                time(value).ok_or(PaxFault::Value(name))?;
            }
        }
        if !self.mtime.is_empty() {
            *mtime = time(&self.mtime).ok_or(PaxFault::Value("mtime"))?;
        }
        Ok(())
    }
}

/// A record, and the bytes that follow it.
struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
    rest: &'a [u8],
}

/// Splits off the first record.
fn record(bytes: &[u8]) -> Result<Record<'_>, PaxFault> {
    let space = bytes.iter().position(|byte| *byte == b' ').ok_or(PaxFault::Record)?;
    let len = decimal(&bytes[..space]).and_then(|len| usize::try_from(len).ok()).ok_or(PaxFault::Record)?;
    if len < 5 || len > bytes.len() || len <= space + 1 {
        return Err(PaxFault::Record);
    }
    let body = bytes[space + 1..len].strip_suffix(b"\n").ok_or(PaxFault::Record)?;
    let equals = body.iter().position(|byte| *byte == b'=').ok_or(PaxFault::Record)?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    if key.is_empty() {
        return Err(PaxFault::Record);
    }
    let is_name = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
    if (if is_name { value } else { key }).contains(&0) {
        return Err(PaxFault::Nul);
    }
    Ok(Record { key, value, rest: &bytes[len..] })
}

/// Removes all but the last record of each name.
fn keep_last(xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>) {
    let mut seen = HashSet::new();
    let keep: Vec<bool> = xattrs.iter().rev().map(|(name, _)| seen.insert(name.as_slice())).collect();
    let mut keep = keep.into_iter().rev();
    xattrs.retain(|_| keep.next().unwrap_or(true));
}

/// A number of 64 bits with an optional sign, as Go's `ParseInt`.
pub(super) fn decimal(bytes: &[u8]) -> Option<i64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// `seconds[.fraction]`, possibly negative; digits behind the ninth are cut off.
fn time(bytes: &[u8]) -> Option<Time> {
    let (whole, fraction) = match bytes.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&bytes[..dot], &bytes[dot + 1..]),
        None => (bytes, &[][..]),
    };
    let secs = decimal(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanos = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    if nanos > 0 && whole.first() == Some(&b'-') {
        return Some(Time { secs: secs.saturating_sub(1), nanos: 1_000_000_000 - nanos });
    }
    Some(Time { secs, nanos })
}
