//! A blob and where its bytes are.
//!
//! A registry often redirects a blob's request to storage, with a signature that expires. The address is kept and shared by
//! all readers, so that a range costs one round trip and not two; it is asked for anew when it fails, also half-way: the registry
//! may know another server by then. Only one reader at
//! a time asks a host for it, if that host answers within a second: behind one that hangs nobody queues up.

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use reqwest::{Method, Response, StatusCode, header};
use silk_model::Digest;
use tokio::time::timeout;
use tracing::debug;
use url::Url;

use crate::{
    Asked, Error, Repository,
    auth::authority,
    coding::{self, Coding},
    endpoint::{Answer, Call, Endpoint},
    repository::Inner,
};

mod stream;
mod trust;

pub use stream::BlobStream;

/// How long a reader waits for another one's question where a blob is, before it asks itself: several round trips to any
/// registry, so that most are asked once, and little beside the time that one that hangs may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// A blob of a repository. Cheap to clone; clones share the redirect, the choice of mirror and what is known of ranges.
#[derive(Clone)]
pub struct Blob {
    inner: Arc<Shared>,
}

struct Shared {
    repository: Arc<Inner>,
    digest: Digest,
    size: u64,
    /// One for each host of the repository.
    sources: Vec<Source>,
    /// The host that served last.
    current: AtomicUsize,
    /// The host or storage that served last, for people.
    serving: Mutex<Option<String>>,
    received: AtomicU64,
}

/// What is known of one host's copy.
#[derive(Default)]
struct Source {
    route: Mutex<Route>,
    /// Held by the reader that asks for the route.
    asking: tokio::sync::Mutex<()>,
    ranges: AtomicU8,
    /// Bytes came since somebody found that some are wrong.
    sent: AtomicBool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Route {
    #[default]
    Unknown,
    /// The host serves the bytes itself.
    Direct,
    /// The host redirects here.
    Elsewhere(Url),
}

// `Source::ranges`.
const UNKNOWN: u8 = 0;
const SUPPORTED: u8 = 1;
/// The last request for one was answered with the whole. It costs nothing to ask again, and a pull-through cache has ranges once it
/// has the blob.
const IGNORED: u8 = 2;
/// It answered with another one, which costs a request each time.
const WRONG: u8 = 3;

/// An open answer.
#[derive(Debug)]
struct Body {
    content: coding::Body,
    /// Who sends it, for messages.
    host: String,
    /// How it was found.
    route: Route,
    /// Bytes to throw away first.
    skip: u64,
    /// Bytes this answer holds after those.
    due: u64,
}

impl Blob {
    pub(crate) fn new(repository: Arc<Inner>, digest: Digest, size: u64) -> Self {
        let sources = repository.endpoints.iter().map(|_| Source::default()).collect();
        let (current, serving, received) = (AtomicUsize::new(usize::MAX), Mutex::default(), AtomicU64::new(0));
        Self { inner: Arc::new(Shared { repository, digest, size, sources, current, serving, received }) }
    }

    /// Its digest.
    pub fn digest(&self) -> Digest {
        self.inner.digest
    }

    /// Its size in bytes, by the manifest.
    pub fn size(&self) -> u64 {
        self.inner.size
    }

    /// The registry, as references name it, and the repository there.
    pub fn repository(&self) -> (&str, &str) {
        (&self.inner.repository.registry, &self.inner.repository.path)
    }

    /// Is this a clone of `other`, or it of this?
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// As [`Repository::renewed`].
    ///
    /// # Errors
    /// A certificate cannot be used.
    pub async fn renewed(&self) -> Result<Option<Self>, Error> {
        let Shared { repository, digest, size, .. } = &*self.inner;
        let renewed = Repository { inner: Arc::clone(repository) }.renewed().await?;
        Ok(renewed.map(|repository| repository.blob(*digest, *size)))
    }

