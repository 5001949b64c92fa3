//! containerd's API: every call in one namespace and, once there is one, under a lease; with deadlines.

use std::{
    collections::HashMap,
    future::Future,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use silk_api::{
    Connect,
    containerd::{
        services::{
            content::v1::content_client::ContentClient,
            diff::v1::diff_client::DiffClient,
            images::v1::{CreateImageRequest, Image, UpdateImageRequest, images_client::ImagesClient},
            leases::v1::leases_client::LeasesClient,
            snapshots::v1::{RemoveSnapshotRequest, snapshots_client::SnapshotsClient},
        },
        types,
    },
};
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use super::image::Descriptor;
use crate::failure::{Daemon, Failure};

/// containerd answers these from its database within milliseconds; a disk that is busy with another image's layers makes it
/// wait for its own syncs.
const ANSWER: Duration = Duration::from_secs(60);

/// Puts the namespace and the lease into each call.
#[derive(Debug, Clone)]
pub struct Headers {
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.clone());
        }
        Ok(request)
    }
}

/// A channel with [`Headers`].
pub type Via = InterceptedService<Channel, Headers>;

/// containerd. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Node {
    connect: Connect,
    headers: Headers,
    /// The key of the snapshot that is being unpacked: to be removed if that does not end well.
    unfinished: Arc<Mutex<Option<String>>>,
}

impl Node {
    /// Connects at the first call.
    pub fn new(socket: &Path, namespace: &str) -> Result<Self, Failure> {
        let namespace = namespace.parse().map_err(|_| Failure::Namespace(namespace.to_owned()))?;
        let headers = Headers { namespace, lease: None };
        Ok(Self { connect: silk_api::connect(socket), headers, unfinished: Arc::default() })
    }

    /// The same, under a lease.
    pub fn leased(self, lease: MetadataValue<Ascii>) -> Self {
        Self { headers: Headers { lease: Some(lease), ..self.headers }, ..self }
    }

    /// The lease, if there is one.
    pub fn lease(&self) -> Option<&str> {
        self.headers.lease.as_ref().and_then(|lease| lease.to_str().ok())
    }

    /// The content store.
    pub fn content(&self) -> ContentClient<Via> {
        ContentClient::with_interceptor(self.connect.channel.clone(), self.headers.clone())
    }

    /// The snapshotters.
    pub fn snapshots(&self) -> SnapshotsClient<Via> {
        SnapshotsClient::with_interceptor(self.connect.channel.clone(), self.headers.clone())
    }

    /// The differs.
    pub fn diff(&self) -> DiffClient<Via> {
        DiffClient::with_interceptor(self.connect.channel.clone(), self.headers.clone())
    }

    /// The leases.
    pub fn leases(&self) -> LeasesClient<Via> {
        LeasesClient::with_interceptor(self.connect.channel.clone(), self.headers.clone())
    }

    fn images(&self) -> ImagesClient<Via> {
        ImagesClient::with_interceptor(self.connect.channel.clone(), self.headers.clone())
    }

    /// A status as a failure; `doing` stands after "cannot".
    pub fn failure(&self, doing: impl Into<String>, status: &Status) -> Failure {
        Failure::of(Daemon::Containerd, &self.connect.socket, doing, status)
    }

    /// A call that takes milliseconds; `doing` stands after "cannot".
    pub async fn call<T>(
        &self,
        doing: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(ANSWER, self.wait(doing, call)).await {
            Ok(answer) => answer,
            Err(_) => Err(Self::late(doing, ANSWER)),
        }
    }

    /// No answer in time; `doing` stands after "did not".
    pub fn late(doing: &str, after: Duration) -> Failure {
        Failure::Late { daemon: Daemon::Containerd, doing: doing.to_owned(), after }
    }

    /// A call that takes as long as its work; Ctrl-C ends it.
    pub async fn wait<T>(
        &self,
        doing: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        call.await.map(Response::into_inner).map_err(|status| self.failure(doing, &status))
    }

    /// Makes the image's record, or points an existing one at `target`; labels of others stay.
    pub async fn record_image(&self, name: &str, target: &Descriptor) -> Result<(), Failure> {
        let image = Image { name: name.to_owned(), target: Some(target.into()), ..Image::default() };
        let doing = format!("record image {name}");
        loop {
            let request = CreateImageRequest { image: Some(image.clone()), ..CreateImageRequest::default() };
            match self.call(&doing, self.images().create(request)).await {
                Ok(_) => return Ok(()),
                Err(failure) if failure.code() == Some(Code::AlreadyExists) => {}
                Err(failure) => return Err(failure),
            }
            let update_mask = Some(prost_types::FieldMask { paths: vec!["target".to_owned()] });
            let request =
                UpdateImageRequest { image: Some(image.clone()), update_mask, ..UpdateImageRequest::default() };
            match self.call(&doing, self.images().update(request)).await {
                Ok(_) => return Ok(()),
                // Removed between the two calls.
                Err(failure) if failure.code() == Some(Code::NotFound) => {}
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Remembers, or forgets, the snapshot that is being unpacked.
    pub fn set_unfinished(&self, key: Option<&str>) {
        *self.unfinished.lock().unwrap_or_else(PoisonError::into_inner) = key.map(str::to_owned);
    }

    /// Removes the snapshot that was being unpacked, if there is one. Until that is done it can be tried again.
    pub async fn remove_unfinished(&self, snapshotter: &str) -> Result<(), Failure> {
        let key = self.unfinished.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(key) = key else { return Ok(()) };
        let doing = format!("remove snapshot {key:?}");
        let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key };
        match self.call(&doing, self.snapshots().remove(request)).await {
            Err(failure) if failure.code() != Some(Code::NotFound) => Err(failure),
            _ => {
                self.set_unfinished(None);
                Ok(())
            }
        }
    }
}

impl From<&Descriptor> for types::Descriptor {
    fn from(descriptor: &Descriptor) -> Self {
        let Descriptor { media_type, digest, size, annotations } = descriptor;
        let annotations: HashMap<_, _> = annotations.clone().into_iter().collect();
        Self { media_type: media_type.clone(), digest: digest.to_string(), size: *size as i64, annotations }
    }
}
