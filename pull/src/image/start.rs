//! Start profiles of images: taken in from others, fetched by, learned from starts, told to others. Nothing here is waited for
//! by a pull, and nothing that fails here makes one fail.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use silk_layer::profile::{Profile, ProfileError, Seen, VERSION, decode, encode};
use silk_model::{
    Digest,
    metrics::{Hit, Lie, METRICS},
};
use silk_registry::{Reference, Repository};
use silk_share::{Found, Image, Join};
use silk_store::StoreError;
use tokio::time::timeout;

use super::Puller;
use crate::{
    ImageSpec,
    lazy::{Starting, Whose},
};

/// The background waits so long for what others know of starts: Redis and registries nearby answer within it, and what it begins in their place (six
/// ranges of 4 MiB, which no start can stop) takes four times as long at 1 Gbit/s.
const PATIENCE: Duration = Duration::from_millis(50);

impl Puller {
    /// Fetches what starts of the image touch, in the background. `found` is what others know, if they were asked.
    pub(super) fn fetch_start(
        self: &Arc<Self>,
        spec: &Arc<ImageSpec>,
        repository: &Repository,
        found: Option<Vec<Found<Bytes>>>,
        starting: Starting,
    ) {
        let (puller, spec) = (Arc::clone(self), Arc::clone(spec));
        let image = Image { repository: Some(repository.clone()), manifest: spec.manifest };
        tokio::spawn(async move {
            let theirs = found.as_ref().map(|found| puller.believed(&image, found)).unwrap_or_default();
            let mut profile = puller.kept(&spec.manifest).await;
            profile.join(&theirs);
            let (mut starting, mut whose) = (starting, Whose::Own);
            if profile.starts.is_empty() {
                let mut sibling = puller.kept_of_repository(&spec).await;
                // A pull does not wait for all who may know one.
                if !puller.seams.share.is_alone() {
                    let asked = async { tokio::join!(puller.ask_profile(&image), puller.told_of_repository(&spec)) };
                    let mut asked = pin!(asked);
                    let told;
                    (profile, told) = match timeout(PATIENCE, &mut asked).await {
                        Ok(told) => told,
                        Err(_) => {
                            drop(starting);
                            let told = asked.await;
                            starting = puller.lazies.starting();
                            told
                        }
                    };
                    sibling = told.or(sibling);
                }
                if let Some(sibling) = sibling.filter(|_| profile.starts.is_empty()) {
                    (profile, whose) = (sibling, Whose::Siblings);
                }
            }
            let known = whose == Whose::Own && !profile.starts.is_empty();
            METRICS.profiles.of(if known { Hit::Hit } else { Hit::Miss }).one();
            let show = Arc::clone(&puller.seams.show);
            puller.lazies.fetch_start(&profile, &spec.diff_ids(), starting, show, whose).await;
            if known {
                puller.keep(spec.manifest, move |kept| kept.join(&profile)).await;
            }
        });
    }

    /// The profile that an image of the same repository got last on this node, if it says anything of this one's layers: of a new version of
    /// an image most layers are the old one's, and its starts touch in them what they touched before.
    async fn kept_of_repository(self: &Arc<Self>, spec: &ImageSpec) -> Option<Profile> {
        let profile = self.kept(&repository_of(&spec.reference)?.manifest).await;
        Some(profile).filter(|profile| names(profile, spec))
    }

    /// The same, as other nodes tell it.
    async fn told_of_repository(&self, spec: &ImageSpec) -> Option<Profile> {
        let profile = self.ask_profile(&repository_of(&spec.reference)?).await;
        Some(profile).filter(|profile| names(profile, spec))
    }

    /// Whatever of the repository is started next without being known starts by this profile.
    async fn tell_repository(self: &Arc<Self>, reference: &str, profile: Profile) {
        let Some(image) = repository_of(reference) else { return };
        let told = Bytes::from(encode(&profile));
        self.keep(image.manifest, |kept| *kept = profile).await;
        let replace = move |there: &[Found<Bytes>]| {
            // A newer silk knows more than this one can tell.
            let is_newer = |found: &Found<Bytes>| decode(&found.value).is_err_and(|error| is_newer(&error));
            (!there.iter().any(is_newer)).then(|| told.clone())
        };
        self.seams.share.join_profile(&image, &(Arc::new(replace) as Join));
    }

    /// What others know of an image's starts.
    async fn ask_profile(&self, image: &Image) -> Profile {
        let found = self.seams.share.image(image, &[]).await.profiles;
        self.believed(image, &found)
    }

    /// What makes sense of what others say. Whoever says other things is not believed again, but for a newer silk.
    fn believed(&self, image: &Image, found: &[Found<Bytes>]) -> Profile {
        let mut profile = Profile::default();
        for found in found {
            match decode(&found.value) {
                Ok(theirs) => profile.join(&theirs),
                Err(error) if is_newer(&error) => {
                    tracing::info!(from = found.origin(), %error, "a profile is not used")
                }
                Err(error) => {
                    METRICS.lies.of(Lie::Profile).one();
                    self.seams.share.distrust(image, found, &error.to_string());
                }
            }
        }
        profile
    }

