//! The operator's calls about start profiles.

use std::sync::Arc;

use silk_api::control::{Profile as Message, Run, Start};
use silk_layer::profile::{Profile, decode, encode};
use silk_model::Digest;
use silk_pull::{ImageStatus, Puller};
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

fn find(puller: &Puller, image: &str) -> Result<(Digest, String), Status> {
    choose(puller.status(Some(image)), image)
}

/// An image's manifest and reference, of those that are `known` by the name. A digest is believed: a profile may be kept before its
/// image is pulled. A name that was pushed again may have several images here, as long as containers use the older ones: which of
/// them is meant only the operator knows.
fn choose(mut known: Vec<ImageStatus>, image: &str) -> Result<(Digest, String), Status> {
    // Nothing is learned of what containerd unpacked.
    if known.iter().any(|known| known.state != "refused") {
        known.retain(|known| known.state != "refused");
    }
    // Sorted by reference, and of one reference by manifest.
    known.dedup_by_key(|known| known.manifest);
    match (known.as_slice(), image.parse()) {
        ([one], _) => Ok((one.manifest, one.reference.clone())),
        ([], Ok(manifest)) => Ok((manifest, String::new())),
        ([], Err(_)) => {
            Err(Status::not_found(format!("silk has not seen {image}: name it by the digest of its manifest")))
        }
        (several, _) => {
            let digests: Vec<_> = several.iter().map(|known| format!("{} ({})", known.manifest, known.state)).collect();
            Err(Status::failed_precondition(format!(
                "{image} was pushed again, and {} images are known by that name: {}. Name one by its digest",
                several.len(),
                digests.join(", ")
            )))
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn known(of: &str, state: &'static str) -> ImageStatus {
        ImageStatus {
            namespace: "default".to_owned(),
            reference: "r.example/app:1".to_owned(),
            manifest: Digest::of(of.as_bytes()),
            state,
            error: None,
            time: Duration::ZERO,
            waiting: 0,
            layers: vec![],
        }
    }

    #[test]
    fn a_name_of_several_images_is_refused_and_their_digests_are_told() {
        let (name, of) = ("r.example/app:1", |of: &str| Digest::of(of.as_bytes()));
        let found =
            |known| choose(known, name).map(|(manifest, _)| manifest).map_err(|status| status.message().to_owned());
        assert_eq!(found(vec![known("a", "ready")]), Ok(of("a")));
        let said = found(vec![known("a", "ready"), known("b", "idle")]).unwrap_err();
        assert!(said.contains(&format!("{} (ready), {} (idle)", of("a"), of("b"))), "{said}");
        assert_eq!(found(vec![known("a", "refused"), known("b", "ready")]), Ok(of("b")));
        assert_eq!(found(vec![known("a", "refused")]), Ok(of("a")));
        // One image under two names.
        let again = ImageStatus { reference: "r.example/app:2".to_owned(), ..known("a", "ready") };
        let digest = of("a").to_string();
        assert_eq!(choose(vec![known("a", "ready"), again], &digest).unwrap(), (of("a"), name.to_owned()));
        assert_eq!(choose(vec![], &digest).unwrap(), (of("a"), String::new()));
        assert!(found(vec![]).unwrap_err().contains("has not seen"));
    }
}
