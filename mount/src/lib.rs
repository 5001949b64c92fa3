//! Shows whole layers as mounts that every image shares.
//!
//! A layer's *view* is its tree as an EROFS mount: metadata that silk writes (`<layer>/erofs*`), bytes from the layer's
//! data file. [`Mounts`] does the mounting below `<root>/mnt`, over files where the kernel can, over loop devices
//! where it cannot, and as trees that somebody serves ([`Trees`]) where there is no such EROFS; [`Views`] decides which view of a layer an image needs, makes its metadata and has it mounted.
//! An image is an overlay of what [`Views::lowers`] returns, or of what [`Mapped::map`] makes of that for a container in a user namespace.
//!
//! Everything here blocks, for a disk or for another thread that does the same work, never for a network. Call it from
//! threads that may block.

#![forbid(unsafe_code)]

mod chain;
mod config;
mod error;
mod kernel;
mod making;
mod mapped;
mod meta;
mod mountinfo;
mod mounts;
mod pages;
mod probe;
mod trace;
mod turns;
mod view;
mod views;

pub use config::{Config, RungChoice};
pub use error::{LayerError, MountError, ViewError};
pub use mapped::Mapped;
pub use mounts::{Mounts, Rung, Trees};
pub use pages::Pages;
pub use trace::{Device, Trace, Traced};
pub use view::{ChainName, Ground, Variant, View, ViewName};
pub use views::{LayerFiles, Views};
