//! What an operator can set about registries. Read once at start; nothing here blocks.

use std::{path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;

/// How silk talks to registries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directories that are searched, in this order, for a registry's folder with `hosts.toml` or with certificates
    /// (`*.crt`, `*.cert`, `*.key`), in containerd's layout. The first directory that has a folder for the registry,
    /// or a `_default` one, decides. Read at the start of each pull, and again
    /// where bytes of a layer that is filled as it is read do not arrive.
    pub hosts_dirs: Vec<PathBuf>,
    /// Docker's `config.json` with the registries' credentials: `auths`, `credHelpers` and `credsStore`. Read each
    /// time credentials are needed, so that a new login takes effect at once. When not set:
    /// `$DOCKER_CONFIG/config.json` if that variable is set, else `$HOME/.docker/config.json`, or root's where nothing says whose home it is.
    pub docker_config: Option<PathBuf>,
    /// Registries (`host` or `host:port`, as written in image references) that are spoken to without TLS when their
    /// `hosts.toml` does not say how. Loopback registries need no entry: they are tried with TLS and then without, as
    /// containerd does.
    pub plain_http: Vec<String>,
    /// Seconds for connecting to a registry, TLS handshake included, before the next mirror or attempt. A
    /// `dial_timeout` in `hosts.toml` goes before it. Ten seconds outlast three lost SYN packets.
    pub connect_timeout_secs: u64,
    /// Seconds for a registry to send the head of its answer once it has the request. Pull-through caches fetch from
    /// their upstream first, so this is not short.
    pub response_timeout_secs: u64,
    /// Seconds without a single byte of a body before the connection is given up and the rest is asked for on a new
    /// one.
    pub stall_timeout_secs: u64,
    /// Seconds a `docker-credential-*` program may run before it is killed and the registry is tried without
    /// credentials. If that needs some, the request fails for a passing reason, and the program runs again with the next attempt.
    pub credential_helper_timeout_secs: u64,
    /// Failures in a row, on all mirrors together, before a request is given up. A received byte starts the count
    /// anew. Each mirror, and the registry itself, is asked once whatever this and `give_up_after_secs` say.
    pub attempts: u32,
    /// Seconds without progress before a request is given up even if attempts are left.
    pub give_up_after_secs: u64,
    /// Milliseconds before the second attempt; doubled for each further one up to 20 s, and varied by a quarter so
    /// that a fleet does not come back in step. With six attempts the default waits 15 s in all, which outlasts a
    /// registry's restart.
    pub retry_delay_ms: u64,
    /// Blob bodies that are received from one registry host at a time; more wait. At 80 MiB/s a
    /// connection two fill a 1 Gbit/s link and eight one of 5 Gbit/s; more would look like abuse to a shared registry. Reads that a container waits for may have a quarter as many more.
    /// Manifests and probes are short and do not count.
    pub connections_per_registry: u32,
    /// Offer HTTP/2 to registries. Off by default: it carries all streams of a host over one TCP connection, where
    /// one lost packet halts every layer and one congestion window limits them; HTTP/1.1 gives each stream its own.
    pub http2: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hosts_dirs: vec!["/etc/containerd/certs.d".into(), "/etc/docker/certs.d".into()],
            docker_config: None,
            plain_http: Vec::new(),
            connect_timeout_secs: 10,
            response_timeout_secs: 30,
            stall_timeout_secs: 30,
            credential_helper_timeout_secs: 10,
            attempts: 6,
            give_up_after_secs: 120,
            retry_delay_ms: 500,
            connections_per_registry: 8,
            http2: false,
        }
    }
}

impl Config {
    /// The file that credentials are read from.
    pub fn docker_config_path(&self) -> PathBuf {
        let named = |variable| std::env::var_os(variable).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let docker =
            || named("DOCKER_CONFIG").unwrap_or_else(|| named("HOME").unwrap_or("/root".into()).join(".docker"));
        self.docker_config.clone().unwrap_or_else(|| docker().join("config.json"))
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout_secs)
    }

    pub(crate) fn response_timeout(&self) -> Duration {
        Duration::from_secs(self.response_timeout_secs)
    }

    pub(crate) fn stall_timeout(&self) -> Duration {
        Duration::from_secs(self.stall_timeout_secs)
    }

    pub(crate) fn credential_helper_timeout(&self) -> Duration {
        Duration::from_secs(self.credential_helper_timeout_secs)
    }

    /// A zero here would make every request fail, or hang: better said at start.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let fields = [
            ("connect_timeout_secs", self.connect_timeout_secs),
            ("response_timeout_secs", self.response_timeout_secs),
            ("stall_timeout_secs", self.stall_timeout_secs),
            ("credential_helper_timeout_secs", self.credential_helper_timeout_secs),
            ("attempts", self.attempts.into()),
            ("give_up_after_secs", self.give_up_after_secs),
            ("connections_per_registry", self.connections_per_registry.into()),
        ];
        match fields.iter().find(|(_, value)| *value == 0) {
            Some(&(field, _)) => Err(Error::ZeroSetting { field }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default_and_an_unknown_field_is_an_error() {
        assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
        assert!(toml::from_str::<Config>("stall_timeout = 3").is_err());
        assert_eq!(toml::from_str::<Config>("attempts = 2").unwrap().attempts, 2);
    }

    #[test]
    fn a_zero_is_named() {
        let config = Config { stall_timeout_secs: 0, ..Config::default() };
        let message = config.validate().unwrap_err().to_string();
        assert!(message.contains("stall_timeout_secs"), "{message}");
        Config::default().validate().unwrap();
    }
}
