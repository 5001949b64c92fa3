//! A session against the kernel.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod data;
#[path = "../../../layer/tests/erofs/make.rs"]
mod make;
#[path = "../../../layer/tests/erofs/mounted.rs"]
mod mounted;
mod mounts;
mod store;
