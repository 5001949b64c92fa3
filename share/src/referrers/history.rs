//! The artifacts that refer to an image, by revision, the newest first.
//!
//! Anybody who may push can make one that claims to be the newest: so what is older is still there for whoever finds nothing good
//! in what is newer. It is only read then.

use futures::future::join_all;
use silk_model::{Class, Digest};
use silk_registry::{Error, Referrer, Repository, Selector};

use super::artifact::{self, ARTIFACT_TYPE, Artifact};

/// Artifacts of a revision that are read: as many nodes as can be expected to publish within one second.
const MAX_ARTIFACTS: usize = 8;
/// Revisions that are read: each costs a round trip, and a pull waits for them.
const MAX_REVISIONS: usize = 4;

/// The artifacts of an image.
pub(super) struct History<'r> {
    repository: &'r Repository,
    /// By revision, the newest last.
    listed: Vec<Referrer>,
    /// Fetched and not given yet; the newest last.
    fetched: Vec<Artifact>,
    fetches: usize,
    /// The highest revision that any claims to have.
    pub highest: u64,
    /// All that are there.
    pub all: Vec<Digest>,
}

impl<'r> History<'r> {
    /// Asks for the list; whoever `writes` its next revision asks where that goes to.
    pub(super) async fn of(repository: &'r Repository, subject: &Digest, writes: bool) -> Result<Self, Error> {
        let listed = match writes {
            true => repository.own_referrers(subject, ARTIFACT_TYPE).await,
            false => repository.referrers(subject, ARTIFACT_TYPE).await,
        };
        let mut listed = match listed {
            // That nothing can be pushed is told when it is tried.
            Err(Error::NoHost { .. }) if writes => Vec::new(),
            listed => listed?,
        };
        listed.sort_by_key(|referrer| (artifact::listed_revision(referrer), std::cmp::Reverse(referrer.digest)));
        let highest = listed.last().map(artifact::listed_revision).unwrap_or_default();
        let all = listed.iter().map(|referrer| referrer.digest).collect();
        Ok(Self { repository, listed, fetched: Vec::new(), fetches: 0, highest, all })
    }

    /// The artifacts of the next older revision, which are several where nodes wrote at the same time; none when enough were
    /// read. One that is damaged or gone counts as not there.
    pub(super) async fn next(&mut self) -> Result<Vec<Artifact>, Error> {
        while self.fetched.is_empty() && self.fetches < MAX_REVISIONS && !self.listed.is_empty() {
            self.fetch().await?;
        }
        let newest = self.fetched.last().map(|artifact| artifact.revision);
        let older = self.fetched.partition_point(|artifact| Some(artifact.revision) != newest);
        Ok(self.fetched.split_off(older))
    }

    async fn fetch(&mut self) -> Result<(), Error> {
        // Not all registries list annotations: then the manifests themselves have to say it.
        let newest = self.listed.last().map(artifact::listed_revision);
        let older = self.listed.partition_point(|referrer| Some(artifact::listed_revision(referrer)) != newest);
        let manifests = self.listed.split_off(older).into_iter().rev().take(MAX_ARTIFACTS).map(|referrer| {
            let repository = self.repository;
            async move {
                match repository.manifest(&Selector::Digest(referrer.digest), &[&referrer.media_type]).await {
                    Ok(manifest) => Ok(Artifact::parse(&manifest.bytes)),
                    Err(error) if matches!(error.class(), Class::NotFound | Class::Corrupt) => Ok(None),
                    Err(error) => Err(error),
                }
            }
        });
        let manifests: Result<Vec<_>, _> = join_all(manifests).await.into_iter().collect();
        self.fetched = manifests?.into_iter().flatten().collect();
        self.fetched.sort_by_key(|artifact| artifact.revision);
        let highest = self.fetched.last().map(|artifact| artifact.revision).unwrap_or_default();
        self.highest = self.highest.max(highest);
        self.fetches += 1;
        Ok(())
    }
}
