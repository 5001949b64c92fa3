//! What the snapshots service asks of the rest of silk: joins `pull`, `store` and the mounts.

use std::{path::PathBuf, sync::Arc};

use silk_model::{Digest, IdMaps};
use silk_mount::Mapped;
use silk_pull::{ImageError, Puller, State as Pull};
use silk_snapshotter::{Caller, Claim, Claimed, Layers, NotReady, Refused, RemoteChain, State, Usage};

use crate::{
    janitor::Janitor,
    starts::Starts,
    views::{StoreViews, died},
};

/// The rooms behind the snapshots.
#[derive(Debug)]
pub struct Rooms {
    /// Images and their layers on the way.
    pub puller: Arc<Puller>,
    /// Layers that can be mounted.
    pub views: Arc<StoreViews>,
    /// Layers as containers in user namespaces see them.
    pub mapped: Arc<Mapped>,
    /// Watches containers start.
    pub starts: Arc<Starts>,
    /// Gives back what nothing uses.
    pub janitor: Arc<Janitor>,
}

impl Rooms {
    fn here(&self, chain: &RemoteChain) -> bool {
        chain.diff_ids.iter().all(|id| self.views.lazies.is_here(id))
    }

    async fn show(&self, chain: RemoteChain) -> Result<(), NotReady> {
        let views = Arc::clone(&self.views);
        let shown = tokio::task::spawn_blocking(move || views.lowers(&chain.diff_ids).map(drop)).await;
        let (class, cause) = match shown {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => (error.class(), error.to_string()),
            Err(error) => died(&error),
        };
        Err(NotReady::new(class, format_args!("silk cannot mount {}: {cause}", chain.image_ref)))
    }
}

fn asked(claim: Claim) -> silk_pull::Claim {
    silk_pull::Claim {
        namespace: claim.namespace,
        reference: claim.image_ref,
        manifest: claim.manifest_digest,
        blob: claim.layer_digest,
        chain_id: claim.chain_id,
        below: claim.parent_chain.len(),
    }
}

fn not_ready(error: &ImageError) -> NotReady {
    NotReady::new(error.class(), error)
}

#[tonic::async_trait]
impl Layers for Rooms {
    async fn claim(&self, claim: Claim) -> Result<Claimed, Refused> {
        match self.puller.claim(asked(claim)).await {
            Ok(claimed) => Ok(Claimed { diff_id: claimed.diff_id, top: claimed.top }),
            Err(refused) => Err(Refused { reason: refused.to_string() }),
        }
    }

    fn late(&self, claim: &Claim, refused: &Refused) {
        self.puller.late(&asked(claim.clone()), refused);
    }

    fn left(&self, claim: &Claim, below: Option<Digest>) {
        self.puller.left(&asked(claim.clone()), below);
    }

    async fn ready(&self, chain: RemoteChain, caller: Caller) -> Result<(), NotReady> {
        let caller = silk_pull::Caller { namespace: caller.namespace, lease: caller.lease };
        let outcome = if chain.top {
            self.puller.ready(&chain.image, &chain.image_ref, &caller).await
        } else {
            self.puller.ready_below(&chain.image, &chain.image_ref, chain.diff_ids.len(), &caller).await
        };
        if let Err(ImageError::Unknown(_)) = outcome
            && self.here(&chain)
        {
            // The image it was claimed for is gone, its layers are not: no pull is needed.
            return self.show(chain).await;
        }
        self.janitor.wake.notify_one();
        outcome.map_err(|e| not_ready(&e))
    }

    async fn leases(&self, namespace: &str, chain: &RemoteChain) -> Vec<String> {
        self.puller.leases_of(namespace, &chain.diff_ids).await
    }

    fn state(&self, chain: &RemoteChain) -> State {
        if self.here(chain) {
            return State::Ready;
        }
        match self.puller.state(&chain.image, &chain.image_ref) {
            Ok(Pull::Failed(failure)) => State::Failed(not_ready(&failure.error)),
            Ok(Pull::Idle | Pull::Pulling(_) | Pull::Ready(_)) => State::Coming,
            Err(error) => State::Failed(not_ready(&error)),
        }
    }

    fn lowers(&self, diff_ids: &[Digest]) -> Result<Vec<PathBuf>, NotReady> {
        let lowers = self.views.lowers(diff_ids).map_err(|e| NotReady::new(e.class(), e))?;
        if let Err(error) = self.views.store.touch(diff_ids) {
            tracing::warn!(%error, "the order of eviction is not noted");
        }
        Ok(lowers)
    }

    fn serves(&self, lowers: &[PathBuf]) -> bool {
        let mounts = self.views.views.mounts();
        lowers.iter().any(|lower| mounts.is_served(lower))
    }

    fn mapped(&self, id: u64, lowers: &[PathBuf], maps: &IdMaps) -> Result<Vec<PathBuf>, NotReady> {
        self.mapped.map(id, lowers, maps).map_err(|e| NotReady::new(e.class(), e))
    }

    fn unmapped(&self, id: u64) {
        if let Err(error) = self.mapped.unmap(id) {
            tracing::warn!(id, %error, "what a container in a user namespace stood on stays until silkd starts again");
        }
    }

    fn used(&self, chain: &RemoteChain, key: &str, starts: bool) {
        self.starts.begins(chain, key, starts);
    }

    fn usage(&self, diff_id: &Digest) -> Option<Usage> {
        let record =
            self.views.store.record(diff_id).filter(|r| r.whole || self.views.lazies.size(diff_id).is_some())?;
        Some(Usage { size: record.facts.size, inodes: record.facts.entries })
    }

    fn changed(&self) {
        self.janitor.wake.notify_one();
    }

    async fn given_back(&self) {
        self.janitor.tidied().await;
    }
}
