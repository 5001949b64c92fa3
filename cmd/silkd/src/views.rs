//! Joins the rooms that show layers: the store knows where they lie, `mount` shows them, `pull` asks for it.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use silk_layer::toc::Toc;
use silk_model::{Class, Digest};
use silk_mount::{ChainName, LayerError, LayerFiles, Pages, Rung, ViewError, Views};
use silk_pull::{Lazies, Show, ShowError};
use silk_store::Store;

use crate::served::Served;

/// Names of layers and trees from which on those that are gone are forgotten, at the next start. Chosen: four times as many as layers are known by
/// default (`store.known_layers`); some 4 MB, reckoned at 250 bytes a name.
const MOST_NAMES: usize = 16_384;

/// Layers of the store as mounts.
#[derive(Debug)]
pub struct StoreViews {
    /// The layers.
    pub store: Arc<Store>,
    /// Those of them whose bytes are still arriving.
    pub lazies: Arc<Lazies>,
    /// Serves these; the reason when it does not.
    pub served: Result<Arc<Served>, String>,
    /// The mounts.
    pub views: Views,
    /// Layers whose mounts could not be made anew, and whether their names had lied.
    unrenewed: Mutex<HashMap<Digest, bool>>,
}

impl StoreViews {
    /// With no mount made yet.
    pub fn new(store: Arc<Store>, lazies: Arc<Lazies>, served: Result<Arc<Served>, String>, views: Views) -> Self {
        Self { store, lazies, served, views, unrenewed: Mutex::default() }
    }

    /// Makes mounts anew that could not be: else new containers would go through silkd for good, and end with it. Blocks.
    pub fn renew_again(&self) {
        let unrenewed = std::mem::take(&mut *self.unrenewed());
        for (diff_id, lied) in unrenewed {
            if lied || self.store.whole(&diff_id) {
                self.renew(&diff_id, lied);
            }
        }
    }

    fn unrenewed(&self) -> MutexGuard<'_, HashMap<Digest, bool>> {
        self.unrenewed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mount points of a chain given base first; the result is top first, as overlayfs wants it. Blocks.
    pub fn lowers(&self, diff_ids: &[Digest]) -> Result<Vec<PathBuf>, ViewError> {
        if let Ok(served) = &self.served {
            let lazy: Vec<_> = diff_ids.iter().copied().filter(|id| self.is_served(id)).collect();
            // Whoever lacks a name then is told why, by itself.
            let _ = served.name(&lazy);
        }
        self.views.lowers(&Files(self), diff_ids)
    }

    /// Does silkd serve the layer's bytes, because some are missing?
    fn is_served(&self, diff_id: &Digest) -> bool {
        !self.store.whole(diff_id) && self.lazies.size(diff_id).is_some()
    }

    /// See [`Views::pages`].
    pub fn pages(&self, chain: &[Digest]) -> Option<(Pages, bool)> {
        self.views.pages(&Files(self), chain)
    }

    /// See [`Views::pages_now`].
    pub fn pages_now(&self, chain: &[Digest]) -> Option<Pages> {
        self.views.pages_now(&Files(self), chain)
    }

    /// Takes a layer's mounts away and does `then`, unless the layer is in use by then; `None` if it is. Containers that
    /// stand on the mounts keep theirs. Blocks.
    pub fn retire<R>(
        &self,
        diff_id: &Digest,
        in_use: &dyn Fn() -> bool,
        then: impl FnOnce() -> R,
    ) -> Result<Option<R>, ViewError> {
        self.views.retire(&Files(self), diff_id, in_use, || {
            let done = then();
            // Afterwards: a reader may have opened it meanwhile.
            self.served.iter().for_each(|served| served.close(diff_id));
            done
        })
    }

    /// Takes away views of layers on parent chains that are not in use. Blocks.
    pub fn retire_chains(&self, in_use: &dyn Fn() -> HashSet<ChainName>) -> Result<(), ViewError> {
        self.views.retire_chains(in_use)
    }

    /// Drops a whole layer whose bytes on disk are not its own, whoever uses it. Blocks.
    pub fn drop_damaged(&self, diff_id: &Digest) -> Result<(), LayerError> {
        let evicted = self.views.drop_damaged(&Files(self), diff_id, || self.store.evict(diff_id));
        let evicted = evicted.map_err(|e| LayerError::new(e.class(), e))?;
        evicted.map_err(|e| LayerError::new(e.class(), e))?;
        // Containers that read it through silkd may have left damaged pages for those that do so next.
        self.forget(diff_id);
        Ok(())
    }

