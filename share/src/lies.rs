//! Values that lied, so that they are not believed a second time. In memory only: after a restart they would have to be found
//! out again, which costs one fetch each.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, PoisonError},
};

use silk_model::Digest;

use crate::Key;

/// Values remembered; the oldest goes first. About 200 bytes each.
const MAX: usize = 4096;

/// The values that lied, by key and tag.
#[derive(Debug, Default)]
pub(crate) struct Lies(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    known: HashSet<(Key, Digest)>,
    order: VecDeque<(Key, Digest)>,
}

impl Lies {
    pub(crate) fn remember(&self, key: Key, tag: Digest) {
        let inner = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.known.insert((key, tag)) {
            return;
        }
        inner.order.push_back((key, tag));
        if inner.order.len() > MAX
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.known.remove(&oldest);
        }
    }

    pub(crate) fn contains(&self, key: Key, tag: Digest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).known.contains(&(key, tag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first() {
        let lies = Lies::default();
        let of = |i: usize| (Key::Layer(Digest::of(b"x")), Digest::of(&i.to_le_bytes()));
        for i in 0..=MAX {
            lies.remember(of(i).0, of(i).1);
            lies.remember(of(i).0, of(i).1);
        }
        assert!(!lies.contains(of(0).0, of(0).1));
        assert!((1..=MAX).all(|i| lies.contains(of(i).0, of(i).1)));
    }
}
