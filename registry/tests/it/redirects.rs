//! Blobs that a registry keeps elsewhere.

use futures::future::join_all;
use silk_model::Class;
use silk_registry::{Blob, Error, MANIFEST_TYPES, Object, Selector};
use silk_testkit::{ALWAYS, Access, Fake, Fault, ImageSpec, Pushed};

use crate::world::{World, pattern, read};

const SIZE: u64 = 300_000;

async fn start() -> (Fake, Fake, Blob, bytes::Bytes) {
    let (fake, storage) = (Fake::start().await, Fake::start().await);
    let content = pattern(SIZE as usize);
    let digest = fake.put_blob(content.clone());
    fake.redirect_blobs_to(&storage);
    fake.require(Access::anonymous_token());
    let world = World::new(&[&fake]);
    world.hosts(&fake.host(), &format!("server = '{}'\n[header]\nx-secret = 'hunter2'", fake.url()));
    let blob = world.repository(&format!("{}/app", fake.host())).await.blob(digest, SIZE);
    (fake, storage, blob, content)
}

#[tokio::test]
async fn the_address_is_kept_and_no_secret_goes_there() {
    let (fake, storage, blob, content) = start().await;
    assert_eq!(read(&blob, 0..SIZE).await.unwrap(), content);
    for i in 0..5 {
        assert_eq!(read(&blob, i..i + 10).await.unwrap(), content[i as usize..i as usize + 10]);
    }
    assert_eq!((fake.count("blobs"), storage.requests().len()), (2, 6), "the registry: a challenge and a redirect");
    assert!(fake.matching("blobs").iter().all(|request| request.header("x-secret") == Some("hunter2")));
    for request in storage.requests() {
        assert_eq!((request.header("authorization"), request.header("x-secret")), (None, None));
    }
    assert_eq!(blob.host(), storage.host());
}

#[tokio::test]
async fn readers_that_start_together_ask_for_the_address_once() {
    let (fake, _storage, blob, content) = start().await;
    let reads = (0..20).map(|i| read(&blob, i * 1000..(i + 1) * 1000));
    for (i, bytes) in join_all(reads).await.into_iter().enumerate() {
        assert_eq!(bytes.unwrap(), content[i * 1000..(i + 1) * 1000]);
    }
    assert_eq!(fake.count("blobs"), 2);
}

#[tokio::test]
async fn an_expired_signature_is_replaced_without_a_wait() {
    let (fake, storage, blob, content) = start().await;
    assert_eq!(read(&blob, 0..SIZE).await.unwrap(), content);
    storage.expire_signatures();
    assert_eq!(read(&blob, 5..SIZE).await.unwrap(), content[5..]);
    let statuses: Vec<u16> = storage.requests().iter().map(|request| request.status).collect();
    assert_eq!((statuses, fake.count("blobs")), (vec![200, 403, 206], 3));

    for code in [400, 401, 404, 410] {
        let before = fake.count("blobs");
        storage.fault_status("storage", code, 1);
        assert_eq!(read(&blob, 7..9).await.unwrap(), content[7..9], "{code}");
        assert_eq!(fake.count("blobs"), before + 1, "{code}");
    }
}

#[tokio::test]
async fn storage_that_goes_on_refusing_is_named_without_its_signature() {
    let (fake, storage, blob, _) = start().await;
    storage.fault("storage", Fault::error(403, "AccessDenied", "no"), ALWAYS);
    let error = read(&blob, 0..SIZE).await.unwrap_err();
    assert_eq!(error.class(), Class::Denied);
    let (registry, storage) = (fake.host(), storage.host());
    assert_eq!(
        error.to_string(),
        format!(
            "registry {storage} refused silk: 403 Forbidden for blob {} of app (AccessDenied: no): \
             registry {registry} redirected silk there",
            blob.digest()
        )
    );
}

#[tokio::test]
async fn storage_that_is_down_makes_the_registry_be_asked_again() {
    let (fake, storage, blob, content) = start().await;
    assert_eq!(read(&blob, 0..10).await.unwrap(), content[..10]);
    storage.stop().await;
    let other = Fake::start().await;
    fake.redirect_blobs_to(&other);
    assert_eq!(read(&blob, 10..20).await.unwrap(), content[10..20]);
    assert_eq!(blob.host(), other.host());
}

#[tokio::test]
async fn storage_that_breaks_off_or_lies_makes_the_registry_be_asked_again() {
    for (fault, is_final) in
        [(Fault::CutAfter(1000), false), (Fault::StallAfter(1000), false), (Fault::Truncate(1000), true)]
    {
        let (fake, storage, other) = (Fake::start().await, Fake::start().await, Fake::start().await);
        let content = pattern(SIZE as usize);
        let digest = fake.put_blob(content.clone());
        fake.redirect_blobs_to(&storage);
        let repository = World::hasty(&[&fake]).repository(&format!("{}/app", fake.host())).await;
        let blob = repository.blob(digest, SIZE);
        assert_eq!(read(&blob, 0..10).await.unwrap(), content[..10]);
        storage.fault("storage", fault.clone(), ALWAYS);
        fake.redirect_blobs_to(&other);
        if is_final {
            read(&blob, 0..SIZE).await.unwrap_err();
        }
        assert_eq!(read(&blob, 0..SIZE).await.unwrap(), content, "{fault:?}");
        assert_eq!((storage.requests().len(), fake.count("blobs")), (2, 2), "{fault:?}");
    }
}

#[tokio::test]
async fn a_probe_is_content_with_a_redirect() {
    let (_fake, storage, blob, _) = start().await;
    let fake = &_fake;
    let repository = World::new(&[fake]).repository(&format!("{}/app", fake.host())).await;
    repository.check(Object::Blob(blob.digest()), std::time::Duration::from_secs(5)).await.unwrap();
    assert_eq!(storage.requests().len(), 0);
}

