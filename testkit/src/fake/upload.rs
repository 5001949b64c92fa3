//! Pushes, deletions and the list of referrers.

use bytes::Bytes;
use hyper::StatusCode;
use serde_json::{Value, json};
use silk_model::Digest;

use super::{Inner, Request, serve::Reply};

/// What a path names: `/v2/REPOSITORY/KIND/ID?QUERY`.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub repository: &'a str,
    pub kind: &'a str,
    pub id: &'a str,
    pub query: &'a str,
}

/// The answer to a request that writes or lists; none to all others.
pub(super) fn reply(inner: &mut Inner, request: &Request, target: Target<'_>, body: &Bytes) -> Option<Reply> {
    let Target { repository, kind, id, query } = target;
    match (request.method.as_str(), kind) {
        ("POST", "/blobs/") if id == "uploads/" => {
            inner.uploads += 1;
            // Relative and with a parameter: clients must handle both.
            let location = format!("/v2/{repository}/blobs/uploads/{}?_state=abc%3D", inner.uploads);
            Some(Reply::text(StatusCode::ACCEPTED, "").with("location", location))
        }
        ("PUT", "/blobs/") => Some(blob(inner, query, body)),
        ("PUT", "/manifests/") => Some(manifest(inner, request, repository, id, body)),
        ("DELETE", "/manifests/") => Some(delete(inner, repository, id)),
        (_, "/referrers/") if !inner.has_referrers => Some(Reply::text(StatusCode::NOT_FOUND, "404 page not found\n")),
        (_, "/referrers/") => Some(referrers(inner, target)),
        _ => None,
    }
}

fn blob(inner: &mut Inner, query: &str, body: &Bytes) -> Reply {
    let claimed = query.split('&').find_map(|pair| pair.strip_prefix("digest=")).unwrap_or_default();
    let digest = Digest::of(body).to_string();
    if !query.contains("_state=abc%3D") || claimed.replace("%3A", ":") != digest {
        return Reply::error(
            StatusCode::BAD_REQUEST,
            "DIGEST_INVALID",
            "provided digest did not match uploaded content",
        );
    }
    inner.blobs.insert(digest, body.clone());
    Reply::text(StatusCode::CREATED, "")
}

fn manifest(inner: &mut Inner, request: &Request, repository: &str, id: &str, body: &Bytes) -> Reply {
    let digest = Digest::of(body).to_string();
    let Ok(document) = serde_json::from_slice::<Value>(body) else {
        return Reply::error(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", "manifest invalid");
    };
    if id.starts_with("sha256:") && id != digest {
        return Reply::error(
            StatusCode::BAD_REQUEST,
            "DIGEST_INVALID",
            "provided digest did not match uploaded content",
        );
    }
    // What it names must be there, as distribution wants it.
    let layers = document["layers"].as_array().into_iter().flatten().chain([&document["config"]]);
    let blobs = layers.filter_map(|descriptor| descriptor["digest"].as_str());
    let children = document["manifests"].as_array().into_iter().flatten().filter_map(|child| child["digest"].as_str());
    let has = |digest: &str| inner.manifests.contains_key(&(repository.to_owned(), digest.to_owned()));
    if !blobs.into_iter().all(|digest| inner.blobs.contains_key(digest)) || !children.into_iter().all(has) {
        return Reply::error(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry");
    }
    let media_type = request.header("content-type").unwrap_or_default().to_owned();
    for key in [id, &digest] {
        inner.manifests.insert((repository.into(), key.into()), (media_type.clone(), body.clone()));
    }
    let reply = Reply::text(StatusCode::CREATED, "").with("docker-content-digest", digest);
    match document["subject"]["digest"].as_str() {
        Some(subject) if inner.has_referrers => reply.with("oci-subject", subject),
        _ => reply,
    }
}

fn delete(inner: &mut Inner, repository: &str, digest: &str) -> Reply {
    if !inner.allows_deletes {
        return Reply::error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "The operation is unsupported.");
    }
    let before = inner.manifests.len();
    inner.manifests.retain(|(of, _), (_, bytes)| of != repository || Digest::of(bytes).to_string() != digest);
    match inner.manifests.len() == before {
        true => Reply::error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown"),
        false => Reply::text(StatusCode::ACCEPTED, ""),
    }
}

/// Those of one page, of all types: a registry may ignore the filter.
fn referrers(inner: &Inner, Target { repository, id: subject, query, .. }: Target<'_>) -> Reply {
    let mut entries = Vec::new();
    for ((of, id), (media_type, bytes)) in &inner.manifests {
        let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
        if of == repository && id.starts_with("sha256:") && document["subject"]["digest"] == subject {
            entries.push(json!({
                "mediaType": media_type, "digest": id, "size": bytes.len(),
                "artifactType": document["artifactType"], "annotations": document["annotations"],
            }));
        }
    }
    entries.sort_by_key(|entry| entry["digest"].to_string());
    let from = query.split('&').find_map(|pair| pair.strip_prefix("from=")?.parse().ok()).unwrap_or(0);
    let to = from + inner.referrers_page.unwrap_or(entries.len());
    let page: Vec<&Value> = entries.iter().skip(from).take(to - from).collect();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": page });
    let reply = Reply::text(StatusCode::OK, index.to_string()).with("content-type", media_type);
    match to < entries.len() {
        true => reply.with("link", format!("</v2/{repository}/referrers/{subject}?from={to}>; rel=\"next\"")),
        false => reply,
    }
}
