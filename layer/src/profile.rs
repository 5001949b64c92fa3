//! What the start of a container touches: for each entrypoint of an image, runs of its layers' tars, in order.
//!
//! Learned from reads and from the page cache, kept by manifest, exchanged between nodes, and fetched first the next time.
//! A profile decides only what comes first: one that is wrong costs time, never content. Tars are seen in grains of
//! [`GRAIN`] bytes, and every list has a bound. Pure computing.

mod codec;

pub use codec::{MAGIC, MAX_LEN, ProfileError, VERSION, decode, encode};

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
};

use silk_model::Digest;

/// Bytes of a grain: half of what the kernel reads ahead by default, so that finer would be noise.
pub const GRAIN: u64 = 64 << 10;

/// Entrypoints of one image: a server, its migrations, a shell and their like.
pub const MAX_STARTS: usize = 8;

/// Runs of one start. A start of Python's or Node.js' image has some 200, of a database 500.
pub const MAX_RUNS: usize = 2048;

/// Grains of one start, all runs together: 4 GiB.
pub const MAX_GRAINS: u64 = 1 << 16;

/// Bytes of an entrypoint's name.
pub const MAX_NAME: usize = 80;

/// What was not touched in this many starts that would have shown it, one after another, is left out.
pub const FADES_AFTER: u8 = 4;

/// Neighbouring grains whose places in the order are no further apart make one run.
const NEAR: u32 = 64;

/// A start weighs in the order as if no more than this many had been before it: images change their ways, their manifests
/// do not.
const MEMORY: u32 = 15;

/// The starts of an image, the one that was seen most often first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    /// At most [`MAX_STARTS`], each entrypoint once.
    pub starts: Vec<Start>,
}

/// How containers with one entrypoint start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// By [`entrypoint`]; empty if it is not known.
    pub entrypoint: String,
    /// How many starts are merged in this one; of all nodes, the most that one has seen.
    pub count: u32,
    /// In the order in which they were touched first, at most [`MAX_RUNS`].
    pub runs: Vec<Run>,
}

/// A run of bytes that a start touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The layer's diff ID.
    pub layer: Digest,
    /// The first grain.
    pub first: u32,
    /// How many.
    pub grains: u32,
    /// How many grains were touched before it, in the mean.
    pub rank: u32,
    /// In how many starts, one after another, it was not touched.
    pub unseen: u8,
}

/// One start, as it was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// By [`entrypoint`].
    pub entrypoint: String,
    /// Layers and bytes of their tars, in the order of the first touches.
    pub touches: Vec<(Digest, Range<u64>)>,
    /// Layers of which every touch was seen: what is not among these was not touched.
    pub complete: HashSet<Digest>,
}

/// A grain's place in the order, and in how many starts it was not touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    rank: u32,
    unseen: u8,
}

type Grains = BTreeMap<(Digest, u32), Mark>;

/// The name of an entrypoint: the program, and eight digits of a hash of all arguments, which may hold secrets.
pub fn entrypoint(args: &[String]) -> String {
    let Some(program) = args.first() else { return String::new() };
    let hash = Digest::of(args.join("\0").as_bytes()).hex();
    let program = program.rsplit('/').next().unwrap_or_default();
    let end = program.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= 64).last();
    format!("{} #{}", &program[..end.unwrap_or(0)], &hash[..8])
}

impl Run {
    /// The bytes of the tar; they may go beyond its end.
    pub fn bytes(&self) -> Range<u64> {
        let start = u64::from(self.first) * GRAIN;
        start..start + u64::from(self.grains) * GRAIN
    }
}

impl Start {
    /// Bytes that it touches, in whole grains.
    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.grains) * GRAIN).sum()
    }

    fn grains(&self) -> Grains {
        let grains = self.runs.iter().flat_map(|run| {
            (0..run.grains).map(|nr| {
                let mark = Mark { rank: run.rank.saturating_add(nr), unseen: run.unseen };
                ((run.layer, run.first.saturating_add(nr)), mark)
            })
        });
        grains.collect()
    }
}

