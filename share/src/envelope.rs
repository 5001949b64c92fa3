//! The envelope that a shared value travels in: what it is about, how long it is, and a seal over all of it. Layout:
//! `docs/formats/share.md`. Pure; hostile bytes give errors and nothing is allocated for them.

use std::{fs, path::Path};

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use silk_model::Digest;

use crate::{Key, LayerKnowledge, ShareError};

/// The version of the layout. It is part of the names of Redis keys and of the artifact's type too, so that nodes of
/// different versions do not overwrite each other's values.
pub(crate) const VERSION: u32 = 1;
/// Bytes before the payload.
pub(crate) const HEADER: usize = 96;
/// Bytes of the seal at the end.
pub(crate) const SEAL: usize = 32;
/// Bytes of an envelope around its payload.
pub(crate) const OVERHEAD: usize = HEADER + SEAL;
const MAGIC: [u8; 8] = *b"SILKSHR\0";
/// A key shorter than this could be guessed.
const MIN_KEY: usize = 32;

// Kinds of values.
const LAYER: u8 = 1;
const PROFILE: u8 = 2;
// Kinds of seals.
const SHA256: u8 = 0;
const HMAC_SHA256: u8 = 1;

/// The fleet's keys: the first seals, all are believed. Never printed.
#[derive(Default)]
pub(crate) struct Keys(Vec<Vec<u8>>);

/// Whose values are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Only those with the fleet's key.
    Sealed,
    /// Also those without any key.
    Unsigned,
}

/// What an envelope held, proved against its seal.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    /// Of a layer; zeros for a profile.
    pub diff_id: Digest,
    /// A layer's table of contents and index; a profile and nothing.
    pub parts: [Bytes; 2],
    /// The seal: the name of exactly this value.
    pub tag: Digest,
    /// The fleet's key made it.
    pub is_sealed: bool,
}

/// Why a value is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It does not start as an envelope does.
    #[error("it is not a value of silk's")]
    Foreign,
    /// Another version of silk wrote it.
    #[error("it has version {0} of the format, this silk reads 1")]
    Version(u32),
    /// It is about something else than it was asked for.
    #[error("it is about something else: it was stored under a wrong key")]
    WrongKey,
    /// Its length is not what it says.
    #[error("it is truncated or has a tail")]
    Length,
    /// It has no key's seal although one is needed.
    #[error("it is not sealed with a key")]
    Unsigned,
    /// It has a key's seal, but this node has no key.
    #[error("it is sealed with a key and this node has none (share.key_file)")]
    NoKey,
    /// The seal is wrong.
    #[error("its seal is wrong: it is damaged, or not from this fleet")]
    Seal,
    /// Its list names it, and it is not there, or not as the list says.
    #[error("it cannot be read: {0}")]
    Gone(String),
    /// It is larger than it may be.
    #[error("it has more than {limit} bytes")]
    TooLarge {
        /// The bound.
        limit: u64,
    },
}

// === impl Keys ===

impl Keys {
    /// From the configured file, if one is.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, ShareError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = fs::read(path).map_err(|cause| ShareError::KeyFile { path: path.into(), cause })?;
        let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        let keys: Vec<Vec<u8>> = lines.map(<[u8]>::to_vec).collect();
        if keys.is_empty() || keys.iter().any(|key| key.len() < MIN_KEY) {
            return Err(ShareError::WeakKey { path: path.into() });
        }
        Ok(Self(keys))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn mac(key: &[u8]) -> Hmac<Sha256> {
        Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
    }

    /// Which seal this fleet writes, and that seal of `text`.
    fn seal(&self, text: &[u8]) -> [u8; SEAL] {
        match self.0.first() {
            Some(key) => Self::mac(key).chain_update(text).finalize().into_bytes().into(),
            None => Sha256::digest(text).into(),
        }
    }

