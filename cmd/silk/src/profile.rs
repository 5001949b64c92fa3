//! `silk profile`: what starts of an image's containers touch, which is fetched first at the next pull.

use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use silk_api::control::{Profile, Start};

use crate::{
    cli::Globals,
    control::{Control, full_name},
    failure::Failure,
    human, table,
};

/// More than a profile can have.
const MAX: u64 = 1 << 20;

/// Show, save, load or drop what starts of an image's containers read
///
/// silkd watches containers that are the first to read their image's layers. What they touched is kept with the image's
/// manifest, shared with other nodes, and fetched first when the image is pulled again.
#[derive(Debug, Args)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with an image's profile. An image is a reference (python:3.13) or the digest of a manifest.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print it: each entrypoint, and the bytes of each layer in the order in which they are touched
    Show {
        /// A reference or the digest of a manifest
        image: String,
        /// Every range, not only how much of each layer
        #[arg(long)]
        ranges: bool,
    },
    /// Write it to a file, for `silk profile import`
    Export {
        /// A reference or the digest of a manifest
        image: String,
        /// The file [default: stdout]
        file: Option<PathBuf>,
    },
    /// Add what a file says to what is known
    Import {
        /// A reference, or the digest of a manifest, which need not be here yet
        image: String,
        /// The file [default: stdin]
        file: Option<PathBuf>,
    },
    /// Forget it, here and where it is shared
    Drop {
        /// A reference or the digest of a manifest
        image: String,
    },
}

/// Asks and prints.
pub async fn run(globals: &Globals, arguments: &Arguments) -> Result<(), Failure> {
    let control = Control::new(&globals.address);
    let mut out = std::io::stdout();
    match &arguments.command {
        Command::Show { image, ranges } => {
            let profile = control.profile(&full_name(image)).await?;
            out.write_all(human::clean(&text(&profile, *ranges)).as_bytes())?;
        }
        Command::Export { image, file } => {
            let profile = control.profile(&full_name(image)).await?;
            match file {
                Some(path) => std::fs::write(path, &profile.encoded).map_err(|e| named(path, &e))?,
                None => out.write_all(&profile.encoded)?,
            }
        }
        Command::Import { image, file } => {
            let bytes = match file {
                Some(path) => std::fs::File::open(path).and_then(read).map_err(|e| named(path, &e)),
                None => read(std::io::stdin()).map_err(|e| named(Path::new("stdin"), &e)),
            };
            let bytes = bytes.map_err(Failure::Input)?;
            let profile = control.put_profile(&full_name(image), bytes).await?;
            out.write_all(human::clean(&text(&profile, false)).as_bytes())?;
        }
        Command::Drop { image } => {
            control.drop_profile(&full_name(image)).await?;
        }
    }
    Ok(())
}

fn read(from: impl std::io::Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn named(path: &Path, error: &std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn text(profile: &Profile, ranges: bool) -> String {
    let mut text = format!("manifest {}\n", profile.manifest_digest);
    profile.starts.iter().for_each(|start| text += &start_text(start, ranges));
    text
}

fn start_text(start: &Start, ranges: bool) -> String {
    let name = if start.entrypoint.is_empty() { "unknown entrypoint" } else { &start.entrypoint };
    let all: u64 = start.runs.iter().map(|run| run.length).sum();
    let times = human::count(start.count as usize, "start");
    let count = human::count(start.runs.len(), "range");
    let text = format!("\n{name}  {times}, {} in {count}\n", human::bytes(all));
    let mut rows = Vec::new();
    if ranges {
        rows.push(["LAYER", "OFFSET", "LENGTH", "NOT SEEN FOR"].map(str::to_owned).to_vec());
        rows.extend(start.runs.iter().map(|run| {
            let unseen = if run.unseen == 0 { String::new() } else { human::count(run.unseen as usize, "start") };
            vec![crate::status::short(&run.diff_id).to_owned(), run.offset.to_string(), run.length.to_string(), unseen]
        }));
    } else {
        rows.push(["LAYER", "BYTES", "RANGES"].map(str::to_owned).to_vec());
        let mut layers: Vec<(&str, u64, usize)> = Vec::new();
        for run in &start.runs {
            match layers.iter_mut().find(|(id, ..)| *id == run.diff_id) {
                Some((_, bytes, count)) => (*bytes, *count) = (*bytes + run.length, *count + 1),
                None => layers.push((&run.diff_id, run.length, 1)),
            }
        }
        let row = |(id, bytes, count): (&str, u64, usize)| {
            vec![crate::status::short(id).to_owned(), human::bytes(bytes), count.to_string()]
        };
        rows.extend(layers.into_iter().map(row));
    }
    text + &table::align(&rows, "  ")
}

#[cfg(test)]
mod tests {
    use silk_api::control::Run;

    use super::*;

    #[test]
    fn a_profile_is_told_by_layer_or_by_range() {
        let run = |id: &str, offset, unseen| Run { diff_id: format!("sha256:{id}"), offset, length: 65536, unseen };
        let runs = vec![run("aa", 0, 0), run("bb", 131_072, 2), run("aa", 262_144, 0)];
        let profile = Profile {
            manifest_digest: "sha256:cc".into(),
            starts: vec![Start { entrypoint: "sh #12345678".into(), count: 3, runs }],
            encoded: vec![],
        };
        let head = "manifest sha256:cc\n\nsh #12345678  3 starts, 196.6 kB in 3 ranges\n";
        let by_layer = "  LAYER  BYTES     RANGES\n  aa     131.1 kB  2\n  bb     65.5 kB   1\n";
        assert_eq!(text(&profile, false), format!("{head}{by_layer}"));
        let by_range = "  LAYER  OFFSET  LENGTH  NOT SEEN FOR\n  aa     0       65536\n  bb     131072  65536   2 starts\n  aa     262144  65536\n";
        assert_eq!(text(&profile, true), format!("{head}{by_range}"));
    }
}
