//! Artifacts that refer to a manifest (OCI distribution specification 1.1, "Listing Referrers"), also at registries that do
//! not know what that is: there a tag made of the subject's digest names an index of them ("Referrers Tag Schema").

use std::{collections::BTreeMap, sync::atomic::Ordering};

use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use silk_model::Digest;
use tracing::debug;

use crate::{
    Error, Repository, Selector,
    attempts::Attempts,
    endpoint::{Answer, Call, Endpoint},
    repository::{Needs, accept, again},
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The largest list that is read: some 10,000 referrers.
const MAX_LIST: usize = 4 << 20;
/// Times that the index of the tag is written before the others that write it are left to win.
const MAX_ROUNDS: usize = 4;

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
    /// The manifests of one artifact type that refer to `subject`. None is no error. Only the first page of a list is read.
    ///
    /// # Errors
    /// After retries and on all hosts.
    pub async fn referrers(&self, subject: &Digest, artifact_type: &str) -> Result<Vec<Referrer>, Error> {
        let inner = &*self.inner;
        let what = format!("referrers of {subject} of {}", inner.path);
        let query: String = url::form_urlencoded::byte_serialize(artifact_type.as_bytes()).collect();
        let call = inner.call(Method::GET, format!("referrers/{subject}?artifactType={query}"), what);
        let call = Call { accept: accept(&[INDEX]), ..call };
        let mut attempts = Attempts::new(inner.policy, inner.order(Needs::Resolve, None)?);
        let listed = loop {
            match list(&inner.endpoints[attempts.host()], &call).await {
                Ok(index) => break Ok(index),
                Err(error) => match again(&mut attempts, error).await {
                    Ok(()) => {}
                    Err(error) => break Err(error),
                },
            }
        };
        let index = match listed {
            Ok(index) => index,
            Err(error) if says_unknown(&error) => match self.tagged(subject).await? {
                Some(index) => index,
                None => return Ok(Vec::new()),
            },
            Err(error) => return Err(error),
        };
        Ok(entries(&index).into_iter().filter(|referrer| referrer.artifact_type == artifact_type).collect())
    }

    /// Stores a manifest that refers to `subject` (as its own `subject` field says), and takes those of `replaces` off
    /// the list. These are deleted where the registry allows it.
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
        for digest in replaces.iter().filter(|digest| **digest != referrer.digest) {
            if let Err(error) = self.delete_manifest(*digest).await {
                debug!("an old referrer stays: {error}");
            }
        }
        Ok(())
    }

    /// The index that the tag of `subject` names.
    async fn tagged(&self, subject: &Digest) -> Result<Option<Value>, Error> {
        match self.manifest(&Selector::Tag(tag_of(subject)), &[INDEX]).await {
            Ok(manifest) => Ok(serde_json::from_slice(&manifest.bytes).ok()),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the tag's index until it says what it should. Other tools' entries stay as they are.
    async fn tag(&self, subject: &Digest, referrer: &Referrer, replaces: &[Digest]) -> Result<(), Error> {
        for _ in 0..MAX_ROUNDS {
            let before = self.tagged(subject).await?;
            let after = with_entry(before.as_ref(), referrer, replaces);
            if before.as_ref() == Some(&after) {
                break;
            }
            self.push_manifest(Some(&tag_of(subject)), INDEX, after.to_string().into()).await?;
        }
        Ok(())
    }
}

/// The list by the API, or an error that [`says_unknown`] understands.
async fn list(endpoint: &Endpoint, call: &Call<'_>) -> Result<Value, Error> {
    let asked = || endpoint.asked(call);
    let unknown = || Error::NotFound { asked: asked(), status: StatusCode::NOT_FOUND, said: Default::default() };
    if endpoint.lacks_referrers.load(Ordering::Relaxed) {
        return Err(unknown());
    }
    let Answer { response, .. } = match endpoint.ask(call).await {
        Ok(answer) => answer,
        Err(error) => {
            // Without a registry's words it is the path that is unknown, and not a repository or a mirror's copy.
            if matches!(&error, Error::NotFound { said, .. } if said.is_empty()) {
                endpoint.lacks_referrers.store(true, Ordering::Relaxed);
            }
            return Err(error);
        }
    };
    let body = endpoint.body(response, MAX_LIST).await.map_err(|fault| fault.of(asked()))?;
    let body = body.ok_or_else(|| Error::TooLarge { asked: asked(), limit: MAX_LIST })?;
    // Some proxies answer every path with a page of theirs.
    serde_json::from_slice(&body).ok().filter(|index: &Value| index["manifests"].is_array()).ok_or_else(unknown)
}

/// Whether a registry does not know the API: 404, by the specification, and what some answer instead.
fn says_unknown(error: &Error) -> bool {
    match error {
        Error::NotFound { .. } => true,
        Error::Status { status, .. } => matches!(status.as_u16(), 400 | 405 | 501),
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
