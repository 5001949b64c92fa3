//! Lines, where there is no terminal: one when a layer starts and one when it ends, and every few seconds a sum.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use super::{Row, Stage};
use crate::human;

/// Between two sums.
const SUM: Duration = Duration::from_secs(5);

/// What has been said.
#[derive(Debug)]
pub struct Lines {
    said: Vec<Stage>,
    began: Instant,
    sum_at: Instant,
}

impl Lines {
    pub(super) fn new(now: Instant) -> Self {
        Self { said: Vec::new(), began: now, sum_at: now + SUM }
    }

    /// What is new since the last time.
    pub(super) fn draw(&mut self, rows: &[Row], now: Instant) -> String {
        self.said.resize(rows.len(), Stage::Waiting);
        let mut text = String::new();
        for (i, (row, said)) in rows.iter().zip(&mut self.said).enumerate() {
            if row.stage == *said {
                continue;
            }
            let size = human::bytes(row.size);
            let news = match row.stage {
                // Whatever it has gone through since the last look, it has started.
                Stage::Pulling | Stage::Fetched | Stage::Unpacking if *said == Stage::Waiting => {
                    format!("pulling {size} from {}", row.source)
                }
                Stage::Mounted => format!("usable, {} of {size} here", human::bytes(row.received)),
                Stage::Here => format!("here already, {size}"),
                Stage::Known => format!("known already, {size}"),
                Stage::Done => match row.took {
                    Some(took) => format!("done, {size} in {}", human::duration(took)),
                    None => format!("done, {size}"),
                },
                Stage::Waiting | Stage::Pulling | Stage::Fetched | Stage::Unpacking => String::new(),
            };
            if !news.is_empty() {
                let _ = writeln!(text, "layer {}/{} {}: {news}", i + 1, rows.len(), row.digest.short());
            }
            *said = row.stage;
        }
        if now >= self.sum_at {
            self.sum_at = now + SUM;
            text += &self.sum(rows, now);
        }
        text
    }

    fn sum(&self, rows: &[Row], now: Instant) -> String {
        let (received, size) = rows.iter().fold((0, 0), |(r, s), row| (r + row.received, s + row.size));
        let done = rows.iter().filter(|row| row.is_settled()).count();
        let moved: u64 =
            rows.iter().filter(|row| !matches!(row.stage, Stage::Here | Stage::Known)).map(|row| row.received).sum();
        let seconds = now.duration_since(self.began).as_secs_f64();
        let rate = if seconds > 0.0 { moved as f64 / seconds } else { 0.0 };
        let rate = if rate >= 1.0 { format!(" at {}", human::rate(rate)) } else { String::new() };
        let (received, size) = (human::bytes(received), human::bytes(size));
        format!("{received} of {size}{rate}, {done} of {} done\n", human::count(rows.len(), "layer"))
    }
}
