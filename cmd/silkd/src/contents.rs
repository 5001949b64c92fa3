//! Manifests and configurations from containerd's content store, and which of them its pulls hold.
//!
//! A list of containerd's asks which pulls are of a chain for each layer of each image under way, within milliseconds. What leases hold is asked
//! each time, because a pull that has just begun must be found. What the blobs are is kept.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use lru::LruCache;
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
const DEADLINE: Duration = Duration::from_secs(2);

/// Leases and blobs that are looked at: what more pulls than a node has under way hold.
const LEASES: usize = 256;
const BLOBS: NonZeroUsize = NonZeroUsize::new(1024).expect("it is not zero");
/// How long a blob's labels are believed: a list of some hundred layers is over by then, and a person who pushes an image again is not.
const FRESH: Duration = Duration::from_secs(1);
/// Documents that are kept, of the most bytes each: more than one question looks at (64 that may be manifests, with their configurations), 16 MiB at
/// most. What is larger is rare, and read each time.
const DOCUMENTS: NonZeroUsize = NonZeroUsize::new(256).expect("it is not zero");
const DOCUMENT: usize = 64 << 10;
/// The label with the repositories of a blob, comma-separated (containerd's `core/remotes/docker/handler.go`); the registry's
/// name, without its port, follows.
const SOURCE: &str = "containerd.io/distribution.source.";

/// By containerd's namespace and the blob: a namespace does not see what another has.
type Cache<K, V> = Mutex<LruCache<(String, K), V>>;

/// containerd's content service, and its leases.
#[derive(Debug)]
pub struct ContentStore {
    containerd: Connect,
    documents: Cache<Digest, Vec<u8>>,
    infos: Cache<String, (Instant, Info)>,
}

impl ContentStore {
    /// Connects at the first read.
    pub fn new(containerd: Connect) -> Self {
        let (documents, infos) = (LruCache::new(DOCUMENTS), LruCache::new(BLOBS));
        Self { containerd, documents: Mutex::new(documents), infos: Mutex::new(infos) }
    }

    /// A document, kept or fetched. What is kept was proved, and is what its digest says for ever.
    async fn document(&self, namespace: &str, digest: &Digest, limit: u64) -> Result<Vec<u8>, String> {
        let key = (namespace.to_owned(), *digest);
        let kept = lock(&self.documents).get(&key).filter(|bytes| bytes.len() as u64 <= limit).cloned();
        if let Some(bytes) = kept {
            return Ok(bytes);
        }
        let bytes = self.fetch(namespace, digest, limit).await?;
        if bytes.len() <= DOCUMENT {
            lock(&self.documents).put(key, bytes.clone());
        }
        Ok(bytes)
    }

    async fn fetch(&self, namespace: &str, digest: &Digest, limit: u64) -> Result<Vec<u8>, String> {
        let ask = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let mut client = ContentClient::new(self.containerd.channel.clone());
        let ours = |status: tonic::Status| {
            format!("containerd at {} says: {}", self.containerd.socket.display(), status.message())
        };
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
        let mut client = LeasesClient::new(self.containerd.channel.clone());
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
                if digests.len() < BLOBS.get() || digests.contains_key(&resource.id) {
                    digests.entry(resource.id).or_default().push(lease.clone());
                }
            }
        }
        let mut infos = Vec::new();
        for (digest, leases) in digests {
            infos.extend(self.info(namespace, digest, lease.is_none()).await.map(|info| (info, leases)));
        }
        infos.sort_by_key(|(info, _)| std::cmp::Reverse(info.created_at.map(|t| (t.seconds, t.nanos))));
        Ok(infos.into_iter().filter_map(|(info, leases)| held(&info, leases)).collect())
    }

    /// What containerd says of a blob now, or said less than [`FRESH`] ago if that `may_be_kept`.
    async fn info(&self, namespace: &str, digest: String, may_be_kept: bool) -> Option<Info> {
        let key = (namespace.to_owned(), digest.clone());
        let kept = lock(&self.infos).get(&key).filter(|(at, _)| may_be_kept && at.elapsed() < FRESH).cloned();
        if let Some((_, info)) = kept {
            return Some(info);
        }
        let mut content = ContentClient::new(self.containerd.channel.clone());
        let answer = content.info(namespaced(namespace, InfoRequest { digest })).await.ok()?;
        let info = answer.into_inner().info?;
        lock(&self.infos).put(key, (Instant::now(), info.clone()));
        Some(info)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
            let read = tokio::time::timeout(DEADLINE, self.document(namespace, digest, limit)).await;
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

#[cfg(test)]
mod tests;
