//! How a layer stops being filled by its spans: its index is no good, a stream takes its place, nobody fills it any more.

use std::{fmt, fs::File, time::Instant};

use super::{super::life::changed, Ground, Lazy, ReadError, Waiting, answer_from};

impl Lazy {
    /// The index is not to be trusted: readers wait for the stream that takes its place.
    pub(in super::super) fn stream_instead(&self, why: &str) {
        self.work().ground = Ground::Stream(why.to_owned());
        // Its ranges are over: others need not be held back for the sake of those who read it.
        self.lane.cool(self.spec.diff_id);
    }

    /// Does the work of the stream while readers wait for it, each as long as it may.
    pub(in super::super) async fn while_readers_wait<R>(&self, stream: impl Future<Output = R>) -> R {
        let late = async {
            let mut events = self.events.subscribe();
            loop {
                events.borrow_and_update();
                let next = self.refuse_late();
                changed(&mut events, next).await;
            }
        };
        tokio::select! {
            done = stream => done,
            never = late => never,
        }
    }

    /// Refuses reads that have waited long enough; tells when the next one has.
    fn refuse_late(&self) -> Option<Instant> {
        let (now, mut work) = (Instant::now(), self.work());
        let late: Vec<_> = work.waiting.extract_if(.., |read| read.until <= now).collect();
        let next = work.waiting.iter().map(|read| read.until).min();
        drop(work);
        self.refuse_all(late, None);
        next
    }

    /// Waits, while whoever reads is told at once why the layer does not come.
    pub(in super::super) async fn while_readers_fail(&self, error: &ReadError, wait: impl Future<Output = ()>) {
        let failing = async {
            let mut events = self.events.subscribe();
            loop {
                events.borrow_and_update();
                self.not_streamed(error);
                changed(&mut events, None).await;
            }
        };
        tokio::select! {
            () = wait => {}
            never = failing => never,
        }
    }

    /// Its names are no good: no tree can be made of them.
    pub(crate) fn doubt(&self, why: &dyn fmt::Display) {
        let mut work = self.work();
        if matches!(work.ground, Ground::Spans) {
            let why = format!("its names are no good: {why}");
            work.fault = Some(why.as_str().into());
            work.ground = Ground::Stream(why);
        }
        drop(work);
        self.happened();
    }

    /// What was known of it is forgotten: it can be streamed.
    pub(in super::super) fn give_up(&self) {
        self.work().given_up = true;
        self.happened();
    }

    /// Waits until the layer can be streamed, or need not be.
    pub(crate) async fn given_up(&self) {
        let mut events = self.events.subscribe();
        // The sender lives in here.
        let _ = events
            .wait_for(|_| {
                let work = self.work();
                work.given_up || matches!(work.ground, Ground::Whole(_) | Ground::Nowhere)
            })
            .await;
    }

    /// The stream did not end well: those who wait are told.
    pub(in super::super) fn not_streamed(&self, error: &ReadError) {
        let waiting = std::mem::take(&mut self.work().waiting);
        waiting.into_iter().for_each(|w| (w.answer)(Err(error.clone())));
    }

    /// The stream ended with the layer's data file: reads are answered from it.
    pub(in super::super) fn streamed(&self, file: File) {
        let mut work = self.work();
        for Waiting { bytes, answer, .. } in std::mem::take(&mut work.waiting) {
            answer_from(&file, &bytes, answer, self);
        }
        work.ground = Ground::Whole(file);
    }

    /// Nobody uses the layer any more: who waits for its bytes does not get them.
    pub fn let_go(&self) {
        self.not_streamed(&self.abandoned());
    }

    /// Nobody fills the layer any more.
    pub(in super::super) fn abandon(&self) {
        let waiting = {
            let mut work = self.work();
            work.ground = Ground::Nowhere;
            std::mem::take(&mut work.waiting)
        };
        self.happened();
        waiting.into_iter().for_each(|w| (w.answer)(Err(self.abandoned())));
    }
}
