//! How far each layer is: told by the pull's own steps and by silkd, shown as bars on a terminal and as lines elsewhere.

use std::{
    collections::HashSet,
    convert::Infallible,
    io::{self, Write},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use indicatif::MultiProgress;
use silk_api::control;
use silk_model::Digest;

use super::image::Image;
use crate::{
    control::Control,
    failure::{Daemon, Failure},
    human,
};

mod bars;
mod lines;

use bars::Bars;
use lines::Lines;

/// Between two looks at silkd and two drawings.
const TICK: Duration = Duration::from_millis(200);
/// silkd answers from memory; when it is this busy, the last known numbers stay.
const PATIENCE: Duration = Duration::from_secs(2);
/// For which silkd may be away before a pull that waits for layers gives up: it is started again within seconds, and opens a large
/// store within a few more.
pub const AWAY: Duration = Duration::from_secs(30);

/// What a layer's row says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its turn has not come.
    Waiting,
    /// Bytes arrive.
    Pulling,
    /// silkd serves it, and fetches the rest behind its readers.
    Mounted,
    /// They are here; a layer below is not unpacked yet.
    Fetched,
    /// containerd unpacks it.
    Unpacking,
    /// It was here before this pull.
    Here,
    /// There is nothing left to learn of it.
    Known,
    /// Usable.
    Done,
}

/// A layer.
#[derive(Debug, Clone)]
pub struct Row {
    /// Of its blob.
    pub digest: Digest,
    diff_id: Digest,
    /// Of its blob, in bytes.
    pub size: u64,
    /// Of those, here.
    pub received: u64,
    /// Where it stands.
    pub stage: Stage,
    /// The registry host that sends it; empty while none does.
    pub source: String,
    /// Bytes a second.
    pub rate: f64,
    /// When its first byte was seen.
    began: Option<Instant>,
    /// From the first byte to its end.
    pub took: Option<Duration>,
    /// containerd said that the snapshot exists: silkd knows the rest.
    exists: bool,
    /// The snapshot did so before this pull.
    is_old: bool,
    /// It was said what keeps it from arriving.
    troubled: bool,
}

impl Row {
    /// Will it change no more?
    fn is_settled(&self) -> bool {
        matches!(self.stage, Stage::Here | Stage::Known | Stage::Done)
    }

    /// Does silkd know how far it is?
    fn is_asked(&self) -> bool {
        self.exists && !self.is_settled()
    }

    fn advance(&mut self, received: u64, source: &str) {
        let began = *self.began.get_or_insert_with(Instant::now);
        self.received = received.min(self.size);
        if self.source != source {
            source.clone_into(&mut self.source);
        }
        let seconds = began.elapsed().as_secs_f64();
        self.rate = if seconds > 0.1 { self.received as f64 / seconds } else { 0.0 };
        self.stage = Stage::Pulling;
    }

    fn end(&mut self, stage: Stage) {
        self.received = self.size;
        self.took = self.began.map(|began| began.elapsed());
        self.stage = stage;
    }

    /// Where silkd has the layer.
    fn told(&mut self, layer: &control::Layer, was_here: bool) {
        match layer.state.as_str() {
            "whole" if was_here => self.end(Stage::Here),
            "whole" => {
                self.end(Stage::Done);
                layer.source.clone_into(&mut self.source);
                self.rate = layer.rate;
                // Nearer the truth than what was seen between two looks.
                let took = Duration::try_from_secs_f64(self.size as f64 / layer.rate).ok();
                self.took = took.filter(|_| layer.rate > 0.0);
            }
            "pulling" => {
                self.advance(layer.blob_received, &layer.source);
                self.rate = layer.rate;
            }
            "filling" => {
                self.advance(layer.blob_received, &layer.source);
                self.stage = Stage::Mounted;
            }
            _ => {}
        }
    }
}

/// All layers of a pull.
#[derive(Debug)]
pub struct Board {
    rows: Mutex<Vec<Row>>,
    manifest: Digest,
    reference: String,
    /// Where it has part in this and answers.
    silkd: Option<Silkd>,
    /// Why it does not, until that has been said.
    unasked: Mutex<Option<Failure>>,
    /// To be said once.
    notes: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Silkd {
    control: Control,
    /// Diff IDs of the layers that it had before the pull.
    before: HashSet<String>,
}

impl Board {
    /// Asks silkd what it has.
    ///
    /// # Errors
    /// It does not answer: the pull may do without.
    pub async fn new(image: &Image, control: Control) -> Result<Self, Failure> {
        let status = patiently(control.status("")).await?;
        let layers = status.images.into_iter().flat_map(|image| image.layers);
        let before = layers.filter(|layer| layer.state == "whole").map(|layer| layer.diff_id).collect();
        Ok(Self { silkd: Some(Silkd { control, before }), ..Self::alone(image) })
    }