    fn proves(&self, kind: u8, text: &[u8], seal: &[u8]) -> bool {
        match kind {
            SHA256 => Sha256::digest(text)[..] == *seal,
            _ => self.0.iter().any(|key| Self::mac(key).chain_update(text).verify_slice(seal).is_ok()),
        }
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

// === the layout ===

/// A layer's value.
pub(crate) fn of_layer(layer: &LayerKnowledge, keys: &Keys) -> Vec<u8> {
    write(Key::Layer(layer.blob), &layer.diff_id, [&layer.toc, &layer.index], keys)
}

/// An image's start profile.
pub(crate) fn of_profile(manifest: Digest, profile: &[u8], keys: &Keys) -> Vec<u8> {
    write(Key::Profile(manifest), &Digest::new([0; 32]), [profile, &[]], keys)
}

fn write(key: Key, diff_id: &Digest, parts: [&[u8]; 2], keys: &Keys) -> Vec<u8> {
    let mut out = Vec::with_capacity(OVERHEAD + parts[0].len() + parts[1].len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.push(kind(key));
    out.push(if keys.is_empty() { SHA256 } else { HMAC_SHA256 });
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(key.digest().as_bytes());
    out.extend_from_slice(diff_id.as_bytes());
    for part in parts {
        out.extend_from_slice(&(part.len() as u64).to_le_bytes());
    }
    debug_assert_eq!(out.len(), HEADER);
    for part in parts {
        out.extend_from_slice(part);
    }
    let seal = keys.seal(&out);
    out.extend_from_slice(&seal);
    out
}

/// What is inside of `bytes`, if it is about `key` and may be believed.
pub(crate) fn open(bytes: &Bytes, key: Key, keys: &Keys, trust: Trust) -> Result<Opened, EnvelopeError> {
    let size = bytes.len();
    if size < OVERHEAD {
        return Err(if bytes.starts_with(&MAGIC) { EnvelopeError::Length } else { EnvelopeError::Foreign });
    }
    if !bytes.starts_with(&MAGIC) {
        return Err(EnvelopeError::Foreign);
    }
    let version = u32::from_le_bytes(array(bytes, 8));
    if version != VERSION {
        return Err(EnvelopeError::Version(version));
    }
    let lengths = [u64::from_le_bytes(array(bytes, 80)), u64::from_le_bytes(array(bytes, 88))];
    let payload = (size - OVERHEAD) as u64;
    if lengths[0].checked_add(lengths[1]) != Some(payload) {
        return Err(EnvelopeError::Length);
    }
    let seal = bytes[13];
    match (seal, trust) {
        (SHA256, Trust::Sealed) => return Err(EnvelopeError::Unsigned),
        (HMAC_SHA256, _) if keys.is_empty() => return Err(EnvelopeError::NoKey),
        (SHA256 | HMAC_SHA256, _) => {}
        _ => return Err(EnvelopeError::Seal),
    }
    let (text, found) = bytes.split_at(size - SEAL);
    if !keys.proves(seal, text, found) {
        return Err(EnvelopeError::Seal);
    }
    // Only now: a flipped bit in the key is damage, and an intact value elsewhere is not.
    if bytes[12] != kind(key) || bytes[16..48] != *key.digest().as_bytes() || bytes[14..16] != [0, 0] {
        return Err(EnvelopeError::WrongKey);
    }
    let middle = HEADER + lengths[0] as usize;
    Ok(Opened {
        diff_id: Digest::new(array(bytes, 48)),
        parts: [bytes.slice(HEADER..middle), bytes.slice(middle..size - SEAL)],
        tag: Digest::new(array(bytes, size - SEAL)),
        is_sealed: seal == HMAC_SHA256,
    })
}

fn kind(key: Key) -> u8 {
    match key {
        Key::Layer(_) => LAYER,
        Key::Profile(_) => PROFILE,
    }
}

/// The `N` bytes at `at`, which the caller knows to be there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}

// === impl Trust ===

impl Trust {
    /// For values that lie where only the operator's nodes should write: with a key, nothing else is believed.
    pub(crate) fn of_fleet(keys: &Keys) -> Self {
        if keys.is_empty() { Self::Unsigned } else { Self::Sealed }
    }
}

#[cfg(test)]
mod tests;
