//! Blobs as which a host has sent something else: it is asked for them last.
//!
//! In memory only: after a restart it has to be found out again, which costs one fetch. Nothing is forgotten with time: a
//! damaged copy stays in a cache until somebody removes it, and who is asked last is still asked where nobody else helps.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use silk_model::Digest;
use tokio::time::Instant;

/// Digests remembered, of 48 bytes each; the one that was found out first goes first. A node pulls some hundred layers in a
/// day, and a host with more damaged ones than that has a broken disk.
const MAX: usize = 256;

/// What a host has sent wrong bytes of, the latest last.
#[derive(Debug, Default)]
pub(super) struct Wrong(Mutex<VecDeque<(Digest, Instant)>>);

impl Wrong {
    /// When it was found out last.
    pub(super) fn since(&self, digest: &Digest) -> Option<Instant> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(known, _)| known == digest).map(|(_, since)| *since)
    }

    pub(super) fn remember(&self, digest: Digest) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(known, _)| *known != digest);
        if known.len() >= MAX {
            known.pop_front();
        }
        known.push_back((digest, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first() {
        let wrong = Wrong::default();
        let of = |i: usize| Digest::of(&i.to_le_bytes());
        (0..MAX).for_each(|i| wrong.remember(of(i)));
        wrong.remember(of(0));
        wrong.remember(of(MAX));
        assert_eq!(wrong.since(&of(1)), None);
        assert!(wrong.since(&of(0)) >= wrong.since(&of(MAX - 1)) && wrong.since(&of(2)).is_some());
        assert_eq!(wrong.0.lock().unwrap().len(), MAX);
    }
}
