//! silk, the operator's tool: pulls images through containerd, and asks silkd what it has and does.
//!
//! Each command is a module with its arguments and a `run`; all of them fail with [`failure::Failure`], and only [`main`]
//! turns that into words on stderr and an exit code.

#![forbid(unsafe_code)]

mod cli;
mod config;
mod control;
mod explain;
mod failure;
mod fsck;
mod gc;
mod human;
mod index;
mod interrupt;
mod profile;
mod pull;
mod status;
mod table;
mod top;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    cli::{Arguments, Command},
    failure::Failure,
};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The registry's retries are worth a line; all else is said by the commands themselves.
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(|| pull::Around)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(arguments));
            // What still runs is a read or write that nobody waits for.
            runtime.shutdown_background();
            outcome
        }
        Err(cause) => Err(Failure::Runtime(cause)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_unread() {
                pull::say(&format!("error: {failure}\n"));
            }
            failure.exit_code()
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { globals, command } = arguments;
    match command {
        Command::Pull(arguments) => pull::run(&globals, &arguments).await,
        Command::Index(arguments) => index::run(&globals, &arguments).await,
        Command::Status(arguments) => status::run(&globals, &arguments).await,
        Command::Top(arguments) => top::run(&globals, &arguments).await,
        Command::Explain(arguments) => explain::run(&globals, &arguments).await,
        Command::Fsck(arguments) => fsck::run(&globals, &arguments).await,
        Command::Gc(arguments) => gc::run(&globals, &arguments).await,
        Command::Profile(arguments) => profile::run(&globals, &arguments).await,
    }
}
