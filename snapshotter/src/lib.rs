//! The containerd Snapshots service: names, parents and labels on one side, layers and mounts on the other.
//!
//! containerd's metadata layer calls it over gRPC. Without the labels of a remote snapshotter it is an ordinary overlay
//! snapshotter, as containerd's own. With them, a layer that [`Layers`] takes is answered `AlreadyExists` at once: its
//! snapshot stands for an image layer that silk pulls, and containerd neither fetches nor unpacks it.
//!
//! [`Snapshots`] knows and persists the snapshots and does no waiting; [`Service`] speaks gRPC and waits for layers.

#![forbid(unsafe_code)]

mod dirs;
mod error;
mod filter;
mod idmap;
mod labels;
mod layers;
mod leases;
mod mounts;
mod records;
mod service;
mod snapshot;
mod snapshots;
mod state;
mod status;
mod usage;
mod waits;

pub use error::SnapshotError;
pub use layers::{Caller, Claim, Claimed, Layers, NotReady, Refused, RemoteChain, State};
pub use service::Service;
pub use snapshot::{Kind, Remote, Snapshot, Time, Usage};
pub use snapshots::Snapshots;
pub use status::code;
