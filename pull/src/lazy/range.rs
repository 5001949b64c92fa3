//! One run of spans: fetched, decoded, verified, stored.

use std::{
    ops::Range,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use bytes::Bytes;
use silk_layer::{
    index::{self, SpanError},
    media::Compression,
};
use silk_model::{
    Class,
    metrics::{self, METRICS},
};
use silk_store::StoreError;
use silk_sys::priority::{self, Behind};
use tokio::{sync::mpsc, task::JoinHandle};
use tracing::Instrument as _;

use super::{
    Lazy,
    buffers::Buffer,
    pieces::PieceReader,
    scheduler::{Admitted, Held},
};
use crate::{
    fetch::{PIECES, Pieces},
    sources::{Manner, Stretch},
    spans,
    timing::{Clocks, Part, Way},
};

/// What asked for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A reader waits.
    Now,
    /// Nobody yet, but a start is known to touch it.
    Soon,
    /// Nobody yet.
    Later,
}

/// What is here of a range that is to be decoded.
#[derive(Default)]
struct Came {
    /// An error is the last.
    pieces: Vec<Result<Bytes, silk_registry::Error>>,
    /// Nothing else will come.
    is_all: bool,
}

/// Why a range did not arrive.
#[derive(Debug, thiserror::Error)]
pub(super) enum RangeError {
    #[error(transparent)]
    Registry(#[from] silk_registry::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{error}")]
    Content {
        error: SpanError,
        /// A host is left that has not sent wrong bytes of the blob.
        elsewhere: bool,
    },
    #[error("silk failed at this range (a bug: see silkd's log)")]
    Panicked,
}

impl RangeError {
    pub(super) fn class(&self) -> Class {
        match self {
            // Its containers run: they wait for it as for a registry that is away.
            Self::Registry(e) if e.is_about_trust() => Class::Transient,
            Self::Registry(e) => e.class(),
            Self::Store(e) => e.class(),
            Self::Content { .. } => Class::Corrupt,
            Self::Panicked => Class::Internal,
        }
    }
}

impl Lazy {
    /// Fetches a run that was taken, on a task of its own.
    pub(super) fn spawn(self: &Arc<Self>, run: Range<usize>, wanted: Wanted, admitted: Option<Admitted>) {
        self.runtime.spawn(Arc::clone(self).run(run, wanted, admitted));
    }

    /// Fetches a run that was taken.
    pub(super) async fn run(self: Arc<Self>, run: Range<usize>, wanted: Wanted, admitted: Option<Admitted>) {
        let asked = Instant::now();
        let _admitted = match admitted {
            Some(admitted) => admitted,
            None => {
                let admitted = self.lane.demand().await;
                self.clocks.add(Part::Turn, asked.elapsed());
                admitted
            }
        };
        let began = Instant::now();
        let span = spans::range(&self.span, &wanted, &run, self.blob_bytes(&run));
        let mut stretch = self.stretch(&run, wanted);
        let outcome = self.fetch(run.clone(), wanted, Came::default(), &mut stretch).instrument(span).await;
        self.note(&run, wanted, [asked, began], &outcome);
        self.over(run, began, (&stretch, outcome)).await;
    }

    /// Fetches a run that nobody wants now, and decodes it when starts are over or somebody waits for it.
    pub(super) async fn run_held(self: Arc<Self>, run: Range<usize>, admitted: Admitted, held: Held) {
        let began = Instant::now();
        let span = spans::range(&self.span, &Wanted::Later, &run, self.blob_bytes(&run));
        let mut stretch = self.stretch(&run, Wanted::Later);
        let came = self.collect(&run, &mut stretch).instrument(span.clone()).await;
        let (wanted, turn) = if !came.is_all {
            (Wanted::Now, None)
        } else if came.pieces.iter().any(Result::is_err) {
            // What went wrong is to be known now.
            (Wanted::Later, None)
        } else {
            drop(admitted);
            let turn = self.until_awaited(&run, held.turn()).await;
            (if turn.is_some() { Wanted::Later } else { Wanted::Now }, turn)
        };
        let outcome = self.fetch(run.clone(), wanted, came, &mut stretch).instrument(span).await;
        drop((turn, held));
        self.note(&run, wanted, [began; 2], &outcome);
        self.over(run, began, (&stretch, outcome)).await;
    }

    /// Takes the bytes as they come, until a reader waits for some of them.
    async fn collect(&self, run: &Range<usize>, stretch: &mut Stretch) -> Came {
        // In one piece: those of the network have memory around them.
        let mut bytes = Vec::with_capacity(self.blob_bytes(run) as usize);
        loop {
            let mut next = pin!(stretch.next());
            let came = match self.until_awaited(run, &mut next).await {
                Some(came) => came,
                // The request is not made anew.
                None if bytes.is_empty() => next.await,
                // A piece that was on its way is not lost.
                None => return Came { pieces: vec![Ok(bytes.into())], is_all: false },
            };
            match came {
                Ok(Some(piece)) => {
                    self.clocks.came();
                    bytes.extend_from_slice(&piece);
                }
                Ok(None) => return Came { pieces: vec![Ok(bytes.into())], is_all: true },
                Err(error) => return Came { pieces: vec![Ok(bytes.into()), Err(error)], is_all: true },
            }
        }
    }

