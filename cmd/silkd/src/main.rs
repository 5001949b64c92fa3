//! silkd, the daemon: reads its configuration, joins the rooms, serves containerd and the operator until it is told to stop.

#![forbid(unsafe_code)]

mod config;
mod contents;
mod control;
mod daemon;
mod docs;
mod janitor;
mod layers;
mod metrics;
mod node;
mod node_message;
mod notify;
mod process;
mod profiles;
mod served;
mod socket;
mod starts;
mod timing;
mod traces;
mod trim;
mod twice;
mod views;

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::{Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{config::Config, traces::Traces};

const CONFIG: &str = "/etc/silk/config.toml";

/// containerd proxy snapshotter that streams image layers.
#[derive(Debug, Parser)]
#[command(version = silk_model::VERSION)]
struct Arguments {
    /// Configuration file [default: /etc/silk/config.toml, which need not exist]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where layers and snapshots live; overrides the configuration
    #[arg(long)]
    root: Option<PathBuf>,
    /// The unix socket to serve; overrides the configuration
    #[arg(long)]
    address: Option<PathBuf>,
    /// Check the configuration and the key file that it names, and exit: with the error that a start would end with
    #[arg(long)]
    check: bool,
    /// Print docs/config.md and exit
    #[arg(long)]
    print_config_docs: bool,
}

fn main() -> anyhow::Result<()> {
    silk_sys::memory::keep_little();
    let arguments = Arguments::parse();
    if arguments.print_config_docs {
        print!("{}", docs::page());
        return Ok(());
    }
    process::take_descriptors();
    let named = arguments.config.is_some();
    let path = arguments.config.unwrap_or_else(|| CONFIG.into());
    let mut config = Config::load(&path, named)?;
    config.root = arguments.root.unwrap_or(config.root);
    config.address = arguments.address.unwrap_or(config.address);
    let filter = config::log_filter(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("silk-async")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let (layer, traces) = {
        // The connection to the collector belongs to it.
        let _inside = runtime.enter();
        if arguments.check {
            Traces::layer::<tracing_subscriber::Registry>(&config.tracing)?;
            return daemon::check(config);
        }
        Traces::layer(&config.tracing)?.unzip()
    };
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_filter(filter);
    tracing_subscriber::registry().with(log).with(layer).init();
    let outcome = runtime.block_on(daemon::run(config));
    if let Some(traces) = traces {
        traces.end();
    }
    // A pull's blocking threads end with their streams; waiting for a slow disk is not worth a late stop.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    outcome
}
