//! Who may fetch, over all layers that fill behind their readers: what a reader waits for at once, then what starts are known to
//! touch, and everything else beside them.
//!
//! The rest never stops for readers, but for a start whose profile is known ([`Starting`]): a start is a chain of small reads, each a round
//! trip, which leave most of the link idle, and the sooner everything is here the fewer of them miss. But it goes where the readers are: what
//! is read next is mostly near what was read last. So while a registry's layers are read its ranges are short ([`NEAR`]), that a new place is
//! soon taken up and nobody waits long behind a range that has begun, they start a little before the last read, and other layers have only one
//! connection ([`ELSEWHERE`]). Against ranges of 4 MiB on three connections, wherever (1 Gbit/s, 80 MiB/s a connection, 20 ms to the first byte; 2
//! cores; seconds until the container was ready, without a profile): an ML image 4.7 to 5.1 before, 3.6 to 3.9 now, a Node service 2.5 and 1.9, a
//! Python service, which takes the processors, 2.9 and 2.8 to 2.9; whole at the same time or sooner; twice as many requests.
//!
//! Tried too: ranges of 512 KiB (ML ready after 3.9 s, whole after 8.3 instead of 7.4) and 2 MiB (4.3 s), three connections of 1 MiB (4.2 s, whole 8.3 s),
//! holding the rest back for 30 ms after each read (Python ready after 4.2 s, whole after 4.1 s instead of 2.7), one connection (4.3 s, 4.3 s).
//!
//! Work that has begun is never cancelled: a range ends within tens of milliseconds, and its bytes are wanted anyway. Unless its
//! registry drips: so each registry has ranges of its own ([`Lane`]), and none takes those of others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use silk_model::{Digest, Use};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::Config;

/// A range's bytes at most while readers are served, in the blob.
pub(super) const NEAR: u64 = 1 << 20;

/// Ranges at once of all layers together that are not the one that was read last. Two made no difference.
const ELSEWHERE: usize = 1;

/// After a reader was served, it is counted as there for this long: a few round trips, so that a chain of reads counts as one
/// reader. Chosen, not measured.
const LINGERS: Duration = Duration::from_millis(100);

/// Ranges at once that are held back. Computed: at 80 MiB/s a connection and 20 ms to the first byte two of 4 MiB fill four fifths of a link of 1 Gbit/s,
/// and leave the rest to what the start asks for all the same.
const HELD: usize = 2;

/// What starts touch holds back the rest no longer than this: some hundred megabytes on a slow link.
pub(super) const START: Duration = Duration::from_secs(10);

/// Admits ranges.
#[derive(Debug)]
pub(crate) struct Scheduler {
    /// Scans of what has come: one at a time for every two cores.
    scans: Arc<Semaphore>,
    most: usize,
    /// Compressed bytes that may be held back, and those of one range.
    held_bytes: u64,
    range: u64,
    /// Ranges that were held back, while they are decoded: one at a time for each core.
    decodes: Arc<Semaphore>,
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
    /// Locked after the scheduler's traffic.
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    /// Ranges that nobody waits for.
    others: usize,
    /// Reads that are not answered.
    readers: usize,
    /// When a reader was last answered.
    served: Option<Instant>,
    /// The layer that was read last, while something of it can be fetched.
    hot: Option<Digest>,
}

impl Running {
    /// Until when there is a reader, for all that is known now.
    fn read_until(&self, now: Instant) -> Option<Instant> {
        let last = if self.readers > 0 { Some(now) } else { self.served };
        last.map(|last| last + LINGERS).filter(|end| *end > now)
    }
}

#[derive(Debug)]
struct Traffic {
    /// Those in use, by the registry's name.
    lanes: HashMap<String, Weak<Lane>>,
    /// Images that start, those among them whose starts' bytes are here, and until when the rest waits for them.
    starting: usize,
    come: usize,
    starts_end: Option<Instant>,
    /// Compressed bytes that are held back.
    held: u64,
}

