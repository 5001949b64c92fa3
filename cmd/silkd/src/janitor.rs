//! Gives back what nothing uses any more: mounts at once, data beyond the quota, records of images that are gone.
//!
//! Woken by every removal and every pull that ends, and once a minute, because a file system fills without silk too.

use std::{collections::HashSet, sync::Arc, time::Duration};

use silk_model::{Digest, chain_ids};
use silk_mount::ChainName;
use silk_pull::{Puller, Show as _};
use silk_snapshotter::Snapshots;
use silk_store::{Evicted, StoreError};
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};

use crate::views::StoreViews;

/// Without being woken, the janitor looks this often whether the disk has filled.
const INTERVAL: Duration = Duration::from_secs(60);
/// containerd's garbage collection removes an image's snapshots one by one within milliseconds: one look serves them all.
const SETTLE: Duration = Duration::from_millis(200);

/// Knows who uses layers.
#[derive(Debug)]
pub struct Janitor {
    /// Layers and their mounts.
    pub views: Arc<StoreViews>,
    /// Images on their way.
    pub puller: Arc<Puller>,
    /// Snapshots.
    pub snapshots: Arc<Snapshots>,
    /// Wakes the janitor.
    pub wake: Notify,
    /// Held for a round.
    round: Arc<Mutex<()>>,
}

impl Janitor {
    /// One that does nothing before it runs.
    pub fn new(views: Arc<StoreViews>, puller: Arc<Puller>, snapshots: Arc<Snapshots>) -> Arc<Self> {
        Arc::new(Self { views, puller, snapshots, wake: Notify::new(), round: Arc::default() })
    }

