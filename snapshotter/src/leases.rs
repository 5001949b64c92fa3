//! Asks containerd which pulls hold a snapshot.
//!
//! Every client of containerd that pulls has a lease, and the metadata layer adds to it what the pull makes and (but for
//! snapshots in containerd 1.6) what it finds. Listings have none: see [`crate::waits`].

use std::time::Duration;

use silk_api::{
    Connect,
    containerd::services::leases::v1::{ListRequest, ListResourcesRequest, leases_client::LeasesClient},
    namespaced,
};
use tonic::Status;

/// containerd answers from its own database; a listing does not wait longer than this for the answer.
const DEADLINE: Duration = Duration::from_secs(2);
/// A node has a lease for each pull or build under way. Where there are more, the rest is not looked at.
const LEASES: usize = 256;

/// containerd's leases.
#[derive(Debug)]
pub(crate) struct Leases(Connect);

impl Leases {
    pub(crate) fn new(containerd: Connect) -> Self {
        Self(containerd)
    }

    /// The leases of `namespace` that hold a resource, of a type as containerd names it. None when containerd cannot say:
    /// whoever lists must not wait.
    pub(crate) async fn holding(&self, namespace: &str, kind: &str, id: &str) -> Vec<String> {
        match tokio::time::timeout(DEADLINE, self.ask(namespace, kind, id)).await {
            Ok(Ok(leases)) => leases,
            Ok(Err(status)) => self.unknown(status.message()),
            Err(_) => self.unknown("no answer in time"),
        }
    }

    fn unknown(&self, error: &str) -> Vec<String> {
        tracing::warn!(containerd = %self.0.socket.display(), error, "containerd does not tell its leases: a pull may not wait");
        Vec::new()
    }

    async fn ask(&self, namespace: &str, kind: &str, id: &str) -> Result<Vec<String>, Status> {
        let mut client = LeasesClient::new(self.0.channel.clone());
        let leases = client.list(namespaced(namespace, ListRequest::default())).await?.into_inner().leases;
        let mut holding = Vec::new();
        for lease in leases.into_iter().take(LEASES) {
            // A lease that ended meanwhile holds nothing.
            let request = namespaced(namespace, ListResourcesRequest { id: lease.id.clone() });
            let Ok(answer) = client.list_resources(request).await else { continue };
            if answer.into_inner().resources.iter().any(|r| r.r#type == kind && r.id == id) {
                holding.push(lease.id);
            }
        }
        Ok(holding)
    }
}

#[cfg(test)]
mod tests;
