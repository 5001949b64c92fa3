//! A connection to Redis: where, how to get in, and how long to wait for an answer.

use std::{
    fmt, io,
    path::PathBuf,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use redis::{AsyncConnectionConfig, ErrorKind, RedisConnectionInfo, RedisError, aio::MultiplexedConnection};
use silk_registry::Tls;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{Error as TlsFault, pki_types::ServerName},
};

use super::scripts::Scripts;
use crate::{RedisConfig, ShareError};

/// How long connecting, logging in and loading the scripts may take, in deadlines: that is four round trips, and one or two more for TLS.
const CONNECT_DEADLINES: u32 = 5;
/// How long a lookup may take while bytes keep coming, in deadlines. Ten of 200 ms are 200 MB at 1 Gbit/s, more than any
/// answer.
const ANSWER_DEADLINES: u32 = 10;
/// The largest password file that is read.
const MAX_PASSWORD: u64 = 4096;

/// Where Redis is.
#[derive(Debug, Clone)]
pub(super) enum Address {
    /// `host:port`.
    Tcp(String),
    /// A unix socket.
    Unix(PathBuf),
}

/// What is needed for a connection.
#[derive(Debug)]
pub(super) struct Door {
    pub address: Address,
    pub config: RedisConfig,
    pub scripts: Arc<Scripts>,
    /// None: in plain text.
    pub tls: Option<Arc<Tls>>,
}

/// An open connection.
#[derive(Clone)]
pub(super) struct Line {
    pub connection: MultiplexedConnection,
    pub traffic: Arc<Traffic>,
}

/// What must be polled for a connection to work; it ends when the connection does, or nobody holds it any more.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Bytes that went through a connection.
#[derive(Default)]
pub(super) struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
}

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum Silence {
    /// No byte came or went for this long.
    Slow(Duration),
    /// An error of Redis or of the connection.
    Failed(RedisError),
}

// === impl Address ===

impl Address {
    pub(super) fn parse(text: &str) -> Result<Self, ShareError> {
        let bad = || ShareError::Address { address: text.to_owned() };
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(bad()) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        // More colons are an IPv6 address, which needs its brackets; a slash is a URL.
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if bare.is_empty()
            || host.contains(['/', '@'])
            || (bare.contains(':') && !bracketed)
            || port.parse::<u16>().is_err()
        {
            return Err(bad());
        }
        Ok(Self::Tcp(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

// === impl Door ===

impl Door {
    /// Connects, logs in and loads the scripts, or says why not. The second part must be polled for the first to work.
    pub(super) async fn open(&self) -> Result<(Line, Driver), String> {
        let deadline = self.config.deadline() * CONNECT_DEADLINES;
        match timeout(deadline, self.connect()).await {
            Ok(opened) => opened,
            // A server that is not meant for TLS waits for the end of what it takes for a command.
            Err(_) if self.tls.is_some() => Err(format!(
                "it did not let silk in within {} ms: it may be slow, or not speak TLS there (share.redis.tls)",
                deadline.as_millis()
            )),
            Err(_) => Err(format!("it did not let silk in within {} ms", deadline.as_millis())),
        }
    }

    async fn connect(&self) -> Result<(Line, Driver), String> {
        let refused = |error: io::Error| format!("cannot connect: {error}");
        let stream: Box<dyn Stream> = match &self.address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(refused)?;
                // Small requests, and somebody waits for each.
                stream.set_nodelay(true).map_err(refused)?;
                match &self.tls {
                    Some(tls) => Box::new(encrypt(tls, address, stream).await?),
                    None => Box::new(stream),
                }
            }
            Address::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(refused)?),
        };
        let traffic = Arc::new(Traffic::default());
        let stream = Counted { stream, traffic: Arc::clone(&traffic) };
        let login = self.login().await?;
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let said = |error: RedisError| match error.kind() {
            ErrorKind::AuthenticationFailed => {
                "it refused the user or the password (share.redis.username, share.redis.password_file)".to_owned()
            }
            _ if error.is_io_error() => format!("{error}{}", self.why_closed()),
            _ => error.to_string(),
        };
        let (connection, driver) =
            MultiplexedConnection::new_with_config(&login, stream, config).await.map_err(said)?;
        let mut line = Line { connection, traffic };
        let mut driver: Driver = Box::pin(driver);
        tokio::select! {
            loaded = line.load(&self.scripts) => loaded.map_err(said)?,
            () = &mut driver => return Err(format!("it closed the connection{}", self.why_closed())),
        }
        Ok((line, driver))
    }

    /// Why a server may hang up on what silk says first.
    fn why_closed(&self) -> &'static str {
        match (&self.tls, &self.address) {
            // With TLS 1.3 a server looks at the client's certificate after the client has finished.
            (Some(_), _) => ": it may want another client certificate (share.redis.certificate_file)",
            (None, Address::Tcp(_)) => ": it may want TLS (share.redis.tls)",
            (None, Address::Unix(_)) => "",
        }
    }

