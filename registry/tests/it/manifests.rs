//! Manifests and probes of one registry.

use std::time::Duration;

use silk_model::{Class, Digest};
use silk_registry::{Error, Object, Selector};
use silk_testkit::{ALWAYS, Fake, Fault, ImageSpec};

use crate::world::World;

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

fn latest() -> Selector {
    Selector::Tag("latest".into())
}

#[tokio::test]
async fn by_tag_and_by_digest() {
    let fake = Fake::start().await;
    let pushed = fake.push_image("library/app:latest", &ImageSpec::new());
    let repository = World::new(&[&fake]).repository(&pushed.reference).await;
    for send_digest_header in [true, false] {
        fake.send_digest_header(send_digest_header);
        for selector in [latest(), Selector::Digest(pushed.digest)] {
            let manifest = repository.manifest(&selector, &[OCI, "*/*"]).await.unwrap();
            assert_eq!((manifest.digest, manifest.bytes), (pushed.digest, pushed.manifest.clone()));
            assert_eq!(manifest.media_type, OCI);
        }
    }
    let request = &fake.requests()[0];
    assert_eq!(request.path, "/v2/library/app/manifests/latest");
    assert_eq!(request.header("accept"), Some(format!("{OCI}, */*").as_str()));
    assert!(request.header("user-agent").unwrap().starts_with("silk/0."));
    assert_eq!(request.header("authorization"), None);
}

#[tokio::test]
async fn what_was_compressed_on_the_way_is_as_it_was() {
    let fake = Fake::start().await;
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    let repository = World::new(&[&fake]).repository(&pushed.reference).await;
    for coding in ["gzip", "zstd"] {
        fake.fault("manifests", Fault::Compressed { coding, ranges: false }, 1);
        let manifest = repository.manifest(&latest(), &[OCI]).await.unwrap();
        assert_eq!(manifest.bytes, pushed.manifest, "{coding}");
    }
}

#[tokio::test]
async fn passing_faults_are_tried_again() {
    let fake = Fake::start().await;
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    let repository = World::hasty(&[&fake]).repository(&pushed.reference).await;
    for fault in [
        Fault::status(500),
        Fault::status(503),
        Fault::status(408),
        Fault::too_many_requests("0"),
        Fault::too_many_requests("Sun, 06 Nov 1994 08:49:37 GMT"),
        Fault::Close,
        Fault::CutAfter(10),
        Fault::StallAfter(10),
    ] {
        let before = fake.requests().len();
        fake.fault("manifests", fault.clone(), 1);
        let manifest = repository.manifest(&latest(), &[OCI]).await;
        assert_eq!(manifest.unwrap().digest, pushed.digest, "{fault:?}");
        assert_eq!(fake.requests().len() - before, 2, "{fault:?}");
    }
}

#[tokio::test]
async fn lasting_faults_end_with_the_last_cause() {
    let fake = Fake::start().await;
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    let repository = World::new(&[&fake]).repository(&pushed.reference).await;
    fake.fault("manifests", Fault::error(503, "UNAVAILABLE", "down\nfor tea"), ALWAYS);
    let error = repository.manifest(&latest(), &[OCI]).await.unwrap_err();
    assert_eq!((error.class(), fake.requests().len()), (Class::Transient, 4));
    let expected = format!(
        "registry {} answered 503 Service Unavailable for manifest latest of app (UNAVAILABLE: down for tea) \
         (gave up after 4 attempts in 0 s)",
        fake.host()
    );
    assert_eq!(error.to_string(), expected);

    fake.stop().await;
    let error = repository.manifest(&latest(), &[OCI]).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient);
    let message = error.to_string();
    assert!(message.contains("cannot be reached for manifest latest of app: "), "{message}");
    assert!(message.contains("Connection refused") && !message.contains("http://"), "{message}");
}

#[tokio::test]
async fn refusals_are_final_and_speak_with_the_registrys_words() {
    let fake = Fake::start().await;
    fake.push_image("app:latest", &ImageSpec::new());
    let host = fake.host();
    let repository = World::new(&[&fake]).repository(&format!("{host}/app")).await;
    let cases = [
        (
            404,
            "MANIFEST_UNKNOWN",
            Class::NotFound,
            format!("registry {host} has no manifest latest of app: 404 Not Found"),
        ),
        (
            403,
            "DENIED",
            Class::Denied,
            format!("registry {host} refused silk: 403 Forbidden for manifest latest of app"),
        ),
        (
            400,
            "BAD",
            Class::Unsupported,
            format!("registry {host} answered 400 Bad Request for manifest latest of app"),
        ),
    ];
    for (status, code, class, words) in cases {
        let before = fake.requests().len();
        fake.fault("manifests", Fault::error(status, code, &"why ".repeat(200)), 1);
        let error = repository.manifest(&latest(), &[OCI]).await.unwrap_err();
        let message = error.to_string();
        assert_eq!(error.class(), class, "{message}");
        assert!(message.starts_with(&format!("{words} ({code}: why why")) && message.len() < 500, "{message}");
        assert_eq!(fake.requests().len() - before, 1, "{status} is final");
    }
}

