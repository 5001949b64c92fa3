//! Which spans are taken to be fetched: what a reader needs, what comes behind it, and what nobody has asked for.

use std::{ops::Range, time::Instant};

use super::{super::scheduler::NEAR, Ground, Lazy, Work, tend::BACKOFF};

/// Spans before a read that the rest fetches first, and then those behind it: loaders read a library's end and then what lies
/// before it, and modules of a package come in any order. Two were little worse, eight no better.
const BEFORE: usize = 4;

impl Lazy {
    /// Marks the segments that these bytes need as coming, more of them when the reader goes on where the last one ended.
    pub(super) fn demand(&self, work: &mut Work, bytes: &Range<u64>) -> Vec<Range<usize>> {
        let spans = self.spans(bytes);
        let (at, length) = work.run;
        let mut end = spans.end;
        if spans.contains(&at) || spans.end == at {
            let ahead = self.partial.index().len().min(spans.end + 2 * length);
            end = end.max(ahead.min(self.grow(work, spans.start, self.range).end));
        }
        work.run = (end, end - spans.start);
        work.cursor = spans.start.saturating_sub(BEFORE);
        self.take(work, spans.start..end)
    }

    pub(super) fn spans(&self, bytes: &Range<u64>) -> Range<usize> {
        self.partial.index().spans_of(bytes.start..bytes.end.min(self.size()))
    }

    /// Marks what is neither here nor coming, in whole segments; neighbours make one run.
    pub(super) fn take(&self, work: &mut Work, spans: Range<usize>) -> Vec<Range<usize>> {
        if work.no_ranges {
            return self.take_all(work).into_iter().collect();
        }
        let index = self.partial.index();
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut at = spans.start;
        while at < spans.end {
            let segment = index.segment(at);
            at = segment.end;
            let missing = segment.clone().any(|span| !self.partial.has(span));
            if !missing || segment.clone().any(|span| work.coming.contains(&span)) {
                continue;
            }
            work.coming.extend(segment.clone());
            match runs.last_mut() {
                Some(last) if last.end == segment.start => last.end = segment.end,
                _ => runs.push(segment),
            }
        }
        runs
    }

    /// Marks all from the first span that is missing to the last, for a server that has no ranges: each would cost all that lies before it.
    /// None while anything is on its way: it would come twice.
    fn take_all(&self, work: &mut Work) -> Option<Range<usize>> {
        let index = self.partial.index();
        let first = self.partial.missing_from(0).filter(|_| work.stream.is_none() && work.coming.is_empty())?;
        let last = (first..index.len()).rev().find(|span| !self.partial.has(*span))?;
        let run = index.segment(first).start..index.segment(last).end;
        work.coming.extend(run.clone());
        work.stream = Some(run.clone());
        Some(run)
    }

    /// Is it all that is missing, which comes in one piece?
    pub(in super::super) fn is_all(&self, run: &Range<usize>) -> bool {
        self.work().stream.as_ref() == Some(run)
    }

    /// Marks the first run of segments in `spans` that is neither here nor coming. Nothing while there is trouble: the
    /// background is more patient.
    pub(in super::super) fn take_first(&self, spans: Range<usize>) -> Option<Range<usize>> {
        let mut work = self.work();
        if !matches!(work.ground, Ground::Spans) || work.trouble.is_some() || work.no_ranges {
            return None;
        }
        let index = self.partial.index();
        let free = |work: &Work, s: usize| !self.partial.has(s) && !work.coming.contains(&s);
        let first = spans.clone().find(|span| free(&work, *span))?;
        let mut end = index.segment(first).end;
        while end < spans.end && free(&work, end) {
            end = index.segment(end).end;
        }
        self.take(&mut work, first..end).into_iter().next()
    }

    /// The next run that nobody waits for: missing segments around what was read last, then from the start. An error
    /// says when to look again.
    pub(in super::super) fn next_run(&self) -> Result<Option<Range<usize>>, Instant> {
        let mut work = self.work();
        if let Some(trouble) = &mut work.trouble {
            let now = Instant::now();
            if trouble.next_by_itself > now {
                return Err(trouble.next_by_itself);
            }
            // One finds out whether it is over.
            trouble.next_by_itself = now + BACKOFF.end;
        }
        if work.no_ranges {
            return Ok(self.take_all(&mut work));
        }
        let free = |from: usize| {
            (from..self.partial.index().len()).find(|s| !self.partial.has(*s) && !work.coming.contains(s))
        };
        let Some(start) = free(work.cursor).or_else(|| free(0)) else { return Ok(None) };
        let range = if self.lane.is_read() { self.range.min(NEAR) } else { self.range };
        let run = self.grow(&work, start, range);
        work.cursor = run.end;
        work.coming.extend(run.clone());
        Ok(Some(run))
    }

    /// The segment of a span, and those behind it that are missing too, up to a range's bytes.
    fn grow(&self, work: &Work, span: usize, range: u64) -> Range<usize> {
        let index = self.partial.index();
        let mut run = index.segment(span);
        while run.end < index.len() {
            let more = run.start..index.segment(run.end).end;
            let bytes = index.blob_range(more.clone());
            let taken = (run.end..more.end).any(|s| self.partial.has(s) || work.coming.contains(&s));
            if taken || bytes.end - bytes.start > range {
                break;
            }
            run = more;
        }
        run
    }
}