#[tokio::test]
async fn redirects_within_the_registry_keep_the_authorization_and_end() {
    let fake = Fake::start().await;
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    fake.require(Access::basic("u", "p"));
    let world = World::new(&[&fake]);
    world.login(&format!(r#"{{"auths": {{"{}": {{"username": "u", "password": "p"}}}}}}"#, fake.host()));
    let repository = world.repository(&pushed.reference).await;
    let latest = Selector::Tag("latest".into());
    fake.fault("manifests/latest", Fault::Redirect(format!("/v2/app/manifests/{}", pushed.digest)), 1);
    assert_eq!(repository.manifest(&latest, MANIFEST_TYPES).await.unwrap().digest, pushed.digest);

    for location in ["/v2/app/manifests/latest", "ftp://h/x", "http://", "data:,x"] {
        fake.fault("manifests", Fault::Redirect(location.into()), ALWAYS);
        let error = repository.manifest(&latest, MANIFEST_TYPES).await.unwrap_err();
        assert!(matches!(error, Error::Redirect { .. }), "{location}: {error}");
        fake.heal();
    }
}

/// A registry that redirects all of `team/app` to `app` at another one, which has it.
async fn start_vanity(access: Access) -> (Fake, Fake, World, Pushed) {
    let (vanity, real) = (Fake::start().await, Fake::start().await);
    let pushed = real.push_image("app:latest", &ImageSpec::new());
    real.require(access);
    for what in [format!("manifests/{}", pushed.digest), format!("blobs/{}", pushed.config_digest)] {
        let there = format!("{}/v2/app/{what}", real.url());
        vanity.fault(&format!("/v2/team/app/{what}"), Fault::Redirect(there), ALWAYS);
    }
    let world = World::new(&[&vanity]);
    (vanity, real, world, pushed)
}

#[tokio::test]
async fn a_registry_that_another_redirects_to_is_answered_with_its_own_credentials() {
    for (access, password) in [(Access::anonymous_token(), ""), (Access::basic("u", "real"), "real")] {
        let (vanity, real, world, pushed) = start_vanity(access).await;
        vanity.require(Access::basic("u", "vanity"));
        let login =
            |fake: &Fake, password| format!(r#""{}": {{"username": "u", "password": "{password}"}}"#, fake.host());
        world.login(&format!(r#"{{"auths": {{{}, {}}}}}"#, login(&vanity, "vanity"), login(&real, password)));
        let repository = world.repository(&format!("{}/team/app", vanity.host())).await;
        repository.check(Object::Manifest(pushed.digest), std::time::Duration::from_secs(5)).await.unwrap();
        let selector = Selector::Digest(pushed.digest);
        assert_eq!(repository.manifest(&selector, MANIFEST_TYPES).await.unwrap().bytes, pushed.manifest);
        let config = real.get_blob(&pushed.config_digest).unwrap();
        let blob = repository.blob(pushed.config_digest, config.len() as u64);
        let asked = vanity.requests().len();
        for i in 0..3 {
            assert_eq!(read(&blob, i..i + 20).await.unwrap(), config[i as usize..i as usize + 20]);
            real.expire_tokens();
        }
        assert_eq!(vanity.requests().len(), asked + 1, "the address is kept");
        // "u:vanity"
        let leaks =
            real.requests().iter().any(|r| r.header("authorization").is_some_and(|v| v.ends_with("dTp2YW5pdHk=")));
        assert!(!leaks);
        for token in real.matching("/token") {
            assert!(
                token.path.contains("scope=repository%3Aapp%3Apull") && !token.path.contains("team"),
                "{}",
                token.path
            );
        }
    }
}

#[tokio::test]
async fn a_probe_asks_the_registry_that_is_redirected_to() {
    let (vanity, real, world, pushed) = start_vanity(Access::basic("u", "p")).await;
    let repository = world.repository(&format!("{}/team/app", vanity.host())).await;
    let error = repository.check(Object::Manifest(pushed.digest), std::time::Duration::from_secs(5)).await.unwrap_err();
    assert_eq!((error.class(), real.requests().len()), (Class::Denied, 1));
    let words =
        format!("registry {} redirected silk there; there are no credentials for {}", vanity.host(), real.host());
    assert!(error.to_string().contains(&words), "{error}");
}

#[tokio::test]
async fn a_token_server_may_redirect() {
    let (fake, other) = (Fake::start().await, Fake::start().await);
    let pushed = fake.push_image("app:latest", &ImageSpec::new());
    let world = World::new(&[&fake]);
    world.login(&format!(r#"{{"auths": {{"{}": {{"username": "u", "password": "p"}}}}}}"#, fake.host()));
    let latest = Selector::Tag("latest".into());
    for access in [Access::anonymous_token(), Access::token("u", "p")] {
        fake.require(access);
        fake.fault("/token.service", Fault::Redirect("/token?moved=1".into()), 1);
        let repository = world.repository(&pushed.reference).await;
        assert_eq!(repository.manifest(&latest, MANIFEST_TYPES).await.unwrap().digest, pushed.digest);
    }
    fake.fault("/token", Fault::Redirect(format!("{}/token", other.url())), 1);
    world.repository(&pushed.reference).await.manifest(&latest, MANIFEST_TYPES).await.unwrap_err();
    assert_eq!(other.requests()[0].header("authorization"), None, "not to another host");
    fake.fault("/token", Fault::Redirect("/token".into()), ALWAYS);
    let error = world.repository(&pushed.reference).await.manifest(&latest, MANIFEST_TYPES).await.unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error}");
}
