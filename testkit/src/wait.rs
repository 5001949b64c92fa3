//! Waiting for what must come, but not for ever: a test that hangs says nothing.

use std::time::Duration;

/// How long a test waits for what must come. Chosen: far longer than a slow machine takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds; panics when it does not within [`PATIENCE`].
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within_patience(what, holds).await;
}

/// Waits for `future`; panics when it is not done within [`PATIENCE`].
pub async fn within_patience<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.unwrap_or_else(|_| panic!("this did not happen within {PATIENCE:?}: {what}"))
}
