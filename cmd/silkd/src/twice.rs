//! Gives back memory that holds a layer's bytes twice.
//!
//! What is read of a mounted layer comes through the page cache of its data file and stays there, beside the pages of the
//! mount's own files, which are what containers read and map. The kernel would drop the former when it needs memory, but a
//! node's free memory is what schedulers look at, and other files are dropped with them. So once a layer is quiet, pages of
//! its data file are dropped where the mount holds the same bytes; what only the data file has stays for who reads it first. Of a layer that was
//! read while it filled, the file that served it has them as well; what is there goes from both.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    num::NonZeroU64,
    ops::Range,
    os::fd::AsFd as _,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::fs::{Advice, fadvise};
use silk_model::{Digest, metrics::METRICS};
use silk_mount::Rung;
use silk_snapshotter::Snapshots;
use silk_sys::{
    priority::{self, Behind},
    resident,
};

use crate::views::StoreViews;

/// Time between looks. A layer is quiet when the second finds no more than the first. The kernel tells in 0.1 ms how much of a GiB is
/// in memory (ext4 on Linux 6.18).
const INTERVAL: Duration = Duration::from_secs(2);

/// Less than this is not worth a walk through a layer's files.
const WORTH: u64 = 1 << 20;

/// A layer has this long to rest after a walk through its files, which takes some 10 µs a file, and twice as long each time that a
/// walk was in vain: what nobody has read yet is in the data file only, and nothing tells when that changes. It is over when more
/// comes into memory.
const REST: Duration = Duration::from_secs(4);
/// See [`REST`].
const LONGEST_REST: Duration = Duration::from_secs(3600);

/// So long after a layer is whole the containers that were started before have read what was brought for their starts.
const STARTED: Duration = Duration::from_secs(30);

/// What a container left in memory is looked for this long after its end: some looks.
const AFTER: Duration = Duration::from_secs(90);

/// Between two files of a tar lie a header or a few (512 bytes each), which no reader of the mount asks for.
const GAP: u64 = 4096;

const PAGE: u64 = 4096;

/// Looks for such memory.
#[derive(Debug)]
pub struct Twice {
    views: Arc<StoreViews>,
    snapshots: Arc<Snapshots>,
    seen: HashMap<Digest, Seen>,
    /// Chains, and when a container stood on them last.
    stood: HashMap<Vec<Digest>, Instant>,
}

/// What the last look found of a layer.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// When it was seen whole first.
    since: Instant,
    /// Bytes of the data file that are in memory.
    cached: u64,
    /// How long it rests after the next walk in vain.
    rest: Duration,
    /// Its files are not looked through before.
    rests: Instant,
}

impl Twice {
    /// For all layers that containers stand on.
    pub fn new(views: Arc<StoreViews>, snapshots: Arc<Snapshots>) -> Self {
        Self { views, snapshots, seen: HashMap::new(), stood: HashMap::new() }
    }

    /// Runs until the daemon stops. Not for trees: it would walk through files that this process serves itself.
    pub async fn run(mut self) {
        if self.views.views.mounts().rung() == Rung::Tree {
            return;
        }
        loop {
            tokio::time::sleep(INTERVAL).await;
            let looked = tokio::task::spawn_blocking(move || {
                let _lowered = priority::lowered(Behind::All);
                self.look();
                self
            });
            match looked.await {
                Ok(twice) => self = twice,
                Err(error) => return tracing::error!(%error, "memory is not given back any more (a bug)"),
            }
        }
    }

    /// One round. Blocks.
    fn look(&mut self) {
        // What no container has stood on nobody has read, and the walk alone would fill the kernel with its inodes.
        let now = Instant::now();
        self.stood.extend(self.snapshots.stood_on().into_iter().map(|chain| (chain, now)));
        self.stood.retain(|_, last| now - *last < AFTER);
        let chains: Vec<_> = self.stood.keys().cloned().collect();
        let layers: HashSet<Digest> = chains.iter().flatten().copied().collect();
        self.seen.retain(|diff_id, _| layers.contains(diff_id));
        for diff_id in layers {
            if let Err(error) = self.layer(diff_id, &chains) {
                tracing::debug!(%diff_id, %error, "a layer's memory is left as it is");
            }
        }
    }

