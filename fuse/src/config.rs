//! How a session works.

/// How a session works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Threads that take requests from the kernel: as many requests as may wait for a disk at once. None ever waits for
    /// a network. Each has 16 MiB of address space for its requests, of which a few pages are ever used.
    pub workers: usize,
    /// Whether trees may have extended attributes. Without, the kernel never asks for one: the first walk of 20,000 files
    /// through an overlay took 160 ms instead of 607.
    pub xattrs: bool,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self { workers: cores.clamp(4, 16), xattrs: true }
    }
}
