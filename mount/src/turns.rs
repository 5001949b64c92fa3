//! One thread at a time for each key: who comes second for the same work finds it done.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

/// A lock for each key that somebody holds or waits for; none for others.
#[derive(Debug)]
pub(crate) struct Turns<K>(Mutex<HashMap<K, Arc<Mutex<()>>>>);

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq + Clone> Turns<K> {
    /// Runs `work` while no other thread runs any for this key. Waits for as long as others' work takes. A panic in
    /// `work` harms nobody else: what it left half-made is on disk or in the kernel, where all work looks first.
    pub(crate) fn take<R>(&self, key: &K, work: impl FnOnce() -> R) -> R {
        let turn = Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key.clone()).or_default());
        let done = {
            let _mine = turn.lock().unwrap_or_else(PoisonError::into_inner);
            work()
        };
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Two hold it: the map and we.
        if Arc::strong_count(&turn) == 2 {
            turns.remove(key);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn no_two_work_for_one_key_and_none_is_remembered() {
        let turns = Turns::default();
        let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        turns.take(&"key", || {
                            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        assert_eq!(most.into_inner(), 1);
        assert!(turns.0.lock().unwrap().is_empty());
    }

    #[test]
    fn one_key_does_not_wait_for_another() {
        let turns = Turns::default();
        assert_eq!(turns.take(&1, || turns.take(&2, || 3)), 3);
    }
}
