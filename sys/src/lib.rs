//! System calls that no library offers safely. The only crate of silk with `unsafe` in it.

pub mod loop_device;
