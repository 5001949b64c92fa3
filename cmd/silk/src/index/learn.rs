//! Layers on their way through: as many at once as silkd decodes, published in batches as they end.

use std::time::Duration;

use futures::{StreamExt as _, stream::FuturesUnordered};
use silk_pull::{Counts, LayerSpec, Learner};
use silk_registry::{Blob, Repository};
use silk_share::Item;

use super::places::Places;
use crate::{failure::Failure, pull::progress::Board};

/// Bytes of what was learned that wait to be published together: an image of 10 GB in one go, and little memory.
const BATCH: usize = 64 << 20;
/// Between two looks at how far the layers are.
const TICK: Duration = Duration::from_millis(200);

/// The layers of an image.
pub struct Learning<'a> {
    learner: &'a Learner,
    repository: &'a Repository,
    layers: &'a [LayerSpec],
    board: &'a Board,
}

/// A layer to be learned; an image may have it at several places.
struct Wanted {
    rows: Vec<usize>,
    layer: LayerSpec,
    blob: Blob,
    counts: Counts,
}

impl<'a> Learning<'a> {
    /// Nothing starts yet.
    pub fn new(learner: &'a Learner, repository: &'a Repository, layers: &'a [LayerSpec], board: &'a Board) -> Self {
        Self { learner, repository, layers, board }
    }

    /// Learns and publishes what not all of `places` have. At the first layer that cannot be learned the rest is left, and
    /// what was learned by then is published: another try need not learn it again.
    pub async fn run(&self, places: &mut Places) -> Result<(), Failure> {
        let wanted = self.wanted(places);
        let mut under_way: FuturesUnordered<_> = wanted
            .iter()
            .map(|one| async move { (one, self.learner.learn(&one.layer, &one.blob, one.counts.clone()).await) })
            .collect();
        let mut ticks = tokio::time::interval(TICK);
        let (mut learned, mut bytes) = (Vec::new(), 0);
        let outcome = loop {
            tokio::select! {
                ended = under_way.next() => match ended {
                    None => break Ok(()),
                    Some((one, Ok(known))) => {
                        one.rows.iter().for_each(|row| self.board.learned(*row, true));
                        let item = Item::Layer(known);
                        bytes += item.size();
                        learned.push(item);
                    }
                    Some((one, Err(error))) => break Err(self.failure(one, error.into())),
                },
                _ = ticks.tick() => wanted.iter().for_each(|one| self.show(one)),
            }
            if bytes >= BATCH {
                places.publish(std::mem::take(&mut learned)).await;
                bytes = 0;
            }
        };
        places.publish(learned).await;
        outcome
    }

    /// The largest first: it decides the end.
    fn wanted(&self, places: &Places) -> Vec<Wanted> {
        let mut wanted: Vec<Wanted> = Vec::new();
        for (row, layer) in self.layers.iter().enumerate() {
            if places.all_have(&layer.blob) {
                self.board.learned(row, false);
            } else if let Some(same) = wanted.iter_mut().find(|one| one.layer == *layer) {
                same.rows.push(row);
            } else {
                let blob = self.repository.blob(layer.blob, layer.size);
                wanted.push(Wanted { rows: vec![row], layer: layer.clone(), blob, counts: Counts::default() });
            }
        }
        wanted.sort_by_key(|one| std::cmp::Reverse(one.layer.size));
        wanted
    }

    fn show(&self, one: &Wanted) {
        let received = one.counts.received();
        if received > 0 {
            one.rows.iter().for_each(|row| self.board.arrived(*row, received, &one.blob.host()));
        }
    }

    fn failure(&self, one: &Wanted, source: Failure) -> Failure {
        let (number, count) = (one.rows[0] + 1, self.layers.len());
        Failure::Layer { number, count, blob: one.layer.blob, source: Box::new(source) }
    }
}
