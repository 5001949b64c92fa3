//! Requests with authorization, and requests for tokens.
//!
//! A name of one's own in front of a public registry (`cr.example.com` for `ghcr.io`) is often a server that redirects the
//! registry's API there. Such a registry challenges by itself, and is answered as if it had been named: with what is granted to
//! its own host's credentials, never with what the host that redirects is sent.

use std::sync::{Arc, PoisonError, atomic::Ordering};

use reqwest::{
    Response, StatusCode,
    header::{self, HeaderMap, HeaderValue},
};
use tokio::time::Duration;
use tracing::debug;
use url::Url;

use super::{Call, Endpoint, MAX_REDIRECTS, location};
use crate::{
    Asked, Error,
    auth::{Auth, Scope, TokenRequest, TokenRequestKind, TokenServer, authority},
    challenge,
    credentials::Hint,
    hosts,
};

/// Times a request is sent with another authorization: for the challenge, for a token that expired on its way, and for
/// one that another request renewed meanwhile.
const MAX_ANSWERS: usize = 3;
/// Bytes of a token server's answer; tokens with many scopes reach tens of KiB.
const MAX_TOKEN_BODY: usize = 1 << 20;
/// Registries redirected to whose grants are kept before those not in use are dropped.
const MAX_ELSEWHERE: usize = 64;

/// Whom a request is authorized at.
pub(super) struct Party<'a> {
    endpoint: &'a Endpoint,
    auth: Arc<Auth>,
    /// The endpoint's host itself, and not a registry that it redirects to.
    pub(super) is_own: bool,
}

impl Endpoint {
    /// Who is asked at `url`, if that is a registry that may be sent credentials.
    pub(super) fn party(&self, url: &Url) -> Option<Party<'_>> {
        if self.is_own_origin(url) {
            return Some(Party { endpoint: self, auth: self.auth.clone(), is_own: true });
        }
        let host = authority(url);
        let is_who_it_says = url.scheme() == "https" && !self.host.skip_verify || hosts::is_loopback(&host);
        // Other paths are storage's, whose own challenges mean that an address is over.
        if !is_who_it_says || repository(url).is_none() {
            return None;
        }
        let mut elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        if elsewhere.len() >= MAX_ELSEWHERE {
            elsewhere.retain(|_, auth| Arc::strong_count(auth) > 1);
        }
        let auth = || Arc::new(Auth::new(self.credentials.clone(), host.clone()));
        let auth = elsewhere.entry(host.clone()).or_insert_with(auth).clone();
        Some(Party { endpoint: self, auth, is_own: false })
    }
}

/// The repository that a URL of the registry's API is about: `library/app` of `/v2/library/app/blobs/...`.
fn repository(url: &Url) -> Option<&str> {
    let path = url.path().strip_prefix("/v2/")?;
    ["/manifests/", "/blobs/", "/referrers/"].iter().find_map(|kind| Some(path.rsplit_once(kind)?.0))
}

/// Whether what may be sent to `from` may be sent to `to`.
fn is_same_host(from: &Url, to: &Url) -> bool {
    from.origin() == to.origin() || from.host() == to.host() && (from.scheme(), to.scheme()) == ("http", "https")
}

impl Party<'_> {
    /// One request, sent again with an answer to its challenge.
    pub(super) async fn authorized(&self, url: &Url, call: &Call<'_>) -> Result<Response, Error> {
        // Another registry may have it under another name.
        let repository = repository(url).filter(|_| !self.is_own).unwrap_or(call.repository);
        let scope = Scope { repository, actions: call.actions };
        let mut authorization = self.auth.current(scope, self).await?;
        for round in 0.. {
            let mut headers = self.headers();
            if let Some(authorization) = &authorization {
                headers.insert(header::AUTHORIZATION, authorization.header.clone());
            }
            let response = self.endpoint.send(url, call, headers, self.endpoint.asked_at(url, call)).await?;
            let status = response.status();
            let is_old = authorization.as_ref().is_some_and(|granted| !granted.is_fresh);
            // ECR answers 403 to a password whose twelve hours are over, and others 401 without a challenge.
            if status != StatusCode::UNAUTHORIZED && !(status == StatusCode::FORBIDDEN && authorization.is_some()) {
                return Ok(response);
            }
            let challenge = challenge::choose(response.headers());
            let said = self.endpoint.words(response).await;
            // A token made for this request and refused all the same: the next one would be too.
            let answer = match &authorization {
                Some(refused) if round == MAX_ANSWERS || !is_old => Err(refused.hint.clone()),
                refused => self.auth.answer(scope, challenge, refused.as_ref(), self).await?,
            };
            authorization = match answer {
                Ok(answer) => Some(answer),
                Err(hint) => return Err(self.hint(hint).refusal(self.endpoint.asked_at(url, call), status, said)),
            };
        }
        unreachable!("the last round is spent")
    }

    /// Those of hosts.toml are for its host.
    fn headers(&self) -> HeaderMap {
        if self.is_own { self.endpoint.headers.clone() } else { HeaderMap::new() }
    }

    /// The answer of a token server and who gave it. A secret is sent on within its host only.
    async fn follow_token(
        &self,
        mut url: Url,
        mut asked: Asked,
        mut headers: HeaderMap,
        form: Option<String>,
    ) -> Result<(Response, Asked), Error> {
        for _ in 0..=MAX_REDIRECTS {
            let request = match &form {
                None => self.endpoint.client.get(url.clone()),
                Some(form) => self.endpoint.client.post(url.clone()).body(form.clone()),
            };
            let request = request.headers(headers.clone());
            let response = self.endpoint.timed(request, Duration::ZERO, &asked).await?;
            if !response.status().is_redirection() {
                return Ok((response, asked));
            }
            let next = location(&url, &response);
            let is_same = next.as_ref().is_some_and(|next| is_same_host(&url, next));
            url = match next {
                Some(next) if is_same || form.is_none() => next,
                _ => break,
            };
            if !is_same {
                headers.remove(header::AUTHORIZATION);
            }
            asked.host = authority(&url);
        }
        Err(Error::Redirect { asked })
    }

    fn hint(&self, hint: Hint) -> Hint {
        match self.is_own {
            true => hint,
            false => hint.after(&format!("registry {} redirected silk there", self.endpoint.host.authority)),
        }
    }
}

