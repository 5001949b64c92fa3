//! `hosts.toml`, and docker's folders of certificate files. Syntax only; what is left open stays open.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use tracing::error;
use url::Url;

use super::{Capabilities, read_small};

/// One `[host."..."]` section, or the file's root, which is the registry itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// None: the registry's own address.
    pub server: Option<Server>,
    pub capabilities: Capabilities,
    pub ca: Vec<PathBuf>,
    pub identities: Vec<(PathBuf, Option<PathBuf>)>,
    pub skip_verify: Option<bool>,
    pub headers: Vec<(String, String)>,
    pub dial_timeout: Option<Duration>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub tls: bool,
    pub authority: String,
    pub path: String,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("it is not UTF-8")]
    NotText,
    #[error("line {line}: {}", message)]
    Toml { line: usize, message: String },
    #[error("{0:?} is not an http or https URL")]
    Url(String),
    #[error("unknown capability {0:?}")]
    Capability(String),
    #[error("header {0:?} or its value is malformed")]
    Header(String),
    #[error("dial_timeout {0:?} is not a duration such as 3s or 1m30s")]
    Duration(String),
}

/// The entries of a registry's folder, in order. As containerd does it, a missing or a broken `hosts.toml` leaves the
/// certificate files.
pub(super) fn read(folder: &Path) -> Vec<Entry> {
    let path = folder.join("hosts.toml");
    match read_small(&path) {
        Ok(bytes) if bytes.is_empty() => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        read => match read.map_err(Fault::from).and_then(|bytes| parse(folder, &bytes)) {
            Ok(entries) => return entries,
            Err(fault) => error!("{} is ignored: {fault}", path.display()),
        },
    }
    vec![certificate_files(folder)]
}

// === hosts.toml ===

/// The fields of containerd's `hostFileConfig`. Unknown ones are ignored, as containerd does: the file is its, not ours.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Section {
    server: String,
    capabilities: Vec<String>,
    ca: Option<OneOrMany<PathBuf>>,
    client: Option<OneOrMany<PathBuf, PathOrPair>>,
    skip_verify: Option<bool>,
    header: toml::map::Map<String, toml::Value>,
    override_path: bool,
    dial_timeout: String,
    host: toml::map::Map<String, toml::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T, E = T> {
    One(T),
    Many(Vec<E>),
}

/// Of a list only: two strings by themselves are two files, each with a certificate and its key.
#[derive(Deserialize)]
#[serde(untagged)]
enum PathOrPair {
    Path(PathBuf),
    Pair([PathBuf; 2]),
}

