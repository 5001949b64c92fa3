//! What is known of an image's layers, here and elsewhere: asked before a layer is streamed, told afterwards.

use std::{
    collections::{HashMap, HashSet},
    mem,
    pin::pin,
    sync::Arc,
    thread,
    time::Instant,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use silk_layer::{
    index::{self, IndexError},
    toc::{self, TocError},
};
use silk_model::{
    Class, Digest,
    metrics::{Lie, METRICS},
};
use silk_registry::Repository;
use silk_share::{Found, Image as Shared, LayerKnowledge};
use silk_store::{Checked, Known, StoreError};
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use super::{
    Image, Puller, lock,
    pull::{Source, missing},
};
use crate::{
    ImageSpec, LayerSpec,
    lazy::{Road, knowledge},
    spans,
    timing::Trip,
};

/// What others know of layers.
#[derive(Debug, Default)]
pub(super) struct Asked {
    learned: HashMap<Digest, Found<()>>,
    /// The same, to be kept on this node.
    sound: Vec<Checked>,
    /// Start profiles, if anybody was asked.
    profiles: Option<Vec<Found<Bytes>>>,
    newer: HashSet<Digest>,
}

/// What is left to be streamed once all that are known were opened.
#[derive(Default)]
pub(super) struct Unknown {
    pub(super) layers: Vec<(usize, LayerSpec)>,
    /// Those of which a newer silk has said more than this one can read: what it said is not replaced.
    pub(super) newer: HashSet<Digest>,
}

/// See [`Puller::ask_ahead`].
#[must_use]
pub(super) struct Ahead<'i>(&'i Image);

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        // A later pull is to ask for itself: the answer may be another one by then.
        lock(&self.0.asked).take().inspect(JoinHandle::abort);
    }
}

/// Why what somebody says of a layer is of no use.
enum Useless {
    /// Nobody can use it.
    Lie(String),
    /// A newer silk can.
    Newer(String),
    /// The image may be at fault, or this node.
    Here(String),
}

