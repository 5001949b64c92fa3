//! `WWW-Authenticate`: RFC 9110 11.6.1. Pure text, no I/O.
//!
//! One header may hold several challenges, and a challenge several parameters, both separated by commas; quoted values
//! hold commas of their own (`scope="repository:a:pull,push"`).

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    /// A token from `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scopes: Vec<String>,
    },
}

/// The challenge silk answers: a bearer token if one is asked for, else basic, else none.
pub(crate) fn choose(headers: &HeaderMap) -> Option<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let mut chosen = None;
    for (scheme, params) in texts.flat_map(parse) {
        let get = |name: &str| params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone());
        if scheme.eq_ignore_ascii_case("bearer") {
            let Some(realm) = get("realm") else { continue };
            let scopes = get("scope").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
            return Some(Challenge::Bearer { realm, service: get("service"), scopes });
        }
        if scheme.eq_ignore_ascii_case("basic") {
            chosen = Some(Challenge::Basic);
        }
    }
    chosen
}

type Params = Vec<(String, String)>;

/// All challenges of one header; what cannot be read ends it.
fn parse(text: &str) -> Vec<(String, Params)> {
    let mut challenges: Vec<(String, Params)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let word;
        (word, rest) = token(rest);
        if word.is_empty() {
            return challenges;
        }
        // "name = value" is a parameter; a word that no "=" follows opens a new challenge.
        let Some(value) = rest.trim_start_matches([' ', '\t']).strip_prefix('=') else {
            challenges.push((word.to_owned(), Params::new()));
            continue;
        };
        let Some((value, after)) = value_of(value.trim_start_matches([' ', '\t'])) else { return challenges };
        rest = after;
        match challenges.last_mut() {
            Some((_, params)) => params.push((word.to_owned(), value)),
            None => return challenges,
        }
    }
}

/// The token that `text` starts with, and what follows it.
fn token(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_graphic() || "()<>@,;:\\\"/[]?={}".contains(c)).unwrap_or(text.len());
    text.split_at(end)
}

/// A quoted string or a token; none if a quote is not closed.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        // Not all servers quote URLs, so an unquoted value reaches to the next comma or space.
        let (value, rest) = text.split_at(text.find([',', ' ', '\t']).unwrap_or(text.len()));
        return Some((value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        texts.iter().for_each(|text| {
            headers.append(WWW_AUTHENTICATE, text.parse().unwrap());
        });
        choose(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scopes: &[&str]) -> Option<Challenge> {
        let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
        Some(Challenge::Bearer { realm: realm.into(), service: service.map(str::to_owned), scopes })
    }

    #[test]
    fn reads_what_registries_send() {
        assert_eq!(
            of(&[
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/a:pull,push""#
            ]),
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), &["repository:library/a:pull,push"])
        );
        assert_eq!(of(&[r#"Basic realm="x, y""#]), Some(Challenge::Basic));
        assert_eq!(
            of(&[r#"Negotiate, Basic realm="a=b, Bearer", bearer  Realm = "r" , scope="a b""#]),
            bearer("r", None, &["a", "b"]),
            "several challenges in one header; the token goes first"
        );
        assert_eq!(of(&["Basic realm=x", "Bearer realm=https://h/t,service=s"]), bearer("https://h/t", Some("s"), &[]));
        assert_eq!(of(&[r#"Bearer realm="a\"b\\c""#]), bearer("a\"b\\c", None, &[]));
        assert_eq!(of(&[r#"Negotiate YII=, Basic realm="x""#]), Some(Challenge::Basic));
    }

    #[test]
    fn rejects_the_rest_without_panic() {
        for text in [
            "",
            "Bearer",
            "Digest realm=x",
            r#"Bearer realm="open"#,
            "=,=",
            "Bearer =x",
            r#"Bearer realm="a\"#,
            ",,,",
            "é",
        ] {
            assert_eq!(parse(text).iter().find(|(s, p)| s == "Bearer" && !p.is_empty()), None, "{text}");
        }
        assert_eq!(of(&["Bearer service=x"]), None, "no realm, no token");
    }
}
