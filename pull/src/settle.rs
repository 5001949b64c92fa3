//! Makes layers durable once nobody is hurt by it.

use std::{sync::Arc, time::Duration};

use silk_model::Digest;
use silk_store::Store;
use silk_sys::priority::{self, Behind};
use tokio::sync::Semaphore;

/// How long layers that have just come are left to the kernel before they are synced: to write them out takes a processor, which
/// the container that starts now needs. Starts of Python, a JVM and an ML image take 1 to 2 s; without this the ML image's took
/// 0.4 s longer.
const AFTER: Duration = Duration::from_secs(5);

/// One syncs at a time. The others wait here, and not each on a thread of those that containerd's calls need, too: hundreds of small layers may
/// become whole together.
static TURN: Semaphore = Semaphore::const_new(1);

/// Syncs the layers after a while; `of` says whose they are. Must be called on a tokio runtime. What is left when silkd ends, the
/// next one syncs.
pub(crate) fn later(store: &Arc<Store>, diff_ids: Vec<Digest>, of: String) {
    let store = Arc::downgrade(store);
    tokio::spawn(async move {
        tokio::time::sleep(AFTER).await;
        let Ok(_turn) = TURN.acquire().await else { return };
        let Some(store) = store.upgrade() else { return };
        let settled = tokio::task::spawn_blocking(move || {
            let lowered = priority::lowered(Behind::All);
            let synced = store.sync(&diff_ids);
            // With the database's only turn to write, a thread that gets no processor would hold up containerd's calls.
            drop(lowered);
            store.note(synced)
        });
        if let Ok(Err(error)) = settled.await {
            tracing::warn!(of, %error, "layers could not be synced: fetched again after a host crash");
        }
    });
}

/// How often it is looked for what nobody has synced. Chosen: what is lost meanwhile is fetched again, and a layer that a failing disk does not give
/// back is read to no avail each time.
const ROUND: Duration = Duration::from_secs(600);

/// Syncs, as long as there is the store, what nobody else does: what an earlier process left, and layers that came when the pull they were of had ended.
pub(crate) fn watch(store: &Arc<Store>) {
    let store = Arc::downgrade(store);
    tokio::spawn(async move {
        while let Some(store) = store.upgrade() {
            let left = store.list().into_iter().filter(|(_, record)| record.whole && !record.durable).map(|(id, _)| id);
            let left: Vec<_> = left.collect();
            if !left.is_empty() {
                later(&store, left, "earlier pulls".to_owned());
            }
            drop(store);
            tokio::time::sleep(ROUND).await;
        }
    });
}