impl Traffic {
    /// Until when starts go on at the most, for all that is known now.
    fn starts_until(&self, now: Instant) -> Option<Instant> {
        self.starts_end.filter(|end| self.starting > 0 && *end > now)
    }
}

/// An image's start is to be fetched: the rest holds back while this lives.
#[derive(Debug)]
pub(crate) struct Starting {
    scheduler: Arc<Scheduler>,
    has_come: bool,
}

impl Starting {
    /// What the start touches is here. It has the processors for itself while it goes on, but does not need the link: the rest comes, and is not
    /// decoded.
    pub(crate) fn has_come(&mut self) {
        if !std::mem::replace(&mut self.has_come, true) {
            self.scheduler.traffic().come += 1;
            self.scheduler.ended.notify_waiters();
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let mut traffic = self.scheduler.traffic();
        traffic.starting -= 1;
        traffic.come -= usize::from(self.has_come);
        drop(traffic);
        self.scheduler.ended.notify_waiters();
    }
}

/// Compressed bytes that wait in memory until starts are over.
#[derive(Debug)]
pub(crate) struct Held {
    scheduler: Arc<Scheduler>,
    bytes: u64,
}

impl Held {
    /// The right to decode them, when no start goes on.
    pub(crate) async fn turn(&self) -> OwnedSemaphorePermit {
        self.until_starts_are_over().await;
        let turn = Arc::clone(&self.scheduler.decodes).acquire_owned().await;
        turn.expect("it is never closed")
    }

    async fn until_starts_are_over(&self) {
        loop {
            let ended = self.scheduler.ended.notified();
            let Some(end) = self.scheduler.traffic().starts_until(Instant::now()) else { return };
            let _ = timeout_at(end, ended).await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.scheduler.traffic().held -= self.bytes;
        self.scheduler.ended.notify_waiters();
    }
}

/// The right to fetch and decode one range, or to scan.
#[derive(Debug)]
pub(crate) struct Admitted {
    _permit: Option<OwnedSemaphorePermit>,
    /// Whose it is, when nobody waits for it.
    other: Option<Arc<Lane>>,
    /// A start goes on: what comes is to be held.
    hold: Option<Held>,
}

impl Admitted {
    /// Are these bytes to be held, because a start goes on? Not if they are more than there is room for.
    pub(crate) fn hold(&mut self, bytes: u64) -> Option<Held> {
        let mut held = self.hold.take_if(|hold| bytes <= hold.bytes)?;
        held.scheduler.traffic().held -= held.bytes - bytes;
        held.bytes = bytes;
        Some(held)
    }
}

/// A read that waits, whoever fetches its bytes.
#[derive(Debug)]
pub(crate) struct Reading(Arc<Lane>);

impl Drop for Reading {
    fn drop(&mut self) {
        let mut running = self.0.running();
        running.readers -= 1;
        running.served = Some(Instant::now());
    }
}

impl Scheduler {
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Arc::new(Self {
            places: [config.demand_ranges.max(1), config.profile_ranges.max(1)],
            scans: Arc::new(Semaphore::new(cores.div_ceil(2))),
            most: config.ranges_at_once.max(1),
            held_bytes: u64::from(config.held_bytes),
            range: u64::from(config.range_bytes.max(1)),
            decodes: Arc::new(Semaphore::new(cores)),
            traffic: Mutex::new(Traffic { lanes: HashMap::new(), starting: 0, come: 0, starts_end: None, held: 0 }),
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
        let lane = Arc::new(Lane { scheduler: Arc::clone(self), demands, starts, running: Mutex::default() });
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
            most(&|lane| Use::of_places(self.most, self.most.saturating_sub(lane.running().others)), self.most),
        ]
    }

