//! Names for the things all other rooms talk about. No I/O, no clock.

#![forbid(unsafe_code)]

mod class;
mod digest;
mod idmap;
pub mod metrics;
mod usage;

/// Silk's version: what `SILK_VERSION` named when it was built, else the workspace's.
pub const VERSION: &str = match option_env!("SILK_VERSION") {
    Some(version) if !version.is_empty() => version,
    _ => env!("CARGO_PKG_VERSION"),
};

/// The target of all spans, at level `trace`: what `tracing.otlp_endpoint` sends, and no log at a lower level shows.
pub const SPANS: &str = "silk::span";

pub use class::Class;
pub use digest::{Digest, DigestError, chain_id, chain_ids};
pub use idmap::{IdMaps, IdRange};
pub use usage::Use;
