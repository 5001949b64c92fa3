//! Blobs of layers on their way into containerd's content store, all at once, while the first ones are unpacked.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use silk_registry::Repository;
use tokio::{sync::mpsc, task::JoinSet};

use super::{content::Store, image::Image, progress::Board};
use crate::failure::Failure;

/// The layers from one up. Dropping it ends the fetches; what is written stays, for the next try to go on from.
#[derive(Debug)]
pub struct Fetches {
    _tasks: JoinSet<()>,
    done: mpsc::UnboundedReceiver<(usize, Result<(), Failure>)>,
    ready: HashSet<usize>,
    count: usize,
}

impl Fetches {
    /// Starts to fetch layer number `from` and all above. How many at once is the registry's limit of connections.
    pub fn start(store: &Store, repository: &Repository, image: &Image, from: usize, board: &Arc<Board>) -> Self {
        let mut tasks = JoinSet::new();
        // At most one message a layer.
        let (to, done) = mpsc::unbounded_channel();
        for (i, layer) in image.layers.iter().enumerate().skip(from) {
            let (store, board, to) = (store.clone(), Arc::clone(board), to.clone());
            let descriptor = layer.descriptor.clone();
            let blob = repository.blob(descriptor.digest, descriptor.size);
            tasks.spawn(async move {
                let fetch = async {
                    let fetched =
                        store.blob(&descriptor, &blob, |bytes| board.fetching(i, bytes, &blob.host())).await?;
                    store.label(&descriptor.digest, BTreeMap::new()).await?;
                    board.fetched(i, fetched);
                    Ok(())
                };
                let outcome = fetch.await;
                // Nobody listens when the pull has failed meanwhile.
                let _ = to.send((i, outcome));
            });
        }
        Self { _tasks: tasks, done, ready: HashSet::new(), count: image.layers.len() - from }
    }

    /// Waits until layer number `index` is in containerd; or until one cannot be fetched: which, and why.
    pub async fn wait(&mut self, index: usize) -> Result<(), (usize, Failure)> {
        while !self.ready.contains(&index) {
            self.wait_one().await?;
        }
        Ok(())
    }

    /// Waits until all are.
    pub async fn wait_all(&mut self) -> Result<(), (usize, Failure)> {
        while self.ready.len() < self.count {
            self.wait_one().await?;
        }
        Ok(())
    }

    async fn wait_one(&mut self) -> Result<(), (usize, Failure)> {
        let (index, outcome) = self.done.recv().await.expect("each layer asked for sends one message");
        outcome.map_err(|failure| (index, failure))?;
        self.ready.insert(index);
        Ok(())
    }
}
