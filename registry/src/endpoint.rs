//! One host of a registry: sends requests, follows redirects, and turns answers into typed errors.
//!
//! Redirects are followed here and not by the HTTP library: `Authorization` and the headers of `hosts.toml` never go to
//! another origin, and the address a blob was redirected to is kept. A registry that is redirected to gets an
//! authorization of its own (`access`). Every request has a deadline for its head; bodies are the caller's to time.

use std::{
    collections::HashMap,
    fmt,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use reqwest::{
    Client, Method, Proxy, Response, StatusCode,
    header::{self, HeaderMap, HeaderName, HeaderValue},
    redirect,
};
use silk_model::{
    Digest, Use, VERSION,
    metrics::{Answered, METRICS},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tracing::{debug, info};
use url::Url;

use crate::{
    Asked, Config, Error, Transport,
    auth::{Actions, Auth, authority},
    credentials::Credentials,
    hosts::{self, Host},
    proxy::Proxies,
    tls,
};

mod access;
mod answer;
mod deletions;
mod wrong;

use answer::{answered, location};

/// Redirects followed for one request. Registries need one or two.
const MAX_REDIRECTS: usize = 5;
/// Bytes a second below which an upload counts as standing still.
const MIN_UPLOAD: usize = 128 << 10;
/// A host that could not be connected to, or did not answer, is tried after the others for this long.
const REST: Duration = Duration::from_secs(30);
/// A host without the referrers API is asked for it again after this long: so a registry that was upgraded is seen within the
/// time of a rollout, and one that stays old is asked six times an hour by a node, with a request of a few milliseconds.
const NO_REFERRERS: Duration = Duration::from_secs(600);

/// One connection more for so many: a reader's range must not queue behind those of others that take ten times as long.
const URGENT: usize = 4;

/// One host, with its connections, tokens and permits, shared by all pulls.
pub(crate) struct Endpoint {
    host: Host,
    client: Client,
    headers: HeaderMap,
    auth: Arc<Auth>,
    /// What registries that this one redirects to have granted us.
    elsewhere: Mutex<HashMap<String, Arc<Auth>>>,
    credentials: Arc<Credentials>,
    /// TLS was tried and is not spoken here.
    fell_back: AtomicBool,
    /// Set when a connection or an answer does not come, cleared when one does.
    rests_until: Mutex<Option<Instant>>,
    /// It did not answer a first contact in time.
    silent_until: Mutex<Option<Instant>>,
    /// It was asked for referrers, and did not know what that is: not asked again until then.
    lacks_referrers_until: Mutex<Option<Instant>>,
    /// Where it refused to delete something.
    pub(crate) deletions: deletions::Deletions,
    wrong: wrong::Wrong,
    head_timeout: Duration,
    stall_timeout: Duration,
    /// One for each blob body that is being received.
    permits: Arc<Semaphore>,
    /// More of them, for what somebody waits for.
    urgent: Arc<Semaphore>,
    /// Of both.
    most: usize,
}

/// A request, but for the host it goes to.
#[derive(Debug, Clone)]
pub(crate) struct Call<'a> {
    pub method: Method,
    /// `library/app`.
    pub repository: &'a str,
    /// The rest of the path: `manifests/latest`.
    pub path: String,
    /// The registry as the reference names it; mirrors are told (`?ns=`).
    pub registry: &'a str,
    pub actions: Actions,
    pub accept: Option<HeaderValue>,
    pub range: Option<Range<u64>>,
    pub body: Option<Body>,
    /// For messages.
    pub what: String,
}

/// What is sent along.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    pub media_type: HeaderValue,
    pub bytes: Bytes,
}

/// A success, and where it came from if that is not the registry.
pub(crate) struct Answer {
    pub response: Response,
    pub redirected_to: Option<Url>,
}

