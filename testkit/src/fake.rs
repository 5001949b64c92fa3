//! A registry on a loopback port: its contents, its moods and its memory.
//!
//! All state is behind one lock that is never held across an await; a task serves each connection. Dropping the [`Fake`]
//! closes all its connections.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use regex::Regex;
use silk_model::Digest;
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use crate::{Certificates, ImageSpec, Pushed, within_patience};

mod access;
mod body;
mod serve;
mod upload;

pub use access::Access;

/// A fault that does not wear off.
pub const ALWAYS: usize = usize::MAX;

/// A registry that does as it is told.
pub struct Fake {
    tls: Option<TlsAcceptor>,
    state: Arc<State>,
    server: Mutex<Option<JoinHandle<()>>>,
}

/// What goes wrong with one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// This status, with these headers and this body.
    Status {
        /// The status code.
        code: u16,
        /// Names and values.
        headers: Vec<(String, String)>,
        /// Any text.
        body: String,
    },
    /// 307 to this address.
    Redirect(String),
    /// The connection is closed instead of an answer.
    Close,
    /// The connection stays open, the answer never comes.
    NoAnswer,
    /// The body's length is announced, the connection closes after this many bytes of it.
    CutAfter(u64),
    /// The body stops after this many bytes, the connection stays open.
    StallAfter(u64),
    /// The body ends properly after this many bytes; its length was not announced.
    EndAfter(u64),
    /// Only this many bytes exist, and the answer says so.
    Truncate(u64),
    /// This many bytes more than due follow; the length was not announced.
    Extra(u64),
    /// The byte at this offset of the blob or manifest is another.
    Flip(u64),
    /// The `Range` header is ignored: 200 and everything.
    NoRanges,
    /// Blobs and manifests are compressed on the way: `gzip` or `zstd`. Ranges are of what comes out, or ignored.
    Compressed {
        /// The `Content-Encoding`.
        coding: &'static str,
        /// Whether ranges are known.
        ranges: bool,
    },
    /// The `Content-Encoding` is said to be this, and is not.
    Coding(&'static str),
    /// The range is served, but called this.
    ContentRange(String),
    /// At most this many bytes of a range are served, and called so.
    ShortRange(u64),
    /// The body comes at this many bytes a second.
    Slow(u64),
    /// The body begins once the registry is healed.
    Hold,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`.
    pub method: String,
    /// With the query.
    pub path: String,
    /// Lower-case names.
    pub headers: HashMap<String, String>,
    /// `HTTP/1.1`, `HTTP/2.0`.
    pub version: String,
    /// The status answered; 0 if there was no answer.
    pub status: u16,
    /// Bytes of body handed to the socket so far.
    pub sent: u64,
}

struct Recorded {
    request: Request,
    sent: Arc<AtomicU64>,
}

/// A connection's view of the registry.
#[derive(Default)]
struct State {
    inner: Mutex<Inner>,
    /// At each request, at each body that begins or stalls, and when the registry is healed.
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    host: String,
    scheme: &'static str,
    /// By repository and tag or digest: media type and bytes.
    manifests: HashMap<(String, String), (String, Bytes)>,
    blobs: HashMap<String, Bytes>,
    faults: Vec<Planned>,
    requests: Vec<Recorded>,
    access: Access,
    tokens: access::Tokens,
    storage: Option<Arc<State>>,
    /// For storage: whose blobs these are, and the signature that is valid now.
    stored_for: Option<Arc<State>>,
    signature: u64,
    stalled: usize,
    /// How often.
    healed: u64,
    bodies: Bodies,
    send_digest_header: bool,
    has_referrers: bool,
    /// The most entries of one page of them.
    referrers_page: Option<usize>,
    allows_deletes: bool,
    uploads: usize,
}

/// Bodies of blobs that are on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bodies {
    /// All of them.
    pub all: usize,
    /// Those that answer a request for a range.
    pub ranges: usize,
    most: [usize; 2],
}

impl Bodies {
    fn begins(&mut self, is_range: bool) {
        self.all += 1;
        self.ranges += usize::from(is_range);
        self.most = [self.most[0].max(self.all), self.most[1].max(self.ranges)];
    }

    fn ends(&mut self, is_range: bool) {
        self.all -= 1;
        self.ranges -= usize::from(is_range);
    }
}

struct Planned {
    requests: Regex,
    fault: Fault,
    left: usize,
}

// === impl Fake ===

impl Fake {
    /// A plain HTTP registry that lets everybody in.
    pub async fn start() -> Self {
        Self::serve(None).await
    }

    /// The same with TLS (HTTP/1.1 and 2); `wants_client`: for clients with a certificate of the same CA only.
    pub async fn start_tls(certificates: &Certificates, wants_client: bool) -> Self {
        let config = certificates.server_config(wants_client);
        Self::serve(Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn serve(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::new(State::default());
        {
            let mut inner = state.lock();
            inner.host = address.to_string();
            inner.scheme = if tls.is_some() { "https" } else { "http" };
            inner.send_digest_header = true;
        }
        let server = tokio::spawn(serve::accept(listener, tls.clone(), state.clone()));
        Self { tls, state, server: Mutex::new(Some(server)) }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.state.lock().host.clone()
    }

    /// `http://127.0.0.1:PORT` or `https://...`.
    pub fn url(&self) -> String {
        let inner = self.state.lock();
        format!("{}://{}", inner.scheme, inner.host)
    }

    /// Stops listening and closes all connections.
    pub async fn stop(&self) {
        let server = self.server.lock().expect("no test panics with it").take();
        if let Some(server) = server {
            server.abort();
            // Until the task is gone, the port is still open.
            let _ = server.await;
        }
    }

    /// Listens again, on the same port.
    pub async fn resume(&self) {
        let listener = TcpListener::bind(self.host()).await.expect("the port was ours");
        let server = tokio::spawn(serve::accept(listener, self.tls.clone(), self.state.clone()));
        *self.server.lock().expect("no test panics with it") = Some(server);
    }

    /// Each listens where the other did.
    pub async fn swap_ports_with(&self, other: &Self) {
        self.stop().await;
        other.stop().await;
        let (mine, theirs) = (self.host(), other.host());
        self.state.lock().host = theirs;
        other.state.lock().host = mine;
        self.resume().await;
        other.resume().await;
    }

    // --- contents ---

    /// Stores an image under `name` (`library/app:latest`).
    pub fn push_image(&self, name: &str, image: &ImageSpec) -> Pushed {
        let (repository, tag) = name.rsplit_once(':').expect("a name has a tag");
        let built = image.build(format!("{}/{name}", self.host()));
        let mut inner = self.state.lock();
        for (digest, bytes) in built.blobs {
            inner.blobs.insert(digest.to_string(), bytes);
        }
        for (media_type, bytes) in built.manifests {
            let manifest = (media_type, bytes.clone());
            inner.manifests.insert((repository.into(), Digest::of(&bytes).to_string()), manifest.clone());
            inner.manifests.insert((repository.into(), tag.into()), manifest);
        }
        built.pushed
    }

    /// Stores a blob, in every repository.
    pub fn put_blob(&self, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        self.state.lock().blobs.insert(digest.to_string(), bytes);
        digest
    }

    /// Stores any text as a manifest, under `name` (`library/app:latest`) and its digest.
    pub fn put_manifest(&self, name: &str, media_type: &str, bytes: impl Into<Bytes>) -> Digest {
        let (repository, tag) = name.rsplit_once(':').expect("a name has a tag");
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        let mut inner = self.state.lock();
        for key in [tag.to_owned(), digest.to_string()] {
            inner.manifests.insert((repository.into(), key), (media_type.into(), bytes.clone()));
        }
        digest
    }

    /// Everything that `other` has at this moment.
    pub fn mirror(&self, other: &Self) {
        let (manifests, blobs) = {
            let other = other.state.lock();
            (other.manifests.clone(), other.blobs.clone())
        };
        let mut inner = self.state.lock();
        inner.manifests.extend(manifests);
        inner.blobs.extend(blobs);
    }

    /// Forgets all blobs.
    pub fn drop_blobs(&self) {
        self.state.lock().blobs.clear();
    }

    // --- moods ---

    /// The next `times` requests whose `METHOD path` matches `requests` (a regular expression) meet `fault`. The fault
    /// planned first goes first.
    pub fn fault(&self, requests: &str, fault: Fault, times: usize) {
        let requests = Regex::new(requests).expect("a regular expression");
        self.state.lock().faults.push(Planned { requests, fault, left: times });
    }

    /// A status without headers or body, as [`Fake::fault`].
    pub fn fault_status(&self, requests: &str, code: u16, times: usize) {
        self.fault(requests, Fault::status(code), times);
    }

    /// Ends all planned faults, and lets go of bodies that are held.
    pub fn heal(&self) {
        let mut inner = self.state.lock();
        inner.faults.clear();
        inner.healed += 1;
        drop(inner);
        self.state.changed.notify_waiters();
    }

    /// Who is let in from now on.
    pub fn require(&self, access: Access) {
        self.state.lock().access = access;
    }

    /// All tokens handed out so far are invalid.
    pub fn expire_tokens(&self) {
        self.state.lock().tokens.expire();
    }

    /// Blobs are redirected to `storage`, with a signature.
    pub fn redirect_blobs_to(&self, storage: &Self) {
        self.state.lock().storage = Some(storage.state.clone());
        storage.state.lock().stored_for = Some(self.state.clone());
    }

    /// For storage: all signatures handed out so far are invalid (403).
    pub fn expire_signatures(&self) {
        self.state.lock().signature += 1;
    }

    /// Whether manifests are sent with `Docker-Content-Digest` (the default).
    pub fn send_digest_header(&self, send: bool) {
        self.state.lock().send_digest_header = send;
    }

    /// Whether the referrers API is known (not by default, as with distribution 2.8).
    pub fn have_referrers(&self, have: bool) {
        self.state.lock().has_referrers = have;
    }

    /// Lists of referrers come in pages of so many, each naming the next in its `Link`, without the host.
    pub fn page_referrers(&self, entries: usize) {
        self.state.lock().referrers_page = Some(entries);
    }

    /// Whether manifests may be deleted (not by default, as with distribution).
    pub fn allow_deletes(&self, allow: bool) {
        self.state.lock().allows_deletes = allow;
    }

    // --- memory ---

    /// The manifests of `repository`, by tag or digest.
    pub fn manifests(&self, repository: &str) -> HashMap<String, Bytes> {
        let inner = self.state.lock();
        let mine = inner.manifests.iter().filter(|((of, _), _)| of == repository);
        mine.map(|((_, id), (_, bytes))| (id.clone(), bytes.clone())).collect()
    }

    /// A blob's bytes.
    pub fn get_blob(&self, digest: &Digest) -> Option<Bytes> {
        self.state.lock().blobs.get(&digest.to_string()).cloned()
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        let inner = self.state.lock();
        let snapshot =
            |recorded: &Recorded| Request { sent: recorded.sent.load(Ordering::Relaxed), ..recorded.request.clone() };
        inner.requests.iter().map(snapshot).collect()
    }

    /// Those whose `METHOD path` matches `requests`, a regular expression.
    pub fn matching(&self, requests: &str) -> Vec<Request> {
        let regex = Regex::new(requests).expect("a regular expression");
        self.requests().into_iter().filter(|request| regex.is_match(&request.line())).collect()
    }

    /// How many requests match.
    pub fn count(&self, requests: &str) -> usize {
        self.matching(requests).len()
    }

    /// Bytes of body sent for the requests that match.
    pub fn sent(&self, requests: &str) -> u64 {
        self.matching(requests).iter().map(|request| request.sent).sum()
    }

    /// The most bodies of blobs that were on their way at once since the last call. One is over when its last byte was handed to
    /// the socket, that is, before whoever asked can have it.
    pub fn most_bodies(&self) -> Bodies {
        let mut inner = self.state.lock();
        let [all, ranges] = inner.bodies.most;
        inner.bodies.most = [inner.bodies.all, inner.bodies.ranges];
        Bodies { all, ranges, most: [all, ranges] }
    }

    /// Waits until `count` requests match. As the waits below, it panics when that takes longer than [`PATIENCE`](crate::PATIENCE).
    pub async fn wait_for(&self, requests: &str, count: usize) {
        self.wait_until(&format!("{count} requests for {requests}"), || self.count(requests) >= count).await;
    }

    /// Waits until `count` answers have stalled.
    pub async fn wait_for_stalls(&self, count: usize) {
        self.wait_until(&format!("{count} answers have stalled"), || self.state.lock().stalled >= count).await;
    }

    /// Waits until `count` bodies of blobs are on their way at once.
    pub async fn wait_for_bodies(&self, count: usize) {
        self.wait_until(&format!("{count} bodies at once"), || self.state.lock().bodies.all >= count).await;
    }

    async fn wait_until(&self, what: &str, condition: impl Fn() -> bool) {
        within_patience(what, self.state.until(condition)).await;
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Ok(mut server) = self.server.lock()
            && let Some(server) = server.take()
        {
            server.abort();
        }
    }
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fake({})", self.host())
    }
}

// === impl State ===

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test panics with it")
    }

    /// Waits until `condition` holds, which is looked at after each change.
    async fn until(&self, condition: impl Fn() -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if condition() {
                return;
            }
            changed.await;
        }
    }

    fn stalls(&self) {
        self.lock().stalled += 1;
        self.changed.notify_waiters();
    }
}

impl Inner {
    /// The fault planned for this request, if any.
    fn take_fault(&mut self, line: &str) -> Option<Fault> {
        let planned = self.faults.iter_mut().find(|planned| planned.left > 0 && planned.requests.is_match(line))?;
        if planned.left != ALWAYS {
            planned.left -= 1;
        }
        Some(planned.fault.clone())
    }
}

impl Fault {
    /// A bare status.
    pub fn status(code: u16) -> Self {
        Self::Status { code, headers: Vec::new(), body: String::new() }
    }

    /// An error as the OCI distribution specification words it.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string();
        Self::Status { code: status, headers: Vec::new(), body }
    }

    /// 429 with `Retry-After`.
    pub fn too_many_requests(retry_after: &str) -> Self {
        let headers = vec![("retry-after".into(), retry_after.into())];
        Self::Status { code: 429, headers, body: String::new() }
    }
}

impl Request {
    /// `METHOD path`.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}
