//! What a layer's keeper does for its readers.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use silk_model::Class;

use super::{Lazy, Waiting, Work};

/// Waits before a range that failed is fetched again.
pub(super) const BACKOFF: Range<Duration> = Duration::from_millis(250)..Duration::from_secs(8);
/// The longest wait where nobody reads and waiting alone hardly helps: a password that is wrong, a blob that is gone, a full disk. Chosen: a
/// node with sixty such layers asks once a second.
const BY_ITSELF: Duration = Duration::from_secs(60);

/// What readers need of their layer's keeper.
#[derive(Debug)]
pub(in super::super) struct Todo {
    /// To be fetched now.
    pub(in super::super) runs: Vec<Range<usize>>,
    /// When to look again, if nothing happens before.
    pub(in super::super) wake: Option<Instant>,
}

/// Why bytes do not come.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub(super) cause: Arc<str>,
    pub(super) class: Class,
    /// What did not come.
    pub(super) run: Range<usize>,
    /// When the request that failed was made.
    pub(super) tried: Instant,
    /// When it may be tried again for those who read.
    pub(super) next_try: Instant,
    /// And for nobody.
    pub(super) next_by_itself: Instant,
    pub(super) in_a_row: u32,
}

impl Trouble {
    /// Is a read of these spans to be refused now? Not when it was asked since: what kept the last request from its bytes may be over; nor
    /// for another read's sake, whose request one of many servers may have refused. A blob that is gone does not come back by waiting. A
    /// registry does, and so does space on the disk; a password that was changed, or a token that is over, is replaced on the node
    /// a while later, and some registries refuse those who ask too often.
    fn refuses(&self, read: &Waiting, spans: &Range<usize>) -> bool {
        let is_its = spans.start < self.run.end && self.run.start < spans.end;
        let is_final = match self.class {
            Class::Transient | Class::Corrupt | Class::NoSpace => false,
            Class::Denied => !read.patient,
            _ => true,
        };
        is_its && is_final && read.asked <= self.tried
    }
}

impl Work {
    /// Takes the reads that have waited long enough; tells when the next one has. That is `patience` after a read was asked, or after something of what
    /// it waits for came last: a slow link is no outage.
    pub(super) fn take_late(&mut self, patience: Duration) -> (Vec<Waiting>, Option<Instant>) {
        let now = Instant::now();
        let late = self.waiting.extract_if(.., |read| read.moved + patience <= now).collect();
        (late, self.waiting.iter().map(|read| read.moved + patience).min())
    }
}

impl Lazy {
    /// What readers need now: runs to fetch, and when to look again. Reads that waited too long, or for what is not to be
    /// had, are refused.
    pub(in super::super) fn tend(&self) -> Result<Todo, Arc<str>> {
        let now = Instant::now();
        let mut work = self.work();
        if let Some(cause) = &work.fault {
            return Err(Arc::clone(cause));
        }
        let trouble = work.trouble.clone();
        let (mut over, deadline) = work.take_late(self.read_wait);
        if let Some(trouble) = &trouble {
            over.extend(work.waiting.extract_if(.., |read| trouble.refuses(read, &self.spans(&read.bytes))));
        }
        let mut runs = Vec::new();
        if trouble.as_ref().is_none_or(|t| t.next_try <= now) {
            // Who is not let in asks once: some registries count that.
            let most = trouble.as_ref().filter(|t| t.class == Class::Denied).map_or(usize::MAX, |_| 1);
            let wanted: Vec<_> = work.waiting.iter().take(most).map(|w| w.bytes.clone()).collect();
            runs = wanted.iter().flat_map(|bytes| self.take(&mut work, self.spans(bytes))).collect();
        }
        let next_try = trouble.as_ref().map(|t| t.next_try).filter(|at| *at > now);
        drop(work);
        self.refuse_all(over, trouble.as_ref());
        Ok(Todo { runs, wake: [deadline, next_try].into_iter().flatten().min() })
    }

    /// A span has come. What comes before others in a segment leads to them, and all of a layer in one piece to the rest of it.
    pub(super) fn moved(&self, work: &mut Work, span: usize) {
        let index = self.partial.index();
        let (segment, now) = (index.segment(span), Instant::now());
        let is_stream = work.stream.as_ref().is_some_and(|run| run.contains(&span));
        for read in &mut work.waiting {
            let spans = self.spans(&read.bytes);
            let is_its =
                !spans.is_empty() && spans.start < segment.end && segment.start < index.segment(spans.end - 1).end;
            if is_stream || is_its {
                read.moved = now;
            }
        }
    }

    /// How long to wait after so many failures in a row: for those who read, and for nobody.
    pub(super) fn waits(&self, class: Class, in_a_row: u32) -> [Duration; 2] {
        let wait = BACKOFF.start.saturating_mul(1 << (in_a_row - 1).min(16));
        // A reader that comes now is to see some tries before its time is over.
        let for_readers = wait.min(BACKOFF.end).min(self.read_wait / 4);
        let by_itself = if class == Class::Transient { BACKOFF.end } else { BY_ITSELF };
        [for_readers, wait.min(by_itself).max(for_readers)]
    }

    pub(super) fn refuse_all(&self, reads: Vec<Waiting>, trouble: Option<&Trouble>) {
        for Waiting { answer, .. } in reads {
            let (class, cause) = trouble.map_or((Class::Transient, "its bytes did not come in time".into()), |t| {
                (t.class, Arc::clone(&t.cause))
            });
            let error = self.refuse(class, &cause);
            tracing::error!(%error, "a read failed");
            answer(Err(error));
        }
    }
}
