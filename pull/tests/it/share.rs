//! What others say of an image, and what they are told.

use std::{slice::from_ref, sync::atomic::Ordering, time::Duration};

use silk_layer::profile::{FADES_AFTER, GRAIN, Profile, Seen, decode, encode};
use silk_testkit::{Compression, Fake, ImageSpec, Pushed, tar};

use crate::{node::Node, peer::Peer};

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..6000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("this did not happen within a minute: {what}");
}

fn start(pushed: &Pushed, entrypoint: &str, grain: u64) -> Seen {
    let touches = vec![(pushed.layers[0].diff_id, grain * GRAIN..grain * GRAIN + 1)];
    Seen { entrypoint: entrypoint.into(), touches, ..Seen::default() }
}

fn profile_of(starts: &[Seen]) -> Profile {
    let mut profile = Profile::default();
    starts.iter().for_each(|start| profile.learn(start));
    profile
}

/// Waits until a peer has a profile with so many starts.
async fn starts(peer: &Peer, pushed: &Pushed, count: usize) -> Profile {
    let profile = || decode(&peer.profile(&pushed.manifest_digest).unwrap_or_default()).unwrap_or_default();
    eventually("its profile has all starts", || profile().starts.len() == count).await;
    profile()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_is_joined_with_what_each_place_has() {
    let registry = Fake::start().await;
    let pushed = registry.push_image("library/app:1", &ImageSpec::new().layer(tar(&[]), Compression::Plain));
    let (manifest, [a, b, c, d]) = (pushed.manifest_digest, ["a", "b", "c", "d"].map(|name| start(&pushed, name, 1)));
    let (one, other) = (Peer::new(), Peer::new());
    one.say_profile(manifest, encode(&profile_of(from_ref(&a))));
    other.say_profile(manifest, encode(&profile_of(from_ref(&b))));
    let node = Node::sharing(vec![one.clone(), other.clone()]);
    node.puller.learn_start(&manifest, &pushed.reference, c.clone()).await;
    starts(&one, &pushed, 2).await;
    starts(&other, &pushed, 3).await;
    // An operator's file takes nothing away either.
    let stranger = Node::sharing(vec![one.clone(), other.clone()]);
    stranger.puller.import_profile(&manifest, &pushed.reference, profile_of(from_ref(&d))).await.unwrap();
    starts(&one, &pushed, 3).await;
    starts(&other, &pushed, 4).await;
    // What was taken in and then forgotten does not come back.
    let node = Node::sharing(vec![one.clone()]);
    one.say_profile(manifest, encode(&profile_of(&[start(&pushed, "a", 1), start(&pushed, "a", 2)])));
    for _ in 0..FADES_AFTER {
        let seen = Seen { complete: [pushed.layers[0].diff_id].into(), ..start(&pushed, "a", 2) };
        node.puller.learn_start(&manifest, &pushed.reference, seen).await;
        let count = node.puller.profile(&manifest).await.unwrap().starts[0].count;
        let theirs = || decode(&one.profile(&manifest).unwrap()).unwrap().starts[0].count;
        eventually("it is told", || theirs() == count).await;
    }
    let runs = decode(&one.profile(&manifest).unwrap()).unwrap().starts[0].runs.clone();
    assert_eq!(runs.iter().map(|run| run.first).collect::<Vec<_>>(), [2]);
    // Dropped is dropped.
    node.puller.drop_profile(&manifest, &pushed.reference).await.unwrap();
    starts(&one, &pushed, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_cannot_be_asked_loses_no_profile() {
    let registry = Fake::start().await;
    let pushed = registry.push_image("library/app:1", &ImageSpec::new().layer(tar(&[]), Compression::Plain));
    let (manifest, [a, b]) = (pushed.manifest_digest, ["a", "b"].map(|name| start(&pushed, name, 1)));
    let peer = Peer::new();
    peer.say_profile(manifest, encode(&profile_of(&[a])));
    let node = Node::sharing(vec![peer.clone()]);
    peer.mute.store(true, Ordering::Relaxed);
    node.puller.learn_start(&manifest, &pushed.reference, b).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    peer.mute.store(false, Ordering::Relaxed);
    starts(&peer, &pushed, 2).await;
}