    /// Compressed bytes that are held back.
    pub(crate) fn held(&self) -> Use {
        Use { limit: self.held_bytes, in_use: self.traffic().held }
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
        Starting { scheduler: Arc::clone(self), has_come: false }
    }

    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    /// A read of a layer waits from now on.
    pub(crate) fn reading(self: &Arc<Self>, layer: Digest) -> Reading {
        let mut running = self.running();
        running.readers += 1;
        running.hot = Some(layer);
        drop(running);
        Reading(Arc::clone(self))
    }

    /// Does a read wait, or did one a moment ago?
    pub(crate) fn is_read(&self) -> bool {
        self.running().read_until(Instant::now()).is_some()
    }

    /// Nothing of a layer can be fetched now that is not coming: others may have the connections.
    pub(crate) fn cool(&self, layer: Digest) {
        if self.running().hot.take_if(|hot| *hot == layer).is_some() {
            self.scheduler.ended.notify_waiters();
        }
    }

    /// A read waits for it.
    pub(crate) async fn demand(&self) -> Admitted {
        Admitted { _permit: Arc::clone(&self.demands).acquire_owned().await.ok(), other: None, hold: None }
    }

    /// A start is known to touch it.
    pub(crate) async fn start(&self) -> Admitted {
        Admitted { _permit: Arc::clone(&self.starts).acquire_owned().await.ok(), other: None, hold: None }
    }

    /// Nobody waits for it: bytes of a layer that are only to be here in the end.
    pub(crate) async fn background(self: &Arc<Self>, layer: Digest) -> Admitted {
        loop {
            let ended = self.scheduler.ended.notified();
            let again = match self.try_background(layer) {
                Ok(admitted) => return admitted,
                Err(again) => again,
            };
            let _ = timeout_at(again, ended).await;
        }
    }

    /// Or when to try again at the latest.
    fn try_background(self: &Arc<Self>, layer: Digest) -> Result<Admitted, Instant> {
        let mut traffic = self.scheduler.traffic();
        let mut running = self.running();
        let now = Instant::now();
        let starts = traffic.starts_until(now);
        if let Some(end) = starts {
            let has_room = traffic.held + self.scheduler.range <= self.scheduler.held_bytes;
            let is_free = traffic.come == traffic.starting && has_room;
            if !is_free || running.others >= HELD.min(self.scheduler.most) {
                return Err(end);
            }
        }
        let read_until = running.read_until(now);
        let elsewhere = read_until.is_some() && running.hot.is_some_and(|hot| hot != layer);
        let most = if elsewhere { self.scheduler.most.min(ELSEWHERE) } else { self.scheduler.most };
        if running.others >= most {
            return Err(read_until.unwrap_or(now + LINGERS));
        }
        running.others += 1;
        let hold = starts.map(|_| {
            let bytes = self.scheduler.range;
            traffic.held += bytes;
            Held { scheduler: Arc::clone(&self.scheduler), bytes }
        });
        Ok(Admitted { _permit: None, other: Some(Arc::clone(self)), hold })
    }

