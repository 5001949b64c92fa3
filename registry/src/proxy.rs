//! Which proxy a request goes through: `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, or their lower-case twins, read once.
//!
//! The rule is that of Go's `golang.org/x/net/http/httpproxy`, by which containerd, docker and kubelet read the same variables.
//! The HTTP library's own is curl's: it knows no `host:port` and no `*.example.com` in `NO_PROXY`, sends loopback to the proxy, and
//! has `ALL_PROXY`, which Go has not.

use std::{env, fmt, net::IpAddr};

use ipnet::IpNet;
use tracing::warn;
use url::{Host, Url};

use crate::hosts::split_port;

/// What the environment says of proxies.
#[derive(Default)]
pub(crate) struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    direct: Vec<Direct>,
}

/// An entry of `NO_PROXY`: what is asked without a proxy, on one port or all.
#[derive(Debug, PartialEq, Eq)]
struct Direct(Whom, Option<u16>);

#[derive(Debug, PartialEq, Eq)]
enum Whom {
    All,
    Network(IpNet),
    Address(IpAddr),
    /// Names that end with this text, which begins with a dot, and perhaps the name without that.
    Names(String, bool),
}

impl Proxies {
    pub(crate) fn from_env() -> Self {
        Self::read(|name| env::var(name).ok())
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| {
            let mut values = names.iter().filter_map(|name| variable(name));
            values.find(|value| !value.is_empty()).unwrap_or_default()
        };
        // A web server makes HTTP_PROXY of a client's header `Proxy` for its CGI programs.
        let is_cgi = !first(&["REQUEST_METHOD"]).is_empty();
        let http = if is_cgi { String::new() } else { first(&["HTTP_PROXY", "http_proxy"]) };
        Self::new(&http, &first(&["HTTPS_PROXY", "https_proxy"]), &first(&["NO_PROXY", "no_proxy"]))
    }

    /// Of what the three variables hold.
    pub(crate) fn new(http: &str, https: &str, no: &str) -> Self {
        let direct = no.split(',').filter_map(Direct::parse).collect();
        Self { http: address("HTTP_PROXY", http), https: address("HTTPS_PROXY", https), direct }
    }

    pub(crate) fn are_none(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }

    /// The proxy for `url`, if it is to be asked through one.
    pub(crate) fn of(&self, url: &Url) -> Option<&Url> {
        let proxy = if url.scheme() == "https" { &self.https } else { &self.http }.as_ref()?;
        let (name, port) = (url.host_str()?, url.port_or_known_default()?);
        let address = match url.host()? {
            Host::Domain(_) => None,
            Host::Ipv4(address) => Some(address.into()),
            Host::Ipv6(address) => Some(IpAddr::V6(address).to_canonical()),
        };
        let is_here = name == "localhost" || address.is_some_and(|address| address.is_loopback());
        (!is_here && !self.direct.iter().any(|direct| direct.covers(name, address, port))).then_some(proxy)
    }
}

impl Direct {
    fn parse(entry: &str) -> Option<Self> {
        let entry = entry.trim().to_lowercase();
        if entry == "*" {
            return Some(Self(Whom::All, None));
        }
        if let Ok(network) = entry.parse() {
            return Some(Self(Whom::Network(network), None));
        }
        let is_address = entry.parse::<IpAddr>().is_ok();
        let (host, port) = if is_address { (&*entry, None) } else { split_port(&entry) };
        let port = port.filter(|port| !port.is_empty()).map(str::parse).transpose().ok()?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = host.parse::<IpAddr>() {
            return Some(Self(Whom::Address(address.to_canonical()), port));
        }
        let names = match host.strip_prefix('*').unwrap_or(host) {
            "" => return None,
            below if below.starts_with('.') => Whom::Names(below.to_owned(), false),
            _ => Whom::Names(format!(".{host}"), true),
        };
        Some(Self(names, port))
    }

    fn covers(&self, name: &str, address: Option<IpAddr>, port: u16) -> bool {
        let whom = match &self.0 {
            Whom::All => true,
            Whom::Network(network) => address.is_some_and(|address| network.contains(&address)),
            Whom::Address(own) => address == Some(*own),
            Whom::Names(end, itself) => address.is_none() && (name.ends_with(end) || *itself && *name == end[1..]),
        };
        whom && self.1.is_none_or(|own| own == port)
    }
}

/// The address in the variable `name`: a URL, or `host:port`, which means plain HTTP.
fn address(name: &str, text: &str) -> Option<Url> {
    if text.is_empty() {
        return None;
    }
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    // Go leaves names to a SOCKS proxy in either case.
    let url = Url::parse(&url.replacen("socks5://", "socks5h://", 1)).ok();
    let url = url.filter(|url| url.has_host() && matches!(url.scheme(), "http" | "https" | "socks5h"));
    if url.is_none() {
        // Its text may hold a password.
        warn!("{name} is ignored: it holds no address of a proxy that silk can use");
    }
    url
}

impl fmt::Debug for Proxies {
    /// Addresses may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies").field("direct", &self.direct).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
