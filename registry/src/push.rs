//! Uploads, and deletion where a registry allows it.
//!
//! As containerd does, everything goes to the first host of the registry that may be pushed to, and to no other. Blobs go
//! up in one piece (OCI distribution specification, "Pushing a blob monolithically", POST then PUT), so they are
//! for what fits into memory.

use bytes::Bytes;
use reqwest::{
    Method, Response,
    header::{self, HeaderValue},
};
use silk_model::Digest;
use url::Url;

use crate::{
    Error, Repository, Selector,
    attempts::Attempts,
    auth::Actions,
    endpoint::{Answer, Body, Call, Endpoint},
    repository::{Inner, Needs, again, text},
};

/// What a registry made of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The manifest's digest.
    pub digest: Digest,
    /// The registry knows the referrers API and has noted this manifest as one (`OCI-Subject`).
    pub is_noted: bool,
}

impl Repository {
    /// Whether this repository takes pushes: begins an upload and gives it up.
    ///
    /// # Errors
    /// After retries; `Denied` where the credentials do not allow it.
    pub async fn check_push(&self) -> Result<(), Error> {
        let inner = &*self.inner;
        let call = inner.call(Method::POST, "blobs/uploads/".to_owned(), format!("a push to {}", inner.path));
        let call = Call { actions: Actions::Push, ..call };
        let mut attempts = inner.attempts(Needs::Push)?;
        loop {
            let endpoint = &inner.endpoints[attempts.host()];
            match endpoint.ask(&call).await {
                Ok(Answer { response, .. }) => {
                    if let Some(place) = location(&response) {
                        // Where that is not possible, the registry forgets the upload in its own time.
                        let _ = endpoint.ask_at(&place, &Call { method: Method::DELETE, ..call }).await;
                    }
                    return Ok(());
                }
                Err(error) => again(&mut attempts, error).await?,
            }
        }
    }

    /// Stores `bytes` unless they are there already.
    ///
    /// # Errors
    /// After retries.
    pub async fn push_blob(&self, bytes: Bytes) -> Result<Digest, Error> {
        let inner = &*self.inner;
        let digest = Digest::of(&bytes);
        let what = format!("push of blob {digest} to {}", inner.path);
        let call = Call { actions: Actions::Push, ..inner.call(Method::HEAD, format!("blobs/{digest}"), what) };
        let mut attempts = inner.attempts(Needs::Push)?;
        loop {
            match upload(&inner.endpoints[attempts.host()], &call, &digest, &bytes).await {
                Ok(()) => return Ok(digest),
                Err(error) => again(&mut attempts, error).await?,
            }
        }
    }

    /// Stores a manifest, under a tag or just its digest. What it names must be there.
    ///
    /// # Errors
    /// After retries, or when the registry understood other bytes.
    pub async fn push_manifest(&self, tag: Option<&str>, media_type: &str, bytes: Bytes) -> Result<Accepted, Error> {
        let inner = &*self.inner;
        let digest = Digest::of(&bytes);
        let selector = tag.map_or(Selector::Digest(digest), |tag| Selector::Tag(tag.into()));
        let what = format!("push of manifest {selector} to {}", inner.path);
        let call = inner.call(Method::PUT, format!("manifests/{selector}"), what);
        let media_type = HeaderValue::from_str(media_type).unwrap_or(HeaderValue::from_static("application/json"));
        let call = Call { actions: Actions::Push, body: Some(Body { media_type, bytes }), ..call };
        let mut attempts = inner.attempts(Needs::Push)?;
        loop {
            match accepted(&inner.endpoints[attempts.host()], &call, digest).await {
                Ok(accepted) => return Ok(accepted),
                Err(error) => again(&mut attempts, error).await?,
            }
        }
    }

    /// Deletes a manifest and its tags. Many registries do not allow it.
    ///
    /// # Errors
    /// After retries. A manifest that is not there is no error.
    pub async fn delete_manifest(&self, digest: Digest) -> Result<(), Error> {
        let inner = &*self.inner;
        let what = format!("deletion of manifest {digest} of {}", inner.path);
        let call = inner.call(Method::DELETE, format!("manifests/{digest}"), what);
        let call = Call { actions: Actions::Delete, ..call };
        let mut attempts = inner.attempts(Needs::Push)?;
        loop {
            match inner.endpoints[attempts.host()].ask(&call).await {
                Ok(_) | Err(Error::NotFound { .. }) => return Ok(()),
                Err(error) => again(&mut attempts, error).await?,
            }
        }
    }
}

impl Inner {
    /// At the hosts that may do that; only at one of those that may be pushed to.
    pub(crate) fn attempts(&self, needs: Needs) -> Result<Attempts, Error> {
        let mut order = self.order(needs, None)?;
        if let Needs::Push = needs {
            order.sort_unstable();
            order.truncate(1);
        }
        Ok(Attempts::new(self.policy, order))
    }
}

/// `call` asks whether the blob is there.
async fn upload(endpoint: &Endpoint, call: &Call<'_>, digest: &Digest, bytes: &Bytes) -> Result<(), Error> {
    match endpoint.ask(call).await {
        Ok(_) => return Ok(()),
        Err(Error::NotFound { .. }) => {}
        Err(error) => return Err(error),
    }
    let begin = Call { method: Method::POST, path: "blobs/uploads/".into(), ..call.clone() };
    let Answer { response, .. } = endpoint.ask(&begin).await?;
    let mut place = location(&response).ok_or_else(|| Error::Redirect { asked: endpoint.asked(call) })?;
    place.query_pairs_mut().append_pair("digest", &digest.to_string());
    let media_type = HeaderValue::from_static("application/octet-stream");
    let body = Some(Body { media_type, bytes: bytes.clone() });
    endpoint.ask_at(&place, &Call { method: Method::PUT, body, ..begin }).await.map(drop)
}

async fn accepted(endpoint: &Endpoint, call: &Call<'_>, digest: Digest) -> Result<Accepted, Error> {
    let Answer { response, .. } = endpoint.ask(call).await?;
    let understood = text(response.headers(), "docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
    match understood {
        Some(actual) if actual != digest => Err(Error::WrongDigest { asked: endpoint.asked(call), actual }),
        _ => Ok(Accepted { digest, is_noted: response.headers().contains_key("oci-subject") }),
    }
}

/// Where an upload is to go: relative or not, and with parameters of its own.
fn location(response: &Response) -> Option<Url> {
    let place = response.url().join(text(response.headers(), header::LOCATION.as_str())?).ok()?;
    (matches!(place.scheme(), "http" | "https") && place.has_host()).then_some(place)
}