    /// Streams exactly `range`. Nothing is asked before the first [`BlobStream::next`].
    ///
    /// From the start to the end is asked for without a `Range` header, which is what every registry and every cache in
    /// front of one can do.
    pub fn read(&self, range: Range<u64>) -> BlobStream {
        BlobStream::new(self.clone(), range)
    }

    /// Where the bytes come from now: host of the storage, mirror or registry.
    pub fn host(&self) -> String {
        let serving = self.inner.serving.lock().unwrap_or_else(PoisonError::into_inner);
        serving.clone().unwrap_or_else(|| self.inner.repository.registry.clone())
    }

    /// Whether the server that served last answers range requests: known after the first partial read. One that does not
    /// sends the whole blob instead, so that a read from the middle costs all the bytes before it.
    pub fn ranges(&self) -> Option<bool> {
        let current = self.inner.current.load(Ordering::Relaxed);
        match self.inner.sources.get(current)?.ranges.load(Ordering::Relaxed) {
            UNKNOWN => None,
            ranges => Some(ranges == SUPPORTED),
        }
    }

    /// Bytes received from the network for all readers together, those thrown away included.
    pub fn received(&self) -> u64 {
        self.inner.received.load(Ordering::Relaxed)
    }

    fn what(&self) -> String {
        self.inner.repository.blob_name(&self.inner.digest)
    }

    /// Asks host number `index` for `wanted`, by the shortest known way.
    async fn open(&self, index: usize, wanted: &Range<u64>) -> Result<Body, Error> {
        let source = &self.inner.sources[index];
        loop {
            let whole = *wanted == (0..self.size()) || source.ranges.load(Ordering::Relaxed) == WRONG;
            let range = (!whole).then(|| wanted.clone());
            let (response, host) = self.send(index, range).await?;
            let opened = self.judge(source, response, host, wanted, whole);
            match opened {
                // It does not do ranges right: take the whole and skip.
                Err(error @ Error::WrongRange { .. }) if !whole => {
                    debug!("{error}: going on without ranges");
                    source.ranges.store(WRONG, Ordering::Relaxed);
                }
                Err(error) => {
                    source.forget(&source.route());
                    return Err(error);
                }
                Ok(body) => {
                    self.inner.current.store(index, Ordering::Relaxed);
                    let mut serving = self.inner.serving.lock().unwrap_or_else(PoisonError::into_inner);
                    *serving = Some(body.host.clone());
                    return Ok(body);
                }
            }
        }
    }

    /// The answer and who gave it. A kept redirect that fails is forgotten; if it may have expired, the host is asked for
    /// another at once.
    async fn send(&self, index: usize, range: Option<Range<u64>>) -> Result<(Response, String), Error> {
        let shared = &*self.inner;
        let (endpoint, source) = (&shared.repository.endpoints[index], &shared.sources[index]);
        let call = shared.repository.call(Method::GET, format!("blobs/{}", shared.digest), self.what());
        let call = Call { range, ..call };
        if let Route::Elsewhere(url) = source.route() {
            match endpoint.ask_at(&url, &call).await {
                Ok(answer) => return Ok(self.served(endpoint, answer)),
                Err(error) => {
                    source.forget(&Route::Elsewhere(url));
                    if !may_be_expiry(&error) {
                        return Err(error);
                    }
                    debug!("{error}: asking the registry for another address");
                }
            }
        }
        let asking = match source.route() {
            Route::Unknown => timeout(PATIENCE, source.asking.lock()).await.ok(),
            _ => None,
        };
        // Another reader may just have asked.
        let answer = match source.route() {
            Route::Elsewhere(url) => {
                drop(asking);
                endpoint.ask_at(&url, &call).await?
            }
            Route::Direct => {
                drop(asking);
                source.learn(endpoint.ask(&call).await?)
            }
            Route::Unknown => source.learn(endpoint.ask(&call).await?),
        };
        Ok(self.served(endpoint, answer))
    }

    fn served(&self, endpoint: &Endpoint, answer: Answer) -> (Response, String) {
        let host = answer.redirected_to.as_ref().map_or_else(|| endpoint.host().authority.clone(), authority);
        (answer.response, host)
    }

