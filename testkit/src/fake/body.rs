//! Bodies that are cut, stall, or run slowly.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::sleep;

use super::State;

/// Bytes a frame: small enough that a fault hits in the middle of a body.
const FRAME: usize = 16 << 10;

/// What happens when the bytes are out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Proper,
    Cut,
    Stall,
}

type Pause = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A body in frames.
pub(super) struct Scripted {
    bytes: Bytes,
    /// What `Content-Length` says; none: not announced.
    length: Option<u64>,
    end: End,
    /// Bytes a second.
    rate: Option<u64>,
    sent: Arc<AtomicU64>,
    state: Arc<State>,
    pause: Option<Pause>,
    stalled: bool,
    /// It is counted among the bodies of blobs: as a range or not.
    counted: Option<bool>,
}

impl Scripted {
    pub(super) fn new(
        bytes: Bytes,
        length: Option<u64>,
        end: End,
        rate: Option<u64>,
        sent: Arc<AtomicU64>,
        state: Arc<State>,
    ) -> Self {
        let pause = (bytes.is_empty() && end == End::Cut).then(flush);
        Self { bytes, length, end, rate, sent, state, pause, stalled: false, counted: None }
    }

    /// Counts it among the bodies of blobs while it is on its way.
    pub(super) fn counted(mut self, is_range: bool) -> Self {
        if !self.bytes.is_empty() {
            self.state.lock().bodies.begins(is_range);
            self.state.changed.notify_waiters();
            self.counted = Some(is_range);
        }
        self
    }

    /// Nothing of it goes out before the registry is healed.
    pub(super) fn held(mut self) -> Self {
        let state = Arc::clone(&self.state);
        let healed = state.lock().healed;
        self.pause = Some(Box::pin(async move {
            state.until(|| state.lock().healed > healed).await;
        }));
        self
    }

    fn is_over(&mut self) {
        if let Some(is_range) = self.counted.take() {
            self.state.lock().bodies.ends(is_range);
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.is_over();
    }
}

/// The server writes out what it has when a body pends: head and bytes arrive before the error closes the connection.
fn flush() -> Pause {
    Box::pin(sleep(Duration::from_millis(20)))
}

impl Body for Scripted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(pause) = &mut self.pause {
            if pause.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.pause = None;
        }
        if self.bytes.is_empty() {
            return match self.end {
                End::Proper => Poll::Ready(None),
                End::Cut => Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into()))),
                End::Stall => {
                    // Nobody wakes this: it pends until the connection is dropped.
                    if !std::mem::replace(&mut self.stalled, true) {
                        self.state.stalls();
                    }
                    Poll::Pending
                }
            };
        }
        let length = self.bytes.len().min(FRAME);
        let frame = self.bytes.split_to(length);
        self.sent.fetch_add(length as u64, Ordering::Relaxed);
        if self.bytes.is_empty() && self.end != End::Stall {
            self.is_over();
        }
        if let Some(rate) = self.rate {
            self.pause = Some(Box::pin(sleep(Duration::from_secs_f64(length as f64 / rate as f64))));
        } else if self.bytes.is_empty() && self.end == End::Cut {
            self.pause = Some(flush());
        }
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty() && self.end == End::Proper
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// The type of an answer that never comes.
pub(super) async fn never() -> Infallible {
    std::future::pending().await
}
