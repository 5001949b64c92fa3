//! The layers' snapshots, base first: what containerd's unpacker does (`core/unpack/unpacker.go`), call by call.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use silk_api::containerd::{
    services::{
        diff::v1::ApplyRequest,
        snapshots::v1::{CommitSnapshotRequest, PrepareSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse},
    },
    types::Mount,
};
use silk_registry::Repository;
use tonic::Code;

use super::{
    content::Store,
    fetch::Fetches,
    image::{Image, Layer},
    labels, lease,
    node::Node,
    progress::{self, Board},
};
use crate::failure::Failure;

/// How often a snapshot is prepared that exists and then does not: as often as containerd tries.
const TRIES: usize = 3;
/// Between two questions to a snapshotter that is away.
const AGAIN: Duration = Duration::from_millis(200);

/// One image, to be unpacked.
#[derive(Debug)]
pub struct Unpack<'a> {
    pub node: &'a Node,
    pub store: &'a Store,
    pub repository: &'a Repository,
    pub image: &'a Image,
    pub snapshotter: &'a str,
    /// Layers are fetched and applied here, without silkd.
    pub local: bool,
    pub board: &'a Arc<Board>,
}

/// A snapshot under way.
struct Active {
    key: String,
    mounts: Vec<Mount>,
}

impl Unpack<'_> {
    /// Returns when the image's last layer has a snapshot, and its configuration refers to that.
    pub async fn run(&self) -> Result<(), Failure> {
        let mut fetches = self.local.then(|| self.fetch(0));
        for (i, layer) in self.image.layers.iter().enumerate() {
            let labels = labels::snapshot(self.image, i, self.local);
            let Some(active) = self.prepare(i, layer, &labels).await.map_err(|e| self.at(i, e))? else {
                continue;
            };
            if fetches.is_none() {
                self.board.ask_why().await;
            }
            // The first layer that has to be fetched brings all above: their snapshots cannot exist without its own.
            let fetches = fetches.get_or_insert_with(|| self.fetch(i));
            fetches.wait(i).await.map_err(|(i, failure)| self.at(i, failure))?;
            self.apply(i, layer, active, labels).await.map_err(|e| self.at(i, e))?;
        }
        if let Some(fetches) = fetches.as_mut().filter(|_| self.local) {
            // Layers whose snapshots existed were not waited for.
            fetches.wait_all().await.map_err(|(i, failure)| self.at(i, failure))?;
            self.board.settle();
        }
        self.board.usable();
        let top = self.image.layers.last().map(|layer| layer.chain_id.to_string()).unwrap_or_default();
        self.store.set(&self.image.config.digest, [(labels::snapshot_of(self.snapshotter), top)].into()).await
    }

    fn fetch(&self, from: usize) -> Fetches {
        Fetches::start(self.store, self.repository, self.image, from, self.board)
    }

    /// A failure of layer number `index`, unless it already names the image and the layer.
    fn at(&self, index: usize, failure: Failure) -> Failure {
        match failure {
            Failure::Call { message, .. } if message.contains(&self.image.reference.to_string()) => {
                Failure::Told(message)
            }
            failure @ (Failure::Unreachable { .. } | Failure::NoSnapshotter(_)) => failure,
            source => Failure::Layer {
                number: index + 1,
                count: self.image.layers.len(),
                blob: self.image.layers[index].descriptor.digest,
                source: Box::new(source),
            },
        }
    }

    /// Mounts to unpack the layer onto; none when its snapshot exists, for a remote snapshotter once the layer is usable.
    async fn prepare(
        &self,
        index: usize,
        layer: &Layer,
        labels: &HashMap<String, String>,
    ) -> Result<Option<Active>, Failure> {
        let chain_id = layer.chain_id.to_string();
        let parent = index.checked_sub(1).map(|below| self.image.layers[below].chain_id.to_string());
        let began = SystemTime::now();
        for _ in 0..TRIES {
            let key = format!("extract-{} {chain_id}", lease::unique());
            let request = PrepareSnapshotRequest {
                snapshotter: self.snapshotter.to_owned(),
                key: key.clone(),
                parent: parent.clone().unwrap_or_default(),
                labels: labels.clone(),
            };
            self.node.set_unfinished(Some(&key));
            match self.node.call("prepare the snapshot", self.node.snapshots().prepare(request)).await {
                Ok(answer) => return Ok(Some(Active { key, mounts: answer.mounts })),
                Err(failure) if failure.code() == Some(Code::AlreadyExists) => self.node.set_unfinished(None),
                Err(failure) => {
                    // Without an answer it may have been made.
                    if failure.code().is_some_and(|code| code != Code::Unavailable) {
                        self.node.set_unfinished(None);
                    }
                    return Err(self.of_snapshotter(failure));
                }
            }
            if !self.local {
                self.board.exists(index);
            }
            // silkd answers for the top layer when the image can be used: as long as that takes.
            let request = StatSnapshotRequest { snapshotter: self.snapshotter.to_owned(), key: chain_id.clone() };
            match self.stat(request, progress::AWAY).await {
                Ok(answer) => {
                    let created = answer.info.and_then(|info| info.created_at?.try_into().ok());
                    if created.is_some_and(|created: SystemTime| created < began) {
                        self.board.is_old(index);
                    }
                    return Ok(None);
                }
                Err(failure) if failure.code() == Some(Code::NotFound) => {}
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::Vanished(layer.chain_id))
    }

    /// Stat, of a snapshotter that may be started anew meanwhile: who holds the question forgets it then.
    async fn stat(&self, request: StatSnapshotRequest, away: Duration) -> Result<StatSnapshotResponse, Failure> {
        let mut left = None;
        loop {
            let asked = Instant::now();
            let answer = self.node.wait("look at the snapshot", self.node.snapshots().stat(request.clone())).await;
            let failure = match answer {
                Ok(answer) => return Ok(answer),
                Err(failure) => self.of_snapshotter(failure),
            };
            if !matches!(failure, Failure::NoSnapshotter(_)) {
                return Err(failure);
            }
            // Who held the call for that long was there.
            let since = *left.get_or_insert_with(Instant::now);
            if asked.elapsed() > away {
                left = Some(Instant::now());
            } else if since.elapsed() >= away {
                return Err(failure);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// A failure of a call that containerd passes on: gRPC has many words for a socket that nobody serves, and containerd no code
    /// of its own. Of the same code is what keeps silkd from a layer; silkd says who cannot do what.
    fn of_snapshotter(&self, failure: Failure) -> Failure {
        let own = [&self.image.reference.to_string(), "silk cannot ", "silk does not ", "cannot be mounted yet"];
        match failure {
            Failure::Call { code: Code::Unavailable, message, .. } if !own.iter().any(|own| message.contains(own)) => {
                Failure::NoSnapshotter(message)
            }
            failure => failure,
        }
    }

    async fn apply(
        &self,
        index: usize,
        layer: &Layer,
        active: Active,
        labels: HashMap<String, String>,
    ) -> Result<(), Failure> {
        let Active { key, mounts } = active;
        self.board.unpacking(index);
        let request = ApplyRequest { diff: Some((&layer.descriptor).into()), mounts, ..ApplyRequest::default() };
        let applied = self.node.wait("unpack the layer", self.node.diff().apply(request)).await?.applied;
        let found = applied.unwrap_or_default().digest;
        if found != layer.diff_id.to_string() {
            return Err(Failure::WrongDiffId { expected: layer.diff_id, found });
        }
        let request = CommitSnapshotRequest {
            snapshotter: self.snapshotter.to_owned(),
            name: layer.chain_id.to_string(),
            key,
            labels,
            ..CommitSnapshotRequest::default()
        };
        match self.node.call("commit the snapshot", self.node.snapshots().commit(request)).await {
            Ok(()) => self.node.set_unfinished(None),
            // Another pull was quicker.
            Err(failure) if failure.code() == Some(Code::AlreadyExists) => {
                self.node.remove_unfinished(self.snapshotter).await?;
            }
            Err(failure) => return Err(self.of_snapshotter(failure)),
        }
        self.board.unpacked(index);
        let proved = [(labels::UNCOMPRESSED.to_owned(), layer.diff_id.to_string())].into();
        self.store.set(&layer.descriptor.digest, proved).await
    }
}

#[cfg(test)]
mod tests;
