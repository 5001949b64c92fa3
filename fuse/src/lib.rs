//! One FUSE mount that serves what the kernel cannot read by itself yet.
//!
//! In its root directory lie *objects*, each under a name and for good known by a [`Slot`]. A data file is a layer's tar
//! while bytes of it are missing: EROFS takes it as `device=`, so all that is ever asked of it is to read. A tree is a
//! whole layer, for kernels without EROFS of small blocks: overlayfs takes its directory as a lower one, and it is
//! answered from the metadata image that EROFS would have mounted.
//!
//! [`Session::mount`] is called once by a process; from then on the session's own threads ask a [`Source`]. They never
//! wait for a network: a read that cannot be answered yet stays with the source as a [`Reply`], and whoever brings its
//! bytes answers it.

#![forbid(unsafe_code)]

mod config;
mod error;
mod mount;
mod node;
mod read;
mod reply;
mod serve;
mod session;
mod source;
mod tree;

pub use config::Config;
pub use error::FuseError;
pub use reply::Reply;
pub use session::Session;
pub use source::{Object, Slot, Source};
pub use tree::TreeFiles;
