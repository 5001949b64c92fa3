//! Everything that makes a command fail, its words for the operator, and its exit code: the only place that knows them.

use std::{io, path::PathBuf, process::ExitCode, time::Duration};

use silk_model::Digest;
use silk_share::EnvelopeError;
use tonic::{Code, Status};

use crate::{
    human,
    interrupt::Signal,
    pull::{Malformed, Platform},
};

/// Which of the two daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    /// Ours.
    Silkd,
    /// containerd.
    Containerd,
}

impl Daemon {
    fn name(self) -> &'static str {
        match self {
            Self::Silkd => "silkd",
            Self::Containerd => "containerd",
        }
    }

    fn option(self) -> &'static str {
        match self {
            Self::Silkd => "--address",
            Self::Containerd => "--containerd",
        }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody listens on the socket.
    #[error(
        "{name} does not answer on {}: {cause}. Is it running (systemctl status {name})? {option} names another socket",
        socket.display(), name = daemon.name(), option = daemon.option()
    )]
    Unreachable {
        /// Who.
        daemon: Daemon,
        /// Where.
        socket: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// A daemon answered a call with an error.
    #[error("{} cannot {doing}: {message}", daemon.name())]
    Call {
        /// Who.
        daemon: Daemon,
        /// What was asked, as it stands after "cannot".
        doing: String,
        /// The answer's code.
        code: Code,
        /// The answer's words.
        message: String,
    },
    /// A daemon did not answer a call that takes it milliseconds.
    #[error("{} did not {doing} within {}", daemon.name(), human::duration(*after))]
    Late {
        /// Who.
        daemon: Daemon,
        /// What was asked, as it stands after "did not".
        doing: String,
        /// How long silk waited.
        after: Duration,
    },
    /// containerd has nobody to ask behind the snapshotter's name.
    #[error("containerd does not reach the snapshotter: {0}. Is silkd running (systemctl status silkd)?")]
    NoSnapshotter(String),
    /// What silkd says of a pull that failed: image, layer and cause.
    #[error("{0}")]
    Told(String),
    /// The configuration cannot be used.
    #[error("cannot use {}: {cause}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: ConfigFault,
    },
    /// Text that names no containerd namespace.
    #[error("{0:?} cannot be a containerd namespace")]
    Namespace(String),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] silk_registry::Error),
    /// A document of the image is not what its media type says.
    #[error("the {what} {digest} cannot be used: {why}")]
    Document {
        /// "index", "manifest" or "configuration".
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// What is wrong with it.
        why: Malformed,
    },
    /// The index has no image for the platform.
    #[error("the image is not made for {wanted}, only for {}; --platform chooses another", list(has))]
    NoPlatform {
        /// The one asked for.
        wanted: Platform,
        /// Those that it is made for.
        has: Vec<Platform>,
    },
    /// The registry's bytes are not those of the digest.
    #[error("the registry sent {found} as {expected}")]
    WrongDigest {
        /// By the manifest.
        expected: Digest,
        /// Of what came.
        found: Digest,
    },
    /// A layer's uncompressed bytes are not what the configuration says.
    #[error("its uncompressed bytes are {found}, but the image's configuration says {expected}")]
    WrongDiffId {
        /// By the configuration.
        expected: Digest,
        /// What containerd unpacked.
        found: String,
    },
    /// Another client of containerd writes the blob and does not get on.
    #[error("another client has been writing {digest} to containerd for {} without a byte more", human::duration(*after))]
    Locked {
        /// The blob.
        digest: Digest,
        /// How long silk waited.
        after: Duration,
    },
    /// containerd closed a stream early.
    #[error("containerd closed the write of {0} without an answer")]
    WriteEnded(Digest),
    /// A snapshot that containerd says exists, and does not.
    #[error("containerd says that snapshot {0} exists, and then that it does not; the third try gave the same")]
    Vanished(Digest),
    /// What the image's layers are to be learned from is not streamed, or was damaged.
    #[error(transparent)]
    Learn(#[from] silk_pull::LayerError),
    /// Nowhere to publish to.
    #[error(
        "nothing to publish to: {} sets neither share.redis.address nor share.referrers.publish",
        config.display()
    )]
    NoBackend {
        /// The configuration.
        config: PathBuf,
    },
    /// Places that did not take all that was to be published.
    #[error("not all of it is published: {}", why.join("; "))]
    Unpublished {
        /// A sentence a place.
        why: Vec<String>,
    },
    /// What a place has is sealed, and not with a key of this machine's: nodes would not believe what it is replaced with.
    #[error("{} from {} is not believed here: {}. {}", .0.key, .0.source, .0.why, advice(&.0.why))]
    Sealed(silk_share::Refused),
    /// The image that a command could not do its work on.
    #[error("cannot {doing} {image}: {source}")]
    Image {
        /// The command.
        doing: &'static str,
        /// Its reference.
        image: String,
        /// The cause.
        source: Box<Self>,
    },
    /// The layer at fault.
    #[error("layer {number} of {count} ({blob}): {source}")]
    Layer {
        /// 1 is the base.
        number: usize,
        /// Layers of the image.
        count: usize,
        /// The layer's blob.
        blob: Digest,
        /// The cause.
        source: Box<Self>,
    },
    /// fsck found damage.
    #[error("damaged layers: {bad} of {all}; their data became holes and is fetched again")]
    Damaged {
        /// Damaged layers.
        bad: usize,
        /// Layers looked at.
        all: usize,
    },
    /// No layer has this digest, or several have.
    #[error("{0}; silk fsck without a layer proves and names all")]
    NoSuchLayer(String),
    /// Ctrl-C or SIGTERM.
    #[error("interrupted")]
    Interrupted(Signal),
    /// What was given cannot be read.
    #[error("cannot read {0}")]
    Input(io::Error),
    /// Output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// The process cannot start its threads.
    #[error("cannot start: {0}")]
    Runtime(io::Error),
}

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFault {
    /// It cannot be read.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// It is no such file.
    #[error("{0}")]
    Parse(#[from] Box<toml::de::Error>),
    /// Its `[registry]` cannot be used.
    #[error("{0}")]
    Registry(#[from] Box<silk_registry::Error>),
    /// Its `[share]` contradicts itself.
    #[error("{0}")]
    Share(#[from] silk_share::ShareError),
    /// It lets silk publish what nodes that are configured alike refuse.
    #[error(
        "no node would believe what share.referrers.publish lets silk publish: set share.key_file to the fleet's key, or \
         share.referrers.trust_unsigned here and on the nodes"
    )]
    Unbelieved,
}

/// What to do about a value that is sealed with another key, or with any.
fn advice(why: &EnvelopeError) -> &'static str {
    match why {
        EnvelopeError::NoKey => {
            "Set share.key_file to the fleet's key: what silk learns without it no node of the fleet would believe"
        }
        _ => "Is the key in share.key_file the fleet's? --force replaces the value",
    }
}

