//! Uploads, deletions, and referrers with and without the API.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use silk_model::{Class, Digest};
use silk_registry::{Error, Referrer, Repository, Selector};
use silk_testkit::{ALWAYS, Access, Compression, Fake, Fault, ImageSpec, tar};

use crate::world::{World, pattern, read};

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
pub const TYPE: &str = "application/vnd.test";

#[tokio::test]
async fn a_blob_goes_up_once_and_comes_back() {
    let fake = Fake::start().await;
    let repository = World::new(&[&fake]).repository(&format!("{}/library/app", fake.host())).await;
    let bytes = pattern(300_000);
    for _ in 0..2 {
        let digest = repository.push_blob(bytes.clone()).await.unwrap();
        assert_eq!(digest, Digest::of(&bytes));
        assert_eq!(read(&repository.blob(digest, 300_000), 0..300_000).await.unwrap(), bytes);
    }
    assert_eq!((fake.count("^POST /v2/library/app/blobs/uploads/$"), fake.count("^PUT")), (1, 1));
    assert_eq!(fake.matching("^PUT")[0].header("content-type"), Some("application/octet-stream"));
}

#[tokio::test]
async fn an_upload_that_fails_begins_again() {
    let fake = Fake::start().await;
    let repository = World::new(&[&fake]).repository(&format!("{}/app", fake.host())).await;
    for (n, fault) in [Fault::status(500), Fault::Close, Fault::status(429)].into_iter().enumerate() {
        for method in ["^HEAD", "^POST", "^PUT"] {
            fake.fault(method, fault.clone(), 1);
            let bytes = Bytes::from(format!("{n}{method}"));
            let digest = repository.push_blob(bytes.clone()).await.unwrap();
            assert_eq!(fake.get_blob(&digest), Some(bytes), "{method} {fault:?}");
        }
    }
    fake.fault("^PUT", Fault::error(403, "DENIED", "read only"), ALWAYS);
    let error = repository.push_blob(Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!(error.class(), Class::Denied);
    assert!(error.to_string().contains("for push of blob sha256:"), "{error}");
}

#[tokio::test]
async fn the_right_to_push_is_found_out_without_pushing() {
    let fake = Fake::start().await;
    let repository = World::new(&[&fake]).repository(&format!("{}/app", fake.host())).await;
    fake.fault_status("^POST", 500, 1);
    repository.check_push().await.unwrap();
    let uploads = "/v2/app/blobs/uploads/";
    assert_eq!((fake.count(&format!("^POST {uploads}$")), fake.count("^PUT")), (2, 0));
    assert_eq!(fake.count(&format!("^DELETE {uploads}1")), 1, "what was begun is given up");
    fake.fault_status("^POST", 403, ALWAYS);
    let error = repository.check_push().await.unwrap_err();
    assert_eq!(error.class(), Class::Denied);
    assert!(error.to_string().contains("for a push to app"), "{error}");
}

#[tokio::test]
async fn the_token_of_a_pull_is_not_that_of_a_push() {
    let fake = Fake::start().await;
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    fake.require(Access::anonymous_token());
    fake.allow_deletes(true);
    let repository = World::new(&[&fake]).repository(&pushed.reference).await;
    repository.manifest(&Selector::Digest(pushed.digest), &[OCI]).await.unwrap();
    // The fake asks for "pull,push" whatever is asked of it, so silk's own scope is the other one.
    repository.push_blob(Bytes::from_static(b"x")).await.unwrap();
    repository.push_blob(Bytes::from_static(b"y")).await.unwrap();
    repository.delete_manifest(pushed.digest).await.unwrap();
    let scope = |actions: &str| format!("scope=repository%3Aapp%3A{actions}");
    let tokens: Vec<String> = fake.matching("^GET /token").into_iter().map(|request| request.path).collect();
    assert_eq!(tokens.len(), 3, "{tokens:?}");
    assert!(tokens[0].contains(&scope("pull&")) || tokens[0].ends_with(&scope("pull")), "{tokens:?}");
    assert!(tokens[1].ends_with(&scope("pull%2Cpush")), "{tokens:?}");
    assert!(tokens[2].contains(&scope("pull%2Cdelete")), "{tokens:?}");
}

#[tokio::test]
async fn what_is_pushed_goes_to_the_first_host_that_takes_pushes() {
    let (mirror, registry) = (Fake::start().await, Fake::start().await);
    let world = World::new(&[&mirror, &registry]);
    let hosts =
        format!("server = '{}'\n[host.'{}']\ncapabilities = ['pull', 'resolve']\n", registry.url(), mirror.url());
    world.hosts("registry.example", &hosts);
    let repository = world.repository("registry.example/app").await;
    let digest = repository.push_blob(Bytes::from_static(b"x")).await.unwrap();
    assert!(registry.get_blob(&digest).is_some() && mirror.requests().is_empty());

    world.hosts("none.example", &format!("server = '{}'\ncapabilities = ['pull']\n", registry.url()));
    let error = world.repository("none.example/app").await.push_blob(Bytes::new()).await.unwrap_err();
    assert!(matches!(error, Error::NoHost { needs: "push", .. }), "{error}");
}

/// Pushes an artifact that refers to `subject`; it says `text`.
pub async fn refer(repository: &Repository, subject: Digest, text: &str, replaces: &[Digest]) -> Referrer {
    let config = repository.push_blob(Bytes::from_static(b"{}")).await.unwrap();
    let annotations = BTreeMap::from([("text".to_owned(), text.to_owned())]);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI, "artifactType": TYPE, "annotations": annotations,
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2 },
        "layers": [{ "mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2 }],
        "subject": { "mediaType": OCI, "digest": subject, "size": 1 },
    });
    let bytes = Bytes::from(manifest.to_string());
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    let referrer = Referrer { media_type: OCI.into(), digest, size, artifact_type: TYPE.into(), annotations };
    repository.push_referrer(&subject, &referrer, bytes, replaces).await.unwrap();
    referrer
}

