//! From a mounted layer with holes to a whole one that is proved, or, where its index is no good, to a stream in its place.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use silk_layer::{
    tar::{Limits, Scanner, TarError},
    toc::Toc,
};
use silk_model::{
    Class,
    metrics::{Arrival, METRICS},
};
use silk_store::StoreError;
use silk_sys::priority::{self, Behind};
use tokio::{sync::watch, time::sleep_until};

use super::{Arrived, Lazy, Road, buffers::Buffer, range::Wanted};
use crate::{LayerError, settle, timing::Part};

/// Spans that are scanned in one go: some milliseconds of a core.
const SCANNED_AT_ONCE: usize = 8;

/// After an error of the disk or the database. Chosen: a full disk is not full for long, and nobody waits.
const DISK_AGAIN: Duration = Duration::from_secs(8);

/// A small layer is whole just when its first containers start, and a mount of theirs that found the old mount is refused (EINVAL) if
/// that goes before its end: this is the longest time between the two. Chosen: they are one system call apart.
const LOOKED_UP: Duration = Duration::from_secs(10);

/// Why a layer cannot be filled by its index.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Ranges do not give what the index says.
    #[error("its index does not fit its blob: {0}")]
    Ranges(Arc<str>),
    /// All of it is here, and it is no layer after all.
    #[error(transparent)]
    Content(#[from] LayerError),
}

impl Lazy {
    /// Fills and scans the layer. Ends when it is whole; the error says why its index is no good.
    pub(super) async fn fill(self: &Arc<Self>, road: &Road) -> Result<(), Fault> {
        let began = Instant::now();
        let toc = tokio::select! {
            scanned = self.scan() => scanned?,
            fault = self.serve() => return Err(fault),
            () = self.fetch_all() => unreachable!("it goes on until the proof ends"),
        };
        let toc = Arc::new(toc);
        loop {
            match self.finish(road, Arc::clone(&toc), began).await {
                // The disk's fault, not the index's: all bytes are here, and readers get them.
                Err(LayerError::Store(error)) if error.class() != Class::Corrupt => {
                    tracing::error!(diff_id = %self.spec.diff_id, %error, "a layer that is here cannot be made whole: tried again soon");
                    tokio::time::sleep(DISK_AGAIN).await;
                }
                done => return Ok(done?),
            }
        }
    }

    /// Looks after readers: what failed is fetched again, what takes too long is refused.
    async fn serve(self: &Arc<Self>) -> Fault {
        let mut events = self.events.subscribe();
        loop {
            events.borrow_and_update();
            let todo = match self.tend() {
                Ok(todo) => todo,
                Err(cause) => return Fault::Ranges(cause),
            };
            for run in todo.runs {
                self.spawn(run, Wanted::Now, None);
            }
            changed(&mut events, todo.wake).await;
        }
    }

    /// Fetches everything that nobody has asked for yet.
    async fn fetch_all(self: &Arc<Self>) {
        let mut events = self.events.subscribe();
        loop {
            let asked = Instant::now();
            let mut admitted = self.lane.background(self.spec.diff_id).await;
            self.clocks.add(Part::Turn, asked.elapsed());
            events.borrow_and_update();
            let wake = match self.next_run() {
                Ok(Some(run)) => {
                    if self.is_all(&run) {
                        // Who reads meanwhile waits for all of it.
                        self.spawn(run, Wanted::Now, Some(admitted));
                    } else if let Some(held) = admitted.hold(self.blob_bytes(&run)) {
                        self.runtime.spawn(Arc::clone(self).run_held(run, admitted, held));
                    } else {
                        self.spawn(run, Wanted::Later, Some(admitted));
                    }
                    continue;
                }
                Ok(None) => None,
                Err(at) => Some(at),
            };
            drop(admitted);
            self.lane.cool(self.spec.diff_id);
            changed(&mut events, wake).await;
        }
    }

