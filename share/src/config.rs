//! `[share]` of the configuration file.

use std::{path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use silk_registry::Tls;

use crate::ShareError;

/// What silk learns about images, shared with other nodes. Both ways are off until they are configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A file with the fleet's key, the same on every node: text of at least 32 characters on a line of its own, such as
    /// `openssl rand -hex 32` prints. What is shared is then sealed with it, and nothing else is believed: who can write
    /// to Redis or to the registry, but has no key, cannot make a node believe anything. The first line seals, all lines are
    /// believed. To change the key, put the new one below the old one on every node; then, when all were started again, above it on every
    /// node; then remove the old one. Read at start.
    pub key_file: Option<PathBuf>,
    /// A Redis (6 or newer, or Valkey; not a cluster) that the nodes of a fleet share.
    pub redis: RedisConfig,
    /// Artifacts that refer to an image, in the image's own repository.
    pub referrers: ReferrersConfig,
}

/// Without `share.key_file`, whoever can write to this Redis is trusted like the operator's own nodes:
/// a name or a file's mode that it made up would be shown to containers until the layer is whole. Wrong content is found at
/// the latest when the whole layer is proved against its diff ID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RedisConfig {
    /// `host:port`, or `unix:/path/to/socket`. Not set: Redis is not used.
    pub address: Option<String>,
    /// The user of Redis's access control. Not set: the default user.
    pub username: Option<String>,
    /// A file that holds the password and nothing else. Read at each connection, so that a new one takes effect.
    pub password_file: Option<PathBuf>,
    /// Speak TLS. The server's certificate must be for the host that `address` names.
    pub tls: bool,
    /// A PEM file with certificates (a CA's, or the server's own) to believe besides the system's. Needs `tls`. Read at each
    /// connection, as the client's certificate and its key are, so that new ones take effect.
    pub ca_file: Option<PathBuf>,
    /// A PEM file with a client certificate, for a Redis that asks for one (`tls-auth-clients`).
    pub certificate_file: Option<PathBuf>,
    /// A PEM file with the client certificate's key. Not set: it is in `certificate_file`.
    pub private_key_file: Option<PathBuf>,
    /// The number of the database.
    pub database: u32,
    /// Milliseconds of silence after which Redis counts as away. A pull waits that long for it at most, once; then silk goes
    /// on without Redis until a probe in the background finds it well again. A Redis in the same network answers in 1 to 5. One that
    /// sends, but slowly, has ten times as long for each of at most three answers.
    pub deadline_millis: u64,
    /// Seconds that a value is kept after its last use.
    pub expiry_secs: u64,
    /// Bytes that all of silk's values may have together. When a new one does not fit, those go that were not used for the
    /// longest time.
    pub max_bytes: u64,
    /// The largest value, in bytes, that is stored or believed; at most 96 MiB. A layer's index has 0.2 to 0.3 percent of its tar, its table of
    /// contents about 20 bytes for each file.
    pub max_value_bytes: u64,
}

/// `[share.referrers]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReferrersConfig {
    /// Look for what is known of an image at its registry.
    pub discover: bool,
    /// Push what was learned of an image to its repository, with the credentials that silk has for it. They must allow
    /// pushing. Needs `share.key_file` or `trust_unsigned`: without, no node would believe it.
    pub publish: bool,
    /// Believe what is not sealed with the fleet's key too: whoever can push to an image's repository is then trusted as
    /// told at `[share.redis]`. Otherwise `discover` and `publish` need `share.key_file`.
    pub trust_unsigned: bool,
    /// Milliseconds that a pull waits for its registry's answers about an image, all of them together.
    pub deadline_millis: u64,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            address: None,
            username: None,
            password_file: None,
            tls: false,
            ca_file: None,
            certificate_file: None,
            private_key_file: None,
            database: 0,
            deadline_millis: 200,
            expiry_secs: 30 * 24 * 3600,
            max_bytes: 1 << 30,
            max_value_bytes: 32 << 20,
        }
    }
}

impl Default for ReferrersConfig {
    fn default() -> Self {
        Self { discover: false, publish: false, trust_unsigned: false, deadline_millis: 2000 }
    }
}

impl Config {
    /// A zero here would make every lookup fail: better said at start; so is what can only be a mistake.
    pub(crate) fn validate(&self) -> Result<(), ShareError> {
        let fields = [
            ("share.redis.deadline_millis", self.redis.deadline_millis),
            ("share.redis.expiry_secs", self.redis.expiry_secs),
            ("share.redis.max_bytes", self.redis.max_bytes),
            ("share.redis.max_value_bytes", self.redis.max_value_bytes),
            ("share.referrers.deadline_millis", self.referrers.deadline_millis),
        ];
        if let Some(&(field, _)) = fields.iter().find(|(_, value)| *value == 0) {
            return Err(ShareError::ZeroSetting { field });
        }
        let redis = &self.redis;
        let needs_tls = [
            ("ca_file", &redis.ca_file),
            ("certificate_file", &redis.certificate_file),
            ("private_key_file", &redis.private_key_file),
        ];
        match needs_tls.iter().find(|(_, file)| file.is_some()) {
            // What was meant to be encrypted would go in plain text.
            Some((field, _)) if !redis.tls => Err(ShareError::WithoutTls { field }),
            _ if redis.private_key_file.is_some() && redis.certificate_file.is_none() => Err(ShareError::KeyAlone),
            _ => Ok(()),
        }
    }
}

impl RedisConfig {
    pub(crate) fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_millis)
    }

    pub(crate) fn certificates(&self) -> Tls {
        Tls::new(self.ca_file.clone(), self.certificate_file.clone(), self.private_key_file.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default_and_an_unknown_field_is_an_error() {
        assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
        assert!(toml::from_str::<Config>("[redis]\nadress = 'x'").is_err());
    }

    #[test]
    fn a_zero_is_named() {
        let config: Config = toml::from_str("[redis]\nexpiry_secs = 0").unwrap();
        assert!(config.validate().unwrap_err().to_string().contains("share.redis.expiry_secs"));
        Config::default().validate().unwrap();
    }

    #[test]
    fn certificates_without_tls_are_a_mistake() {
        let said = |text: &str| {
            let config: Config = toml::from_str(&format!("[redis]\n{text}")).unwrap();
            config.validate().map_err(|error| error.to_string())
        };
        for field in ["ca_file", "certificate_file", "private_key_file"] {
            let error = said(&format!("{field} = '/x'")).unwrap_err();
            assert!(error.contains(&format!("share.redis.{field}")) && error.contains("tls = true"), "{error}");
        }
        said("tls = true\nca_file = '/x'\ncertificate_file = '/y'").unwrap();
        let alone = said("tls = true\nprivate_key_file = '/x'").unwrap_err();
        assert!(alone.contains("share.redis.certificate_file"), "{alone}");
    }
}
