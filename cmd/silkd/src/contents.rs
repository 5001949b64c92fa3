//! Manifests and configurations from containerd's content store, and which of them its pulls hold.

use std::collections::HashMap;

use futures::future::BoxFuture;
use silk_api::{
    Connect,
    containerd::services::{
        content::v1::{Info, InfoRequest, ReadContentRequest, content_client::ContentClient},
        leases::v1::{ListRequest, ListResourcesRequest, leases_client::LeasesClient},
    },
    namespaced,
};
use silk_model::Digest;
use silk_pull::{Contents, ContentsError, Held};
use tonic::Status;

/// How long containerd may take to give a document of a few KiB from its own disk before silk leaves the image to it.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(2);

/// Leases and blobs that are looked at: what more pulls than a node has under way hold.
const LEASES: usize = 256;
const BLOBS: usize = 1024;
/// The label with the repositories of a blob, comma-separated (containerd's `core/remotes/docker/handler.go`); the registry's
/// name, without its port, follows.
const SOURCE: &str = "containerd.io/distribution.source.";

/// containerd's content service, and its leases.
#[derive(Debug)]
pub struct ContentStore(Connect);

impl ContentStore {
    /// Connects at the first read.
    pub fn new(containerd: Connect) -> Self {
        Self(containerd)
    }

    async fn fetch(&self, namespace: &str, digest: &Digest, limit: u64) -> Result<Vec<u8>, String> {
        let ask = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let mut client = ContentClient::new(self.0.channel.clone());
        let ours =
            |status: tonic::Status| format!("containerd at {} says: {}", self.0.socket.display(), status.message());
        let mut stream = client.read(namespaced(namespace, ask)).await.map_err(ours)?.into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = stream.message().await.map_err(ours)? {
            bytes.extend_from_slice(&part.data);
            if bytes.len() as u64 > limit {
                return Err(format!("it has more than {limit} bytes"));
            }
        }
        let found = Digest::of(&bytes);
        if found == *digest { Ok(bytes) } else { Err(format!("containerd gave bytes of digest {found}")) }
    }

    async fn find_held(&self, namespace: &str, lease: Option<&str>) -> Result<Vec<Held>, Status> {
        let mut client = LeasesClient::new(self.0.channel.clone());
        let leases = match lease {
            Some(lease) => vec![lease.to_owned()],
            None => {
                let all = client.list(namespaced(namespace, ListRequest::default())).await?.into_inner().leases;
                all.into_iter().map(|lease| lease.id).take(LEASES).collect()
            }
        };
        let mut digests: HashMap<String, Vec<String>> = HashMap::new();
        for lease in leases {
            let request = ListResourcesRequest { id: lease.clone() };
            // A lease that ended meanwhile holds nothing.
            let Ok(answer) = client.list_resources(namespaced(namespace, request)).await else { continue };
            for resource in answer.into_inner().resources.into_iter().filter(|r| r.r#type == "content") {
                if digests.len() < BLOBS || digests.contains_key(&resource.id) {
                    digests.entry(resource.id).or_default().push(lease.clone());
                }
            }
        }
        let mut content = ContentClient::new(self.0.channel.clone());
        let mut infos = Vec::new();
        for (digest, leases) in digests {
            let info = content.info(namespaced(namespace, InfoRequest { digest })).await;
            infos.extend(info.ok().and_then(|answer| Some((answer.into_inner().info?, leases))));
        }
        infos.sort_by_key(|(info, _)| std::cmp::Reverse(info.created_at.map(|t| (t.seconds, t.nanos))));
        Ok(infos.into_iter().filter_map(|(info, leases)| held(&info, leases)).collect())
    }
}

fn held(info: &Info, leases: Vec<String>) -> Option<Held> {
    let sources = info.labels.iter().filter_map(|(key, value)| Some((key.strip_prefix(SOURCE)?, value)));
    let repositories = sources.flat_map(|(host, paths)| paths.split(',').map(|p| (host.to_owned(), p.to_owned())));
    Some(Held {
        digest: info.digest.parse().ok()?,
        size: u64::try_from(info.size).ok()?,
        repositories: repositories.collect(),
        leases,
    })
}

impl Contents for ContentStore {
    fn read<'a>(
        &'a self,
        namespace: &'a str,
        digest: &'a Digest,
        limit: u64,
    ) -> BoxFuture<'a, Result<Vec<u8>, ContentsError>> {
        Box::pin(async move {
            let read = tokio::time::timeout(DEADLINE, self.fetch(namespace, digest, limit)).await;
            read.unwrap_or_else(|_| Err(format!("containerd did not answer within {} s", DEADLINE.as_secs())))
                .map_err(|message| ContentsError { digest: *digest, message })
        })
    }

    fn held<'a>(&'a self, namespace: &'a str, lease: Option<&'a str>) -> BoxFuture<'a, Result<Vec<Held>, String>> {
        Box::pin(async move {
            let found = tokio::time::timeout(DEADLINE, self.find_held(namespace, lease)).await;
            found.map_or_else(|_| Err("no answer in time".to_owned()), |f| f.map_err(|s| s.message().to_owned()))
        })
    }
}
