//! Uploads, and deletion where a registry allows it.
//!
//! As containerd does, everything goes to the first host of the registry that may be pushed to, and to no other. Blobs go
//! up in one piece (OCI distribution specification, "Pushing a blob monolithically", POST then PUT), so they are
//! for what fits into memory.

use bytes::Bytes;
use reqwest::{
    Method, StatusCode,
    header::{self, HeaderValue},
};
use silk_model::Digest;
use url::Url;

use crate::{
    Error, Repository, Selector,
    auth::Actions,
    endpoint::{Answer, Body, Call, Endpoint},
    repository::{Inner, Needs, text},
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
    /// Stores `bytes` unless they are there already.
    ///
    /// # Errors
    /// After retries.
    pub async fn push_blob(&self, bytes: Bytes) -> Result<Digest, Error> {
        let inner = &*self.inner;
        let digest = Digest::of(&bytes);
        let what = format!("push of blob {digest} to {}", inner.path);
        let call = |method, path: String| Call { actions: Actions::Push, ..inner.call(method, path, what.clone()) };
        inner
            .persist(inner.push_host()?, async |endpoint| {
                match endpoint.ask(&call(Method::HEAD, format!("blobs/{digest}"))).await {
                    Ok(_) => return Ok(()),
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
                let begin = call(Method::POST, "blobs/uploads/".into());
                let Answer { response, .. } = endpoint.ask(&begin).await?;
                let mut place = location(endpoint, &begin, response.url(), &response)?;
                place.query_pairs_mut().append_pair("digest", &digest.to_string());
                let body =
                    Body { media_type: HeaderValue::from_static("application/octet-stream"), bytes: bytes.clone() };
                endpoint.ask_at(&place, &Call { method: Method::PUT, body: Some(body), ..begin }).await.map(drop)
            })
            .await?;
        Ok(digest)
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
        inner
            .persist(inner.push_host()?, async |endpoint| {
                let Answer { response, .. } = endpoint.ask(&call).await?;
                let understood: Option<Digest> =
                    text(response.headers(), "docker-content-digest").and_then(|text| text.parse().ok());
                match understood {
                    Some(actual) if actual != digest => {
                        Err(Error::WrongDigest { asked: endpoint.asked(&call), actual })
                    }
                    _ => Ok(Accepted { digest, is_noted: response.headers().contains_key("oci-subject") }),
                }
            })
            .await
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
        let deleted = inner.persist(inner.push_host()?, async |endpoint| endpoint.ask(&call).await.map(drop)).await;
        match deleted {
            Err(Error::NotFound { status: StatusCode::NOT_FOUND, .. }) => Ok(()),
            deleted => deleted,
        }
    }
}

impl Inner {
    /// The one host that is pushed to.
    fn push_host(&self) -> Result<Vec<usize>, Error> {
        let mut order = self.order(Needs::Push, None)?;
        order.sort_unstable();
        order.truncate(1);
        Ok(order)
    }
}

/// Where an upload is to go: relative or not, and with parameters of its own.
fn location(endpoint: &Endpoint, call: &Call<'_>, from: &Url, response: &reqwest::Response) -> Result<Url, Error> {
    let place = text(response.headers(), header::LOCATION.as_str()).and_then(|text| from.join(text).ok());
    place
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| Error::Redirect { asked: endpoint.asked(call) })
}
