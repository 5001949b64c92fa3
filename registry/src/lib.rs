//! One OCI distribution conversation done right: hosts, credentials, tokens, redirects, ranges, retries.
//!
//! A [`Registry`] is made once a process. A pull asks it for a [`Repository`], reads [`Manifest`]s from it, and opens a
//! [`Blob`] a layer, whose byte ranges arrive as [`BlobStream`]s that survive cut connections, stalls, expired
//! signatures and mirrors that fall away. Small blobs and manifests can be pushed, and artifacts found that refer to an
//! image. Nothing here proves a blob's digest: the reader hashes what it receives.
//!
//! All waiting is asynchronous and has a deadline; memory is bounded by the connections in use.

#![forbid(unsafe_code)]

mod attempts;
mod auth;
mod blob;
mod challenge;
mod coding;
mod config;
mod credentials;
mod endpoint;
mod error;
mod hosts;
mod proxy;
mod push;
mod reference;
mod referrers;
mod repository;
mod tls;

pub use blob::{Blob, BlobStream};
pub use config::Config;
pub use error::{Asked, CertificateFault, Error, Result, Said, Transport};
pub use push::Accepted;
pub use reference::{Reference, ReferenceError, Selector};
pub use referrers::Referrer;
pub use repository::{MANIFEST_TYPES, Manifest, Object, Registry, Repository};
pub use tls::Tls;
