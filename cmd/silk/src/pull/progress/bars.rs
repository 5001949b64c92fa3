//! A bar a layer, on a terminal.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{BARS, Row, Stage};
use crate::human;

/// Drawings a second: as often as the numbers change.
const HERTZ: u8 = 10;

/// Columns that they need: a digest, 24 of bar, and the longest of their messages but for a registry's name. Where lines are broken,
/// they are not drawn to their end, and what follows stands behind the last.
pub const LEAST: u16 = 72;

/// The bars.
#[derive(Debug)]
pub struct Bars(Vec<ProgressBar>);

impl Bars {
    pub(super) fn new(rows: &[Row]) -> Self {
        let all = BARS.get_or_init(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(HERTZ)));
        let style = ProgressStyle::with_template("{prefix} [{bar:24}] {wide_msg}").expect("the template is sound");
        let style = style.progress_chars("=> ");
        let bar = |row: &Row| {
            // A bar without a length would spin; an empty layer is no such bar.
            let bar = all.add(ProgressBar::new(row.size.max(1))).with_style(style.clone());
            bar.with_prefix(row.digest.short())
        };
        Self(rows.iter().map(bar).collect())
    }

    pub(super) fn draw(&self, rows: &[Row]) {
        for (bar, row) in self.0.iter().zip(rows) {
            if bar.is_finished() {
                continue;
            }
            bar.set_message(human::clean(&message(row)));
            let ended = row.is_settled();
            bar.set_position(if ended { row.size.max(1) } else { row.received });
            if ended {
                bar.abandon();
            }
        }
    }
}

/// Leaves the bars as they are, however the pull ended.
impl Drop for Bars {
    fn drop(&mut self) {
        self.0.iter().filter(|bar| !bar.is_finished()).for_each(ProgressBar::abandon);
    }
}

/// What stands beside a bar.
pub(super) fn message(row: &Row) -> String {
    let size = human::bytes(row.size);
    match row.stage {
        Stage::Waiting => format!("{size}  waiting"),
        Stage::Pulling => {
            let received = human::bytes(row.received);
            format!("{received} / {size}  {}  from {}", human::rate(row.rate), row.source)
        }
        Stage::Mounted => format!("{} / {size}  usable", human::bytes(row.received)),
        Stage::Fetched => format!("{size}  waits for the layer below"),
        Stage::Unpacking => format!("{size}  unpacking"),
        Stage::Here => format!("{size}  here already"),
        Stage::Known => format!("{size}  known already"),
        Stage::Done => match row.took {
            Some(took) => format!("{size}  {}  in {}", human::rate(row.rate), human::duration(took)),
            None => format!("{size}  done"),
        },
    }
}
