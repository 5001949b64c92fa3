//! Registries and repositories: which hosts to ask, and the small questions: manifests and probes.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use reqwest::{
    Method, StatusCode,
    header::{self, HeaderMap, HeaderValue},
};
use silk_model::{Digest, Use, metrics::METRICS};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use crate::{
    Blob, Config, Error, Reference, Selector,
    attempts::{Attempts, Policy},
    auth::Actions,
    credentials::Credentials,
    endpoint::{self, Answer, Call, Endpoint},
    hosts::{self, Capabilities, Host},
    proxy::Proxies,
    tls,
};

/// The largest manifest that is read. containerd takes 4 MiB; indexes with long annotations have been seen near that.
const MAX_MANIFEST: usize = 8 << 20;
/// What to accept when any manifest will do. By name: distribution 2.8 answers 404 for an OCI manifest to who only says
/// `*/*`.
pub const MANIFEST_TYPES: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "*/*",
];
/// How often a registry is asked whether it lets silk in, and the wait between: one of several servers behind one name that fails, or
/// one that is being replaced, must not cost a start that needs no more than that answer. Chosen: the waits are a fifth of the
/// default deadline.
const CHECKS: u32 = 3;
const CHECK_PAUSE: Duration = Duration::from_millis(100);
/// Hosts whose connections are kept before those that no pull uses are dropped.
const MAX_ENDPOINTS: usize = 256;

/// All registries, with one pool of connections, tokens and permits for the process.
#[derive(Debug, Clone)]
pub struct Registry {
    config: Arc<Config>,
    credentials: Arc<Credentials>,
    roots: Arc<tls::Roots>,
    proxies: Arc<Proxies>,
    endpoints: Arc<Mutex<HashMap<Host, Arc<Endpoint>>>>,
}

/// One repository on all its hosts. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    /// Where its hosts come from.
    all: Registry,
    /// The registry as the reference names it.
    pub registry: String,
    /// `library/app`.
    pub path: String,
    /// In the order of hosts.toml.
    pub endpoints: Vec<Arc<Endpoint>>,
    pub policy: Policy,
    pub stall_timeout: Duration,
}

/// A manifest or index as the registry sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The `Content-Type`, without parameters.
    pub media_type: String,
    /// The digest of `bytes`, proved.
    pub digest: Digest,
    /// The document.
    pub bytes: Bytes,
}

/// What [`Repository::check`] asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// A manifest or an index.
    Manifest(Digest),
    /// A layer or a config.
    Blob(Digest),
}

// === impl Registry ===

impl Registry {
    /// Reads the environment's proxies, no file, and opens no connection yet.
    ///
    /// # Errors
    /// A setting is zero.
    pub fn new(config: Config) -> Result<Self, Error> {
        Self::with_proxies(config, Proxies::from_env())
    }

    pub(crate) fn with_proxies(config: Config, proxies: Proxies) -> Result<Self, Error> {
        config.validate()?;
        tls::seed();
        let credentials = Credentials::new(config.docker_config_path(), config.credential_helper_timeout());
        Ok(Self {
            config: Arc::new(config),
            credentials: Arc::new(credentials),
            roots: Arc::default(),
            proxies: Arc::new(proxies),
            endpoints: Arc::default(),
        })
    }

    /// Blob bodies that are being received from the host that sends most of them, and how many may be from each.
    pub fn connections(&self) -> Use {
        let known = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let busiest = known.values().map(|endpoint| endpoint.bodies().in_use).max();
        Use { limit: endpoint::most_bodies(&self.config) as u64, in_use: busiest.unwrap_or(0) }
    }

    /// The repository of `reference`, with its hosts as `hosts.toml` gives them now.
    ///
    /// # Errors
    /// A certificate cannot be used.
    pub async fn repository(&self, reference: &Reference) -> Result<Repository, Error> {
        self.named(reference.host().to_owned(), reference.path().to_owned()).await
    }

    async fn named(&self, registry: String, path: String) -> Result<Repository, Error> {
        let endpoints = tokio::task::spawn_blocking({
            let (config, registry) = (self.config.clone(), registry.clone());
            let (credentials, roots, known) = (self.credentials.clone(), self.roots.clone(), self.endpoints.clone());
            let proxies = self.proxies.clone();
            move || {
                let hosts = hosts::load(&config, &registry)?;
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                if known.len() >= MAX_ENDPOINTS {
                    known.retain(|_, endpoint| Arc::strong_count(endpoint) > 1);
                }
                let mut endpoints = Vec::with_capacity(hosts.len());
                for host in hosts {
                    if let Some(endpoint) = known.get(&host) {
                        endpoints.push(endpoint.clone());
                        continue;
                    }
                    let endpoint =
                        Arc::new(Endpoint::new(host.clone(), &config, credentials.clone(), &roots, proxies.clone())?);
                    known.insert(host, endpoint.clone());
                    endpoints.push(endpoint);
                }
                Ok::<_, Error>(endpoints)
            }
        });
        let endpoints = endpoints.await.expect("reading hosts does not panic, nor is it cancelled")?;
        let (policy, stall_timeout) = (Policy::new(&self.config), self.config.stall_timeout());
        let inner = Inner { all: self.clone(), registry, path, endpoints, policy, stall_timeout };
        Ok(Repository { inner: Arc::new(inner) })
    }
}

