//! Asks containerd which pulls hold a snapshot.
//!
//! Every client of containerd that pulls has a lease, and the metadata layer adds to it what the pull makes and (but for
//! snapshots in containerd 1.6) what it finds. Listings have none: see [`crate::waits`].

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use prost_types::Timestamp;
use silk_api::{
    Connect,
    containerd::services::leases::v1::{Lease, ListRequest, ListResourcesRequest, leases_client::LeasesClient},
    namespaced,
};
use tonic::Status;

/// containerd answers from its own database; a listing does not wait longer than this for the answer.
const DEADLINE: Duration = Duration::from_secs(2);
/// A containerd that did not answer is not asked again for so long: a listing asks for each layer of each image under way, within
/// milliseconds, and is to wait for one answer only.
const SILENCE: Duration = Duration::from_secs(1);
/// A node has a lease for each pull or build under way. Where there are more, the rest is not looked at.
const LEASES: usize = 256;

/// containerd's leases.
#[derive(Debug)]
pub(crate) struct Leases {
    containerd: Connect,
    start: Start,
    silent: Mutex<Option<Instant>>,
}

impl Leases {
    pub(crate) fn new(containerd: Connect) -> Self {
        Self { containerd, start: Start::now(), silent: Mutex::default() }
    }

    /// The leases of `namespace` whose pulls may be under way. None when containerd cannot say: whoever lists must not wait.
    pub(crate) async fn alive(&self, namespace: &str) -> Vec<String> {
        let silent = *self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if silent.is_some_and(|since| since.elapsed() < SILENCE) {
            return Vec::new();
        }
        self.in_time(self.list(namespace)).await
    }

    /// Those of the leases `of` that hold a resource, of a type as containerd names it. None when containerd cannot say.
    pub(crate) async fn holding(&self, of: &[String], namespace: &str, kind: &str, id: &str) -> Vec<String> {
        self.in_time(self.find(of, namespace, kind, id)).await
    }

    async fn in_time(&self, answer: impl Future<Output = Result<Vec<String>, Status>>) -> Vec<String> {
        let error = match tokio::time::timeout(DEADLINE, answer).await {
            Ok(Ok(leases)) => return leases,
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => "no answer in time".to_owned(),
        };
        let containerd = self.containerd.socket.display();
        tracing::warn!(%containerd, error, "containerd does not tell its leases: a pull may not wait");
        *self.silent.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Vec::new()
    }

    async fn list(&self, namespace: &str) -> Result<Vec<String>, Status> {
        let mut client = LeasesClient::new(self.containerd.channel.clone());
        let leases = client.list(namespaced(namespace, ListRequest::default())).await?.into_inner().leases;
        let now = (Instant::now(), SystemTime::now());
        let alive = leases.into_iter().filter(|lease| !self.start.is_after(lease, now));
        Ok(alive.map(|lease| lease.id).take(LEASES).collect())
    }

    async fn find(&self, of: &[String], namespace: &str, kind: &str, id: &str) -> Result<Vec<String>, Status> {
        let mut client = LeasesClient::new(self.containerd.channel.clone());
        let mut holding = Vec::new();
        for lease in of {
            // A lease that ended meanwhile holds nothing.
            let request = namespaced(namespace, ListResourcesRequest { id: lease.clone() });
            let Ok(answer) = client.list_resources(request).await else { continue };
            if answer.into_inner().resources.iter().any(|r| r.r#type == kind && r.id == id) {
                holding.push(lease.clone());
            }
        }
        Ok(holding)
    }
}

/// How old a lease may have been when this process began to answer: a client's pull of a chain that containerd knows, whose manifest was on its
/// way while silkd was started again, has yet to ask. Manifests take a second; a registry that has to be asked again takes some. A list may wait in
/// the place of a pull that died in these seconds together with its containerd: once, until the image is there.
const ON_ITS_WAY: Duration = Duration::from_secs(10);

/// When this process began to answer.
///
/// A lease outlives its pull by up to a day where containerd or the machine died. None that is much older than silkd has a pull that
/// still has to wait: a Stat that waited when the last silkd ended has failed with the connection, and its pull with it, to be tried
/// again under another lease; and a pull that has its Prepare or Stat still before it brings its lease along (CRI), or is expected
/// after its Prepare.
#[derive(Debug, Clone, Copy)]
struct Start {
    moment: Instant,
    date: SystemTime,
}

impl Start {
    fn now() -> Self {
        Self { moment: Instant::now(), date: SystemTime::now() }
    }

    /// Is the lease so much older? By the date, and by how long ago that is: a clock that was set after the start, forward or back, must
    /// not make old what is new.
    fn is_after(&self, lease: &Lease, (moment, date): (Instant, SystemTime)) -> bool {
        let Some(made) = lease.created_at.and_then(system_time) else { return false };
        let age = date.duration_since(made).unwrap_or_default();
        made + ON_ITS_WAY < self.date && age > moment.duration_since(self.moment) + ON_ITS_WAY
    }
}

fn system_time(time: Timestamp) -> Option<SystemTime> {
    SystemTime::try_from(time).ok()
}

#[cfg(test)]
pub(crate) mod tests;
