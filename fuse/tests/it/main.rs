//! A session against the kernel.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod data;
mod erofs;
#[path = "../../../layer/tests/erofs/make.rs"]
mod make;
#[path = "../../../layer/tests/erofs/menagerie.rs"]
mod menagerie;
mod mounts;
mod overlay;
#[path = "../../../layer/tests/erofs/random.rs"]
mod random;
mod same;
#[path = "../../../layer/tests/erofs/shown.rs"]
mod shown;
mod store;
mod tree;
