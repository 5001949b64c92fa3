//! `silk pull`: what containerd's own client does for a pull, with the labels that let silkd fetch the layers.
//!
//! A lease holds everything that the pull makes until the image's record refers to it. The documents of the image are written
//! into containerd's content store ([`image`]); then each layer's snapshot is prepared, base first ([`unpack`]):
//! silkd answers that it exists, and the question for the top one waits until the image can be used: each layer is whole and
//! proved, or known, and mounted while the rest of it arrives. With `--wait` the pull goes on until all are whole. A
//! snapshotter that answers with mounts instead gets the layer fetched and applied ([`fetch`]), so that a pull ends with a
//! usable image or with its cause. However it ends, nothing half-made stays: [`run`] puts away what is left.

use std::{
    io::Write as _,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Deserialize;
use silk_registry::{Reference, Registry};

use crate::{cli::Globals, config, control::Control, failure::Failure, human, interrupt::Signals};

mod content;
mod fetch;
pub mod image;
mod labels;
mod lease;
mod node;
mod platform;
pub mod progress;
mod unpack;

pub use image::Malformed;
pub use platform::Platform;
pub use progress::{Around, say};

use content::Store;
use node::Node;
use progress::{Board, Display};
use unpack::Unpack;

/// Two calls that containerd answers within milliseconds, one of which waits for its garbage collection.
const PUT_AWAY: Duration = Duration::from_secs(10);
/// Between two tries at that.
const AGAIN: Duration = Duration::from_millis(300);

/// Pull an image through containerd; silkd fetches its layers
///
/// Works with containerd 1.6, 1.7 and 2.x. Returns when the image can be used, so that a container
/// (ctr run --snapshotter silk IMAGE NAME) starts at once: every layer is whole and proved, or, where silk knew it before
/// (pull.lazy), mounted while its bytes arrive; --wait returns when all are whole. Where silkd leaves an image to containerd, or with another
/// snapshotter, the layers are fetched into containerd's content store and unpacked there.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The image: python:3.13, registry.example/app@sha256:...
    #[arg(value_parser = |text: &str| text.parse::<Reference>().map(Reference::canonical))]
    pub image: Reference,
    /// Pull for this platform, when the image is made for several [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    /// Fetch the layers' blobs into containerd's content store, whatever the snapshotter has, and unpack without silkd:
    /// for images that are to be exported or pushed from there
    #[arg(long)]
    pub local: bool,
    /// Talk to the registry without TLS (silkd has its own configuration: registry.plain_http)
    #[arg(long)]
    pub plain_http: bool,
    /// Return when every layer is whole and proved; an error when silkd does not answer. Ctrl-C ends only the waiting
    #[arg(long)]
    pub wait: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// Pulls and prints.
pub async fn run(globals: &Globals, arguments: &Arguments) -> Result<(), Failure> {
    let began = Instant::now();
    let config: ConfigFile = config::load(globals.config.as_deref())?;
    let registry =
        config::registry(globals.config.as_deref(), config.registry, &arguments.image, arguments.plain_http)?;
    // Before there is anything that a signal could leave behind.
    let mut signals = Signals::new();
    let node = leased(Node::new(&globals.containerd, &globals.namespace)?, &mut signals).await?;
    let pull = Pull { globals, arguments, registry, node };
    let outcome = tokio::select! {
        outcome = pull.run() => outcome,
        signal = signals.next() => Err(Failure::Interrupted(signal)),
    };
    put_away(&pull.node, &globals.snapshotter, outcome.is_ok(), &mut signals).await;
    let summary = outcome.map_err(|failure| failure.of_image("pull", &arguments.image.to_string()))?;
    if !arguments.quiet {
        writeln!(std::io::stdout(), "pulled {} in {}: {summary}", arguments.image, human::duration(began.elapsed()))?;
    }
    Ok(())
}

/// What is read of silkd's configuration; the rest is silkd's to check.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConfigFile {
    registry: silk_registry::Config,
}

struct Pull<'a> {
    globals: &'a Globals,
    arguments: &'a Arguments,
    registry: Registry,
    node: Node,
}

impl Pull<'_> {
    /// All of it; says what was pulled.
    async fn run(&self) -> Result<String, Failure> {
        let Self { globals, arguments, registry, node } = self;
        let reference = &arguments.image;
        let repository = registry.repository(reference).await?;
        let store = Store::new(node.clone(), reference);
        let wanted = arguments.platform.clone().unwrap_or_else(Platform::of_this_machine);
        let image = image::resolve(reference, &repository, &store, &wanted).await?;
        if let Some(platform) = image.platform.as_ref().filter(|platform| **platform != wanted && !arguments.quiet) {
            say(&format!("note: the image is made for {platform}, not {wanted}\n"));
        }
        let board = match Board::new(&image, Control::new(&globals.address)).await {
            Ok(board) => board,
            Err(failure) if arguments.wait && !arguments.local => return Err(failure),
            Err(failure) => Board::unasked(&image, failure),
        };
        let board = Arc::new(board);
        let mut display = Display::new(arguments.quiet, progress::terminal(), &board);
        let unpack = Unpack {
            node,
            store: &store,
            repository: &repository,
            image: &image,
            snapshotter: &globals.snapshotter,
            local: arguments.local,
            board: &board,
        };
        let work = async {
            unpack.run().await?;
            node.record_image(&reference.to_string(), &image.target).await?;
            if arguments.wait { board.whole(progress::AWAY).await } else { Ok(()) }
        };
        let outcome = tokio::select! {
            outcome = work => outcome,
            never = display.show(&board) => match never {},
        };
        // The last numbers; a silkd that has gone has none.
        let _ = board.refresh().await;
        display.draw(&board);
        drop(display);
        outcome?;
        Ok(board.summary())
    }
}

/// The same containerd, under a new lease; after a signal there is none.
async fn leased(node: Node, signals: &mut Signals) -> Result<Node, Failure> {
    let mut creating = pin!(lease::create(node));
    let signal = tokio::select! {
        node = &mut creating => return node,
        signal = signals.next() => signal,
    };
    // It may be there already.
    let created = tokio::select! {
        created = tokio::time::timeout(PUT_AWAY, creating) => created.ok(),
        _ = signals.next() => None,
    };
    match created {
        // No snapshot was begun.
        Some(Ok(node)) => put_away(&node, "", false, signals).await,
        Some(Err(_)) => {}
        None => left("containerd did not say whether there is one"),
    }
    Err(Failure::Interrupted(signal))
}

/// Ends the lease; after a failure, removes a snapshot that was being made, and waits until containerd has collected the rest. A
/// containerd that is started anew is waited for.
async fn put_away(node: &Node, snapshotter: &str, done: bool, signals: &mut Signals) {
    let away = async {
        loop {
            let removed = node.remove_unfinished(snapshotter).await;
            match lease::delete(node, !done).await.and(removed) {
                Err(Failure::Unreachable { .. }) => tokio::time::sleep(AGAIN).await,
                outcome => return outcome,
            }
        }
    };
    tokio::select! {
        away = tokio::time::timeout(PUT_AWAY, away) => match away {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => left(&failure.to_string()),
            Err(_) => left(&format!("containerd did not answer within {}", human::duration(PUT_AWAY))),
        },
        _ = signals.next() => left("interrupted again"),
    }
}

fn left(why: &str) {
    say(&format!("warning: what the pull made stays until its lease ends, in 24 h: {why}\n"));
}

#[cfg(test)]
mod tests;
