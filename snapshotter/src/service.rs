//! The gRPC service. Called by containerd for everything it does with snapshots.
//!
//! Work that may block runs in blocking threads; the only call that waits for a pull is Stat, and only where [`Waits`]
//! says so. A panic is an `Internal` error for its caller and nothing for anyone else.

use std::{
    panic::AssertUnwindSafe,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use silk_api::{
    Connect,
    containerd::{
        services::snapshots::v1::{
            CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, ListSnapshotsResponse, MountsRequest,
            MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest,
            StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest,
            UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
            snapshots_server::{self, SnapshotsServer},
        },
        types::Mount,
    },
};
use silk_model::{
    SPANS,
    metrics::{Call, METRICS},
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, metadata::MetadataMap};
use tracing::{Instrument as _, trace_span};

use crate::{
    Caller, Claim, Kind, Layers, NotReady, Refused, Remote, RemoteChain, Snapshot, SnapshotError, Snapshots, State,
    filter::Filters,
    idmap, labels,
    leases::Leases,
    mounts::{knows_index, mounts},
    snapshots::{Final, New, owner},
    state::Stack,
    usage,
    waits::{self, Turn, Waits},
};

mod proto;

/// containerd's own limit for messages in both directions (`defaults.DefaultMaxRecvMsgSize`).
const MAX_MESSAGE: usize = 16 << 20;
/// containerd's namespace; its garbage collection has none.
const NAMESPACE: &str = "containerd-namespace";
/// Snapshots in one message of a list, as containerd's own service sends them.
const LIST_PART: usize = 100;
/// A claim takes up to a second by contract. Whatever keeps it longer must not keep containerd, which holds a lock.
const CLAIM: Duration = Duration::from_secs(5);
/// Cleanup waits this long for deletions, so that space is free again when containerd says that an image is gone, unless
/// there is so much to delete that the next garbage collection should not wait for it.
const CLEANUP: Duration = Duration::from_secs(10);

/// Serves `containerd.services.snapshots.v1.Snapshots`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    snapshots: Arc<Snapshots>,
    layers: Arc<dyn Layers>,
    index_off: bool,
    waits: Waits,
    leases: Option<Leases>,
}

impl Service {
    /// A service on the snapshots of a root, whose remote layers are `layers`.
    pub fn new(snapshots: Arc<Snapshots>, layers: Arc<dyn Layers>) -> Self {
        let (index_off, waits) = (knows_index(), Waits::default());
        Self(Arc::new(Inner { snapshots, layers, index_off, waits, leases: None }))
    }