    fn layer(&mut self, diff_id: Digest, chains: &[Vec<Digest>]) -> io::Result<()> {
        let Some(size) = self.views.store.size(&diff_id) else {
            self.seen.remove(&diff_id);
            return Ok(());
        };
        let data = File::open(self.views.store.layer_path(&diff_id).join("data"))?;
        let cached = || resident::pages(data.as_fd(), 0..size).map(|pages| pages * PAGE);
        let now = cached()?;
        let start = Instant::now();
        let seen = self.seen.entry(diff_id).or_insert(Seen { since: start, cached: 0, rest: REST, rests: start });
        // The kernel may have dropped some meanwhile.
        let is_quiet = now <= std::mem::replace(&mut seen.cached, now);
        if !is_quiet {
            // Somebody read what was not in memory: the mount holds it, too.
            (seen.rest, seen.rests) = (REST, start);
        }
        let served = self.views.served.as_ref().ok().filter(|served| served.has_served(&diff_id));
        // What was brought for a start is not to go before it is read. A walk before that does not make it rest longer.
        let started = seen.since + STARTED;
        let latest = if served.is_some() && start < started { started } else { start + LONGEST_REST };
        let served = served.filter(|_| start >= started);
        if !is_quiet || now < WORTH && served.is_none() || start < seen.rests {
            return Ok(());
        }
        // Also when the walk fails.
        seen.rests = (start + seen.rest).min(latest);
        // What lies below a layer may decide how it is shown.
        let ends = |chain: &Vec<Digest>| chain.iter().position(|id| *id == diff_id);
        let mounted: HashSet<&[Digest]> = chains.iter().filter_map(|c| ends(c).map(|at| &c[..=at])).collect();
        // A third copy, of what was read while the layer filled: the mounts of that time hold it, and cannot be looked through any more.
        let mut held =
            served.map_or(Ok(Vec::new()), |served| served.give_back(&diff_id, size)).unwrap_or_else(|error| {
                tracing::debug!(%diff_id, %error, "what a layer was read through is left in memory");
                Vec::new()
            });
        let in_file: u64 = held.iter().map(|bytes| bytes.end - bytes.start).sum();
        if now + in_file < WORTH {
            seen.rest = (seen.rest * 2).min(LONGEST_REST);
            return Ok(());
        }
        for chain in mounted {
            let Some(pages) = self.views.pages_now(chain) else { continue };
            let found = pages.now().map_err(io::Error::other)?;
            held.extend(found.into_iter().filter(|(layer, _)| *layer == diff_id).map(|(_, bytes)| bytes));
        }
        for bytes in touched_pages(held) {
            fadvise(&data, bytes.start, NonZeroU64::new(bytes.end - bytes.start), Advice::DontNeed)?;
        }
        let left = cached()?;
        let given_back = now.saturating_sub(left) + in_file;
        let rest = if given_back < WORTH { (seen.rest * 2).min(LONGEST_REST) } else { REST };
        *seen = Seen { cached: left, rest, rests: (Instant::now() + rest).min(latest), ..*seen };
        METRICS.given_back.add(given_back);
        tracing::debug!(%diff_id, bytes = given_back, left, "memory that held bytes twice was given back");
        Ok(())
    }
}

/// The pages that ranges touch, where small gaps count as touched. At the ends of a range the neighbour loses its part of a page, at
/// most; rounded the other way, a header would keep the kernel's large folio behind it.
fn touched_pages(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end + GAP => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged.into_iter().map(|range| range.start / PAGE * PAGE..range.end.next_multiple_of(PAGE)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one() {
        let files = [8192 + 512..20_000, 512..3000, 20_512..32_768, 3584..8192, 100_000..100_900];
        assert_eq!(touched_pages(files.to_vec()), [0..32_768, 98_304..102_400]);
        assert_eq!(touched_pages(vec![0..4096, 8193..12_288]), [0..4096, 8192..12_288]);
        assert_eq!(touched_pages(Vec::new()), []);
    }
}
