//! Blobs into containerd's content store, with containerd's own names for the writes, so that pulls of the same blob by
//! others are waited for or gone on with.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use silk_api::containerd::services::content::v1::{
    AbortRequest, Info, InfoRequest, ReadContentRequest, StatusRequest, UpdateRequest, WriteAction,
    WriteContentRequest, WriteContentResponse,
};
use silk_model::Digest;
use silk_registry::{Blob, Reference};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::{
    image::{Descriptor, Keep},
    labels,
    node::Node,
};
use crate::failure::Failure;

/// Bytes a message: each one is answered before the next, so few large ones; containerd takes up to 16 MiB.
const PIECE: usize = 1 << 20;
/// How long another client may hold a blob's write without a byte more.
const LOCKED: Duration = Duration::from_secs(120);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(200);
/// A commit syncs the blob: at 50 MB/s this is enough for 30 GB.
const COMMIT: Duration = Duration::from_secs(600);

/// containerd's content store, for the blobs of one repository. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    node: Node,
    repository: Arc<str>,
    source_key: Arc<str>,
}

impl Store {
    /// Blobs are labelled as coming from the repository of `reference`.
    pub fn new(node: Node, reference: &Reference) -> Self {
        let source_key = labels::source_key(reference).into();
        Self { node, repository: reference.path().into(), source_key }
    }

    /// A small blob: containerd's, if it has it, else the one that `fetch` gets, which is written.
    pub async fn document(
        &self,
        descriptor: &Descriptor,
        fetch: impl Future<Output = Result<Bytes, Failure>>,
    ) -> Result<Bytes, Failure> {
        let Some(mut writer) = self.open(descriptor).await? else {
            return self.read(descriptor).await;
        };
        let bytes = fetch.await?;
        let rest = bytes.slice((writer.offset as usize).min(bytes.len())..);
        if !rest.is_empty() {
            writer.write(rest).await?;
        }
        self.commit(writer).await?;
        Ok(bytes)
    }

    /// A layer's blob; goes on where an earlier write ended. `progress` is given the bytes that are there. False when
    /// containerd has it already.
    pub async fn blob(&self, descriptor: &Descriptor, blob: &Blob, progress: impl Fn(u64)) -> Result<bool, Failure> {
        let Some(mut writer) = self.open(descriptor).await? else { return Ok(false) };
        progress(writer.offset);
        let mut stream = blob.read(writer.offset.min(descriptor.size)..descriptor.size);
        let mut piece = BytesMut::with_capacity(PIECE);
        while let Some(bytes) = stream.next().await? {
            piece.extend_from_slice(&bytes);
            if piece.len() >= PIECE {
                writer.write(piece.split().freeze()).await?;
                progress(writer.offset);
            }
        }
        if !piece.is_empty() {
            writer.write(piece.freeze()).await?;
        }
        self.commit(writer).await?;
        Ok(true)
    }

    /// Adds labels to a blob: these, and where it comes from.
    pub async fn label(&self, digest: &Digest, mut labels: BTreeMap<String, String>) -> Result<(), Failure> {
        let mut client = self.node.content();
        let doing = format!("label {digest}");
        let info = client.info(InfoRequest { digest: digest.to_string() });
        let info = self.node.call(&doing, info).await?.info.unwrap_or_default();
        let sources = info.labels.get(&*self.source_key).map_or("", String::as_str);
        if let Some(sources) = labels::add_source(&self.source_key, sources, &self.repository) {
            labels.insert(self.source_key.to_string(), sources);
        }
        self.set(digest, labels).await
    }

