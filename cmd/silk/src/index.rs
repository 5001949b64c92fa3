//! `silk index`: learns an image's layers from its registry and publishes what a node would have learned when it pulled them.
//!
//! Talks to the registry and to the places of `[share]` alone: no containerd, no silkd. The layers go along silkd's own
//! road, within its window of memory, and nothing of them is kept but names and index ([`learn`]); what is there already
//! is not read again ([`places`]).

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Deserialize;
use silk_pull::{LayerSpec, Learner};
use silk_registry::{Reference, Repository};
use silk_share::Share;

use crate::{
    cli::Globals,
    config,
    failure::{ConfigFault, Failure},
    human,
    interrupt::Signals,
    pull::{
        Malformed, Platform,
        image::{self, Image, Nowhere},
        progress::{self, Board, Display},
        say,
    },
};

mod learn;
mod places;

use learn::Learning;
use places::{Asked, Places};

/// What a place may take to say what it has of an image. A pull is not kept waiting here, and a builder may be far from
/// the fleet's Redis.
const PATIENCE: Duration = Duration::from_secs(30);

/// Learn an image's layers ahead of time, and publish what a node needs to mount them before their bytes are there
///
/// Reads each layer from the registry once and keeps nothing on disk; needs neither containerd nor silkd. Publishes to
/// what the table share of the configuration names: Redis, and with share.referrers.publish the image's repository. Layers that
/// all of them know are not read.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The image: python:3.13, registry.example/app@sha256:...
    pub image: Reference,
    /// Of this platform, when the image is made for several [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    /// Also read layers that are known already, and replace what is damaged or sealed with another key
    #[arg(long)]
    pub force: bool,
    /// Talk to the registry without TLS
    #[arg(long)]
    pub plain_http: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// What is read of silkd's configuration; the rest is silkd's to check.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConfigFile {
    registry: silk_registry::Config,
    pull: silk_pull::Config,
    share: silk_share::Config,
}

/// Learns, publishes and prints.
pub async fn run(globals: &Globals, arguments: &Arguments) -> Result<(), Failure> {
    let began = Instant::now();
    let mut signals = Signals::new();
    let prepared = tokio::select! {
        prepared = prepare(globals, arguments) => prepared,
        signal = signals.next() => Err(Failure::Interrupted(signal)),
    };
    let outcome = match prepared {
        Ok(prepared) => prepared.index(arguments.quiet, &mut signals).await,
        Err(failure) => Err(failure),
    };
    let summary = outcome.map_err(|failure| failure.of_image("index", &arguments.image.to_string()))?;
    if !arguments.quiet {
        let took = human::duration(began.elapsed());
        writeln!(std::io::stdout(), "indexed {} in {took}: {summary}", arguments.image)?;
    }
    Ok(())
}

/// All that is known before the first layer is read.
struct Prepared {
    learner: Learner,
    repository: Repository,
    image: Image,
    layers: Vec<LayerSpec>,
    places: Places,
}

/// Asks the registry for the image, and each place whether it takes anything and what it has.
async fn prepare(globals: &Globals, arguments: &Arguments) -> Result<Prepared, Failure> {
    let Arguments { image: reference, platform, force, plain_http, quiet } = arguments;
    let named = globals.config.as_deref();
    let ConfigFile { registry, pull, share } = config::load(named)?;
    let is_keyed = share.key_file.is_some();
    let share = open(share).map_err(|cause| Failure::Config { path: config::path(named), cause })?;
    if share.is_alone() {
        return Err(Failure::NoBackend { config: config::path(named) });
    }
    let repository = config::registry(named, registry, reference, *plain_http)?.repository(reference).await?;
    let wanted = platform.clone().unwrap_or_else(Platform::of_this_machine);
    let image = image::resolve(reference, &repository, &Nowhere, &wanted).await?;
    let layers = layers(&image)?;
    let mut places = Places::open(share, &repository, image.manifest.digest).await?;
    let troubles = places.look_up(&layers, Asked { force: *force, is_keyed }).await?;
    if !quiet {
        troubles.iter().for_each(|trouble| say(&format!("note: what is there is not known: {trouble}\n")));
    }
    Ok(Prepared { learner: Learner::new(pull), repository, image, layers, places })
}

impl Prepared {
    /// Says what was learned.
    async fn index(self, quiet: bool, signals: &mut Signals) -> Result<String, Failure> {
        let Self { learner, repository, image, layers, mut places } = self;
        let board = Board::alone(&image);
        let mut display = Display::new(quiet, progress::terminal(), &board);
        let learning = Learning::new(&learner, &repository, &layers, &board);
        let outcome = tokio::select! {
            outcome = learning.run(&mut places, signals) => outcome,
            never = display.show(&board) => match never {},
        };
        display.draw(&board);
        drop(display);
        if !quiet {
            std::io::stdout().write_all(human::clean(&places.report(&layers)).as_bytes())?;
        }
        outcome?;
        places.outcome()?;
        Ok(board.summary())
    }
}

/// The places of `[share]` that are published to.
fn open(mut config: silk_share::Config) -> Result<Share, ConfigFault> {
    if config.referrers.publish && config.key_file.is_none() && !config.referrers.trust_unsigned {
        return Err(ConfigFault::Unbelieved);
    }
    // What is there is looked at, whoever may have written it; with a key only what has its seal counts.
    config.referrers.discover = config.referrers.publish;
    config.referrers.trust_unsigned &= config.key_file.is_none();
    let patience = u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX);
    for deadline in [&mut config.referrers.deadline_millis, &mut config.redis.deadline_millis] {
        // 0 is an error that is still to be found.
        *deadline = if *deadline == 0 { 0 } else { patience.max(*deadline) };
    }
    Ok(Share::new(&config, Vec::new())?)
}

fn layers(image: &Image) -> Result<Vec<LayerSpec>, Failure> {
    let layers = image.layers.iter().enumerate().map(|(i, layer)| {
        let media_type = layer.descriptor.media_type.clone();
        if !silk_layer::media::is_layer(&media_type) {
            let why = Malformed::LayerType { number: i + 1, media_type };
            return Err(Failure::Document { what: "manifest", digest: image.manifest.digest, why });
        }
        let (blob, size) = (layer.descriptor.digest, layer.descriptor.size);
        Ok(LayerSpec { diff_id: layer.diff_id, blob, size, media_type })
    });
    layers.collect()
}