    /// Scans the layer behind its first hole, up to its end. Its bytes need no other proof than their spans'.
    async fn scan(self: &Arc<Self>) -> Result<Toc, LayerError> {
        let mut events = self.events.subscribe();
        let mut scanner = Box::new(Scanner::new(Limits::default()));
        let (mut done, count) = (0, self.partial.index().len());
        while done < count {
            events.borrow_and_update();
            let end = self.partial.missing_from(done).unwrap_or(count).min(done + SCANNED_AT_ONCE);
            if end == done {
                changed(&mut events, None).await;
                continue;
            }
            let admitted = self.lane.scan().await;
            let (lazy, spans) = (Arc::clone(self), done..end);
            let step = tokio::task::spawn_blocking(move || {
                let scanned = lazy.scan_spans(&mut scanner, spans)?;
                Ok::<_, TarError>((scanner, scanned))
            });
            (scanner, done) = step.await.map_err(|_| LayerError::Panicked)??;
            drop(admitted);
            if done < end {
                self.happened();
                tokio::time::sleep(DISK_AGAIN).await;
            }
        }
        Ok(scanner.finish()?)
    }

    /// Scans spans, up to the end or to the first that the disk does not give back; says which one is next. Blocks.
    fn scan_spans(&self, scanner: &mut Scanner, mut spans: Range<usize>) -> Result<usize, TarError> {
        let _lowered = priority::lowered(Behind::All);
        let began = Instant::now();
        let mut buffer = Buffer::take();
        let Buffer(bytes) = &mut buffer;
        while !spans.is_empty() {
            let range = self.partial.index().range(spans.start);
            bytes.resize((range.end - range.start) as usize, 0);
            if let Err(error) = self.partial.read(range.start, bytes) {
                self.lose(spans.start, &error);
                break;
            }
            scanner.push(bytes)?;
            spans.start += 1;
        }
        self.clocks.add(Part::Scan, began.elapsed());
        Ok(spans.start)
    }

    /// The disk's fault, not the index's: the span is fetched again.
    fn lose(&self, span: usize, error: &StoreError) {
        // Given up a moment ago.
        if matches!(error, StoreError::Absent(_)) {
            return;
        }
        let diff_id = self.spec.diff_id;
        tracing::error!(%diff_id, span, %error, "bytes of a layer cannot be read back: they are fetched again");
        if let Err(error) = self.partial.lose(span) {
            tracing::warn!(%diff_id, span, %error, "a span that cannot be read stays marked on disk");
        }
    }

    async fn finish(self: &Arc<Self>, road: &Road, toc: Arc<Toc>, began: Instant) -> Result<(), LayerError> {
        let (lazy, road) = (Arc::clone(self), road.clone());
        let finished = tokio::task::spawn_blocking(move || {
            let proof = Instant::now();
            // A span that is never entered would last until the last handle of the layer is dropped.
            let _span = lazy.span.enter();
            let diff_id = lazy.partial.diff_id();
            let store = road.lazies.store();
            let lied = match store.toc(&diff_id) {
                Ok(known) => known != *toc,
                // Damaged: nobody saw these names, and they are replaced.
                Err(StoreError::Toc { .. }) => true,
                Err(error) => return Err(error.into()),
            };
            if lied {
                road.names_lied(&lazy);
            }
            let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            lazy.partial.finish(&toc, millis)?;
            if lied && let Ok(truth) = store.known(&diff_id) {
                road.tell(&lazy, truth);
            }
            lazy.clocks.add(Part::Proof, proof.elapsed());
            lazy.clocks.end();
            lazy.span.record("result", "whole");
            road.lazies.remove(&diff_id);
            lazy.give_up();
            if !lied {
                road.show.renew(&diff_id, false);
                let show = Arc::clone(&road.show);
                lazy.runtime.spawn(async move {
                    tokio::time::sleep(LOOKED_UP).await;
                    let _ = tokio::task::spawn_blocking(move || show.put_away(LOOKED_UP)).await;
                });
            }
            METRICS.layer_pulls.of(Arrival::Filled).one();
            let Arrived { demand, profile, background } = lazy.arrived();
            tracing::info!(
                %diff_id, demand, profile, background, seconds = began.elapsed().as_secs_f64(), "a layer is whole and proved"
            );
            settle::later(store, vec![diff_id], diff_id.to_string());
            Ok(())
        });
        finished.await.unwrap_or(Err(LayerError::Panicked))
    }
}

/// Waits until something happens to a layer, or for a moment.
pub(super) async fn changed(events: &mut watch::Receiver<u64>, wake: Option<Instant>) {
    let changed = events.changed();
    match wake {
        // The sender lives in the layer, which the caller holds.
        None => drop(changed.await),
        Some(at) => tokio::select! {
            _ = changed => {}
            () = sleep_until(at.into()) => {}
        },
    }
}
