//! The operator's calls about start profiles.

use std::sync::Arc;

use silk_api::control::{Profile as Message, Run, Start};
use silk_layer::profile::{Profile, decode, encode};
use silk_model::Digest;
use silk_pull::Puller;
use tonic::Status;

/// The profile of an image.
pub async fn get(puller: &Arc<Puller>, image: &str) -> Result<Message, Status> {
    let (manifest, _) = find(puller, image)?;
    let profile = puller.profile(&manifest).await.map_err(|e| Status::internal(e.to_string()))?;
    if profile.starts.is_empty() {
        return Err(Status::not_found(format!(
            "no start profile of {image} is known: a container of it teaches one when it is the first to read its layers"
        )));
    }
    Ok(message(&manifest, &profile))
}

/// Joins a profile with the image's.
pub async fn put(puller: &Arc<Puller>, image: &str, profile: &[u8]) -> Result<Message, Status> {
    let (manifest, reference) = find(puller, image)?;
    let profile = decode(profile).map_err(|e| Status::invalid_argument(e.to_string()))?;
    let kept = puller.import_profile(&manifest, &reference, profile).await;
    Ok(message(&manifest, &kept.map_err(|e| Status::internal(e.to_string()))?))
}

/// Forgets the profile of an image; the answer has no starts.
pub async fn drop(puller: &Arc<Puller>, image: &str) -> Result<Message, Status> {
    let (manifest, reference) = find(puller, image)?;
    let known = puller.drop_profile(&manifest, &reference).await.map_err(|e| Status::internal(e.to_string()))?;
    if !known {
        return Err(Status::not_found(format!("no start profile of {image} is known")));
    }
    Ok(message(&manifest, &Profile::default()))
}

/// An image's manifest and reference. A digest is believed: a profile may be kept before its image is pulled.
fn find(puller: &Puller, image: &str) -> Result<(Digest, String), Status> {
    let known = puller.status(Some(image)).into_iter().next();
    match (known, image.parse()) {
        (Some(known), _) => Ok((known.manifest, known.reference)),
        (None, Ok(manifest)) => Ok((manifest, String::new())),
        (None, Err(_)) => {
            Err(Status::not_found(format!("silk has not seen {image}: name it by the digest of its manifest")))
        }
    }
}

fn message(manifest: &Digest, profile: &Profile) -> Message {
    let starts = profile.starts.iter().map(|start| Start {
        entrypoint: start.entrypoint.clone(),
        count: start.count,
        runs: start
            .runs
            .iter()
            .map(|run| Run {
                diff_id: run.layer.to_string(),
                offset: run.bytes().start,
                length: run.bytes().end - run.bytes().start,
                unseen: run.unseen.into(),
            })
            .collect(),
    });
    Message { manifest_digest: manifest.to_string(), starts: starts.collect(), encoded: encode(profile) }
}
