//! Snapshots as messages.

use prost_types::Timestamp;
use silk_api::containerd::services::snapshots::v1::{Info, Kind as ProtoKind, UsageResponse};

use crate::{Kind, Snapshot, Time, Usage};

pub(super) fn info(snapshot: &Snapshot) -> Info {
    let kind = match snapshot.kind {
        Kind::View => ProtoKind::View,
        Kind::Active => ProtoKind::Active,
        Kind::Committed => ProtoKind::Committed,
    };
    Info {
        name: snapshot.name.clone(),
        parent: snapshot.parent.clone(),
        kind: kind.into(),
        created_at: Some(time(snapshot.created)),
        updated_at: Some(time(snapshot.updated)),
        labels: snapshot.labels.clone().into_iter().collect(),
    }
}

fn time(time: Time) -> Timestamp {
    // Nanoseconds of a second are fewer than i32::MAX.
    Timestamp { seconds: time.secs, nanos: time.nanos.try_into().unwrap_or(0) }
}

pub(super) fn usage(usage: Usage) -> UsageResponse {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    UsageResponse { size: signed(usage.size), inodes: signed(usage.inodes) }
}