    /// What the answer holds of `wanted`, by its head.
    fn judge(
        &self,
        source: &Source,
        response: Response,
        host: String,
        wanted: &Range<u64>,
        whole: bool,
    ) -> Result<Body, Error> {
        let asked = || Asked { host: host.clone(), what: self.what() };
        let length = response.content_length();
        let check_size = |actual: u64| match actual == self.size() {
            true => Ok(()),
            false => Err(Error::WrongSize { asked: asked(), expected: self.size(), actual }),
        };
        let coding = Coding::of(response.headers());
        if response.status() != StatusCode::PARTIAL_CONTENT {
            // Storage may call a blob gzip because it is one: then the length is the blob's.
            let coding = coding.filter(|_| length != Some(self.size()));
            if coding.is_none() {
                length.map_or(Ok(()), check_size)?;
            }
            if !whole {
                source.ranges.store(IGNORED, Ordering::Relaxed);
            }
            let (skip, due) = (wanted.start, self.size() - wanted.start);
            return Ok(Body { content: coding::Body::new(response, coding), host, route: source.route(), skip, due });
        }
        let header = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let wrong = || Error::WrongRange {
            asked: asked(),
            wanted: wanted.clone(),
            got: crate::error::shorten(header.unwrap_or_default()),
            coding: coding.map(Coding::name),
        };
        let ContentRange { range, total } = header.and_then(content_range).ok_or_else(wrong)?;
        // A range of what was made on the way is of no use, but the whole of that is.
        if coding.is_some() && total != Some(self.size()) {
            return Err(wrong());
        }
        total.map_or(Ok(()), check_size)?;
        let due = range.end - range.start;
        if range.start != wanted.start || range.end > self.size() || length.is_some_and(|length| length != due) {
            return Err(wrong());
        }
        if !whole {
            source.ranges.store(SUPPORTED, Ordering::Relaxed);
        }
        Ok(Body { content: coding::Body::new(response, None), host, route: source.route(), skip: 0, due })
    }
}

impl Source {
    fn route(&self) -> Route {
        self.route.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the route from the host's own answer.
    fn learn(&self, answer: Answer) -> Answer {
        let route = answer.redirected_to.clone().map_or(Route::Direct, Route::Elsewhere);
        *self.route.lock().unwrap_or_else(PoisonError::into_inner) = route;
        answer
    }

    /// A redirect, unless it was replaced meanwhile.
    fn forget(&self, failed: &Route) {
        let mut route = self.route.lock().unwrap_or_else(PoisonError::into_inner);
        if *route == *failed && matches!(failed, Route::Elsewhere(_)) {
            *route = Route::Unknown;
        }
    }
}

/// Statuses by which storage says that a signed address is over: S3 403 and 400, Azure 403, Google 400, others 401; 404
/// and 410 when the object has moved.
fn may_be_expiry(error: &Error) -> bool {
    match error {
        Error::Denied { .. } | Error::NotFound { .. } => true,
        Error::Status { status, .. } => *status == StatusCode::BAD_REQUEST,
        _ => false,
    }
}

#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    range: Range<u64>,
    /// None where the server writes `*`.
    total: Option<u64>,
}

/// RFC 9110 14.4: `bytes 0-9/100`.
fn content_range(text: &str) -> Option<ContentRange> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (first <= last).then_some(ContentRange { range: first..last.checked_add(1)?, total })
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes, {})", self.inner.size, self.what())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let of = |range, total| Some(ContentRange { range, total });
        assert_eq!(content_range("bytes 0-9/100"), of(0..10, Some(100)));
        assert_eq!(content_range("bytes 5-5/*"), of(5..6, None));
        let max = format!("bytes 0-{}/*", u64::MAX);
        for bad in ["", "bytes */100", "bytes 9-0/100", "0-9/100", "bytes 0-9", "bytes -9/100", "items 0-9/10", &max] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
