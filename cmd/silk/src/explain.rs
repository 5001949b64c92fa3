//! `silk explain`: silkd's verdict on an image, and a sentence a layer.

use std::io::Write as _;

use clap::Args;
use silk_api::control::ExplainResponse;

use crate::{
    cli::Globals,
    control::{Control, full_name},
    failure::Failure,
    human,
};

/// Say how each layer of an image is served, or why silk left it to containerd
///
/// Prints a verdict, then a sentence for each layer, base first. For an image that silk left to containerd the verdict
/// says why. A tag that was pushed again may have several images here: all are told, each with the digest of its manifest.
#[derive(Debug, Args)]
pub struct Arguments {
    /// A reference (python:3.13) or the digest of a manifest
    pub image: String,
}

/// Asks and prints.
pub async fn run(globals: &Globals, arguments: &Arguments) -> Result<(), Failure> {
    let name = full_name(&arguments.image);
    let answer = Control::new(&globals.address).explain(&name).await?;
    let several = !answer.others.is_empty();
    let told = std::iter::once(&answer).chain(&answer.others).map(|told| image_text(&name, told, several));
    let mut text: String = told.collect();
    text += &crate::status::backends_text(&answer.backends);
    std::io::stdout().write_all(human::clean(&text).as_bytes())?;
    Ok(())
}

/// One image; with the digest of its manifest where `several` have the name.
fn image_text(name: &str, told: &ExplainResponse, several: bool) -> String {
    let image = told.image.as_ref();
    let reference = image.map_or(name, |image| image.reference.as_str());
    let manifest = image.filter(|_| several).map_or_else(String::new, |image| format!(" ({})", image.manifest_digest));
    let mut text = format!("{reference}{manifest}: {}\n", told.verdict);
    let of = told.layers.len();
    for (i, sentence) in told.layers.iter().enumerate() {
        let layer = image.and_then(|image| image.layers.get(i));
        let digest = layer.map_or("", |layer| crate::status::short(&layer.diff_id));
        text.push_str(&format!("  {}/{of} {digest}  {sentence}\n", i + 1));
    }
    text
}
