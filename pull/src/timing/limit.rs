//! What limited a layer, and an image, in one word. Pure; `docs/operations.md` tells the operator the same.

use std::time::Duration;

use super::{ImageTiming, LayerTiming, Part, Way};

/// What it would take to be sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Bytes came no faster.
    Link,
    /// Inflating, on one core.
    Inflate,
    /// SHA-256, of the blob or of the tar, with looking for headers and places to begin.
    Digest,
    /// Writing: the data file, or table of contents, index and record.
    Disk,
    /// Other layers had the processors.
    Turn,
    /// One layer that streamed in decided the end alone: its two threads worked while those of the others had long ended.
    OneLayer,
    /// Answers that are waited for one after the other: of the registry before its first byte, of it and of peers before any layer.
    RoundTrips,
    /// Making metadata of layers, and mounting them.
    Mount,
}

impl Limit {
    /// The word for operators.
    pub fn word(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Inflate => "inflate",
            Self::Digest => "digest",
            Self::Disk => "disk",
            Self::Turn => "turn",
            Self::OneLayer => "one-layer",
            Self::RoundTrips => "round-trips",
            Self::Mount => "mount",
        }
    }
}

/// The layer that ended last decided alone if the others had ended for one so-manieth of the time.
const ALONE: u32 = 3;

impl LayerTiming {
    /// What most of its time went to: of its first thread's (everything has to pass that one), and of what came before and
    /// after. [`None`] for a layer that was here, and while nothing was spent.
    pub fn limit(&self) -> Option<Limit> {
        let spent = &self.spent;
        let on = |part| spent.on(part);
        let bytes = on(Part::FirstByte) + on(Part::Bytes);
        let bytes = (bytes, if on(Part::FirstByte) > on(Part::Bytes) { Limit::RoundTrips } else { Limit::Link });
        let of_two = |time, a: Duration, b: Duration, first, second| (time, if a >= b { first } else { second });
        let computed = match self.way {
            Way::Here => return None,
            Way::Streamed => of_two(
                on(Part::Inflate) + on(Part::BlobDigest),
                on(Part::Inflate),
                on(Part::BlobDigest),
                Limit::Inflate,
                Limit::Digest,
            ),
            Way::Filled => of_two(
                spent.sum(&[Part::Inflate, Part::Digest, Part::Scan]),
                on(Part::Inflate),
                spent.sum(&[Part::Digest, Part::Scan]),
                Limit::Inflate,
                Limit::Digest,
            ),
        };
        // The first thread waits for the second one as long as that has too much to do: with what?
        let second = match self.way {
            Way::Filled => (on(Part::Write), Limit::Disk),
            Way::Streamed | Way::Here => of_two(
                on(Part::Store),
                on(Part::Write),
                spent.sum(&[Part::Digest, Part::Scan, Part::Index]),
                Limit::Disk,
                Limit::Digest,
            ),
        };
        let all = [bytes, computed, second, (on(Part::Turn), Limit::Turn), (on(Part::Proof), Limit::Disk)];
        let most = all.into_iter().filter(|(time, _)| !time.is_zero()).max_by_key(|(time, _)| *time);
        most.map(|(_, limit)| limit)
    }
}

impl ImageTiming {
    /// From the pull's start until it was mounted and all its layers were whole; [`None`] while they are not.
    pub fn time(&self) -> Option<Duration> {
        let mounted = self.resolve? + self.layers? + self.mount?;
        let coming = self.layers_timing.iter().filter(|layer| layer.way != Way::Here);
        coming.map(|layer| layer.ended).try_fold(mounted, |time, ended| Some(time.max(ended?)))
    }

    /// What decided when the image was mounted and whole. [`None`] while it is not.
    pub fn limit(&self) -> Option<Limit> {
        let time = self.time()?;
        for (own, limit) in [(self.resolve?, Limit::RoundTrips), (self.mount?, Limit::Mount)] {
            if own * 2 >= time {
                return Some(limit);
            }
        }
        let mut ends: Vec<_> = self.layers_timing.iter().filter_map(|layer| Some((layer.ended?, layer))).collect();
        ends.sort_by_key(|(ended, _)| *ended);
        let Some((end, last)) = ends.pop() else {
            // All were here, and neither took half of the time.
            return Some(if self.resolve > self.mount { Limit::RoundTrips } else { Limit::Mount });
        };
        let limit = last.limit()?;
        // What fills has as many threads as ranges.
        let streamed = last.way == Way::Streamed;
        let alone = streamed && ends.last().is_some_and(|(before, _)| (end - *before) * ALONE >= time);
        match limit {
            Limit::Inflate | Limit::Digest | Limit::Disk if alone => Some(Limit::OneLayer),
            Limit::Inflate
            | Limit::Digest
            | Limit::Disk
            | Limit::Link
            | Limit::Turn
            | Limit::OneLayer
            | Limit::RoundTrips
            | Limit::Mount => Some(limit),
        }
    }
}
