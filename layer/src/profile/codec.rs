//! A [`Profile`] as bytes: `docs/formats/profile.md`. Called by the store and for exports; nothing here blocks.
//!
//! A profile may come from anybody: decoding takes no more memory than [`MAX_LEN`] bytes unfold to, and the result's
//! bounds are checked.

use serde::{Deserialize, Serialize};
use silk_model::{Class, Digest};

use super::{FADES_AFTER, MAX_GRAINS, MAX_NAME, MAX_RUNS, MAX_STARTS, Profile, Run, Start};

/// The first bytes.
pub const MAGIC: [u8; 8] = *b"SILKPRF\0";

/// The version that this code writes, and the only one that it reads: a profile is learned again.
pub const VERSION: u32 = 1;

/// The most bytes that are looked at: above what the bounds allow, which is some 300 KB; usual ones have 2 to 10 KB.
pub const MAX_LEN: usize = 512 << 10;

/// Layers that a profile may name: more than overlayfs can stack, for each of its starts.
const MAX_LAYERS: usize = 512;

/// Bytes that are no profile, or not one that we read.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Too short, too long, or something else altogether.
    #[error("this is no start profile of silk")]
    NotAProfile,
    /// Written by another silk.
    #[error("the start profile has version {0}, this silk reads version {VERSION}")]
    Version(u32),
    /// It cannot be decoded.
    #[error("the start profile is damaged")]
    Encoding(#[source] postcard::Error),
    /// It goes beyond a bound.
    #[error("the start profile is impossible: {0}")]
    Impossible(&'static str),
}

impl ProfileError {
    /// What kind of trouble this is.
    pub fn class(&self) -> Class {
        match self {
            Self::Version(_) => Class::Unsupported,
            _ => Class::Corrupt,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Wire {
    layers: Vec<[u8; 32]>,
    starts: Vec<WireStart>,
}

#[derive(Serialize, Deserialize)]
struct WireStart {
    entrypoint: String,
    count: u32,
    runs: Vec<WireRun>,
}

#[derive(Serialize, Deserialize)]
struct WireRun {
    layer: u32,
    first: u32,
    grains: u32,
    rank: u32,
    unseen: u8,
}

/// The bytes of a profile.
pub fn encode(profile: &Profile) -> Vec<u8> {
    let mut layers: Vec<_> = profile.runs().map(|run| run.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    let place = |layer: &Digest| layers.binary_search(layer).unwrap_or(0) as u32;
    let starts = profile.starts.iter().map(|start| WireStart {
        entrypoint: start.entrypoint.clone(),
        count: start.count,
        runs: start
            .runs
            .iter()
            .map(|Run { layer, first, grains, rank, unseen }| WireRun {
                layer: place(layer),
                first: *first,
                grains: *grains,
                rank: *rank,
                unseen: *unseen,
            })
            .collect(),
    });
    let wire = Wire { starts: starts.collect(), layers: layers.iter().map(|layer| *layer.as_bytes()).collect() };
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    postcard::to_extend(&wire, bytes).expect("a Vec takes any number of bytes")
}

/// The profile in these bytes.
///
/// # Errors
/// When they are none, or one that goes beyond a bound.
pub fn decode(bytes: &[u8]) -> Result<Profile, ProfileError> {
    if bytes.len() > MAX_LEN {
        return Err(ProfileError::NotAProfile);
    }
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(ProfileError::NotAProfile)?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or(ProfileError::NotAProfile)?;
    if *magic != MAGIC {
        return Err(ProfileError::NotAProfile);
    }
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(ProfileError::Version(version));
    }
    let (wire, rest) = postcard::take_from_bytes::<Wire>(rest).map_err(ProfileError::Encoding)?;
    if !rest.is_empty() {
        return Err(ProfileError::Encoding(postcard::Error::DeserializeBadEncoding));
    }
    if wire.starts.len() > MAX_STARTS || wire.layers.len() > MAX_LAYERS {
        return Err(ProfileError::Impossible("too many starts or layers"));
    }
    let layers: Vec<_> = wire.layers.into_iter().map(Digest::new).collect();
    let starts = wire.starts.into_iter().map(|start| checked(start, &layers)).collect::<Result<Vec<_>, _>>()?;
    let twice = |(at, start): (usize, &Start)| starts[..at].iter().any(|s| s.entrypoint == start.entrypoint);
    if starts.iter().enumerate().any(twice) {
        return Err(ProfileError::Impossible("an entrypoint twice"));
    }
    let mut profile = Profile { starts };
    profile.sort();
    Ok(profile)
}

fn checked(start: WireStart, layers: &[Digest]) -> Result<Start, ProfileError> {
    let WireStart { entrypoint, count, runs } = start;
    if entrypoint.len() > MAX_NAME || count == 0 || runs.len() > MAX_RUNS {
        return Err(ProfileError::Impossible("a start beyond its bounds"));
    }
    if runs.iter().map(|run| u64::from(run.grains)).sum::<u64>() > MAX_GRAINS {
        return Err(ProfileError::Impossible("a start that touches too much"));
    }
    let runs = runs.into_iter().map(|WireRun { layer, first, grains, rank, unseen }| {
        let fits = grains > 0 && first.checked_add(grains).is_some() && unseen < FADES_AFTER;
        let layer = layers.get(layer as usize).filter(|_| fits).ok_or(ProfileError::Impossible("a run"))?;
        Ok(Run { layer: *layer, first, grains, rank, unseen })
    });
    Ok(Start { entrypoint, count, runs: runs.collect::<Result<_, ProfileError>>()? })
}
