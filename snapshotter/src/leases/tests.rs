//! Against a containerd that has the leases of the test.

use std::{collections::HashMap, sync::Arc};

use silk_api::containerd::services::leases::v1::{
    AddResourceRequest, CreateRequest, CreateResponse, DeleteRequest, DeleteResourceRequest, ListResourcesResponse,
    ListResponse, Resource,
    leases_server::{Leases as LeasesService, LeasesServer},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response};

use super::*;

/// A lease, and what it holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) lease: &'static str,
    pub(crate) made: SystemTime,
    /// Types and names.
    pub(crate) resources: &'static [(&'static str, &'static str)],
}

/// A containerd with leases in its namespaces. `gone` ends while it is asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fake(pub(crate) Arc<Mutex<HashMap<&'static str, Vec<Held>>>>);

impl Fake {
    /// Serves until the runtime ends.
    pub(crate) fn serve(&self, socket: &std::path::Path) {
        let listener = UnixListenerStream::new(tokio::net::UnixListener::bind(socket).unwrap());
        let server = tonic::transport::Server::builder().add_service(LeasesServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(listener));
    }
}

#[tonic::async_trait]
impl LeasesService for Fake {
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let namespace = request.metadata().get("containerd-namespace").unwrap().to_str().unwrap();
        let all = self.0.lock().unwrap().get(namespace).cloned().unwrap_or_default();
        let lease =
            |held: Held| Lease { id: held.lease.into(), created_at: Some(held.made.into()), ..Lease::default() };
        Ok(Response::new(ListResponse { leases: all.into_iter().map(lease).collect() }))
    }

    async fn list_resources(
        &self,
        request: Request<ListResourcesRequest>,
    ) -> Result<Response<ListResourcesResponse>, Status> {
        let id = request.into_inner().id;
        let all = self.0.lock().unwrap();
        let held = all.values().flatten().find(|held| held.lease == id && id != "gone");
        let resources = held.ok_or_else(|| Status::not_found("lease"))?.resources.iter();
        let resources = resources.map(|(kind, id)| Resource { id: (*id).to_owned(), r#type: (*kind).to_owned() });
        Ok(Response::new(ListResourcesResponse { resources: resources.collect() }))
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

/// `a` and `c` hold snapshot `x` of silk, `b` holds others, `dead` is from before.
fn serve(dir: &std::path::Path) -> Leases {
    let now = SystemTime::now() + Duration::from_secs(1);
    let held = |lease, resources| Held { lease, made: now, resources };
    let dead = Held { made: now - Duration::from_secs(3600), ..held("dead", &[("snapshots/silk", "x")]) };
    let one = vec![
        held("a", &[("content", "x"), ("snapshots/silk", "x")]),
        dead,
        held("b", &[("snapshots/overlayfs", "x"), ("snapshots/silk", "y")]),
        held("gone", &[]),
        held("c", &[("snapshots/silk", "y"), ("snapshots/silk", "x")]),
    ];
    let fake = Fake(Arc::new(Mutex::new([("one", one)].into())));
    fake.serve(&dir.join("s"));
    Leases::new(silk_api::connect(&dir.join("s")))
}

#[tokio::test]
async fn the_leases_that_hold_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let leases = serve(dir.path());
    let alive = leases.alive("one").await;
    assert_eq!(alive, ["a", "b", "gone", "c"]);
    assert_eq!(leases.holding(&alive, "one", "snapshots/silk", "x").await, ["a", "c"]);
    assert_eq!(leases.holding(&alive, "one", "snapshots/overlayfs", "x").await, ["b"]);
    assert_eq!(leases.holding(&alive[1..], "one", "snapshots/silk", "x").await, ["c"]);
    assert!(leases.alive("two").await.is_empty());
}

#[tokio::test]
async fn without_containerd_there_are_none_and_it_is_not_asked_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let leases = Leases::new(silk_api::connect(&dir.path().join("nothing")));
    assert!(leases.alive("one").await.is_empty());
    assert!(leases.silent.lock().unwrap().is_some());
    assert!(leases.holding(&["a".to_owned()], "one", "content", "x").await.is_empty());
    let mut leases = serve(dir.path());
    leases.silent = Mutex::new(Some(Instant::now()));
    assert!(leases.alive("one").await.is_empty());
    leases.silent = Mutex::new(Instant::now().checked_sub(SILENCE));
    assert_eq!(leases.alive("one").await.len(), 4);
}

#[test]
fn a_lease_is_old_where_both_clocks_say_so() {
    let start = Start::now();
    let seconds = Duration::from_secs;
    let lease = |made: SystemTime| Lease { created_at: Some(made.into()), ..Lease::default() };
    let later = |by| (start.moment + seconds(by), start.date + seconds(by));
    assert!(start.is_after(&lease(start.date - ON_ITS_WAY - seconds(1)), later(60)));
    for made in [start.date - ON_ITS_WAY + seconds(1), start.date + seconds(1)] {
        assert!(!start.is_after(&lease(made), later(60)));
    }
    assert!(!start.is_after(&Lease::default(), later(60)), "it does not say");
    // The clock was an hour ahead when silkd started.
    let (moment, _) = later(60);
    let set_back = start.date - seconds(3540);
    assert!(!start.is_after(&lease(set_back - seconds(60)), (moment, set_back)));
    // The machine slept for an hour.
    assert!(!start.is_after(&lease(start.date + seconds(1)), (moment, start.date + seconds(3660))));
}
