//! The configuration file: nests what each room declares of its own, and is the only reader of it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `/etc/silk/config.toml`. All fields have defaults; unknown ones are errors.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where layers, snapshots and the database live. kubelet measures this file system when containerd's `exports.root`
    /// names it.
    pub root: PathBuf,
    /// The unix socket for containerd and for `silk`, made with mode 0600.
    pub address: PathBuf,
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,silk_registry=debug`.
    pub log: String,
    /// The containerd that silk serves.
    pub containerd: Containerd,
    /// How silk talks to registries.
    pub registry: silk_registry::Config,
    /// How layers travel.
    pub pull: silk_pull::Config,
    /// What is known of images, shared with other nodes.
    pub share: silk_share::Config,
    /// How much disk unused layers may take.
    pub store: silk_store::Config,
    /// How layers are shown.
    pub mount: silk_mount::Config,
    /// Numbers for Prometheus.
    pub metrics: Metrics,
    /// Spans for OpenTelemetry.
    pub tracing: Tracing,
}

/// Numbers for Prometheus, as [operations.md](operations.md#metrics) describes them.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// `address:port` at which `GET /metrics` answers with them, such as `127.0.0.1:9419`. Not set: nobody can ask. Whoever reaches
    /// it can read it, and nothing else; use a loopback address unless the network is trusted.
    pub address: Option<SocketAddr>,
}

/// Spans for OpenTelemetry, as [operations.md](operations.md#traces) describes them.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tracing {
    /// The collector that gets them, as OTLP over gRPC without TLS: `http://127.0.0.1:4317`. Not set: there are none. One that is away
    /// costs spans, and nothing else.
    pub otlp_endpoint: Option<String>,
}

/// `[containerd]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Containerd {
    /// containerd's own socket: silk reads manifests and configurations from its content store.
    pub address: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/silk".into(),
            address: "/run/silk/silk.sock".into(),
            log: "info".into(),
            containerd: Containerd::default(),
            registry: silk_registry::Config::default(),
            pull: silk_pull::Config::default(),
            share: silk_share::Config::default(),
            store: silk_store::Config::default(),
            mount: silk_mount::Config::default(),
            metrics: Metrics::default(),
            tracing: Tracing::default(),
        }
    }
}

impl Default for Containerd {
    fn default() -> Self {
        Self { address: "/run/containerd/containerd.sock".into() }
    }
}

impl Config {
    /// Reads the file; one that is not there is the defaults only where nobody named it.
    pub fn load(path: &Path, named: bool) -> anyhow::Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("{} cannot be used", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !named => Ok(Self::default()),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}