    /// The right to read and scan some spans.
    pub(crate) async fn scan(&self) -> Admitted {
        Admitted { _permit: Arc::clone(&self.scheduler.scans).acquire_owned().await.ok(), other: None, hold: None }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let Some(lane) = &self.other else { return };
        lane.running().others -= 1;
        // Those of other lanes may wait, too, and may not be the ones that can go on.
        lane.scheduler.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    fn layer() -> Digest {
        Digest::of(b"a layer")
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_has_the_link_for_itself_and_what_comes_beside_it_is_held() {
        let config = Config { held_bytes: 3 * Config::default().range_bytes, ..Config::default() };
        let scheduler = Scheduler::new(&config);
        let lane = scheduler.lane("a.example");
        let mut starting = scheduler.starting();
        assert!(lane.try_background(layer()).is_err(), "it fetches");
        starting.has_come();
        let (mut held, range) = (Vec::new(), u64::from(config.range_bytes));
        for bytes in [range, 1000] {
            let mut some: Vec<_> = (0..HELD).map(|_| lane.try_background(layer()).unwrap()).collect();
            assert!(lane.try_background(layer()).is_err(), "no more at a time");
            assert!(some[0].hold(range + 1).is_none(), "more than there is room for");
            held.extend(some[0].hold(bytes));
        }
        let last = lane.try_background(layer()).unwrap();
        assert_eq!(scheduler.held(), Use { limit: 3 * range, in_use: 2 * range + 1000 });
        assert!(lane.try_background(layer()).is_err(), "no more in all");
        drop(last);
        held.pop();
        let another = scheduler.starting();
        assert!(lane.try_background(layer()).is_err(), "the other fetches");
        drop(another);
        assert!(lane.try_background(layer()).unwrap().hold(1).is_some());
        assert!(timeout(START / 2, held[0].until_starts_are_over()).await.is_err());
        drop(starting);
        let all: Vec<_> = (0..Config::default().ranges_at_once).map(|_| lane.try_background(layer())).collect();
        assert!(all.iter().all(Result::is_ok), "it is over");
        assert!(all.iter().flatten().all(|admitted| admitted.hold.is_none()));
        held[0].until_starts_are_over().await;
        drop(held);
        assert_eq!(scheduler.held().in_use, 0);
        // One that never ends does not keep the rest back for good.
        drop(all);
        let _starting = scheduler.starting();
        let began = Instant::now();
        tokio::time::sleep(START / 2).await;
        let _another = scheduler.starting();
        drop(lane.background(layer()).await);
        assert_eq!(began.elapsed(), START, "nor do starts one after another");
    }

    #[tokio::test(start_paused = true)]
    async fn the_rest_goes_where_readers_are_and_for_a_moment_only() {
        let lane = Scheduler::new(&Config::default()).lane("a.example");
        let cold = Digest::of(b"another layer");
        let mut others = vec![lane.background(cold).await];
        let reader = lane.reading(layer());
        assert!(lane.is_read());
        assert!(lane.try_background(cold).is_err(), "one, while the other layer is read");
        others.push(lane.try_background(layer()).unwrap());
        lane.cool(cold);
        assert!(lane.try_background(cold).is_err(), "something of the other is missing");
        lane.cool(layer());
        others.push(lane.try_background(cold).unwrap());
        let again = lane.reading(layer());
        drop(reader);
        tokio::time::sleep(10 * LINGERS).await;
        assert!(lane.try_background(cold).is_err(), "a reader waits");
        drop(again);
        let served = Instant::now();
        others.push(lane.background(cold).await);
        assert_eq!(served.elapsed(), LINGERS);
        assert!(!lane.is_read());
        while others.len() < Config::default().ranges_at_once {
            others.push(lane.background(cold).await);
        }
        assert!(lane.try_background(layer()).is_err());
        others.clear();
        assert!(lane.try_background(cold).is_ok());
    }

    #[tokio::test]
    async fn a_registry_takes_no_ranges_of_another() {
        let config = Config::default();
        let scheduler = Scheduler::new(&config);
        let (lane, other) = (scheduler.lane("a.example"), scheduler.lane("b.example"));
        let all: Vec<_> = (0..config.ranges_at_once).map(|_| lane.try_background(layer()).unwrap()).collect();
        assert!(lane.try_background(layer()).is_err());
        assert!(Arc::ptr_eq(&scheduler.lane("a.example"), &lane));
        assert!(other.try_background(layer()).is_ok());
        assert_eq!(scheduler.now()[2].in_use, config.ranges_at_once as u64);
        drop((all, lane));
        assert_eq!(scheduler.lane("a.example").running().others, 0);
        let starts: Vec<_> = futures::future::join_all((0..config.profile_ranges).map(|_| other.start())).await;
        assert_eq!(scheduler.now()[1].in_use, starts.len() as u64);
    }
}