    async fn login(&self) -> Result<RedisConnectionInfo, String> {
        // Without the library's name: older servers, and users with few rights, would log an error at each connection.
        let mut login = RedisConnectionInfo::default().set_db(self.config.database.into()).set_skip_set_lib_name();
        if let Some(username) = &self.config.username {
            login = login.set_username(username);
        }
        if let Some(path) = &self.config.password_file {
            let read = async {
                let size = tokio::fs::metadata(path).await?.len();
                if size > MAX_PASSWORD {
                    return Err(io::ErrorKind::FileTooLarge.into());
                }
                tokio::fs::read_to_string(path).await
            };
            let text = read.await.map_err(|error| format!("cannot read password_file {}: {error}", path.display()))?;
            login = login.set_password(text.trim_end_matches(['\r', '\n']));
        }
        Ok(login)
    }
}

/// TLS over `stream`, with the host of `address`.
async fn encrypt(tls: &Arc<Tls>, address: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
    let tls = Arc::clone(tls);
    // It reads files.
    let config = spawn_blocking(move || tls.client().map_err(|error| error.to_string())).await;
    let config = config.map_err(|error| error.to_string())??;
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host).map_err(|error| format!("no certificate can be for its address: {error}"))?;
    TlsConnector::from(config).connect(name, stream).await.map_err(|error| match tls_fault(&error) {
        Some(TlsFault::InvalidCertificate(_)) => {
            format!("its certificate is not believed (share.redis.ca_file): {error}")
        }
        Some(TlsFault::InvalidMessage(_)) => format!("it does not speak TLS (share.redis.tls): {error}"),
        _ => format!("cannot connect by TLS: {error}"),
    })
}

fn tls_fault(error: &io::Error) -> Option<&TlsFault> {
    error.get_ref()?.downcast_ref()
}

// === impl Line ===

impl Line {
    async fn load(&mut self, scripts: &Scripts) -> Result<(), RedisError> {
        let mut all = redis::pipe();
        for script in scripts.all() {
            all.load_script(script).ignore();
        }
        all.query_async(&mut self.connection).await
    }

    /// Whether anybody is there: any answer will do.
    pub(super) async fn ping(&self, deadline: Duration) -> Result<(), Silence> {
        let mut connection = self.connection.clone();
        let ping = redis::cmd("PING");
        match patiently(deadline, || self.traffic.received(), ping.query_async::<()>(&mut connection)).await {
            Err(Silence::Failed(error)) if !error.is_io_error() => Ok(()),
            answer => answer,
        }
    }
}

/// Waits for `call` as long as `moved` grows: silence of `deadline` ends it, and so does the end of all patience.
pub(super) async fn patiently<T>(
    deadline: Duration,
    moved: impl Fn() -> u64,
    call: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, Silence> {
    let start = Instant::now();
    let end = start + deadline * ANSWER_DEADLINES;
    let mut seen = moved();
    let mut call = pin!(call);
    loop {
        match timeout_at((Instant::now() + deadline).min(end), &mut call).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => return Err(Silence::Failed(error)),
            Err(_) => {
                let now = moved();
                if now == seen || Instant::now() >= end {
                    return Err(Silence::Slow(start.elapsed()));
                }
                seen = now;
            }
        }
    }
}

// === impl Traffic ===

impl Traffic {
    /// For lookups: the kernel takes a small request whether or not anybody reads it.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// For large values on their way out.
    pub(super) fn both(&self) -> u64 {
        self.received() + self.sent.load(Ordering::Relaxed)
    }
}

// === impl Silence ===

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slow(after) => write!(f, "no answer within {} ms", after.as_millis()),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

// === the stream ===

/// Anything that bytes go through.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Counts what goes through.
struct Counted {
    stream: Box<dyn Stream>,
    traffic: Arc<Traffic>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.traffic.received.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(sent)) = &polled {
            self.traffic.sent.fetch_add(*sent as u64, Ordering::Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    /// A call that is done after `pieces` times `step`, with a byte each time.
    async fn trickle(step: u64, pieces: u64) -> Result<u64, Silence> {
        let traffic = Traffic::default();
        let call = async {
            for _ in 0..pieces {
                sleep(Duration::from_millis(step)).await;
                traffic.received.fetch_add(1, Ordering::Relaxed);
            }
            Ok(pieces)
        };
        patiently(Duration::from_millis(200), || traffic.received(), call).await
    }

    #[tokio::test(start_paused = true)]
    async fn patience_lasts_while_bytes_come_and_not_for_ever() {
        assert_eq!(trickle(0, 1).await.unwrap(), 1);
        assert_eq!(trickle(150, 10).await.unwrap(), 10, "1.5 s, but never silent");
        let Err(Silence::Slow(after)) = trickle(1000, 1).await else { panic!() };
        assert_eq!(after.as_millis(), 200);
        let Err(Silence::Slow(after)) = trickle(150, 1000).await else { panic!() };
        assert_eq!(after.as_millis(), 2000);
    }

    #[test]
    fn addresses() {
        for (text, shown) in [
            ("10.0.0.5:6379", "10.0.0.5:6379"),
            ("redis.example:1", "redis.example:1"),
            ("[::1]:6379", "[::1]:6379"),
            ("unix:/run/redis.sock", "unix:/run/redis.sock"),
        ] {
            assert_eq!(Address::parse(text).unwrap().to_string(), shown);
        }
        for bad in
            ["", "redis", ":6379", "::1:6379", "redis://h:1", "h:port", "h:70000", "unix:rel", "unix:", "u:p@h:1"]
        {
            let error = Address::parse(bad).unwrap_err().to_string();
            assert!(error.contains("share.redis.address"), "{bad}: {error}");
        }
    }
}
