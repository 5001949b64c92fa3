//! Referrers at a registry that does as it is told.

use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};
use silk_model::{Class, Digest};
use silk_registry::Registry;
use silk_share::{BackendError, BackendStatus, Config, Image, Item, ReferrersConfig, Share, ShareError, State};
use silk_testkit::{ALWAYS, Fake, Fault, ImageSpec};

use crate::world::{eventually, layer};

pub const KEY: &str = "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk";
const TYPE: &str = "application/vnd.silk.knowledge.v1";
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

/// A client without files of the machine's.
pub fn registry(host: &str) -> Registry {
    let config = silk_registry::Config {
        hosts_dirs: Vec::new(),
        docker_config: Some("/nowhere/config.json".into()),
        plain_http: vec![host.to_owned()],
        attempts: 3,
        retry_delay_ms: 1,
        ..silk_registry::Config::default()
    };
    Registry::new(config).unwrap()
}

fn config(key_file: Option<&Path>) -> Config {
    let referrers = ReferrersConfig { discover: true, publish: true, deadline_millis: 10_000, ..Default::default() };
    Config { key_file: key_file.map(Into::into), referrers, ..Config::default() }
}

/// A node that reads and writes referrers.
pub fn sharing(key: Option<&str>, change: impl Fn(&mut ReferrersConfig)) -> Share {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), key.unwrap_or_default()).unwrap();
    let mut config = config(key.map(|_| file.path()));
    config.referrers.trust_unsigned = key.is_none();
    change(&mut config.referrers);
    Share::new(&config, Vec::new()).unwrap()
}

/// A registry with an image in it.
struct World {
    fake: Fake,
    image: Image,
    name: String,
}

impl World {
    async fn start(api: bool) -> Self {
        let fake = Fake::start().await;
        fake.have_referrers(api);
        let pushed = fake.push_image("library/app:latest", &ImageSpec::new());
        let repository = registry(&fake.host()).repository(&pushed.reference.parse().unwrap()).await.unwrap();
        let name = format!("{}/library/app", fake.host());
        Self { fake, image: Image { repository: Some(repository), manifest: pushed.digest }, name }
    }

    async fn put(&self, share: &Share, items: &[Item]) {
        let outcome = share.publish_now(&self.image, items).await.remove(0).1;
        assert_eq!(outcome.unwrap().kept, items.len() as u64);
    }

    /// Which of layers 1 to 3 are found.
    async fn has(&self, share: &Share) -> [bool; 3] {
        let blobs = [1, 2, 3].map(|n| layer(n, 0).blob);
        let known = share.image(&self.image, &blobs).await;
        [0, 1, 2].map(|n| known.layers[n].is_some())
    }

    /// The artifacts that are there, as documents.
    fn artifacts(&self) -> Vec<Value> {
        let manifests = self.fake.manifests("library/app").into_iter().filter(|(id, _)| id.starts_with("sha256:"));
        let documents = manifests.map(|(_, bytes)| serde_json::from_slice::<Value>(&bytes).unwrap());
        documents.filter(|document| document["artifactType"] == TYPE).collect()
    }

    /// An artifact made by hand: the newest.
    fn forge(&self, layers: &Value) {
        self.forge_at("9", layers);
    }

    fn forge_at(&self, revision: &str, layers: &Value) {
        let empty = self.fake.put_blob(&b"{}"[..]);
        let document = json!({
            "schemaVersion": 2, "mediaType": OCI, "artifactType": TYPE, "layers": layers,
            "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2 },
            "subject": { "mediaType": OCI, "digest": self.image.manifest, "size": 1 },
            "annotations": { "vnd.silk.revision": revision },
        });
        self.fake.put_manifest(&format!("library/app:forged{revision}"), OCI, document.to_string());
    }
}

fn item(n: u64, size: usize) -> Item {
    Item::Layer(layer(n, size))
}

fn status(share: &Share) -> BackendStatus {
    share.status().remove(0)
}

fn trouble(share: &Share) -> String {
    status(share).trouble.map_or_else(String::new, |(_, trouble)| trouble)
}

