//! What is known about images, shared between nodes: the names and random-access index of each layer, and which bytes a
//! container's start touches.
//!
//! A [`Share`] asks an ordered list of [`Backend`]s: the node's own store, which the daemon puts first, Redis, and OCI
//! referrers at the registry. A lookup never fails and has a deadline; publishing happens in the background. Every
//! value from elsewhere travels in an envelope (`docs/formats/share.md`) that binds it to the digest it is about, and that
//! the fleet's key seals if there is one. What the bytes inside mean is not known here.

#![forbid(unsafe_code)]

mod backend;
mod config;
mod envelope;
mod error;
mod lies;
mod limit;
mod queue;
mod redis;
mod referrers;
mod seal;
mod share;

pub use backend::{Answer, Backend, Found, Image, Item, Join, Key, LayerKnowledge, Published, Query, Refused, State};
pub use config::{Config, RedisConfig, ReferrersConfig};
pub use envelope::EnvelopeError;
pub use error::{BackendError, ShareError};
pub use share::{BackendStatus, Knowledge, Share};
