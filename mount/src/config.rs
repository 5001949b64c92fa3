//! `[mount]` of the configuration file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How whole layers are shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What EROFS is mounted from. Only `auto` makes sense outside tests: it takes the first that works.
    pub rung: RungChoice,
}

/// What EROFS is mounted from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RungChoice {
    /// Files where the kernel can, else loop devices.
    #[default]
    Auto,
    /// Files, nothing else. Linux 6.12 and later.
    File,
    /// Loop devices of 512-byte blocks, nothing else. Linux 6.4 and later.
    Loop,
}
