//! `silk fsck`: has silkd read layers again and prove them.

use std::io::Write as _;

use clap::Args;

use crate::{cli::Globals, control::Control, failure::Failure, human, interrupt, status::short};

/// Prove layers again: sha256 of the data against the diff ID
///
/// Reads every byte of them. One line a layer, as it is done; a damaged layer becomes a hole and is fetched again, and
/// the exit code is 1.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Only this layer: its diff ID, or the first digits of it, at least four
    #[arg(value_name = "DIFFID")]
    pub layer: Option<String>,
}

/// Asks and prints.
pub async fn run(globals: &Globals, arguments: &Arguments) -> Result<(), Failure> {
    let control = Control::new(&globals.address);
    tokio::select! {
        outcome = prove(&control, arguments.layer.as_deref()) => outcome,
        signal = interrupt::wait() => Err(Failure::Interrupted(signal)),
    }
}

async fn prove(control: &Control, layer: Option<&str>) -> Result<(), Failure> {
    let mut reports = control.fsck(layer.unwrap_or_default()).await?;
    let (mut all, mut bad, mut bytes) = (0, 0, 0);
    while let Some(report) = reports.next().await? {
        all += 1;
        bad += usize::from(!report.ok);
        bytes += report.bytes;
        let verdict = if report.ok { "ok     " } else { "damaged" };
        let line =
            format!("{verdict}  {}  {:>9}  {}", short(&report.diff_id), human::bytes(report.bytes), report.detail);
        writeln!(std::io::stdout(), "{}", human::clean(&line))?;
    }
    writeln!(std::io::stdout(), "{}, {} read, {bad} damaged", human::count(all, "layer"), human::bytes(bytes))?;
    if bad == 0 { Ok(()) } else { Err(Failure::Damaged { bad, all }) }
}
