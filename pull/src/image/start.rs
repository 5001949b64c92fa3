//! Start profiles of images: taken in from others, fetched by, learned from starts, told to others. Nothing here is waited for
//! by a pull, and nothing that fails here makes one fail.

use std::sync::Arc;

use bytes::Bytes;
use silk_layer::profile::{Profile, ProfileError, Seen, VERSION, decode, encode};
use silk_model::{
    Digest,
    metrics::{Hit, Lie, METRICS},
};
use silk_registry::{Reference, Repository};
use silk_share::{Found, Image, Join};
use silk_store::StoreError;

use super::Puller;
use crate::{
    ImageSpec,
    lazy::{Starting, Whose},
};

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
                // Others' background does not wait for a slow peer, nor does a pull for all who may know one.
                drop(starting);
                let (asked, sibling) =
                    tokio::join!(puller.ask_profile(&image), puller.sibling_profile(&spec.reference));
                (profile, whose) = match asked.starts.is_empty() && !sibling.starts.is_empty() {
                    true => (sibling, Whose::Siblings),
                    false => (asked, whose),
                };
                starting = puller.lazies.starting();
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

    /// The profile of the image of the same repository that was started last, here or elsewhere: of a new version of an image most layers
    /// are the old one's, and its starts touch in them what they touched before.
    async fn sibling_profile(self: &Arc<Self>, reference: &str) -> Profile {
        let Some(image) = repository_of(reference) else { return Profile::default() };
        let theirs = self.ask_profile(&image).await;
        // Not both: what is kept here may be of an older version.
        if theirs.starts.is_empty() { self.kept(&image.manifest).await } else { theirs }
    }

    /// Whatever of the repository is started next without being known starts by this profile.
    async fn tell_siblings(self: &Arc<Self>, reference: &str, profile: Profile) {
        let Some(image) = repository_of(reference) else { return };
        let told = encode(&profile).into();
        self.keep(image.manifest, |kept| *kept = profile).await;
        self.seams.share.publish_profile(&image, told);
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
            self.tell_siblings(reference, profile.clone()).await;
            self.seams.share.join_profile(&image, &joining(profile, joined));
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
        self.tell_siblings(reference, kept.clone()).await;
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
        // It may be a copy of this one, and is learned again with the next start.
        self.tell_siblings(reference, Profile::default()).await;
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

/// Stands for a repository among images: what the digest is of is no manifest. Where the image lies is left out, since nothing refers to
/// what is not there.
fn repository_of(reference: &str) -> Option<Image> {
    let reference: Reference = reference.parse().ok()?;
    let name = format!("repository {}/{}", reference.host(), reference.path());
    Some(Image { repository: None, manifest: Digest::of(name.as_bytes()) })
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