#[tokio::test]
async fn referrers_are_found_with_the_api_and_without() {
    for api in [true, false] {
        for deletes in [true, false] {
            let fake = Fake::start().await;
            fake.have_referrers(api);
            fake.allow_deletes(deletes);
            let pushed = fake.push_image("app:latest", &ImageSpec::new());
            let repository = World::new(&[&fake]).repository(&pushed.reference).await;
            assert_eq!(repository.referrers(&pushed.digest, TYPE).await.unwrap(), []);
            let one = refer(&repository, pushed.digest, "one", &[]).await;
            assert_eq!(repository.referrers(&pushed.digest, TYPE).await.unwrap(), std::slice::from_ref(&one));
            assert_eq!(repository.referrers(&pushed.digest, "other").await.unwrap(), []);
            assert_eq!(repository.referrers(&Digest::of(b"other"), TYPE).await.unwrap(), []);

            let two = refer(&repository, pushed.digest, "two", &[one.digest]).await;
            let mut found = repository.referrers(&pushed.digest, TYPE).await.unwrap();
            found.sort_by_key(|referrer| referrer.annotations["text"].clone());
            let stays = api && !deletes;
            assert_eq!(found, if stays { vec![one.clone(), two] } else { vec![two] }, "api {api}, deletes {deletes}");
            assert_eq!(fake.manifests("app").contains_key(&one.digest.to_string()), !deletes);
            let tag = format!("sha256-{}", pushed.digest.hex());
            assert_eq!(fake.manifests("app").contains_key(&tag), !api, "the tag is for registries without the API");
            if !api {
                assert_eq!(fake.count("/referrers/"), 1, "it is asked once whether it knows");
            }
        }
    }
}

#[tokio::test]
async fn a_registry_that_learned_the_api_is_seen_after_a_while() {
    let fake = Fake::start().await;
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    let repository = World::new(&[&fake]).repository(&pushed.reference).await;
    assert_eq!(repository.referrers(&pushed.digest, TYPE).await.unwrap(), []);
    fake.have_referrers(true);
    let one = refer(&repository, pushed.digest, "one", &[]).await;
    for (seconds, expected) in [(590, vec![]), (11, vec![one])] {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
        assert_eq!(repository.referrers(&pushed.digest, TYPE).await.unwrap(), expected, "{seconds} s later");
    }
}

/// A list that names `next` as its next page.
fn page(next: &str) -> Fault {
    let headers = vec![("link".into(), format!("<{next}>; rel=\"next\""))];
    Fault::Status { code: 200, headers, body: json!({ "schemaVersion": 2, "manifests": [] }).to_string() }
}