impl Puller {
    /// Begins to ask others, for the image's pull that is about to begin: whether the registry lets silk in takes as long to find out. Nobody
    /// is asked any more when what is returned is dropped; forget it when there is a pull.
    pub(super) async fn ask_ahead<'i>(self: &Arc<Self>, image: &'i Image, spec: &Arc<ImageSpec>) -> Ahead<'i> {
        if self.opens_known()
            && !self.seams.share.is_alone()
            && let Ok(repository) = self.repository(&spec.reference).await
        {
            lock(&image.asked).get_or_insert_with(|| {
                let (puller, spec) = (Arc::clone(self), Arc::clone(spec));
                let layers: Vec<_> = missing(&spec, &self.lazies).into_iter().map(|(_, layer)| layer).collect();
                let ask = async move { puller.ask(&spec, &repository, &layers).await };
                tokio::spawn(ask.instrument(spans::part!("ask")))
            });
        }
        Ahead(image)
    }

    fn opens_known(&self) -> bool {
        self.config.lazy && self.seams.show.lazily()
    }

    /// Opens the layers whose names and index are known; returns the others.
    pub(super) async fn open_known(
        self: &Arc<Self>,
        image: &Image,
        missing: Vec<(usize, LayerSpec)>,
        sources: &[Source],
        trip: Option<&Arc<Trip>>,
    ) -> Unknown {
        let mut unknown = Unknown { layers: missing, newer: HashSet::new() };
        if !self.opens_known() {
            return unknown;
        }
        // A pull for the sake of lower layers only leaves it to the image's own.
        let mut ahead = trip.and_then(|_| lock(&image.asked).take());
        for (spec, repository) in sources {
            let Ok(repository) = repository else { continue };
            // Of one that is streamed because what was known of it is no good, the same would be said again.
            let is_streamed = |id: &Digest| self.lazies.get(id).is_some() && self.lazies.size(id).is_none();
            let others = unknown.layers.iter().filter(|(_, layer)| !is_streamed(&layer.diff_id));
            let layers = others.filter_map(|(_, m)| spec.layers.iter().find(|l| l.diff_id == m.diff_id));
            let layers: Vec<_> = layers.cloned().collect();
            if layers.is_empty() {
                continue;
            }
            let began = Instant::now();
            let is_own = image.spec.get().is_some_and(|own| Arc::ptr_eq(own, spec));
            let mut asked = match ahead.take_if(|_| is_own) {
                Some(ahead) => ahead.await.unwrap_or_default(),
                None => self.ask(spec, repository, &layers).await,
            };
            self.keep_asked(spec, &mut asked).await;
            let Asked { learned, profiles, newer, .. } = asked;
            unknown.newer.extend(newer);
            let asked = began.elapsed().as_secs_f64();
            let starting = self.lazies.starting();
            let opened = self.open(self.road(spec, repository, trip), layers, learned).await;
            let seconds = began.elapsed().as_secs_f64();
            tracing::debug!(image = spec.reference, opened = opened.len(), asked, seconds, "known layers were opened");
            if !opened.is_empty() {
                self.fetch_start(spec, repository, profiles, starting);
            }
            unknown.layers.retain(|(_, layer)| !opened.contains(&layer.diff_id));
        }
        unknown
    }

    /// Asks others about the layers that this node does not know. Without such, nothing is found: that must not wait.
    async fn ask(&self, spec: &ImageSpec, repository: &Repository, layers: &[LayerSpec]) -> Asked {
        let unknown: Vec<_> =
            layers.iter().filter(|l| !self.store.is_known(&l.diff_id, &l.blob, l.size)).cloned().collect();
        if unknown.is_empty() || self.seams.share.is_alone() {
            return Asked::default();
        }
        let image = Shared { repository: Some(repository.clone()), manifest: spec.manifest };
        let blobs: Vec<_> = unknown.iter().map(|l| l.blob).collect();
        let knowledge = self.seams.share.image(&image, &blobs).await;
        let mut asked = Asked { profiles: Some(knowledge.profiles), ..Asked::default() };
        let cores = thread::available_parallelism().map_or(2, usize::from);
        let found = unknown.into_iter().zip(knowledge.layers).filter_map(|(layer, found)| Some((layer, found?)));
        // In a pull's way: on all cores. No more at once, since names take memory while they are checked.
        let learned = stream::iter(found)
            .map(async |(layer, found)| {
                let outcome = self.check(&layer, &found).await;
                (layer, outcome, found)
            })
            .buffer_unordered(cores);
        let mut learned = pin!(learned);
        while let Some((layer, outcome, found)) = learned.next().await {
            let (blob, from) = (layer.blob, found.origin());
            match outcome {
                Ok(checked) => {
                    asked.sound.push(checked);
                    asked.learned.insert(layer.diff_id, found.with(()));
                }
                Err(Useless::Lie(why)) => {
                    METRICS.lies.of(Lie::Index).one();
                    self.seams.share.distrust(&image, &found, &why);
                }
                Err(Useless::Newer(why)) => {
                    tracing::info!(image = spec.reference, %blob, from, why, "a newer silk knows a layer");
                    asked.newer.insert(layer.diff_id);
                }
                Err(Useless::Here(why)) => {
                    tracing::warn!(image = spec.reference, %blob, from, why, "what is known of a layer is not used");
                }
            }
        }
        asked
    }

    /// Keeps it. Not sooner than its layers are opened: who said it has to be known while they are not proved.
    async fn keep_asked(&self, spec: &ImageSpec, asked: &mut Asked) {
        let sound = mem::take(&mut asked.sound);
        if sound.is_empty() {
            return;
        }
        let store = Arc::clone(&self.store);
        let kept = tokio::task::spawn_blocking(move || store.learn_all(&sound)).await;
        match kept.map_err(|e| e.to_string()).and_then(|kept| kept.map_err(|e| e.to_string())) {
            Ok(kept) => asked.learned.retain(|id, _| kept.contains(id)),
            Err(why) => {
                tracing::warn!(image = spec.reference, why, "what is known of layers is not used");
                asked.learned.clear();
            }
        }
    }

    async fn check(&self, layer: &LayerSpec, found: &Found<LayerKnowledge>) -> Result<Checked, Useless> {
        let LayerKnowledge { diff_id, toc, index, .. } = &found.value;
        if *diff_id != layer.diff_id {
            // It or the image's configuration is wrong: which one is known once the blob has come.
            return Err(Useless::Here(format!("it is of {diff_id}, the image's layer is {}", layer.diff_id)));
        }
        let LayerSpec { blob, size: blob_size, .. } = *layer;
        let known = Known { diff_id: *diff_id, blob, blob_size, toc: toc.to_vec(), index: index.to_vec() };
        let (store, from) = (Arc::clone(&self.store), found.origin());
        let checked = tokio::task::spawn_blocking(move || store.checked(known, &from)).await;
        checked.map_err(|e| Useless::Here(e.to_string()))?.map_err(|e| Useless::of(&e))
    }

    fn road(&self, spec: &Arc<ImageSpec>, repository: &Repository, trip: Option<&Arc<Trip>>) -> Road {
        Road {
            lazies: Arc::clone(&self.lazies),
            streams: Arc::clone(&self.layers),
            show: Arc::clone(&self.seams.show),
            share: Arc::clone(&self.seams.share),
            repository: repository.clone(),
            image: Arc::clone(spec),
            trip: trip.cloned(),
        }
    }

    /// Opens what is known by now; returns what was opened.
    async fn open(&self, road: Road, layers: Vec<LayerSpec>, mut learned: HashMap<Digest, Found<()>>) -> Vec<Digest> {
        // The layers outlive the opening, so they are parts of what it is a part of.
        let span = tracing::Span::current();
        let opened = tokio::task::spawn_blocking(move || {
            let _span = span.entered();
            let mut opened = Vec::new();
            for layer in layers {
                match road.lazies.open(&layer, learned.remove(&layer.diff_id), &road) {
                    Ok(true) => opened.push(layer.diff_id),
                    Ok(false) => {}
                    // Streaming it meets the same trouble, and tells the user.
                    Err(error) => {
                        tracing::warn!(diff_id = %layer.diff_id, %error, "a layer that is known cannot be opened")
                    }
                }
            }
            opened
        });
        opened.await.unwrap_or_default()
    }

    /// Tells others what was learned of a layer that has streamed in.
    pub(super) fn tell(self: &Arc<Self>, spec: &ImageSpec, repository: &Repository, diff_id: Digest) {
        if self.seams.share.is_alone() {
            return;
        }
        let image = Shared { repository: Some(repository.clone()), manifest: spec.manifest };
        let (store, share) = (Arc::clone(&self.store), Arc::clone(&self.seams.share));
        tokio::task::spawn_blocking(move || match store.known(&diff_id) {
            Ok(known) => share.publish_layer(&image, knowledge(known)),
            Err(error) => tracing::warn!(%diff_id, %error, "others are not told of a layer"),
        });
    }
}

impl Useless {
    fn of(error: &StoreError) -> Self {
        let why = error.to_string();
        match error {
            StoreError::Toc { source: TocError::Version(version), .. } if *version > toc::VERSION => Self::Newer(why),
            StoreError::Index { source: IndexError::Version(version), .. } if *version > index::VERSION => {
                Self::Newer(why)
            }
            // An older one cannot be read either, and this node's takes its place.
            StoreError::Toc { source: TocError::Version(_), .. }
            | StoreError::Index { source: IndexError::Version(_), .. } => Self::Here(why),
            error if error.class() == Class::Corrupt => Self::Lie(why),
            _ => Self::Here(why),
        }
    }
}