impl From<PathBuf> for PathOrPair {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

fn parse(folder: &Path, bytes: &[u8]) -> Result<Vec<Entry>, Fault> {
    let text = std::str::from_utf8(bytes).map_err(|_| Fault::NotText)?;
    // The library's own display quotes the line, which may hold a header's secret.
    let root: Section = toml::from_str(text).map_err(|error| Fault::Toml {
        line: error.span().map_or(0, |span| text[..span.start].lines().count().max(1)),
        message: error.message().to_owned(),
    })?;
    let mut entries = Vec::with_capacity(root.host.len() + 1);
    for (url, section) in &root.host {
        let section = section.clone().try_into::<Section>();
        let section = section.map_err(|error| Fault::Toml { line: 0, message: error.message().to_owned() })?;
        entries.push(section.into_entry(folder, url)?);
    }
    let server = root.server.clone();
    entries.push(root.into_entry(folder, &server)?);
    Ok(entries)
}

impl Section {
    fn into_entry(self, folder: &Path, url: &str) -> Result<Entry, Fault> {
        let pair = |client| match client {
            PathOrPair::Path(path) => (folder.join(path), None),
            PathOrPair::Pair([certificate, key]) => (folder.join(certificate), Some(folder.join(key))),
        };
        let mut headers = Vec::new();
        for (name, value) in self.header {
            let fault = || Fault::Header(name.clone());
            HeaderName::try_from(&name).map_err(|_| fault())?;
            let values: OneOrMany<String> = value.try_into().map_err(|_| fault())?;
            for value in values.into_vec() {
                HeaderValue::from_str(&value).map_err(|_| fault())?;
                headers.push((name.clone(), value));
            }
        }
        Ok(Entry {
            server: server(url, self.override_path)?,
            capabilities: capabilities(&self.capabilities)?,
            ca: self.ca.map_or_else(Vec::new, OneOrMany::into_vec).into_iter().map(|path| folder.join(path)).collect(),
            identities: self.client.map_or_else(Vec::new, OneOrMany::into_vec).into_iter().map(pair).collect(),
            skip_verify: self.skip_verify,
            headers,
            dial_timeout: match self.dial_timeout.as_str() {
                "" => None,
                text => {
                    let timeout = duration(text).ok_or_else(|| Fault::Duration(text.to_owned()))?;
                    // For Go zero is no timeout; silk has its own then.
                    Some(timeout).filter(|timeout| !timeout.is_zero())
                }
            },
        })
    }
}

impl<T: Into<E>, E> OneOrMany<T, E> {
    fn into_vec(self) -> Vec<E> {
        match self {
            Self::One(one) => vec![one.into()],
            Self::Many(many) => many,
        }
    }
}

impl Default for Capabilities {
    /// What no list means.
    fn default() -> Self {
        Self { pull: true, resolve: true, push: true }
    }
}

fn capabilities(names: &[String]) -> Result<Capabilities, Fault> {
    if names.is_empty() {
        return Ok(Capabilities::default());
    }
    let mut capabilities = Capabilities { pull: false, resolve: false, push: false };
    for name in names {
        match name.to_lowercase().as_str() {
            "pull" => capabilities.pull = true,
            "resolve" => capabilities.resolve = true,
            "push" => capabilities.push = true,
            // containerd 2.2. Lists of referrers are asked of hosts that may resolve, as a matter of the same trust.
            "referrers" => {}
            _ => return Err(Fault::Capability(name.clone())),
        }
    }
    Ok(capabilities)
}

/// `host`, `http://host/path` and so on; `/v2` is appended unless it is there or `override_path` is set.
fn server(text: &str, override_path: bool) -> Result<Option<Server>, Fault> {
    if text.is_empty() {
        return Ok(None);
    }
    let fault = || Fault::Url(text.to_owned());
    let text = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let url = Url::parse(&text).map_err(|_| fault())?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(fault());
    }
    // The authority as written: `Url` drops a default port, and `?ns=` compares text.
    let after = text.split_once("://").ok_or_else(fault)?.1;
    let authority = after.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let mut path = url.path().trim_end_matches('/').to_owned();
    if !override_path && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    Ok(Some(Server { tls: url.scheme() == "https", authority: authority.to_owned(), path }))
}

/// Go's `time.ParseDuration`, without signs: `300ms`, `1.5h`, `2h45m`, `0`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = if text == "0" { "0s" } else { text };
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        rest = &rest[letters..];
        total = total.checked_add(Duration::try_from_secs_f64(value * unit).ok()?)?;
    }
    Some(total)
}

// === certificate files ===

/// Docker's layout: `*.crt` are CAs, `*.cert` client certificates, `*.key` beside them their keys.
fn certificate_files(folder: &Path) -> Entry {
    let mut names: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    names.sort();
    let with = |extension: &'static str| {
        names.iter().filter(move |path| path.extension().is_some_and(|e| e == extension) && !path.is_dir()).cloned()
    };
    let identity = |certificate: PathBuf| {
        let key = certificate.with_extension("key");
        let key = key.exists().then_some(key);
        (certificate, key)
    };
    Entry { ca: with("crt").collect(), identities: with("cert").map(identity).collect(), ..Entry::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, millis) in [
            ("3s", 3000),
            ("300ms", 300),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("2h45m", 9_900_000),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["3", "s", "3x", "-1s", "1e9h", "1..2s", "99999999999999999999h"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn servers_are_read_as_containerd_reads_them() {
        let parse = |text, override_path| {
            let server = server(text, override_path).unwrap().unwrap();
            (server.tls, server.authority, server.path)
        };
        let of = |tls, authority: &str, path: &str| (tls, authority.to_owned(), path.to_owned());
        assert_eq!(parse("mirror:5000", false), of(true, "mirror:5000", "/v2"));
        assert_eq!(parse("http://mirror", false), of(false, "mirror", "/v2"));
        assert_eq!(parse("https://mirror:443/", false), of(true, "mirror:443", "/v2"));
        assert_eq!(parse("https://h/proxy", false), of(true, "h", "/proxy/v2"));
        assert_eq!(parse("https://h/v2/proxy", false), of(true, "h", "/v2/proxy/v2"));
        assert_eq!(parse("https://h/v2/proxy", true), of(true, "h", "/v2/proxy"));
        assert_eq!(parse("http://[::1]:5000", true), of(false, "[::1]:5000", ""));
        assert_eq!(server("", false).unwrap(), None);
        assert_eq!(parse("httpbin.org", false), of(true, "httpbin.org", "/v2"));
        for bad in ["ftp://x", "http://", "://x", "a b", "http://[::1"] {
            assert!(server(bad, false).is_err(), "{bad}");
        }
    }
}
