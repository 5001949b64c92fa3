//! Credentials from docker's `config.json` and its helper programs.
//!
//! Read at each need, never kept, never printed. A helper runs as a child process with a deadline of its own; it is killed when
//! that passes, and not when who asked has gone: helpers of clouds take seconds, longer than a first contact waits. Who asks for
//! the same while one runs gets its answer. Formats: docker/cli `cli/config/configfile` and docker/docker-credential-helpers `credentials`.

use std::{
    collections::HashMap,
    fmt, io,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::StatusCode;
use serde::Deserialize;
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    sync::watch,
    time::timeout,
};
use tracing::warn;

use crate::{Asked, Error, Said};

/// The largest config.json or helper answer that is read; many times any honest one.
const MAX_BYTES: u64 = 1 << 20;
/// What docker's credential helpers print when they have nothing for a registry (`errCredentialsNotFoundMessage`).
const NOT_FOUND: &str = "credentials not found in native keychain";
/// What docker calls its own registry in config.json and to helpers.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Where credentials are looked up.
#[derive(Debug)]
pub(crate) struct Credentials {
    path: PathBuf,
    helper_timeout: Duration,
    /// What precedes a helper's name to make that of its program: docker's prefix; in tests also a folder.
    helper_prefix: String,
    /// By program and what it is asked for.
    runs: Arc<Mutex<HashMap<(String, String), Run>>>,
}

/// What is known of a helper's runs for one registry.
#[derive(Debug, Default)]
struct Run {
    /// Of the one that is under way.
    outcome: Option<watch::Receiver<Option<Outcome>>>,
    /// The last one gave a credential.
    worked: bool,
}

type Outcome = Result<Option<Credential>, Arc<Fault>>;

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Password {
        user: String,
        password: String,
    },
    /// An OAuth2 refresh token.
    IdentityToken(String),
}

/// The outcome of a lookup, with what to say if the registry refuses it.
#[derive(Debug)]
pub(crate) struct Found {
    pub credential: Option<Credential>,
    pub hint: Hint,
}

/// What a refusal may come of.
#[derive(Debug, Clone)]
pub(crate) enum Hint {
    /// What to look at.
    LookAt(String),
    /// Nobody knows whether there is a credential, and the next lookup may find out.
    NotFoundOut(Arc<Fault>),
}

/// Go, which docker reads it with, takes null for any of these, as what is not there.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ConfigFile {
    auths: Option<HashMap<String, Option<Auth>>>,
    cred_helpers: Option<HashMap<String, Option<String>>>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("{} cannot be read: {cause}", path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error("{} is not a docker config.json (line {line})", path.display())]
    Json { path: PathBuf, line: usize },
    #[error("the auth entry for {host} in {} is not base64 of user:password", path.display())]
    Auth { path: PathBuf, host: String },
    #[error("{program} cannot be run: {cause}")]
    Run { program: String, cause: io::Error },
    #[error("{program} failed ({status})")]
    Failed { program: String, status: std::process::ExitStatus },
    #[error("{program} did not answer within {} s", after.as_secs())]
    Slow { program: String, after: Duration },
    #[error("{program} gave an answer that is no credential")]
    Answer { program: String },
}

// === impl Credentials ===

impl Credentials {
    pub(crate) fn new(path: PathBuf, helper_timeout: Duration) -> Self {
        Self { path, helper_timeout, helper_prefix: "docker-credential-".into(), runs: Arc::default() }
    }

    /// Whether a helper is being asked for `host` that had a credential the last time.
    pub(crate) fn awaits(&self, host: &str) -> bool {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.iter().any(|((_, of), run)| of == server(host) && run.worked && run.outcome.is_some())
    }

    /// What is known for `host` (a registry's, a mirror's), or the reason why nothing is.
    pub(crate) async fn lookup(&self, host: &str) -> Found {
        let path = self.path.display();
        match self.find(host).await {
            Ok(Some(credential)) => {
                let hint = Hint::LookAt(format!("check the credentials in {path}"));
                Found { credential: Some(credential), hint }
            }
            Ok(None) => {
                let hint = Hint::LookAt(format!("there are no credentials for {host} in {path}"));
                Found { credential: None, hint }
            }
            Err(fault) => {
                warn!("no credentials for {host}: {fault}");
                let hint = if fault.may_pass() { Hint::NotFoundOut(fault) } else { Hint::LookAt(fault.to_string()) };
                Found { credential: None, hint }
            }
        }
    }

    async fn find(&self, host: &str) -> Outcome {
        let Some(file) = self.read().await? else { return Ok(None) };
        // An entry without a name is docker's way to keep one registry out of the store.
        let helper = best(file.cred_helpers, host).unwrap_or(file.creds_store);
        if let Some(helper) = helper.filter(|helper| !helper.is_empty())
            && let Some(credential) = self.ask(&helper, host).await?
        {
            return Ok(Some(credential));
        }
        match best(file.auths, host).flatten() {
            Some(auth) => Ok(self.decode(host, auth)?),
            None => Ok(None),
        }
    }