#[tokio::test]
async fn one_node_publishes_and_another_finds_all_of_it() {
    for (api, deletes) in [(true, true), (true, false), (false, true), (false, false)] {
        let world = World::start(api).await;
        world.fake.allow_deletes(deletes);
        let (first, second) = (sharing(Some(KEY), |_| ()), sharing(Some(KEY), |_| ()));
        for n in 1..=3 {
            first.publish_layer(&world.image, layer(n, 1000 * n as usize));
        }
        first.publish_profile(&world.image, Bytes::from_static(b"profile"));
        eventually("all is published", || status(&first).published == 4).await;
        assert_eq!(world.artifacts().len(), 1, "one artifact for all");

        let blobs = [2, 1, 7, 3].map(|n| layer(n, 0).blob);
        let known = second.image(&world.image, &blobs).await;
        for (n, place) in [(2, 0), (1, 1), (3, 3)] {
            let found = known.layers[place].as_ref().unwrap();
            assert_eq!(found.value, layer(n, 1000 * n as usize));
            assert_eq!(found.source, format!("referrers of {}", world.name));
        }
        assert!(known.layers[2].is_none());
        assert_eq!(known.profiles[0].value, b"profile"[..]);
        let status = status(&second);
        assert_eq!((status.hits, status.misses, status.refused, status.state.is_up()), (4, 1, 0, true));
    }
}

#[tokio::test]
async fn what_is_published_later_joins_what_is_there() {
    for (api, deletes) in [(true, true), (true, false), (false, false)] {
        let world = World::start(api).await;
        world.fake.allow_deletes(deletes);
        let nodes = [1, 2, 3].map(|_| sharing(Some(KEY), |_| ()));
        for (n, node) in (1..).zip(&nodes) {
            world.put(node, &[item(n, 100)]).await;
        }
        assert_eq!(world.has(&nodes[0]).await, [true; 3]);
        assert_eq!(world.artifacts().len(), if deletes { 1 } else { 3 });
        // What is there already is not written again, whoever has learned it too.
        let before = world.fake.count("^(PUT|POST|DELETE)");
        for (n, node) in [3, 1, 2].into_iter().zip(&nodes) {
            world.put(node, &[item(n, 100)]).await;
        }
        assert_eq!(world.fake.count("^(PUT|POST|DELETE)"), before);
        // Another value of a layer replaces the one before; so does a profile.
        for profile in ["old", "new"] {
            let profile = Item::Profile(Bytes::from_static(profile.as_bytes()));
            world.put(&nodes[0], &[item(2, 200), profile]).await;
        }
        let known = nodes[1].image(&world.image, &[layer(2, 0).blob]).await;
        assert_eq!(known.layers[0].as_ref().unwrap().value, layer(2, 200));
        assert_eq!((known.profiles.len(), &known.profiles[0].value[..]), (1, &b"new"[..]));
    }
}

