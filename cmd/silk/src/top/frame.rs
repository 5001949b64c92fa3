//! One frame's text. Pure.

use std::{collections::HashSet, time::Duration};

use silk_api::control::{Backend, Budget, Image, Layer, Node, StatusResponse};

use super::Sample;
use crate::{human, status, table};

/// Columns where there is no terminal.
pub const WIDTH: usize = 120;
/// Columns of what the lines of the head are about.
const TITLE: usize = 10;

/// Counts before and now.
struct Change<'a> {
    before: Option<&'a StatusResponse>,
    now: &'a Node,
    seconds: f64,
}

impl Change<'_> {
    /// How often something happened, a second.
    fn rate(&self, of: fn(&Node) -> u64) -> f64 {
        let before = self.before.and_then(|b| b.node.as_ref());
        // A silkd that was started meanwhile counts from 0.
        before.map_or(0.0, |before| of(self.now).saturating_sub(of(before)) as f64 / self.seconds)
    }

    fn bytes(&self, of: fn(&Node) -> u64) -> String {
        format!("{}/s", human::bytes(self.rate(of) as u64))
    }
}

/// The frame: rates are those since the sample before. Lines of the head are broken to fit the width.
pub fn text(before: Option<&Sample>, now: &Sample, width: usize) -> String {
    let seconds = before.map_or(1.0, |b| now.at.duration_since(b.at).as_secs_f64().max(0.001));
    let nothing = Node::default();
    let change =
        Change { before: before.map(|b| &b.status), now: now.status.node.as_ref().unwrap_or(&nothing), seconds };
    let mut text = String::new();
    for (title, items) in head(&now.status, &change) {
        text += &wrapped(title, &items, width);
    }
    text += &arriving(&now.status, &change);
    human::clean(&text)
}

fn head(status: &StatusResponse, change: &Change<'_>) -> Vec<(&'static str, Vec<String>)> {
    let node = change.now;
    let time = |seconds| human::duration(Duration::try_from_secs_f64(seconds).unwrap_or_default());
    let cpu = change.before.and_then(|b| b.node.as_ref()).map(|before| {
        let percent = (node.cpu_seconds - before.cpu_seconds).max(0.0) / change.seconds * 100.0;
        format!("{percent:.0} % of a core")
    });
    let mut lines = vec![
        ("silkd", vec![format!("{} in {}", status.version, status.root), format!("up for {}", time(node.seconds))]),
        (
            "network",
            vec![
                format!("{} received", change.bytes(|n| n.received_bytes)),
                format!("{:.0} requests/s", change.rate(|n| n.requests)),
                format!("{} retries", node.retries),
            ],
        ),
        (
            "arriving",
            vec![
                format!("{} streamed", change.bytes(|n| n.stream_bytes)),
                format!("{} for reads", change.bytes(|n| n.demand_bytes)),
                format!("{} for starts", change.bytes(|n| n.profile_bytes)),
                format!("{} behind them", change.bytes(|n| n.background_bytes)),
            ],
        ),
        (
            "reads",
            vec![
                format!("{} waiting", node.reads_waiting),
                format!("{:.0}/s at once", change.rate(|n| n.reads_at_once)),
                format!("{:.0}/s after a wait", change.rate(|n| n.reads_parked)),
                format!("{} failed", node.read_errors),
            ],
        ),
        ("cache", cache(status, node)),
        (
            "process",
            [
                format!("{} of memory", human::bytes(node.resident_bytes)),
                format!("{} of {} descriptors", node.descriptors, node.descriptors_limit),
                format!("{} threads", node.threads),
            ]
            .into_iter()
            .chain(cpu)
            .collect(),
        ),
        ("budgets", node.budgets.iter().filter(|b| b.name != "cache_bytes").map(budget).collect()),
    ];
    if !status.backends.is_empty() {
        lines.push(("shared", status.backends.iter().map(backend).collect()));
    }
    lines
}

fn cache(status: &StatusResponse, node: &Node) -> Vec<String> {
    let quota = match status.quota_bytes {
        0 => "none is kept".to_owned(),
        quota => format!("at most {}", human::bytes(quota)),
    };
    vec![
        human::count(usize::try_from(node.layers).unwrap_or(usize::MAX), "layer"),
        human::bytes(status.layer_bytes),
        format!("{} unused ({quota})", human::bytes(status.unused_bytes)),
    ]
}