fn list(platforms: &[Platform]) -> String {
    // A few dozen are known; an index that names more is no honest one.
    let names: Vec<_> = platforms.iter().take(32).map(ToString::to_string).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl Failure {
    /// A call's status: whether the daemon said it, or nobody was there.
    pub fn of(daemon: Daemon, socket: &std::path::Path, doing: impl Into<String>, status: &Status) -> Self {
        match unreachable(status) {
            Some(cause) => Self::Unreachable { daemon, socket: socket.to_owned(), cause },
            None => Self::Call { daemon, doing: doing.into(), code: status.code(), message: message(daemon, status) },
        }
    }

    /// The output's reader went away, as `head` does: that needs no words.
    pub fn is_unread(&self) -> bool {
        match self {
            Self::Output(cause) => cause.kind() == io::ErrorKind::BrokenPipe,
            Self::Image { source, .. } => source.is_unread(),
            _ => false,
        }
    }

    /// The code of a call that was answered.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Call { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// In words of what was to be done to an image, unless they already are.
    #[must_use]
    pub fn of_image(self, doing: &'static str, image: &str) -> Self {
        match self {
            Self::Told(_) | Self::Interrupted(_) | Self::Unreachable { .. } => self,
            source => Self::Image { doing, image: image.to_owned(), source: Box::new(source) },
        }
    }

    /// 1: failed; 2: wrong arguments; 3: no daemon; 128 and the signal's number.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            // What SIGPIPE does to programs that do not ignore it.
            _ if self.is_unread() => 141.into(),
            Self::Config { .. }
            | Self::Namespace(_)
            | Self::NoSuchLayer(_)
            | Self::NoPlatform { .. }
            | Self::NoBackend { .. }
            | Self::Sealed(_) => 2.into(),
            Self::Unreachable { .. } | Self::NoSnapshotter(_) | Self::Late { .. } => 3.into(),
            Self::Interrupted(Signal::Interrupt) => 130.into(),
            Self::Interrupted(Signal::Terminate) => 143.into(),
            Self::Image { source, .. } | Self::Layer { source, .. } => source.exit_code(),
            _ => 1.into(),
        }
    }
}

/// What a daemon said; of a call that it does not know, gRPC says nothing.
fn message(daemon: Daemon, status: &Status) -> String {
    match (status.code(), status.message()) {
        (Code::Unimplemented, "") => {
            let (name, option) = (daemon.name(), daemon.option());
            format!(
                "it does not know this call. Is {name} older than this silk, or does {option} name another's socket?"
            )
        }
        (code, "") => code.to_string(),
        (_, message) => message.to_owned(),
    }
}

/// The system's error, when a call found nobody to answer it, or nobody to end the answer.
fn unreachable(status: &Status) -> Option<io::Error> {
    // A status that the other side sent has no source.
    let mut cause = std::error::Error::source(status);
    cause?;
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.raw_os_error().map_or_else(|| io.kind().into(), io::Error::from_raw_os_error));
        }
        cause = error.source();
    }
    // HTTP/2 has no error of the system's for an answer that was cut off.
    Some(io::Error::new(io::ErrorKind::ConnectionReset, status.message()))
}
