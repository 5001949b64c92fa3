//! When the pull of an image begins, and what it leaves behind.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use silk_model::metrics::{Kind, Label as _, METRICS, Outcome};
use tracing::Instrument as _;

use super::{Failure, Image, Puller, State, lock, pull};
use crate::{ImageSpec, LayerError, settle, spans, timing::Trip};

impl Puller {
    /// How long the image is not tried again.
    pub(super) fn backoff(&self, image: &Image, failure: &Failure) -> Option<Duration> {
        if image.untried.load(Ordering::Relaxed) {
            return None;
        }
        let factor = 1_u64.checked_shl(failure.in_a_row.saturating_sub(1)).unwrap_or(u64::MAX);
        let whole = self.config.retry_min_secs.saturating_mul(factor).min(self.config.retry_max_secs);
        Duration::from_secs(whole).checked_sub(failure.at.elapsed()).filter(|left| !left.is_zero())
    }

    /// Starts the image's pull unless it is under way. `claimed` is when containerd asked for it; `None` where it did before and this is a try by
    /// silk's own doing: one that was idle since silkd's start, and is all here, was not pulled then.
    pub(super) fn start(self: &Arc<Self>, image: &Arc<Image>, spec: &Arc<ImageSpec>, claimed: Option<Instant>) {
        let (mut failures, mut is_news) = (0, true);
        let started = image.state.send_if_modified(|state| {
            match state {
                State::Pulling(_) => return false,
                State::Failed(failure) => failures = failure.in_a_row,
                State::Idle => is_news = claimed.is_some(),
                State::Ready(_) => {}
            }
            *state = State::Pulling(Instant::now());
            true
        });
        if !started {
            return;
        }
        image.untried.store(false, Ordering::Relaxed);
        *lock(&image.kind) = Kind::Here;
        let asked = claimed.unwrap_or_else(Instant::now);
        let trip = Arc::new(Trip::since(asked));
        *lock(&image.trip) = Some(Arc::clone(&trip));
        let (puller, image, spec) = (Arc::clone(self), Arc::clone(image), Arc::clone(spec));
        let span = spans::pull(&spec.reference, &spec.manifest);
        tokio::spawn(async move {
            // In a task of its own: whatever happens there, those who wait are told.
            let pull = tokio::spawn({
                let (puller, image, spec) = (Arc::clone(&puller), Arc::clone(&image), Arc::clone(&spec));
                async move { puller.pull(&image, &spec, spec.layers.len(), Some(&trip)).await }.instrument(span.clone())
            });
            let outcome = pull.await.unwrap_or_else(|_| Err(pull::failed(&spec, 0, Arc::new(LayerError::Panicked))));
            let ended = if outcome.is_ok() { Outcome::Ready } else { Outcome::Failed };
            let kind = *lock(&image.kind);
            let is_pull = is_news || kind != Kind::Here || outcome.is_err();
            if is_pull {
                METRICS.image_pull.of((ended, kind)).took(asked.elapsed());
            } else {
                lock(&image.trip).take();
            }
            for (name, value) in kind.pairs() {
                span.record(name, value);
            }
            spans::ended(&span, "ready", outcome.as_ref().map(drop));
            drop(span);
            let state = match outcome {
                Ok(()) => State::Ready(if is_pull { asked.elapsed() } else { Duration::ZERO }),
                Err(error) => {
                    tracing::error!(image = spec.reference, "{error}");
                    State::Failed(Failure { error, at: Instant::now(), in_a_row: failures + 1 })
                }
            };
            // Asked beside a pull that had begun: by the next one they may know something else.
            lock(&image.asked).take();
            image.state.send_replace(state);
            settle::later(&puller.store, spec.diff_ids(), spec.reference.clone());
        });
    }
}
