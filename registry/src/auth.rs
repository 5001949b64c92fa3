//! Authorization of requests to one host: basic, or a bearer token a repository, renewed as it expires.
//!
//! The first request goes without; a 401's challenge says what is wanted. Its answer is kept per scope until shortly before
//! it expires, then renewed without asking the registry again. Concurrent requests of a scope renew once, if the
//! token server answers within a second. Protocol: distribution's "Token Authentication Specification" and its OAuth2 variant.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::header::HeaderValue;
use serde::Deserialize;
use tokio::{
    sync::MutexGuard,
    time::{Instant, timeout},
};
use url::Url;

use crate::{
    Asked, Error,
    challenge::Challenge,
    credentials::{Credential, Credentials, Found, Hint},
};

/// The life of a token whose server names none, or an impossible one (token specification, `expires_in`).
const DEFAULT_LIFE: u64 = 60;
/// A longer life than this is not believed; it also keeps the clock's arithmetic in range.
const MAX_LIFE: u64 = 24 * 3600;
/// A token is renewed this long before it expires, or after three quarters of a shorter life: a request on its way must
/// not find it expired.
const MARGIN: Duration = Duration::from_secs(10);
/// Scopes remembered for a host before those not in use are dropped.
const MAX_SCOPES: usize = 1024;

/// How long a request waits for another one's renewal before it sees to one itself: some round trips to any token server, and
/// little beside the time that one that hangs may take. Where a credential helper takes longer, both have its answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// What one host has granted us.
pub(crate) struct Auth {
    credentials: Arc<Credentials>,
    /// Whose credentials are looked up.
    host: String,
    scopes: Mutex<HashMap<String, Arc<Slot>>>,
    serial: AtomicU64,
}

/// What is granted for a scope.
#[derive(Default)]
struct Slot {
    grant: Mutex<Option<Grant>>,
    /// Held by the request that renews it.
    renewing: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Grant {
    challenge: Challenge,
    authorization: Authorization,
    expires: Option<Instant>,
}

/// A header for requests, and which renewal it is of.
#[derive(Clone)]
pub(crate) struct Authorization {
    pub header: HeaderValue,
    /// If it is refused.
    pub hint: Hint,
    /// Granted for the request it is first used for.
    pub is_fresh: bool,
    serial: u64,
}

/// One request to a token server; the endpoint sends it.
pub(crate) struct TokenRequest {
    pub url: Url,
    pub asked: Asked,
    pub kind: TokenRequestKind,
    /// If the server refuses.
    pub hint: Hint,
}

pub(crate) enum TokenRequestKind {
    /// GET, with basic authorization if there are credentials.
    Get(Option<HeaderValue>),
    /// POST of this form.
    Post(String),
}

/// Sends a token request and returns the body of a 200.
pub(crate) trait TokenServer {
    fn fetch(&self, request: TokenRequest) -> impl Future<Output = Result<Vec<u8>, Error>> + Send;
    /// Whether the registry itself is spoken to by TLS.
    fn is_tls(&self) -> bool;
}

/// What is needed for which repository.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub repository: &'a str,
    pub actions: Actions,
}

/// What a token must allow. Each has a token of its own: a pull never holds the right to push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Actions {
    Pull,
    Push,
    Delete,
}

impl Scope<'_> {
    fn text(self) -> String {
        let actions = match self.actions {
            Actions::Pull => "pull",
            Actions::Push => "pull,push",
            Actions::Delete => "pull,delete",
        };
        format!("repository:{}:{actions}", self.repository)
    }
}

// === impl Auth ===

impl Auth {
    pub(crate) fn new(credentials: Arc<Credentials>, host: String) -> Self {
        Self { credentials, host, scopes: Mutex::default(), serial: AtomicU64::new(1) }
    }

    /// What was granted before, renewed if its time is over; none before the first challenge.
    pub(crate) async fn current(
        &self,
        scope: Scope<'_>,
        server: &impl TokenServer,
    ) -> Result<Option<Authorization>, Error> {
        let slot = self.slot(scope);
        if let Some(known) = slot.known().filter(Grant::is_valid) {
            return Ok(Some(known.authorization));
        }
        let _turn = slot.turn().await;
        // Another request may just have renewed it.
        let Some(known) = slot.known() else { return Ok(None) };
        if known.is_valid() {
            return Ok(Some(known.authorization));
        }
        match self.grant(scope, known.challenge, server).await? {
            Ok(grant) => Ok(Some(slot.keep(grant))),
            Err(_) => {
                // It may not be needed any more: the registry will say.
                slot.forget();
                Ok(None)
            }
        }
    }

