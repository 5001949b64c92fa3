//! systemd's readiness protocol (sd_notify(3)): one datagram to `$NOTIFY_SOCKET`.

use std::os::unix::net::UnixDatagram;

/// Says `state` (`READY=1`, `STOPPING=1`) to whoever started the daemon, if they listen.
pub fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to(state.as_bytes(), path));
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd was not notified");
    }
}
