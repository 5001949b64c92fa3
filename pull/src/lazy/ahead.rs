//! What starts of an image are known to touch, fetched before anybody asks: in the order of the profile, over all layers, in
//! few large ranges.
//!
//! The order is kept from one batch to the next; within a batch, neighbours go together. A range that fails is left to
//! readers and to the background: nothing here is tried again.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use silk_layer::profile::Profile;
use silk_model::Digest;
use tokio::{task::JoinSet, time::sleep_until};

use super::{Lazies, Lazy, range::Wanted, scheduler::Starting, warm::Warmer};
use crate::{Show, timing::Part};

/// Compressed bytes of a batch: what the connections bring within two or three round trips of 20 ms.
const BATCH: u64 = 8 << 20;

/// Compressed bytes that are fetched needlessly rather than with one more request: half a span. Requests are cheap while eight
/// are under way, and the link is what a start waits for.
const GAP: u64 = 128 << 10;

/// Bytes of tar of which a layer that is fetched whole is put together: neighbours join to ranges.
const PART: u64 = 1 << 20;

/// A start is taken to be over when all it is known to touch is here and it has read nothing for this long. With 100 ms a JVM's
/// start on slow processors (1.2 s warm) was cut short where it computes: ready after 2.52 s, 180 MB fetched by then, instead of 2.08 and 72 with 200 ms,
/// and 1.93 and 73 with 300; whole after 3.31, 3.95 and 3.88 s (medians of 4, 1 Gbit/s).
const QUIET: Duration = Duration::from_millis(200);

/// Whose starts a profile is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The image's own.
    Own,
    /// Those of another version of the image. It says nothing of layers that only this one has: small ones ([`BATCH`]) are fetched whole
    /// before all else, since the image was made again for their sake; what is read of a large one the background is to find.
    Siblings,
}

/// Spans of a layer, and where they stand in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    layer: Digest,
    spans: Range<usize>,
    place: usize,
}

impl Lazies {
    /// Announces [`Lazies::fetch_start`]: the background holds back until this is dropped.
    pub(crate) fn starting(&self) -> Starting {
        self.scheduler.starting()
    }

    /// Fetches what a profile names of these layers, as far as they have holes. Ends when the background need not hold back any more:
    /// until then the container has link and processors for itself.
    pub(crate) async fn fetch_start(
        &self,
        profile: &Profile,
        layers: &[Digest],
        starting: Starting,
        show: Arc<dyn Show>,
        whose: Whose,
    ) {
        let lazies: HashMap<_, _> = layers.iter().filter_map(|id| Some((*id, self.get(id)?))).collect();
        let (small, large) = news(profile, &lazies, whose);
        let news = small
            .into_iter()
            .flat_map(|(layer, size)| (0..size).step_by(PART as usize).map(move |start| (layer, start..start + PART)));
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut ranges = (JoinSet::new(), Warmer::new(profile, show));
        for (place, (layer, run)) in news.chain(profile.runs().map(|run| (run.layer, run.bytes()))).enumerate() {
            let Some(lazy) = lazies.get(&layer) else { continue };
            let Some(spans) = lazy.segments(run) else { continue };
            bytes += lazy.blob_bytes(&spans);
            batch.push(Piece { layer, spans, place });
            if bytes >= BATCH {
                self.fetch_batch(std::mem::take(&mut batch), &lazies, &mut ranges).await;
                bytes = 0;
            }
        }
        self.fetch_batch(batch, &lazies, &mut ranges).await;
        let (mut ranges, _) = ranges;
        if ranges.is_empty() {
            return;
        }
        let mut fetched = 0;
        while let Some(bytes) = ranges.join_next().await {
            fetched += bytes.unwrap_or_default();
        }
        if large {
            return;
        }
        starting.has_come(fetched);
        let here = Instant::now();
        loop {
            let last = lazies.values().filter_map(|lazy| lazy.last_read()).fold(here, Instant::max);
            if last.elapsed() >= QUIET {
                return;
            }
            sleep_until((last + QUIET).into()).await;
        }
    }

