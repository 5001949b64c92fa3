//! Other images that have the same layers, to be tried where an image's own blobs do not arrive.
//!
//! containerd asks for nothing new when it knows an image's chain IDs already: somebody who pushes a broken image again, with
//! other blobs for the same diff IDs, would have it pulled from the broken ones until containerd's garbage collection has
//! run. But the manifest of that pull is in containerd's content store, held by the pull's lease, and says where its blobs are.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
};

use silk_model::Digest;
use silk_registry::Reference;

use super::{Caller, Image, Puller, lock};
use crate::{Held, ImageSpec, resolve};

/// Other images remembered for one: whoever pushes one again and again is looking at the latest.
const OTHERS: usize = 4;
/// Documents that are looked at. A pull holds an index, a manifest and a configuration; all pulls of a node, a few dozen.
const DOCUMENTS: usize = 64;
/// The largest document looked at: a manifest of 1000 layers has 250 KB.
const DOCUMENT: u64 = 1 << 20;
/// Repositories of one manifest that are tried.
const REPOSITORIES: usize = 2;

impl Image {
    /// The images that a layer of this one can be had from, in the order to try: the latest pushed first, this one last.
    pub(super) fn sources(&self, spec: &Arc<ImageSpec>) -> Vec<Arc<ImageSpec>> {
        let mut sources = lock(&self.others).clone();
        sources.push(Arc::clone(spec));
        sources
    }
}

impl Puller {
    /// Looks among what the caller's pull holds in containerd for images that have layers which this one misses. Says
    /// whether there is one that was not known.
    pub(super) async fn look_for_others(&self, image: &Image, spec: &Arc<ImageSpec>, caller: &Caller) -> bool {
        let layers = spec.layers.iter().map(|l| l.diff_id);
        let missing: HashSet<_> = layers.filter(|id| !self.store.whole(id)).collect();
        if missing.is_empty() {
            return false;
        }
        let known = image.sources(spec);
        let mut found = Vec::new();
        for held in &self.documents(&caller.namespace, caller.lease.as_deref()).await {
            for reference in references(held, &spec.reference) {
                if known.iter().any(|k| k.manifest == held.digest && k.reference == reference) {
                    continue;
                }
                // Most documents are no manifests.
                let other = resolve::resolve(&self.seams.contents, &caller.namespace, &reference, &held.digest).await;
                found.extend(other.ok().filter(|o| o.layers.iter().any(|l| missing.contains(&l.diff_id))));
            }
        }
        found.truncate(OTHERS);
        for other in &found {
            tracing::info!(image = spec.reference, from = other.reference, manifest = %other.manifest, "layers can be had from another image");
        }
        let new = !found.is_empty();
        let mut others = lock(&image.others);
        others.splice(..0, found.into_iter().map(Arc::new));
        others.truncate(OTHERS);
        image.untried.fetch_or(new, Ordering::Relaxed);
        new
    }

    /// The leases of `namespace` that hold an image of exactly these layers: its pull is under way.
    pub async fn leases_of(&self, namespace: &str, diff_ids: &[Digest]) -> Vec<String> {
        let mut leases = Vec::new();
        for held in self.documents(namespace, None).await {
            let image = resolve::resolve(&self.seams.contents, namespace, "", &held.digest).await;
            if image.is_ok_and(|image| image.diff_ids() == diff_ids) {
                leases.extend(held.leases);
            }
        }
        leases
    }

    /// What is held and small enough to be a manifest.
    async fn documents(&self, namespace: &str, lease: Option<&str>) -> Vec<Held> {
        let mut held = self.seams.contents.held(namespace, lease).await.unwrap_or_else(|error| {
            tracing::warn!(namespace, error, "containerd does not tell what its pulls hold");
            Vec::new()
        });
        held.retain(|held| held.size <= DOCUMENT);
        held.truncate(DOCUMENTS);
        held
    }
}

/// Where a document came from, as references. containerd keeps a registry's name without its port: where it is the name of the
/// image's own registry, the port is the same.
fn references(held: &Held, own: &str) -> Vec<String> {
    let own: Option<Reference> = own.parse().ok();
    let mut references: Vec<_> = held
        .repositories
        .iter()
        .map(|(host, path)| match &own {
            Some(own) if name(own.host()) == host && own.path() == path => own.to_string(),
            Some(own) if name(own.host()) == host => format!("{}/{path}@{}", own.host(), held.digest),
            _ => format!("{host}/{path}@{}", held.digest),
        })
        .collect();
    // The image's own repository first: it was pulled with these credentials.
    references.sort_by_key(|reference| own.as_ref().is_none_or(|own| *reference != own.to_string()));
    references.truncate(REPOSITORIES);
    references
}

/// A registry's name without its port.
fn name(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    name.trim_matches(['[', ']'])
}
