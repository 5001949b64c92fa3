//! How a session works.

/// How a session works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Threads that take requests from the kernel: as many requests as may wait for a disk at once. None ever waits for
    /// a network. Each has 16 MiB of address space for its requests, of which a few pages are ever used.
    pub workers: usize,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self { workers: cores.clamp(4, 16) }
    }
}