    async fn fetch_batch(
        &self,
        batch: Vec<Piece>,
        lazies: &HashMap<Digest, Arc<Lazy>>,
        (ranges, warmer): &mut (JoinSet<u64>, Warmer),
    ) {
        let joins = |layer: &Digest, both: Range<usize>, gap: Range<usize>| {
            let lazy = &lazies[layer];
            (gap.is_empty() || lazy.blob_bytes(&gap) <= GAP) && lazy.blob_bytes(&both) <= self.range
        };
        for piece in join(batch, &joins) {
            let lazy = &lazies[&piece.layer];
            loop {
                let asked = Instant::now();
                let admitted = lazy.lane.start().await;
                lazy.clocks.add(Part::Turn, asked.elapsed());
                // It became whole, or is given up.
                if !self.get(&piece.layer).is_some_and(|now| Arc::ptr_eq(&now, lazy)) {
                    break;
                }
                let Some(run) = lazy.take_first(piece.spans.clone()) else { break };
                let (lazy, warmer) = (Arc::clone(lazy), warmer.clone());
                ranges.spawn(async move {
                    let bytes = lazy.blob_bytes(&run);
                    Arc::clone(&lazy).run(run.clone(), Wanted::Soon, Some(admitted)).await;
                    warmer.came(lazy, run);
                    bytes
                });
            }
        }
    }
}

impl Lazy {
    /// The segments that hold these bytes; `None` if all of them are here, or there are none.
    fn segments(&self, bytes: Range<u64>) -> Option<Range<usize>> {
        let index = self.partial.index();
        let spans = index.spans_of(bytes);
        if spans.is_empty() || spans.clone().all(|span| self.partial.has(span)) {
            return None;
        }
        Some(index.segment(spans.start).start..index.segment(spans.end - 1).end)
    }

    pub(super) fn blob_bytes(&self, segments: &Range<usize>) -> u64 {
        let bytes = self.partial.index().blob_range(segments.clone());
        bytes.end - bytes.start
    }
}

/// The layers that another version's profile cannot name: those that are small, with their tar's size, and whether there are large ones.
fn news(profile: &Profile, lazies: &HashMap<Digest, Arc<Lazy>>, whose: Whose) -> (Vec<(Digest, u64)>, bool) {
    if whose == Whose::Own {
        return (Vec::new(), false);
    }
    let named: HashSet<_> = profile.runs().map(|run| run.layer).collect();
    let news = lazies.iter().filter(|(id, _)| !named.contains(*id));
    let (small, large): (Vec<_>, Vec<_>) = news.partition(|(_, lazy)| lazy.partial.index().blob_size <= BATCH);
    (small.into_iter().map(|(id, lazy)| (*id, lazy.partial.index().size)).collect(), !large.is_empty())
}

/// May a layer's spans be one piece? Asked about all of them, and about those between the two parts.
type Joins<'j> = dyn Fn(&Digest, Range<usize>, Range<usize>) -> bool + 'j;

/// Makes one piece of neighbours; `joins` is asked about the whole that they would make, and what lies between. The order
/// is that of their first places.
fn join(mut batch: Vec<Piece>, joins: &Joins<'_>) -> Vec<Piece> {
    batch.sort_by_key(|piece| (piece.layer, piece.spans.start));
    let mut joined: Vec<Piece> = Vec::new();
    for piece in batch {
        if let Some(last) = joined.last_mut().filter(|last| last.layer == piece.layer) {
            let both = last.spans.start..last.spans.end.max(piece.spans.end);
            let within = piece.spans.end <= last.spans.end;
            if within || joins(&piece.layer, both.clone(), last.spans.end..piece.spans.start.max(last.spans.end)) {
                last.spans = both;
                last.place = last.place.min(piece.place);
                continue;
            }
        }
        joined.push(piece);
    }
    joined.sort_by_key(|piece| piece.place);
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(layer: u8, spans: Range<usize>, place: usize) -> Piece {
        Piece { layer: Digest::new([layer; 32]), spans, place }
    }

    #[test]
    fn neighbours_go_together_in_the_order_of_the_first() {
        let joins = |_: &Digest, both: Range<usize>, gap: Range<usize>| gap.len() <= 1 && both.len() <= 5;
        let batch = vec![
            piece(2, 20..21, 0),
            piece(1, 8..9, 1),
            piece(1, 0..2, 2),
            piece(1, 3..4, 3),
            piece(1, 0..1, 4),
            piece(1, 6..8, 5),
            piece(2, 21..24, 6),
        ];
        let joined = [piece(2, 20..24, 0), piece(1, 6..9, 1), piece(1, 0..4, 2)];
        assert_eq!(join(batch, &joins), joined);
    }
}
