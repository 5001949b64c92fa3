//! `[mount]` of the configuration file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How whole layers are shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How layers are shown. Only `auto` makes sense outside tests: it takes the first that works.
    pub rung: RungChoice,
    /// Data files of whole layers that silkd keeps open, and as many trees. Overlays that were mounted while their layers filled read
    /// through silkd until their containers end; beyond this many layers, a read costs an open. The hard limit of
    /// descriptors may be 20,000.
    pub open_files: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { rung: RungChoice::Auto, open_files: 512 }
    }
}

/// How layers are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RungChoice {
    /// EROFS from files where the kernel can, else over loop devices, else by silkd itself.
    #[default]
    Auto,
    /// EROFS from files, nothing else: Linux 6.12 and later, with the fixes of April 2026.
    File,
    /// EROFS over loop devices of 512-byte blocks, nothing else: Linux 6.4 and later.
    Loop,
    /// Trees that silkd serves through FUSE, nothing else: any kernel; containers depend on silkd.
    Tree,
}
