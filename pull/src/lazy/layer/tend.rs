//! What a layer's keeper does for its readers.

use std::{ops::Range, sync::Arc, time::Instant};

use silk_model::Class;

use super::{Lazy, Trouble, Waiting};

/// What readers need of their layer's keeper.
#[derive(Debug)]
pub(in super::super) struct Todo {
    /// To be fetched now.
    pub(in super::super) runs: Vec<Range<usize>>,
    /// When to look again, if nothing happens before.
    pub(in super::super) wake: Option<Instant>,
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
        let refused =
            |w: &Waiting| w.until <= now || trouble.as_ref().is_some_and(|t| t.refuses(w, &self.spans(&w.bytes)));
        let over: Vec<_> = work.waiting.extract_if(.., |w| refused(w)).collect();
        let mut runs = Vec::new();
        if trouble.as_ref().is_none_or(|t| t.next_try <= now) {
            let wanted: Vec<_> = work.waiting.iter().map(|w| w.bytes.clone()).collect();
            runs = wanted.iter().flat_map(|bytes| self.take(&mut work, self.spans(bytes))).collect();
        }
        let deadline = work.waiting.iter().map(|w| w.until).min();
        let next_try = trouble.as_ref().map(|t| t.next_try).filter(|at| *at > now);
        drop(work);
        self.refuse_all(over, trouble.as_ref());
        Ok(Todo { runs, wake: [deadline, next_try].into_iter().flatten().min() })
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