    /// For what silkd has no part in.
    pub fn alone(image: &Image) -> Self {
        let row = |layer: &super::image::Layer| Row {
            digest: layer.descriptor.digest,
            diff_id: layer.diff_id,
            size: layer.descriptor.size,
            received: 0,
            stage: Stage::Waiting,
            source: String::new(),
            rate: 0.0,
            began: None,
            took: None,
            exists: false,
            is_old: false,
            troubled: false,
        };
        Self {
            rows: Mutex::new(image.layers.iter().map(row).collect()),
            manifest: image.manifest.digest,
            reference: image.reference.to_string(),
            silkd: None,
            unasked: Mutex::default(),
            notes: Mutex::default(),
        }
    }

    /// For a silkd that does not answer, for this reason: what it has taken on is not known before the image can be used.
    pub fn unasked(image: &Image, why: Failure) -> Self {
        Self { unasked: Mutex::new(Some(why)), ..Self::alone(image) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// containerd says that the layer's snapshot exists: it was made before, or silkd has just taken the layer on.
    pub fn exists(&self, index: usize) {
        self.lock()[index].exists = true;
        if let Some(why) = self.unasked.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.note(format!("note: how far layers are that silkd fetches is not shown: {why}\n"));
        }
    }

    /// The layer's snapshot was made before this pull.
    pub fn is_old(&self, index: usize) {
        self.lock()[index].is_old = true;
    }

    /// The image can be used, and so can all layers whose snapshots exist. silkd knows more of them, if it answers.
    pub fn usable(&self) {
        if self.silkd.is_none() {
            let mut rows = self.lock();
            rows.iter_mut()
                .filter(|row| row.is_asked())
                .for_each(|row| row.end(if row.is_old { Stage::Here } else { Stage::Done }));
        }
    }

    /// Bytes of the layer's blob are in containerd.
    pub fn fetching(&self, index: usize, bytes: u64, source: &str) {
        self.lock()[index].advance(bytes, source);
    }

    /// Bytes of the layer's blob have arrived, unless it is done with.
    pub fn arrived(&self, index: usize, bytes: u64, source: &str) {
        let row = &mut self.lock()[index];
        if !row.is_settled() {
            row.advance(bytes, source);
        }
    }

    /// All of it is, and was before unless `fetched`.
    pub fn fetched(&self, index: usize, fetched: bool) {
        self.lock()[index].end(if fetched { Stage::Fetched } else { Stage::Here });
    }

    /// containerd unpacks the layer.
    pub fn unpacking(&self, index: usize) {
        self.lock()[index].stage = Stage::Unpacking;
    }

    /// What was fetched is all that was asked for.
    pub fn settle(&self) {
        self.lock().iter_mut().filter(|row| row.stage == Stage::Fetched).for_each(|row| row.end(Stage::Done));
    }

    /// The layer is usable.
    pub fn unpacked(&self, index: usize) {
        self.lock()[index].end(Stage::Done);
    }

    /// The layer has been learned, or was before.
    pub fn learned(&self, index: usize, now: bool) {
        self.lock()[index].end(if now { Stage::Done } else { Stage::Known });
    }

    /// Asks silkd how far it is with the layers that it has taken on.
    ///
    /// # Errors
    /// It does not answer, or says why the image does not arrive: [`Failure::Told`].
    pub async fn refresh(&self) -> Result<(), Failure> {
        let Some(silkd) = &self.silkd else { return Ok(()) };
        if !self.lock().iter().any(Row::is_asked) {
            return Ok(());
        }
        let image = self.ask(&silkd.control).await?;
        let mut rows = self.lock();
        let count = rows.len();
        for (i, row) in rows.iter_mut().enumerate().filter(|(_, row)| row.is_asked()) {
            let diff_id = row.diff_id.to_string();
            let was_here = silkd.before.contains(&diff_id);
            let Some(layer) = image.layers.iter().find(|layer| layer.diff_id == diff_id) else {
                // It exists and silkd does not know it: an ordinary snapshot, from an earlier pull.
                row.end(Stage::Here);
                continue;
            };
            row.told(layer, was_here);
            if !layer.error.is_empty() && !std::mem::replace(&mut row.troubled, true) {
                self.note(format!("layer {}/{count} {} does not arrive: {}\n", i + 1, row.digest.short(), layer.error));
            }
        }
        match image.state.as_str() {
            "failed" => Err(Failure::Told(image.error)),
            _ => Ok(()),
        }
    }

    /// Returns when every layer that silkd has taken on is whole and proved.
    ///
    /// # Errors
    /// The image failed, or silkd has not answered for `away`.
    pub async fn whole(&self, away: Duration) -> Result<(), Failure> {
        let mut answered = Instant::now();
        loop {
            match self.refresh().await {
                Ok(()) => answered = Instant::now(),
                Err(failure @ Failure::Told(_)) => return Err(failure),
                Err(failure) if answered.elapsed() > away => return Err(failure),
                Err(_) => {}
            }
            if !self.lock().iter().any(Row::is_asked) {
                return Ok(());
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Asks silkd why it left the image to containerd, if it did.
    pub async fn ask_why(&self) {
        let Some(silkd) = &self.silkd else { return };
        if let Ok(image) = self.ask(&silkd.control).await
            && image.state == "refused"
        {
            self.note(format!("note: silkd left the image to containerd: {}\n", image.error));
        }
    }

    fn note(&self, text: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    /// The image as silkd knows it.
    async fn ask(&self, control: &Control) -> Result<control::Image, Failure> {
        let mut images = patiently(control.status(&self.manifest.to_string())).await?.images;
        if images.is_empty() {
            return self.ask_others(control).await;
        }
        // The same manifest may be there under several names.
        let named = images.iter().position(|image| image.reference == self.reference);
        Ok(images.swap_remove(named.unwrap_or(0)))
    }

    /// What silkd knows of the image's layers where it does not know the image: containerd knew the chain, from an image that is
    /// on its way.
    async fn ask_others(&self, control: &Control) -> Result<control::Image, Failure> {
        let own: HashSet<_> = self.lock().iter().map(|row| row.diff_id.to_string()).collect();
        let mut found = control::Image::default();
        for image in patiently(control.unfinished()).await?.images {
            let layers: Vec<_> = image.layers.into_iter().filter(|layer| own.contains(&layer.diff_id)).collect();
            if image.state == "failed" && layers.iter().any(|layer| layer.state == "absent") {
                (found.state, found.error) = (image.state, image.error);
            }
            found.layers.extend(layers);
        }
        Ok(found)
    }

    /// The rows as they are now.
    pub fn rows(&self) -> Vec<Row> {
        self.lock().clone()
    }

    /// `5 layers, 237.1 MB (3 here already, 1 arrives while it is read)`.
    pub fn summary(&self) -> String {
        let rows = self.lock();
        let bytes = rows.iter().map(|row| row.size).sum();
        let count = |stage| rows.iter().filter(|row| row.stage == stage).count();
        let mut notes = Vec::new();
        match (count(Stage::Here), count(Stage::Known)) {
            (0, 0) => {}
            (0, known) => notes.push(format!("{known} known already")),
            (here, _) => notes.push(format!("{here} here already")),
        }
        match count(Stage::Mounted) {
            0 => {}
            1 => notes.push("1 arrives while it is read".to_owned()),
            mounted => notes.push(format!("{mounted} arrive while they are read")),
        }
        let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join(", ")) };
        format!("{}, {}{notes}", human::count(rows.len(), "layer"), human::bytes(bytes))
    }
}

/// silkd's answer from memory.
async fn patiently<T>(call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = || Failure::Late { daemon: Daemon::Silkd, doing: "tell its status".to_owned(), after: PATIENCE };
    tokio::time::timeout(PATIENCE, call).await.unwrap_or_else(|_| Err(late()))
}

/// How rows are shown.
#[derive(Debug)]
pub enum Display {
    /// Not at all.
    Quiet,
    /// A bar a layer.
    Bars(Bars),
    /// A line when a layer starts and ends, and a sum now and then.
    Lines(Lines),
}

impl Display {
    /// Bars on a terminal of so many columns, if they leave room for words.
    pub fn new(quiet: bool, terminal: Option<u16>, board: &Board) -> Self {
        match (quiet, terminal) {
            (true, _) => Self::Quiet,
            (false, Some(bars::LEAST..)) => Self::Bars(Bars::new(&board.rows())),
            (false, _) => Self::Lines(Lines::new(Instant::now())),
        }
    }

    /// Asks and draws until it is dropped.
    pub async fn show(&mut self, board: &Board) -> Infallible {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if matches!(self, Self::Quiet) {
                continue;
            }
            // Who waits for more than the numbers asks for himself.
            let _ = board.refresh().await;
            self.draw(board);
        }
    }

    /// Draws the board as it is now.
    pub fn draw(&mut self, board: &Board) {
        let notes = std::mem::take(&mut *board.notes.lock().unwrap_or_else(PoisonError::into_inner));
        if !matches!(self, Self::Quiet) {
            notes.iter().for_each(|note| say(note));
        }
        match self {
            Self::Quiet => {}
            Self::Bars(bars) => bars.draw(&board.rows()),
            Self::Lines(lines) => say(&lines.draw(&board.rows(), Instant::now())),
        }
    }
}

/// Columns of the terminal behind stderr; none if it is no terminal.
pub fn terminal() -> Option<u16> {
    let terminal = console::Term::stderr();
    terminal.is_term().then(|| terminal.size().1)
}

/// The bars on the terminal, if there are any.
static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// Text on stderr, around the bars. That nobody reads it is no reason to fail.
pub fn say(text: &str) {
    let write = || {
        let _ = io::stderr().write_all(human::clean(text).as_bytes());
    };
    match BARS.get() {
        Some(bars) => bars.suspend(write),
        None => write(),
    }
}

/// A writer to stderr for log lines, which the bars make room for.
#[derive(Debug)]
pub struct Around;

impl Write for Around {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        say(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