impl Endpoint {
    pub(crate) fn new(
        host: Host,
        config: &Config,
        credentials: Arc<Credentials>,
        roots: &tls::Roots,
        proxies: Arc<Proxies>,
    ) -> Result<Self, Error> {
        let connect_timeout = host.dial_timeout.unwrap_or(config.connect_timeout());
        let mut builder = Client::builder()
            .user_agent(format!("silk/{VERSION}"))
            .redirect(redirect::Policy::none())
            .connect_timeout(connect_timeout)
            .pool_max_idle_per_host(config.connections_per_registry as usize)
            .tls_backend_preconfigured(tls::client_config(&host, roots, config.http2)?);
        builder = if config.http2 { builder.http2_adaptive_window(true) } else { builder.http1_only() };
        builder = match proxies.are_none() {
            true => builder.no_proxy(),
            false => builder.proxy(Proxy::custom(move |url| proxies.of(url).cloned())),
        };
        let client = builder
            .build()
            .map_err(|error| Error::Client { host: host.authority.clone(), cause: Transport::new(error) })?;
        let mut headers = HeaderMap::new();
        for (name, value) in &host.headers {
            if let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
                value.set_sensitive(true);
                headers.append(name, value);
            }
        }
        let connections = config.connections_per_registry as usize;
        Ok(Self {
            auth: Arc::new(Auth::new(credentials.clone(), host.authority.clone())),
            elsewhere: Mutex::default(),
            credentials,
            client,
            headers,
            fell_back: AtomicBool::new(false),
            rests_until: Mutex::default(),
            silent_until: Mutex::default(),
            lacks_referrers_until: Mutex::default(),
            deletions: deletions::Deletions::default(),
            wrong: wrong::Wrong::default(),
            head_timeout: connect_timeout + config.response_timeout(),
            stall_timeout: config.stall_timeout(),
            permits: Arc::new(Semaphore::new(connections)),
            urgent: Arc::new(Semaphore::new(connections.div_ceil(URGENT))),
            most: most_bodies(config),
            host,
        })
    }

    /// Waits for the right to receive one blob's body.
    pub(crate) async fn permit(&self, urgent: bool) -> OwnedSemaphorePermit {
        let any = Arc::clone(&self.permits).acquire_owned();
        let permit = if urgent {
            tokio::select! {
                biased;
                permit = any => permit,
                permit = Arc::clone(&self.urgent).acquire_owned() => permit,
            }
        } else {
            any.await
        };
        permit.expect("the semaphores are never closed")
    }

    /// Bodies that are being received, and how many may be.
    pub(crate) fn bodies(&self) -> Use {
        let free = self.permits.available_permits() + self.urgent.available_permits();
        Use::of_places(self.most, free)
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn asked(&self, call: &Call<'_>) -> Asked {
        Asked { host: self.host.authority.clone(), what: call.what.clone() }
    }

    fn asked_at(&self, url: &Url, call: &Call<'_>) -> Asked {
        let host = if self.is_own_origin(url) { self.host.authority.clone() } else { authority(url) };
        Asked { host, what: call.what.clone() }
    }

    /// Whether it could not be connected to, or did not answer, a short while ago.
    pub(crate) fn rests(&self) -> bool {
        is_before(&self.rests_until)
    }

    /// Whether it waits for a credential helper that knew it the last time.
    pub(crate) fn awaits_credentials(&self) -> bool {
        self.credentials.awaits(&self.host.authority)
    }

    /// Whether it did not know the referrers API a while ago.
    pub(crate) fn lacks_referrers(&self) -> bool {
        is_before(&self.lacks_referrers_until)
    }

    pub(crate) fn set_lacks_referrers(&self) {
        *self.lacks_referrers_until.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Instant::now() + NO_REFERRERS);
    }

    /// When it was found last that it has sent wrong bytes of this blob.
    pub(crate) fn sent_wrong(&self, blob: &Digest) -> Option<Instant> {
        self.wrong.since(blob)
    }

    pub(crate) fn set_sent_wrong(&self, blob: Digest) {
        self.wrong.remember(blob);
    }

    /// One request finds out whether a host that has rested is back: it may wait for that as long as for any answer, and the
    /// others need not; until what is returned is dropped, with or without an answer.
    fn tries_rested(&self) -> Option<Scout<'_>> {
        let now = Instant::now();
        let mut rests_until = self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        let before = rests_until.filter(|until| *until <= now)?;
        *rests_until = Some(now + self.head_timeout);
        Some(Scout { endpoint: self, before })
    }

    /// Whether it said nothing when an image was asked for a moment ago: the next one asks the others first.
    pub(crate) fn was_silent(&self) -> bool {
        is_before(&self.silent_until)
    }

    pub(crate) fn set_silent(&self, silent: bool) {
        *self.silent_until.lock().unwrap_or_else(PoisonError::into_inner) = silent.then(|| Instant::now() + REST);
    }

    fn set_rests(&self, rests: bool) {
        let until = rests.then(|| Instant::now() + REST);
        *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Asks the host, answers its challenge, follows its redirects; a success or a typed error.
    pub(crate) async fn ask(&self, call: &Call<'_>) -> Result<Answer, Error> {
        let url = self.url(call)?;
        let response = self.fetch(&url, call).await?;
        self.follow(url, response, call).await
    }

    /// Fetches from where a blob was redirected to.
    pub(crate) async fn ask_at(&self, url: &Url, call: &Call<'_>) -> Result<Answer, Error> {
        let response = self.fetch(url, call).await?;
        let mut answer = self.follow(url.clone(), response, call).await?;
        answer.redirected_to.get_or_insert_with(|| url.clone());
        Ok(answer)
    }

    /// Whether the host answers and lets us in. A redirect to storage says yes, another registry is asked itself.
    pub(crate) async fn probe(&self, call: &Call<'_>) -> Result<(), Error> {
        let url = self.url(call)?;
        let response = self.fetch(&url, call).await?;
        if response.status().is_redirection() && location(&url, &response).is_some_and(|url| self.party(&url).is_none())
        {
            return Ok(());
        }
        self.follow(url, response, call).await.map(drop)
    }

    fn url(&self, call: &Call<'_>) -> Result<Url, Error> {
        let Host { tls, authority, path, .. } = &self.host;
        let mut text = format!("{}://{authority}{path}/{}/{}", scheme(*tls), call.repository, call.path);
        let is_own = authority == call.registry || call.registry == "docker.io" && authority == "registry-1.docker.io";
        if !is_own {
            text.push_str(if text.contains('?') { "&ns=" } else { "?ns=" });
            text.extend(url::form_urlencoded::byte_serialize(call.registry.as_bytes()));
        }
        Url::parse(&text).map_err(|_| Error::Redirect { asked: self.asked(call) })
    }

    /// Of this host, by a scheme that it may be spoken to with.
    fn is_own_origin(&self, url: &Url) -> bool {
        let is = |tls| {
            let own = Url::parse(&format!("{}://{}", scheme(tls), self.host.authority));
            own.is_ok_and(|own| own.origin() == url.origin())
        };
        is(self.host.tls) || self.host.may_fall_back && is(false)
    }

    /// With authorization if the URL is of this host, or reads from another registry, else bare.
    async fn fetch(&self, url: &Url, call: &Call<'_>) -> Result<Response, Error> {
        match self.party(url) {
            Some(party) if party.is_own || call.actions == Actions::Pull => party.authorized(url, call).await,
            _ => self.send(url, call, HeaderMap::new(), self.asked_at(url, call)).await,
        }
    }

    /// Follows redirects from `response`, which is the answer of `from`.
    async fn follow(&self, from: Url, mut response: Response, call: &Call<'_>) -> Result<Answer, Error> {
        let mut at = from;
        let mut redirected = false;
        for _ in 0..=MAX_REDIRECTS {
            let asked = self.asked_at(&at, call);
            if !response.status().is_redirection() {
                let response = self.judged(response, asked).await?;
                return Ok(Answer { response, redirected_to: redirected.then_some(at) });
            }
            at = location(&at, &response).ok_or(Error::Redirect { asked })?;
            redirected = true;
            // Reading the few bytes to their end lets the connection be used again.
            self.words(response).await;
            response = self.fetch(&at, call).await?;
        }
        Err(Error::Redirect { asked: self.asked(call) })
    }

    /// One exchange: the head of the answer, or why there is none. Falls back to plain HTTP where that is allowed.
    async fn send(&self, url: &Url, call: &Call<'_>, headers: HeaderMap, asked: Asked) -> Result<Response, Error> {
        let request = |url: Url| {
            let mut request = self.client.request(call.method.clone(), url).headers(headers.clone());
            if let Some(accept) = &call.accept {
                request = request.header(header::ACCEPT, accept);
            }
            if let Some(range) = &call.range {
                request = request.header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1));
            }
            if let Some(body) = &call.body {
                request = request.header(header::CONTENT_TYPE, &body.media_type).body(body.bytes.clone());
            }
            // A digest is of bytes as stored: no server shall recode them on the way. For those that do there is `coding`.
            request.header(header::ACCEPT_ENCODING, "identity")
        };
        let sending = call.body.as_ref().map_or(Duration::ZERO, |body| time_for(body.bytes.len()));
        debug!(method = %call.method, host = %asked.host, path = url.path(), range = ?call.range, "request");
        let plain = match self.host.may_fall_back && url.scheme() == "https" && self.is_own_origin(url) {
            true => plain(url),
            false => None,
        };
        let Some(plain) = plain else { return self.timed(request(url.clone()), sending, &asked).await };
        if !self.fell_back.load(Ordering::Relaxed) {
            let sent = self.timed(request(url.clone()), sending, &asked).await;
            if !self.speaks_no_tls(&sent) {
                return sent;
            }
            info!("registry {} does not speak TLS: going on with plain HTTP", asked.host);
            self.fell_back.store(true, Ordering::Relaxed);
        }
        let sent = self.timed(request(plain), sending, &asked).await;
        if sent.as_ref().map_or(true, |response| response.status() == StatusCode::BAD_REQUEST) {
            // Perhaps it does by now.
            self.fell_back.store(false, Ordering::Relaxed);
        }
        sent
    }

    /// Whether the other side answered a TLS greeting in another language, or nobody listens where TLS would be: with an
    /// explicit port, there is no other place to look.
    fn speaks_no_tls(&self, sent: &Result<Response, Error>) -> bool {
        let Err(Error::Unreachable { cause, .. }) = sent else { return false };
        let has_port = hosts::split_port(&self.host.authority).1.is_some();
        cause.is_not_tls() || cause.is_connect() && !cause.is_tls() && !has_port
    }

    /// The head of the answer, in time; `sending` is what its body may take more.
    async fn timed(
        &self,
        request: reqwest::RequestBuilder,
        sending: Duration,
        asked: &Asked,
    ) -> Result<Response, Error> {
        let spare = request.try_clone();
        let sent = self.exchange(request, sending, asked).await;
        let Err(Error::Unreachable { cause, .. }) = &sent else { return sent };
        if cause.is_connect() {
            return sent;
        }
        // Servers close connections that they kept, also at the moment when one is used again: no fault, and no attempt.
        match spare.and_then(|spare| spare.build().ok()).filter(|spare| spare.method().is_safe()) {
            Some(spare) => {
                let spare = reqwest::RequestBuilder::from_parts(self.client.clone(), spare);
                self.exchange(spare, sending, asked).await
            }
            None => sent,
        }
    }

    async fn exchange(
        &self,
        request: reqwest::RequestBuilder,
        sending: Duration,
        asked: &Asked,
    ) -> Result<Response, Error> {
        let after = self.head_timeout + sending;
        let is_own = asked.host == self.host.authority;
        let scout = is_own.then(|| self.tries_rested());
        let mut counted = Counted(Answered::GivenUp);
        let sent = match timeout(after, request.send()).await {
            Err(_) => Err(Error::NoAnswer { asked: asked.clone(), after }),
            Ok(Err(error)) => Err(Error::Unreachable { asked: asked.clone(), cause: Transport::new(error) }),
            Ok(Ok(response)) => Ok(response),
        };
        drop(scout);
        counted.0 = answered(&sent);
        if is_own {
            // A connection that broke is none of these: the next one may hold.
            self.set_rests(match &sent {
                Err(Error::Unreachable { cause, .. }) => cause.is_connect(),
                Err(error) => matches!(error, Error::NoAnswer { .. }),
                Ok(_) => false,
            });
        }
        sent
    }
}