#[tokio::test]
async fn all_pages_of_referrers_are_read() {
    let fake = Fake::start().await;
    fake.have_referrers(true);
    fake.page_referrers(2);
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    fake.require(Access::anonymous_token());
    let repository = World::new(&[&fake]).repository(&pushed.reference).await;
    let mut pushed_too = Vec::new();
    for n in 0..5 {
        pushed_too.push(refer(&repository, pushed.digest, &n.to_string(), &[]).await);
    }
    pushed_too.sort_by_key(|referrer| referrer.digest.to_string());
    let before = fake.count("/referrers/");
    assert_eq!(repository.referrers(&pushed.digest, TYPE).await.unwrap(), pushed_too);
    assert_eq!(fake.count("/referrers/") - before, 4, "a challenge and three pages");

    fake.fault("from=2", Fault::status(503), 1);
    assert_eq!(repository.referrers(&pushed.digest, TYPE).await.unwrap(), pushed_too, "tried again");
    // A registry behind a proxy may not know by which scheme it is spoken to.
    fake.fault("/referrers/", page(&format!("https://{}/v2/app/referrers/{}?from=2", fake.host(), pushed.digest)), 1);
    assert_eq!(repository.referrers(&pushed.digest, TYPE).await.unwrap(), pushed_too[2..]);
    fake.fault("from=4", Fault::error(404, "NAME_UNKNOWN", "no such page"), ALWAYS);
    let error = repository.referrers(&pushed.digest, TYPE).await.unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "a page that is not there is no list that is not there: {error}");
}

#[tokio::test]
async fn pages_that_go_round_or_elsewhere_end() {
    let (fake, other) = (Fake::start().await, Fake::start().await);
    fake.have_referrers(true);
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    let repository = World::new(&[&fake]).repository(&pushed.reference).await;
    let path = format!("/v2/app/referrers/{}", pushed.digest);
    for next in [path.clone(), format!("{}{path}", other.url()), "ftp://h/x".into(), "http://".into()] {
        fake.fault("/referrers/", page(&next), ALWAYS);
        let error = repository.referrers(&pushed.digest, TYPE).await.unwrap_err();
        assert!(matches!(error, Error::Redirect { .. }), "{next}: {error}");
        fake.heal();
    }
    assert!(fake.count("/referrers/") <= 110);
    assert_eq!(other.requests().len(), 0);

    // Together no larger than one list may be.
    let annotations = BTreeMap::from([("text", "x".repeat(1 << 20))]);
    let entry = json!({ "mediaType": OCI, "digest": pushed.digest, "size": 1, "annotations": annotations });
    let headers = vec![("link".into(), format!("<{path}>; rel=next"))];
    let body = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    fake.fault("/referrers/", Fault::Status { code: 200, headers, body }, ALWAYS);
    let before = fake.count("/referrers/");
    let error = repository.referrers(&pushed.digest, TYPE).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    assert_eq!(fake.count("/referrers/") - before, 4);
}

#[tokio::test]
async fn the_entries_of_others_stay_in_the_tags_index() {
    let fake = Fake::start().await;
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    let repository = World::new(&[&fake]).repository(&pushed.reference).await;
    let tag = format!("sha256-{}", pushed.digest.hex());
    let index = json!({ "schemaVersion": 2, "manifests": [{ "mediaType": "x", "digest": pushed.digest, "size": 1, "extra": 7 }] });
    fake.put_manifest(&format!("app:{tag}"), "application/vnd.oci.image.index.v1+json", index.to_string());
    let one = refer(&repository, pushed.digest, "one", &[]).await;
    let written: Value = serde_json::from_slice(&fake.manifests("app")[&tag]).unwrap();
    assert_eq!(written["manifests"][0], index["manifests"][0]);
    assert_eq!(written["manifests"][1]["digest"], one.digest.to_string());
    let puts = fake.count(&format!("^PUT /v2/app/manifests/{tag}"));
    refer(&repository, pushed.digest, "one", &[]).await;
    assert_eq!(fake.count(&format!("^PUT /v2/app/manifests/{tag}")), puts, "what is there is not written again");
}

