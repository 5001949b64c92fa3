//! What can go wrong: at start, and with one backend later.

use std::{io, path::PathBuf};

use silk_model::Class;

/// Why sharing cannot be set up as configured.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// A setting that must not be zero is.
    #[error("{field} is 0: give it a positive value or leave it out")]
    ZeroSetting {
        /// Its name in the configuration file.
        field: &'static str,
    },
    /// The fleet's key cannot be read.
    #[error("cannot read share.key_file {}: {cause}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        cause: io::Error,
    },
    /// The file holds no key, or one that is too short to be one.
    #[error(
        "share.key_file {} must hold one key a line, of at least 32 characters each: make one with `openssl rand -hex 32`",
        path.display()
    )]
    WeakKey {
        /// The file.
        path: PathBuf,
    },
    /// The address of Redis is neither of the two forms.
    #[error("share.redis.address {address:?} is neither host:port nor unix:/path")]
    Address {
        /// As configured.
        address: String,
    },
    /// A unix socket has no TLS, and no name that a certificate could be for.
    #[error("share.redis.tls is for host:port: share.redis.address {address:?} is a unix socket")]
    TlsOnSocket {
        /// As configured.
        address: String,
    },
    /// A certificate is configured, and TLS is not.
    #[error("share.redis.{field} needs share.redis.tls = true")]
    WithoutTls {
        /// Its name in the configuration file.
        field: &'static str,
    },
    /// A key without its certificate.
    #[error("share.redis.private_key_file needs share.redis.certificate_file")]
    KeyAlone,
    /// Referrers would be looked for, or pushed, of which none could ever be believed.
    #[error("share.referrers.discover and publish need share.key_file, or share.referrers.trust_unsigned")]
    NothingToTrust,
}

/// Why a backend did not take or give up a value.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// It is away, and nothing was tried.
    #[error("it is away: {0}")]
    Away(String),
    /// It did not answer in time.
    #[error("no answer: {0}")]
    Slow(String),
    /// It has no room.
    #[error("it is full: {0}")]
    Full(String),
    /// The value is larger than it may be.
    #[error("the value has {size} bytes, {limit} are allowed")]
    TooLarge {
        /// Bytes of the value.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// It said no, or something that makes no sense.
    #[error("{0}")]
    Refused(String),
    /// The registry or the way there.
    #[error(transparent)]
    Registry(#[from] silk_registry::Error),
}

impl ShareError {
    /// What kind of trouble it is.
    pub fn class(&self) -> Class {
        match self {
            Self::KeyFile { .. } => Class::Internal,
            Self::ZeroSetting { .. }
            | Self::WeakKey { .. }
            | Self::Address { .. }
            | Self::TlsOnSocket { .. }
            | Self::WithoutTls { .. }
            | Self::KeyAlone
            | Self::NothingToTrust => Class::Invalid,
        }
    }
}

impl BackendError {
    /// What kind of trouble it is.
    pub fn class(&self) -> Class {
        match self {
            Self::Away(_) | Self::Slow(_) => Class::Transient,
            Self::Full(_) => Class::NoSpace,
            Self::TooLarge { .. } => Class::Unsupported,
            Self::Refused(_) => Class::Denied,
            Self::Registry(error) => error.class(),
        }
    }
}
