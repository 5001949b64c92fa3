//! Layers on their way through: as many at once as silkd decodes, published in batches as they end.

use std::{pin::pin, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use silk_pull::{Counts, LayerSpec, Learner};
use silk_registry::{Blob, Repository};
use silk_share::Item;
use tokio::{sync::mpsc, time::Instant};

use super::places::Places;
use crate::{failure::Failure, interrupt::Signals, pull::progress::Board};

/// Bytes of what was learned that wait to be published together: an image of 10 GB in one go, and little memory.
const BATCH: usize = 64 << 20;
/// For which what was learned waits at most: what ends silk without a word takes no more with it.
const AT_LATEST: Duration = Duration::from_secs(20);
/// Layers that end while others are published; the next ones wait.
const AHEAD: usize = 16;
/// What a signal leaves for the last publication: those who send SIGTERM send SIGKILL soon after.
const LAST: Duration = Duration::from_secs(10);
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

    /// Learns and publishes what not all of `places` have. At the first layer that cannot be learned, or at a signal, the rest is
    /// left, and what was learned by then is published: another try need not learn it again.
    pub async fn run(&self, places: &mut Places, signals: &mut Signals) -> Result<(), Failure> {
        let wanted = self.wanted(places);
        let (learned, items) = mpsc::channel(AHEAD);
        let mut publishing = pin!(in_batches(items, AT_LATEST, async |batch| places.publish(batch).await));
        let signal = {
            let learning = self.learn(&wanted, learned);
            tokio::select! {
                (outcome, ()) = async { tokio::join!(learning, publishing.as_mut()) } => return outcome,
                signal = signals.next() => signal,
            }
        };
        // Nobody learns any more: it ends with what there is.
        tokio::select! {
            _ = tokio::time::timeout(LAST, publishing) => {}
            _ = signals.next() => {}
        }
        Err(Failure::Interrupted(signal))
    }

    async fn learn(&self, wanted: &[Wanted], learned: mpsc::Sender<Item>) -> Result<(), Failure> {
        let mut under_way: FuturesUnordered<_> = wanted
            .iter()
            .map(|one| async move { (one, self.learner.learn(&one.layer, &one.blob, one.counts.clone()).await) })
            .collect();
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                ended = under_way.next() => match ended {
                    None => return Ok(()),
                    Some((one, Ok(known))) => {
                        one.rows.iter().for_each(|row| self.board.learned(*row, true));
                        // Who publishes outlives this.
                        let _ = learned.send(Item::Layer(known)).await;
                    }
                    Some((one, Err(error))) => return Err(self.failure(one, error.into())),
                },
                _ = ticks.tick() => wanted.iter().for_each(|one| self.show(one)),
            }
        }
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

/// Publishes what is learned: as much as is worth a batch, or has waited for `longest`, and at the end the rest.
async fn in_batches(mut learned: mpsc::Receiver<Item>, longest: Duration, mut publish: impl AsyncFnMut(Vec<Item>)) {
    let (mut batch, mut bytes, mut due) = (Vec::new(), 0, Instant::now());
    loop {
        tokio::select! {
            item = learned.recv() => {
                let Some(item) = item else { break };
                if batch.is_empty() {
                    due = Instant::now() + longest;
                }
                bytes += item.size();
                batch.push(item);
                if bytes < BATCH {
                    continue;
                }
            }
            () = tokio::time::sleep_until(due), if !batch.is_empty() => {}
        }
        publish(std::mem::take(&mut batch)).await;
        bytes = 0;
    }
    publish(batch).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_has_waited_long_is_published_before_the_end() {
        let (learned, items) = mpsc::channel(AHEAD);
        let (publish, mut published) = mpsc::unbounded_channel();
        let longest = Duration::from_millis(20);
        let publishing = tokio::spawn(in_batches(items, longest, async move |batch: Vec<Item>| {
            publish.send(batch.len()).unwrap();
        }));
        learned.send(Item::Profile("a".into())).await.unwrap();
        learned.send(Item::Profile("b".into())).await.unwrap();
        let first = published.recv().await.unwrap();
        assert!(first > 0, "nothing has ended yet");
        learned.send(Item::Profile("c".into())).await.unwrap();
        drop(learned);
        publishing.await.unwrap();
        let rest: usize = std::iter::from_fn(|| published.try_recv().ok()).sum();
        assert_eq!(first + rest, 3);
    }
}
