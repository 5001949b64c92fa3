//! How a layer stops being filled by its spans: its index is no good, a stream takes its place, nobody fills it any more.

use std::{fmt, fs::File, sync::Arc, time::Instant};

use silk_model::Class;

use super::{super::life::changed, Ground, Lazy, ReadError, Trouble, answer_from};

impl Lazy {
    /// The index is not to be trusted: readers wait for the stream that takes its place.
    pub(in super::super) fn stream_instead(&self, why: &str) {
        self.work().ground = Ground::Stream(why.to_owned());
        // Its ranges are over: others need not be held back for the sake of those who read it.
        self.lane.cool(self.spec.diff_id);
    }

    /// Does the work of the stream while readers wait for it, each as long as it may; `received` counts the stream's bytes.
    pub(in super::super) async fn while_readers_wait<R>(
        &self,
        stream: impl Future<Output = R>,
        received: impl Fn() -> Option<u64>,
    ) -> R {
        let late = async {
            let mut events = self.events.subscribe();
            loop {
                events.borrow_and_update();
                let next = self.refuse_late(received());
                changed(&mut events, next).await;
            }
        };
        tokio::select! {
            done = stream => done,
            never = late => never,
        }
    }

    /// Refuses reads that have waited long enough; tells when the next one has.
    fn refuse_late(&self, received: Option<u64>) -> Option<Instant> {
        let mut work = self.work();
        if let Some(received) = received.filter(|received| *received != work.streamed) {
            (work.streamed, work.trouble) = (received, None);
            let now = Instant::now();
            work.waiting.iter_mut().for_each(|read| read.moved = now);
        }
        let (late, next) = work.take_late(self.read_wait);
        let trouble = work.trouble.clone();
        drop(work);
        self.refuse_all(late, trouble.as_ref());
        next
    }

    /// The stream is tried again soon: readers wait for that, and are told this if their time is over before. A pull is told now.
    pub(in super::super) fn stream_failed(&self, error: &ReadError, cause: &str) {
        let (now, mut work) = (Instant::now(), self.work());
        let pulls: Vec<_> = work.waiting.extract_if(.., |read| !read.patient).collect();
        let (cause, run) = (Arc::from(cause), 0..0);
        let class = error.class;
        work.trouble = Some(Trouble { cause, class, run, tried: now, next_try: now, next_by_itself: now, in_a_row: 1 });
        drop(work);
        pulls.into_iter().for_each(|w| (w.answer)(Err(error.clone())));
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
        // Those who wait read by a descriptor of their own, when nobody else waits for what is under way here.
        let own = file.try_clone();
        let waiting = {
            let mut work = self.work();
            work.ground = Ground::Whole(file);
            std::mem::take(&mut work.waiting)
        };
        match own {
            Ok(own) => waiting.into_iter().for_each(|w| answer_from(&own, &w.bytes, w.answer, self)),
            Err(error) => {
                let error = self.refuse(Class::Internal, &error);
                waiting.into_iter().for_each(|w| (w.answer)(Err(error.clone())));
            }
        }
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
