//! Which way bytes go to a data file: through the page cache, or past it.
//!
//! The page cache is the better way as long as memory is cheap: what a container's start touches is there already. But a
//! virtual machine that gives free memory back to its host (free page reporting, a balloon) pays for the first touch of
//! each page, and then the copy into the cache costs more than anything else of a pull (`ARCHITECTURE.md`, "What bounds a
//! pull"). `RWF_DONTCACHE` (Linux 6.14) starts the write at once and gives the pages back when it is done, so the same few
//! are used again and again. Neither is the faster one everywhere: both are measured as layers are written.

use std::{
    fs::File,
    io::{self, IoSlice},
    os::unix::fs::FileExt as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use silk_model::metrics::{METRICS, Way};

/// `RWF_DONTCACHE` of `linux/fs.h`; rustix does not name it yet.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// Bytes after which a way's cost is believed. Pages that were given back a moment ago are cheap for either way; with 16 MiB
/// few of those that a trial touches are such.
const TRIAL: u64 = 16 << 20;

/// After a trial the better way is kept for so many bytes, twice as many each time it wins again, up to [`LONGEST`]: trials
/// of the other way are then under 2 % of a large layer.
const SHORTEST: u64 = 64 << 20;
/// See [`SHORTEST`].
const LONGEST: u64 = 1 << 30;

/// Past the cache only where that costs less than two thirds: what a start touches must then be read from the disk.
const MARGIN: f64 = 1.5;

/// What writing costs either way. One for all layers: they share memory and disk.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    costs: Mutex<Costs>,
}

impl Ways {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let way = self.costs().way;
        let start = Instant::now();
        match way {
            Way::Cache => file.write_all_at(bytes, offset)?,
            Way::Past => match write_past(file, bytes, offset) {
                Err(Errno::OPNOTSUPP) => {
                    self.costs().stay();
                    return self.write(file, bytes, offset);
                }
                written => written?,
            },
        }
        METRICS.written.of(way).add(bytes.len() as u64);
        self.costs().took(way, bytes.len() as u64, start.elapsed());
        Ok(())
    }

    /// The same, for bytes that somebody reads now or soon.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn write_cached(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        METRICS.written.of(Way::Cache).add(bytes.len() as u64);
        file.write_all_at(bytes, offset)
    }

    fn costs(&self) -> MutexGuard<'_, Costs> {
        self.costs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `FileExt::write_all_at` past the page cache. `EOPNOTSUPP` where kernel or file system cannot.
fn write_past(file: &File, mut bytes: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match pwritev2(file, &[IoSlice::new(bytes)], offset, DONTCACHE) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => (bytes, offset) = (&bytes[n..], offset + n as u64),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What was measured, and what follows from it.
#[derive(Debug)]
struct Costs {
    /// The way of the next bytes.
    way: Way,
    /// The better way at the last trial.
    better: Way,
    /// Nanoseconds a byte; by [`Way`].
    known: [Option<f64>; 2],
    /// Bytes and time since a cost was last taken.
    window: (u64, Duration),
    /// Bytes that the better way is kept for, and how many of them are left.
    distance: u64,
    left: u64,
    /// There is one way only.
    single: bool,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            way: Way::Cache,
            better: Way::Cache,
            known: [None; 2],
            window: (0, Duration::ZERO),
            distance: SHORTEST / 2,
            left: 0,
            single: false,
        }
    }
}

impl Costs {
    fn took(&mut self, way: Way, bytes: u64, time: Duration) {
        // Another thread's, begun before the way changed.
        if way != self.way || self.single {
            return;
        }
        self.window = (self.window.0 + bytes, self.window.1 + time);
        let (bytes, time) = self.window;
        if bytes < TRIAL {
            return;
        }
        self.window = (0, Duration::ZERO);
        let cost = time.as_nanos() as f64 / bytes as f64;
        self.known[way as usize] = Some(cost);
        if way != self.better {
            return self.choose();
        }
        self.left = self.left.saturating_sub(bytes);
        // What was measured of the other may be old: it is tried before it is believed.
        if self.left == 0 || self.cheaper() != self.better {
            self.way = other(way);
        }
    }

