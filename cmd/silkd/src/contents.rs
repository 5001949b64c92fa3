//! Manifests and configurations from containerd's content store.

use futures::future::BoxFuture;
use silk_api::{
    Connect,
    containerd::services::content::v1::{ReadContentRequest, content_client::ContentClient},
    namespaced,
};
use silk_model::Digest;
use silk_pull::{Contents, ContentsError};

/// How long containerd may take to give a document of a few KiB from its own disk before silk leaves the image to it.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(2);

/// containerd's content service.
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
}
