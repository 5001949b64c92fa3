//! Artifacts that refer to a manifest (OCI distribution specification 1.1, "Listing Referrers"), also at registries that do
//! not know what that is: there a tag made of the subject's digest names an index of them ("Referrers Tag Schema").

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use reqwest::{
    Method, StatusCode,
    header::{self, HeaderMap},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use silk_model::{Class, Digest};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};
use url::Url;

use crate::{
    Asked, Error, Repository, Selector,
    endpoint::{Answer, Call, Endpoint},
    repository::{Needs, accept, again},
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The largest list that is read: some 10,000 referrers.
const MAX_LIST: usize = 4 << 20;
/// Pages of one list that are read; registries put some hundred referrers on one.
const MAX_PAGES: usize = 100;
/// Times that the index of the tag is written before the others that write it are left to win.
const MAX_ROUNDS: usize = 4;
/// The next host has so long to say more than a mirror's empty list does. Chosen: a registry that can be reached answers well within it.
const SECOND_LOOK: Duration = Duration::from_millis(500);
/// Old referrers that are deleted beside one write: each costs two requests, one after the other. There are more only where
/// deletion was refused before, and the writes that follow take the rest.
const MAX_DELETIONS: usize = 16;

/// A manifest that refers to another one, as lists describe it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    /// Of the manifest.
    pub media_type: String,
    /// Of the manifest.
    pub digest: Digest,
    /// Of the manifest, in bytes.
    pub size: u64,
    /// What the artifact is.
    #[serde(default)]
    pub artifact_type: String,
    /// The manifest's annotations; some registries leave them out.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Repository {
    /// The manifests of one artifact type that refer to `subject`. None is no error.
    ///
    /// # Errors
    /// After retries and on all hosts.
    pub async fn referrers(&self, subject: &Digest, artifact_type: &str) -> Result<Vec<Referrer>, Error> {
        self.listed(subject, artifact_type, Needs::Resolve).await
    }

    /// The same as the host lists them that is pushed to, for whoever is about to replace some: a mirror's list may be an old one.
    ///
    /// # Errors
    /// After retries.
    pub async fn own_referrers(&self, subject: &Digest, artifact_type: &str) -> Result<Vec<Referrer>, Error> {
        self.listed(subject, artifact_type, Needs::Push).await
    }

    async fn listed(&self, subject: &Digest, artifact_type: &str, needs: Needs) -> Result<Vec<Referrer>, Error> {
        let inner = &*self.inner;
        let what = format!("referrers of {subject} of {}", inner.path);
        let query: String = url::form_urlencoded::byte_serialize(artifact_type.as_bytes()).collect();
        let call = inner.call(Method::GET, format!("referrers/{subject}?artifactType={query}"), what);
        let call = Call { accept: accept(&[INDEX]), ..call };
        let found = |index: &Value| -> Vec<Referrer> {
            entries(index).into_iter().filter(|referrer| referrer.artifact_type == artifact_type).collect()
        };
        let (mut attempts, mut is_empty) = (inner.attempts(needs)?, false);
        let listed = loop {
            let endpoint = &inner.endpoints[attempts.host()];
            let asked = list(endpoint, &call);
            let answer = match is_empty {
                false => asked.await,
                // Who looks waits for a pull's sake, and has an answer.
                true => timeout(SECOND_LOOK, asked).await.unwrap_or_else(|_| Err(unknown(endpoint, &call))),
            };
            match answer {
                // Mirrors may list what they hold themselves, and nothing else.
                Ok(index) if found(&index).is_empty() && !attempts.is_at_last() => {
                    is_empty = true;
                    if let Err(error) = attempts.failed(unknown(endpoint, &call), Instant::now()) {
                        break Err(error);
                    }
                }
                Ok(index) => break Ok(index),
                Err(error) if is_empty => break Err(error),
                Err(error) => match again(&mut attempts, error).await {
                    Ok(()) => {}
                    Err(error) => break Err(error),
                },
            }
        };
        let index = match listed {
            Ok(index) => index,
            Err(error) if says_unknown(&error) => match self.tagged(subject, needs).await {
                Ok(Some(index)) => index,
                Ok(None) => return Ok(Vec::new()),
                Err(_) if is_empty => return Ok(Vec::new()),
                Err(error) => return Err(error),
            },
            // Nodes that reach their mirror only, or have no credentials for more, have its word.
            Err(_) if is_empty => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        Ok(found(&index))
    }

    /// Stores a manifest that refers to `subject` (as its own `subject` field says), and takes those of `replaces` off
    /// the list. These are deleted where the registry allows it, and if they do refer to `subject`: a list may have come from the tag, which is what
    /// anybody wrote who may push.
    ///
    /// At registries without the referrers API two writers of the same list can overwrite each other's entry; each looks again
    /// and repairs its own.
    ///
    /// # Errors
    /// After retries. That an old one cannot be deleted is none.
    pub async fn push_referrer(
        &self,
        subject: &Digest,
        referrer: &Referrer,
        manifest: Bytes,
        replaces: &[Digest],
    ) -> Result<(), Error> {
        let accepted = self.push_manifest(None, &referrer.media_type, manifest).await?;
        if !accepted.is_noted {
            self.tag(subject, referrer, replaces).await?;
        }
        let inner = &*self.inner;
        let endpoint = &inner.endpoints[inner.attempts(Needs::Push)?.host()];
        if endpoint.deletions.are_refused(&inner.path) {
            return Ok(());
        }
        for digest in replaces.iter().filter(|digest| **digest != referrer.digest).take(MAX_DELETIONS) {
            let gone = async {
                let is_ours = self.refers(digest, subject, referrer).await?;
                if is_ours { self.delete_manifest(*digest).await } else { Ok(()) }
            };
            if let Err(error) = gone.await {
                debug!("an old referrer stays: {error}");
                // So will the others.
                if refuses_deletions(&error) {
                    endpoint.deletions.refused(&inner.path);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Does a manifest refer to `subject`, as an artifact like `referrer`? One that is not there does not.
    async fn refers(&self, digest: &Digest, subject: &Digest, referrer: &Referrer) -> Result<bool, Error> {
        /// What of it counts.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Document {
            artifact_type: Option<String>,
            subject: Option<Subject>,
        }
        #[derive(Deserialize)]
        struct Subject {
            digest: Digest,
        }
        let old = self.manifest_at(&Selector::Digest(*digest), &[&referrer.media_type], Needs::Push).await;
        let old = match old {
            Err(error) if error.class() == Class::NotFound => return Ok(false),
            old => old?,
        };
        let refers = serde_json::from_slice(&old.bytes).is_ok_and(|document: Document| {
            document.artifact_type.as_deref() == Some(&referrer.artifact_type)
                && document.subject.is_some_and(|of| of.digest == *subject)
        });
        if !refers {
            warn!("{digest} is listed among the referrers of {subject} of {self} and is none: it stays");
        }
        Ok(refers)
    }

    /// The index that the tag of `subject` names.
    async fn tagged(&self, subject: &Digest, needs: Needs) -> Result<Option<Value>, Error> {
        match self.manifest_at(&Selector::Tag(tag_of(subject)), &[INDEX], needs).await {
            Ok(manifest) if manifest.bytes.len() <= MAX_LIST && is_modest(&manifest.bytes) => {
                Ok(serde_json::from_slice(&manifest.bytes).ok())
            }
            Ok(_) => {
                let asked = Asked { host: self.registry().to_owned(), what: format!("the index {}", tag_of(subject)) };
                Err(Error::TooLarge { asked, limit: MAX_LIST })
            }
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the tag's index until it says what it should. Other tools' entries stay as they are.
    async fn tag(&self, subject: &Digest, referrer: &Referrer, replaces: &[Digest]) -> Result<(), Error> {
        for _ in 0..MAX_ROUNDS {
            let before = self.tagged(subject, Needs::Push).await?;
            let after = with_entry(before.as_ref(), referrer, replaces);
            if before.as_ref() == Some(&after) {
                break;
            }
            self.push_manifest(Some(&tag_of(subject)), INDEX, after.to_string().into()).await?;
        }
        Ok(())
    }
}

/// A part of a list, and where the next one is.
struct Page {
    index: Value,
    bytes: usize,
    next: Option<Url>,
}

/// The list by the API, with all its pages, or an error that [`says_unknown`] understands.
async fn list(endpoint: &Endpoint, call: &Call<'_>) -> Result<Value, Error> {
    let Page { index: mut list, bytes, mut next } = first_page(endpoint, call).await?;
    let mut left = MAX_LIST - bytes;
    // That a page is gone says nothing of the API.
    let lost = || Error::Redirect { asked: endpoint.asked(call) };
    for _ in 1..MAX_PAGES {
        let Some(url) = next else { return Ok(list) };
        let answer = endpoint.ask_at(&url, call).await;
        let answer = answer.map_err(|error| if says_unknown(&error) { lost() } else { error })?;
        let mut page = page(endpoint, call, answer, left).await?.ok_or_else(lost)?;
        if let (Some(all), Some(more)) = (list["manifests"].as_array_mut(), page.index["manifests"].as_array_mut()) {
            all.append(more);
        }
        left -= page.bytes;
        next = page.next;
    }
    if next.is_some() { Err(lost()) } else { Ok(list) }
}

async fn first_page(endpoint: &Endpoint, call: &Call<'_>) -> Result<Page, Error> {
    if endpoint.lacks_referrers() {
        return Err(unknown(endpoint, call));
    }
    match endpoint.ask(call).await {
        // Some proxies answer every path with a page of theirs.
        Ok(answer) => page(endpoint, call, answer, MAX_LIST).await?.ok_or_else(|| unknown(endpoint, call)),
        Err(error) => {
            // Without a registry's words it is the path that is unknown, and not a repository or a mirror's copy.
            if matches!(&error, Error::NotFound { said, .. } if said.is_empty()) {
                endpoint.set_lacks_referrers();
            }
            Err(error)
        }
    }
}

/// As if it had said 404.
fn unknown(endpoint: &Endpoint, call: &Call<'_>) -> Error {
    Error::NotFound { asked: endpoint.asked(call), status: StatusCode::NOT_FOUND, said: Default::default() }
}

/// What an answer holds, at most `limit` bytes; none if it is no index.
async fn page(endpoint: &Endpoint, call: &Call<'_>, answer: Answer, limit: usize) -> Result<Option<Page>, Error> {
    let asked = || endpoint.asked(call);
    let url = answer.response.url().clone();
    let next = match next_link(answer.response.headers()) {
        Some(link) => Some(on_same_host(&url, link).ok_or_else(|| Error::Redirect { asked: asked() })?),
        None => None,
    };
    let body = endpoint.body(answer.response, limit).await.map_err(|fault| fault.of(asked()))?;
    let body = body.ok_or_else(|| Error::TooLarge { asked: asked(), limit: MAX_LIST })?;
    if !is_modest(&body) {
        return Err(Error::TooLarge { asked: asked(), limit: MAX_LIST });
    }
    let index = serde_json::from_slice(&body).ok().filter(|index: &Value| index["manifests"].is_array());
    Ok(index.map(|index| Page { index, bytes: body.len(), next }))
}

/// Does it take, once it is read, some tens of times its length at most? An object takes up to 700 bytes of memory, any other value 70 (by the
/// sizes of serde_json's values and of a `BTreeMap`'s nodes), and an entry that the specification allows has one object in a hundred bytes, and a
/// value in twenty: objects of nothing, or zeros, would take hundreds of megabytes.
fn is_modest(json: &[u8]) -> bool {
    let count = |of: &[u8]| json.iter().filter(|byte| of.contains(byte)).count();
    count(b"{") <= json.len() / 32 + 100 && count(b"[,{") <= json.len() / 8 + 100
}

/// The target of `Link: <...>; rel="next"` (RFC 8288).
fn next_link(headers: &HeaderMap) -> Option<&str> {
    let texts = headers.get_all(header::LINK).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split('<').skip(1)).find_map(|link| {
        let (target, params) = link.split_once('>')?;
        let mut params = params.split([';', ',']).filter_map(|param| param.split_once('='));
        let is_next = params.any(|(name, value)| {
            let mut relations = value.trim().trim_matches('"').split_whitespace();
            name.trim().eq_ignore_ascii_case("rel") && relations.any(|one| one.eq_ignore_ascii_case("next"))
        });
        is_next.then_some(target)
    })
}

/// Where `link` on the page `at` leads, with the scheme and the parameters of that page (`ns`, for mirrors) that it does not
/// name; none if that is another host.
fn on_same_host(at: &Url, link: &str) -> Option<Url> {
    let mut url = at.join(link).ok().filter(Url::has_host)?;
    // A registry behind a proxy may not know by which scheme it is spoken to.
    url.set_scheme(at.scheme()).ok()?;
    let missing: Vec<_> = at.query_pairs().filter(|(name, _)| url.query_pairs().all(|(has, _)| has != *name)).collect();
    if !missing.is_empty() {
        url.query_pairs_mut().extend_pairs(missing);
    }
    (url.origin() == at.origin()).then_some(url)
}

/// Whether a registry does not know the API: 404, by the specification, and what some answer instead.
fn says_unknown(error: &Error) -> bool {
    match error {
        Error::NotFound { .. } => true,
        Error::Status { status, .. } => matches!(status.as_u16(), 400 | 405 | 501),
        _ => false,
    }
}

/// Whether nothing may be deleted, or nobody can.
fn refuses_deletions(error: &Error) -> bool {
    match error {
        Error::Denied { .. } => true,
        Error::Status { status, .. } => matches!(status.as_u16(), 405 | 501),
        _ => false,
    }
}

/// The tag that stands for the referrers of `subject`.
fn tag_of(subject: &Digest) -> String {
    format!("sha256-{}", subject.hex())
}

/// The entries that can be read; the others are other tools'.
fn entries(index: &Value) -> Vec<Referrer> {
    let all = index["manifests"].as_array().map_or(&[][..], Vec::as_slice);
    all.iter().filter_map(|entry| Referrer::deserialize(entry).ok()).collect()
}

/// `index` with `referrer` in it, once, and without `replaces`.
fn with_entry(index: Option<&Value>, referrer: &Referrer, replaces: &[Digest]) -> Value {
    let mut index = match index {
        Some(index) if index["manifests"].is_array() => index.clone(),
        _ => json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] }),
    };
    let gone: Vec<String> =
        replaces.iter().map(Digest::to_string).filter(|old| *old != referrer.digest.to_string()).collect();
    if let Some(all) = index["manifests"].as_array_mut() {
        all.retain(|entry| !gone.iter().any(|old| entry["digest"] == old.as_str()));
        if !all.iter().any(|entry| entry["digest"] == referrer.digest.to_string()) {
            all.push(serde_json::to_value(referrer).expect("a referrer is plain data"));
        }
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_on_the_same_host() {
        let next = |link: &str| {
            let mut headers = HeaderMap::new();
            headers.append(header::LINK, "<https://h/docs>; rel=help".parse().unwrap());
            headers.append(header::LINK, link.parse().unwrap());
            let at = Url::parse("https://h:5000/v2/a/referrers/d?artifactType=t%2Fu&ns=r").unwrap();
            next_link(&headers).map(|link| on_same_host(&at, link).map(String::from))
        };
        let url = Some(Some("https://h:5000/v2/x?n=1&artifactType=t%2Fu&ns=r".to_owned()));
        for link in [
            r#"</v2/x?n=1>; rel="next""#,
            "<https://h:5000/v2/x?n=1>;rel=next",
            r#"<http://h:5000/v2/x?n=1>; title="a, b"; REL="last Next""#,
            r#"</v2/0>; rel="first", </v2/x?n=1>; rel="next", </v2/9>; rel="last""#,
        ] {
            assert_eq!(next(link), url, "{link}");
        }
        for link in ["</v2/x>", "</v2/x>; rel=prev", "</v2/x; rel=next", "rel=next", ""] {
            assert_eq!(next(link), None, "{link}");
        }
        for link in ["<https://h/v2/x>; rel=next", "<//other:5000/x>; rel=next", "<data:x>; rel=next"] {
            assert_eq!(next(link), Some(None), "{link}");
        }
    }

    #[test]
    fn a_list_that_takes_much_memory_is_no_list() {
        let list = |entry: &str| format!(r#"{{"manifests":[{}]}}"#, vec![entry; 10_000].join(","));
        let honest = serde_json::to_string(&referrer("one")).unwrap();
        assert!(is_modest(list(&honest).as_bytes()) && is_modest(b"{}"));
        for entry in [r#"{"":0}"#, "{}", "[]", "0", "[[[[[[]]]]]]"] {
            assert!(!is_modest(list(entry).as_bytes()), "{entry}");
        }
    }

    fn referrer(name: &str) -> Referrer {
        Referrer {
            media_type: "m".into(),
            digest: Digest::of(name.as_bytes()),
            size: 3,
            artifact_type: "a".into(),
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn an_index_keeps_what_others_wrote() {
        let other = json!({ "mediaType": "x", "digest": "sha512:00", "size": 1, "platform": { "os": "y" } });
        let index = json!({ "schemaVersion": 2, "manifests": [other], "annotations": { "k": "v" } });
        let (one, two) = (referrer("one"), referrer("two"));
        let with_one = with_entry(Some(&index), &one, &[]);
        let with_two = with_entry(Some(&with_one), &two, &[one.digest, two.digest]);
        assert_eq!(with_two["manifests"][0], index["manifests"][0]);
        assert_eq!(with_two["annotations"], index["annotations"]);
        assert_eq!(entries(&with_two), std::slice::from_ref(&two));
        assert_eq!(with_entry(Some(&with_two), &two, &[one.digest]), with_two, "nothing left to do");
        assert_eq!(entries(&with_entry(None, &one, &[])), std::slice::from_ref(&one));
        assert_eq!(entries(&with_entry(Some(&json!([1])), &one, &[])), [one], "rubbish is replaced");
    }
}