    /// Asks this containerd which of several callers without a lease is a pull. Call it before the service is cloned.
    #[must_use]
    pub fn with_containerd(mut self, containerd: Connect) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.leases = Some(Leases::new(containerd));
        }
        self
    }

    /// For a tonic router.
    pub fn into_server(self) -> SnapshotsServer<Self> {
        SnapshotsServer::new(self).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        let inner = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || work(&inner)).await.unwrap_or_else(|error| {
            tracing::error!(%error, "a request failed (a bug)");
            Err(SnapshotError::Panicked)
        })
    }

    /// Prepares or views.
    async fn create(&self, new: New) -> Result<Vec<Mount>, SnapshotError> {
        self.blocking(move |inner| {
            inner.snapshots.check_new(&new.key, &new.parent)?;
            let stack = inner.snapshots.stack(&new.parent)?;
            let lowers = inner.lowers(&stack)?;
            let snapshot = inner.snapshots.create(new, &lowers)?;
            let lowers = inner.mapped(&snapshot, &stack, lowers).inspect_err(|_| inner.take_back(&snapshot))?;
            if let Some((_, chain)) = &stack.remote {
                // Also what stands on a container's own layers reads the image's.
                let is_plain = snapshot.kind == Kind::Active && !labels::is_copy(&snapshot.name);
                let starts = is_plain && stack.ordinary.is_empty();
                inner.layers.used(chain, &snapshot.name, starts);
            }
            Ok(mounts(inner.index_off, &inner.snapshots.dirs, &snapshot, &lowers))
        })
        .await
    }

    /// Takes an image's layer, if it can be taken; [`None`] leaves it to containerd.
    async fn claim(&self, mut claim: Claim, new: &New) -> Result<Option<Arc<Snapshot>>, SnapshotError> {
        let inner = &self.0;
        inner.snapshots.check_new(&new.key, &new.parent)?;
        if !new.parent.is_empty() {
            let stack = inner.snapshots.stack(&new.parent)?;
            match stack.remote {
                Some((_, chain)) if stack.ordinary.is_empty() => claim.parent_chain = chain.diff_ids,
                // The layer below was left to containerd, so this one is, too.
                _ => {
                    inner.layers.left(&claim, inner.snapshots.chain_id(&new.parent));
                    return Ok(None);
                }
            }
        }
        let known = inner.snapshots.remote(&claim.chain_id, &new.parent);
        if let Some(known) = known
            && inner.snapshots.chain(&known).is_some_and(|chain| inner.layers.state(&chain) == State::Ready)
        {
            return Ok(Some(known));
        }
        let claimed = tokio::time::timeout(CLAIM, inner.layers.claim(claim.clone())).await;
        let claimed = match claimed.unwrap_or_else(|_| Err(inner.late(&claim))) {
            Ok(claimed) => claimed,
            Err(refused) => {
                tracing::info!(image = claim.image_ref, layer = %claim.layer_digest, %refused, "a layer is left to containerd");
                return Ok(None);
            }
        };
        let remote = Remote {
            namespace: claim.namespace,
            image_ref: claim.image_ref,
            image: claim.manifest_digest,
            chain_id: claim.chain_id,
            diff_id: claimed.diff_id,
            top: claimed.top,
        };
        let (parent, labels) = (new.parent.clone(), new.labels.clone());
        let snapshot = self.blocking(move |inner| inner.snapshots.commit_remote(&parent, labels, remote)).await?;
        inner.layers.changed();
        Ok(Some(snapshot))
    }

    async fn prepare_any(
        &self,
        request: PrepareSnapshotRequest,
        headers: &MetadataMap,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let claim = labels::claim(&request.key, header(headers, NAMESPACE), &request.labels);
        let new =
            New { kind: Kind::Active, key: request.key, parent: request.parent, labels: labels::kept(request.labels) };
        if let Some(claim) = claim {
            let (chain_id, namespace) = (claim.chain_id.to_string(), claim.namespace.clone());
            if let Some(snapshot) = self.claim(claim, &new).await? {
                self.0.waits.prepared_in(&snapshot.name, &namespace);
                self.0.waits.expect(&snapshot.name, header(headers, waits::LEASE));
                return Err(SnapshotError::Served { name: snapshot.name.clone(), chain_id });
            }
        }
        self.create(new).await
    }

    async fn stat_any(
        &self,
        request: &StatSnapshotRequest,
        headers: &MetadataMap,
    ) -> Result<Arc<Snapshot>, SnapshotError> {
        let (inner, name) = (&self.0, &request.key);
        let snapshot = inner.snapshots.get(name)?;
        let Some(remote) = &snapshot.remote else { return Ok(snapshot) };
        let turn = inner.waits.turn(name, header(headers, waits::LEASE), remote.top);
        let Some(chain) = inner.snapshots.chain(&snapshot) else { return Ok(snapshot) };
        if turn == Turn::Pass || (turn == Turn::Ask && inner.is_here(&chain)) {
            return Ok(snapshot);
        }
        if header(headers, waits::LEASE).is_none() {
            let missed = inner.take_lease(header(headers, NAMESPACE), request, remote, &chain).await;
            if turn == Turn::Ask && !missed {
                return Ok(snapshot);
            }
        }
        let caller = Caller {
            // containerd 1.6 passes on no namespace of a client.
            namespace: header(headers, NAMESPACE).unwrap_or(&remote.namespace).to_owned(),
            lease: header(headers, waits::LEASE).map(str::to_owned),
        };
        let span = trace_span!(target: SPANS, "Stat", snapshot = name, image.reference = remote.image_ref);
        inner.layers.ready(chain, caller).instrument(span).await.map_err(SnapshotError::Pull)?;
        inner.waits.forget(name);
        // It may have been removed or updated meanwhile.
        inner.snapshots.get(name)
    }

    async fn usage_of(&self, key: &str) -> Result<crate::Usage, SnapshotError> {
        let snapshot = self.0.snapshots.get(key)?;
        match (&snapshot.remote, snapshot.kind) {
            // Not zero and not what is here so far: CRI asks once and keeps the answer.
            (Some(remote), _) => {
                self.0.layers.usage(&remote.diff_id).ok_or_else(|| SnapshotError::NoUsage(key.to_owned()))
            }
            (None, Kind::Active) => self.blocking(move |inner| usage::of(&inner.snapshots.dirs.fs(snapshot.id))).await,
            (None, Kind::Committed | Kind::View) => Ok(snapshot.usage),
        }
    }
}

