//! Prometheus's door: `GET /metrics` over plain HTTP, at an address of the operator's choice.
//!
//! It can only be read, and costs nothing while nobody asks. Whoever is slow loses the connection.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use silk_model::metrics::{CONTENT_TYPE, METRICS};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::node::Node;

/// Connections at once: a Prometheus has one, and there may be a few.
const CONNECTIONS: usize = 16;

/// A connection is closed after this long, whatever it is doing: Prometheus opens another one.
const LONGEST: Duration = Duration::from_secs(300);

/// The head of a request has to come within this time.
const HEAD: Duration = Duration::from_secs(10);

/// A listener that fails (no descriptor is left, say) is asked again after this long.
const AGAIN: Duration = Duration::from_secs(1);

/// An address that cannot be used is tried again after this long: one that moves to this node, say, or whose port another program had.
const BIND_AGAIN: Duration = Duration::from_secs(10);

/// Answers until the daemon ends. An address that cannot be used is no reason not to serve containers.
pub async fn serve(address: SocketAddr, node: Node) {
    let mut is_told = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if is_told => tracing::debug!(%address, %error, "nobody can ask for metrics"),
            Err(error) => tracing::error!(%address, %error, "nobody can ask for metrics; the address is tried again"),
        }
        is_told = true;
        tokio::time::sleep(BIND_AGAIN).await;
    };
    tracing::info!(address = %listener.local_addr().unwrap_or(address), "metrics can be asked for");
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let node = node.clone();
                tokio::spawn(async move {
                    let _place = place;
                    let _ = tokio::time::timeout(LONGEST, converse(stream, node)).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection for metrics was not taken");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, node: Node) {
    let service = service_fn(|request| answer(request, node.clone()));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection for metrics ended");
    }
}

async fn answer(request: Request<Incoming>, node: Node) -> Result<Response<Full<Bytes>>, Infallible> {
    let said = |status, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        Ok(response)
    };
    if request.uri().path() != "/metrics" {
        return said(StatusCode::NOT_FOUND, "see /metrics\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return said(StatusCode::METHOD_NOT_ALLOWED, "they can only be read\n");
    }
    let rendered = tokio::task::spawn_blocking(move || {
        node.measure();
        METRICS.render()
    });
    match rendered.await {
        Ok(text) => {
            let mut response = Response::new(Full::from(text));
            response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(CONTENT_TYPE));
            Ok(response)
        }
        Err(error) => {
            tracing::error!(%error, "metrics could not be made (a bug)");
            said(StatusCode::INTERNAL_SERVER_ERROR, "a bug: see silkd's log\n")
        }
    }
}
