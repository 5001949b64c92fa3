//! A range of a blob as a stream that outlives its connections.
//!
//! A cut, a stall, a 429 or a 5xx costs a new request from the next byte on, here or on another host; progress starts the
//! count of failures anew. A stream holds one of its host's permits from its first request to its end, also while it
//! waits for its next attempt: giving it back would let readers that started later overtake one that others wait for.

use std::{collections::BTreeSet, ops::Range, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use reqwest::StatusCode;
use silk_model::metrics::METRICS;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until, timeout},
};
use tracing::warn;

use super::{Blob, Body};
use crate::{Asked, Error, attempts::Attempts};

/// Fewer bytes a second than this, over so long a wait for them, are a connection that is broken in some way, whatever the link: as good as none. Chosen:
/// readers wait ten times as long.
const CRAWL: u64 = 16 << 10;
const CRAWL_PATIENCE: Duration = Duration::from_secs(30);
/// A stream is broken off so often at most: a link may be that slow.
const MOST_CRAWLS: u32 = 3;

/// How answers come.
#[derive(Debug, Default)]
struct Pace {
    /// While an answer was waited for, since it was looked at last.
    waited: Duration,
    bytes: u64,
    crawls: u32,
}

impl Pace {
    /// Does hardly anything come? Bytes that are thrown away count.
    fn is_crawl(&mut self) -> bool {
        if self.waited < CRAWL_PATIENCE {
            return false;
        }
        let is_few = self.bytes < CRAWL * self.waited.as_secs() && self.crawls < MOST_CRAWLS;
        *self = Self { crawls: self.crawls + u32::from(is_few), ..Self::default() };
        is_few
    }
}

/// Bytes of a blob, in order.
#[derive(Debug)]
pub struct BlobStream {
    pub(super) blob: Blob,
    left: Range<u64>,
    body: Option<Body>,
    pace: Pace,
    /// Of which host.
    permit: Option<(usize, OwnedSemaphorePermit)>,
    attempts: Option<Attempts>,
    /// The next attempt is not to begin before.
    not_before: Option<Instant>,
    urgent: bool,
    ranges_only: bool,
    /// The hosts that bytes came from.
    pub(super) sent: BTreeSet<usize>,
}

impl BlobStream {
    pub(super) fn new(blob: Blob, range: Range<u64>) -> Self {
        let (body, permit, attempts, not_before) = (None, None, None, None);
        let (urgent, ranges_only, sent) = (false, false, BTreeSet::new());
        Self { blob, left: range, body, pace: Pace::default(), permit, attempts, not_before, urgent, ranges_only, sent }
    }

    /// Somebody waits for these bytes: where all permits of a host are taken, it has some for such.
    #[must_use]
    pub fn urgent(mut self) -> Self {
        self.urgent = true;
        self
    }

    /// Fails with [`Error::NoRanges`] where the server would send more that is thrown away than what is wanted.
    #[must_use]
    pub fn ranges_only(mut self) -> Self {
        self.ranges_only = true;
        self
    }

    /// The offset in the blob of the next byte.
    pub fn position(&self) -> u64 {
        self.left.start
    }