// === impl Repository ===

impl Repository {
    /// The registry, as references name it.
    pub fn registry(&self) -> &str {
        &self.inner.registry
    }

    /// The same repository, with its hosts as `hosts.toml` gives them by now; `None` where they are the same.
    ///
    /// # Errors
    /// A certificate cannot be used.
    pub async fn renewed(&self) -> Result<Option<Self>, Error> {
        let Inner { all, registry, path, endpoints, .. } = &*self.inner;
        let now = all.named(registry.clone(), path.clone()).await?;
        let is_same = now.inner.endpoints.iter().map(Arc::as_ptr).eq(endpoints.iter().map(Arc::as_ptr));
        Ok(Some(now).filter(|_| !is_same))
    }

    /// A manifest or index, whole (at most 8 MiB) and proved against its digest. [`MANIFEST_TYPES`] accepts any.
    ///
    /// # Errors
    /// After retries and on all hosts.
    pub async fn manifest(&self, selector: &Selector, media_types: &[&str]) -> Result<Manifest, Error> {
        let needs = match selector {
            Selector::Tag(_) => Needs::Resolve,
            Selector::Digest(_) => Needs::Pull,
        };
        self.manifest_at(selector, media_types, needs).await
    }

    /// The same from hosts of which that may be asked.
    pub(crate) async fn manifest_at(
        &self,
        selector: &Selector,
        media_types: &[&str],
        needs: Needs,
    ) -> Result<Manifest, Error> {
        let inner = &*self.inner;
        let what = format!("manifest {selector} of {}", inner.path);
        let call = inner.call(Method::GET, format!("manifests/{selector}"), what);
        let call = Call { accept: accept(media_types), ..call };
        let mut attempts = inner.attempts(needs)?;
        loop {
            match manifest(&inner.endpoints[attempts.host()], &call, selector).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => again(&mut attempts, error).await?,
            }
        }
    }

    /// Whether a host answers for `object` and lets us in, within `deadline` in all. If the registry itself has trouble of its own, or cuts the
    /// connection, all are asked again, three times in all. A host that waits for a credential helper at that time does
    /// if the helper had a credential for it the last time.
    ///
    /// # Errors
    /// No host does; the error is the last host's, which is the registry itself.
    pub async fn check(&self, object: Object, deadline: Duration) -> Result<(), Error> {
        let inner = &*self.inner;
        let (path, what) = match object {
            Object::Manifest(digest) => (format!("manifests/{digest}"), format!("manifest {digest} of {}", inner.path)),
            Object::Blob(digest) => (format!("blobs/{digest}"), inner.blob_name(&digest)),
        };
        let call = inner.call(Method::HEAD, path, what);
        let call = Call { accept: accept(MANIFEST_TYPES), ..call };
        let end = Instant::now() + deadline;
        for _ in 1..CHECKS {
            match inner.probe(&call, end).await {
                // With the last moments nobody could answer, and would count as silent.
                Err(error) if error.is_blip() && Instant::now() + CHECK_PAUSE + deadline / 4 < end => {
                    sleep(CHECK_PAUSE).await;
                }
                answer => return answer,
            }
        }
        inner.probe(&call, end).await
    }

    /// A handle on a blob of `size` bytes. Nothing is asked until it is read.
    pub fn blob(&self, digest: Digest, size: u64) -> Blob {
        Blob::new(self.inner.clone(), digest, size)
    }
}

/// Waits for the next attempt, or gives the error that ends the request.
pub(crate) async fn again(attempts: &mut Attempts, error: Error) -> Result<(), Error> {
    let reason = error.to_string();
    let wait = attempts.failed(error, Instant::now())?;
    METRICS.registry_retries.one();
    warn!("{reason}; next attempt in {:.1} s", wait.as_secs_f64());
    sleep(wait).await;
    Ok(())
}

/// HEAD; GET for registries that do not have it.
async fn probe(endpoint: &Endpoint, call: &Call<'_>) -> Result<(), Error> {
    match endpoint.probe(call).await {
        Err(Error::Status { status: StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED, .. }) => {
            endpoint.probe(&Call { method: Method::GET, ..call.clone() }).await
        }
        probed => probed,
    }
}

