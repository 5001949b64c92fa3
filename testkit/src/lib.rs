//! For tests only: images made in memory, and a registry that misbehaves on demand.
//!
//! [`Fake`] is a registry on a loopback port: it serves what is pushed to it, remembers every request, and plays the
//! faults it is told to. [`ImageSpec`] makes images from tar bytes, honest or lying. Panics wherever a test would.

#![forbid(unsafe_code)]

mod bytes;
mod certificates;
mod fake;
mod image;
mod wait;

pub use bytes::{noise, tar};
pub use certificates::Certificates;
pub use fake::{ALWAYS, Access, Bodies, Fake, Fault, Request};
pub use image::{Compression, ImageSpec, LayerSpec, Pushed, PushedLayer};
pub use wait::{PATIENCE, eventually, within_patience};
