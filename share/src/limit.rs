//! Log lines that cannot become a flood: one each [`PERIOD`], which says how many were left out.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::warn;

/// Long enough that a node's log stays readable while a shared Redis is full of rubbish.
const PERIOD: Duration = Duration::from_secs(30);

/// One subject's lines.
#[derive(Debug, Default)]
pub(crate) struct Limited(Mutex<(Option<Instant>, u64)>);

impl Limited {
    /// Warns, or counts.
    pub(crate) fn warn(&self, message: fmt::Arguments<'_>) {
        if let Some(left_out) = self.due(Instant::now()) {
            match left_out {
                0 => warn!("{message}"),
                n => warn!("{message} ({n} more like it since the last line)"),
            }
        }
    }

    /// How many were left out, if a line is due.
    fn due(&self, now: Instant) -> Option<u64> {
        let (last, left_out) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| now.saturating_duration_since(last) < PERIOD) {
            *left_out += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_period() {
        let (limited, start) = (Limited::default(), Instant::now());
        assert_eq!(limited.due(start), Some(0));
        assert_eq!(limited.due(start + PERIOD / 2), None);
        assert_eq!(limited.due(start + PERIOD / 2), None);
        assert_eq!(limited.due(start + PERIOD), Some(2));
        assert_eq!(limited.due(start + 3 * PERIOD), Some(0));
    }
}
