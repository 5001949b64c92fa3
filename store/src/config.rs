//! `[store]` of the configuration file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much disk layers may take that no snapshot uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Bytes of layer data to keep although no snapshot uses them: the next pull of an image that has such a layer finds it
    /// here. The longest unused goes first. 0 keeps none.
    pub cache_bytes: u64,
    /// Percent of the file system to leave free: below it, unused layers are dropped whatever `cache_bytes` says. The
    /// default lies above the 15 percent at which kubelet starts to delete images.
    pub keep_free_percent: u8,
    /// How many layers to remember after their data was dropped: names, about 20 bytes for each file, and index, 0.2 to 0.3
    /// percent of the data.
    pub known_layers: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { cache_bytes: 10 << 30, keep_free_percent: 20, known_layers: 4096 }
    }
}
