//! How many metadata images are made at once.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Entries of the layers whose images are made together, if it is more than one. A table of contents and its tree take up to 400 bytes an
/// entry (`layer/examples/names.rs`, with paths of 100 bytes), so this is 38 MB. It is chosen so that a Node service's two large layers (99,780 entries), go together.
const ENTRIES: u64 = 100_000;

/// Bounds what is made at once.
#[derive(Debug, Default)]
pub(crate) struct Making {
    /// Held by who waits for room, so that a large layer gets it before the small ones that come after.
    line: Mutex<()>,
    /// Entries of what is being made.
    entries: Mutex<u64>,
    /// Told when that becomes less.
    less: Condvar,
}

/// Room for one.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    making: &'a Making,
    entries: u64,
}

impl Making {
    /// Waits until there is room for an image of so many entries, or nothing else is made.
    pub(crate) fn room(&self, entries: u64) -> Room<'_> {
        let _first = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |taken: &mut u64| *taken > 0 && taken.saturating_add(entries) > ENTRIES;
        let taken = self.less.wait_while(self.taken(), is_full);
        // With none beside it, any number fits.
        *taken.unwrap_or_else(PoisonError::into_inner) += entries;
        Room { making: self, entries }
    }

    fn taken(&self) -> MutexGuard<'_, u64> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        *self.making.taken() -= self.entries;
        self.making.less.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    #[test]
    fn small_ones_go_together_and_a_large_one_alone() {
        let making = Making::default();
        let small = (making.room(ENTRIES / 2), making.room(ENTRIES / 2));
        thread::scope(|scope| {
            let (got, gets) = mpsc::channel();
            let (large, making) = (got.clone(), &making);
            scope.spawn(move || {
                let _room = making.room(u64::MAX);
                large.send("large").unwrap();
            });
            // It stands in line.
            while making.line.try_lock().is_ok() {
                thread::yield_now();
            }
            // One that would fit, but comes later.
            scope.spawn(move || {
                let _room = making.room(1);
                got.send("small").unwrap();
            });
            drop(small.0);
            assert!(gets.recv_timeout(Duration::from_millis(100)).is_err());
            drop(small.1);
            assert_eq!(gets.iter().collect::<Vec<_>>(), ["large", "small"]);
        });
        assert_eq!(*making.taken(), 0);
    }
}
