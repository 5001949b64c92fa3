//! Basic authorization and tokens.

use std::time::Duration;

use futures::future::join_all;
use silk_model::Class;
use silk_registry::{Error, MANIFEST_TYPES, Repository, Selector};
use silk_testkit::{ALWAYS, Access, Fake, Fault, ImageSpec, Pushed};

use crate::world::{World, pattern, read};

/// "user:hunter2".
const AUTH: &str = "dXNlcjpodW50ZXIy";

async fn start(access: Access) -> (Fake, Pushed, World) {
    let fake = Fake::start().await;
    let pushed = fake.push_image("library/app:latest", &ImageSpec::new());
    fake.require(access);
    let world = World::new(&[&fake]);
    (fake, pushed, world)
}

fn login(world: &World, fake: &Fake, entry: &str) {
    world.login(&format!(r#"{{"auths": {{"{}": {entry}}}}}"#, fake.host()));
}

async fn get(repository: &Repository) -> Result<(), Error> {
    repository.manifest(&Selector::Tag("latest".into()), MANIFEST_TYPES).await.map(drop)
}

#[tokio::test]
async fn basic_is_sent_after_the_challenge_and_then_at_once() {
    let (fake, pushed, world) = start(Access::basic("user", "hunter2")).await;
    login(&world, &fake, &format!(r#"{{"auth": "{AUTH}"}}"#));
    let repository = world.repository(&pushed.reference).await;
    get(&repository).await.unwrap();
    get(&repository).await.unwrap();
    let statuses: Vec<u16> = fake.requests().iter().map(|request| request.status).collect();
    assert_eq!(statuses, [401, 200, 200]);
}

#[tokio::test]
async fn without_credentials_the_refusal_says_where_they_are_missing() {
    let (fake, pushed, world) = start(Access::basic("user", "hunter2")).await;
    let repository = world.repository(&pushed.reference).await;
    let error = get(&repository).await.unwrap_err();
    let (host, path) = (fake.host(), world.config.docker_config_path());
    assert_eq!(
        error.to_string(),
        format!(
            "registry {host} refused silk: 401 Unauthorized for manifest latest of library/app \
             (UNAUTHORIZED: authentication required): there are no credentials for {host} in {}",
            path.display()
        )
    );
    assert_eq!((error.class(), fake.requests().len()), (Class::Denied, 1));

    login(&world, &fake, r#"{"username": "user", "password": "wrong"}"#);
    let error = get(&repository).await.unwrap_err();
    assert!(error.to_string().ends_with(&format!("check the credentials in {}", path.display())), "{error}");
    assert!(!format!("{error} {error:?} {repository:?}").contains("wrong"));
    assert_eq!(fake.requests().len(), 3, "wrong credentials are tried once");

    login(&world, &fake, r#"{"username": "user", "password": "hunter2"}"#);
    get(&repository).await.expect("a new login is seen at once");
}

#[tokio::test]
async fn one_token_serves_a_repository_until_it_expires() {
    let (fake, pushed, world) = start(Access::token("user", "hunter2")).await;
    fake.push_image("other:latest", &ImageSpec::new());
    login(&world, &fake, &format!(r#"{{"auth": "{AUTH}"}}"#));
    let registry = world.registry();
    let repository = registry.repository(&pushed.reference.parse().unwrap()).await.unwrap();
    get(&repository).await.unwrap();
    get(&repository).await.unwrap();
    let again = registry.repository(&pushed.reference.parse().unwrap()).await.unwrap();
    get(&again).await.unwrap();
    let tokens = fake.matching("^GET /token");
    assert_eq!(tokens.len(), 1, "tokens outlive the pull");
    assert!(
        tokens[0].path.contains("service=fake") && tokens[0].path.contains("scope=repository%3Alibrary%2Fapp%3Apull")
    );

    let other = registry.repository(&format!("{}/other", fake.host()).parse().unwrap()).await.unwrap();
    get(&other).await.unwrap();
    assert_eq!(fake.count("/token"), 2, "another repository needs its own");

    fake.expire_tokens();
    get(&repository).await.unwrap();
    assert_eq!(fake.count("/token"), 3);
    let refused = fake.requests().iter().filter(|request| request.status == 401).count();
    assert_eq!(refused, 3, "each repository once at first, and once after the expiry");
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires_without_asking_the_registry() {
    let (fake, pushed, world) = start(Access::Bearer { user: None, identity_token: None, expires_in: Some(300) }).await;
    let repository = world.repository(&pushed.reference).await;
    get(&repository).await.unwrap();
    for (seconds, tokens) in [(280, 1), (11, 2)] {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
        get(&repository).await.unwrap();
        assert_eq!(fake.count("/token"), tokens, "after {seconds} s more");
    }
    assert_eq!(fake.requests().iter().filter(|request| request.status == 401).count(), 1);
}

#[tokio::test]
async fn a_refused_fresh_token_is_final() {
    let (fake, pushed, world) = start(Access::anonymous_token()).await;
    let repository = world.repository(&pushed.reference).await;
    let challenge = format!(r#"Bearer realm="{}/token",service="fake",error="insufficient_scope""#, fake.url());
    let headers = vec![("www-authenticate".into(), challenge)];
    fake.fault("manifests", Fault::Status { code: 401, headers, body: String::new() }, ALWAYS);
    let error = get(&repository).await.unwrap_err();
    assert_eq!((error.class(), fake.count("manifests/"), fake.count("/token")), (Class::Denied, 2, 1));
}

#[tokio::test]
async fn an_expired_password_is_looked_up_again_whatever_the_registry_answers() {
    // ECR says 403, and nothing of how to do better.
    for code in [403, 401] {
        let (fake, pushed, world) = start(Access::basic("AWS", "morning")).await;
        login(&world, &fake, r#"{"username": "AWS", "password": "morning"}"#);
        let repository = world.repository(&pushed.reference).await;
        get(&repository).await.unwrap();

        login(&world, &fake, r#"{"username": "AWS", "password": "evening"}"#);
        fake.require(Access::basic("AWS", "evening"));
        fake.fault("manifests", Fault::error(code, "DENIED", "Your authorization token has expired."), 1);
        get(&repository).await.unwrap();
        let statuses: Vec<u16> = fake.requests().iter().map(|request| request.status).collect();
        assert_eq!(statuses, [401, 200, code, 200]);

        fake.fault("manifests", Fault::error(code, "DENIED", "not this one"), ALWAYS);
        let error = get(&repository).await.unwrap_err();
        assert!(error.to_string().contains(&format!("refused silk: {code} ")), "{error}");
        assert!(error.to_string().contains("(DENIED: not this one): check the credentials in"), "{error}");
        assert_eq!((error.class(), fake.requests().len()), (Class::Denied, 6), "once more and no further");
    }
}

#[tokio::test]
async fn a_token_server_that_refuses_is_named_and_one_that_stumbles_is_tried_again() {
    let (fake, pushed, world) = start(Access::token("user", "hunter2")).await;
    login(&world, &fake, r#"{"username": "user", "password": "wrong"}"#);
    let repository = world.repository(&pushed.reference).await;
    let error = get(&repository).await.unwrap_err();
    let expected = format!(
        "registry {} refused silk: 401 Unauthorized for a token for library/app (incorrect username or password): check",
        fake.host()
    );
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert_eq!(error.class(), Class::Denied);

    login(&world, &fake, &format!(r#"{{"auth": "{AUTH}"}}"#));
    fake.fault("/token", Fault::status(502), 1);
    fake.fault("/token", Fault::Close, 1);
    get(&repository).await.unwrap();
    let nonsense = Fault::Status { code: 200, headers: Vec::new(), body: "<html>".into() };
    fake.expire_tokens();
    fake.fault("/token", nonsense, 1);
    assert!(matches!(get(&repository).await, Err(Error::NoToken { .. })));
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let (fake, pushed, world) = start(Access::identity_token("refresh-me")).await;
    login(&world, &fake, r#"{"auth": "eDo=", "identitytoken": "refresh-me"}"#);
    get(&world.repository(&pushed.reference).await).await.unwrap();
    assert_eq!((fake.count("^POST /token$"), fake.count("^GET /token")), (1, 0));
}

#[tokio::test]
async fn many_readers_share_one_token_and_its_renewal() {
    let (fake, pushed, world) = start(Access::anonymous_token()).await;
    let content = pattern(100_000);
    let digest = fake.put_blob(content.clone());
    let blob = world.repository(&pushed.reference).await.blob(digest, 100_000);
    for tokens in [1, 2] {
        let reads = (0..8).map(|i| read(&blob, i * 10_000..(i + 1) * 10_000));
        for (i, bytes) in join_all(reads).await.into_iter().enumerate() {
            assert_eq!(bytes.unwrap(), content[i * 10_000..(i + 1) * 10_000]);
        }
        assert_eq!(fake.count("/token"), tokens);
        fake.expire_tokens();
    }
}

#[tokio::test]
async fn requests_do_not_queue_up_at_a_token_server_that_hangs() {
    let (fake, pushed, mut world) = start(Access::anonymous_token()).await;
    world.config.response_timeout_secs = 3600;
    fake.fault("/token", Fault::NoAnswer, 3);
    let repository = world.repository(&pushed.reference).await;
    let ask = || {
        let repository = repository.clone();
        tokio::spawn(async move { get(&repository).await })
    };
    let requests = [ask(), ask(), ask()];
    let all = tokio::time::timeout(Duration::from_secs(60), fake.wait_for_stalls(3)).await;
    all.expect("each asks for a token by itself");
    get(&repository).await.expect("it answers again");
    get(&repository).await.unwrap();
    assert_eq!(fake.count("/token"), 4, "what was granted meanwhile is kept");
    requests.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_token_that_expires_in_the_middle_of_a_blob_is_renewed() {
    let (fake, pushed, world) = start(Access::anonymous_token()).await;
    let content = pattern(500_000);
    let digest = fake.put_blob(content.clone());
    fake.fault("blobs", Fault::CutAfter(100_000), 2);
    let blob = world.repository(&pushed.reference).await.blob(digest, 500_000);
    let mut stream = blob.read(0..500_000);
    let mut bytes = stream.next().await.unwrap().unwrap().to_vec();
    fake.expire_tokens();
    bytes.extend(crate::world::rest(&mut stream).await.unwrap());
    assert_eq!(bytes, content);
    assert_eq!(fake.count("/token"), 2);
}