/// `decoders 2/3`, `bytes in flight 12.5 MB/33.6 MB`.
fn budget(budget: &Budget) -> String {
    let Budget { name, limit, in_use } = budget;
    let show = |count: &u64| if name.contains("bytes") { human::bytes(*count) } else { count.to_string() };
    format!("{} {}/{}", name.replace('_', " "), show(in_use), show(limit))
}

fn backend(backend: &Backend) -> String {
    match backend.up {
        true => format!("{} up", backend.name),
        false => format!("{} away: {}", backend.name, backend.why),
    }
}

/// Items in as many lines as they need, below a title.
fn wrapped(title: &str, items: &[String], width: usize) -> String {
    let mut text = format!("{title:TITLE$}");
    let mut used = TITLE;
    for (nr, item) in items.iter().enumerate() {
        let comma = usize::from(nr + 1 < items.len());
        let length = item.chars().count() + comma;
        if nr > 0 && used + 1 + length > width {
            text += &format!("\n{:TITLE$}", "");
            used = TITLE;
        } else if nr > 0 {
            text.push(' ');
            used += 1;
        }
        text += item;
        text += if comma == 1 { "," } else { "" };
        used += length;
    }
    text.push('\n');
    text
}

/// Images that arrive or did not, with those of their layers that are not whole.
fn arriving(status: &StatusResponse, change: &Change<'_>) -> String {
    if status.images.is_empty() {
        return "\nnothing arrives\n".to_owned();
    }
    let mut seen = HashSet::new();
    let mut rows = vec![];
    let mut sections = vec![];
    for image in &status.images {
        let count = image.layers.len();
        let on_its_way = |layer: &Layer| matches!(layer.state.as_str(), "pulling" | "filling" | "waiting");
        let layers: Vec<_> = image.layers.iter().enumerate().filter(|(_, l)| on_its_way(l)).collect();
        // What several images share stands with the first.
        let new: Vec<_> = layers.into_iter().filter(|(_, layer)| seen.insert(layer.diff_id.as_str())).collect();
        sections.push((title(image), new.len()));
        rows.extend(new.into_iter().map(|(nr, layer)| cells(nr + 1, count, layer, change)));
    }
    let table = table::align(&rows, "  ");
    let mut lines = table.lines();
    let mut text = String::new();
    for (title, layers) in sections {
        text += &format!("\n{title}\n");
        lines.by_ref().take(layers).for_each(|line| text += &format!("{line}\n"));
    }
    text
}

/// `docker.io/library/app:1  pulling for 1.50 s, 3 of 5 layers are whole, 2 pulls wait`
fn title(image: &Image) -> String {
    let time = human::duration(Duration::try_from_secs_f64(image.seconds).unwrap_or_default());
    let state = match image.state.as_str() {
        "failed" => return format!("{}  failed: {}", image.reference, image.error),
        "pulling" => format!("pulling for {time}"),
        state => state.to_owned(),
    };
    let whole = image.layers.iter().filter(|layer| layer.state == "whole").count();
    let waiting = match usize::try_from(image.waiting).unwrap_or(usize::MAX) {
        0 => String::new(),
        1 => ", 1 pull waits".to_owned(),
        many => format!(", {many} pulls wait"),
    };
    format!("{}  {state}, {whole} of {} whole{waiting}", image.reference, human::count(image.layers.len(), "layer"))
}

fn cells(nr: usize, count: usize, layer: &Layer, change: &Change<'_>) -> Vec<String> {
    let Layer { diff_id, state, blob_received, blob_size, reads_waiting, .. } = layer;
    let before = change.before.and_then(|before| {
        let mut layers = before.images.iter().flat_map(|image| &image.layers);
        layers.find(|before| before.diff_id == *diff_id && before.state == *state)
    });
    let rate = before.map_or(layer.rate, |b| blob_received.saturating_sub(b.blob_received) as f64 / change.seconds);
    let percent = (*blob_received).min(*blob_size) * 100 / (*blob_size).max(1);
    let waits = match reads_waiting {
        0 => String::new(),
        1 => "1 read waits".to_owned(),
        many => format!("{many} reads wait"),
    };
    let trouble = if layer.error.is_empty() { waits } else { format!("{waits} {}", layer.error).trim().to_owned() };
    vec![
        format!("{nr}/{count}"),
        status::short(diff_id).to_owned(),
        state.clone(),
        format!("{} of {}", human::bytes(*blob_received), human::bytes(*blob_size)),
        format!("{percent:3} %"),
        human::rate(rate),
        trouble,
    ]
}
