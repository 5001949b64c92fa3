//! Who may fetch, over all layers that fill behind their readers: demand at once, everything else when no reader waits.
//!
//! Work that has begun is never cancelled: a range ends within tens of milliseconds, and its bytes are wanted anyway.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, timeout_at},
};

use crate::Config;

/// Ranges that readers wait for, at once. More than a container's threads ask for; each holds a decoder and a span.
const DEMANDS: usize = 8;

/// After a reader was served, the link is left to the next one for this long: a start reads in bursts, one page fault after
/// another, with less than this between them.
const QUIET: Duration = Duration::from_millis(30);

/// Readers hold back the rest no longer than this, so that an image becomes whole under constant reading too.
const PATIENCE: Duration = Duration::from_millis(300);

/// Admits ranges.
#[derive(Debug)]
pub(crate) struct Scheduler {
    demands: Arc<Semaphore>,
    others: Arc<Semaphore>,
    /// One at a time for every two cores.
    scans: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// When the last reader was served.
    served: watch::Sender<Instant>,
}

/// The right to fetch and decode one range; for a reader, others hold back while it lives.
#[derive(Debug)]
pub(crate) struct Admitted {
    _permit: Option<OwnedSemaphorePermit>,
    demand: Option<Arc<Scheduler>>,
}

impl Scheduler {
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Arc::new(Self {
            demands: Arc::new(Semaphore::new(DEMANDS)),
            others: Arc::new(Semaphore::new(config.ranges_at_once.max(1))),
            scans: Arc::new(Semaphore::new(cores.div_ceil(2))),
            waiting: AtomicUsize::new(0),
            served: watch::Sender::new(Instant::now() - QUIET),
        })
    }

    /// A reader waits.
    pub(crate) async fn demand(self: &Arc<Self>) -> Admitted {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let mut admitted = Admitted { _permit: None, demand: Some(Arc::clone(self)) };
        admitted._permit = Arc::clone(&self.demands).acquire_owned().await.ok();
        admitted
    }

    /// Nobody waits for it.
    pub(crate) async fn background(self: &Arc<Self>) -> Admitted {
        let permit = Arc::clone(&self.others).acquire_owned().await.ok();
        self.quiet().await;
        Admitted { _permit: permit, demand: None }
    }

    /// The right to read and scan some spans.
    pub(crate) async fn scan(self: &Arc<Self>) -> Admitted {
        let permit = Arc::clone(&self.scans).acquire_owned().await.ok();
        self.quiet().await;
        Admitted { _permit: permit, demand: None }
    }

    /// Returns when no reader waits and none was served a moment ago, or when patience ends.
    async fn quiet(&self) {
        let mut served = self.served.subscribe();
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let calm = *served.borrow_and_update() + QUIET;
            if self.waiting.load(Ordering::Acquire) > 0 {
                let _ = timeout_at(end, served.changed()).await;
            } else if Instant::now() < calm {
                tokio::time::sleep_until(calm.min(end)).await;
            } else {
                return;
            }
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(scheduler) = &self.demand {
            scheduler.waiting.fetch_sub(1, Ordering::AcqRel);
            scheduler.served.send_replace(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_background_waits_for_readers_but_not_for_ever() {
        let scheduler = Scheduler::new(&Config::default());
        drop(scheduler.background().await);
        let reader = scheduler.demand().await;
        let began = Instant::now();
        drop(scheduler.background().await);
        assert_eq!(began.elapsed(), PATIENCE, "a reader that is never served");
        let waiting = tokio::spawn({
            let scheduler = Arc::clone(&scheduler);
            async move { scheduler.background().await }
        });
        tokio::time::sleep(QUIET).await;
        assert!(!waiting.is_finished());
        drop(reader);
        let served = Instant::now();
        drop(waiting.await.unwrap());
        assert_eq!(served.elapsed(), QUIET);
    }
}
