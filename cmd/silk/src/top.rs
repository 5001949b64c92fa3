//! `silk top`: what arrives now and what that takes, drawn anew as long as somebody looks.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use clap::Args;
use silk_api::control::StatusResponse;

use crate::{
    cli::Globals,
    control::Control,
    failure::Failure,
    human,
    interrupt::{self, Signal},
};

mod frame;
mod screen;

use screen::Screen;

/// Show live what arrives: layers, rates, reads that wait, cache, memory, budgets
///
/// On a terminal, Ctrl-C ends it; elsewhere one frame is printed an interval.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Seconds between two frames
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    pub interval: Duration,
    /// Print one frame, with the rates of one interval, and end
    #[arg(long)]
    pub once: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "not a number of seconds from 0.1 to 3600".to_owned())
}

/// What silkd said, and when.
#[derive(Debug)]
struct Sample {
    at: Instant,
    status: StatusResponse,
}

/// Asks and draws until it is interrupted.
pub async fn run(globals: &Globals, arguments: &Arguments) -> Result<(), Failure> {
    let control = Control::new(&globals.address);
    tokio::select! {
        // From the first look on: a terminal is put back whenever it ends.
        biased;
        signal = interrupt::wait() => match signal {
            Signal::Interrupt => Ok(()),
            Signal::Terminate => Err(Failure::Interrupted(signal)),
        },
        outcome = show(&control, arguments) => outcome,
    }
}

async fn show(control: &Control, arguments: &Arguments) -> Result<(), Failure> {
    let mut before = ask(control).await?;
    let screen = if arguments.once { None } else { Screen::open()? };
    if let Some(screen) = &screen {
        screen.draw(&frame::text(None, &before, screen.size().1), "")?;
    }
    loop {
        tokio::time::sleep(arguments.interval).await;
        let now = match (ask(control).await, &screen) {
            (Ok(now), _) => now,
            (Err(failure), None) => return Err(failure),
            // It may be on its way up again.
            (Err(failure), Some(screen)) => {
                screen.draw(&frame::text(None, &before, screen.size().1), &human::clean(&failure.to_string()))?;
                continue;
            }
        };
        match &screen {
            Some(screen) => screen.draw(&frame::text(Some(&before), &now, screen.size().1), "")?,
            None => print(&frame::text(Some(&before), &now, frame::WIDTH), arguments.once)?,
        }
        if arguments.once {
            return Ok(());
        }
        before = now;
    }
}

async fn ask(control: &Control) -> Result<Sample, Failure> {
    let status = control.unfinished().await?;
    Ok(Sample { at: Instant::now(), status })
}

fn print(frame: &str, last: bool) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    out.write_all(frame.as_bytes())?;
    if !last {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests;