    /// The better way by what is known.
    fn cheaper(&self) -> Way {
        let [cache, past] = self.known.map(|cost| cost.unwrap_or(f64::INFINITY));
        if cache > MARGIN * past { Way::Past } else { Way::Cache }
    }

    /// Both ways were measured just now.
    fn choose(&mut self) {
        let better = self.cheaper();
        self.distance = if better == self.better { (self.distance * 2).min(LONGEST) } else { SHORTEST };
        self.left = self.distance;
        (self.better, self.way) = (better, better);
        tracing::debug!(costs = ?self.known, ?better, "nanoseconds a byte to the disk, through the page cache and past it");
    }

    fn stay(&mut self) {
        *self = Self { single: true, ..Self::default() };
    }
}

fn other(way: Way) -> Way {
    match way {
        Way::Cache => Way::Past,
        Way::Past => Way::Cache,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A machine on which the ways cost so many nanoseconds a byte.
    struct Machine {
        costs: Costs,
        cost: [u64; 2],
    }

    impl Machine {
        /// Writes, and returns how much of it went past the cache.
        fn write(&mut self, bytes: u64) -> u64 {
            const PIECE: u64 = 512 << 10;
            let pieces = (0..bytes / PIECE).filter(|_| {
                let way = self.costs.way;
                self.costs.took(way, PIECE, Duration::from_nanos(PIECE * self.cost[way as usize]));
                way == Way::Past
            });
            pieces.count() as u64 * PIECE
        }
    }

    fn machine(cache: u64, past: u64) -> Machine {
        Machine { costs: Costs::default(), cost: [cache, past] }
    }

    #[test]
    fn the_cache_is_left_only_where_that_is_clearly_cheaper() {
        assert_eq!(machine(9, 1).write(TRIAL), 0, "a small layer stays in memory");
        for (cache, past, share) in [(20, 4, 95..100), (15, 10, 0..5), (2, 10, 0..5), (10, 10, 0..5)] {
            let found = machine(cache, past).write(4 << 30) * 100 / (4 << 30);
            assert!(share.contains(&found), "{cache} and {past} ns a byte: {found} % past the cache");
        }
    }

    #[test]
    fn a_machine_that_changes_is_noticed_within_a_few_trials() {
        let mut machine = machine(2, 8);
        machine.write(8 << 30);
        machine.cost[0] = 40;
        assert!(machine.write(256 << 20) > 200 << 20, "memory became dear");
        machine.write(8 << 30);
        machine.cost[0] = 1;
        assert!(machine.write(2 << 30) < 1200 << 20, "and cheap again: tried within 1 GiB");
    }

    #[test]
    fn where_there_is_one_way_it_is_taken() {
        // Memory has no disk to go past to.
        let file = File::from(rustix::fs::memfd_create("layer", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        let ways = Ways::default();
        ways.costs().way = Way::Past;
        ways.write(&file, b"abc", 1).unwrap();
        let mut found = [0; 4];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(&found, b"\0abc");
        ways.costs().took(Way::Cache, 1 << 30, Duration::from_secs(99));
        assert_eq!(ways.costs().way, Way::Cache);
    }

    #[test]
    fn both_ways_write_the_same() {
        let ways = Ways::default();
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for way in [Way::Cache, Way::Past] {
            let file = tempfile::tempfile().unwrap();
            ways.costs().way = way;
            for at in (0..bytes.len()).step_by(100_000) {
                ways.write(&file, &bytes[at..at + 100_000], at as u64).unwrap();
            }
            let mut found = vec![0; bytes.len()];
            file.read_exact_at(&mut found, 0).unwrap();
            assert!(found == bytes, "{way:?}");
        }
    }
}
