//! How fast a sender's bytes come.

use std::time::{Duration, Instant};

/// What came lately.
#[derive(Debug)]
pub(crate) struct Pace {
    since: Instant,
    bytes: u64,
    waited: Duration,
}

impl Pace {
    pub(crate) fn begin() -> Self {
        Self { since: Instant::now(), bytes: 0, waited: Duration::ZERO }
    }

    /// So many bytes came, after so long a wait.
    pub(crate) fn came(&mut self, bytes: u64, waited: Duration) {
        self.bytes += bytes;
        self.waited += waited;
    }

    /// What is left of `patience`.
    pub(crate) fn left(&self, patience: Duration) -> Duration {
        patience.saturating_sub(self.since.elapsed())
    }

    /// After `patience`: does so little come, in bytes a second, that it is the sender's fault?
    pub(crate) fn is_drip(&self, patience: Duration, least: u64) -> Option<bool> {
        let elapsed = self.since.elapsed();
        let is_few = || self.bytes < (least as f64 * elapsed.as_secs_f64()) as u64;
        (elapsed >= patience).then(|| self.waited > elapsed / 2 && is_few())
    }
}
