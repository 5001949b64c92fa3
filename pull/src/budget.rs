//! What layers on their way share, whoever wants them: memory for bytes in flight, and turns to decode.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use futures::{FutureExt as _, future::BoxFuture};
use silk_layer::media;
use silk_model::Use;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{
    Config, LayerError, LayerSpec,
    fetch::{self, Window},
    inlet::{Inlet, Turn},
    road::{self, Sink},
    sources::Sources,
    timing::Clocks,
};

/// How much may be under way.
#[derive(Debug)]
pub(crate) struct Budget {
    config: Config,
    window: Window,
    /// One permit a layer that is decoded. First come, first served: images queue their layers largest first. A layer whose
    /// sender is silent gives its turn up for that time.
    turns: Arc<Semaphore>,
    /// One permit a layer that is under way at all, silent ones too.
    open: Arc<Semaphore>,
}

/// A layer's place among those that are under way.
#[derive(Debug)]
pub(crate) struct Place {
    _open: OwnedSemaphorePermit,
    turn: OwnedSemaphorePermit,
}

/// How far a layer is and where its time went, for whoever looks.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    received: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
    pub(crate) clocks: Arc<Clocks>,
}

impl Counts {
    /// Compressed bytes received.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Uncompressed bytes that have gone through.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// So many compressed bytes have come.
    pub(crate) fn came(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.clocks.came();
    }
}

impl Budget {
    pub(crate) fn new(config: Config) -> Self {
        let window = Window::new(&config);
        let (turns, open) = (Arc::new(Semaphore::new(config.decoders())), config.layers_under_way.max(1));
        Self { config, window, turns, open: Arc::new(Semaphore::new(open)) }
    }

    /// What is in use of it: bytes in flight, turns, layers under way.
    pub(crate) fn now(&self) -> [Use; 3] {
        let turns = Use::of_places(self.config.decoders(), self.turns.available_permits());
        let open = Use::of_places(self.config.layers_under_way.max(1), self.open.available_permits());
        [self.window.now(), turns, open]
    }

    /// Stands in line for a place from now on: who calls this first comes first, whichever task waits.
    pub(crate) fn place(&self) -> BoxFuture<'static, Result<Place, LayerError>> {
        let (open, turns) = (Arc::clone(&self.open), Arc::clone(&self.turns));
        let mut place = async move {
            let closed = |_| LayerError::Panicked;
            let open = open.acquire_owned().await.map_err(closed)?;
            let turn = turns.acquire_owned().await.map_err(closed)?;
            Ok(Place { _open: open, turn })
        }
        .boxed();
        match (&mut place).now_or_never() {
            Some(at_once) => std::future::ready(at_once).boxed(),
            None => place,
        }
    }

    /// Moves a layer, as its sources give it, along the road into what `sink` makes on the layer's own thread. Goes on when it is dropped.
    pub(crate) async fn stream<S: Sink>(
        &self,
        place: Place,
        layer: &LayerSpec,
        sources: Arc<Sources>,
        counts: Counts,
        sink: impl FnOnce() -> Result<S, LayerError> + Send + 'static,
    ) -> Result<S::Kept, LayerError>
    where
        S::Kept: Send + 'static,
    {
        let Place { _open: open, turn } = place;
        let size = layer.size;
        let plain = media::is_plain(&layer.media_type);
        let job = road::Job { blob: layer.blob, blob_size: size, plain, limit: self.config.decoded_limit(size) };
        let pieces = fetch::start(sources, size, self.window.clone(), counts.clone());
        let turn = Turn { permit: Some(turn), turns: Arc::clone(&self.turns), runtime: Handle::current() };
        let span = tracing::Span::current();
        let streamed = tokio::task::spawn_blocking(move || {
            let (_open, _span) = (open, span.entered());
            let inlet = Inlet::new(pieces, turn, Arc::clone(&counts.clocks));
            road::run(job, inlet, sink()?, &counts.written)
        });
        streamed.await.unwrap_or(Err(LayerError::Panicked))
    }
}
