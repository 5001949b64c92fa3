//! Connections and requests.

use std::{
    collections::HashMap,
    io::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{Method, Response, StatusCode, body::Incoming, header, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use silk_model::Digest;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{
    Fault, Recorded, Request, State, access,
    body::{End, Scripted, never},
    upload::{self, Target},
};

/// Runs until aborted; its connections end with it.
pub(super) async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        // Small frames must arrive before a fault closes the connection.
        let _ = stream.set_nodelay(true);
        let (tls, state) = (tls.clone(), state.clone());
        connections.spawn(async move {
            match tls {
                None => connection(stream, state).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        connection(stream, state).await;
                    }
                }
            }
        });
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, state: Arc<State>) {
    let service = service_fn(|request| answer(request, state.clone()));
    // Errors are what faults are made of.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: hyper::Request<Incoming>, state: Arc<State>) -> Result<Response<Scripted>, io::Error> {
    let (parts, body) = request.into_parts();
    let form = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let headers: HashMap<String, String> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let seen = Request {
        method: parts.method.to_string(),
        path,
        headers,
        version: format!("{:?}", parts.version),
        status: 0,
        sent: 0,
    };
    let sent = Arc::new(AtomicU64::new(0));
    let (index, fault) = {
        let mut inner = state.lock();
        inner.requests.push(Recorded { request: seen.clone(), sent: sent.clone() });
        (inner.requests.len() - 1, inner.take_fault(&seen.line()))
    };
    state.changed.notify_waiters();
    match fault {
        Some(Fault::Close) => return Err(io::ErrorKind::ConnectionAborted.into()),
        Some(Fault::NoAnswer) => {
            state.stalls();
            match never().await {}
        }
        _ => {}
    }
    let reply = reply(&state, &seen, &form, fault.as_ref());
    let response = shape(reply, &seen, fault, sent, state.clone());
    state.lock().requests[index].request.status = response.status().as_u16();
    Ok(response)
}

/// An answer before faults and ranges.
pub(super) struct Reply {
    status: StatusCode,
    headers: Vec<(String, String)>,
    body: Bytes,
    /// A blob or a manifest: faults of bodies apply.
    is_content: bool,
}

