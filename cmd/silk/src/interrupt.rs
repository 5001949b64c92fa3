//! Ctrl-C and SIGTERM, so that a command can put away what it has begun.

use tokio::signal::unix::{SignalKind, signal};

/// What ended a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

/// Waits for one of them; from the first call on, they no longer end the process by themselves.
pub async fn wait() -> Signal {
    let streams = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = streams else {
        // Without handlers the signals end the process as ever.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => Signal::Interrupt,
        _ = terminate.recv() => Signal::Terminate,
    }
}
