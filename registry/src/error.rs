//! Everything that can go wrong in a conversation with a registry, in words that help kubelet's user.
//!
//! No message holds a credential, a token or the query of a URL (storage signatures live there).

use std::{error::Error as StdError, fmt, io, ops::Range, path::PathBuf, time::Duration};

use reqwest::StatusCode;
use serde_json::Value;
use silk_model::{Class, Digest};

use crate::ReferenceError;

/// The longest piece of a registry's own words that goes into a message, in characters.
const MAX_WORDS: usize = 256;

/// Whom silk asked, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `host` or `host:port` of the registry, mirror, storage or token server.
    pub host: String,
    /// The thing asked for, for messages: `manifest latest of library/app`.
    pub what: String,
}

/// Why a registry's answer is no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is no image reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A setting that must not be zero is.
    #[error("registry setting {field} is 0: give it a positive value or leave it out")]
    ZeroSetting {
        /// Its name in the configuration file.
        field: &'static str,
    },
    /// A certificate or key that `hosts.toml` or the configuration names cannot be used.
    #[error("cannot use the certificate or key {}: {cause}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: CertificateFault,
    },
    /// `hosts.toml` leaves no host for this.
    #[error("no host in hosts.toml of {registry} has the capability to {needs}")]
    NoHost {
        /// The registry as the reference names it.
        registry: String,
        /// `pull`, `pull and resolve`, or `push`.
        needs: &'static str,
    },
    /// The HTTP client cannot be made.
    #[error("cannot set up a client for registry {host}: {cause}")]
    Client {
        /// Whom it was for.
        host: String,
        /// The library's reason.
        #[source]
        cause: Transport,
    },
    /// 401 or 403 after all credentials were tried.
    #[error("registry {} refused silk: {status} for {}{said}: {hint}", asked.host, asked.what)]
    Denied {
        /// Whom, what.
        asked: Asked,
        /// 401 or 403.
        status: StatusCode,
        /// The registry's own words.
        said: Said,
        /// What to look at.
        hint: String,
    },
    /// 401 or 403, and nobody knows whether there are credentials.
    #[error("registry {} wants credentials for {}: {status}{said}, and whether there are any could not be found out: {fault}", asked.host, asked.what)]
    NoCredentials {
        /// Whom, what.
        asked: Asked,
        /// 401 or 403.
        status: StatusCode,
        /// The registry's own words.
        said: Said,
        /// Which helper or file, and what is wrong with it.
        fault: String,
    },
    /// 404 or 410.
    #[error("registry {} has no {}: {status}{said}", asked.host, asked.what)]
    NotFound {
        /// Whom, what.
        asked: Asked,
        /// 404 or 410.
        status: StatusCode,
        /// The registry's own words.
        said: Said,
    },
    /// 404 for a part of a blob, without anything that a registry says: perhaps of what stands before it while it restarts.
    #[error("registry {} answered {status} for {} without a registry's words", asked.host, asked.what)]
    Wordless {
        /// Whom, what.
        asked: Asked,
        /// 404.
        status: StatusCode,
    },
    /// Any other status that is no success.
    #[error("registry {} answered {status} for {}{said}", asked.host, asked.what)]
    Status {
        /// Whom, what.
        asked: Asked,
        /// The status.
        status: StatusCode,
        /// The registry's own words.
        said: Said,
        /// How long the registry asks us to wait.
        retry_after: Option<Duration>,
    },
    /// No connection, or it broke before the head of the answer.
    #[error("registry {} cannot be reached for {}: {cause}", asked.host, asked.what)]
    Unreachable {
        /// Whom, what.
        asked: Asked,
        /// The network's reason.
        #[source]
        cause: Transport,
    },
    /// The head of the answer did not come in time.
    #[error("registry {} did not answer within {:.1} s for {}", asked.host, after.as_secs_f64(), asked.what)]
    NoAnswer {
        /// Whom, what.
        asked: Asked,
        /// How long silk waited.
        after: Duration,
    },
    /// The body ended or broke too early.
    #[error("registry {} cut {} at byte {at}{}", asked.host, asked.what, cause.as_ref().map(|c| format!(": {c}")).unwrap_or_default())]
    Cut {
        /// Whom, what.
        asked: Asked,
        /// The first byte that is missing.
        at: u64,
        /// The network's reason; none if the body simply ended.
        #[source]
        cause: Option<Transport>,
    },
    /// No byte of the body came in time.
    #[error("registry {} sent no byte of {} for {:.1} s (at byte {at})", asked.host, asked.what, after.as_secs_f64())]
    Stalled {
        /// Whom, what.
        asked: Asked,
        /// The first byte that is missing.
        at: u64,
        /// How long silk waited.
        after: Duration,
    },
    /// The registry has another length for the blob than the manifest.
    #[error("registry {} holds {actual} bytes as {}, but the manifest says {expected}", asked.host, asked.what)]
    WrongSize {
        /// Whom, what.
        asked: Asked,
        /// By the manifest.
        expected: u64,
        /// By the registry.
        actual: u64,
    },
    /// More bytes came than were promised.
    #[error("registry {} sent more than the {expected} bytes due of {}", asked.host, asked.what)]
    Overlong {
        /// Whom, what.
        asked: Asked,
        /// Bytes that were due.
        expected: u64,
    },
    /// The answer to a range request is of another range.
    #[error("registry {} answered bytes {}-{} of {} with Content-Range {got:?}{}", asked.host, wanted.start, wanted.end - 1, asked.what, coding.map(|coding| format!(" of what it made {coding}")).unwrap_or_default())]
    WrongRange {
        /// Whom, what.
        asked: Asked,
        /// The bytes asked for.
        wanted: Range<u64>,
        /// The header, shortened.
        got: String,
        /// How the whole was compressed on the way.
        coding: Option<&'static str>,
    },
    /// The server has no ranges: its answer begins with all that lies before the one that was asked for.
    #[error("registry {} sends the whole of {} where a part of it was asked for", asked.host, asked.what)]
    NoRanges {
        /// What was asked, of whom.
        asked: Asked,
    },
    /// 416: the registry says the blob does not reach that far.
    #[error("registry {} cannot serve bytes {}-{} of {}: {}", asked.host, wanted.start, wanted.end - 1, asked.what, StatusCode::RANGE_NOT_SATISFIABLE)]
    RangeRefused {
        /// Whom, what.
        asked: Asked,
        /// The bytes asked for.
        wanted: Range<u64>,
    },
    /// The bytes are not those of the digest.
    #[error("registry {} sent {actual} as {}", asked.host, asked.what)]
    WrongDigest {
        /// Whom, what (its digest is in the words).
        asked: Asked,
        /// The digest of what came.
        actual: Digest,
    },
    /// A manifest or token that is larger than any honest one.
    #[error("registry {} sent more than {limit} bytes as {}", asked.host, asked.what)]
    TooLarge {
        /// Whom, what.
        asked: Asked,
        /// The most silk takes, in bytes.
        limit: usize,
    },
    /// A redirect that leads nowhere.
    #[error("registry {} redirected silk without end or without a usable address for {}", asked.host, asked.what)]
    Redirect {
        /// Whom, what.
        asked: Asked,
    },
    /// A token server that sent no token.
    #[error("token server {} sent no usable token for {}", asked.host, asked.what)]
    NoToken {
        /// Whom, what.
        asked: Asked,
    },
    /// A read outside of the blob.
    #[error("bytes {}..{} asked for of blob {digest}, which has {size}", wanted.start, wanted.end)]
    OutOfBounds {
        /// The bytes asked for.
        wanted: Range<u64>,
        /// Of which blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// The last of several failures; nothing more will be tried.
    #[error("{last} (gave up after {attempts} attempts in {:.0} s)", after.as_secs_f64())]
    GaveUp {
        /// Attempts in a row without progress.
        attempts: u32,
        /// Since the last progress.
        after: Duration,
        /// How the last one failed.
        #[source]
        last: Box<Error>,
    },
}

