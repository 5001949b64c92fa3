//! `silk gc`: gives disk back.

use std::io::Write as _;

use clap::Args;

use crate::{cli::Globals, control::Control, failure::Failure, human};

/// Drop layers that no snapshot uses, longest unused first
///
/// Such layers are kept as a cache up to silkd's quota. What silk knows of them (names, digests) stays, so that they
/// need not be learned again.
#[derive(Debug, Args)]
pub struct Arguments {
    /// How much of them to keep: bytes, or with a unit (500MB, 10GiB); 0 drops all [default: silkd's quota]
    #[arg(long, value_name = "BYTES", value_parser = human::parse_bytes)]
    pub keep: Option<u64>,
}

/// Asks and prints.
pub async fn run(globals: &Globals, arguments: &Arguments) -> Result<(), Failure> {
    let gone = Control::new(&globals.address).gc(arguments.keep).await?;
    let layers = human::count(gone.layers as usize, "layer");
    writeln!(std::io::stdout(), "dropped {layers}, {}", human::bytes(gone.bytes))?;
    Ok(())
}