#[tokio::test]
async fn what_is_replaced_is_deleted_only_if_it_is_a_referrer() {
    let fake = Fake::start().await;
    fake.allow_deletes(true);
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    let other = fake.push_image("app:other", &ImageSpec::new().layer(tar(&[("a", b"b")]), Compression::Plain));
    let repository = World::new(&[&fake]).repository(&pushed.reference).await;
    let one = refer(&repository, pushed.digest, "one", &[]).await;
    let elsewhere = refer(&repository, other.digest, "of another image", &[]).await;
    let all = [one.digest, pushed.digest, other.digest, elsewhere.digest];
    let two = refer(&repository, pushed.digest, "two", &all).await;
    let there = fake.manifests("app");
    let is_there = |digest: &Digest| there.contains_key(&digest.to_string());
    assert_eq!(all.map(|digest| is_there(&digest)), [false, true, true, true]);
    assert_eq!(repository.referrers(&pushed.digest, TYPE).await.unwrap(), [two]);
}

#[tokio::test]
async fn where_nothing_may_be_deleted_it_is_not_tried_each_time() {
    for refusal in [None, Some(403), Some(501)] {
        let fake = Fake::start().await;
        fake.have_referrers(true);
        let pushed = fake.push_image("app:latest", &ImageSpec::new());
        let repository = World::new(&[&fake]).repository(&pushed.reference).await;
        if let Some(code) = refusal {
            fake.fault_status("^DELETE", code, ALWAYS);
        }
        let mut old = Vec::new();
        for n in 0..4 {
            old.push(refer(&repository, pushed.digest, &n.to_string(), &old).await.digest);
        }
        assert_eq!(fake.count("^DELETE"), 1, "{refusal:?}");
        assert_eq!(fake.count("^GET .*manifests/sha256"), 1, "{refusal:?}");
        fake.heal();
        fake.allow_deletes(true);
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(601)).await;
        tokio::time::resume();
        let new = refer(&repository, pushed.digest, "new", &old).await;
        assert_eq!(repository.referrers(&pushed.digest, TYPE).await.unwrap(), [new], "{refusal:?}");
    }
}

#[tokio::test]
async fn one_write_deletes_a_few_old_referrers() {
    let fake = Fake::start().await;
    fake.have_referrers(true);
    fake.allow_deletes(true);
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    let repository = World::new(&[&fake]).repository(&pushed.reference).await;
    let mut old = Vec::new();
    for n in 0..20 {
        old.push(refer(&repository, pushed.digest, &n.to_string(), &[]).await.digest);
    }
    for (text, left) in [("one", 4), ("two", 0)] {
        old.push(refer(&repository, pushed.digest, text, &old).await.digest);
        let found: Vec<_> = repository.referrers(&pushed.digest, TYPE).await.unwrap();
        old = found.into_iter().map(|referrer| referrer.digest).collect();
        assert_eq!(old.len(), left + 1, "{text}");
    }
}

#[tokio::test]
async fn a_registry_in_trouble_is_not_one_without_referrers() {
    let fake = Fake::start().await;
    fake.have_referrers(true);
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    let repository = World::new(&[&fake]).repository(&pushed.reference).await;
    let one = refer(&repository, pushed.digest, "one", &[]).await;
    fake.fault("/referrers/", Fault::status(503), 1);
    assert_eq!(repository.referrers(&pushed.digest, TYPE).await.unwrap(), std::slice::from_ref(&one), "tried again");
    fake.fault("/referrers/", Fault::error(404, "NAME_UNKNOWN", "no such repository"), 1);
    assert_eq!(repository.referrers(&pushed.digest, TYPE).await.unwrap(), []);
    assert_eq!(
        repository.referrers(&pushed.digest, TYPE).await.unwrap(),
        std::slice::from_ref(&one),
        "that said nothing of the API"
    );
    let page = Fault::Status { code: 200, headers: Vec::new(), body: "<html>welcome</html>".into() };
    fake.fault("/referrers/", page, 1);
    assert_eq!(repository.referrers(&pushed.digest, TYPE).await.unwrap(), []);
    fake.fault("/referrers/", Fault::error(403, "DENIED", "no"), 1);
    assert_eq!(repository.referrers(&pushed.digest, TYPE).await.unwrap_err().class(), Class::Denied);
}
