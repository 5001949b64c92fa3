//! The operator's service: translates what the rooms know into messages.

use std::{pin::Pin, sync::Arc, time::SystemTime};

use silk_api::control::{
    Backend, ExplainRequest, ExplainResponse, FsckReport, FsckRequest, GcRequest, GcResponse, Image, Layer, Profile,
    ProfileRequest, PutProfileRequest, StatusRequest, StatusResponse, TimingRequest, TimingResponse,
    control_server::Control,
};
use silk_model::{Digest, VERSION};
use silk_mount::{Rung, Variant};
use silk_pull::{Arrived, ImageStatus, LayerStatus};
use silk_share::{BackendStatus, State};
use silk_store::{Finding, Store};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{
    janitor::Janitor,
    node::{Data, Node},
    node_message::node_message,
    profiles, timing,
    views::died,
};

/// Serves `silk.control.v1.Control`.
#[derive(Debug, Clone)]
pub struct Service(Node);

impl Service {
    /// Tells of this node.
    pub fn new(node: Node) -> Self {
        Self(node)
    }

    fn backends(&self) -> Vec<Backend> {
        self.0.share.status().into_iter().map(backend).collect()
    }

    fn images(&self, only: &str, unfinished: bool) -> Vec<Image> {
        let only = (!only.is_empty()).then_some(only);
        let users = self.0.janitor.snapshots.in_use();
        let images = self.0.janitor.puller.status(only);
        let wanted = |image: &ImageStatus| !unfinished || is_unfinished(image);
        images.into_iter().filter(wanted).map(|image| self.image(image, &users)).collect()
    }

    fn image(&self, status: ImageStatus, users: &std::collections::HashMap<Digest, u32>) -> Image {
        let diff_ids: Vec<_> = status.layers.iter().map(|l| l.spec.diff_id).collect();
        let layers = status.layers.into_iter().enumerate().map(|(i, layer)| {
            let mounted = self.0.janitor.views.views.shown(&diff_ids[..=i]);
            self.layer(layer, mounted, users)
        });
        Image {
            reference: status.reference,
            manifest_digest: status.manifest.to_string(),
            state: status.state.to_owned(),
            error: status.error.unwrap_or_default(),
            layers: layers.collect(),
            seconds: status.time.as_secs_f64(),
            namespace: status.namespace,
            waiting: status.waiting,
        }
    }

    fn layer(
        &self,
        status: LayerStatus,
        mounted: Option<(Variant, std::path::PathBuf)>,
        users: &std::collections::HashMap<Digest, u32>,
    ) -> Layer {
        let whole = status.state == "whole";
        let (variant, mountpoint) = mounted.unzip();
        let Arrived { demand, profile, background } = status.arrived;
        Layer {
            diff_id: status.spec.diff_id.to_string(),
            blob_digest: status.spec.blob.to_string(),
            media_type: status.spec.media_type,
            state: status.state.to_owned(),
            names: status.record.is_some(),
            proved: whole,
            durable: status.record.as_ref().is_some_and(|r| r.durable),
            names_from: status.record.map(|r| r.from).unwrap_or_default(),
            blob_size: status.spec.size,
            blob_received: status.received,
            data_bytes: status.written,
            source: status.source,
            rate: status.rate,
            error: status.trouble.unwrap_or_default(),
            mountpoint: mountpoint.map(|p| p.display().to_string()).unwrap_or_default(),
            variant: variant.map(|v| variant_name(&v).to_owned()).unwrap_or_default(),
            snapshots: users.get(&status.spec.diff_id).copied().unwrap_or(0),
            demand_bytes: demand,
            profile_bytes: profile,
            background_bytes: background,
            reads_waiting: status.reads_waiting,
        }
    }
}

fn backend(status: BackendStatus) -> Backend {
    let seconds = |since: SystemTime| since.elapsed().unwrap_or_default().as_secs_f64();
    let BackendStatus { name, state, hits, misses, refused, published, dropped, trouble } = status;
    let (up, since, why) = match state {
        State::Up { since } => (true, since, String::new()),
        State::Away { since, why } => (false, since, why),
    };
    let (trouble_seconds, trouble) = trouble.map(|(at, what)| (seconds(at), what)).unwrap_or_default();
    let seconds = seconds(since);
    Backend { name, up, seconds, why, hits, misses, refused, published, dropped, trouble, trouble_seconds }
}

/// The layer whose diff ID is, or starts with, `name`; of those that have data, whether an image uses them or not.
fn named(store: &Store, name: &str) -> Result<Digest, Status> {
    if let Ok(digest) = name.parse() {
        return Ok(digest);
    }
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let all = store.list().into_iter().filter(|(_, record)| record.whole).map(|(id, _)| id);
    // Fewer digits than this are a slip.
    let found: Vec<Digest> = all.filter(|id| hex.len() >= 4 && id.hex().starts_with(hex)).collect();
    match found[..] {
        [one] => Ok(one),
        _ => Err(Status::invalid_argument(format!(
            "{} whole layers have a diff ID that starts with {name}",
            found.len()
        ))),
    }
}

