//! The unix socket that containerd and the operator's tool connect to.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context, bail};
use futures::{Stream, StreamExt as _};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

/// How long to wait when the kernel gives no connection, for lack of descriptors or memory: it would refuse the next one as well.
const AGAIN: Duration = Duration::from_secs(1);

/// The connections that come.
pub fn incoming(listener: UnixListener) -> impl Stream<Item = io::Result<tokio::net::UnixStream>> {
    UnixListenerStream::new(listener).then(|accepted| async {
        if let Err(error) = &accepted {
            tracing::warn!(%error, "a connection cannot be taken");
            tokio::time::sleep(AGAIN).await;
        }
        accepted
    })
}

/// Binds `path` with mode 0600. A socket that nobody listens on any more is replaced.
///
/// Must run in the runtime.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    match UnixStream::connect(path) {
        Ok(_) => bail!("another process serves {}: is a second silkd running?", path.display()),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(_) => fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?,
    }
    // Bound under a name of its own and renamed, so that nobody connects before the mode is right.
    let fresh = path.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).with_context(|| format!("cannot bind {}", fresh.display()))?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("cannot set up {}", path.display()))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who may connect may do all that silkd does.
    #[tokio::test]
    async fn nobody_but_its_owner_may_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/silk.sock");
        // The second time it takes the place of one that nobody listens on.
        for _ in 0..2 {
            let listener = bind(&path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
            assert!(bind(&path).unwrap_err().to_string().contains("another process serves"));
            drop(listener);
        }
    }
}