    /// The answer to a refusal that `refused` met, without a challenge to that of the last one; if nothing can be
    /// answered that was not refused already, what that may come of.
    pub(crate) async fn answer(
        &self,
        scope: Scope<'_>,
        challenge: Option<Challenge>,
        refused: Option<&Authorization>,
        server: &impl TokenServer,
    ) -> Result<Result<Authorization, Hint>, Error> {
        let slot = self.slot(scope);
        let _turn = slot.turn().await;
        let known = slot.known();
        if let Some(known) = &known
            && refused.is_none_or(|refused| refused.serial < known.authorization.serial)
        {
            return Ok(Ok(known.authorization.clone()));
        }
        slot.forget();
        match challenge.or(known.map(|known| known.challenge)) {
            Some(challenge) => Ok(self.grant(scope, challenge, server).await?.map(|grant| slot.keep(grant))),
            None => Ok(Err(self.hint().await)),
        }
    }

    /// What a refusal may come of that nothing was answered to.
    pub(crate) async fn hint(&self) -> Hint {
        self.credentials.lookup(&self.host).await.hint
    }

    fn slot(&self, scope: Scope<'_>) -> Arc<Slot> {
        let mut scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        if scopes.len() >= MAX_SCOPES {
            scopes.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        scopes.entry(scope.text()).or_default().clone()
    }

    async fn grant(
        &self,
        scope: Scope<'_>,
        challenge: Challenge,
        server: &impl TokenServer,
    ) -> Result<Result<Grant, Hint>, Error> {
        let found = self.credentials.lookup(&self.host).await;
        let (header, life) = match &challenge {
            Challenge::Basic => match basic(found.credential.as_ref()) {
                Some(header) => (header, None),
                None => return Ok(Err(found.hint)),
            },
            Challenge::Bearer { .. } => {
                let request = token_request(scope, &challenge, &found, server.is_tls())?;
                let asked = request.asked.clone();
                let (header, life) = token(&server.fetch(request).await?).ok_or(Error::NoToken { asked })?;
                (header, Some(life))
            }
        };
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let authorization = Authorization { header, hint: found.hint, is_fresh: false, serial };
        Ok(Ok(Grant { challenge, authorization, expires: life.map(|life| Instant::now() + life) }))
    }
}

impl Slot {
    /// The right to renew, if those who have it are done in time.
    async fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        timeout(PATIENCE, self.renewing.lock()).await.ok()
    }

