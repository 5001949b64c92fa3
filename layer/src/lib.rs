//! Formats of image layers: bytes in, structures out, no I/O.

#![forbid(unsafe_code)]

pub mod erofs;
pub mod toc;
pub mod tree;
