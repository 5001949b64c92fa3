//! What starts of an image are known to touch, fetched before anybody asks: in the order of the profile, over all layers, in
//! few large ranges.
//!
//! The order is kept from one batch to the next; within a batch, neighbours go together. A range that fails is left to
//! readers and to the background: nothing here is tried again.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    pin::pin,
    sync::Arc,
    time::Instant,
};

use silk_layer::profile::Profile;
use silk_model::Digest;
use tokio::{task::JoinSet, time::timeout};

use super::{
    Lazies, Lazy,
    over::over,
    range::Wanted,
    scheduler::{START, Starting},
    warm::Warmer,
};
use crate::{Show, timing::Part};

/// Compressed bytes of a batch: what the connections bring within two or three round trips of 20 ms.
const BATCH: u64 = 8 << 20;

/// Compressed bytes that are fetched needlessly rather than with one more request: half a span. Requests are cheap while eight
/// are under way, and the link is what a start waits for.
const GAP: u64 = 128 << 10;

/// Compressed bytes of a new version's own layers that are fetched before all else: 70 ms at 1 Gbit/s. Chosen, not measured.
const NEWS: u64 = 8 << 20;

/// No layer that unfolds to more than so many times that is among them: it would be decoded in the start's way.
const UNFOLDS: u64 = 16;

/// Whose starts a profile is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The image's own.
    Own,
    /// Those of another version of the image: it says nothing of the layers that only this one has ([`news`]), and what a start touches of
    /// the others is still to be learned.
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
        mut starting: Starting,
        show: Arc<dyn Show>,
        whose: Whose,
    ) {
        let lazies: HashMap<_, _> = layers.iter().filter_map(|id| Some((*id, self.get(id)?))).collect();
        let (mut batch, all_news) = match whose {
            Whose::Own => (Vec::new(), true),
            Whose::Siblings => news(profile, layers, &lazies),
        };
        let mut bytes = batch.iter().map(|piece: &Piece| lazies[&piece.layer].blob_bytes(&piece.spans)).sum();
        // What is brought to the page cache is not seen to be read, and would be missing in what is learned.
        let warmed = if whose == Whose::Own { profile } else { &Profile::default() };
        let watch = self.watch(lazies.keys().copied());
        let mut ranges = (JoinSet::new(), Warmer::new(warmed, show));
        let mut fetch = pin!(async {
            for (place, run) in profile.runs().enumerate() {
                let Some(lazy) = lazies.get(&run.layer) else { continue };
                let Some(spans) = lazy.segments(run.bytes()) else { continue };
                bytes += lazy.blob_bytes(&spans);
                batch.push(Piece { layer: run.layer, spans, place });
                if bytes >= BATCH {
                    self.fetch_batch(std::mem::take(&mut batch), &lazies, &mut ranges).await;
                    bytes = 0;
                }
            }
            self.fetch_batch(batch, &lazies, &mut ranges).await;
            let any = !ranges.0.is_empty();
            while ranges.0.join_next().await.is_some() {}
            any
        });
        let Ok(any) = timeout(START, &mut fetch).await else {
            // It may come as slowly as it likes: the rest of the node does not wait for it.
            drop(starting);
            fetch.await;
            return;
        };
        if !any {
            return;
        }
        if !all_news {
            // The start reads what is not known: the background is to find it.
            return;
        }
        starting.has_come();
        // What holds back no longer need not be waited for.
        let _ = timeout(START, over(profile, &lazies, &watch)).await;
    }

    async fn fetch_batch(
        &self,
        batch: Vec<Piece>,
        lazies: &HashMap<Digest, Arc<Lazy>>,
        (ranges, warmer): &mut (JoinSet<()>, Warmer),
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
                    Arc::clone(&lazy).run(run.clone(), Wanted::Soon, Some(admitted)).await;
                    warmer.came(lazy, run);
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

/// The layers that only a new version of an image has, as far as they are small: for their sake it was made again. Another version's profile names no
/// layer of it above those that both have; what it does not name below was not touched. Says also whether these are all.
fn news(profile: &Profile, layers: &[Digest], lazies: &HashMap<Digest, Arc<Lazy>>) -> (Vec<Piece>, bool) {
    let named: HashSet<_> = profile.runs().map(|run| run.layer).collect();
    let shared = layers.iter().rposition(|layer| named.contains(layer)).map_or(layers.len(), |top| top + 1);
    let (mut left, mut pieces, mut all) = (NEWS, Vec::new(), true);
    for (layer, lazy) in layers[shared..].iter().filter_map(|layer| Some((layer, lazies.get(layer)?))) {
        let index = lazy.partial.index();
        if index.blob_size > left || index.size > NEWS * UNFOLDS {
            all = false;
            continue;
        }
        left -= index.blob_size;
        let mut at = 0;
        while at < index.spans.len() {
            let spans = index.segment(at);
            at = spans.end;
            pieces.push(Piece { layer: *layer, spans, place: 0 });
        }
    }
    (pieces, all)
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
