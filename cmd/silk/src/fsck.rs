//! `silk fsck`: has silkd read layers again and prove them.

use std::io::Write as _;

use clap::Args;
use silk_model::Digest;

use crate::{cli::Globals, control::Control, failure::Failure, human, interrupt, status::short};

/// Prove layers again: sha256 of the data against the diff ID
///
/// Reads every byte of them. One line a layer, as it is done; a damaged layer becomes a hole and is fetched again, and
/// the exit code is 1.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Only this layer: its diff ID, or the start of one as silk status shows it
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
    let diff_id = match layer {
        Some(layer) => Some(find(control, layer).await?),
        None => None,
    };
    let mut reports = control.fsck(diff_id).await?;
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

/// The layer whose diff ID is, or starts with, this.
async fn find(control: &Control, layer: &str) -> Result<Digest, Failure> {
    if let Ok(digest) = layer.parse() {
        return Ok(digest);
    }
    let images = control.status("").await?.images;
    let known = images.iter().flat_map(|image| &image.layers).filter_map(|layer| layer.diff_id.parse().ok());
    let mut found: Vec<Digest> = known.filter(|known| starts_with(known, layer)).collect();
    found.sort_unstable();
    found.dedup();
    match found[..] {
        [one] => Ok(one),
        _ => Err(Failure::NoSuchLayer { prefix: layer.to_owned(), found: found.len() }),
    }
}

fn starts_with(digest: &Digest, prefix: &str) -> bool {
    let hex = prefix.strip_prefix("sha256:").unwrap_or(prefix);
    // Fewer digits than this are a slip.
    hex.len() >= 4 && digest.hex().starts_with(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_named_by_its_first_digits() {
        let digest = Digest::of(b"x");
        assert!(starts_with(&digest, &digest.short()));
        assert!(starts_with(&digest, &digest.to_string()[..12]));
        assert!(!starts_with(&digest, ""));
        assert!(!starts_with(&digest, "sha256:"));
        assert!(!starts_with(&digest, &Digest::of(b"y").short()));
    }
}
