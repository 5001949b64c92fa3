//! What a host's answer means: a response, or an error with the registry's own words.

use std::time::{Duration, SystemTime};

use reqwest::{
    Response,
    header::{self, HeaderMap},
};
use silk_model::metrics::Answered;
use tokio::time::timeout;
use url::Url;

use super::Endpoint;
use crate::{
    Asked, Error, Transport,
    coding::{self, Coding},
    error::Said,
};

/// Bytes of an error's body that are read for its words.
const MAX_ERROR_BODY: usize = 64 << 10;

impl Endpoint {
    /// The response if it is a success, else its error.
    pub(super) async fn judged(&self, response: Response, asked: Asked) -> Result<Response, Error> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after = retry_after(response.headers());
        let said = self.words(response).await;
        Err(match status.as_u16() {
            401 | 403 if asked.host == self.host.authority => {
                // No challenge came, so a credential would not have been sent: that there is none is not why.
                Error::Denied { asked, status, said, hint: self.auth.hint().await.to_string() }
            }
            401 | 403 => {
                let hint = format!("registry {} redirected silk there", self.host.authority);
                Error::Denied { asked, status, said, hint }
            }
            404 | 410 => Error::NotFound { asked, status, said },
            _ => Error::Status { asked, status, said, retry_after },
        })
    }

    pub(super) async fn words(&self, response: Response) -> Said {
        match self.body(response, MAX_ERROR_BODY).await {
            Ok(Some(body)) => Said::parse(&body),
            _ => Said::default(),
        }
    }

    /// A small body, whole and within the stall timeout; none if it is larger than `limit`.
    pub(crate) async fn body(&self, response: Response, limit: usize) -> Result<Option<Vec<u8>>, BodyFault> {
        let mut body = Vec::new();
        let read = timeout(self.stall_timeout, async {
            let coding = Coding::of(response.headers());
            let mut chunks = coding::Body::new(response, coding);
            while let Some(bytes) = chunks.chunk().await? {
                if body.len() + bytes.len() > limit {
                    return Ok(false);
                }
                body.extend_from_slice(&bytes);
            }
            Ok::<_, Transport>(true)
        });
        match read.await {
            Ok(Ok(true)) => Ok(Some(body)),
            Ok(Ok(false)) => Ok(None),
            Ok(Err(cause)) => Err(BodyFault::Cut { at: body.len() as u64, cause }),
            Err(_) => Err(BodyFault::Stalled { at: body.len() as u64, after: self.stall_timeout }),
        }
    }
}

/// Why a small body is not whole.
#[derive(Debug)]
pub(crate) enum BodyFault {
    Cut { at: u64, cause: Transport },
    Stalled { at: u64, after: Duration },
}

impl BodyFault {
    pub(crate) fn of(self, asked: Asked) -> Error {
        match self {
            Self::Cut { at, cause } => Error::Cut { asked, at, cause: Some(cause) },
            Self::Stalled { at, after } => Error::Stalled { asked, at, after },
        }
    }
}

/// What a request came to, for the metrics.
pub(super) fn answered(sent: &Result<Response, Error>) -> Answered {
    let status = match sent {
        Ok(response) => response.status(),
        Err(Error::NoAnswer { .. }) => return Answered::NoAnswer,
        Err(_) => return Answered::Unreachable,
    };
    match status.as_u16() {
        401 | 403 => Answered::Denied,
        404 | 410 => Answered::Missing,
        429 => Answered::Busy,
        _ if status.is_redirection() => Answered::Redirect,
        _ if status.is_client_error() => Answered::Refused,
        _ if status.is_server_error() => Answered::ServerError,
        _ => Answered::Ok,
    }
}

/// Where the answer of `at` redirects to, if that is an address.
pub(super) fn location(at: &Url, response: &Response) -> Option<Url> {
    let url = at.join(response.headers().get(header::LOCATION)?.to_str().ok()?).ok()?;
    (matches!(url.scheme(), "http" | "https") && url.has_host()).then_some(url)
}

/// RFC 9110 10.2.3: seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}
