//! Against a containerd that counts what it is asked.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use silk_api::containerd::services::{
    content::v1::{
        AbortRequest, DeleteContentRequest, InfoResponse, ListContentRequest, ListContentResponse, ListStatusesRequest,
        ListStatusesResponse, ReadContentResponse, StatusRequest, StatusResponse, UpdateRequest, UpdateResponse,
        WriteContentRequest, WriteContentResponse,
        content_server::{Content, ContentServer},
    },
    leases::v1::{
        AddResourceRequest, CreateRequest, CreateResponse, DeleteRequest, DeleteResourceRequest, Lease,
        ListResourcesResponse, ListResponse, Resource,
        leases_server::{Leases, LeasesServer},
    },
};
use tokio_stream::{Empty, Once, wrappers::UnixListenerStream};
use tonic::{Request, Response, Streaming};

use super::*;

/// Leases `a` and, once it `is_pulled`, `b` hold the one document.
#[derive(Debug, Clone, Default)]
struct Containerd(Arc<Asked>);

#[derive(Debug, Default)]
struct Asked {
    is_pulled: std::sync::atomic::AtomicBool,
    reads: AtomicUsize,
    infos: AtomicUsize,
}

const BLOB: &[u8] = b"{}";

#[tonic::async_trait]
impl Content for Containerd {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        self.0.infos.fetch_add(1, Ordering::Relaxed);
        let info = Info { digest: request.into_inner().digest, size: BLOB.len() as i64, ..Info::default() };
        Ok(Response::new(InfoResponse { info: Some(info) }))
    }

    type ReadStream = Once<Result<ReadContentResponse, Status>>;

    async fn read(&self, _: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        self.0.reads.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(tokio_stream::once(Ok(ReadContentResponse { offset: 0, data: BLOB.to_vec() }))))
    }

    async fn update(&self, _: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        unimplemented!()
    }

    type ListStream = Empty<Result<ListContentResponse, Status>>;

    async fn list(&self, _: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        unimplemented!()
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        unimplemented!()
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        unimplemented!()
    }

    async fn list_statuses(&self, _: Request<ListStatusesRequest>) -> Result<Response<ListStatusesResponse>, Status> {
        unimplemented!()
    }

    type WriteStream = Empty<Result<WriteContentResponse, Status>>;

    async fn write(&self, _: Request<Streaming<WriteContentRequest>>) -> Result<Response<Self::WriteStream>, Status> {
        unimplemented!()
    }

    async fn abort(&self, _: Request<AbortRequest>) -> Result<Response<()>, Status> {
        unimplemented!()
    }
}

#[tonic::async_trait]
impl Leases for Containerd {
    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let lease = |id: &str| Lease { id: id.to_owned(), ..Lease::default() };
        Ok(Response::new(ListResponse { leases: vec![lease("a"), lease("b")] }))
    }

    async fn list_resources(
        &self,
        request: Request<ListResourcesRequest>,
    ) -> Result<Response<ListResourcesResponse>, Status> {
        let holds = request.get_ref().id == "a" || self.0.is_pulled.load(Ordering::Relaxed);
        let held = holds.then(|| Resource { id: Digest::of(BLOB).to_string(), r#type: "content".to_owned() });
        Ok(Response::new(ListResourcesResponse { resources: held.into_iter().collect() }))
    }

    async fn create(&self, _: Request<CreateRequest>) -> Result<Response<CreateResponse>, Status> {
        unimplemented!()
    }

    async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<()>, Status> {
        unimplemented!()
    }

    async fn add_resource(&self, _: Request<AddResourceRequest>) -> Result<Response<()>, Status> {
        unimplemented!()
    }

    async fn delete_resource(&self, _: Request<DeleteResourceRequest>) -> Result<Response<()>, Status> {
        unimplemented!()
    }
}

#[tokio::test]
async fn what_blobs_are_is_kept_and_what_pulls_hold_is_asked_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, containerd) = (dir.path().join("s"), Containerd::default());
    let listener = UnixListenerStream::new(tokio::net::UnixListener::bind(&socket).unwrap());
    let server = tonic::transport::Server::builder()
        .add_service(ContentServer::new(containerd.clone()))
        .add_service(LeasesServer::new(containerd.clone()));
    tokio::spawn(server.serve_with_incoming(listener));
    let store = ContentStore::new(silk_api::connect(&socket));
    let holders = async |lease| {
        let held = store.held("one", lease).await.unwrap();
        held.into_iter().flat_map(|held| held.leases).collect::<Vec<_>>()
    };
    assert_eq!(holders(None).await, ["a"]);
    containerd.0.is_pulled.store(true, Ordering::Relaxed);
    assert_eq!(holders(None).await, ["a", "b"], "a pull that has just begun");
    let infos = || containerd.0.infos.load(Ordering::Relaxed);
    let before = infos();
    assert_eq!(holders(Some("b")).await, ["b"]);
    assert_eq!(infos(), before + 1, "a pull that looks for its own blobs gets their labels as they are now");
    let digest = Digest::of(BLOB);
    for namespace in ["one", "one", "two"] {
        assert_eq!(store.read(namespace, &digest, 100).await.unwrap(), BLOB);
    }
    assert_eq!(containerd.0.reads.load(Ordering::Relaxed), 2, "once in each namespace");
    assert!(store.read("one", &digest, 1).await.is_err(), "it has more bytes");
}