impl Profile {
    /// What is to be fetched, in this order: all runs of the most frequent start, then what the next one has.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.starts.iter().flat_map(|start| &start.runs)
    }

    /// Adds a start of this image.
    pub fn learn(&mut self, seen: &Seen) {
        let touched = order(&seen.touches);
        if touched.is_empty() {
            return;
        }
        let at = self.starts.iter().position(|start| start.entrypoint == seen.entrypoint);
        let known = at.map(|at| self.starts.remove(at));
        // A new one takes the place of the one that was seen least.
        self.starts.truncate(MAX_STARTS - 1);
        let count = known.as_ref().map_or(0, |start| start.count);
        let weight = u64::from(count.min(MEMORY));
        let mut grains = known.map(|start| start.grains()).unwrap_or_default();
        grains.retain(|at, mark| {
            let missed = seen.complete.contains(&at.0) && !touched.contains_key(at);
            mark.unseen += u8::from(missed);
            mark.unseen < FADES_AFTER
        });
        for (at, rank) in touched {
            let mean = |old: u32| ((u64::from(old) * weight + u64::from(rank)) / (weight + 1)) as u32;
            grains
                .entry(at)
                .and_modify(|m| *m = Mark { rank: mean(m.rank), unseen: 0 })
                .or_insert(Mark { rank, unseen: 0 });
        }
        let start = Start { entrypoint: seen.entrypoint.clone(), count: count.saturating_add(1), runs: runs(&grains) };
        self.starts.push(start);
        self.sort();
    }

    /// Takes in what another node has seen. Doing so twice changes nothing.
    pub fn join(&mut self, other: &Self) {
        for theirs in &other.starts {
            let Some(ours) = self.starts.iter_mut().find(|start| start.entrypoint == theirs.entrypoint) else {
                self.starts.push(theirs.clone());
                continue;
            };
            if ours == theirs {
                continue;
            }
            let (a, b) = (u64::from(ours.count), u64::from(theirs.count));
            let mut grains = ours.grains();
            for (at, new) in theirs.grains() {
                let mean = |old: u32| ((u64::from(old) * a + u64::from(new.rank) * b) / (a + b).max(1)) as u32;
                let both = |old: &mut Mark| *old = Mark { rank: mean(old.rank), unseen: old.unseen.min(new.unseen) };
                grains.entry(at).and_modify(both).or_insert(new);
            }
            ours.count = ours.count.max(theirs.count);
            ours.runs = runs(&grains);
        }
        self.sort();
        self.starts.truncate(MAX_STARTS);
    }

    fn sort(&mut self) {
        self.starts.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.entrypoint.cmp(&b.entrypoint)));
    }
}

/// The grains that were touched, and how many were before each.
fn order(touches: &[(Digest, Range<u64>)]) -> BTreeMap<(Digest, u32), u32> {
    let mut ranks = BTreeMap::new();
    for (layer, bytes) in touches {
        if bytes.is_empty() {
            continue;
        }
        for grain in bytes.start / GRAIN..bytes.end.div_ceil(GRAIN) {
            let (Ok(grain), true) = (u32::try_from(grain), (ranks.len() as u64) < MAX_GRAINS) else { return ranks };
            let rank = ranks.len() as u32;
            ranks.entry((*layer, grain)).or_insert(rank);
        }
    }
    ranks
}

/// Runs of grains, in order; the last are left out where they would be too many.
fn runs(grains: &Grains) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for ((layer, grain), mark) in grains {
        match runs.last_mut() {
            Some(last)
                if last.layer == *layer
                    && last.first + last.grains == *grain
                    && last.unseen == mark.unseen
                    && last.rank.saturating_add(last.grains - 1).abs_diff(mark.rank) <= NEAR =>
            {
                last.grains += 1;
            }
            _ => runs.push(Run { layer: *layer, first: *grain, grains: 1, rank: mark.rank, unseen: mark.unseen }),
        }
    }
    runs.sort_by_key(|run| (run.rank, run.layer, run.first));
    runs.truncate(MAX_RUNS);
    let mut left = MAX_GRAINS;
    runs.retain_mut(|run| {
        run.grains = run.grains.min(left.min(u64::from(u32::MAX)) as u32);
        left -= u64::from(run.grains);
        run.grains > 0
    });
    runs
}

#[cfg(test)]
mod tests;