    /// Runs until the daemon stops.
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.wake.notified() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            self.tidied().await;
        }
    }

    /// Ends after a round that begins now, or once the one under way is over.
    pub async fn tidied(self: &Arc<Self>) {
        let (janitor, alone) = (Arc::clone(self), self.alone().await);
        let round = move || {
            let _alone = alone;
            janitor.tidy()
        };
        match tokio::task::spawn_blocking(round).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "could not give disk space back; tried again in a minute"),
            Err(error) => tracing::error!(%error, "the janitor failed (a bug)"),
        }
    }

    /// The right to give back: two at once would each give back what is too much. Who stops waiting leaves nothing behind.
    pub async fn alone(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.round).lock_owned().await
    }

    /// One round. Blocks.
    fn tidy(&self) -> Result<(), StoreError> {
        if let Err(error) = self.views.store.check() {
            tracing::error!(%error, "the database takes no changes any more: silkd ends, to be started again");
            std::process::exit(1);
        }
        if self.views.served.as_ref().is_ok_and(|served| !served.is_mounted()) {
            tracing::error!(
                "silkd's FUSE mount was unmounted, or its connection aborted: silkd ends, to be started again"
            );
            std::process::exit(1);
        }
        // Those of layers that became whole a while ago are put away by then.
        self.views.put_away(INTERVAL);
        self.views.renew_again();
        self.drop_broken()?;
        self.drop_lost();
        self.forget_images()?;
        let used = self.used();
        for (diff_id, record) in self.views.store.list() {
            if record.whole && !used.contains(&diff_id) && self.views.views.shows(&diff_id) {
                self.retire(&diff_id, || ());
            }
        }
        for diff_id in self.views.lazies.list().into_iter().filter(|id| !used.contains(id)) {
            self.retire(&diff_id, || self.views.lazies.give_up(&diff_id));
        }
        if let Err(error) = self.views.retire_chains(&|| self.chains()) {
            tracing::warn!(%error, "a layer stays mounted for a chain that nothing has any more");
        }
        self.views.store.drop_partials(|id| used.contains(id))?;
        let unused = self.views.store.unused(|id| used.contains(id));
        let excess = self.views.store.excess(unused.iter().map(|u| u.bytes).sum())?;
        self.evict(excess).map(drop)
    }

    /// Drops layers whose content is the reason that images cannot be shown, unless another image uses them. Blocks.
    fn drop_broken(&self) -> Result<(), StoreError> {
        for diff_id in self.broken() {
            let drop = || self.views.store.evict(&diff_id);
            let dropped = self.views.retire(&diff_id, &|| !self.broken().contains(&diff_id), drop);
            match dropped {
                Ok(Some(gone)) => tracing::info!(%diff_id, bytes = gone?.bytes, "dropped a layer that cannot be shown"),
                Ok(None) => {}
                Err(error) => tracing::warn!(%diff_id, %error, "a layer that cannot be shown stays"),
            }
        }
        Ok(())
    }

    /// Drops whole layers that the disk did not keep, whoever uses them, and has them fetched again. Blocks.
    fn drop_lost(&self) {
        let lost = self.views.store.lost();
        for diff_id in &lost {
            if let Err(error) = self.views.drop_damaged(diff_id) {
                tracing::warn!(%diff_id, %error, "a layer that the disk lost stays");
            }
        }
        if !lost.is_empty() {
            self.refetch();
        }
    }

    /// Starts the pulls of images that lost a layer.
    pub fn refetch(&self) {
        for chain in self.snapshots.remote_chains() {
            // An image that silk does not know any more is pulled when containerd asks for it.
            let _ = self.puller.state(&chain.image, &chain.image_ref);
        }
    }

    fn broken(&self) -> HashSet<Digest> {
        let broken = self.puller.broken();
        let mut layers: HashSet<_> = broken.iter().map(|b| b.diff_id).collect();
        // The snapshots of the failed images themselves can never be mounted.
        let failed: HashSet<_> = broken.iter().map(|b| (b.manifest, b.reference.as_str())).collect();
        for chain in self.snapshots.remote_chains() {
            if !failed.contains(&(chain.image, chain.image_ref.as_str())) {
                layers.retain(|id| !chain.diff_ids.contains(id));
            }
        }
        layers
    }

    /// Forgets images whose snapshots are gone. Blocks.
    pub fn forget_images(&self) -> Result<(), StoreError> {
        let images: HashSet<_> = self.snapshots.remote_chains().into_iter().map(|c| (c.image, c.image_ref)).collect();
        self.puller.retain(|spec| images.contains(&(spec.manifest, spec.reference.clone())))
    }

    /// Layers that snapshots use or images on their way will.
    pub fn used(&self) -> HashSet<Digest> {
        let mut used = self.puller.wanted();
        used.extend(self.snapshots.in_use().into_keys());
        used
    }

    fn uses(&self, diff_id: &Digest) -> bool {
        self.puller.wants(diff_id) || self.snapshots.uses(diff_id)
    }

    /// The chains of [`Janitor::used`], and all that lie below their layers.
    fn chains(&self) -> HashSet<ChainName> {
        let mut chains = self.puller.wanted_chains();
        chains.extend(self.snapshots.remote_chains().into_iter().map(|chain| chain.diff_ids));
        chains.iter().flat_map(|ids| chain_ids(ids)).map(|id| ChainName::of(&id)).collect()
    }

    /// Drops unused layers, longest unused first, until `bytes` were given back. Blocks.
    pub fn evict(&self, bytes: u64) -> Result<Evicted, StoreError> {
        let mut evicted = Evicted::default();
        let used = self.used();
        for unused in self.views.store.unused(|id| used.contains(id)) {
            if evicted.bytes >= bytes {
                break;
            }
            let Some(gone) = self.retire(&unused.diff_id, || self.views.store.evict(&unused.diff_id)) else { continue };
            let gone = gone?;
            evicted.layers += gone.layers;
            evicted.bytes += gone.bytes;
            tracing::info!(diff_id = %unused.diff_id, bytes = gone.bytes, "dropped an unused layer");
        }
        Ok(evicted)
    }

    /// Takes a layer's mounts away and does `then`, unless somebody has begun to use it.
    fn retire<R>(&self, diff_id: &Digest, then: impl FnOnce() -> R) -> Option<R> {
        let retired = self.views.retire(diff_id, &|| self.uses(diff_id), then);
        retired.unwrap_or_else(|error| {
            tracing::warn!(%diff_id, %error, "a layer that nothing uses stays mounted");
            None
        })
    }
}
