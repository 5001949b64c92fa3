//! A snapshotter that is away for a while, as containerd tells of it.

use std::{collections::BTreeMap, sync::Mutex};

use silk_api::containerd::services::snapshots::v1::{
    CleanupRequest, ListSnapshotsRequest, ListSnapshotsResponse, MountsRequest, MountsResponse,
    PrepareSnapshotResponse, RemoveSnapshotRequest, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest,
    UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
    snapshots_server::{Snapshots, SnapshotsServer},
};
use silk_model::Digest;
use silk_registry::{Reference, Registry};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::pull::image::Descriptor;

const NAME: &str = "registry.example/app:1";
const AWAY: &str = "connection error: desc = \"error reading server preface: EOF\"";

/// Answers Stat with these, the last first, and then that it exists.
#[derive(Debug, Clone)]
struct Fake(Arc<Mutex<Vec<Status>>>);

#[tonic::async_trait]
impl Snapshots for Fake {
    async fn stat(&self, _: Request<StatSnapshotRequest>) -> Result<Response<StatSnapshotResponse>, Status> {
        self.0.lock().unwrap().pop().map_or_else(|| Ok(Response::new(StatSnapshotResponse::default())), Err)
    }

    async fn prepare(&self, _: Request<PrepareSnapshotRequest>) -> Result<Response<PrepareSnapshotResponse>, Status> {
        unimplemented!()
    }

    async fn view(&self, _: Request<ViewSnapshotRequest>) -> Result<Response<ViewSnapshotResponse>, Status> {
        unimplemented!()
    }

    async fn mounts(&self, _: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        unimplemented!()
    }

    async fn commit(&self, _: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        unimplemented!()
    }

    async fn remove(&self, _: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        unimplemented!()
    }

    async fn update(&self, _: Request<UpdateSnapshotRequest>) -> Result<Response<UpdateSnapshotResponse>, Status> {
        unimplemented!()
    }

    type ListStream = tokio_stream::Empty<Result<ListSnapshotsResponse, Status>>;

    async fn list(&self, _: Request<ListSnapshotsRequest>) -> Result<Response<Self::ListStream>, Status> {
        unimplemented!()
    }

    async fn usage(&self, _: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        unimplemented!()
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        unimplemented!()
    }
}

/// What becomes of a Stat that is answered so.
async fn stat(answers: Vec<Status>, away: Duration) -> Result<(), Failure> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListenerStream::new(tokio::net::UnixListener::bind(&socket).unwrap());
    let fake = Fake(Arc::new(Mutex::new(answers)));
    let server = tonic::transport::Server::builder().add_service(SnapshotsServer::new(fake));
    tokio::spawn(server.serve_with_incoming(listener));
    let reference: Reference = NAME.parse().unwrap();
    let (digest, media_type) = (Digest::of(b""), String::new());
    let descriptor = Descriptor { media_type, digest, size: 1, annotations: BTreeMap::new() };
    let [target, manifest, config] = [(); 3].map(|()| descriptor.clone());
    let layers = vec![Layer { descriptor, diff_id: digest, chain_id: digest }];
    let image = Image { reference: reference.clone(), target, manifest, config, platform: None, layers };
    let node = Node::new(&socket, "default").unwrap();
    let registry = silk_registry::Config { hosts_dirs: Vec::new(), ..silk_registry::Config::default() };
    let repository = Registry::new(registry).unwrap().repository(&reference).await.unwrap();
    let unpack = Unpack {
        node: &node,
        store: &Store::new(node.clone(), &reference),
        repository: &repository,
        image: &image,
        snapshotter: "silk",
        local: false,
        board: &Arc::new(Board::alone(&image)),
    };
    let answer = unpack.stat(StatSnapshotRequest::default(), away).await;
    answer.map(drop).map_err(|failure| unpack.at(0, failure))
}

#[tokio::test]
async fn a_snapshotter_that_comes_back_is_asked_again() {
    stat(vec![Status::unavailable(AWAY); 3], progress::AWAY).await.unwrap();
}

#[tokio::test]
async fn one_that_stays_away_does_not_answer() {
    let failure = stat(vec![Status::unavailable(AWAY); 100], AGAIN).await.unwrap_err();
    assert!(matches!(&failure, Failure::NoSnapshotter(message) if message == AWAY), "{failure}");
}

#[tokio::test]
async fn what_silkd_says_itself_is_not_asked_again() {
    let own = format!("silk cannot pull {NAME}: layer 1 of 1 (sha256:0): registry.example: no route");
    let failure = stat(vec![Status::unavailable(&own)], progress::AWAY).await.unwrap_err();
    assert!(matches!(&failure, Failure::Told(message) if *message == own), "{failure}");
    let of_another = "silk cannot pull registry.example/other:1: no route";
    let failure = stat(vec![Status::unavailable(of_another)], progress::AWAY).await.unwrap_err();
    assert!(matches!(&failure, Failure::Layer { number: 1, .. }), "{failure}");
}
