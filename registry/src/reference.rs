//! Image references, normalised the way docker and containerd do it. Pure text, no I/O.
//!
//! Grammar: the package documentation of github.com/distribution/reference. `ubuntu` is `docker.io/library/ubuntu:latest`;
//! the first component is a host only if it holds a dot or a colon, has an upper-case letter, or is `localhost`.

use std::{fmt, str::FromStr};

use silk_model::{Class, Digest, DigestError};

/// The longest repository name, host included, that registries accept.
const MAX_NAME: usize = 255;
/// The longest tag that registries accept.
const MAX_TAG: usize = 128;

/// Where an image is: registry, repository, and a tag, a digest or both.
///
/// `Display` gives the full form: `docker.io/library/busybox:latest`. Without tag and digest the tag is `latest`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// What to ask a repository for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    /// The manifest that the tag names now.
    Tag(String),
    /// Exactly this manifest.
    Digest(Digest),
}

/// Text that is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image reference: {fault}")]
pub struct ReferenceError {
    text: String,
    fault: Fault,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("it is empty")]
    Empty,
    #[error("64 hex digits name an image ID, not a repository")]
    ImageId,
    #[error("the repository name has an upper-case letter")]
    UpperCase,
    #[error("the registry host is malformed")]
    Host,
    #[error("the repository name is malformed")]
    Path,
    #[error("the name is longer than {MAX_NAME} characters")]
    TooLong,
    #[error("the tag is malformed")]
    Tag,
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl ReferenceError {
    /// What kind of trouble this is.
    pub fn class(&self) -> Class {
        match self.fault {
            Fault::Digest(_) => Class::Unsupported,
            _ => Class::Invalid,
        }
    }
}

// === impl Reference ===

impl Reference {
    /// The registry's name as the reference gives it: `docker.io`, `localhost:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository inside the registry: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if the reference has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference has one.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What to ask the repository for: the digest if there is one, else the tag.
    pub fn selector(&self) -> Selector {
        match (self.digest, &self.tag) {
            (Some(digest), _) => Selector::Digest(digest),
            (None, Some(tag)) => Selector::Tag(tag.clone()),
            (None, None) => Selector::Tag("latest".into()),
        }
    }

    /// As docker, CRI and nerdctl name the image in containerd: a digest stands without the tag, which it overrules
    /// (`ParseDockerRef` of github.com/distribution/reference).
    #[must_use]
    pub fn canonical(self) -> Self {
        Self { tag: self.tag.filter(|_| self.digest.is_none()), ..self }
    }

    /// The same repository, at `digest`.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|fault| ReferenceError { text: text.chars().take(2 * MAX_NAME).collect(), fault })
    }
}

fn parse(text: &str) -> Result<Reference, Fault> {
    if text.is_empty() {
        return Err(Fault::Empty);
    }
    if text.len() == 64 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(Fault::ImageId);
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
        None => (text, None),
    };
    let (host, rest) = split_host(rest);
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    let path = match host {
        "docker.io" if !path.contains('/') => format!("library/{path}"),
        _ => path.to_owned(),
    };
    if path.bytes().any(|c| c.is_ascii_uppercase()) {
        return Err(Fault::UpperCase);
    }
    if !is_host(host) {
        return Err(Fault::Host);
    }
    if !path.split('/').all(is_component) {
        return Err(Fault::Path);
    }
    if host.len() + 1 + path.len() > MAX_NAME {
        return Err(Fault::TooLong);
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(Fault::Tag);
    }
    let tag = tag.or(digest.is_none().then_some("latest")).map(str::to_owned);
    Ok(Reference { host: host.to_owned(), path, tag, digest })
}

/// The registry and what follows it; docker's rule for telling a host from a first path component.
fn split_host(text: &str) -> (&str, &str) {
    let (host, rest) = match text.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => ("docker.io", text),
    };
    (if host == "index.docker.io" { "docker.io" } else { host }, rest)
}

fn looks_like_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|c| c.is_ascii_uppercase())
}

/// `name(.name)*` or `[ipv6]`, with an optional port.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.is_empty() || !address.bytes().all(|c| c.is_ascii_hexdigit() || c == b':') {
                return false;
            }
            match rest.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if rest.is_empty() => (None, None),
                None => return false,
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    name.is_none_or(|name| name.split('.').all(is_label)) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Lower-case letters and digits, joined by one dot, one or two underscores, or any number of dashes.
fn is_component(component: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separator = |run: &str| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|c| c == b'-');
    component.starts_with(alphanumeric)
        && component.ends_with(alphanumeric)
        && component.split(alphanumeric).all(separator)
}

fn is_tag(tag: &str) -> bool {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|c| word(c) || c == b'.' || c == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_as_docker_does() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, full) in [
            ("ubuntu", "docker.io/library/ubuntu:latest"),
            ("ubuntu:22.04", "docker.io/library/ubuntu:22.04"),
            ("user/app", "docker.io/user/app:latest"),
            ("index.docker.io/app", "docker.io/library/app:latest"),
            ("docker.io/app", "docker.io/library/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/x/y:tag", "localhost:5000/x/y:tag"),
            ("Registry/app", "Registry/app:latest"),
            ("127.0.0.1:5000/a__b/c--d.e_f:T_-.1", "127.0.0.1:5000/a__b/c--d.e_f:T_-.1"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("[2001:db8::1]/app:1", "[2001:db8::1]/app:1"),
            (&format!("app@{digest}"), &format!("docker.io/library/app@{digest}")),
            (&format!("quay.io/a/b:c@{digest}"), &format!("quay.io/a/b:c@{digest}")),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(full.parse::<Reference>().unwrap(), reference, "the full form is a fixed point");
        }
    }

    #[test]
    fn rejects_what_docker_rejects() {
        let long = "a/".repeat(130) + "a";
        for text in [
            "",
            "/app",
            "app/",
            "App",
            "a//b",
            "a:",
            "a:b:c",
            "a@",
            "a@sha256:12",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a_.b",
            "host:port/app",
            "h.:5000/app",
            "[::1/app",
            "[]:1/app",
            "[::1]x/app",
            "a b",
            "a:é",
            "docker.io/",
            &long,
            &"0".repeat(64),
            &format!("a:{}", "t".repeat(129)),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_digest_goes_before_a_tag() {
        let digest = Digest::of(b"x");
        let reference: Reference = "a:1".parse().unwrap();
        assert_eq!(reference.selector(), Selector::Tag("1".into()));
        assert_eq!(reference.at(digest).selector(), Selector::Digest(digest));
        assert_eq!(reference.at(digest).canonical().to_string(), format!("docker.io/library/a@{digest}"));
        assert_eq!(reference.clone().canonical(), reference);
        assert_eq!((reference.host(), reference.path()), ("docker.io", "library/a"));
        assert_eq!(
            format!("a@sha512:{}", "0".repeat(128)).parse::<Reference>().unwrap_err().class(),
            Class::Unsupported
        );
    }
}
