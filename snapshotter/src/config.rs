//! Configuration of this room.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[snapshots]`: how snapshots are mounted.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Ask containerd to map owners with idmapped mounts for pods that have a user namespace. Set it together with
    /// `capabilities = ["remap-ids"]` in containerd's `proxy_plugins` entry (containerd 1.7 and later, Linux 5.19 and
    /// later): one without the other maps twice or not at all. Without both, containerd copies the root file system once
    /// for each mapping, which is right, but slow.
    pub remap_ids: bool,
}
