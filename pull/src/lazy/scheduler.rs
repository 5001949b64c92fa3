//! Who may fetch, over all layers that fill behind their readers: what a reader waits for at once, then what starts are known to
//! touch, and everything else beside the readers on fewer connections.
//!
//! The rest never stops for readers, but for a start whose profile is known ([`Starting`]): a start is a chain of small reads, each a round trip, which leave most of the link idle, and
//! the sooner everything is here the fewer of them miss. But each connection takes an equal share of the link, so the
//! fewer the rest has, the sooner a reader's range is through. Holding the rest back altogether for 30 ms after each read
//! was tried: a Python service with 294 MB was ready after 4.2 s (3.2 s as it is now) and whole after 4.1 s (2.9 s), where a plain pull is
//! whole after 2.7 s (1 Gbit/s, 80 MiB/s a connection, 20 ms to the first byte; 2 cores, a busy machine, 1 to 3 runs). So was one
//! connection (ready 4.3 s, whole 4.3 s) and two (3.1 s, 2.9 s) against three (3.0 s, 2.7 s; a quiet machine, one run each).
//!
//! Work that has begun is never cancelled: a range ends within tens of milliseconds, and its bytes are wanted anyway. Unless its
//! registry drips: so each registry has ranges of its own ([`Lane`]), and none takes those of others.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use silk_model::Use;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::Config;

/// Other ranges at once while readers are served: by arithmetic, the fewest that still fill a link of 1 Gbit/s at 80 MiB/s a
/// connection, when each range begins with 20 ms of silence.
const BESIDE_READERS: usize = 3;

/// After a reader was served, it is counted as there for this long: a few round trips, so that a chain of reads counts as one
/// reader. Chosen, not measured.
const LINGERS: Duration = Duration::from_millis(100);

/// The rest may fetch so many hundredths of what a start touches before that is over: the link would be idle meanwhile, but
/// bytes that nobody wants are not to be most of what a start costs.
const SPARE: u64 = 25;

/// What starts touch holds back the rest no longer than this: some hundred megabytes on a slow link.
const START: Duration = Duration::from_secs(10);

/// Admits ranges.
#[derive(Debug)]
pub(crate) struct Scheduler {
    /// Scans of what has come: one at a time for every two cores.
    scans: Arc<Semaphore>,
    most: usize,
    /// For demands and starts, in each lane.
    places: [usize; 2],
    traffic: Mutex<Traffic>,
    /// A range that nobody waits for has ended.
    ended: Notify,
}

/// A registry's ranges.
#[derive(Debug)]
pub(crate) struct Lane {
    scheduler: Arc<Scheduler>,
    demands: Arc<Semaphore>,
    /// What starts touch. Demand has permits of its own and never queues behind these.
    starts: Arc<Semaphore>,
    /// Ranges that nobody waits for. Changed with the scheduler's traffic locked.
    others: AtomicUsize,
}

#[derive(Debug)]
struct Traffic {
    /// Reads that are not answered.
    readers: usize,
    /// When a reader was last answered.
    served: Option<Instant>,
    /// Those in use, by the registry's name.
    lanes: HashMap<String, Weak<Lane>>,
    /// Images whose starts' bytes are not all on their way yet, and until when the rest waits for that.
    starting: usize,
    starts_end: Option<Instant>,
    /// Bytes that the rest may fetch all the same.
    spare: u64,
}

/// An image's start is to be fetched: the rest holds back while this lives.
#[derive(Debug)]
pub(crate) struct Starting(Arc<Scheduler>);

impl Starting {
    /// What the start touches is here, so many compressed bytes: while it goes on, the rest has one connection.
    pub(crate) fn has_come(&self, bytes: u64) {
        self.0.traffic().spare += bytes / 100 * SPARE;
        self.0.ended.notify_waiters();
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let mut traffic = self.0.traffic();
        traffic.starting -= 1;
        if traffic.starting == 0 {
            traffic.spare = 0;
        }
        drop(traffic);
        self.0.ended.notify_waiters();
    }
}

/// The right to fetch and decode one range, or to scan.
#[derive(Debug)]
pub(crate) struct Admitted {
    _permit: Option<OwnedSemaphorePermit>,
    of: Option<(Arc<Lane>, Whose)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Reader,
    Other,
}