#[tokio::test]
async fn two_that_write_at_the_same_time_are_both_read_and_then_merged() {
    // Each alone at its own copy of the registry; then the copies meet.
    let (one, other) = (World::start(true).await, World::start(true).await);
    let node = sharing(Some(KEY), |_| ());
    one.put(&node, &[item(1, 100)]).await;
    other.put(&node, &[item(2, 100)]).await;
    one.fake.mirror(&other.fake);
    assert_eq!(one.artifacts().len(), 2);
    assert_eq!(one.has(&node).await, [true, true, false]);
    one.put(&node, &[item(3, 100)]).await;
    assert_eq!(one.has(&node).await, [true; 3]);
    let newest =
        one.artifacts().into_iter().find(|artifact| artifact["annotations"]["vnd.silk.revision"] == "2").unwrap();
    assert_eq!(newest["layers"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn it_is_off_unless_configured() {
    assert!(Share::new(&Config::default(), Vec::new()).unwrap().status().is_empty());
    for (discover, publish) in [(true, true), (true, false), (false, true)] {
        let mut config = config(None);
        (config.referrers.discover, config.referrers.publish) = (discover, publish);
        let error = Share::new(&config, Vec::new()).expect_err("nobody would believe what it pushes or finds");
        assert!(matches!(error, ShareError::NothingToTrust), "{error}");
        assert_eq!(error.class(), Class::Invalid);
    }

    let world = World::start(true).await;
    let publishes = sharing(Some(KEY), |config| config.discover = false);
    world.put(&publishes, &[item(1, 100)]).await;
    let before = world.fake.requests().len();
    assert_eq!(world.has(&publishes).await, [false; 3]);
    assert_eq!(world.fake.requests().len(), before);
    let discovers = sharing(Some(KEY), |config| config.publish = false);
    assert_eq!(world.has(&discovers).await, [true, false, false]);
    let outcome = discovers.publish_now(&world.image, &[item(2, 100)]).await.remove(0).1;
    assert_eq!((outcome.unwrap().kept, world.fake.count("^PUT.*manifests")), (0, 1));
    let nowhere = Image { repository: None, ..world.image.clone() };
    assert!(discovers.image(&nowhere, &[layer(1, 0).blob]).await.layers[0].is_none());
}

#[tokio::test]
async fn only_the_fleets_own_are_believed_unless_the_operator_says_otherwise() {
    let world = World::start(true).await;
    let (open, fleet) = (sharing(None, |_| ()), sharing(Some(KEY), |_| ()));
    let other = sharing(Some("oooooooooooooooooooooooooooooooooooo"), |_| ());
    world.put(&open, &[item(1, 100)]).await;
    world.put(&other, &[item(2, 100)]).await;
    world.put(&fleet, &[item(3, 100)]).await;
    assert_eq!(world.has(&open).await, [true, false, false]);
    assert_eq!(world.has(&fleet).await, [false, false, true]);
    assert_eq!(status(&fleet).refused, 2);
    assert!(trouble(&fleet).contains(&format!("from referrers of {} is not believed: ", world.name)));
    let both = sharing(Some(KEY), |config| config.trust_unsigned = true);
    assert_eq!(world.has(&both).await, [true, false, true]);
}

#[tokio::test]
async fn a_flipped_byte_in_any_region_is_noticed() {
    let world = World::start(true).await;
    let node = sharing(Some(KEY), |_| ());
    world.put(&node, &[item(1, 500)]).await;
    let artifact = &world.artifacts()[0];
    let digest = artifact["layers"][0]["digest"].as_str().unwrap().to_owned();
    for at in [0, 8, 12, 20, 60, 80, 96, 300, 595, 596, 627] {
        world.fake.fault(&format!("^GET .*blobs/{digest}"), Fault::Flip(at), 1);
        assert_eq!(world.has(&node).await, [false; 3], "byte {at}");
        assert!(trouble(&node).contains(&format!("from referrers of {} is not believed", world.name)), "{at}");
    }
    assert_eq!(status(&node).refused, 11);
    // The artifact's own manifest is proved by its digest.
    world.fake.fault("^GET .*manifests/sha256", Fault::Flip(20), 1);
    assert_eq!(world.has(&node).await, [false; 3]);
    world.fake.fault("^GET .*referrers", Fault::Flip(0), 1);
    assert_eq!(world.has(&node).await, [true, false, false], "all is well");
}

#[tokio::test]
async fn what_does_not_fit_is_not_read() {
    let world = World::start(true).await;
    let node = sharing(Some(KEY), |_| ());
    let entry = |n: u64, digest: Digest, size: u64| {
        let annotations = json!({ "vnd.silk.blob": layer(n, 0).blob });
        json!({ "mediaType": "application/vnd.silk.knowledge.layer.v1", "digest": digest, "size": size, "annotations": annotations })
    };
    let short = world.fake.put_blob(&b"short"[..]);
    world.forge(&json!([entry(1, short, 1 << 40), entry(2, short, 1000), entry(3, short, 5)]));
    let before = world.fake.count("^GET .*blobs");
    assert_eq!(world.has(&node).await, [false; 3]);
    assert!(world.fake.count("^GET .*blobs") - before <= 2, "the first is not even asked for");
    assert_eq!(status(&node).refused, 3, "too large, cut short, and no envelope");
    assert!(status(&node).state.is_up());
    // Published anew, all is well.
    world.put(&sharing(Some(KEY), |_| ()), &[item(1, 10), item(2, 10), item(3, 10)]).await;
    assert_eq!(world.has(&sharing(Some(KEY), |_| ())).await, [true; 3]);
    assert!(world.artifacts().iter().any(|artifact| artifact["annotations"]["vnd.silk.revision"] == "10"));
}

#[tokio::test]
async fn all_that_is_read_of_an_image_has_a_bound() {
    let world = World::start(true).await;
    let node = sharing(Some(KEY), |_| ());
    // As large as a value may be, all of one layer, and none of them there.
    let entries: Vec<_> = (0..4_u8).map(|i| value(1, Digest::of(&[i]), 32 << 20)).collect();
    world.forge(&json!(entries));
    let before = world.fake.count("^GET .*blobs");
    assert_eq!(world.has(&node).await, [false; 3]);
    assert_eq!(world.fake.count("^GET .*blobs") - before, 3, "96 MiB are");
}

#[tokio::test]
async fn a_value_under_another_layers_name_is_refused() {
    let world = World::start(true).await;
    let node = sharing(Some(KEY), |_| ());
    world.put(&node, &[item(1, 100)]).await;
    let mut layers = world.artifacts()[0]["layers"].clone();
    layers[0]["annotations"]["vnd.silk.blob"] = json!(layer(2, 0).blob);
    world.forge(&layers);
    assert_eq!(world.has(&node).await, [true, false, false], "number 1 is still where it was");
    assert!(trouble(&node).contains("stored under a wrong key"), "{}", trouble(&node));
}

#[tokio::test]
async fn a_lie_is_taken_out_and_not_believed_again() {
    for api in [true, false] {
        let world = World::start(api).await;
        let node = sharing(Some(KEY), |_| ());
        world.put(&node, &[item(1, 100), item(2, 100), Item::Profile(Bytes::from_static(b"p"))]).await;
        let known = node.image(&world.image, &[layer(1, 0).blob]).await;
        node.distrust(&world.image, known.layers[0].as_ref().unwrap(), "its spans are wrong");
        assert_eq!(world.has(&node).await, [false, true, false], "at once, for this node");
        let other = sharing(Some(KEY), |_| ());
        // The artifact comes before the list that names it.
        for _ in 0..6000 {
            if world.has(&other).await == [false, true, false] {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert_eq!(world.has(&other).await, [false, true, false], "it is taken out");
        assert_eq!(other.image(&world.image, &[]).await.profiles.len(), 1);
        // The same lie published again is not believed by who knows it.
        world.put(&other, &[item(1, 100)]).await;
        assert_eq!(world.has(&node).await, [false, true, false]);
        world.put(&node, &[item(1, 200)]).await;
        assert_eq!(world.has(&node).await, [true, true, false]);
        for n in [1, 2] {
            let known = node.image(&world.image, &[layer(n, 0).blob]).await;
            node.distrust(&world.image, known.layers[0].as_ref().unwrap(), "all of it");
        }
        let known = node.image(&world.image, &[]).await;
        node.distrust(&world.image, &known.profiles[0], "all of it");
        let empty = || {
            world
                .artifacts()
                .iter()
                .any(|artifact| artifact["layers"][0]["mediaType"] == "application/vnd.oci.empty.v1+json")
        };
        eventually("an artifact without values", empty).await;
    }
}

#[tokio::test]
async fn a_lie_beside_a_value_that_is_gone_is_taken_out_too() {
    let world = World::start(true).await;
    world.fake.allow_deletes(true);
    let node = sharing(Some(KEY), |_| ());
    world.put(&node, &[item(1, 100)]).await;
    let lie = world.artifacts()[0]["layers"][0].clone();
    // Comes first.
    let gone = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    world.forge(&json!([value(1, gone, 100), lie]));
    let known = node.image(&world.image, &[layer(1, 0).blob]).await;
    node.distrust(&world.image, known.layers[0].as_ref().unwrap(), "its spans are wrong");
    let is_out = |artifact: &Value| artifact["layers"].as_array().unwrap().iter().all(|value| *value != lie);
    eventually("it is taken out", || world.artifacts().iter().all(is_out)).await;
}

#[tokio::test]
async fn a_registry_in_trouble_costs_one_deadline_and_is_left_alone_then() {
    let world = World::start(true).await;
    let node = sharing(Some(KEY), |config| config.deadline_millis = 300);
    world.put(&sharing(Some(KEY), |_| ()), &[item(1, 100)]).await;
    world.fake.fault("referrers", Fault::NoAnswer, ALWAYS);
    assert_eq!(world.has(&node).await, [false; 3], "it returns although nobody answers");
    let State::Away { why, .. } = status(&node).state else { panic!() };
    assert_eq!(why, format!("referrers of {} did not come in time", world.name));
    let before = world.fake.requests().len();
    assert_eq!(world.has(&node).await, [false; 3]);
    assert_eq!(world.fake.requests().len(), before);

    let node = sharing(Some(KEY), |_| ());
    world.fake.heal();
    world.fake.fault_status("blobs", 500, ALWAYS);
    assert_eq!(world.has(&node).await, [false; 3]);
    assert!(trouble(&node).contains("500"), "{}", trouble(&node));
}

#[tokio::test]
async fn who_may_not_push_drops_what_he_learned_and_says_so() {
    let world = World::start(true).await;
    let node = sharing(Some(KEY), |_| ());
    world.fake.fault("^POST", Fault::error(403, "DENIED", "read only"), ALWAYS);
    node.publish_layer(&world.image, layer(1, 100));
    eventually("it is dropped", || status(&node).dropped == 1).await;
    assert!(trouble(&node).contains("is not published to referrers: registry") && trouble(&node).contains("read only"));
    assert_eq!(status(&node).published, 0);
}

/// An entry for layer `n`, or for the profile where that is 0.
fn value(n: u64, digest: Digest, size: u64) -> Value {
    let (media_type, annotations) = match n {
        0 => ("application/vnd.silk.knowledge.profile.v1", json!({})),
        n => ("application/vnd.silk.knowledge.layer.v1", json!({ "vnd.silk.blob": layer(n, 0).blob })),
    };
    json!({ "mediaType": media_type, "digest": digest, "size": size, "annotations": annotations })
}

#[tokio::test]
async fn whoever_claims_to_be_the_newest_hides_nothing() {
    for (deletes, highest) in [(true, "12"), (false, "12"), (true, "18446744073709551615")] {
        let world = World::start(true).await;
        world.fake.allow_deletes(deletes);
        let node = || sharing(Some(KEY), |_| ());
        world.put(&node(), &[item(1, 100), item(2, 100), Item::Profile(Bytes::from_static(b"p"))]).await;
        let damaged = world.fake.put_blob(&b"damaged"[..]);
        let values = |digest| json!([0, 1, 2].map(|n| value(n, digest, 7)));
        let forgeries = [
            ("10", json!(3)),
            ("11", json!([])),
            (highest, values(damaged)),
            // What is named is not there; and more of it than anybody would try.
            (highest, json!((0..40).map(|n| value(1, Digest::of(&[n]), 7)).collect::<Vec<_>>())),
        ];
        let others: Vec<_> = world.artifacts();
        for (revision, layers) in forgeries {
            world.forge_at(revision, &layers);
            let node = node();
            assert_eq!(world.has(&node).await, [true, true, false], "{revision} {layers}");
            assert_eq!(node.image(&world.image, &[]).await.profiles[0].value, b"p"[..], "{revision} {layers}");
            assert!(status(&node).state.is_up(), "the registry is well: {}", trouble(&node));
        }
        assert!(world.artifacts().len() > others.len());
        // Nor does the next writer lose anything.
        world.put(&node(), &[item(3, 100)]).await;
        let node = node();
        assert_eq!(world.has(&node).await, [true; 3]);
        assert_eq!(node.image(&world.image, &[]).await.profiles[0].value, b"p"[..]);
    }
}

#[tokio::test]
async fn what_is_not_good_in_the_newest_is_looked_for_in_older_ones() {
    let world = World::start(true).await;
    world.fake.allow_deletes(false);
    let node = sharing(Some(KEY), |_| ());
    world.put(&node, &[item(1, 100), item(2, 100)]).await;
    world.put(&node, &[item(1, 200)]).await;
    let known = node.image(&world.image, &[layer(1, 0).blob]).await;
    assert_eq!(known.layers[0].as_ref().unwrap().value, layer(1, 200));
    // Only the newest value is a lie: who knows that is given the one before until it is taken out.
    let reader = sharing(Some(KEY), |config| config.publish = false);
    let known = reader.image(&world.image, &[layer(1, 0).blob]).await;
    reader.distrust(&world.image, known.layers[0].as_ref().unwrap(), "a test");
    let known = reader.image(&world.image, &[layer(1, 0).blob, layer(2, 0).blob]).await;
    assert_eq!(known.layers[0].as_ref().unwrap().value, layer(1, 100));
    assert_eq!(known.layers[1].as_ref().unwrap().value, layer(2, 100));
}

#[tokio::test]
async fn profiles_of_two_that_write_at_the_same_time_are_joined() {
    let (one, other) = (World::start(true).await, World::start(true).await);
    // Nodes that only publish join what is there, too.
    let node = sharing(Some(KEY), |config| config.discover = false);
    let profile = |text: &'static str| Item::Profile(Bytes::from_static(text.as_bytes()));
    one.put(&node, &[profile("a")]).await;
    other.put(&node, &[profile("b")]).await;
    one.fake.mirror(&other.fake);
    let join: silk_share::Join = std::sync::Arc::new(|there| {
        let mut all: Vec<_> = there.iter().map(|found| found.value.clone()).collect();
        all.push("c".into());
        all.sort();
        Some(all.concat().into())
    });
    node.join_profile(&one.image, &join);
    eventually("it is published", || status(&node).published == 3).await;
    let reader = sharing(Some(KEY), |_| ());
    let profiles = reader.image(&one.image, &[]).await.profiles;
    assert_eq!(profiles.iter().map(|found| &found.value[..]).collect::<Vec<_>>(), [b"abc"]);
}

#[tokio::test]
async fn what_no_node_would_read_is_not_written() {
    let world = World::start(true).await;
    let node = sharing(Some(KEY), |_| ());
    let too_large = item(1, 33 << 20);
    let outcome = node.publish_now(&world.image, std::slice::from_ref(&too_large)).await.remove(0).1.unwrap();
    assert_eq!((outcome.kept, outcome.refused.len(), world.artifacts().len()), (0, 1, 0));
    let items = [too_large, item(2, 1000)];
    let outcome = node.publish_now(&world.image, &items).await.remove(0).1.unwrap();
    assert_eq!(outcome.kept, 1);
    assert!(matches!(&outcome.refused[..], [(_, BackendError::TooLarge { .. })]), "{:?}", outcome.refused);
    assert_eq!(world.has(&node).await, [false, true, false]);
}

#[tokio::test]
async fn a_writer_looks_at_what_is_there_when_its_values_are() {
    let world = World::start(true).await;
    world.put(&sharing(Some(KEY), |_| ()), &[item(1, 1000)]).await;
    let lines: Vec<_> = world.fake.requests().iter().map(silk_testkit::Request::line).collect();
    let first = |of: &dyn Fn(&String) -> bool| lines.iter().position(of).unwrap();
    let (value, list) = (first(&|line| line.starts_with("PUT")), first(&|line| line.contains("/referrers/")));
    assert!(value < list, "{lines:#?}");
}

#[tokio::test]
async fn what_was_not_asked_is_not_missing() {
    let world = World::start(true).await;
    let writer = sharing(Some(KEY), |config| config.discover = false);
    assert_eq!(world.has(&writer).await, [false; 3]);
    assert_eq!(status(&writer).misses, 0);
    let reader = sharing(Some(KEY), |_| ());
    world.fake.fault("/referrers/", Fault::status(503), ALWAYS);
    assert_eq!(world.has(&reader).await, [false; 3]);
    assert_eq!(status(&reader).misses, 0, "it did not answer");
    world.fake.heal();
    let reader = sharing(Some(KEY), |_| ());
    assert_eq!(world.has(&reader).await, [false; 3]);
    assert_eq!(status(&reader).misses, 4);
}
