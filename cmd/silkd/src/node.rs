//! What this node has and does, for whoever asks: `silk` and Prometheus.

use std::{collections::HashSet, sync::Arc};

use silk_model::{
    Digest, Use,
    metrics::{self, Backend, LayerState, METRICS, Shared},
};
use silk_mount::Rung;
use silk_share::Share;

use crate::{janitor::Janitor, process::Process};

/// Everything there is to ask.
#[derive(Debug, Clone)]
pub struct Node {
    /// Knows layers, images and who uses them.
    pub janitor: Arc<Janitor>,
    /// Where knowledge is shared.
    pub share: Arc<Share>,
}

/// Uncompressed bytes of layers on disk, and their number.
#[derive(Debug, Clone, Copy, Default)]
pub struct Data {
    /// Of whole layers that snapshots or images on their way use.
    pub used: u64,
    /// Of whole layers that nobody uses.
    pub unused: u64,
    /// Whole layers.
    pub whole: u64,
    /// Layers without data that are known.
    pub known: u64,
}

impl Node {
    /// What it needs beside these two, the janitor has.
    pub fn new(janitor: Arc<Janitor>, share: Arc<Share>) -> Self {
        Self { janitor, share }
    }

    /// Layers on disk.
    pub fn data(&self) -> Data {
        let used: HashSet<Digest> = self.janitor.used();
        let mut data = Data::default();
        for (id, record) in self.janitor.views.store.list() {
            if !record.whole {
                data.known += 1;
                continue;
            }
            data.whole += 1;
            let bytes = if used.contains(&id) { &mut data.used } else { &mut data.unused };
            *bytes += record.facts.size;
        }
        data
    }

    /// Data files and trees that are kept open.
    pub fn open_files(&self) -> Use {
        self.janitor.views.served.as_ref().map(|served| served.open_files()).unwrap_or_default()
    }

    /// Bytes that nobody uses, and how many of them are kept.
    pub fn cache(&self, data: &Data) -> Use {
        Use { limit: self.janitor.views.store.config().cache_bytes, in_use: data.unused }
    }

    /// Sets what is not counted as it happens. Blocks for a moment: file systems are asked.
    pub fn measure(&self) {
        let Janitor { views, puller, .. } = &*self.janitor;
        let data = self.data();
        let (filling, filled, waiting) = views.lazies.count();
        METRICS.reads_waiting.set(waiting);
        METRICS.data.of(metrics::Data::Used).set(data.used);
        METRICS.data.of(metrics::Data::Unused).set(data.unused);
        METRICS.data.of(metrics::Data::Filling).set(filled);
        let (queued, pulling) = puller.layers_under_way();
        for (state, count) in [
            (LayerState::Whole, data.whole),
            // A layer on its way may be known.
            (LayerState::Known, data.known.saturating_sub(filling)),
            (LayerState::Filling, filling),
            (LayerState::Waiting, queued),
            (LayerState::Pulling, pulling),
        ] {
            METRICS.layers.of(state).set(count);
        }
        for (state, count) in puller.images_by_state() {
            METRICS.images.of(state).set(count);
        }
        if let Ok((size, free)) = views.store.disk() {
            METRICS.disk_size.set(size);
            METRICS.disk_free.set(free);
        }
        METRICS.rung.of(rung(views.views.mounts().rung())).set(1);
        self.measure_share();
        self.measure_budgets(&data);
        measure_process();
    }

    fn measure_share(&self) {
        for status in self.share.status() {
            let backend = match status.name.split(' ').next() {
                Some("redis") => Backend::Redis,
                Some("referrers") => Backend::Referrers,
                _ => continue,
            };
            METRICS.share_configured.of(backend).set(1);
            METRICS.share_up.of(backend).set(status.state.is_up().into());
            for (outcome, count) in [
                (Shared::Found, status.hits),
                (Shared::Missing, status.misses),
                (Shared::Refused, status.refused),
                (Shared::Published, status.published),
                (Shared::Dropped, status.dropped),
            ] {
                METRICS.share_values.of((backend, outcome)).set(count);
            }
        }
    }

    fn measure_budgets(&self, data: &Data) {
        let (all, now) = (&METRICS.budgets, self.janitor.puller.budgets());
        all.registry_connections.set(now.registry_connections);
        all.bytes_in_flight.set(now.bytes_in_flight);
        all.decoders.set(now.decoders);
        all.layers_under_way.set(now.layers_under_way);
        all.demand_ranges.set(now.demand_ranges);
        all.profile_ranges.set(now.profile_ranges);
        all.background_ranges.set(now.background_ranges);
        all.open_files.set(self.open_files());
        all.cache_bytes.set(self.cache(data));
    }
}

fn measure_process() {
    let Process { resident_bytes, threads, descriptors, cpu_seconds, started } = Process::now();
    let process = &METRICS.process;
    process.resident_memory.set(resident_bytes);
    process.threads.set(threads);
    process.open_fds.set(descriptors.in_use);
    process.max_fds.set(descriptors.limit);
    process.cpu_seconds.set(cpu_seconds);
    process.start_time.set(started);
}

fn rung(rung: Rung) -> metrics::Rung {
    match rung {
        Rung::File => metrics::Rung::File,
        Rung::Loop => metrics::Rung::Loop,
        Rung::Tree => metrics::Rung::Tree,
        Rung::None => metrics::Rung::None,
    }
}
