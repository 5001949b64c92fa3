//! The road of a layer: resolve -> fetch -> decode -> scan -> store.
//!
//! An image is *claimed* at the first Prepare ([`Puller::claim`]): its manifest and configuration are read from
//! containerd's content store, and if silk can stream every layer and the registry lets it in, all layers start at once.
//! One layer is one stream: ranges of the compressed blob arrive in order within a memory window (`fetch`), one thread
//! digests and inflates them, a second one digests, scans and stores what comes out (`road`). Nothing compressed is kept
//! and there is no temporary file. Layers are shared by diff ID: however many images want one, it is fetched once
//! (`layer`).
//!
//! An image is ready when all its layers are whole, proved and mountable; [`Puller::ready`] waits for that. A failed image
//! keeps its cause and is tried again, with backoff, by the next [`Puller::ready`].
//!
//! A [`Learner`] sends layers along the same road to learn of them, and keeps none of their bytes.

#![forbid(unsafe_code)]

mod budget;
mod config;
mod error;
mod fetch;
mod image;
mod inlet;
mod layer;
mod lazy;
mod learn;
mod pace;
mod records;
mod resolve;
mod road;
mod settle;
mod sources;
mod spans;
mod timing;

pub use budget::Counts;
pub use config::Config;
pub use error::{ImageError, LayerError, Refused, ShowError};
pub use image::{
    Broken, Budgets, Caller, Claim, Claimed, Failure, ImageStatus, LayerStatus, PullTiming, Puller, Seams, Show, State,
};
pub use lazy::{Answer, Arrived, Lazies, Lazy, ReadError, Watch};
pub use learn::{Learner, is_of};
pub use resolve::{Contents, ContentsError, Held, ImageSpec, LayerSpec};
pub use timing::{ImageTiming, LayerTiming, Limit, Part, Spent, Way};
