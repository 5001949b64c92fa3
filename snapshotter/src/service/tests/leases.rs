//! Which of several Stats without a lease wait, on a containerd that tells its leases.

use super::*;
use crate::leases::tests::{Fake as Containerd, Held};

/// A test whose silkd asks a containerd, and what that one says.
fn with_containerd(layers: u8) -> (Test, Containerd) {
    let Test { root, layers, service } = Test::new(layers);
    let (socket, containerd) = (root.path().join("containerd"), Containerd::default());
    containerd.serve(&socket);
    let service = service.with_containerd(silk_api::connect(&socket));
    (Test { root, layers, service }, containerd)
}

/// Leases of containerd, made now.
fn made(containerd: &Containerd, namespace: &'static str, leases: &[&'static str]) {
    let made = std::time::SystemTime::now() + Duration::from_secs(1);
    let held = |lease: &&'static str| Held { lease, made, resources: &[] };
    containerd.0.lock().unwrap().entry(namespace).or_default().extend(leases.iter().map(held));
}

impl Test {
    /// Leases whose pulls are of an image with exactly so many layers.
    fn pulls(&self, namespace: &str, layers: usize, leases: &[&str]) {
        let leases = leases.iter().map(|lease| ((*lease).to_owned(), layers));
        self.layers.leases.lock().unwrap().entry(namespace.to_owned()).or_default().extend(leases);
    }

    /// A list's Stat.
    async fn passes(&self, name: &str) {
        let list = tokio::time::timeout(Duration::from_secs(60), self.stat(name, None)).await;
        list.expect("a list does not wait").unwrap();
    }
}

#[tokio::test]
async fn a_pull_waits_whose_namespace_containerd_does_not_tell() {
    let (test, containerd) = with_containerd(1);
    for key in ["one/1/extract-a x", "two/1/extract-b x"] {
        let status = test.prepare(key, "", test.labels(0), None).await.unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    }
    // The second pull of the first namespace has no Prepare: containerd knows the chain there.
    for (namespace, leases) in [("one", ["a", "c"].as_slice()), ("two", &["b"])] {
        made(&containerd, namespace, leases);
        test.pulls(namespace, 1, leases);
    }
    let name = test.list(&[]).await[0].name.clone();
    let mut pulls = Vec::new();
    for _ in 0..3 {
        pulls.push(test.waiter(&name, None).await);
    }
    test.passes(&name).await;
    test.set(State::Ready);
    for pull in pulls {
        pull.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_pull_of_an_image_that_is_the_lower_part_of_another_waits() {
    let (test, containerd) = with_containerd(3);
    let names = test.image(None).await;
    made(&containerd, "k8s.io", &["larger", "smaller"]);
    test.pulls("k8s.io", 3, &["larger"]);
    let top = test.waiter(&names[2], None).await;
    for name in &names[..2] {
        test.passes(name).await;
        test.passes(name).await;
    }
    // containerd knows the chain and prepares nothing; the first Stat of a list came too early.
    test.pulls("k8s.io", 2, &["smaller"]);
    test.passes(&names[0]).await;
    let smaller = test.waiter(&names[1], None).await;
    test.passes(&names[1]).await;
    test.fail(Class::NotFound);
    for pull in [top, smaller] {
        assert_eq!(pull.await.unwrap().unwrap_err().code(), Code::FailedPrecondition);
    }
    // Tried again under another lease.
    test.set(State::Coming);
    made(&containerd, "k8s.io", &["again"]);
    test.pulls("k8s.io", 2, &["again"]);
    let again = test.waiter(&names[1], None).await;
    test.set(State::Ready);
    again.await.unwrap().unwrap();
    test.passes(&names[1]).await;
}

#[tokio::test]
async fn nobody_waits_in_the_place_of_a_pull_that_is_dead() {
    let (test, containerd) = with_containerd(2);
    let names = test.image(Some("dead")).await;
    let before = std::time::SystemTime::now() - Duration::from_secs(60);
    containerd.0.lock().unwrap().insert("k8s.io", vec![Held { lease: "dead", made: before, resources: &[] }]);
    test.pulls("k8s.io", 2, &["dead"]);
    // silkd died with containerd: nobody is left who knows that the lease is of CRI.
    let Test { root, layers, service } = test;
    drop(service);
    let service = Test::serve(root.path(), &layers).with_containerd(silk_api::connect(&root.path().join("containerd")));
    let test = Test { root, layers, service };
    for name in &names {
        test.passes(name).await;
    }
    made(&containerd, "k8s.io", &["new"]);
    test.pulls("k8s.io", 2, &["new"]);
    let waiter = test.waiter(&names[1], None).await;
    test.passes(&names[1]).await;
    test.set(State::Ready);
    waiter.await.unwrap().unwrap();
}