/// Does it arrive, or did it fail to?
fn is_unfinished(image: &ImageStatus) -> bool {
    matches!(image.state, "pulling" | "failed") || image.layers.iter().any(|layer| layer.state == "filling")
}

fn variant_name(variant: &Variant) -> &'static str {
    match variant {
        Variant::Shared => "shared",
        Variant::Base => "base",
        Variant::Chain(_) => "chain",
    }
}

fn rung_name(rung: Rung) -> &'static str {
    match rung {
        Rung::File => "file",
        Rung::Loop => "loop",
        Rung::Tree => "tree",
        Rung::None => "none",
    }
}

/// The sentence of `silk explain` for a layer.
fn sentence(layer: &Layer, rung: Rung) -> String {
    let place = match rung {
        Rung::File => "EROFS from files",
        Rung::Loop => "EROFS over loop devices",
        Rung::Tree => "silkd through FUSE",
        Rung::None => "nothing",
    };
    let how = match (layer.state.as_str(), layer.variant.as_str()) {
        ("whole", "") => "whole and proved; mounted when a container needs it".to_owned(),
        ("whole", "shared") => format!("whole and proved; shown by {place}, one mount for every image that has it"),
        ("whole", "base") => {
            format!(
                "whole and proved; shown by {place}, a mount for images based on it: it has whiteouts that apply to itself"
            )
        }
        ("whole", _) => format!(
            "whole and proved; shown by {place}, a mount for this parent chain: it has directories or links whose meaning \
             lies in the layers below"
        ),
        ("filling", _) => {
            let Layer { demand_bytes, profile_bytes, background_bytes, .. } = layer;
            format!(
                "served by silkd through FUSE while its bytes arrive, {demand_bytes} because they were read, \
                 {profile_bytes} because a start is known to touch them and {background_bytes} before; shown by {place}"
            )
        }
        ("pulling", _) => format!("on its way from {}", layer.source),
        ("waiting", _) => "waits for its turn".to_owned(),
        (state, _) => state.to_owned(),
    };
    let known = match layer.names_from.as_str() {
        _ if !layer.names => String::new(),
        "" => "; names and index: learned or proved on this node".to_owned(),
        from => format!("; names and index: from {from}"),
    };
    let trouble = match layer.error.as_str() {
        "" => String::new(),
        trouble => format!("; now: {trouble}"),
    };
    let Layer { blob_received, blob_size, data_bytes, .. } = layer;
    format!("{how}{known} ({blob_received} of {blob_size} bytes, {data_bytes} bytes of tar){trouble}")
}

fn verdict(image: &Image, rung: Rung) -> String {
    match image.state.as_str() {
        "refused" => format!("left to containerd: {}", image.error),
        "failed" => format!("not here: {}", image.error),
        "pulling" => {
            "on its way: its pull returns when each layer is whole and proved, or known and mounted".to_owned()
        }
        "ready" if image.layers.iter().all(|l| l.proved) => match rung {
            Rung::File | Rung::Loop => {
                "here: every layer is whole and proved; containers that start now are served by the kernel alone"
                    .to_owned()
            }
            Rung::Tree | Rung::None => "here: every layer is whole and proved, and served by silkd".to_owned(),
        },
        "ready" => "can run: layers that are not whole are served by silkd while their bytes arrive".to_owned(),
        _ => "known from before a restart; pulled again when containerd asks for it".to_owned(),
    }
}

/// All images of one name: after the first, the others. A name that was pushed again may have several here.
fn explained(images: Vec<Image>, rung: Rung) -> Option<ExplainResponse> {
    let mut told = images.into_iter().map(|image| ExplainResponse {
        verdict: verdict(&image, rung),
        layers: image.layers.iter().map(|layer| sentence(layer, rung)).collect(),
        image: Some(image),
        ..ExplainResponse::default()
    });
    let first = told.next()?;
    Some(ExplainResponse { others: told.collect(), ..first })
}

