//! Where to publish: what each place has, and what became of what it was given.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
};

use silk_model::Digest;
use silk_pull::{LayerSpec, is_of};
use silk_registry::Repository;
use silk_share::{BackendError, EnvelopeError, Image, Item, Key, Published, Share};

use crate::{failure::Failure, human};

/// The places of `[share]`, for one image.
pub struct Places {
    share: Share,
    image: Image,
    places: Vec<Place>,
}

struct Place {
    name: String,
    /// Blobs whose layers it knew before.
    had: HashSet<Digest>,
    /// By blob, what it was given.
    given: HashMap<Digest, Given>,
    /// Why it does not have all of it.
    trouble: Vec<String>,
}

/// How places are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// All is to be read, and may be replaced.
    pub force: bool,
    /// This machine has a key, which may be the wrong one.
    pub is_keyed: bool,
}

enum Given {
    /// So many bytes.
    Taken(usize),
    Refused(String),
}

impl Places {
    /// Asks each place whether it takes anything, before minutes are spent on it.
    ///
    /// # Errors
    /// None of them does.
    pub async fn open(share: Share, repository: &Repository, manifest: Digest) -> Result<Self, Failure> {
        let image = Image { repository: Some(repository.clone()), manifest };
        let mut places = Vec::new();
        for (name, admits) in share.admits(&image).await {
            let trouble = admits.err().map(|error| refusal(&name, &error)).into_iter().collect();
            places.push(Place { name, had: HashSet::new(), given: HashMap::new(), trouble });
        }
        if places.iter().all(|place| !place.trouble.is_empty()) {
            return Err(Failure::Unpublished { why: places.into_iter().flat_map(|place| place.trouble).collect() });
        }
        Ok(Self { share, image, places })
    }

    /// Asks each place what it has. What it holds of a layer counts only if a node could use it, and unless all is to be read.
    /// Says why there may be more than was told of.
    ///
    /// # Errors
    /// It holds what the fleet has sealed and this machine cannot seal: that is worth more than what would take its place.
    pub async fn look_up(&mut self, layers: &[LayerSpec], asked: Asked) -> Result<Vec<String>, Failure> {
        let mut blobs: Vec<_> = layers.iter().map(|layer| layer.blob).collect();
        blobs.sort_unstable();
        blobs.dedup();
        let holdings = self.share.holdings(&self.image, &blobs).await;
        let mut troubles = Vec::new();
        for (place, answer) in self.places.iter_mut().zip(holdings) {
            let found: HashSet<_> = answer.layers.iter().map(|found| found.key).collect();
            let sealed = answer.refused.into_iter().find(|refused| match refused.why {
                EnvelopeError::NoKey => !found.contains(&refused.key),
                // Without a key it is damage, and mended.
                EnvelopeError::Seal => asked.is_keyed && !asked.force && !found.contains(&refused.key),
                _ => false,
            });
            if let Some(sealed) = sealed {
                return Err(Failure::Sealed(sealed));
            }
            let trouble = answer.trouble.or_else(|| answer.is_away.then(|| "it is away".to_owned()));
            troubles.extend(trouble.map(|trouble| format!("{}: {trouble}", place.name)));
            if asked.force {
                continue;
            }
            let good = answer.layers.iter().map(|found| &found.value).filter(|known| {
                let mut named = layers.iter().filter(|layer| layer.blob == known.blob);
                named.all(|layer| is_of(known, layer))
            });
            place.had = good.map(|known| known.blob).collect();
        }
        Ok(troubles)
    }

    /// Whether nothing is left to tell of a layer to those that take anything.
    pub fn all_have(&self, blob: &Digest) -> bool {
        self.places.iter().filter(|place| place.trouble.is_empty()).all(|place| place.had.contains(blob))
    }

    /// Publishes, and notes what becomes of it.
    pub async fn publish(&mut self, items: Vec<Item>) {
        if items.is_empty() {
            return;
        }
        let outcomes = self.share.publish_now(&self.image, &items).await;
        for (place, (_, outcome)) in self.places.iter_mut().zip(outcomes) {
            for item in &items {
                let Key::Layer(blob) = item.key(self.image.manifest) else { continue };
                place.note(blob, item.size(), &outcome);
            }
        }
    }

    /// A line a layer.
    pub fn report(&self, layers: &[LayerSpec]) -> String {
        let mut text = String::new();
        for (i, layer) in layers.iter().enumerate() {
            let said: Vec<_> = self.places.iter().filter_map(|place| place.of(&layer.blob)).collect();
            if !said.is_empty() {
                let _ = writeln!(text, "layer {}/{} {}: {}", i + 1, layers.len(), layer.blob.short(), said.join(", "));
            }
        }
        text
    }

    /// Whether all places have all that they were given.
    pub fn outcome(&self) -> Result<(), Failure> {
        let why: Vec<_> = self.places.iter().flat_map(|place| place.trouble.clone()).collect();
        if why.is_empty() { Ok(()) } else { Err(Failure::Unpublished { why }) }
    }
}

impl Place {
    fn note(&mut self, blob: Digest, bytes: usize, outcome: &Result<Published, BackendError>) {
        let error = match outcome {
            Ok(published) => published.refused.iter().find(|(key, _)| *key == Key::Layer(blob)).map(|(_, why)| why),
            Err(error) => Some(error),
        };
        let given = match error {
            None => Given::Taken(bytes),
            Some(error) => {
                let why = refusal(&self.name, error);
                if !self.trouble.contains(&why) {
                    self.trouble.push(why);
                }
                Given::Refused(error.to_string())
            }
        };
        self.given.insert(blob, given);
    }

    fn of(&self, blob: &Digest) -> Option<String> {
        let name = &self.name;
        match self.given.get(blob) {
            Some(Given::Taken(_)) | None if self.had.contains(blob) => Some(format!("{name} has it")),
            Some(Given::Taken(bytes)) => Some(format!("{name} took {}", human::bytes(*bytes as u64))),
            Some(Given::Refused(why)) => Some(format!("{name} did not take it: {why}")),
            None => None,
        }
    }
}

fn refusal(name: &str, error: &BackendError) -> String {
    format!("{name}: {error}")
}
