//! Makes layers durable once nobody is hurt by it.

use std::{sync::Arc, time::Duration};

use silk_model::Digest;
use silk_store::Store;
use silk_sys::priority::{self, Behind};

/// How long layers that have just come are left to the kernel before they are synced: to write them out takes a processor, which
/// the container that starts now needs. Starts of Python, a JVM and an ML image take 1 to 2 s; without this the ML image's took
/// 0.4 s longer.
const AFTER: Duration = Duration::from_secs(5);

/// Syncs the layers after a while; `of` says whose they are. Must be called on a tokio runtime. What is left when silkd ends, the
/// next one syncs.
pub(crate) fn later(store: &Arc<Store>, diff_ids: Vec<Digest>, of: String) {
    let store = Arc::downgrade(store);
    tokio::spawn(async move {
        tokio::time::sleep(AFTER).await;
        let Some(store) = store.upgrade() else { return };
        let settled = tokio::task::spawn_blocking(move || {
            let _lowered = priority::lowered(Behind::All);
            store.settle(&diff_ids)
        });
        if let Ok(Err(error)) = settled.await {
            tracing::warn!(of, %error, "layers could not be synced: fetched again after a host crash");
        }
    });
}

/// Syncs, after a while, what an earlier process did not.
pub(crate) fn left(store: &Arc<Store>) {
    let left = store.list().into_iter().filter(|(_, record)| record.whole && !record.durable).map(|(id, _)| id);
    let left: Vec<_> = left.collect();
    if !left.is_empty() {
        later(store, left, "an earlier process".to_owned());
    }
}