    /// Learns from a start of the image's container, and tells others.
    pub async fn learn_start(self: &Arc<Self>, manifest: &Digest, reference: &str, seen: Seen) {
        if seen.touches.is_empty() {
            return;
        }
        tracing::info!(
            image = reference,
            entrypoint = seen.entrypoint,
            ranges = seen.touches.len(),
            "a start was seen"
        );
        let image = Image { repository: self.repository(reference).await.ok(), manifest: *manifest };
        let found = self.seams.share.image(&image, &[]).await.profiles;
        let (theirs, joined) = (self.believed(&image, &found), found.iter().map(|found| found.tag).collect());
        let learned = self.keep(*manifest, move |kept| {
            kept.join(&theirs);
            kept.learn(&seen);
        });
        if let Some(profile) = learned.await {
            self.seams.share.join_profile(&image, &joining(profile.clone(), joined));
            self.tell_repository(reference, profile).await;
        }
    }

    /// Joins a profile from elsewhere with the image's own, and tells others.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn import_profile(
        self: &Arc<Self>,
        manifest: &Digest,
        reference: &str,
        profile: Profile,
    ) -> Result<Profile, StoreError> {
        let puller = Arc::clone(self);
        let manifest = *manifest;
        let kept = blocking(move || puller.profiles.change(&manifest, |kept| kept.join(&profile))).await?;
        let image = Image { repository: self.repository(reference).await.ok(), manifest };
        self.seams.share.join_profile(&image, &joining(kept.clone(), Vec::new()));
        Ok(kept)
    }

    /// Forgets what starts of an image touch, here and where it was told. Says whether anything was known here.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn drop_profile(self: &Arc<Self>, manifest: &Digest, reference: &str) -> Result<bool, StoreError> {
        let (puller, manifest) = (Arc::clone(self), *manifest);
        let known = blocking(move || {
            let known = !puller.profiles.get(&manifest)?.starts.is_empty();
            puller.profiles.change(&manifest, |kept| kept.starts.clear())?;
            Ok(known)
        });
        let known = known.await?;
        if known {
            // It may be a copy of this one, and is learned again with the next start.
            self.tell_repository(reference, Profile::default()).await;
        }
        let image = Image { repository: self.repository(reference).await.ok(), manifest };
        self.seams.share.publish_profile(&image, encode(&Profile::default()).into());
        Ok(known)
    }

    /// What starts of an image touch.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn profile(self: &Arc<Self>, manifest: &Digest) -> Result<Profile, StoreError> {
        let (puller, manifest) = (Arc::clone(self), *manifest);
        blocking(move || puller.profiles.get(&manifest)).await
    }

    async fn kept(self: &Arc<Self>, manifest: &Digest) -> Profile {
        self.profile(manifest).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "a start profile cannot be read");
            Profile::default()
        })
    }

    async fn keep(
        self: &Arc<Self>,
        manifest: Digest,
        change: impl FnOnce(&mut Profile) + Send + 'static,
    ) -> Option<Profile> {
        let puller = Arc::clone(self);
        let kept = blocking(move || puller.profiles.change(&manifest, change)).await;
        kept.inspect_err(|error| tracing::warn!(%error, "a start profile is not kept")).ok()
    }
}

/// Stands for a repository among images, on nodes of this kind of processor: images for others have other layers. What the digest is of is no
/// manifest, so nothing could refer to it: its registry is not to be asked.
fn repository_of(reference: &str) -> Option<Image> {
    let reference: Reference = reference.parse().ok()?;
    let name = format!("repository {} {}/{}", std::env::consts::ARCH, reference.host(), reference.path());
    Some(Image { repository: None, manifest: Digest::of(name.as_bytes()) })
}

/// Does it say anything of this image's layers?
fn names(profile: &Profile, spec: &ImageSpec) -> bool {
    profile.runs().any(|run| spec.layers.iter().any(|layer| layer.diff_id == run.layer))
}

/// Joins `profile` with what is known elsewhere, but for what it has taken in already: of that it may have forgotten a part.
fn joining(profile: Profile, joined: Vec<Digest>) -> Join {
    Arc::new(move |there| {
        let mut all = profile.clone();
        for found in there {
            match decode(&found.value) {
                Ok(_) if joined.contains(&found.tag) => {}
                Ok(theirs) => all.join(&theirs),
                // It can make nothing of ours, and has learned more.
                Err(error) if is_newer(&error) => return None,
                Err(_) => {}
            }
        }
        Some(encode(&all).into())
    })
}

fn is_newer(error: &ProfileError) -> bool {
    matches!(error, ProfileError::Version(version) if *version > VERSION)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
