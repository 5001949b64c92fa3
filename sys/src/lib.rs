//! System calls, and one C interface, that no library offers safely. The only crate of silk with `unsafe` in it.

pub mod apart;
pub mod idmap;
pub mod inflate;
pub mod loop_device;
pub mod memory;
pub mod priority;
pub mod resident;
