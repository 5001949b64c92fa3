//! What a pull leaves behind in a containerd that makes it wait.

use std::{path::Path, sync::Mutex};

use silk_api::containerd::services::leases::v1::{
    AddResourceRequest, CreateRequest, CreateResponse, DeleteRequest, DeleteResourceRequest, ListRequest,
    ListResourcesRequest, ListResourcesResponse, ListResponse,
    leases_server::{Leases, LeasesServer},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::interrupt::Signal;

/// The leases that there are. Before it answers the first question for one, this process gets a SIGINT.
#[derive(Debug, Clone, Default)]
struct Fake(Arc<Mutex<Vec<String>>>);

impl Fake {
    /// Serves until the runtime ends.
    fn serve(&self, socket: &Path) {
        let listener = UnixListenerStream::new(tokio::net::UnixListener::bind(socket).unwrap());
        let server = tonic::transport::Server::builder().add_service(LeasesServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(listener));
    }

    fn ids(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl Leases for Fake {
    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<CreateResponse>, Status> {
        let pid = std::process::id().to_string();
        assert!(tokio::process::Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
        tokio::time::sleep(Duration::from_millis(200)).await;
        self.0.lock().unwrap().push(request.into_inner().id);
        Ok(Response::new(CreateResponse::default()))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<()>, Status> {
        let id = request.into_inner().id;
        self.0.lock().unwrap().retain(|one| *one != id);
        Ok(Response::new(()))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        unimplemented!()
    }

    async fn add_resource(&self, _: Request<AddResourceRequest>) -> Result<Response<()>, Status> {
        unimplemented!()
    }

    async fn delete_resource(&self, _: Request<DeleteResourceRequest>) -> Result<Response<()>, Status> {
        unimplemented!()
    }

    async fn list_resources(
        &self,
        _: Request<ListResourcesRequest>,
    ) -> Result<Response<ListResourcesResponse>, Status> {
        unimplemented!()
    }
}

/// One test: the signal comes to the whole process.
#[tokio::test]
async fn no_lease_is_left_by_a_restart_of_containerd_or_a_signal_while_it_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, fake) = (dir.path().join("s"), Fake::default());
    let mut signals = Signals::new();

    *fake.0.lock().unwrap() = vec!["1-a".to_owned()];
    let node = Node::new(&socket, "default").unwrap().leased("1-a".parse().unwrap());
    let back = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        fake.serve(&socket);
    };
    tokio::join!(put_away(&node, "silk", false, &mut signals), back);
    assert!(fake.ids().is_empty(), "it came back in time");

    let failure = leased(Node::new(&socket, "default").unwrap(), &mut signals).await.unwrap_err();
    assert!(matches!(failure, Failure::Interrupted(Signal::Interrupt)), "{failure}");
    assert!(fake.ids().is_empty(), "it was made after the signal");
}