    /// The next bytes; `None` when the range is complete. Dropping the future loses nothing.
    ///
    /// # Errors
    /// After retries and on all hosts; the stream then stays at its position, and `next` tries anew.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.left.end > self.blob.size() || self.left.start > self.left.end {
            let (wanted, digest, size) = (self.left.clone(), self.blob.digest(), self.blob.size());
            return Err(Error::OutOfBounds { wanted, digest, size });
        }
        while !self.left.is_empty() {
            let step = match self.body {
                None => self.open().await.map(|()| None),
                Some(_) => self.receive().await,
            };
            match step {
                Ok(None) => {}
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                // It is for the caller to read in another way.
                Err(error @ Error::NoRanges { .. }) => {
                    (self.body, self.permit, self.attempts) = (None, None, None);
                    return Err(error);
                }
                Err(error) => self.failed(error)?,
            }
        }
        self.finish().await.map(|()| None)
    }

    /// The host to use; fixed when the stream first asks, then moved by failures.
    fn attempts(&mut self) -> Result<&mut Attempts, Error> {
        if self.attempts.is_none() {
            let shared = &*self.blob.inner;
            let served = shared.current.load(Ordering::Relaxed);
            let order = shared.repository.blob_order(&shared.digest, served)?;
            let attempts = Attempts::new(shared.repository.policy, order);
            let rests = |host: usize| shared.repository.endpoints[host].rests();
            self.attempts = Some(attempts.knowing(rests, |host| host == served));
        }
        Ok(self.attempts.as_mut().expect("set above"))
    }

    async fn open(&mut self) -> Result<(), Error> {
        let host = self.attempts()?.host();
        if let Some(instant) = self.not_before {
            sleep_until(instant).await;
            self.not_before = None;
        }
        if self.permit.as_ref().is_none_or(|(of, _)| *of != host) {
            self.permit = None;
            let queued = Instant::now();
            let permit = self.blob.inner.repository.endpoints[host].permit(self.urgent).await;
            self.permit = Some((host, permit));
            self.attempts()?.queued(queued.elapsed());
        }
        let body = self.blob.open(host, &self.left).await.map_err(|error| self.as_refused(error))?;
        if self.ranges_only && body.skip > self.left.end - self.left.start {
            return Err(Error::NoRanges { asked: Asked { host: body.host, what: self.blob.what() } });
        }
        self.body = Some(body);
        Ok(())
    }

    /// Bytes of the range, or none if those that came were to be skipped.
    async fn receive(&mut self) -> Result<Option<Bytes>, Error> {
        let stall_timeout = self.blob.inner.repository.stall_timeout;
        let at = self.left.start;
        let Some(body) = &mut self.body else { return Ok(None) };
        let asked = || Asked { host: body.host.clone(), what: self.blob.what() };
        if self.pace.is_crawl() {
            return Err(Error::Stalled { asked: asked(), at, after: CRAWL_PATIENCE });
        }
        let began = Instant::now();
        let received = timeout(stall_timeout, body.content.chunk()).await;
        self.pace.waited += began.elapsed();
        let mut bytes = match received {
            Err(_) => return Err(Error::Stalled { asked: asked(), at, after: stall_timeout }),
            Ok(Err(cause)) => return Err(Error::Cut { asked: asked(), at, cause: Some(cause) }),
            Ok(Ok(None)) => return Err(Error::Cut { asked: asked(), at, cause: None }),
            Ok(Ok(Some(bytes))) => bytes,
        };
        self.pace.bytes += bytes.len() as u64;
        METRICS.registry_received.add(bytes.len() as u64);
        self.blob.inner.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let skipped = body.skip.min(bytes.len() as u64);
        body.skip -= skipped;
        let _ = bytes.split_to(skipped as usize);
        let length = bytes.len() as u64;
        if length > body.due {
            return Err(Error::Overlong { asked: asked(), expected: body.due });
        }
        body.due -= length;
        let due = body.due;
        // Less than the range was sent, or more: both are the server's right, as long as it says so.
        bytes.truncate((self.left.end - self.left.start) as usize);
        self.left.start += bytes.len() as u64;
        if due == 0 && !self.left.is_empty() {
            self.body = None;
        }
        if length > 0
            && let Some(attempts) = &mut self.attempts
        {
            attempts.progressed();
            let host = attempts.host();
            self.sent.insert(host);
            self.blob.inner.sources[host].sent.store(true, Ordering::Relaxed);
        }
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    /// Every byte is delivered: gives the connection back, and sees that no more bytes come where their number was not
    /// known before.
    async fn finish(&mut self) -> Result<(), Error> {
        self.permit = None;
        let Some(mut body) = self.body.take() else { return Ok(()) };
        if body.due > 0 || body.content.length().is_some() {
            return Ok(());
        }
        let stall_timeout = self.blob.inner.repository.stall_timeout;
        match timeout(stall_timeout, body.content.chunk()).await {
            Ok(Ok(Some(bytes))) if !bytes.is_empty() => {
                let asked = Asked { host: body.host, what: self.blob.what() };
                Err(Error::Overlong { asked, expected: self.blob.size() })
            }
            _ => Ok(()),
        }
    }

    /// Lets go of the connection and sets the time of the next attempt, if there is to be one.
    fn failed(&mut self, error: Error) -> Result<(), Error> {
        // Storage that breaks off once may do so each time, and the registry may know another.
        if let (Some(body), Some(attempts)) = (self.body.take(), &self.attempts) {
            self.blob.inner.sources[attempts.host()].forget(&body.route);
        }
        let reason = error.to_string();
        let waited = self.attempts().and_then(|attempts| attempts.failed(error, Instant::now()));
        match waited {
            Ok(wait) => {
                METRICS.registry_retries.one();
                warn!("{reason}; next attempt in {:.1} s", wait.as_secs_f64());
                self.not_before = Some(Instant::now() + wait);
                Ok(())
            }
            Err(error) => {
                // The caller may try anew, from the start of the count and on all hosts.
                (self.attempts, self.permit, self.not_before) = (None, None, None);
                Err(error)
            }
        }
    }

    /// 416 says what it is about. The registry itself says that it has no such blob in a body, as the distribution specification
    /// wants it; a bare 404 is of a proxy before it, which does not know it for the moment. A mirror may say what it likes, and a
    /// manifest too: whether an image is there is to be known soon.
    fn as_refused(&self, error: Error) -> Error {
        let is_at_last = self.attempts.as_ref().is_some_and(Attempts::is_at_last);
        match error {
            Error::NotFound { asked, status: status @ StatusCode::NOT_FOUND, said }
                if said.is_empty() && is_at_last =>
            {
                Error::Wordless { asked, status }
            }
            Error::Status { asked, status: StatusCode::RANGE_NOT_SATISFIABLE, .. } => {
                Error::RangeRefused { asked, wanted: self.left.clone() }
            }
            error => error,
        }
    }
}
