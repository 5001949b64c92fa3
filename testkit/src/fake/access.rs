//! Who is let in, and the token server.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

/// What a registry wants to see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    #[default]
    Open,
    /// Basic authorization.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token from `/token`.
    Bearer {
        /// User and password for the token server (GET); none: everybody gets one.
        user: Option<(String, String)>,
        /// The identity token for the token server (POST).
        identity_token: Option<String>,
        /// What `expires_in` says, in seconds. Tokens do not expire by the clock, but when the test says so.
        expires_in: Option<u64>,
    },
}

impl Access {
    /// Basic authorization.
    pub fn basic(user: &str, password: &str) -> Self {
        Self::Basic { user: user.into(), password: password.into() }
    }

    /// A token for everybody.
    pub fn anonymous_token() -> Self {
        Self::Bearer { user: None, identity_token: None, expires_in: None }
    }

    /// A token for this user.
    pub fn token(user: &str, password: &str) -> Self {
        Self::Bearer { user: Some((user.into(), password.into())), identity_token: None, expires_in: None }
    }

    /// A token against this identity token.
    pub fn identity_token(token: &str) -> Self {
        Self::Bearer { user: None, identity_token: Some(token.into()), expires_in: None }
    }
}

/// The tokens handed out and not expired.
#[derive(Default)]
pub(super) struct Tokens {
    valid: Vec<String>,
    made: usize,
}

impl Tokens {
    pub(super) fn expire(&mut self) {
        self.valid.clear();
    }

    fn make(&mut self) -> String {
        self.made += 1;
        let token = format!("token-{}", self.made);
        self.valid.push(token.clone());
        token
    }
}

/// The challenge for who is not let in.
pub(super) fn challenge(
    access: &Access,
    tokens: &Tokens,
    realm: &str,
    repository: &str,
    authorization: Option<&str>,
) -> Option<String> {
    match access {
        Access::Open => None,
        Access::Basic { user, password } => {
            (authorization != Some(&basic(user, password))).then(|| "Basic realm=\"fake\"".to_owned())
        }
        Access::Bearer { .. } => {
            let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
            let valid = token.is_some_and(|token| tokens.valid.iter().any(|valid| valid == token));
            let scope = format!("repository:{repository}:pull,push");
            (!valid).then(|| format!("Bearer realm=\"{realm}\",service=\"fake\",scope=\"{scope}\""))
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// The token server's answer; none for 401.
pub(super) fn token(
    access: &Access,
    tokens: &mut Tokens,
    authorization: Option<&str>,
    form: &HashMap<String, String>,
) -> Option<Value> {
    let Access::Bearer { user, identity_token, expires_in } = access else { return None };
    let allowed = match (identity_token, user) {
        (Some(token), _) => {
            form.get("refresh_token") == Some(token) && form.get("grant_type").is_some_and(|t| t == "refresh_token")
        }
        (None, Some((user, password))) => authorization == Some(&basic(user, password)),
        (None, None) => true,
    };
    if !allowed {
        return None;
    }
    let name = if identity_token.is_some() { "access_token" } else { "token" };
    let mut answer = json!({ name: tokens.make() });
    if let Some(seconds) = expires_in {
        answer["expires_in"] = json!(seconds);
    }
    Some(answer)
}
