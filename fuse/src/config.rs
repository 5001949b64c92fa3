//! How a session works.

/// How a session works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Threads that take requests from the kernel. None of them ever waits for a network, so a few keep all cores busy.
    /// Each has 16 MiB of address space for its requests, of which a few pages are ever used.
    pub workers: usize,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self { workers: cores.clamp(2, 8) }
    }
}