    fn known(&self) -> Option<Grant> {
        self.grant.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps a grant, for the request that asked for it first.
    fn keep(&self, grant: Grant) -> Authorization {
        let fresh = grant.fresh();
        *self.grant.lock().unwrap_or_else(PoisonError::into_inner) = Some(grant);
        fresh
    }

    fn forget(&self) {
        *self.grant.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Grant {
    fn is_valid(&self) -> bool {
        self.expires.is_none_or(|expires| Instant::now() < expires)
    }

    fn fresh(&self) -> Authorization {
        Authorization { is_fresh: true, ..self.authorization.clone() }
    }
}

/// `Basic` of RFC 7617; an identity token is no password.
fn basic(credential: Option<&Credential>) -> Option<HeaderValue> {
    let Some(Credential::Password { user, password }) = credential else { return None };
    secret(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

/// A header value that no log prints.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What to send to which token server.
fn token_request(scope: Scope<'_>, challenge: &Challenge, found: &Found, tls: bool) -> Result<TokenRequest, Error> {
    let Challenge::Bearer { realm, service, scopes } = challenge else {
        unreachable!("the caller has matched the challenge")
    };
    let what = format!("a token for {}", scope.repository);
    let mut url = match Url::parse(realm) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
        _ => return Err(Error::NoToken { asked: Asked { host: crate::error::shorten(realm), what } }),
    };
    let asked = Asked { host: authority(&url), what };
    // A registry may want a scope under another name than ours (a proxy's path, public.ecr.aws): ask for both, as
    // containerd does.
    let mut scopes = scopes.clone();
    scopes.push(scope.text());
    scopes.sort();
    scopes.dedup();
    // A registry reached by TLS has no business to send our secret over the open network.
    let open = tls && url.scheme() == "http" && !crate::hosts::is_loopback(&asked.host);
    let (credential, hint) = match open {
        true => {
            let why = format!("its token server {} has no TLS, so silk sends it no credentials", asked.host);
            (None, Hint::LookAt(why))
        }
        false => (found.credential.as_ref(), found.hint.clone()),
    };
    let kind = match credential {
        Some(Credential::IdentityToken(token)) => {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token").append_pair("client_id", "silk");
            form.append_pair("refresh_token", token).append_pair("scope", &scopes.join(" "));
            form.append_pair("service", service.as_deref().unwrap_or_default());
            TokenRequestKind::Post(form.finish())
        }
        credential => {
            let mut query = url.query_pairs_mut();
            service.iter().for_each(|service| {
                query.append_pair("service", service);
            });
            scopes.iter().for_each(|scope| {
                query.append_pair("scope", scope);
            });
            drop(query);
            TokenRequestKind::Get(basic(credential))
        }
    };
    Ok(TokenRequest { url, asked, kind, hint })
}

/// `host` or `host:port` of a URL, as messages name it.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The header, and how long it is good for.
fn token(body: &[u8]) -> Option<(HeaderValue, Duration)> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        token: Option<String>,
        #[serde(default)]
        access_token: Option<String>,
        #[serde(default)]
        expires_in: Option<f64>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token)?;
    if token.is_empty() {
        return None;
    }
    let life = answer.expires_in.filter(|life| *life >= 1.0).map_or(DEFAULT_LIFE, |life| life as u64).min(MAX_LIFE);
    let life = Duration::from_secs(life);
    Some((secret(&format!("Bearer {token}"))?, life - MARGIN.min(life / 4)))
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Auth({})", self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(realm: &str, credential: Option<Credential>, tls: bool) -> Result<TokenRequest, Error> {
        let challenge =
            Challenge::Bearer { realm: realm.into(), service: Some("s".into()), scopes: vec!["aws".into()] };
        let found = Found { credential, hint: Hint::LookAt("hint".into()) };
        let scope = Scope { repository: "a/b", actions: Actions::Pull };
        token_request(scope, &challenge, &found, tls)
    }

    fn password() -> Option<Credential> {
        Some(Credential::Password { user: "u".into(), password: "p".into() })
    }

    #[test]
    fn asks_for_the_registrys_scope_and_ours() {
        let request = request("https://t.example:8/token?x=1", password(), true).unwrap();
        let query = "x=1&service=s&scope=aws&scope=repository%3Aa%2Fb%3Apull";
        assert_eq!(request.url.as_str(), format!("https://t.example:8/token?{query}"));
        assert_eq!(request.asked.host, "t.example:8");
        let TokenRequestKind::Get(Some(header)) = request.kind else { panic!() };
        assert_eq!((header.to_str().unwrap(), header.is_sensitive()), ("Basic dTpw", true));
    }

    #[test]
    fn an_identity_token_is_posted() {
        let request = request("https://t.example/token", Some(Credential::IdentityToken("r&t".into())), true).unwrap();
        let TokenRequestKind::Post(form) = request.kind else { panic!() };
        assert!(form.contains("grant_type=refresh_token") && form.contains("refresh_token=r%26t"), "{form}");
        assert!(form.contains("scope=aws+repository%3Aa%2Fb%3Apull"), "{form}");
        assert_eq!(request.url.query(), None);
    }

    #[test]
    fn no_secret_goes_to_a_token_server_without_tls() {
        for (realm, tls, sent) in [
            ("http://t.example/token", true, false),
            ("http://127.0.0.1:1/token", true, true),
            ("http://t.example/token", false, true),
        ] {
            let request = request(realm, password(), tls).unwrap();
            assert_eq!(matches!(request.kind, TokenRequestKind::Get(Some(_))), sent, "{realm} {tls}");
        }
        for realm in ["", "/token", "ftp://t/x", "data:x"] {
            assert!(matches!(request(realm, None, true), Err(Error::NoToken { .. })), "{realm}");
        }
    }

    #[test]
    fn tokens_live_as_long_as_their_server_says_less_a_margin() {
        let life = |json: &str| token(json.as_bytes()).map(|(_, life)| life.as_secs());
        assert_eq!(life(r#"{"token": "t"}"#), Some(50));
        assert_eq!(life(r#"{"access_token": "t", "expires_in": 300}"#), Some(290));
        assert_eq!(life(r#"{"token": "", "access_token": "t", "expires_in": 4}"#), Some(3));
        assert_eq!(life(r#"{"token": "t", "expires_in": 1e300}"#), Some(MAX_LIFE - 10));
        assert_eq!(life(r#"{"token": "t", "expires_in": -5}"#), Some(50));
        for bad in ["", "{}", r#"{"token": "a\nb"}"#, r#"{"token": ""}"#, r#"{"token": 3}"#] {
            assert_eq!(life(bad), None, "{bad}");
        }
        assert_eq!(token(br#"{"token":"t","access_token":"u"}"#).unwrap().0, "Bearer t");
    }
}