/// What is wrong with a certificate file.
#[derive(Debug, thiserror::Error)]
pub enum CertificateFault {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It is not PEM, or has no certificate or key in it.
    #[error("no certificate or no private key in it")]
    Empty,
    /// The TLS library refuses it.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// A failure of the network or the TLS below HTTP, printed with all its causes and without the URL.
#[derive(Debug)]
pub struct Transport(Cause);

#[derive(Debug)]
enum Cause {
    Http(reqwest::Error),
    /// Of what was compressed on the way.
    Damaged(io::Error),
}

/// What a registry said in an error's body, shortened; empty if it said nothing that fits a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said(String);

/// A `Result` of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

// === impl Error ===

impl Error {
    /// Whether the two sides do not trust each other. For a call that is an end; but what stands before a registry shows a certificate of its own
    /// while it restarts.
    pub fn is_about_trust(&self) -> bool {
        matches!(self, Self::Unreachable { cause, .. } if cause.is_tls())
    }

    /// Whether the same question may have another answer in a moment: the server's own trouble, or a connection that was cut. One that cannot
    /// be made, or that wants silk to wait, is no blip.
    pub(crate) fn is_blip(&self) -> bool {
        match self {
            Self::Status { status, retry_after: None, .. } => status.is_server_error() && is_transient(*status),
            Self::Unreachable { cause, .. } => !cause.is_connect(),
            Self::Wordless { .. } => true,
            _ => false,
        }
    }