    /// Sets labels of a blob, and leaves its others alone.
    pub async fn set(&self, digest: &Digest, labels: BTreeMap<String, String>) -> Result<(), Failure> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info { digest: digest.to_string(), labels: labels.into_iter().collect(), ..Info::default() };
        let request = UpdateRequest { info: Some(info), update_mask: Some(prost_types::FieldMask { paths }) };
        self.node.call(&format!("label {digest}"), self.node.content().update(request)).await?;
        Ok(())
    }

    async fn read(&self, descriptor: &Descriptor) -> Result<Bytes, Failure> {
        let digest = descriptor.digest;
        let doing = format!("read {digest}");
        let request = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let mut client = self.node.content();
        let mut stream = self.node.call(&doing, client.read(request)).await?;
        let mut bytes = BytesMut::new();
        while let Some(piece) = stream.message().await.map_err(|status| self.node.failure(&doing, &status))? {
            bytes.extend_from_slice(&piece.data);
            if bytes.len() as u64 > descriptor.size {
                break;
            }
        }
        let found = Digest::of(&bytes);
        if found == digest { Ok(bytes.freeze()) } else { Err(Failure::WrongDigest { expected: digest, found }) }
    }

    /// A write of the blob; none when containerd has it. Either way the lease holds it from now on. Waits while another
    /// client writes it.
    async fn open(&self, descriptor: &Descriptor) -> Result<Option<Writer<'_>>, Failure> {
        let name = write_name(descriptor);
        let (mut since, mut reached) = (Instant::now(), None);
        loop {
            match Writer::open(&self.node, descriptor, &name).await {
                Ok(writer) => return Ok(Some(writer)),
                Err(failure) => match failure.code() {
                    Some(Code::AlreadyExists) => return Ok(None),
                    Some(Code::Unavailable) => {}
                    _ => return Err(failure),
                },
            }
            let request = StatusRequest { r#ref: name.clone() };
            let status = self.node.call("tell how far a write is", self.node.content().status(request)).await;
            // The write may have ended between the two calls.
            let offset = status.ok().and_then(|answer| answer.status).map(|status| status.offset);
            if offset != reached {
                (since, reached) = (Instant::now(), offset);
            }
            if since.elapsed() > LOCKED {
                return Err(Failure::Locked { digest: descriptor.digest, after: LOCKED });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends a write. When the bytes are not the blob's they are thrown away: the next try must not go on from them.
    async fn commit(&self, writer: Writer<'_>) -> Result<(), Failure> {
        let name = writer.name.clone();
        let outcome = writer.commit().await;
        if outcome.is_err() {
            let mut client = self.node.content();
            let _ = self.node.call("throw a write away", client.abort(AbortRequest { r#ref: name })).await;
        }
        outcome
    }
}

impl Keep for Store {
    async fn document(
        &self,
        descriptor: &Descriptor,
        fetch: impl Future<Output = Result<Bytes, Failure>>,
    ) -> Result<Bytes, Failure> {
        self.document(descriptor, fetch).await
    }

    async fn label(&self, digest: &Digest, labels: BTreeMap<String, String>) -> Result<(), Failure> {
        self.label(digest, labels).await
    }
}

/// As containerd names the write of a blob (`core/remotes/handlers.go`, `MakeRefKey`).
fn write_name(descriptor: &Descriptor) -> String {
    let Descriptor { media_type, digest, annotations, .. } = descriptor;
    let kind = match media_type.as_str() {
        t if labels::is_manifest(t) => "manifest",
        t if labels::is_index(t) => "index",
        t if labels::is_layer(t) => "layer",
        t if labels::is_config(t) => "config",
        _ => "unknown",
    };
    match annotations.get("org.opencontainers.image.ref.name") {
        Some(name) => format!("{kind}-{name}@{digest}"),
        None => format!("{kind}-{digest}"),
    }
}

/// A write under way: one question, one answer.
struct Writer<'a> {
    node: &'a Node,
    digest: Digest,
    size: u64,
    name: String,
    /// Bytes that containerd has.
    offset: u64,
    to: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
}

impl<'a> Writer<'a> {
    async fn open(node: &'a Node, descriptor: &Descriptor, name: &str) -> Result<Self, Failure> {
        let (to, requests) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: name.to_owned(),
            total: descriptor.size as i64,
            expected: descriptor.digest.to_string(),
            ..WriteContentRequest::default()
        };
        // containerd's answer begins when it has the first question.
        to.try_send(first).expect("the channel has room for one");
        let digest = descriptor.digest;
        let mut client = node.content();
        let answers = node.call(&doing(&digest), client.write(ReceiverStream::new(requests))).await?;
        let mut writer = Self { node, digest, size: descriptor.size, name: name.to_owned(), offset: 0, to, answers };
        writer.answer(None).await?;
        Ok(writer)
    }

    async fn write(&mut self, data: Bytes) -> Result<(), Failure> {
        let request = WriteContentRequest {
            action: WriteAction::Write.into(),
            offset: self.offset as i64,
            data: data.to_vec(),
            ..WriteContentRequest::default()
        };
        self.answer(Some(request)).await
    }

    async fn commit(mut self) -> Result<(), Failure> {
        let request = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total: self.size as i64,
            offset: self.offset as i64,
            expected: self.digest.to_string(),
            ..WriteContentRequest::default()
        };
        match tokio::time::timeout(COMMIT, self.answer(Some(request))).await {
            Err(_) => Err(Node::late(&doing(&self.digest), COMMIT)),
            // Somebody else was quicker.
            Ok(Err(failure)) if failure.code() == Some(Code::AlreadyExists) => Ok(()),
            Ok(outcome) => outcome,
        }
    }

    async fn answer(&mut self, request: Option<WriteContentRequest>) -> Result<(), Failure> {
        if let Some(request) = request {
            // When containerd has ended the stream, the answer says why.
            let _ = self.to.send(request).await;
        }
        match self.answers.message().await {
            Ok(Some(answer)) => {
                self.offset = u64::try_from(answer.offset).unwrap_or(0);
                Ok(())
            }
            Ok(None) => Err(Failure::WriteEnded(self.digest)),
            Err(status) => Err(self.node.failure(doing(&self.digest), &status)),
        }
    }
}

fn doing(digest: &Digest) -> String {
    format!("write {digest}")
}
