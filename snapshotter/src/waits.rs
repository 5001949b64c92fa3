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
//! So a Stat with a lease is an unpacker's. One without is an unpacker's when it follows its Prepare ([`Waits::expect`]);
//! for any other, containerd's leases tell ([`crate::leases`]).

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A header that CRI sets while it pulls: what the pull makes stays until the lease ends.
pub(crate) const LEASE: &str = "containerd-lease";

/// Prepares of one snapshot whose Stat has not come yet. There are as many as pulls of one image started at once; those
/// beyond are of callers that went away.
const EXPECTED: usize = 64;

/// What a Stat of a remote snapshot does while its layers are not all here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It waits.
    Wait,
    /// It answers.
    Pass,
    /// It waits if more pulls are under way than wait already.
    Ask,
}

/// Stats that are expected, and those that wait.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// By snapshot: the leases that its Prepares carried.
    expected: Mutex<HashMap<String, Vec<Option<String>>>>,
    /// By snapshot: how many wait now.
    waiting: Mutex<HashMap<String, usize>>,
}

/// A Stat that waits.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    waits: &'a Waits,
    name: String,
}

impl Waits {
    /// A Prepare with this lease was answered with the snapshot: its caller asks Stat next.
    pub(crate) fn expect(&self, name: &str, lease: Option<&str>) {
        let mut expected = lock(&self.expected);
        let leases = expected.entry(name.to_owned()).or_default();
        if leases.len() == EXPECTED {
            leases.remove(0);
        }
        leases.push(lease.map(str::to_owned));
    }

    /// The snapshot is gone.
    pub(crate) fn forget(&self, name: &str) {
        lock(&self.expected).remove(name);
    }

    /// What a Stat with this lease does. `top`: the snapshot is the last layer of its image.
    ///
    /// Below the top, the Stat after a Prepare passes: the caller goes on to the next layer, and the pull of all of them is
    /// under way. A Stat without a Prepare comes from a pull of another image (its lower layers are known), which may be
    /// based on this layer or end with it.
    pub(crate) fn turn(&self, name: &str, lease: Option<&str>, top: bool) -> Turn {
        match (top, lease.is_some(), self.take(name, lease)) {
            (true, true, _) | (true, false, true) | (false, true, false) => Turn::Wait,
            (true, false, false) => Turn::Ask,
            (false, true, true) | (false, false, _) => Turn::Pass,
        }
    }

    fn take(&self, name: &str, lease: Option<&str>) -> bool {
        let mut expected = lock(&self.expected);
        let Some(leases) = expected.get_mut(name) else { return false };
        let Some(at) = leases.iter().position(|l| l.as_deref() == lease) else { return false };
        leases.swap_remove(at);
        if leases.is_empty() {
            expected.remove(name);
        }
        true
    }

    /// Counts a Stat among the waiting ones until the result is dropped.
    pub(crate) fn wait(&self, name: &str) -> Waiting<'_> {
        *lock(&self.waiting).entry(name.to_owned()).or_default() += 1;
        Waiting { waits: self, name: name.to_owned() }
    }

    /// How many wait now.
    pub(crate) fn waiting(&self, name: &str) -> usize {
        lock(&self.waiting).get(name).copied().unwrap_or(0)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = lock(&self.waits.waiting);
        if let Some(count) = waiting.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.name);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_with_a_lease_waits_and_a_list_never() {
        let waits = Waits::default();
        waits.expect("low", Some("a"));
        assert_eq!(waits.turn("low", None, false), Turn::Pass);
        assert_eq!(waits.turn("low", Some("a"), false), Turn::Pass, "it goes on to the next layer");
        assert_eq!(waits.turn("low", Some("a"), false), Turn::Wait, "a pull that is tried again");
        assert_eq!(waits.turn("low", Some("b"), false), Turn::Wait, "an image that may end here");
        waits.expect("top", Some("a"));
        assert_eq!(waits.turn("top", None, true), Turn::Ask);
        assert_eq!(waits.turn("top", Some("a"), true), Turn::Wait);
        assert_eq!(waits.turn("top", Some("a"), true), Turn::Wait);
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
    fn waiting_ends_when_dropped_and_expectations_are_bounded() {
        let waits = Waits::default();
        let first = waits.wait("top");
        let second = waits.wait("top");
        assert_eq!(waits.waiting("top"), 2);
        drop(first);
        assert_eq!(waits.waiting("top"), 1);
        drop(second);
        assert_eq!(waits.waiting("top"), 0);
        (0..1000).for_each(|_| waits.expect("top", None));
        assert_eq!(lock(&waits.expected)["top"].len(), EXPECTED);
    }
}