#[tonic::async_trait]
impl Control for Service {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let store = &self.0.janitor.views.store;
        let mounts = self.0.janitor.views.views.mounts();
        let data = self.0.data();
        let Data { used, unused, .. } = data;
        Ok(Response::new(StatusResponse {
            version: VERSION.to_owned(),
            rung: rung_name(mounts.rung()).to_owned(),
            rung_reason: mounts.reason().to_owned(),
            root: store.root().display().to_string(),
            layer_bytes: used + unused,
            unused_bytes: unused,
            quota_bytes: store.config().cache_bytes,
            images: self.images(&request.get_ref().image, request.get_ref().unfinished),
            backends: self.backends(),
            node: Some(node_message(&self.0, &data)),
        }))
    }

    async fn timing(&self, request: Request<TimingRequest>) -> Result<Response<TimingResponse>, Status> {
        let images = timing::of(&self.0.janitor.puller, &request.get_ref().image);
        Ok(Response::new(TimingResponse { images }))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        let name = &request.get_ref().image;
        let images = self.images(name, false);
        if images.is_empty() {
            return Err(Status::not_found(format!(
                "silk has not seen {name}: it was pulled without silk or without the labels a remote snapshotter needs \
                 (CRI: disable_snapshot_annotations = false), or left to containerd before silkd's last start, or all its layers were \
                 here already, from another image"
            )));
        }
        let rung = self.0.janitor.views.views.mounts().rung();
        let told = explained(images, rung).unwrap_or_default();
        Ok(Response::new(ExplainResponse { backends: self.backends(), ..told }))
    }

    type FsckStream = Pin<Box<dyn Stream<Item = Result<FsckReport, Status>> + Send>>;

    async fn fsck(&self, request: Request<FsckRequest>) -> Result<Response<Self::FsckStream>, Status> {
        let store = &self.0.janitor.views.store;
        let all = request.get_ref().diff_id.is_empty();
        let ids: Vec<Digest> = match request.get_ref().diff_id.as_str() {
            "" => store.list().into_iter().filter(|(_, r)| r.whole).map(|(id, _)| id).collect(),
            one => vec![named(store, one)?],
        };
        let (to, reports) = tokio::sync::mpsc::channel(1);
        let janitor = Arc::clone(&self.0.janitor);
        tokio::task::spawn_blocking(move || {
            for id in ids {
                let report = prove(&janitor, &id);
                if all && report.as_ref().is_err_and(|status| status.code() == tonic::Code::NotFound) {
                    continue; // evicted meanwhile
                }
                // Here, and not where the report is sent on: who asked may be gone by then, and the layer is.
                if report.as_ref().is_ok_and(|report| !report.ok) {
                    janitor.refetch();
                }
                if to.blocking_send(report).is_err() {
                    break;
                }
            }
            janitor.wake.notify_one();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(reports))))
    }

    async fn gc(&self, request: Request<GcRequest>) -> Result<Response<GcResponse>, Status> {
        let janitor = Arc::clone(&self.0.janitor);
        let keep = request.get_ref().keep_bytes.unwrap_or(janitor.views.store.config().cache_bytes);
        let alone = janitor.alone().await;
        let gone = tokio::task::spawn_blocking(move || {
            let _alone = alone;
            janitor.forget_images()?;
            let used = janitor.used();
            let unused: u64 = janitor.views.store.unused(|id| used.contains(id)).iter().map(|u| u.bytes).sum();
            janitor.evict(unused.saturating_sub(keep))
        })
        .await
        .map_err(|e| Status::internal(died(&e).1))?
        .map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(GcResponse { layers: gone.layers, bytes: gone.bytes }))
    }

    async fn get_profile(&self, request: Request<ProfileRequest>) -> Result<Response<Profile>, Status> {
        profiles::get(&self.0.janitor.puller, &request.get_ref().image).await.map(Response::new)
    }

    async fn put_profile(&self, request: Request<PutProfileRequest>) -> Result<Response<Profile>, Status> {
        let PutProfileRequest { image, profile } = request.get_ref();
        profiles::put(&self.0.janitor.puller, image, profile).await.map(Response::new)
    }

    async fn drop_profile(&self, request: Request<ProfileRequest>) -> Result<Response<Profile>, Status> {
        profiles::drop(&self.0.janitor.puller, &request.get_ref().image).await.map(Response::new)
    }
}

/// Proves one layer; a bad one becomes a hole. Blocks.
fn prove(janitor: &Janitor, diff_id: &Digest) -> Result<FsckReport, Status> {
    let store = &janitor.views.store;
    let proof = store.prove(diff_id).map_err(|e| match e.class() {
        silk_model::Class::NotFound => Status::not_found(e.to_string()),
        _ => Status::internal(format!("layer {diff_id}: {e}")),
    })?;
    let found = match &proof.finding {
        Finding::Good => None,
        Finding::Bad(found) => Some(format!("sha256(data) is {found}")),
        Finding::Unreadable(why) => Some(why.clone()),
    };
    let detail = match found {
        None => "sha256(data) is the diff ID".to_owned(),
        Some(found) => {
            let dropped = janitor.views.drop_damaged(diff_id);
            dropped.map_err(|e| Status::internal(format!("layer {diff_id} is damaged, and: {e}")))?;
            tracing::error!(%diff_id, found, "fsck: a layer is damaged; it was dropped and is fetched again");
            format!("{found}: the data was dropped and is fetched again")
        }
    };
    Ok(FsckReport { diff_id: diff_id.to_string(), ok: proof.finding == Finding::Good, detail, bytes: proof.bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_images_of_a_name_are_explained() {
        let image = |state: &str| Image { state: state.to_owned(), error: "gone".to_owned(), ..Image::default() };
        let told = explained(vec![image("ready"), image("failed"), image("idle")], Rung::File).unwrap();
        assert!(told.verdict.starts_with("here: "));
        let others: Vec<_> = told.others.iter().map(|other| other.verdict.as_str()).collect();
        assert_eq!(others[0], "not here: gone");
        assert!(others.len() == 2 && others[1].starts_with("known from before"), "{others:?}");
        assert_eq!(explained(vec![], Rung::File), None);
    }
}