impl Inner {
    /// Are all layers of the chain whole? Starts nothing, unlike [`Layers::state`].
    fn is_here(&self, chain: &RemoteChain) -> bool {
        chain.diff_ids.iter().all(|id| self.layers.usage(id).is_some())
    }

    /// Notes that a claim was given up, and why.
    fn late(&self, claim: &Claim) -> Refused {
        let (image, seconds) = (&claim.image_ref, CLAIM.as_secs());
        let reason = format!("silk did not learn about {image} within {seconds} s, from containerd and the registry");
        let refused = Refused { reason };
        self.layers.late(claim, &refused);
        refused
    }

    /// Notes that one of the pulls of a chain waits; says whether there is one that did not wait yet.
    async fn take_lease(
        &self,
        namespace: Option<&str>,
        StatSnapshotRequest { snapshotter, key: name }: &StatSnapshotRequest,
        remote: &Remote,
        chain: &RemoteChain,
    ) -> bool {
        let Some(leases) = &self.leases else { return false };
        let (namespaces, kind, id) = match namespace {
            // For containerd, the snapshot's name is its chain ID.
            Some(namespace) => {
                ([namespace.to_owned()].into(), format!("snapshots/{snapshotter}"), remote.chain_id.to_string())
            }
            // containerd 1.6 adds to its lease what it makes, not what it finds.
            None => (self.waits.namespaces(name, &remote.namespace), "content".to_owned(), remote.image.to_string()),
        };
        let mut alive = Vec::new();
        for namespace in namespaces {
            let mut of = leases.alive(&namespace).await;
            self.waits.keep_new(name, &mut of);
            // Mostly there is none, and a list is answered with the one question.
            if !of.is_empty() {
                alive.push((namespace, of));
            }
        }
        // What is below the top is held by pulls of larger images, too.
        for (namespace, of) in alive.iter().filter(|_| remote.top) {
            if self.waits.take_first(name, &leases.holding(of, namespace, &kind, &id).await) {
                return true;
            }
        }
        // Another image with the same layers, of which containerd 1.x notes no snapshot.
        for (namespace, of) in &alive {
            let mut pulls = self.layers.leases(namespace, chain).await;
            pulls.retain(|lease| of.contains(lease));
            if !remote.top && !pulls.is_empty() && kind.starts_with("snapshots/") {
                // Of those, a pull by another snapshotter does not hold this one's snapshot, and never asks for it.
                let holding = leases.holding(of, namespace, &kind, &id).await;
                pulls.retain(|lease| holding.contains(lease));
            }
            if self.waits.take_first(name, &pulls) {
                return true;
            }
        }
        false
    }

