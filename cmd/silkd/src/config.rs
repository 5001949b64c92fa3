//! The configuration file: nests what each room declares of its own, and is the only reader of it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

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
    /// What silk learns about images, shared with other nodes.
    pub share: silk_share::Config,
    /// How much disk layers may take that no snapshot uses.
    pub store: silk_store::Config,
    /// How whole layers are shown.
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

/// Chosen: ten years are for ever, and can be added to any clock.
const MOST_SECONDS: u64 = 10 * 365 * 24 * 3600;
/// Chosen: far above what a machine has threads and connections for.
const MOST_AT_ONCE: usize = 1 << 16;

impl Config {
    /// Reads the file; one that is not there is the defaults only where nobody named it.
    pub fn load(path: &Path, named: bool) -> anyhow::Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).with_context(|| format!("{} cannot be used", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !named => Ok(Self::default()),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text)?;
        log_filter(&config.log)?;
        let Self { pull, store, mount, .. } = &config;
        ensure!(pull.first_contact_millis > 0, "pull.first_contact_millis is 0: no registry answers in no time");
        ensure!(pull.read_wait_secs > 0, "pull.read_wait_secs is 0: no byte that is not here comes in no time");
        config.bounded()?;
        ensure!(
            store.keep_free_percent < 100,
            "store.keep_free_percent is {}: it has to be less than 100",
            store.keep_free_percent
        );
        ensure!(
            mount.open_files <= MOST_OPEN_FILES,
            "mount.open_files is {}: the most is {MOST_OPEN_FILES}",
            mount.open_files
        );
        Ok(config)
    }

    /// What clocks and semaphores cannot count would end a pull or a read much later.
    fn bounded(&self) -> anyhow::Result<()> {
        let Self { pull, registry, share, .. } = self;
        let times = [
            ("pull.first_contact_millis", pull.first_contact_millis / 1000),
            ("pull.read_wait_secs", pull.read_wait_secs),
            ("pull.retry_min_secs", pull.retry_min_secs),
            ("pull.retry_max_secs", pull.retry_max_secs),
            ("registry.connect_timeout_secs", registry.connect_timeout_secs),
            ("registry.response_timeout_secs", registry.response_timeout_secs),
            ("registry.stall_timeout_secs", registry.stall_timeout_secs),
            ("registry.credential_helper_timeout_secs", registry.credential_helper_timeout_secs),
            ("registry.give_up_after_secs", registry.give_up_after_secs),
            ("registry.retry_delay_ms", registry.retry_delay_ms / 1000),
            ("share.redis.deadline_millis", share.redis.deadline_millis / 1000),
            ("share.redis.expiry_secs", share.redis.expiry_secs),
            ("share.referrers.deadline_millis", share.referrers.deadline_millis / 1000),
        ];
        for (name, seconds) in times {
            ensure!(seconds <= MOST_SECONDS, "{name} is {seconds} s: the most is {MOST_SECONDS} s, ten years");
        }
        let counts = [
            ("pull.layers_at_once", pull.layers_at_once),
            ("pull.layers_under_way", pull.layers_under_way),
            ("pull.ranges_at_once", pull.ranges_at_once),
            ("pull.demand_ranges", pull.demand_ranges),
            ("pull.profile_ranges", pull.profile_ranges),
        ];
        for (name, count) in counts {
            ensure!(count <= MOST_AT_ONCE, "{name} is {count}: the most is {MOST_AT_ONCE}");
        }
        Ok(())
    }
}

/// Linux' own limit of one process' descriptors, unless it was raised (`fs.nr_open`). There is room for as many from the start.
const MOST_OPEN_FILES: usize = 1 << 20;

/// The filter of `log`. A word that is no level would be taken for the name of a module, and silence all others.
pub fn log_filter(log: &str) -> anyhow::Result<EnvFilter> {
    let words: Vec<_> = log.split(',').map(str::trim).collect();
    for word in words.iter().filter(|word| !word.is_empty() && !word.contains(['=', '['])) {
        if word.parse::<LevelFilter>().is_err() {
            bail!(
                "`log = {log:?}`: {word:?} is no level (error, warn, info, debug, trace, off), and a module needs one: {word}=debug"
            );
        }
    }
    // The filter's own parser takes no spaces.
    EnvFilter::try_new(words.join(",")).with_context(|| format!("`log = {log:?}` is no log filter"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_silence_the_log_or_stop_silkd_is_refused_in_words() {
        let said = |text: &str| format!("{:#}", Config::parse(text).unwrap_err());
        assert!(said("log = 'warning'").contains("\"warning\" is no level"));
        assert!(said("log = 'info,silk_pull'").contains("silk_pull=debug"));
        assert!(said("[pull]\nfirst_contact_millis = 0").contains("pull.first_contact_millis"));
        assert!(said("[pull]\nread_wait_secs = 0").contains("pull.read_wait_secs is 0"));
        assert!(said("[pull]\nread_wait_secs = 9000000000000000000").contains("ten years"));
        assert!(said("[registry]\nconnect_timeout_secs = 400000000").contains("registry.connect_timeout_secs"));
        assert!(said("[share.redis]\ndeadline_millis = 9000000000000000000").contains("share.redis.deadline_millis"));
        assert!(said("[pull]\ndemand_ranges = 65537").contains("the most is 65536"));
        assert!(said("[store]\nkeep_free_percent = 100").contains("store.keep_free_percent is 100"));
        assert!(said("[mount]\nopen_files = 9000000").contains("mount.open_files"));
        for good in
            ["", "log = 'WARN'", "log = 'info, silk_registry=debug'", "log = 'silk_pull[layer]=trace'", "log = 'off'"]
        {
            Config::parse(good).unwrap();
        }
    }
}