impl TokenServer for Party<'_> {
    async fn fetch(&self, request: TokenRequest) -> Result<Vec<u8>, Error> {
        let TokenRequest { url, asked, kind, hint } = request;
        debug!(host = %asked.host, "token request for {}", asked.what);
        let mut headers = self.headers();
        if !self.endpoint.is_own_origin(&url) {
            // containerd sends the headers of hosts.toml to the token server too; silk keeps the secret one to its host.
            headers.remove(header::AUTHORIZATION);
        }
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let form = match kind {
            TokenRequestKind::Get(authorization) => {
                authorization.map(|value| headers.insert(header::AUTHORIZATION, value));
                None
            }
            TokenRequestKind::Post(form) => {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
                Some(form)
            }
        };
        let (response, asked) = self.follow_token(url, asked, headers, form).await?;
        let response = match self.endpoint.judged(response, asked.clone()).await {
            Err(Error::Denied { asked, status, said, .. }) => return Err(hint.refusal(asked, status, said)),
            judged => judged?,
        };
        let body = self.endpoint.body(response, MAX_TOKEN_BODY).await.map_err(|fault| fault.of(asked.clone()))?;
        body.ok_or(Error::TooLarge { asked, limit: MAX_TOKEN_BODY })
    }

    fn is_tls(&self) -> bool {
        // Elsewhere it is, or the wire does not leave this machine.
        !self.is_own || self.endpoint.host.tls && !self.endpoint.fell_back.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{Config, credentials::Credentials, tls};

    #[test]
    fn credentials_are_for_registries_that_prove_who_they_are() {
        let endpoint = |skip_verify| {
            let config = Config { hosts_dirs: Vec::new(), ..Config::default() };
            let host = hosts::load(&config, "cr.example").unwrap().remove(0);
            let host = hosts::Host { skip_verify, ..host };
            let credentials = Arc::new(Credentials::new(PathBuf::new(), Duration::ZERO));
            Endpoint::new(host, &config, credentials, &tls::Roots::default(), Arc::default()).unwrap()
        };
        let [careful, careless] = [false, true].map(endpoint);
        let party =
            |endpoint: &Endpoint, url: &str| endpoint.party(&Url::parse(url).unwrap()).map(|party| party.is_own);
        for (url, expected) in [
            ("https://cr.example/v2/a/blobs/x", Some(true)),
            ("https://cr.example/elsewhere", Some(true)),
            ("https://ghcr.io/v2/a/b/blobs/x", Some(false)),
            ("http://127.0.0.1:5000/v2/a/manifests/x", Some(false)),
            ("http://ghcr.io/v2/a/blobs/x", None),
            ("http://cr.example/v2/a/blobs/x", None),
            ("https://storage.example/blobs/x", None),
            ("https://storage.example/v2/x", None),
        ] {
            assert_eq!(party(&careful, url), expected, "{url}");
        }
        assert_eq!(party(&careless, "https://ghcr.io/v2/a/b/blobs/x"), None);
        let same = |from, to| is_same_host(&Url::parse(from).unwrap(), &Url::parse(to).unwrap());
        assert!(same("http://h/token", "https://h/token") && same("https://h/a", "https://h:443/b"));
        assert!(!same("https://h/a", "http://h/a") && !same("https://h/a", "https://i/a"));
        assert_eq!(repository(&Url::parse("https://h/v2/a/blobs/b/blobs/x").unwrap()), Some("a/blobs/b"));
    }
}