    /// The directories and mount points below a snapshot, top first. Never waits for a pull: containerd holds a lock.
    fn lowers(&self, stack: &Stack) -> Result<Vec<PathBuf>, SnapshotError> {
        let mut lowers: Vec<_> = stack.ordinary.iter().map(|id| self.snapshots.dirs.fs(*id)).collect();
        if let Some((name, chain)) = &stack.remote {
            let not_ready = |source| SnapshotError::NotMountable { name: name.clone(), source };
            match self.layers.state(chain) {
                State::Ready => {}
                State::Failed(cause) => return Err(not_ready(cause)),
                State::Coming => {
                    let message = format!("image {} is still being pulled", chain.image_ref);
                    return Err(not_ready(NotReady::new(silk_model::Class::Transient, message)));
                }
            }
            lowers.extend(self.layers.lowers(&chain.diff_ids).map_err(not_ready)?);
        }
        Ok(lowers)
    }

    /// Notes what a snapshot stands on. What lies below it as its user namespace sees it, if it has one; else as it is. What has the owners of that namespace
    /// already stays as it is: a copy that containerd made, with all that is below it, and the files of a container that became a parent.
    fn mapped(&self, snapshot: &Snapshot, stack: &Stack, lowers: Vec<PathBuf>) -> Result<Vec<PathBuf>, SnapshotError> {
        self.snapshots.stands(snapshot.id, self.layers.serves(&lowers));
        let Some(maps) = idmap::maps(&snapshot.labels)? else { return Ok(lowers) };
        let root = idmap::root(&maps);
        let mut others = Vec::new();
        for (at, lower) in lowers.iter().enumerate().take(stack.on_copy.unwrap_or(lowers.len())) {
            let loose = stack.ordinary.get(at).is_some_and(|id| stack.loose.contains(id));
            if !(loose && root != (0, 0) && owner(lower)? == root) {
                others.push(at);
            }
        }
        if others.is_empty() {
            return Ok(lowers);
        }
        let not_mapped = |source| SnapshotError::NotMapped { name: snapshot.name.clone(), source };
        let wanted: Vec<_> = others.iter().map(|at| lowers[*at].clone()).collect();
        let shown = self.layers.mapped(snapshot.id, &wanted, &maps).map_err(not_mapped)?;
        // It may have been removed, or committed, meanwhile.
        if !self.snapshots.get(&snapshot.name).is_ok_and(|now| now.id == snapshot.id && now.kind == snapshot.kind) {
            self.layers.unmapped(snapshot.id);
            return Err(SnapshotError::NotFound(snapshot.name.clone()));
        }
        let mut lowers = lowers;
        others.into_iter().zip(shown).for_each(|(at, shown)| lowers[at] = shown);
        Ok(lowers)
    }

    /// Undoes the making of a snapshot whose caller is told an error.
    fn take_back(&self, snapshot: &Snapshot) {
        if let Err(error) = self.snapshots.remove(&snapshot.name) {
            tracing::warn!(snapshot = snapshot.name, %error, "a snapshot that could not be mounted stays");
        }
        self.layers.unmapped(snapshot.id);
    }
}

/// A header's text.
fn header<'a>(headers: &'a MetadataMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Runs a handler. Without this a panic would end the connection, and with it all of containerd's calls under way.
async fn answer<T>(call: Call, handler: impl Future<Output = Result<T, SnapshotError>>) -> Result<Response<T>, Status> {
    let _called = Called { call, began: Instant::now() };
    let outcome = AssertUnwindSafe(handler).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("a request failed (a bug)");
        Err(SnapshotError::Panicked)
    });
    outcome.map(Response::new).map_err(Status::from)
}

/// A call of containerd's.
struct Called {
    call: Call,
    began: Instant,
}

/// Also when containerd no longer waits for the answer: such calls took longest.
impl Drop for Called {
    fn drop(&mut self) {
        METRICS.calls.of(self.call).took(self.began.elapsed());
    }
}