#[tokio::test]
async fn bytes_of_another_digest_are_refused() {
    let fake = Fake::start().await;
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    let repository = World::new(&[&fake]).repository(&pushed.reference).await;
    fake.fault("manifests", Fault::Flip(5), 1);
    let error = repository.manifest(&Selector::Digest(pushed.digest), &[OCI]).await.unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }) && error.class() == Class::Corrupt);
    assert!(error.to_string().contains(&pushed.digest.to_string()), "{error}");

    let liar = Fault::Status {
        code: 200,
        headers: vec![("docker-content-digest".into(), Digest::of(b"other").to_string())],
        body: "{}".into(),
    };
    fake.fault("manifests", liar, 1);
    assert!(matches!(repository.manifest(&latest(), &[OCI]).await, Err(Error::WrongDigest { .. })));
}

#[tokio::test]
async fn a_manifest_has_a_bound() {
    let fake = Fake::start().await;
    let most = vec![b' '; 8 << 20];
    fake.put_manifest("app:most", OCI, most.clone());
    fake.put_manifest("app:more", OCI, [most, vec![b' ']].concat());
    let repository = World::new(&[&fake]).repository(&format!("{}/app", fake.host())).await;
    repository.manifest(&Selector::Tag("most".into()), &[OCI]).await.unwrap();
    let error = repository.manifest(&Selector::Tag("more".into()), &[OCI]).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 8_388_608, .. }), "{error}");
}

const DEADLINE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_probe_is_one_head_request() {
    let fake = Fake::start().await;
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    let repository = World::new(&[&fake]).repository(&pushed.reference).await;
    repository.check(Object::Manifest(pushed.digest), DEADLINE).await.unwrap();
    repository.check(Object::Blob(pushed.config_digest), DEADLINE).await.unwrap();
    assert_eq!((fake.count("^HEAD /v2/app/(manifests|blobs)/sha256:"), fake.requests().len()), (2, 2));

    fake.fault_status("^HEAD", 405, 1);
    repository.check(Object::Manifest(pushed.digest), DEADLINE).await.unwrap();
    assert_eq!(fake.count("^GET"), 1, "a registry without HEAD is asked with GET");

    let before = fake.requests().len();
    let error = repository.check(Object::Blob(Digest::of(b"none")), DEADLINE).await.unwrap_err();
    assert_eq!((error.class(), fake.requests().len() - before), (Class::NotFound, 1));
    fake.fault_status("^HEAD", 429, 1);
    let error = repository.check(Object::Manifest(pushed.digest), DEADLINE).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient, "who wants silk to wait is not asked again at once: {error}");
}

#[tokio::test]
async fn a_probe_outlives_a_servers_short_trouble() {
    let fake = Fake::start().await;
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    let repository = World::new(&[&fake]).repository(&pushed.reference).await;
    fake.fault_status("^HEAD", 503, 2);
    repository.check(Object::Manifest(pushed.digest), DEADLINE).await.unwrap();
    fake.fault("^HEAD", Fault::Close, 2);
    repository.check(Object::Manifest(pushed.digest), DEADLINE).await.unwrap();

    let before = fake.requests().len();
    fake.fault_status("^HEAD", 503, ALWAYS);
    let error = repository.check(Object::Manifest(pushed.digest), DEADLINE).await.unwrap_err();
    assert_eq!((error.class(), fake.requests().len() - before), (Class::Transient, 3), "{error}");
}

#[tokio::test]
async fn a_kept_connection_that_is_closed_as_it_is_used_again_costs_nothing() {
    let fake = Fake::start().await;
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    let repository = World::new(&[&fake]).repository(&pushed.reference).await;
    repository.check(Object::Manifest(pushed.digest), DEADLINE).await.unwrap();
    fake.fault("^HEAD", Fault::Close, 1);
    repository.check(Object::Manifest(pushed.digest), DEADLINE).await.unwrap();
    assert_eq!(fake.requests().len(), 3);
    // What writes may have been done.
    fake.fault("^POST", Fault::Close, ALWAYS);
    repository.check_push().await.unwrap_err();
    assert_eq!(fake.count("^POST"), 4, "the attempts alone");
}

#[tokio::test]
async fn a_probe_keeps_its_deadline() {
    let fake = Fake::start().await;
    let repository = World::new(&[&fake]).repository(&format!("{}/app", fake.host())).await;
    fake.fault("HEAD", Fault::NoAnswer, ALWAYS);
    let error = repository.check(Object::Blob(Digest::of(b"x")), Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
    assert!(error.to_string().contains("did not answer within 0.3 s"), "{error}");
}
