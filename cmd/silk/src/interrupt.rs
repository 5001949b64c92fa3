//! Ctrl-C and SIGTERM, so that a command can put away what it has begun.

use tokio::signal::unix::{self, SignalKind, signal};

/// What ended a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

/// Both, listened to: from then on they no longer end the process by themselves, and one that comes is kept until it is asked for.
#[derive(Debug)]
pub struct Signals(Option<[unix::Signal; 2]>);

impl Signals {
    /// Listens from now on.
    pub fn new() -> Self {
        let streams = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
        // Without handlers the signals end the process as ever.
        Self(if let (Ok(interrupt), Ok(terminate)) = streams { Some([interrupt, terminate]) } else { None })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Signal {
        let Some([interrupt, terminate]) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = interrupt.recv() => Signal::Interrupt,
            _ = terminate.recv() => Signal::Terminate,
        }
    }
}

/// Waits for one of them; from the first call on, they no longer end the process by themselves.
pub async fn wait() -> Signal {
    Signals::new().next().await
}