async fn manifest(endpoint: &Endpoint, call: &Call<'_>, selector: &Selector) -> Result<Manifest, Error> {
    let Answer { response, .. } = endpoint.ask(call).await?;
    let asked = || endpoint.asked(call);
    let headers = response.headers().clone();
    let body = endpoint.body(response, MAX_MANIFEST).await.map_err(|fault| fault.of(asked()))?;
    let bytes = Bytes::from(body.ok_or_else(|| Error::TooLarge { asked: asked(), limit: MAX_MANIFEST })?);
    let digest = Digest::of(&bytes);
    let promised = match selector {
        Selector::Digest(digest) => Some(*digest),
        // Another algorithm's digest proves nothing here, but is no fault either.
        Selector::Tag(_) => text(&headers, "docker-content-digest").and_then(|text| text.parse().ok()),
    };
    if promised.is_some_and(|promised| promised != digest) {
        return Err(Error::WrongDigest { asked: asked(), actual: digest });
    }
    let media_type = text(&headers, header::CONTENT_TYPE.as_str()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
    Ok(Manifest { media_type, digest, bytes })
}

pub(crate) fn accept(media_types: &[&str]) -> Option<HeaderValue> {
    HeaderValue::from_str(&media_types.join(", ")).ok()
}

pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// What a host must be allowed to do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Needs {
    Pull,
    /// Turn a tag into a digest: a matter of trust.
    Resolve,
    Push,
}

impl Needs {
    pub(crate) fn met_by(self, capabilities: Capabilities) -> bool {
        match self {
            Self::Pull => capabilities.pull,
            Self::Resolve => capabilities.pull && capabilities.resolve,
            Self::Push => capabilities.push,
        }
    }
}

// === impl Inner ===

impl Inner {
    pub(crate) fn call(&self, method: Method, path: String, what: String) -> Call<'_> {
        let (repository, registry, actions) = (&self.path, &self.registry, Actions::Pull);
        Call { method, repository, path, registry, actions, accept: None, range: None, body: None, what }
    }

    pub(crate) fn blob_name(&self, digest: &Digest) -> String {
        format!("blob {digest} of {}", self.path)
    }

    /// Indices of the hosts that may be asked: `first` first, those that could not be connected to lately last.
    pub(crate) fn order(&self, needs: Needs, first: Option<usize>) -> Result<Vec<usize>, Error> {
        let all = 0..self.endpoints.len();
        let mut order: Vec<usize> = all.filter(|&i| needs.met_by(self.endpoints[i].host().capabilities)).collect();
        order.sort_by_key(|&i| (self.endpoints[i].rests(), Some(i) != first));
        match order.is_empty() {
            false => Ok(order),
            true => {
                let needs = match needs {
                    Needs::Pull => "pull",
                    Needs::Resolve => "pull and resolve",
                    Needs::Push => "push",
                };
                Err(Error::NoHost { registry: self.registry.clone(), needs })
            }
        }
    }

    /// Asks one host after the other until one answers as it should.
    async fn probe(&self, call: &Call<'_>, end: Instant) -> Result<(), Error> {
        let mut order = self.order(Needs::Pull, None)?;
        order.sort_by_key(|host| self.endpoints[*host].was_silent());
        let mut last = None;
        for (tried, &host) in order.iter().enumerate() {
            // An even share of what is left: a mirror that is silent must not use up the registry's time.
            let left = end.saturating_duration_since(Instant::now());
            let share = left / (order.len() - tried) as u32;
            let endpoint = &self.endpoints[host];
            let error = match timeout(share, probe(endpoint, call)).await {
                Ok(Ok(())) => {
                    endpoint.set_silent(false);
                    return Ok(());
                }
                Ok(Err(error)) => error,
                // It has answered, and wants what a slow helper gave for it before.
                Err(_) if endpoint.awaits_credentials() => return Ok(()),
                Err(_) => {
                    // The next image's time is not to be used up as well: one that is gone may swallow all that it is sent.
                    // Layers may come from it all the same: one that is only slow is not told from it.
                    endpoint.set_silent(true);
                    Error::NoAnswer { asked: endpoint.asked(call), after: share }
                }
            };
            if last.as_ref().is_none_or(|(of, _)| *of < host) {
                last = Some((host, error));
            }
        }
        Err(last.expect("`order` gives at least one host").1)
    }

    /// Indices of the hosts that may be asked for a blob: `first` first, and after all others those that sent wrong bytes of it,
    /// by when that was found.
    pub(crate) fn blob_order(&self, digest: &Digest, first: usize) -> Result<Vec<usize>, Error> {
        let mut order = self.order(Needs::Pull, Some(first))?;
        order.sort_by_key(|&index| self.endpoints[index].sent_wrong(digest));
        Ok(order)
    }
}

