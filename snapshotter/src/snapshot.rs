//! What a snapshot is (`docs/formats/snapshots.md` says how one is written down).

use std::{
    collections::BTreeMap,
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use silk_model::Digest;

/// The states of a snapshot in containerd's model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Read-only, of a committed parent.
    View,
    /// Being written.
    Active,
    /// Final; may have children.
    Committed,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        })
    }
}

/// A point in time as protobuf has it: containerd compares times to the nanosecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// Seconds since 1970.
    pub secs: i64,
    /// Nanoseconds of that second.
    pub nanos: u32,
}

impl Time {
    /// The clock of the host.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() }
    }
}

/// Disk space of one snapshot, without its parents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes.
    pub size: u64,
    /// Files of every kind, hard links counted once.
    pub inodes: u64,
}

/// The image layer that a remote snapshot stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// containerd's namespace when the layer was claimed.
    pub namespace: String,
    /// The image it was claimed for.
    pub image_ref: String,
    /// The manifest of that image.
    pub image: Digest,
    /// The chain ID: the label `containerd.io/snapshot.ref`.
    pub chain_id: Digest,
    /// The layer.
    pub diff_id: Digest,
    /// Is it that image's last layer?
    pub top: bool,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// containerd's name of it, or ours for a remote one.
    pub name: String,
    /// Its directory is `<root>/snapshots/<id>`; never used twice. Remote snapshots have no directory.
    pub id: u64,
    /// Name of the committed parent; empty for none.
    pub parent: String,
    /// Its state.
    pub kind: Kind,
    /// When it was prepared or, once committed, when that was.
    pub created: Time,
    /// When its labels last changed.
    pub updated: Time,
    /// Labels; none has an empty value.
    pub labels: BTreeMap<String, String>,
    /// Known once it is committed.
    pub usage: Usage,
    /// Set for a layer that silk pulls.
    pub remote: Option<Remote>,
}