/// Bodies that may be received from one host at once, those that somebody waits for included.
pub(crate) fn most_bodies(config: &Config) -> usize {
    let connections = config.connections_per_registry as usize;
    connections + connections.div_ceil(URGENT)
}

/// How a request was answered, for the metrics: also one that nobody waits for any more.
struct Counted(Answered);

impl Drop for Counted {
    fn drop(&mut self) {
        METRICS.registry_requests.of(self.0).one();
    }
}

/// A request to a host that has rested.
struct Scout<'a> {
    endpoint: &'a Endpoint,
    before: Instant,
}

/// Also when the request was given up: whoever comes next finds out.
impl Drop for Scout<'_> {
    fn drop(&mut self) {
        *self.endpoint.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.before);
    }
}

fn is_before(until: &Mutex<Option<Instant>>) -> bool {
    let until = until.lock().unwrap_or_else(PoisonError::into_inner);
    until.is_some_and(|until| Instant::now() < until)
}

fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

/// What sending so many bytes may take: at [`MIN_UPLOAD`].
fn time_for(bytes: usize) -> Duration {
    Duration::from_secs((bytes / MIN_UPLOAD) as u64)
}

/// The same without TLS.
fn plain(url: &Url) -> Option<Url> {
    let mut plain = url.clone();
    plain.set_scheme("http").ok().map(|()| plain)
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.host.fmt(f)
    }
}
