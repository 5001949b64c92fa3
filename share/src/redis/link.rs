//! The connection to Redis, kept by a task of its own: made again with backoff when it breaks, or when a lookup reported
//! that Redis is slow. While there is none nobody waits for Redis: that is the circuit breaker.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};
use tracing::{info, warn};

use super::door::{Door, Line};
use crate::State;

/// The wait before the second probe; doubled up to [`MAX_BACKOFF`] while nothing comes of them.
const MIN_BACKOFF: Duration = Duration::from_millis(200);
/// A probe costs Redis a connection and three small commands: a fleet of a thousand nodes makes some 70 a second.
const MAX_BACKOFF: Duration = Duration::from_secs(15);
/// How often an idle connection is tried: before firewalls forget it, so that no pull finds it dead.
const PING_PERIOD: Duration = Duration::from_secs(30);

/// The connection for lookups, if there is one now.
pub(super) struct Link {
    phase: watch::Receiver<Phase>,
    broken: mpsc::Sender<String>,
    /// The connection has grown fat: another one is to be made, then it is let go.
    renewal: Arc<Notify>,
    /// A lookup went well since the connection was made.
    proved: Arc<AtomicBool>,
    keeper: JoinHandle<()>,
}

#[derive(Clone)]
enum Phase {
    /// The first attempt is under way.
    Starting(SystemTime),
    Up(SystemTime, Line),
    Away(SystemTime, String),
}

// === impl Link ===

impl Link {
    /// Starts the keeper on the current runtime; it ends with the link.
    pub(super) fn start(door: Arc<Door>) -> Self {
        let (phase, phases) = watch::channel(Phase::Starting(SystemTime::now()));
        // One that waits is enough: all say the same.
        let (broken, breaks) = mpsc::channel(1);
        let (renewal, proved) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let keeper = Keeper {
            door,
            phase,
            breaks,
            renewal: Arc::clone(&renewal),
            proved: Arc::clone(&proved),
            backoff: MIN_BACKOFF,
        };
        Self { phase: phases, broken, renewal, proved, keeper: tokio::spawn(keeper.run()) }
    }

    /// The connection. Waits only for the very first one to be made, and for that at most until `end`.
    pub(super) async fn line(&self, end: Instant) -> Option<Line> {
        let mut phase = self.phase.clone();
        let settled = phase.wait_for(|phase| !matches!(phase, Phase::Starting(_)));
        match timeout_at(end, settled).await {
            Ok(Ok(phase)) => match &*phase {
                Phase::Up(_, line) => Some(line.clone()),
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn state(&self) -> State {
        match &*self.phase.borrow() {
            Phase::Starting(since) => State::Away { since: *since, why: "silk connects for the first time".into() },
            Phase::Up(since, _) => State::Up { since: *since },
            Phase::Away(since, why) => State::Away { since: *since, why: why.clone() },
        }
    }

    /// A lookup went well: after the next failure, the first probe comes soon.
    pub(super) fn proved(&self) {
        self.proved.store(true, Ordering::Relaxed);
    }

    /// Nobody uses the connection any more until a probe has made another one.
    pub(super) fn broken(&self, why: String) {
        let _ = self.broken.try_send(why);
    }

    /// The connection is replaced while it stays in use.
    pub(super) fn renew(&self) {
        self.renewal.notify_one();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// The task that keeps the connection.
struct Keeper {
    door: Arc<Door>,
    phase: watch::Sender<Phase>,
    breaks: mpsc::Receiver<String>,
    renewal: Arc<Notify>,
    proved: Arc<AtomicBool>,
    backoff: Duration,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            let (mut was_good, why) = match self.door.open().await {
                Ok((line, driver)) => {
                    let made = Instant::now();
                    let why = self.keep(line, tokio::spawn(driver)).await;
                    // Servers close connections that are idle.
                    (made.elapsed() >= MAX_BACKOFF, why)
                }
                Err(why) => (false, why),
            };
            self.away(why);
            was_good |= self.proved.swap(false, Ordering::Relaxed);
            if was_good {
                self.backoff = MIN_BACKOFF;
            }
            sleep(self.backoff).await;
            self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Until the connection breaks; says why it did.
    async fn keep(&mut self, mut line: Line, mut driver: JoinHandle<()>) -> String {
        // What was said of the one before does not count.
        let _ = self.breaks.try_recv();
        self.up(line.clone());
        let why = loop {
            tokio::select! {
                _ = &mut driver => return "it closed the connection".into(),
                why = self.breaks.recv() => break why.unwrap_or_default(),
                () = self.renewal.notified() => if let Ok((next, next_driver)) = self.door.open().await {
                    // The old one ends by itself when its last lookup is done.
                    self.up(next.clone());
                    (line, driver) = (next, tokio::spawn(next_driver));
                },
                () = sleep(PING_PERIOD) => if let Err(silence) = line.ping(self.door.config.deadline()).await {
                    break silence.to_string();
                },
            }
        };
        // Whoever still waits on it need not wait for its own deadline.
        driver.abort();
        why
    }

    fn up(&self, line: Line) {
        let since = match &*self.phase.borrow() {
            Phase::Up(since, _) => *since,
            Phase::Starting(_) | Phase::Away(..) => {
                info!("redis {} is there", self.door.address);
                SystemTime::now()
            }
        };
        self.phase.send_replace(Phase::Up(since, line));
    }

    fn away(&self, why: String) {
        let since = match &*self.phase.borrow() {
            Phase::Away(since, _) => *since,
            Phase::Starting(_) | Phase::Up(..) => {
                warn!("redis {} is not used until it is well again: {why}", self.door.address);
                SystemTime::now()
            }
        };
        self.phase.send_replace(Phase::Away(since, why));
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({:?})", self.state())
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{UnixListener, UnixStream},
        time::timeout,
    };

    use super::*;
    use crate::{RedisConfig, redis::door::Address};

    /// Says that all is well, and hangs up after a while.
    async fn serve(mut client: UnixStream, lasts: Duration) {
        let talk = async {
            let mut bytes = [0; 64 << 10];
            while let Ok(len @ 1..) = client.read(&mut bytes).await {
                // A command is an array, and begins a line.
                let lines = bytes[..len].split(|byte| *byte == b'\n');
                let count = lines.filter(|line| line.first() == Some(&b'*') && line.last() == Some(&b'\r')).count();
                client.write_all(&b"+OK\r\n".repeat(count)).await.unwrap();
            }
        };
        let _ = timeout(lasts, talk).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_hangs_up_on_idle_clients_is_not_away_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("redis.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let config = RedisConfig { deadline_millis: 5000, ..RedisConfig::default() };
        let door = Door { address: Address::Unix(socket), config, scripts: Arc::default(), tls: None };
        let link = Link::start(Arc::new(door));
        for _ in 0..12 {
            let hung_up = Instant::now();
            let (client, _) = listener.accept().await.unwrap();
            assert!(hung_up.elapsed() <= 2 * MIN_BACKOFF, "{:?}", hung_up.elapsed());
            serve(client, Duration::from_secs(20)).await;
        }
        assert!(matches!(link.state(), State::Up { .. }));
    }
}
