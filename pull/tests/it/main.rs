//! Images from registries with scripted faults into real stores, without containerd and without mounts.

#![allow(clippy::unwrap_used)] // a test's helper panics where the test would

mod budgets;
mod full;
mod lazy;
mod node;
mod others;
mod peer;
mod profile;
mod road;
mod share;
mod shared;
mod timing;