    fn stretch(&self, run: &Range<usize>, wanted: Wanted) -> Stretch {
        let manner = Manner { urgent: wanted == Wanted::Now, ranges_only: !self.is_all(run) };
        Stretch::read(&self.sources, self.partial.index().blob_range(run.clone()), manner)
    }

    fn note(&self, run: &Range<usize>, wanted: Wanted, [asked, began]: [Instant; 2], outcome: &Result<(), RangeError>) {
        tracing::debug!(
            diff_id = %self.spec.diff_id,
            spans = ?run,
            bytes = self.blob_bytes(run),
            ?wanted,
            waited = (began - asked).as_secs_f64(),
            seconds = began.elapsed().as_secs_f64(),
            good = outcome.is_ok(),
            "a range was fetched"
        );
    }

    async fn over(&self, run: Range<usize>, began: Instant, (stretch, outcome): (&Stretch, Result<(), RangeError>)) {
        let blob = stretch.blob();
        if let Err(RangeError::Registry(_)) = &outcome {
            self.sources.renew(blob).await;
        }
        self.ended(run, (began, blob), outcome);
    }

    /// Decodes what came, and what is still to come.
    async fn fetch(
        self: &Arc<Self>,
        run: Range<usize>,
        wanted: Wanted,
        came: Came,
        stretch: &mut Stretch,
    ) -> Result<(), RangeError> {
        let (to, pieces) = mpsc::channel(PIECES);
        let decoding = self.start_decoding(run, wanted, pieces);
        for piece in came.pieces {
            // Nobody hears it where decoding failed.
            let _ = to.send(piece).await;
        }
        while !came.is_all
            && let Some(piece) = stretch.next().await.transpose()
        {
            let last = piece.is_err();
            if piece.is_ok() {
                self.clocks.came();
            }
            if to.send(piece).await.is_err() || last {
                break;
            }
        }
        drop(to);
        decoded(decoding, stretch).await
    }

    fn start_decoding(
        self: &Arc<Self>,
        run: Range<usize>,
        wanted: Wanted,
        pieces: Pieces,
    ) -> JoinHandle<Result<(), RangeError>> {
        let lazy = Arc::clone(self);
        let span = spans::part!("decode");
        tokio::task::spawn_blocking(move || {
            let _span = span.entered();
            // Of its own: other ranges of the layer are read at the same time.
            let clocks = Arc::new(Clocks::new(Way::Filled));
            let outcome = lazy.decode(run, wanted, PieceReader::new(pieces, Arc::clone(&clocks)), &clocks);
            lazy.clocks.take_in(&clocks);
            outcome
        })
    }

    /// Blocks until the run is decoded.
    fn decode(
        self: &Arc<Self>,
        run: Range<usize>,
        wanted: Wanted,
        input: PieceReader,
        clocks: &Clocks,
    ) -> Result<(), RangeError> {
        // What is mounting and the container that is starting need the processors first.
        let behind = match wanted {
            Wanted::Now => None,
            Wanted::Soon => Some(Behind::Now),
            Wanted::Later => Some(Behind::All),
        };
        let _lowered = behind.map(priority::lowered);
        let mut spans = index::read(Arc::clone(self.partial.index()), run, input);
        let decoding = match self.partial.index().compression {
            Compression::None => Part::Digest,
            Compression::Gzip | Compression::Zstd => Part::Inflate,
        };
        let mut buffer = Buffer::take();
        let Buffer(bytes) = &mut buffer;
        loop {
            match clocks.time_reading(decoding, || spans.next(bytes)) {
                Ok(Some(span)) => {
                    let is_new = !self.partial.has(span);
                    if is_new {
                        let (count, class) = match wanted {
                            Wanted::Now => (&self.counts.demand, metrics::Class::Demand),
                            Wanted::Soon => (&self.counts.profile, metrics::Class::Profile),
                            Wanted::Later => (&self.counts.background, metrics::Class::Background),
                        };
                        count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        METRICS.arrived.of(class).add(bytes.len() as u64);
                    }
                    clocks.time(Part::Write, || self.partial.fill(span, bytes, wanted != Wanted::Later))?;
                    // What was here before says nothing of who sends it.
                    if is_new {
                        self.has_come(span);
                    }
                }
                Ok(None) => return Ok(()),
                Err(SpanError::Input(error)) => return Err(of_registry(error)),
                Err(error) => return Err(RangeError::Content { error, elsewhere: false }),
            }
        }
    }
}

/// Content that is wrong is held against who sent it.
async fn decoded(decoding: JoinHandle<Result<(), RangeError>>, stretch: &Stretch) -> Result<(), RangeError> {
    decoding.await.unwrap_or(Err(RangeError::Panicked)).map_err(|error| match error {
        RangeError::Content { error, .. } => RangeError::Content { error, elsewhere: stretch.distrust() },
        error => error,
    })
}

/// The registry's error in that of a failed read.
fn of_registry(error: std::io::Error) -> RangeError {
    let kind = error.kind();
    match error.into_inner().map(|inner| inner.downcast::<silk_registry::Error>()) {
        Some(Ok(cause)) => RangeError::Registry(*cause),
        _ => RangeError::Content { error: SpanError::Input(kind.into()), elsewhere: false },
    }
}