    async fn read(&self) -> Result<Option<ConfigFile>, Fault> {
        let fault = |cause| Fault::Read { path: self.path.clone(), cause };
        let file = match File::open(&self.path).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(fault)?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).await.map_err(fault)?;
        // The library's own message may quote a secret.
        let fault = |error: serde_json::Error| Fault::Json { path: self.path.clone(), line: error.line() };
        // The first value counts, as for docker, and an empty file has none.
        let first = serde_json::Deserializer::from_slice(&bytes).into_iter().next();
        first.transpose().map(Option::flatten).map_err(fault)
    }

    fn decode(&self, host: &str, auth: Auth) -> Result<Option<Credential>, Fault> {
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(token) = some(auth.identitytoken) {
            return Ok(Some(Credential::IdentityToken(token)));
        }
        let Some(encoded) = some(auth.auth) else {
            let password = auth.password.unwrap_or_default();
            return Ok(some(auth.username).map(|user| Credential::Password { user, password }));
        };
        let decoded = STANDARD.decode(encoded.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let fault = || Fault::Auth { path: self.path.clone(), host: host.to_owned() };
        let decoded = decoded.ok_or_else(fault)?;
        let (user, password) = decoded.split_once(':').ok_or_else(fault)?;
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Some(Credential::Password { user: user.to_owned(), password }))
    }

    /// What `docker-credential-<helper> get` answers, of the run that is under way if there is one.
    async fn ask(&self, helper: &str, host: &str) -> Outcome {
        let program = format!("{}{helper}", self.helper_prefix);
        let mut outcome = self.join(&program, server(host));
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            // Its task has panicked.
            _ => Err(Arc::new(Fault::Answer { program })),
        }
    }

    fn join(&self, program: &str, server: &str) -> watch::Receiver<Option<Outcome>> {
        let key = (program.to_owned(), server.to_owned());
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let run = runs.entry(key.clone()).or_default();
        if let Some(outcome) = run.outcome.as_ref().filter(|outcome| outcome.has_changed().is_ok()) {
            return outcome.clone();
        }
        let (sender, receiver) = watch::channel(None);
        run.outcome = Some(receiver.clone());
        let (runs, deadline) = (self.runs.clone(), self.helper_timeout);
        tokio::spawn(async move {
            let outcome = answer(&key.0, &key.1, deadline).await.map_err(Arc::new);
            let run = Run { outcome: None, worked: matches!(outcome, Ok(Some(_))) };
            runs.lock().unwrap_or_else(PoisonError::into_inner).insert(key, run);
            // None waits any more.
            let _ = sender.send(Some(outcome));
        });
        receiver
    }
}

// === impl Hint ===

impl Hint {
    /// The error of a refusal.
    pub(crate) fn refusal(self, asked: Asked, status: StatusCode, said: Said) -> Error {
        match self {
            Self::LookAt(hint) => Error::Denied { asked, status, said, hint },
            Self::NotFoundOut(fault) => Error::NoCredentials { asked, status, said, fault: fault.to_string() },
        }
    }

    /// The same with these words before it, where there is something to look at.
    pub(crate) fn after(self, words: &str) -> Self {
        match self {
            Self::LookAt(hint) => Self::LookAt(format!("{words}; {hint}")),
            not_found_out => not_found_out,
        }
    }
}

impl Fault {
    /// Whether another try may not meet it: a cloud's helper asks the cloud, and is replaced while it is upgraded.
    fn may_pass(&self) -> bool {
        match self {
            // What is not installed, or may not be read, stays so.
            Self::Read { cause, .. } | Self::Run { cause, .. } => {
                !matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
            }
            Self::Failed { .. } | Self::Slow { .. } => true,
            Self::Json { .. } | Self::Auth { .. } | Self::Answer { .. } => false,
        }
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LookAt(hint) => f.write_str(hint),
            Self::NotFoundOut(fault) => fault.fmt(f),
        }
    }
}

async fn answer(program: &str, server: &str, deadline: Duration) -> Result<Option<Credential>, Fault> {
    let program = program.to_owned();
    let (status, output) = match timeout(deadline, run(&program, server)).await {
        Ok(run) => run.map_err(|cause| Fault::Run { program: program.clone(), cause })?,
        Err(_) => return Err(Fault::Slow { program, after: deadline }),
    };
    if !status.success() {
        let not_found = String::from_utf8_lossy(&output).contains(NOT_FOUND);
        return if not_found { Ok(None) } else { Err(Fault::Failed { program, status }) };
    }
    let answer: Answer = serde_json::from_slice(&output).map_err(|_| Fault::Answer { program })?;
    Ok(Some(match answer.username.as_str() {
        // The helpers' protocol: this user name marks the secret as an identity token.
        "<token>" => Credential::IdentityToken(answer.secret),
        _ => Credential::Password { user: answer.username, password: answer.secret },
    }))
}

/// The program's exit status and the first part of its output. Dropping the future kills it.
async fn run(program: &str, server: &str) -> io::Result<(std::process::ExitStatus, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    // A helper that does not read its input may still answer.
    let _ = input.write_all(server.as_bytes()).await;
    drop(input);
    let mut bytes = Vec::new();
    output.take(MAX_BYTES).read_to_end(&mut bytes).await?;
    Ok((child.wait().await?, bytes))
}

/// The entry for `host`: docker writes a bare host, or a URL of the old `/v1/` API.
fn best<T>(entries: Option<HashMap<String, T>>, host: &str) -> Option<T> {
    let mut entries = entries?;
    if let Some(entry) = entries.remove(server(host)) {
        return Some(entry);
    }
    let key = entries.keys().find(|key| same_host(key, host))?.clone();
    entries.remove(&key)
}

fn same_host(key: &str, host: &str) -> bool {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let (key_host, path) = key.split_once('/').unwrap_or((key, ""));
    // Docker Desktop keeps further tokens under longer paths: they are not for registries.
    matches!(path.trim_end_matches('/'), "" | "v1" | "v2")
        && (key_host == host || is_docker_hub(key_host) && is_docker_hub(host))
}

/// What docker calls `host`.
fn server(host: &str) -> &str {
    if is_docker_hub(host) { DOCKER_HUB } else { host }
}

fn is_docker_hub(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password({user:?}, ..)"),
            Self::IdentityToken(_) => f.write_str("IdentityToken(..)"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