impl Admitted {
    /// It fetches so many bytes that nobody waits for.
    pub(crate) fn spend(&self, bytes: u64) {
        if let Some((lane, Whose::Other)) = &self.of {
            let mut traffic = lane.scheduler.traffic();
            traffic.spare = traffic.spare.saturating_sub(bytes);
        }
    }
}

impl Scheduler {
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Arc::new(Self {
            places: [config.demand_ranges.max(1), config.profile_ranges.max(1)],
            scans: Arc::new(Semaphore::new(cores.div_ceil(2))),
            most: config.ranges_at_once.max(1),
            traffic: Mutex::new(Traffic {
                readers: 0,
                served: None,
                lanes: HashMap::new(),
                starting: 0,
                starts_end: None,
                spare: 0,
            }),
            ended: Notify::new(),
        })
    }

    /// That of a registry.
    pub(crate) fn lane(self: &Arc<Self>, registry: &str) -> Arc<Lane> {
        let mut traffic = self.traffic();
        if let Some(lane) = traffic.lanes.get(registry).and_then(Weak::upgrade) {
            return lane;
        }
        let [demands, starts] = self.places.map(|places| Arc::new(Semaphore::new(places)));
        let lane = Arc::new(Lane { scheduler: Arc::clone(self), demands, starts, others: AtomicUsize::new(0) });
        traffic.lanes.retain(|_, lane| lane.strong_count() > 0);
        traffic.lanes.insert(registry.to_owned(), Arc::downgrade(&lane));
        lane
    }

    /// Ranges under way from the registry that has most: that readers wait for, that starts touch, and others.
    pub(crate) fn now(&self) -> [Use; 3] {
        let [demands, starts] = self.places;
        let lanes: Vec<_> = self.traffic().lanes.values().filter_map(Weak::upgrade).collect();
        let most = |of: &dyn Fn(&Lane) -> Use, limit: usize| {
            let busiest = lanes.iter().map(|lane| of(lane).in_use).max();
            Use { limit: limit as u64, in_use: busiest.unwrap_or(0) }
        };
        [
            most(&|lane| Use::of_places(demands, lane.demands.available_permits()), demands),
            most(&|lane| Use::of_places(starts, lane.starts.available_permits()), starts),
            most(&|lane| Use::of_places(self.most, self.most.saturating_sub(lane.others())), self.most),
        ]
    }

    /// To be called before the image's layers are opened, so that no other range comes first.
    pub(crate) fn starting(self: &Arc<Self>) -> Starting {
        let mut traffic = self.traffic();
        // Not anew while others go on: a node where something always starts would never have anything whole.
        if traffic.starting == 0 {
            traffic.starts_end = Some(Instant::now() + START);
        }
        traffic.starting += 1;
        drop(traffic);
        Starting(Arc::clone(self))
    }

    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    /// A reader waits.
    pub(crate) async fn demand(self: &Arc<Self>) -> Admitted {
        self.scheduler.traffic().readers += 1;
        let mut admitted = Admitted { _permit: None, of: Some((Arc::clone(self), Whose::Reader)) };
        admitted._permit = Arc::clone(&self.demands).acquire_owned().await.ok();
        admitted
    }

    /// A start is known to touch it.
    pub(crate) async fn start(self: &Arc<Self>) -> Admitted {
        Admitted { _permit: Arc::clone(&self.starts).acquire_owned().await.ok(), of: None }
    }

    /// Nobody waits for it.
    pub(crate) async fn background(self: &Arc<Self>) -> Admitted {
        loop {
            let ended = self.scheduler.ended.notified();
            let again = match self.try_background() {
                Ok(admitted) => return admitted,
                Err(again) => again,
            };
            let _ = timeout_at(again, ended).await;
        }
    }

    /// Or when to try again at the latest.
    fn try_background(self: &Arc<Self>) -> Result<Admitted, Instant> {
        let traffic = self.scheduler.traffic();
        let (now, others) = (Instant::now(), self.others());
        let starts = traffic.starts_end.filter(|end| traffic.starting > 0 && *end > now);
        if let Some(end) = starts.filter(|_| traffic.spare == 0 || others > 0) {
            return Err(end);
        }
        let lingers = traffic.served.map(|served| served + LINGERS).filter(|end| *end > now);
        let most = self.scheduler.most;
        let most = if traffic.readers > 0 || lingers.is_some() { most.min(BESIDE_READERS) } else { most };
        if others >= most {
            return Err(lingers.unwrap_or(now + LINGERS));
        }
        self.others.store(others + 1, Ordering::Relaxed);
        Ok(Admitted { _permit: None, of: Some((Arc::clone(self), Whose::Other)) })
    }

    /// The right to read and scan some spans.
    pub(crate) async fn scan(&self) -> Admitted {
        Admitted { _permit: Arc::clone(&self.scheduler.scans).acquire_owned().await.ok(), of: None }
    }

    fn others(&self) -> usize {
        self.others.load(Ordering::Relaxed)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let Some((lane, whose)) = &self.of else { return };
        let mut traffic = lane.scheduler.traffic();
        match whose {
            Whose::Reader => {
                traffic.readers -= 1;
                traffic.served = Some(Instant::now());
            }
            Whose::Other => lane.others.store(lane.others() - 1, Ordering::Relaxed),
        }
        drop(traffic);
        // Those of other lanes may wait, too, and may not be the ones that can go on.
        lane.scheduler.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_start_has_the_link_for_itself_and_leaves_the_rest_a_part() {
        let scheduler = Scheduler::new(&Config::default());
        let lane = scheduler.lane("a.example");
        let starting = scheduler.starting();
        assert!(lane.try_background().is_err(), "it fetches");
        starting.has_come(1000);
        let one = lane.try_background().unwrap();
        assert!(lane.try_background().is_err(), "one at a time");
        one.spend(10 * SPARE - 1);
        drop(one);
        let last = lane.try_background().unwrap();
        last.spend(1);
        drop(last);
        assert!(lane.try_background().is_err(), "all of its part is spent");
        drop(starting);
        let all: Vec<_> = (0..Config::default().ranges_at_once).map(|_| lane.try_background()).collect();
        assert!(all.iter().all(Result::is_ok), "it is over");
        // One that never ends does not keep the rest back for good.
        drop(all);
        let _starting = scheduler.starting();
        let began = Instant::now();
        tokio::time::sleep(START / 2).await;
        let _another = scheduler.starting();
        drop(lane.background().await);
        assert_eq!(began.elapsed(), START, "nor do starts one after another");
    }

    #[tokio::test(start_paused = true)]
    async fn readers_leave_the_rest_fewer_ranges_and_for_a_moment_only() {
        let lane = Scheduler::new(&Config::default()).lane("a.example");
        let mut others = Vec::new();
        for _ in 0..BESIDE_READERS {
            others.push(lane.background().await);
        }
        let reader = lane.demand().await;
        let next = tokio::spawn({
            let lane = Arc::clone(&lane);
            async move { lane.background().await }
        });
        tokio::time::sleep(10 * LINGERS).await;
        assert!(!next.is_finished(), "three, while a reader waits");
        drop(others.pop());
        others.push(next.await.unwrap());
        drop(reader);
        let served = Instant::now();
        others.push(lane.background().await);
        assert_eq!(served.elapsed(), LINGERS);
        while others.len() < Config::default().ranges_at_once {
            others.push(lane.background().await);
        }
        assert!(lane.try_background().is_err());
        others.clear();
        assert!(lane.try_background().is_ok());
    }

    #[tokio::test]
    async fn a_registry_takes_no_ranges_of_another() {
        let config = Config::default();
        let scheduler = Scheduler::new(&config);
        let (lane, other) = (scheduler.lane("a.example"), scheduler.lane("b.example"));
        let all: Vec<_> = (0..config.ranges_at_once).map(|_| lane.try_background().unwrap()).collect();
        assert!(lane.try_background().is_err());
        assert!(Arc::ptr_eq(&scheduler.lane("a.example"), &lane));
        assert!(other.try_background().is_ok());
        assert_eq!(scheduler.now()[2].in_use, config.ranges_at_once as u64);
        drop((all, lane));
        assert_eq!(scheduler.lane("a.example").others(), 0);
        let starts: Vec<_> = futures::future::join_all((0..config.profile_ranges).map(|_| other.start())).await;
        assert_eq!(scheduler.now()[1].in_use, starts.len() as u64);
    }
}