#[tonic::async_trait]
impl snapshots_server::Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let (headers, _, request) = request.into_parts();
        let span = trace_span!(target: SPANS, "Prepare", snapshot = request.key, parent = request.parent);
        let work = async move {
            let mounts = self.prepare_any(request, &headers).await?;
            Ok(PrepareSnapshotResponse { mounts })
        };
        answer(Call::Prepare, work.instrument(span)).await
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Result<Response<ViewSnapshotResponse>, Status> {
        let ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        answer(Call::View, async move {
            let mounts = self.create(New { kind: Kind::View, key, parent, labels: labels::kept(labels) }).await?;
            Ok(ViewSnapshotResponse { mounts })
        })
        .await
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        let key = request.into_inner().key;
        let span = trace_span!(target: SPANS, "Mounts", snapshot = key);
        let work = self.blocking(move |inner| {
            let snapshot = inner.snapshots.get(&key)?;
            if snapshot.kind == Kind::Committed {
                return Err(SnapshotError::NoMounts(key));
            }
            let stack = inner.snapshots.stack(&snapshot.parent)?;
            let lowers = inner.mapped(&snapshot, &stack, inner.lowers(&stack)?)?;
            Ok(MountsResponse { mounts: mounts(inner.index_off, &inner.snapshots.dirs, &snapshot, &lowers) })
        });
        answer(Call::Mounts, work.instrument(span)).await
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let CommitSnapshotRequest { name, key, labels, parent, .. } = request.into_inner();
        let last = Final { name, key, parent, labels: labels::kept(labels) };
        let work = self.blocking(move |inner| {
            let id = inner.snapshots.commit(last)?;
            inner.layers.unmapped(id);
            Ok(())
        });
        answer(Call::Commit, work).await
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let key = request.into_inner().key;
        let work = self.blocking(move |inner| {
            inner.waits.forget(&key);
            let removed = inner.snapshots.remove(&key)?;
            match removed.remote {
                Some(_) => inner.layers.changed(),
                None => inner.layers.unmapped(removed.id),
            }
            Ok(())
        });
        answer(Call::Remove, work).await
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> Result<Response<StatSnapshotResponse>, Status> {
        let (headers, _, request) = request.into_parts();
        answer(Call::Stat, async move {
            let snapshot = self.stat_any(&request, &headers).await?;
            Ok(StatSnapshotResponse { info: Some(proto::info(&snapshot)) })
        })
        .await
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let UpdateSnapshotRequest { info, update_mask, .. } = request.into_inner();
        let work = self.blocking(move |inner| {
            let Info { name, labels, .. } = info.ok_or(SnapshotError::NoInfo)?;
            let fields = update_mask.map(|mask| mask.paths).unwrap_or_default();
            let snapshot = inner.snapshots.update(&name, &labels, &fields)?;
            Ok(UpdateSnapshotResponse { info: Some(proto::info(&snapshot)) })
        });
        answer(Call::Update, work).await
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send>>;

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Result<Response<Self::ListStream>, Status> {
        let filters = request.into_inner().filters;
        let work = self.blocking(move |inner| Ok(inner.snapshots.list(&Filters::parse(&filters)?)));
        answer(Call::List, async move {
            let found = work.await?;
            let parts: Vec<_> = found.chunks(LIST_PART).map(<[_]>::to_vec).collect();
            let messages = parts.into_iter().map(|part| {
                Ok(ListSnapshotsResponse { info: part.iter().map(|snapshot| proto::info(snapshot)).collect() })
            });
            Ok(Box::pin(tokio_stream::iter(messages)) as Self::ListStream)
        })
        .await
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        let key = request.into_inner().key;
        answer(Call::Usage, async move { Ok(proto::usage(self.usage_of(&key).await?)) }).await
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        let files = self.blocking(|inner| Ok(inner.snapshots.clean_up(CLEANUP)));
        answer(Call::Cleanup, async move {
            let layers = tokio::time::timeout(CLEANUP, self.0.layers.given_back());
            let (files, layers) = tokio::join!(files, layers);
            if !files? || layers.is_err() {
                tracing::debug!("cleanup goes on in the background");
            }
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests;
