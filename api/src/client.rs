//! A lazily connected channel to a gRPC server on a unix socket.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// The socket path is kept for the error messages of whoever uses the channel.
#[derive(Debug, Clone)]
pub struct Connect {
    /// The unix socket that [`Connect::channel`] talks to.
    pub socket: PathBuf,
    /// Connects at the first call and again after the server went away.
    pub channel: Channel,
}

/// A channel to the server on `socket`; nothing is sent before the first call.
pub fn connect(socket: &Path) -> Connect {
    let socket = socket.to_owned();
    let path = socket.clone();
    // The URI is never resolved: the connector below decides where the bytes go.
    let channel =
        Endpoint::from_static("http://unix.invalid").connect_with_connector_lazy(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }));
    Connect { socket, channel }
}

/// A request in a containerd namespace (header `containerd-namespace`).
///
/// # Panics
/// Never for names that containerd accepts as namespaces: they are ASCII.
pub fn namespaced<T>(namespace: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Ok(value) = namespace.parse() {
        request.metadata_mut().insert("containerd-namespace", value);
    }
    request
}
