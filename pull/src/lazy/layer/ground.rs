//! How a layer stops being filled by its spans: its index is no good, a stream takes its place, nobody fills it any more.

use std::{fmt, fs::File};

use super::{Ground, Lazy, ReadError, Waiting, answer_from};

impl Lazy {
    /// The index is not to be trusted: readers wait for the stream that takes its place.
    pub(in super::super) fn stream_instead(&self, why: &str) {
        self.work().ground = Ground::Stream(why.to_owned());
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
