//! `silk explain`: silkd's verdict on an image, and a sentence a layer.

use std::io::Write as _;

use clap::Args;

use crate::{
    cli::Globals,
    control::{Control, full_name},
    failure::Failure,
    human,
};

/// Say how each layer of an image is served, or why silk left it to containerd
///
/// Prints a verdict, then a sentence for each layer, base first. For an image that silk left to containerd the verdict
/// says why.
#[derive(Debug, Args)]
pub struct Arguments {
    /// A reference (python:3.13) or the digest of a manifest
    pub image: String,
}

/// Asks and prints.
pub async fn run(globals: &Globals, arguments: &Arguments) -> Result<(), Failure> {
    let name = full_name(&arguments.image);
    let answer = Control::new(&globals.address).explain(&name).await?;
    let reference = answer.image.as_ref().map_or(name.as_str(), |image| image.reference.as_str());
    let mut text = format!("{reference}: {}\n", answer.verdict);
    let of = answer.layers.len();
    for (i, sentence) in answer.layers.iter().enumerate() {
        let layer = answer.image.as_ref().and_then(|image| image.layers.get(i));
        let digest = layer.map_or("", |layer| crate::status::short(&layer.diff_id));
        text.push_str(&format!("  {}/{of} {digest}  {sentence}\n", i + 1));
    }
    text += &crate::status::backends_text(&answer.backends);
    std::io::stdout().write_all(human::clean(&text).as_bytes())?;
    Ok(())
}