    /// Takes away what an earlier process left mounted of layers that are gone, and, of too many, the names of what was served of them: no mount of
    /// this process knows them yet. Blocks.
    pub fn sweep(&self) -> Result<(), ViewError> {
        if let Ok(served) = &self.served
            && served.slots().count() > MOST_NAMES
        {
            let known: Vec<_> = self.store.list().into_iter().map(|(id, _)| id).collect();
            let mut keep = self.views.names(&Files(self), &known)?;
            keep.extend(known.iter().map(Digest::hex));
            if let Err(error) = served.slots().retain(|name| keep.contains(name)) {
                tracing::warn!(%error, "names of layers that are gone stay");
            }
        }
        let whole: Vec<_> = self.store.list().into_iter().filter(|(_, r)| r.whole).map(|(id, _)| id).collect();
        self.views.sweep(&Files(self), &whole)
    }
}

/// Where the store keeps layers, as `mount` asks for it.
struct Files<'a>(&'a StoreViews);

impl LayerFiles for Files<'_> {
    fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.0.store.layer_path(diff_id)
    }

    fn toc(&self, diff_id: &Digest) -> Result<Toc, LayerError> {
        self.0.store.toc(diff_id).map_err(|e| LayerError::new(e.class(), e))
    }

    fn entries(&self, diff_id: &Digest) -> u64 {
        self.0.store.record(diff_id).map_or(u64::MAX, |record| record.facts.entries)
    }

    fn size(&self, diff_id: &Digest) -> Option<u64> {
        self.0.store.size(diff_id).or_else(|| self.0.lazies.size(diff_id))
    }

    fn served(&self, diff_id: &Digest) -> Result<Option<PathBuf>, LayerError> {
        let Some(served) = self.0.served.as_ref().ok().filter(|_| self.0.is_served(diff_id)) else { return Ok(None) };
        served.path(diff_id).map(Some).map_err(|e| LayerError::new(e.class(), e))
    }

    fn has(&self, diff_id: &Digest, bytes: &Range<u64>) -> bool {
        self.0.store.whole(diff_id) || self.0.lazies.get(diff_id).is_some_and(|lazy| lazy.has(bytes))
    }

    fn let_go(&self, diff_id: &Digest) {
        if let Some(lazy) = self.0.lazies.get(diff_id) {
            lazy.let_go();
        }
    }
}

impl Show for StoreViews {
    fn possible(&self) -> Result<(), String> {
        match self.views.mounts().rung() {
            Rung::File | Rung::Loop | Rung::Tree => Ok(()),
            Rung::None => Err(format!("this kernel cannot show layers: {}", self.views.mounts().reason())),
        }
    }

    fn lazily(&self) -> bool {
        self.served.is_ok()
    }

    fn renew(&self, diff_id: &Digest, lied: bool) {
        if let Err(error) = self.views.renew_layer(&Files(self), diff_id, lied) {
            tracing::warn!(%diff_id, %error, "a layer is shown as before, which is tried again soon: new containers go on through silkd");
            *self.unrenewed().entry(*diff_id).or_default() |= lied;
        }
    }

    fn put_away(&self, age: Duration) {
        if let Err(error) = self.views.mounts().put_away(age) {
            tracing::warn!(%error, "a mount that was replaced stays");
        }
    }

    fn warm(&self, diff_id: &Digest, bytes: &[Range<u64>]) -> bool {
        // Files of a tree are inodes of their own.
        let (Ok(served), Rung::File | Rung::Loop) = (&self.served, self.views.mounts().rung()) else { return false };
        if let Err(error) = served.warm(diff_id, bytes) {
            tracing::debug!(%diff_id, %error, "what a start touches is left to its reads");
        }
        true
    }

    fn forget(&self, diff_id: &Digest) {
        if let Ok(served) = &self.served {
            served.forget(diff_id);
        }
    }

    fn show(&self, diff_ids: &[Digest]) -> Result<(), ShowError> {
        self.lowers(diff_ids).map(drop).map_err(|mut error| ShowError {
            diff_id: error.layer(),
            class: error.class(),
            missing: match &mut error {
                ViewError::Missing { bytes, .. } => std::mem::take(bytes),
                _ => Vec::new(),
            },
            source: Box::new(error),
        })
    }
}

/// Used where a blocking task died: its panic is in the log.
pub fn died(error: &tokio::task::JoinError) -> (Class, String) {
    (Class::Internal, format!("silk failed (a bug: see silkd's log): {error}"))
}
