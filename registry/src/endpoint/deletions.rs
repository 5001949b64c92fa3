//! Repositories in which nothing may be deleted: whoever replaces referrers need not find out each time.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A repository is not asked again for this long: rights change as seldom as registries.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Repositories of a host of which it is remembered.
const MOST: usize = 1024;

/// Until when each is not asked.
#[derive(Debug, Default)]
pub(crate) struct Deletions(Mutex<HashMap<String, Instant>>);

impl Deletions {
    /// Was one refused in `repository` a while ago?
    pub(crate) fn are_refused(&self, repository: &str) -> bool {
        let refused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        refused.get(repository).is_some_and(|until| Instant::now() < *until)
    }

    /// One was refused there.
    pub(crate) fn refused(&self, repository: &str) {
        let now = Instant::now();
        let mut refused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= MOST {
            refused.retain(|_, until| now < *until);
        }
        if refused.len() < MOST {
            refused.insert(repository.to_owned(), now + REMEMBERED);
        }
    }
}