    /// What kind of trouble this is.
    pub fn class(&self) -> Class {
        match self {
            Self::Reference(error) => error.class(),
            Self::ZeroSetting { .. } | Self::OutOfBounds { .. } | Self::Certificate { .. } => Class::Invalid,
            Self::NoHost { .. } => Class::Unsupported,
            Self::Client { .. } => Class::Internal,
            Self::Denied { .. } => Class::Denied,
            // Trust is missing, and will be at the next attempt.
            Self::Unreachable { cause, .. } if cause.is_tls() => Class::Denied,
            Self::NotFound { .. } => Class::NotFound,
            Self::Status { status, .. } if is_transient(*status) => Class::Transient,
            Self::Status { .. } | Self::Redirect { .. } | Self::NoToken { .. } | Self::WrongRange { .. } => {
                Class::Unsupported
            }
            // The size is the manifest's: it is the host that does not have all of the blob, or not yet.
            Self::RangeRefused { .. } | Self::NoRanges { .. } => Class::Transient,
            // The refusal may be no more than what the missing credentials made it.
            Self::NoCredentials { .. } | Self::Wordless { .. } => Class::Transient,
            Self::Unreachable { .. } | Self::NoAnswer { .. } | Self::Cut { .. } | Self::Stalled { .. } => {
                Class::Transient
            }
            Self::WrongSize { .. } | Self::Overlong { .. } | Self::WrongDigest { .. } | Self::TooLarge { .. } => {
                Class::Corrupt
            }
            Self::GaveUp { last, .. } => last.class(),
        }
    }
}

/// Statuses that another try may not see again: RFC 9110 15.5.9, RFC 6585 4, and the server's own trouble. 501 and 505
/// say "never".
pub(crate) fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error() && !matches!(status.as_u16(), 501 | 505)
}

// === impl Transport ===

impl Transport {
    pub(crate) fn new(error: reqwest::Error) -> Self {
        Self(Cause::Http(error.without_url()))
    }

    /// A body that was compressed on the way and cannot be made what it was.
    pub(crate) fn damaged(error: io::Error) -> Self {
        Self(Cause::Damaged(error))
    }

