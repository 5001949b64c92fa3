//! What silkd uses and does, as a message of the control service.

use std::time::{Duration, SystemTime};

use silk_api::control;
use silk_model::metrics::{Class, METRICS, Read};

use crate::{
    node::{Data, Node},
    process::Process,
};

/// The numbers as they are now.
pub fn node_message(node: &Node, data: &Data) -> control::Node {
    let Process { resident_bytes, threads, descriptors, cpu_seconds, started } = Process::now();
    let started = SystemTime::UNIX_EPOCH + Duration::from_secs(started);
    let arrived = |class| METRICS.arrived.of(class).get();
    let (_, _, reads_waiting) = node.janitor.views.lazies.count();
    let budgets = node.budgets(data).map(|(name, _, now)| control::Budget {
        name: name.to_owned(),
        limit: now.limit,
        in_use: now.in_use,
    });
    control::Node {
        resident_bytes,
        descriptors: descriptors.in_use,
        descriptors_limit: descriptors.limit,
        threads,
        cpu_seconds,
        seconds: started.elapsed().unwrap_or_default().as_secs_f64(),
        requests: METRICS.registry_requests.sum(),
        retries: METRICS.registry_retries.get(),
        received_bytes: METRICS.registry_received.get(),
        demand_bytes: arrived(Class::Demand),
        profile_bytes: arrived(Class::Profile),
        background_bytes: arrived(Class::Background),
        stream_bytes: arrived(Class::Stream),
        reads_at_once: METRICS.reads.of(Read::AtOnce).get(),
        reads_parked: METRICS.reads.of(Read::Parked).get(),
        read_errors: METRICS.read_errors.get(),
        reads_waiting,
        layers: data.whole,
        budgets: budgets.into(),
        containers_on_silkd: node.janitor.snapshots.on_served(),
    }
}
