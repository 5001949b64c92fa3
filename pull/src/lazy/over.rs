//! When the start of a container is over: the rest of its layers holds back no longer.
//!
//! Grains of what it is known to touch are left to the start itself ([`super::warm`]), so that it reads them one by one until its end. When
//! it has read them all, little that is known is still to come.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use silk_layer::profile::{GRAIN, Profile};
use silk_model::Digest;
use tokio::time::sleep_until;

use super::{Lazy, Watch, warm::is_left};

/// A start is taken to be over when all it is known to touch is here and it has read nothing for this long. With 100 ms a JVM's
/// start on slow processors (1.2 s warm) was cut short where it computes: ready after 2.52 s, 180 MB fetched by then, instead of 2.08 and 72 with 200 ms,
/// and 1.93 and 73 with 300; whole after 3.31, 3.95 and 3.88 s (medians of 4, 1 Gbit/s). On still slower ones (1.6 s warm) 200 ms cut it short, too: ready
/// after 2.81 s, 224 MB, with 300 after 2.36, 120 MB, with 450 after 2.52, 144 MB; whole after 3.56, 3.76 and 3.76 s (medians of 3 and 4, in turn).
const QUIET: Duration = Duration::from_millis(300);

/// Or for this long, once it has read what was left to it: a round trip or two. Chosen. With it, against waiting for [`QUIET`] always: a database whole
/// after 2.48 s instead of 2.62, a light Node service after 2.69 instead of 2.86, ready at the same time (medians of 3, 1 Gbit/s).
const SETTLED: Duration = Duration::from_millis(40);

/// One in so many may be missing all the same: not every start touches all that some have. Of 53 to 361 grains that were left to starts of
/// databases, Node, Python, JVM and ML services none or one was.
const MISSING: usize = 64;

/// Fewer grains that are left say nothing: those of a start that touches 8 MB. Chosen.
const LEAST: usize = 16;

/// How often the reads are looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What is left to starts, and not read yet.
#[derive(Debug)]
struct Unread(Vec<Left>);

/// Of one entrypoint.
#[derive(Debug, Default)]
struct Left {
    grains: HashSet<(Digest, u64)>,
    all: usize,
}

/// Waits until a start is over that touches some of these layers. `watch` saw all reads from the first.
pub(super) async fn over(profile: &Profile, lazies: &HashMap<Digest, Arc<Lazy>>, watch: &Watch) {
    let mut unread = Unread::new(profile, |layer| lazies.contains_key(layer));
    let here = Instant::now();
    loop {
        for (layer, bytes) in watch.take() {
            unread.note(layer, &bytes);
        }
        let last = lazies.values().filter_map(|lazy| lazy.last_read()).fold(here, Instant::max);
        let end = last + if unread.is_over() { SETTLED } else { QUIET };
        let now = Instant::now();
        if end <= now {
            return;
        }
        sleep_until(end.min(now + LOOK).into()).await;
    }
}

impl Unread {
    /// Of layers whose reads are seen.
    fn new(profile: &Profile, seen: impl Fn(&Digest) -> bool) -> Self {
        let starts = profile.starts.iter().map(|start| {
            let runs = start.runs.iter().filter(|run| seen(&run.layer));
            let grains = runs.flat_map(|run| {
                let first = u64::from(run.first);
                (first..first + u64::from(run.grains)).filter(|grain| is_left(*grain)).map(|grain| (run.layer, grain))
            });
            let grains: HashSet<_> = grains.collect();
            Left { all: grains.len(), grains }
        });
        Self(starts.collect())
    }

    /// These bytes were read.
    fn note(&mut self, layer: Digest, bytes: &Range<u64>) {
        for grain in bytes.start / GRAIN..bytes.end.div_ceil(GRAIN) {
            for start in &mut self.0 {
                start.grains.remove(&(layer, grain));
            }
        }
    }

    /// The start that most was read of counts: what it has in common with others says nothing of them. Of two, the longer one.
    fn is_over(&self) -> bool {
        let running = self.0.iter().max_by_key(|start| (start.all - start.grains.len(), start.grains.len()));
        running.is_some_and(|start| start.all >= LEAST && start.grains.len() <= start.all / MISSING)
    }
}

#[cfg(test)]
mod tests {
    use silk_layer::profile::Seen;

    use super::*;

    fn layer(nr: u8) -> Digest {
        Digest::new([nr; 32])
    }

    /// Grains of layers that each entrypoint touches, the more frequent one first.
    fn profile(starts: &[&[(Digest, Range<u64>)]]) -> Profile {
        let mut profile = Profile::default();
        for (nr, grains) in starts.iter().enumerate() {
            let touches = grains.iter().map(|(id, grains)| (*id, grains.start * GRAIN..grains.end * GRAIN));
            let seen = Seen { entrypoint: nr.to_string(), touches: touches.collect(), ..Seen::default() };
            (nr..starts.len()).for_each(|_| profile.learn(&seen));
        }
        profile
    }

    #[test]
    fn a_start_is_over_when_it_has_read_what_was_left_to_it() {
        let profile = profile(&[&[(layer(1), 0..600), (layer(2), 0..100)]]);
        let mut unread = Unread::new(&profile, |id| *id == layer(1));
        // Of 75 one may be missing. What is brought, and layers whose reads are not seen, say nothing.
        unread.note(layer(2), &(0..100 * GRAIN));
        for grain in (0..600).filter(|grain| is_left(*grain)).skip(2) {
            unread.note(layer(1), &(grain * GRAIN..(grain + 1) * GRAIN));
            assert!(!unread.is_over(), "grain {grain}");
        }
        unread.note(layer(1), &(8 * GRAIN..15 * GRAIN));
        assert!(!unread.is_over());
        unread.note(layer(1), &(15 * GRAIN + 1..15 * GRAIN + 2));
        assert!(unread.is_over());
    }

    #[test]
    fn another_entrypoint_that_touches_part_of_it_is_no_sign() {
        let shared = (layer(1), 0..200);
        let profile = profile(&[&[shared.clone(), (layer(2), 0..160)], &[shared]]);
        let mut unread = Unread::new(&profile, |_| true);
        unread.note(layer(1), &(0..200 * GRAIN));
        assert!(!unread.is_over());
        unread.note(layer(2), &(0..150 * GRAIN));
        assert!(!unread.is_over());
        unread.note(layer(2), &(150 * GRAIN..160 * GRAIN));
        assert!(unread.is_over());
    }

    #[test]
    fn little_that_is_known_is_never_over() {
        assert!(!Unread::new(&Profile::default(), |_| true).is_over());
        let mut unread = Unread::new(&profile(&[&[(layer(1), 0..100)]]), |_| true);
        unread.note(layer(1), &(0..100 * GRAIN));
        assert!(!unread.is_over());
    }
}