    /// Whether the other side answered a TLS greeting in another language.
    pub(crate) fn is_not_tls(&self) -> bool {
        matches!(self.tls(), Some(rustls::Error::InvalidMessage(_)))
    }

    /// Whether the two sides cannot agree on TLS or do not trust each other.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls().is_some()
    }

    fn tls(&self) -> Option<&rustls::Error> {
        let mut cause = self.source();
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref() {
                return Some(error);
            }
            // An `io::Error` names the causes of what it carries, not that itself.
            cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(carried) => Some(carried),
                None => error.source(),
            };
        }
        None
    }

    /// Whether no connection came about at all: refused, unknown name, TLS.
    pub(crate) fn is_connect(&self) -> bool {
        matches!(&self.0, Cause::Http(error) if error.is_connect())
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = match &self.0 {
            Cause::Http(error) => error,
            Cause::Damaged(error) => return write!(f, "it was compressed on the way, and is damaged: {error}"),
        };
        // The library's own sentence ("error sending request") says less than its causes.
        let mut cause = error.source();
        if cause.is_none() {
            return write!(f, "{error}");
        }
        let mut last = String::new();
        while let Some(error) = cause {
            let words = error.to_string();
            if !last.ends_with(&words) {
                write!(f, "{}{words}", if last.is_empty() { "" } else { ": " })?;
            }
            last = words;
            cause = error.source();
        }
        Ok(())
    }
}

impl StdError for Transport {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.0 {
            Cause::Http(error) => error.source(),
            Cause::Damaged(error) => error.source(),
        }
    }
}

// === impl Said ===

impl Said {
    /// Whether it said nothing that a registry says.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// From an error's body: the OCI distribution specification's `{"errors": [{"code", "message"}]}` ("Error Codes"),
    /// or the OAuth2 `{"error", "error_description"}` of token servers, or the `<Code>`/`<Message>` of object stores.
    pub(crate) fn parse(body: &[u8]) -> Self {
        // Field by field: an error with a null or an object where a text should be says the rest all the same.
        if let Ok(body) = serde_json::from_slice::<Value>(body) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let first = |names: &[&str]| names.iter().map(|name| text(&body[name])).find(|text| !text.is_empty());
            return match body["errors"].get(0) {
                Some(entry) => Self::of(&text(&entry["code"]), &text(&entry["message"])),
                None => Self::of(&text(&body["error"]), &first(&["error_description", "details"]).unwrap_or_default()),
            };
        }
        let text = String::from_utf8_lossy(body);
        let tag = |name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>"))?;
            Some(rest.split_once('<')?.0.to_owned())
        };
        Self::of(&tag("Code").unwrap_or_default(), &tag("Message").unwrap_or_default())
    }

    fn of(code: &str, message: &str) -> Self {
        let joint = if code.is_empty() || message.is_empty() { "" } else { ": " };
        Self(shorten(&format!("{code}{joint}{message}")))
    }
}

/// At most [`MAX_WORDS`] characters, none of them a control character: this goes into logs and terminals.
pub(crate) fn shorten(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_WORDS).collect()
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::Said;

    #[test]
    fn what_registries_say_is_understood_though_they_bend_the_format() {
        for (body, words) in [
            (r#"{"errors":[{"code":"DENIED","message":"no","detail":null}]}"#, " (DENIED: no)"),
            (r#"{"errors":[{"code":404,"message":"gone"}]}"#, " (gone)"),
            (r#"{"errors":null,"error":"invalid_grant","error_description":"expired"}"#, " (invalid_grant: expired)"),
            (
                r#"{"error":"unauthorized","error_description":null,"details":"bad password"}"#,
                " (unauthorized: bad password)",
            ),
            ("<Error><Code>SlowDown</Code><Message>later</Message></Error>", " (SlowDown: later)"),
            (r#"{"errors":[]}"#, ""),
            ("[]", ""),
            ("", ""),
        ] {
            assert_eq!(Said::parse(body.as_bytes()).to_string(), words, "{body}");
        }
    }
}
