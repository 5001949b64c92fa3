//! `silk status`: what silkd has and does, as a table or as JSON.

use std::{io::Write as _, time::Duration};

use clap::Args;
use silk_api::control::{Backend, Image, Layer, StatusResponse};

use crate::{
    cli::Globals,
    control::{Control, full_name},
    failure::Failure,
    human, table,
};

mod json;
mod timing;

/// Show images and their layers: what is here and proved, from where, at what rate
#[derive(Debug, Args)]
pub struct Arguments {
    /// Only this image: a reference (python:3.13) or the digest of a manifest [default: all]
    pub image: Option<String>,
    /// Where the time of the image's last pull went, and what limited it
    #[arg(long, requires = "image")]
    pub timing: bool,
    /// Print JSON; docs/operations.md describes the fields
    #[arg(long)]
    pub json: bool,
}

/// Asks and prints.
pub async fn run(globals: &Globals, arguments: &Arguments) -> Result<(), Failure> {
    let name = arguments.image.as_deref().map(full_name).unwrap_or_default();
    if arguments.timing {
        let answer = Control::new(&globals.address).timing(&name).await?;
        let text = if arguments.json { timing::json(answer) } else { human::clean(&timing::text(&answer, &name)) };
        std::io::stdout().write_all(text.as_bytes())?;
        return Ok(());
    }
    let answer = Control::new(&globals.address).status(&name).await?;
    let unknown = match answer.images.is_empty() && !name.is_empty() {
        true => format!("\nsilkd does not know {name}\n"),
        false => String::new(),
    };
    let text = if arguments.json { json::text(answer) } else { human::clean(&(text(&answer) + &unknown)) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// The first 12 digits of a digest, without the algorithm.
pub fn short(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

fn text(status: &StatusResponse) -> String {
    let rung = match status.rung.as_str() {
        "file" => "EROFS from files",
        "loop" => "EROFS over loop devices",
        "tree" => "silkd through FUSE",
        _ => "nothing: images are left to containerd",
    };
    let reason = if status.rung_reason.is_empty() { String::new() } else { format!(" ({})", status.rung_reason) };
    let quota = match status.quota_bytes {
        0 => "none is kept".to_owned(),
        quota => format!("at most {}", human::bytes(quota)),
    };
    let mut text = format!("silkd {} in {}\n", status.version, status.root);
    text += &format!("layers are shown by {rung}{reason}\n");
    text += &format!(
        "{} of layers on disk, {} of them unused ({quota})\n",
        human::bytes(status.layer_bytes),
        human::bytes(status.unused_bytes)
    );
    if let Some(count) = status.node.as_ref().map(|node| node.containers_on_silkd).filter(|count| *count > 0) {
        text += &format!("containers that read through silkd, and lose their image when it ends: {count}\n");
    }
    text += &backends_text(&status.backends);
    status.images.iter().for_each(|image| text += &image_text(image));
    text
}

/// A line for each place where what is known of images is shared, and one for its last trouble.
pub fn backends_text(backends: &[Backend]) -> String {
    let time = |seconds| human::duration(Duration::try_from_secs_f64(seconds).unwrap_or_default());
    let mut text = String::new();
    for backend in backends {
        let Backend { name, up, seconds, why, hits, misses, refused, published, dropped, trouble, trouble_seconds } =
            backend;
        let state = match up {
            true => format!("up for {}", time(*seconds)),
            false => format!("away for {}: {why}", time(*seconds)),
        };
        text += &format!("shared through {name}, {state}\n");
        text += &format!(
            "  {hits} found, {misses} not there, {refused} refused; {published} published, {dropped} dropped\n"
        );
        if !trouble.is_empty() {
            text += &format!("  last trouble, {} ago: {trouble}\n", time(*trouble_seconds));
        }
    }
    text
}

fn image_text(image: &Image) -> String {
    let time = human::duration(Duration::try_from_secs_f64(image.seconds).unwrap_or_default());
    let how = match image.state.as_str() {
        "pulling" => format!("pulling for {time}"),
        "ready" if image.seconds > 0.0 => format!("ready, pulled in {time}"),
        state => state.to_owned(),
    };
    let mut text = format!("\n{}  {how}\n", image.reference);
    text += &format!("  manifest {}, namespace {}\n", image.manifest_digest, image.namespace);
    if !image.error.is_empty() {
        text += &format!("  {}\n", image.error);
    }
    if image.layers.is_empty() {
        return text;
    }
    let head = ["LAYER", "STATE", "NAMES", "RECEIVED", "DATA", "PROVED", "FROM", "RATE", "MOUNT", "SNAPSHOTS", "ERROR"];
    let rows = std::iter::once(head.map(str::to_owned).to_vec()).chain(image.layers.iter().map(cells));
    text + &table::align(&rows.collect::<Vec<_>>(), "  ")
}

fn cells(layer: &Layer) -> Vec<String> {
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let received = match layer.state.as_str() {
        "whole" => human::bytes(layer.blob_size),
        _ => format!("{} of {}", human::bytes(layer.blob_received), human::bytes(layer.blob_size)),
    };
    let proved = match (layer.proved, layer.durable) {
        (true, false) => "yes, not synced".to_owned(),
        (proved, _) => yes(proved),
    };
    vec![
        short(&layer.diff_id).to_owned(),
        layer.state.clone(),
        yes(layer.names),
        received,
        human::bytes(layer.data_bytes),
        proved,
        layer.source.clone(),
        human::rate(layer.rate),
        layer.variant.clone(),
        layer.snapshots.to_string(),
        layer.error.clone(),
    ]
}

#[cfg(test)]
mod tests;
