//! What this node has and does, for whoever asks: `silk` and Prometheus.

use std::{collections::HashSet, sync::Arc};

use silk_model::{
    Digest, Use,
    metrics::{self, Backend, Budget, LayerState, METRICS, Shared},
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
            *bytes += self.janitor.views.store.on_disk(&id, record.facts.size);
        }
        data
    }

    /// All budgets: their names, their places among the metrics, and what is in use of them.
    pub fn budgets(&self, data: &Data) -> [(&'static str, &'static Budget, Use); 10] {
        let Janitor { views, puller, .. } = &*self.janitor;
        let (all, now) = (&METRICS.budgets, puller.budgets());
        let open_files = views.served.as_ref().map(|served| served.open_files()).unwrap_or_default();
        let cache = Use { limit: views.store.config().cache_bytes, in_use: data.unused };
        [
            ("registry_connections", &all.registry_connections, now.registry_connections),
            ("bytes_in_flight", &all.bytes_in_flight, now.bytes_in_flight),
            ("held_bytes", &all.held_bytes, now.held_bytes),
            ("decoders", &all.decoders, now.decoders),
            ("layers_under_way", &all.layers_under_way, now.layers_under_way),
            ("demand_ranges", &all.demand_ranges, now.demand_ranges),
            ("profile_ranges", &all.profile_ranges, now.profile_ranges),
            ("background_ranges", &all.background_ranges, now.background_ranges),
            ("open_files", &all.open_files, open_files),
            ("cache_bytes", &all.cache_bytes, cache),
        ]
    }

    /// Sets what is not counted as it happens. Blocks for a moment: file systems are asked.
    pub fn measure(&self) {
        let Janitor { views, puller, .. } = &*self.janitor;
        let data = self.data();
        let (filling, filled, waiting) = views.lazies.count();
        METRICS.reads_waiting.set(waiting);
        METRICS.containers_on_silkd.set(self.janitor.snapshots.on_served());
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
        for (_, metric, now) in self.budgets(data) {
            metric.set(now);
        }
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