impl Reply {
    pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), is_content: false }
    }

    pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Self {
        Self::text(status, serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string())
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

fn reply(state: &Arc<State>, request: &Request, form: &Bytes, fault: Option<&Fault>) -> Reply {
    match fault {
        Some(Fault::Status { code, headers, body }) => {
            let status = StatusCode::from_u16(*code).expect("a status code");
            return headers.iter().fold(Reply::text(status, body.clone()), |reply, (n, v)| reply.with(n, v.clone()));
        }
        Some(Fault::Redirect(location)) => {
            return Reply::text(StatusCode::TEMPORARY_REDIRECT, "elsewhere").with("location", location.clone());
        }
        _ => {}
    }
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    if path == "/token" {
        return token(state, request, form);
    }
    if let Some(digest) = path.strip_prefix("/storage/") {
        return stored(state, request, digest, query);
    }
    let Some(rest) = path.strip_prefix("/v2/") else {
        return Reply::error(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such path");
    };
    let found = ["/manifests/", "/blobs/", "/referrers/"]
        .iter()
        .find_map(|kind| rest.split_once(kind).map(|(r, id)| (*kind, r, id)));
    let Some((kind, repository, id)) = found else {
        return Reply::error(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such path");
    };
    let mut inner = state.lock();
    let realm = format!("{}://{}/token", inner.scheme, inner.host);
    let authorization = request.header("authorization");
    if let Some(challenge) = access::challenge(&inner.access, &inner.tokens, &realm, repository, authorization) {
        let reply = Reply::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
        return reply.with("www-authenticate", challenge);
    }
    if let Some(reply) = upload::reply(&mut inner, request, Target { repository, kind, id, query }, form) {
        return reply;
    }
    if kind == "/blobs/" {
        if let Some(storage) = inner.storage.clone() {
            drop(inner);
            let storage = storage.lock();
            let (scheme, host, signature) = (storage.scheme, &storage.host, storage.signature);
            let location = format!("{scheme}://{host}/storage/{id}?signature={signature}");
            return Reply::text(StatusCode::TEMPORARY_REDIRECT, "elsewhere").with("location", location);
        }
        return blob(inner.blobs.get(id).cloned());
    }
    match inner.manifests.get(&(repository.to_owned(), id.to_owned())).cloned() {
        None => Reply::error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown"),
        // As distribution 2.8 does: who does not name OCI's types does not know them.
        Some((media_type, _))
            if media_type.starts_with("application/vnd.oci.")
                && !request.header("accept").is_some_and(|accept| accept.contains(&media_type)) =>
        {
            let message = "OCI manifest found, but accept header does not support OCI manifests";
            Reply::error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", message)
        }
        Some((media_type, body)) => {
            let digest = inner.send_digest_header.then(|| Digest::of(&body).to_string());
            let reply = Reply { status: StatusCode::OK, headers: Vec::new(), body, is_content: true };
            let reply = reply.with("content-type", format!("{media_type}; charset=utf-8"));
            digest.into_iter().fold(reply, |reply, digest| reply.with("docker-content-digest", digest))
        }
    }
}

fn blob(body: Option<Bytes>) -> Reply {
    match body {
        None => Reply::error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry"),
        Some(body) => Reply { status: StatusCode::OK, headers: Vec::new(), body, is_content: true }
            .with("content-type", "application/octet-stream"),
    }
}

fn token(state: &Arc<State>, request: &Request, form: &Bytes) -> Reply {
    let form = String::from_utf8_lossy(form);
    let pairs = form.split('&').filter_map(|pair| pair.split_once('='));
    let form = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let inner = &mut *state.lock();
    match access::token(&inner.access, &mut inner.tokens, request.header("authorization"), &form) {
        Some(answer) => Reply::text(StatusCode::OK, answer.to_string()),
        None => Reply::text(StatusCode::UNAUTHORIZED, r#"{"details": "incorrect username or password"}"#),
    }
}

/// What an object store does: the signature is the authorization, and a second one is refused.
fn stored(state: &Arc<State>, request: &Request, digest: &str, query: &str) -> Reply {
    let xml = |status, code: &str| {
        Reply::text(status, format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>"))
    };
    if request.header("authorization").is_some() {
        return xml(StatusCode::BAD_REQUEST, "InvalidArgument");
    }
    let inner = state.lock();
    if query != format!("signature={}", inner.signature) {
        return xml(StatusCode::FORBIDDEN, "AccessDenied");
    }
    let owner = inner.stored_for.clone().expect("a registry redirects here");
    drop(inner);
    let body = owner.lock().blobs.get(digest).cloned();
    match body {
        Some(body) => blob(Some(body)),
        None => xml(StatusCode::NOT_FOUND, "NoSuchKey"),
    }
}

/// Applies ranges and the faults of bodies.
fn shape(
    reply: Reply,
    request: &Request,
    fault: Option<Fault>,
    sent: Arc<AtomicU64>,
    state: Arc<State>,
) -> Response<Scripted> {
    let Reply { mut status, headers, mut body, is_content } = reply;
    let mut response = Response::builder();
    for (name, value) in headers {
        response = response.header(name, value);
    }
    let fault = if is_content { fault } else { None };
    match fault {
        Some(Fault::Truncate(length)) => body.truncate(length as usize),
        Some(Fault::Flip(at)) => {
            let mut bytes = body.to_vec();
            bytes[at as usize] ^= 0x55;
            body = bytes.into();
        }
        Some(Fault::Compressed { coding, .. }) => {
            body = compressed(&body, coding).into();
            response = response.header(header::CONTENT_ENCODING, coding);
        }
        Some(Fault::Coding(coding)) => response = response.header(header::CONTENT_ENCODING, coding),
        _ => {}
    }
    let has_ranges = is_content && !matches!(fault, Some(Fault::NoRanges | Fault::Compressed { ranges: false, .. }));
    let range = request.header("range").filter(|_| has_ranges);
    if let Some((first, last)) = range.and_then(parse_range) {
        let total = body.len() as u64;
        if first >= total {
            status = StatusCode::RANGE_NOT_SATISFIABLE;
            response = response.header(header::CONTENT_RANGE, format!("bytes */{total}"));
            body = Bytes::new();
        } else {
            let mut end = (last + 1).min(total);
            if let Some(Fault::ShortRange(most)) = fault {
                end = end.min(first + most);
            }
            status = StatusCode::PARTIAL_CONTENT;
            body = body.slice(first as usize..end as usize);
            let honest = format!("bytes {first}-{}/{total}", end - 1);
            let called = if let Some(Fault::ContentRange(text)) = &fault { text.clone() } else { honest };
            response = response.header(header::CONTENT_RANGE, called);
        }
    }
    let mut length = Some(body.len() as u64);
    let mut end = End::Proper;
    let mut rate = None;
    match fault {
        Some(Fault::CutAfter(bytes)) => (body, end) = (body.slice(..body.len().min(bytes as usize)), End::Cut),
        Some(Fault::StallAfter(bytes)) => (body, end) = (body.slice(..body.len().min(bytes as usize)), End::Stall),
        Some(Fault::EndAfter(bytes)) => (body, length) = (body.slice(..body.len().min(bytes as usize)), None),
        Some(Fault::Extra(bytes)) => {
            let mut longer = body.to_vec();
            longer.resize(longer.len() + bytes as usize, b'!');
            (body, length) = (longer.into(), None);
        }
        Some(Fault::Slow(bytes)) => rate = Some(bytes),
        _ => {}
    }
    if request.method == Method::HEAD.as_str() {
        (body, end) = (Bytes::new(), End::Proper);
    }
    sent.store(0, Ordering::Relaxed);
    let mut body = Scripted::new(body, length, end, rate, sent, state);
    if request.path.contains("/blobs/") || request.path.starts_with("/storage/") {
        body = body.counted(status == StatusCode::PARTIAL_CONTENT);
    }
    if fault == Some(Fault::Hold) {
        body = body.held();
    }
    response.status(status).body(body).expect("the headers are well formed")
}

fn compressed(body: &[u8], coding: &str) -> Vec<u8> {
    if coding == "zstd" {
        return zstd::encode_all(body, 0).expect("memory does not fail");
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(body).and_then(|()| gzip.finish()).expect("memory does not fail")
}

/// `bytes=A-B` or `bytes=A-`.
fn parse_range(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, if last.is_empty() { u64::MAX - 1 } else { last.parse().ok()? }))
}
