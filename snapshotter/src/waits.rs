//! Who waits in Stat, and who never does.
//!
//! After `AlreadyExists` containerd's unpacker asks Stat for the layer: that is where a pull can wait without holding
//! any of containerd's locks. But containerd's metadata layer also asks Stat for every snapshot when it lists them (CRI's
//! statistics, every ten seconds), and that must never wait. Measured with containerd 1.6.20 and 2.1.9:
//!
//! | caller | `containerd-lease` in Prepare and Stat |
//! |---|---|
//! | CRI's pull, by itself or through the transfer service | yes |
//! | a pull by a client of containerd (`silk pull`, `ctr`, nerdctl) | no |
//! | listing, by CRI or by a client | no |
//!
//! So a Stat with a lease is an unpacker's, and one without is when it follows its Prepare ([`Waits::expect`]). For any
//! other, containerd's leases tell ([`crate::leases`]): each pull has one, which holds the snapshot or the manifest of an image with
//! the same layers, and waits once; the leases of CRI are not meant. containerd 1.6 does not pass on a client's namespace: there, the
//! lease may be in any that has prepared the layer.
//!
//! A layer below the top of one image may be the top of another, whose pull containerd does not prepare anything for: it
//! knows the chain. There only a lease tells that holds a manifest with exactly these layers, for the pull of the larger image
//! holds the snapshot, too.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A header that CRI sets while it pulls: what the pull makes stays until the lease ends.
pub(crate) const LEASE: &str = "containerd-lease";

/// Pulls that are remembered, of one snapshot and of CRI: more are not under way at once.
const PULLS: usize = 256;

/// What a Stat of a remote snapshot does while its layers are not all here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It waits.
    Wait,
    /// It answers.
    Pass,
    /// It waits, if there is a lease of a pull of just this chain that has not waited yet.
    Ask,
}

/// Stats that are expected, and pulls that have waited.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    by_name: Mutex<HashMap<String, Pulls>>,
    /// The latest leases that came as headers.
    headers: Mutex<VecDeque<String>>,
}

/// The pulls of one snapshot.
#[derive(Debug, Default)]
struct Pulls {
    /// Leases of Prepares whose Stat has not come yet.
    expected: Vec<Option<String>>,
    /// Leases whose Stat has come. Which of several pulls without one in its Stat has which lease does not matter.
    waited: HashSet<String>,
    /// Namespaces whose Prepares were answered with the snapshot.
    namespaces: BTreeSet<String>,
}

