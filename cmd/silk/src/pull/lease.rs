//! The lease that holds what a pull makes: containerd's garbage collection leaves it alone until the lease is deleted, or
//! until a day has passed.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use silk_api::containerd::services::leases::v1::{CreateRequest, DeleteRequest};
use tonic::Code;

use super::node::Node;
use crate::failure::Failure;

/// As containerd's client (client/lease.go).
const LIFE: Duration = Duration::from_secs(24 * 3600);
const EXPIRE: &str = "containerd.io/gc.expire";

/// The same containerd, under a new lease.
pub async fn create(node: Node) -> Result<Node, Failure> {
    let id = unique();
    let expire = prost_types::Timestamp { nanos: 0, ..(SystemTime::now() + LIFE).into() }.to_string();
    let request = CreateRequest { id: id.clone(), labels: [(EXPIRE.to_owned(), expire)].into() };
    node.call("create a lease", node.leases().create(request)).await?;
    Ok(node.leased(id.parse().expect("digits and a dash are ASCII")))
}

/// Ends the lease; with `sync`, returns when what only it held is gone.
pub async fn delete(node: &Node, sync: bool) -> Result<(), Failure> {
    let Some(id) = node.lease() else { return Ok(()) };
    let request = DeleteRequest { id: id.to_owned(), sync };
    match node.call("delete the pull's lease", node.leases().delete(request)).await {
        Err(failure) if failure.code() != Some(Code::NotFound) => Err(failure),
        _ => Ok(()),
    }
}

/// `<nanoseconds>-<random>`: what containerd's clients put into the names of leases and of snapshots that they unpack.
pub fn unique() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // The standard library's only source of randomness: a hasher with keys of its own.
    let random = RandomState::new().build_hasher().finish() as u32;
    format!("{}-{random:08x}", now.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ() {
        assert_ne!(unique(), unique());
        assert!(unique().bytes().all(|c| c.is_ascii_hexdigit() || c == b'-'));
    }

    #[test]
    fn the_expiry_is_what_containerd_parses() {
        let time = UNIX_EPOCH + Duration::new(1_700_000_000, 5);
        let text = prost_types::Timestamp { nanos: 0, ..time.into() }.to_string();
        assert_eq!(text, "2023-11-14T22:13:20Z");
    }
}
