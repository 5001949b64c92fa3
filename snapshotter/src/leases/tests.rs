//! Against a containerd that knows the leases of the test.

use silk_api::containerd::services::leases::v1::{
    AddResourceRequest, CreateRequest, CreateResponse, DeleteRequest, DeleteResourceRequest, Lease,
    ListResourcesResponse, ListResponse, Resource,
    leases_server::{Leases as LeasesService, LeasesServer},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response};

use super::*;

/// In namespace `one`: `a` and `c` hold snapshot `x` of silk, `b` holds others, `gone` ends while it is asked.
struct Fake;

#[tonic::async_trait]
impl LeasesService for Fake {
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let namespace = request.metadata().get("containerd-namespace").unwrap();
        let ids: &[&str] = if namespace == "one" { &["a", "b", "gone", "c"] } else { &[] };
        let leases = ids.iter().map(|id| Lease { id: (*id).to_owned(), ..Lease::default() }).collect();
        Ok(Response::new(ListResponse { leases }))
    }

    async fn list_resources(
        &self,
        request: Request<ListResourcesRequest>,
    ) -> Result<Response<ListResourcesResponse>, Status> {
        let resources: &[(&str, &str)] = match request.into_inner().id.as_str() {
            "a" => &[("content", "x"), ("snapshots/silk", "x")],
            "b" => &[("snapshots/overlayfs", "x"), ("snapshots/silk", "y")],
            "c" => &[("snapshots/silk", "y"), ("snapshots/silk", "x")],
            _ => return Err(Status::not_found("lease")),
        };
        let resources =
            resources.iter().map(|(kind, id)| Resource { id: (*id).to_owned(), r#type: (*kind).to_owned() }).collect();
        Ok(Response::new(ListResourcesResponse { resources }))
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
async fn the_leases_that_hold_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListenerStream::new(tokio::net::UnixListener::bind(&socket).unwrap());
    let server = tonic::transport::Server::builder().add_service(LeasesServer::new(Fake));
    let serving = tokio::spawn(server.serve_with_incoming(listener));
    let leases = Leases::new(silk_api::connect(&socket));
    assert_eq!(leases.holding("one", "snapshots/silk", "x").await, ["a", "c"]);
    assert_eq!(leases.holding("one", "snapshots/overlayfs", "x").await, ["b"]);
    assert!(leases.holding("two", "snapshots/silk", "x").await.is_empty());
    serving.abort();
}

#[tokio::test]
async fn without_containerd_there_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let leases = Leases::new(silk_api::connect(&dir.path().join("nothing")));
    assert!(leases.holding("one", "content", "x").await.is_empty());
}