impl Waits {
    fn pulls(&self) -> MutexGuard<'_, HashMap<String, Pulls>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn headers(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.headers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, lease: &str) {
        let mut headers = self.headers();
        if headers.iter().all(|known| known != lease) {
            headers.truncate(PULLS - 1);
            headers.push_front(lease.to_owned());
        }
    }

    /// A Prepare with this lease was answered with the snapshot: its caller asks Stat next.
    pub(crate) fn expect(&self, name: &str, lease: Option<&str>) {
        lease.into_iter().for_each(|lease| self.note(lease));
        let mut pulls = self.pulls();
        let expected = &mut pulls.entry(name.to_owned()).or_default().expected;
        if expected.len() == PULLS {
            expected.remove(0);
        }
        expected.push(lease.map(str::to_owned));
    }

    /// A pull of this namespace was answered with the snapshot.
    pub(crate) fn prepared_in(&self, name: &str, namespace: &str) {
        let mut pulls = self.pulls();
        let namespaces = &mut pulls.entry(name.to_owned()).or_default().namespaces;
        if namespaces.len() < PULLS {
            namespaces.insert(namespace.to_owned());
        }
    }

    /// The namespaces whose pulls may wait for the snapshot: `last`, the one of the latest claim, and others.
    pub(crate) fn namespaces(&self, name: &str, last: &str) -> BTreeSet<String> {
        let mut all = self.pulls().get(name).map_or_else(BTreeSet::new, |pulls| pulls.namespaces.clone());
        all.insert(last.to_owned());
        all
    }

    /// The snapshot is gone, or its layers are here: nobody waits for it again.
    pub(crate) fn forget(&self, name: &str) {
        self.pulls().remove(name);
    }

    /// What a Stat with this lease does. `top`: the snapshot is the last layer of its image.
    ///
    /// Below the top, the Stat after a Prepare passes: the caller goes on to the next layer, and the pull of all of them is
    /// under way. A Stat without a Prepare comes from a pull of another image (its lower layers are known), which may be
    /// based on this layer or end with it.
    pub(crate) fn turn(&self, name: &str, lease: Option<&str>, top: bool) -> Turn {
        lease.into_iter().for_each(|lease| self.note(lease));
        let expected = self.take(name, lease);
        match (top, lease.is_some(), expected) {
            (true, true, _) | (true, false, true) | (false, true, false) => Turn::Wait,
            (_, false, false) => Turn::Ask,
            (false, _, true) => Turn::Pass,
        }
    }

    fn take(&self, name: &str, lease: Option<&str>) -> bool {
        let mut pulls = self.pulls();
        let Some(Pulls { expected, .. }) = pulls.get_mut(name) else { return false };
        let at = expected.iter().position(|l| l.as_deref() == lease);
        at.map(|at| expected.swap_remove(at)).is_some()
    }

    /// Leaves of these leases those of clients' pulls that have not waited for the snapshot.
    pub(crate) fn keep_new(&self, name: &str, leases: &mut Vec<String>) {
        let headers = self.headers();
        let pulls = self.pulls();
        let waited = pulls.get(name).map(|pulls| &pulls.waited);
        leases.retain(|lease| !headers.contains(lease) && waited.is_none_or(|waited| !waited.contains(lease)));
    }

    /// Of the leases that hold the snapshot, takes one of a client's pull that has not waited; says whether there is one.
    pub(crate) fn take_first(&self, name: &str, leases: &[String]) -> bool {
        let headers = self.headers();
        let mut pulls = self.pulls();
        let waited = &mut pulls.entry(name.to_owned()).or_default().waited;
        if waited.len() >= PULLS {
            waited.clear();
        }
        leases.iter().any(|lease| !headers.contains(lease) && waited.insert(lease.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_with_a_lease_waits_and_a_list_never() {
        let waits = Waits::default();
        waits.expect("low", Some("a"));
        assert_eq!(waits.turn("low", None, false), Turn::Ask, "a pull of an image that ends here, or a list");
        assert_eq!(waits.turn("low", Some("a"), false), Turn::Pass, "it goes on to the next layer");
        assert_eq!(waits.turn("low", Some("a"), false), Turn::Wait, "a pull that is tried again");
        assert_eq!(waits.turn("low", Some("b"), false), Turn::Wait, "an image that may end here");
        waits.expect("top", Some("a"));
        assert_eq!(waits.turn("top", None, true), Turn::Ask);
        assert_eq!(waits.turn("top", Some("a"), true), Turn::Wait);
        assert_eq!(waits.turn("top", Some("a"), true), Turn::Wait);
        assert!(!waits.take_first("top", &["a".to_owned()]), "no list waits in its place");
    }

    #[test]
    fn without_leases_each_prepare_has_one_stat() {
        let waits = Waits::default();
        waits.expect("low", None);
        assert_eq!(waits.turn("low", None, false), Turn::Pass);
        waits.expect("top", None);
        waits.expect("top", None);
        assert_eq!(waits.turn("top", None, true), Turn::Wait);
        assert_eq!(waits.turn("top", None, true), Turn::Wait);
        assert_eq!(waits.turn("top", None, true), Turn::Ask);
        waits.expect("top", None);
        waits.forget("top");
        assert_eq!(waits.turn("top", None, true), Turn::Ask);
    }

    #[test]
    fn each_lease_waits_once_and_what_is_remembered_is_bounded() {
        let waits = Waits::default();
        let leases = ["a".to_owned(), "b".to_owned()];
        let new = |name| {
            let mut left = leases.to_vec();
            waits.keep_new(name, &mut left);
            left
        };
        assert!(waits.take_first("top", &leases));
        assert_eq!((new("top"), new("low")), (vec!["b".to_owned()], leases.to_vec()));
        assert!(waits.take_first("top", &leases));
        assert!(!waits.take_first("top", &leases) && new("top").is_empty());
        assert!(waits.take_first("top", &["b".to_owned(), "c".to_owned()]));
        for n in 0..1000 {
            waits.expect("top", None);
            waits.take_first("top", &[n.to_string()]);
            waits.turn("low", Some(&n.to_string()), false);
        }
        assert!(waits.headers().len() <= PULLS);
        let pulls = waits.pulls();
        assert!(pulls["top"].expected.len() <= PULLS && pulls["top"].waited.len() <= PULLS);
    }
}