impl fmt::Display for Repository {
    /// `docker.io/library/app`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.inner.registry, self.inner.path)
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { registry, path, endpoints, .. } = &*self.inner;
        write!(f, "Repository({registry}/{path} on {endpoints:?})")
    }
}

#[cfg(test)]
mod tests {
    use silk_model::Class;
    use silk_testkit::{ALWAYS, Access, Fake, Fault, ImageSpec};

    use super::*;
    use crate::credentials::tests::{gated, leave_gate_open, shut_gate, with_helper};

    /// With a helper that is this script.
    async fn world(script: impl Fn(&tempfile::TempDir) -> String) -> (Fake, Repository, tempfile::TempDir) {
        let fake = Fake::start().await;
        let pushed = fake.push_image("app:latest", &ImageSpec::new());
        let dir = tempfile::tempdir().unwrap();
        let plain_http = vec![fake.host()];
        let config = Config { hosts_dirs: Vec::new(), plain_http, retry_delay_ms: 1, ..Config::default() };
        let credentials = Arc::new(with_helper(&dir, &script(&dir), r#"{"credsStore": "h"}"#));
        let registry = Registry { credentials, ..Registry::new(config).unwrap() };
        let repository = registry.repository(&pushed.reference.parse().unwrap()).await.unwrap();
        (fake, repository, dir)
    }

    async fn latest(repository: &Repository) -> Result<Manifest, Error> {
        repository.manifest(&Selector::Tag("latest".into()), MANIFEST_TYPES).await
    }

    #[tokio::test]
    async fn a_helper_that_fails_once_costs_an_attempt() {
        for access in [Access::basic("u", "p"), Access::token("u", "p")] {
            let script = |dir: &tempfile::TempDir| {
                let ran = dir.path().join("ran");
                let answer = r#"echo '{"Username":"u","Secret":"p"}'"#;
                format!("[ -e {ran} ] || {{ : > {ran}; exit 3; }}; {answer}", ran = ran.display())
            };
            let (fake, repository, _dir) = world(script).await;
            fake.require(access);
            latest(&repository).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_helper_that_fails_is_named_where_credentials_are_needed() {
        let (fake, repository, _dir) = world(|_| "exit 3".to_owned()).await;
        fake.require(Access::anonymous_token());
        latest(&repository).await.expect("nobody asks who silk is");
        for access in [Access::basic("u", "p"), Access::token("u", "p")] {
            fake.require(access);
            fake.expire_tokens();
            let error = latest(&repository).await.unwrap_err();
            assert_eq!(error.class(), Class::Transient, "{error}");
            assert!(error.to_string().contains("docker-credential-h failed (exit status: 3)"), "{error}");
        }
        // What is granted to nobody in particular, and is not enough.
        fake.require(Access::anonymous_token());
        latest(&repository).await.unwrap();
        fake.fault("manifests", Fault::error(403, "DENIED", "who are you"), ALWAYS);
        let error = latest(&repository).await.unwrap_err();
        assert_eq!(error.class(), Class::Transient, "{error}");

        let (fake, repository, _dir) = world(|_| "echo nonsense".to_owned()).await;
        fake.require(Access::basic("u", "p"));
        assert_eq!(latest(&repository).await.unwrap_err().class(), Class::Denied, "the next answer will be as bad");
    }

    #[tokio::test]
    async fn a_helper_that_is_slower_than_the_first_contact_works_from_its_second_run() {
        let fake = Fake::start().await;
        let pushed = fake.push_image("app:latest", &ImageSpec::new());
        fake.require(Access::basic("u", "p"));
        let dir = tempfile::tempdir().unwrap();
        let config = Config { hosts_dirs: Vec::new(), plain_http: vec![fake.host()], ..Config::default() };
        let credentials = Arc::new(with_helper(&dir, &gated(&dir), r#"{"credsStore": "h"}"#));
        let registry = Registry { credentials: credentials.clone(), ..Registry::new(config).unwrap() };
        let repository = registry.repository(&pushed.reference.parse().unwrap()).await.unwrap();
        let manifest = Object::Manifest(pushed.digest);
        let error = repository.check(manifest, Duration::from_millis(200)).await.unwrap_err();
        assert!(matches!(error, Error::NoAnswer { .. }), "nobody knows whether it has a credential: {error}");
        leave_gate_open(&dir);
        credentials.lookup(&fake.host()).await;
        shut_gate(&dir);
        repository.check(manifest, Duration::from_secs(2)).await.unwrap();
        leave_gate_open(&dir);
        let pulled = repository.manifest(&Selector::Tag("latest".into()), MANIFEST_TYPES).await;
        assert_eq!(pulled.unwrap().digest, pushed.digest);
    }
}
