//! Which hosts serve a registry, as containerd's `certs.d` directories say. Reads small files: call it where blocking is
//! allowed.
//!
//! Follows containerd's `core/remotes/docker/config/hosts.go` (2.1): folder names, the order of hosts, the defaults of
//! `docker.io` and of loopback registries, and the fall back to certificate files when `hosts.toml` is missing or broken.

use std::{
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{Config, Error, error::CertificateFault};

mod file;

/// The largest hosts.toml, certificate or key that is read: many times any honest one.
const MAX_FILE: u64 = 1 << 20;

/// One host that serves a registry: the registry itself or a mirror.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Host {
    pub tls: bool,
    /// TLS is tried first, plain HTTP if the other side turns out not to speak it.
    pub may_fall_back: bool,
    /// `host` or `host:port`.
    pub authority: String,
    /// What precedes the repository's name in URLs: `/v2`, or more.
    pub path: String,
    pub capabilities: Capabilities,
    pub ca: Vec<Pem>,
    pub identities: Vec<Identity>,
    pub skip_verify: bool,
    /// Added to each request; values may be secrets.
    pub headers: Vec<(String, String)>,
    pub dial_timeout: Option<Duration>,
}

/// What a host may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Capabilities {
    pub pull: bool,
    pub resolve: bool,
    pub push: bool,
}

/// A PEM file with its contents, so that a renewed certificate makes a new client.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Pem {
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

/// A client certificate; without a key of its own, the key is in the same file.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub certificate: Pem,
    pub key: Option<Pem>,
}

/// The hosts of `registry` (as image references name it), in the order in which they are to be tried.
pub(crate) fn load(config: &Config, registry: &str) -> Result<Vec<Host>, Error> {
    let found = config.hosts_dirs.iter().find_map(|root| folder(root, registry));
    let entries = match &found {
        Some(folder) => file::read(folder),
        None => vec![file::Entry::default()],
    };
    entries.into_iter().map(|entry| finish(config, registry, entry)).collect()
}

/// The folder of `registry` below `root`, or that of all others.
fn folder(root: &Path, registry: &str) -> Option<PathBuf> {
    let with_underscores = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = with_underscores.iter().map(String::as_str).chain([registry, "_default"]);
    names.map(|name| root.join(name)).find(|path| path.exists())
}

/// Fills in what the entry leaves open and reads its certificates.
fn finish(config: &Config, registry: &str, entry: file::Entry) -> Result<Host, Error> {
    let everything = Capabilities { pull: true, resolve: true, push: true };
    let mut skip_verify = entry.skip_verify;
    let (scheme_is_tls, authority, path, capabilities) = match entry.server {
        Some(server) => (server.tls, server.authority, server.path, entry.capabilities),
        None if registry == "docker.io" => (true, "registry-1.docker.io".to_owned(), "/v2".to_owned(), everything),
        None => {
            let (_, port) = split_port(registry);
            let mut tls = true;
            if config.plain_http.iter().any(|host| host == registry) {
                tls = false;
            } else if is_loopback(registry) {
                tls = matches!(port, None | Some("443"));
                if port != Some("80") {
                    skip_verify = Some(true);
                }
            }
            (tls, registry.to_owned(), "/v2".to_owned(), everything)
        }
    };
    // A host for which TLS was configured, but named with http://, is tried with TLS first, port 80 apart.
    let explicit_tls = skip_verify.is_some() || !entry.ca.is_empty() || !entry.identities.is_empty();
    let may_fall_back = !scheme_is_tls && explicit_tls && split_port(&authority).1 != Some("80");
    let read_identity = |(certificate, key): (PathBuf, Option<PathBuf>)| {
        Ok(Identity { certificate: Pem::read(certificate)?, key: key.map(Pem::read).transpose()? })
    };
    Ok(Host {
        tls: scheme_is_tls || may_fall_back,
        may_fall_back,
        authority,
        path,
        capabilities,
        ca: entry.ca.into_iter().map(Pem::read).collect::<Result<_, _>>()?,
        identities: entry.identities.into_iter().map(read_identity).collect::<Result<_, Error>>()?,
        skip_verify: skip_verify.unwrap_or(false),
        headers: entry.headers,
        dial_timeout: entry.dial_timeout,
    })
}

/// `host:port` or `[address]:port` apart.
pub(crate) fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

/// `localhost` or a loopback address, with or without a port.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let (host, _) = split_port(authority);
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A small file, or an error if it is not small.
fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

// === impl Pem ===

impl Pem {
    pub(crate) fn read(path: PathBuf) -> Result<Self, Error> {
        match read_small(&path) {
            Ok(bytes) => Ok(Self { path, bytes }),
            Err(error) => Err(Error::Certificate { path, cause: CertificateFault::Read(error) }),
        }
    }
}

// === impl Host ===

impl fmt::Debug for Host {
    /// Without keys and header values: they may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({}://{}{})", if self.tls { "https" } else { "http" }, self.authority, self.path)
    }
}

#[cfg(test)]
mod tests;
