//! The state of a SHA-256 between two bytes of a tar: FIPS 180-4, on the block function of `sha2`.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::block_api::compress256;
use silk_model::Digest;

use crate::toc::bytes;

/// Bytes of a block of SHA-256.
const BLOCK: usize = 64;

/// The state of the tar's SHA-256 behind a span. The default is the one before the first byte.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanDigest {
    /// The chaining value behind the last whole block.
    #[serde(with = "words")]
    chain: [u32; 8],
    /// What came after it, less than a block.
    #[serde(with = "bytes")]
    rest: Vec<u8>,
}

impl Default for SpanDigest {
    fn default() -> Self {
        // FIPS 180-4, 5.3.3.
        let chain =
            [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
        Self { chain, rest: Vec::new() }
    }
}

impl fmt::Debug for SpanDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x?}+{}", self.chain, self.rest.len())
    }
}

impl SpanDigest {
    /// Whether it can be the state behind so many bytes.
    pub(super) fn fits(&self, at: u64) -> bool {
        self.rest.len() as u64 == at % BLOCK as u64
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        if !self.rest.is_empty() {
            let more = bytes.len().min(BLOCK - self.rest.len());
            self.rest.extend_from_slice(&bytes[..more]);
            bytes = &bytes[more..];
            let Ok(block) = <[u8; BLOCK]>::try_from(&self.rest[..]) else { return };
            compress256(&mut self.chain, &[block]);
            self.rest.clear();
        }
        let (blocks, rest) = bytes.as_chunks();
        compress256(&mut self.chain, blocks);
        self.rest.extend_from_slice(rest);
    }

    /// The state after these bytes.
    pub(super) fn then(mut self, bytes: &[u8]) -> Self {
        self.update(bytes);
        self
    }

    /// The digest of all `size` bytes so far.
    pub(super) fn finish(mut self, size: u64) -> Digest {
        let zeros = (2 * BLOCK - 1 - 8 - self.rest.len()) % BLOCK;
        let mut padding = vec![0; 1 + zeros];
        padding[0] = 0x80;
        padding.extend((size.wrapping_mul(8)).to_be_bytes());
        self.update(&padding);
        let mut digest = [0; 32];
        for (to, word) in digest.chunks_exact_mut(4).zip(self.chain) {
            to.copy_from_slice(&word.to_be_bytes());
        }
        Digest::new(digest)
    }
}

/// Eight words as 32 bytes, as in a digest.
mod words {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(words: &[u32; 8], serializer: S) -> Result<S::Ok, S::Error> {
        words.map(u32::to_be_bytes).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u32; 8], D::Error> {
        Ok(<[[u8; 4]; 8]>::deserialize(deserializer)?.map(u32::from_be_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sha_256_wherever_it_is_cut() {
        let data: Vec<u8> = (0..500_u32).map(|n| (n * n) as u8).collect();
        for len in 0..data.len() {
            let data = &data[..len];
            for cut in [0, 1, len / 3, len / 2, len.saturating_sub(64), len] {
                let (a, b) = data.split_at(cut.min(len));
                let state = SpanDigest::default().then(a);
                assert!(state.fits(a.len() as u64));
                assert_eq!(state.then(b).finish(len as u64), Digest::of(data), "{len} bytes cut at {cut}");
            }
        }
    }
}
