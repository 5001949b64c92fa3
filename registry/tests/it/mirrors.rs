//! Several hosts for one registry.

use std::time::Duration;

use silk_model::Class;
use silk_registry::{Error, MANIFEST_TYPES, Object, Selector};
use silk_testkit::{ALWAYS, Access, Fake, Fault, ImageSpec, Pushed};

use crate::{
    pushes::{TYPE, refer},
    world::{World, pattern, read},
};

const SIZE: u64 = 300_000;

struct Two {
    mirror: Fake,
    own: Fake,
    world: World,
    pushed: Pushed,
    content: bytes::Bytes,
    digest: silk_model::Digest,
}

/// `registry.test` with a mirror before it; both have everything.
async fn start(mirror_options: &str) -> Two {
    let (mirror, own) = (Fake::start().await, Fake::start().await);
    let pushed = own.push_image("library/app:latest", &ImageSpec::new());
    let content = pattern(SIZE as usize);
    let digest = own.put_blob(content.clone());
    mirror.mirror(&own);
    let world = World::new(&[]);
    let toml = format!("server = '{}'\n[host.'{}']\n{mirror_options}", own.url(), mirror.url());
    world.hosts("registry.test", &toml);
    Two { mirror, own, world, pushed, content, digest }
}

fn latest() -> Selector {
    Selector::Tag("latest".into())
}

#[tokio::test]
async fn the_mirror_is_asked_first_and_told_for_whom() {
    let two = start("").await;
    let repository = two.world.repository("registry.test/library/app").await;
    repository.manifest(&latest(), MANIFEST_TYPES).await.unwrap();
    let blob = repository.blob(two.digest, SIZE);
    assert_eq!(read(&blob, 0..SIZE).await.unwrap(), two.content);
    assert_eq!((two.mirror.count("ns=registry.test$"), two.mirror.requests().len()), (2, 2));
    assert_eq!((two.own.requests().len(), blob.host()), (0, two.mirror.host()));
}

#[tokio::test]
async fn a_mirror_that_may_not_resolve_serves_digests_only() {
    let two = start("capabilities = ['pull']").await;
    let repository = two.world.repository("registry.test/library/app").await;
    repository.manifest(&latest(), MANIFEST_TYPES).await.unwrap();
    assert_eq!((two.mirror.requests().len(), two.own.requests().len()), (0, 1));
    repository.manifest(&Selector::Digest(two.pushed.digest), MANIFEST_TYPES).await.unwrap();
    assert_eq!((two.mirror.requests().len(), two.own.requests().len()), (1, 1));

    two.world.hosts("push.test", "server = 'http://127.0.0.1:1'\ncapabilities = ['push']");
    let error = two.world.repository("push.test/a").await.manifest(&latest(), MANIFEST_TYPES).await.unwrap_err();
    assert!(matches!(error, Error::NoHost { .. }), "{error}");
}

#[tokio::test]
async fn a_mirror_that_refuses_or_lies_is_passed_over_at_once() {
    let two = start("").await;
    let repository = two.world.repository("registry.test/library/app").await;
    for fault in [Fault::status(404), Fault::status(403), Fault::Flip(3), Fault::too_many_requests("3000")] {
        let before = two.mirror.requests().len();
        two.mirror.fault(".", fault.clone(), ALWAYS);
        let manifest = repository.manifest(&Selector::Digest(two.pushed.digest), MANIFEST_TYPES).await;
        assert_eq!(manifest.unwrap().digest, two.pushed.digest, "{fault:?}");
        assert_eq!(two.mirror.requests().len(), before + 1);
        two.mirror.heal();
    }
    two.mirror.drop_blobs();
    let blob = repository.blob(two.digest, SIZE);
    assert_eq!(read(&blob, 5..SIZE).await.unwrap(), two.content[5..]);
    let before = two.mirror.requests().len();
    assert_eq!(read(&blob, 0..5).await.unwrap(), two.content[..5]);
    assert_eq!(two.mirror.requests().len(), before, "the next read starts where the last one succeeded");
}

#[tokio::test]
async fn a_mirror_that_refuses_a_range_is_left_at_once() {
    let two = start("").await;
    two.mirror.fault("blobs", Fault::Truncate(200_000), ALWAYS);
    let blob = two.world.repository("registry.test/library/app").await.blob(two.digest, SIZE);
    assert_eq!(read(&blob, 250_000..SIZE).await.unwrap(), two.content[250_000..]);
    assert_eq!((two.mirror.requests().len(), two.own.requests().len()), (1, 1));
}

#[tokio::test]
async fn the_registrys_own_refusal_is_reported() {
    let two = start("").await;
    two.mirror.fault_status(".", 404, ALWAYS);
    two.own.require(Access::basic("u", "p"));
    let repository = two.world.repository("registry.test/library/app").await;
    let error = repository.manifest(&latest(), MANIFEST_TYPES).await.unwrap_err();
    assert_eq!(error.class(), Class::Denied);
    assert!(error.to_string().contains(&two.own.host()), "{error}");
}

#[tokio::test]
async fn only_the_registry_itself_is_asked_again_after_a_bare_404() {
    let two = start("").await;
    two.mirror.fault_status(".", 404, ALWAYS);
    two.own.fault_status(".", 404, 2);
    let repository = two.world.repository("registry.test/library/app").await;
    assert_eq!(read(&repository.blob(two.digest, SIZE), 5..10).await.unwrap(), two.content[5..10]);
    assert_eq!((two.mirror.requests().len(), two.own.requests().len()), (1, 3));

    two.own.fault_status("blobs", 404, ALWAYS);
    let error = read(&repository.blob(two.digest, SIZE), 5..10).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient);
    assert!(error.to_string().contains("answered 404 Not Found for blob"), "{error}");
    two.own.fault_status("manifests", 404, ALWAYS);
    let before = two.own.requests().len();
    let error = repository.manifest(&latest(), MANIFEST_TYPES).await.unwrap_err();
    assert_eq!((error.class(), two.own.requests().len()), (Class::NotFound, before + 1), "soon");
}

#[tokio::test]
async fn a_mirror_that_keeps_cutting_is_left_in_the_middle_of_a_blob() {
    let two = start("").await;
    two.mirror.fault("blobs", Fault::CutAfter(100_000), 1);
    two.mirror.fault("blobs", Fault::CutAfter(0), ALWAYS);
    let blob = two.world.repository("registry.test/library/app").await.blob(two.digest, SIZE);
    assert_eq!(read(&blob, 0..SIZE).await.unwrap(), two.content);
    let ranges: Vec<_> = two.own.requests().iter().map(|r| r.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, [Some("bytes=100000-299999".to_owned())]);
    assert_eq!((two.mirror.requests().len(), blob.host()), (2, two.own.host()));
}

#[tokio::test]
async fn a_mirror_that_is_down_is_left_alone_for_a_while() {
    let two = start("").await;
    two.mirror.stop().await;
    let registry = two.world.registry();
    let repository = registry.repository(&"registry.test/library/app".parse().unwrap()).await.unwrap();
    repository.manifest(&latest(), MANIFEST_TYPES).await.unwrap();
    two.mirror.resume().await;
    repository.manifest(&latest(), MANIFEST_TYPES).await.unwrap();
    assert_eq!((two.mirror.requests().len(), two.own.requests().len()), (0, 2), "it rests");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    repository.manifest(&latest(), MANIFEST_TYPES).await.unwrap();
    assert_eq!((two.mirror.requests().len(), two.own.requests().len()), (1, 2), "and comes back");
}

/// `registry.test` with so many mirrors before it, all with the same blob.
async fn start_many(count: usize) -> (Vec<Fake>, Fake, World, silk_model::Digest, bytes::Bytes) {
    let own = Fake::start().await;
    let content = pattern(SIZE as usize);
    let digest = own.put_blob(content.clone());
    let (mut mirrors, mut toml) = (Vec::new(), format!("server = '{}'\n", own.url()));
    for _ in 0..count {
        let mirror = Fake::start().await;
        mirror.mirror(&own);
        toml.push_str(&format!("[host.'{}']\n", mirror.url()));
        mirrors.push(mirror);
    }
    let world = World::new(&[]);
    world.hosts("registry.test", &toml);
    (mirrors, own, world, digest, content)
}

#[tokio::test]
async fn mirrors_in_trouble_are_asked_once_and_the_registry_before_giving_up() {
    let (mirrors, own, mut world, digest, content) = start_many(3).await;
    world.config.attempts = 2;
    for (mirror, code) in mirrors.iter().zip([502, 503, 500]) {
        mirror.fault_status(".", code, ALWAYS);
    }
    let blob = world.repository("registry.test/library/app").await.blob(digest, SIZE);
    assert_eq!(read(&blob, 0..SIZE).await.unwrap(), content);
    assert!(mirrors.iter().all(|mirror| mirror.requests().len() == 1));
    assert_eq!(own.requests().len(), 1);
}

#[tokio::test]
async fn mirrors_that_hang_are_left_at_once_and_rest() {
    let (mirrors, own, mut world, digest, content) = start_many(2).await;
    (world.config.connect_timeout_secs, world.config.response_timeout_secs) = (1, 1);
    // Over before the second mirror has not answered.
    world.config.give_up_after_secs = 1;
    mirrors.iter().for_each(|mirror| mirror.fault(".", Fault::NoAnswer, ALWAYS));
    let registry = world.registry();
    let repository = registry.repository(&"registry.test/library/app".parse().unwrap()).await.unwrap();
    assert_eq!(read(&repository.blob(digest, SIZE), 0..SIZE).await.unwrap(), content);
    assert_eq!(read(&repository.blob(digest, SIZE), 0..9).await.unwrap(), content[..9], "another blob");
    assert!(mirrors.iter().all(|mirror| mirror.requests().len() == 1));
    assert_eq!(own.requests().len(), 2);

    // One request finds out that a mirror still hangs; those that come meanwhile do not wait for it.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    let blob = repository.blob(digest, SIZE);
    let first = tokio::spawn(async move { read(&blob, 0..9).await });
    mirrors[0].wait_for_stalls(2).await;
    mirrors[1].heal();
    assert_eq!(read(&repository.blob(digest, SIZE), 0..9).await.unwrap(), content[..9]);
    assert_eq!(mirrors[0].requests().len(), 2);
    assert_eq!(first.await.unwrap().unwrap(), content[..9]);
}

#[tokio::test]
async fn a_host_that_sent_wrong_bytes_of_a_blob_is_asked_for_it_last() {
    let (mirrors, own, world, digest, content) = start_many(1).await;
    let mirror = &mirrors[0];
    mirror.fault("blobs", Fault::Flip(3), ALWAYS);
    let registry = world.registry();
    let open =
        async |reference: &str| registry.repository(&reference.parse().unwrap()).await.unwrap().blob(digest, SIZE);
    let blob = open("registry.test/library/app").await;
    assert!(blob.distrust(), "nobody has sent anything yet");
    assert_ne!(read(&blob, 0..SIZE).await.unwrap(), content);
    assert!(blob.distrust(), "the registry itself is left");
    assert_eq!(read(&blob, 0..SIZE).await.unwrap(), content);
    let later = open("registry.test/library/app").await;
    assert_eq!(read(&later, 0..9).await.unwrap(), content[..9]);
    let elsewhere = open("registry.test/other").await;
    assert_eq!(read(&elsewhere, 0..9).await.unwrap(), content[..9]);
    assert_eq!((mirror.requests().len(), own.requests().len()), (1, 3));
    let sibling = own.put_blob(content.slice(1..));
    mirror.mirror(&own);
    let sibling =
        registry.repository(&"registry.test/library/app".parse().unwrap()).await.unwrap().blob(sibling, SIZE - 1);
    read(&sibling, 0..9).await.unwrap();
    assert_eq!(mirror.requests().len(), 2, "other blobs of it may be good");

    // It is not forgotten, only the last resort.
    own.fault_status("blobs", 404, ALWAYS);
    assert_eq!(read(&later, 10..20).await.unwrap(), content[10..20]);
    assert_eq!(mirror.requests().len(), 3);
    own.heal();
    assert!(!blob.distrust(), "by this handle the registry has sent bytes since");
    assert_eq!(read(&open("registry.test/library/app").await, 10..20).await.unwrap(), content[10..20]);
    assert_eq!(mirror.requests().len(), 4, "both were blamed: the one that was longer ago comes first");
}

#[tokio::test]
async fn the_host_of_the_wrong_stream_is_blamed() {
    let (mirrors, own, world, digest, content) = start_many(2).await;
    mirrors[1].fault("blobs", Fault::Flip(200_000), ALWAYS);
    let blob = world.repository("registry.test/library/app").await.blob(digest, SIZE);
    let mut good = blob.read(0..100_000);
    assert_eq!(crate::world::rest(&mut good).await.unwrap(), content[..100_000]);
    // It has sent bytes: it is left after the second.
    mirrors[0].fault_status("blobs", 500, 2);
    let mut wrong = blob.read(100_000..SIZE);
    assert!(crate::world::rest(&mut wrong).await.unwrap() != content[100_000..]);
    assert!(wrong.distrust());
    assert_eq!(read(&blob, 100_000..SIZE).await.unwrap(), content[100_000..]);
    assert_eq!((mirrors[1].requests().len(), own.requests().len()), (1, 0));
}

#[tokio::test]
async fn readers_do_not_queue_up_at_a_mirror_that_hangs() {
    let (mirrors, _own, mut world, digest, _) = start_many(1).await;
    world.config.response_timeout_secs = 3600;
    mirrors[0].fault(".", Fault::NoAnswer, ALWAYS);
    let blob = world.repository("registry.test/library/app").await.blob(digest, SIZE);
    let readers: Vec<_> = (0..6)
        .map(|i| {
            let blob = blob.clone();
            tokio::spawn(async move { read(&blob, i * 1000..(i + 1) * 1000).await })
        })
        .collect();
    let all = tokio::time::timeout(Duration::from_secs(60), mirrors[0].wait_for_stalls(6)).await;
    all.expect("each asks the mirror, and is free to leave it by itself");
    readers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_probe_leaves_the_registry_its_share_of_the_time() {
    let two = start("").await;
    two.mirror.fault("HEAD", Fault::NoAnswer, ALWAYS);
    let repository = two.world.repository("registry.test/library/app").await;
    repository.check(Object::Manifest(two.pushed.digest), Duration::from_secs(4)).await.unwrap();
    assert_eq!((two.mirror.count("HEAD"), two.own.count("HEAD")), (1, 1));
    // Nor does the next image wait for it, but layers come from it.
    repository.check(Object::Manifest(two.pushed.digest), Duration::from_secs(4)).await.unwrap();
    assert_eq!((two.mirror.count("HEAD"), two.own.count("HEAD")), (1, 2));
    two.mirror.heal();
    repository.manifest(&latest(), MANIFEST_TYPES).await.unwrap();
    assert_eq!((two.mirror.count("GET .*manifests"), two.own.count("GET .*manifests")), (1, 0));
}

#[tokio::test]
async fn credentials_of_the_registry_do_not_go_to_its_mirror() {
    let two = start("").await;
    two.mirror.require(Access::basic("u", "p"));
    two.own.require(Access::basic("u", "p"));
    let entry = r#"{"username": "u", "password": "p"}"#;
    two.world.login(&format!(r#"{{"auths": {{"{}": {entry}, "registry.test": {entry}}}}}"#, two.own.host()));
    two.world.repository("registry.test/library/app").await.manifest(&latest(), MANIFEST_TYPES).await.unwrap();
    assert!(two.mirror.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn headers_and_another_root_path_are_used() {
    let own = Fake::start().await;
    let pushed = own.push_image("proxy/library/app:latest", &ImageSpec::new());
    let world = World::new(&[]);
    let toml = format!(
        "server = '{}/v2/proxy'\noverride_path = true\n[header]\nx-a = ['1', '2']\nuser-agent = 'me'",
        own.url()
    );
    world.hosts("registry.test", &toml);
    let manifest =
        world.repository("registry.test/library/app").await.manifest(&latest(), MANIFEST_TYPES).await.unwrap();
    assert_eq!(manifest.digest, pushed.digest);
    let request = &own.requests()[0];
    assert_eq!(request.path, "/v2/proxy/library/app/manifests/latest?ns=registry.test");
    assert_eq!(request.header("user-agent"), Some("me"));
    assert_eq!(request.header("x-a"), Some("2"), "the last of both");
}

#[tokio::test]
async fn a_changed_hosts_file_is_seen_by_the_next_pull() {
    let two = start("").await;
    let registry = two.world.registry();
    let reference = "registry.test/library/app".parse().unwrap();
    registry.repository(&reference).await.unwrap().manifest(&latest(), MANIFEST_TYPES).await.unwrap();
    two.world.hosts("registry.test", &format!("server = '{}'", two.own.url()));
    registry.repository(&reference).await.unwrap().manifest(&latest(), MANIFEST_TYPES).await.unwrap();
    assert_eq!((two.mirror.requests().len(), two.own.requests().len()), (1, 1));
}

#[tokio::test]
async fn who_writes_referrers_looks_where_they_go_to() {
    for api in [true, false] {
        let two = start("capabilities = ['pull', 'resolve']").await;
        two.mirror.have_referrers(true);
        two.own.have_referrers(api);
        two.own.allow_deletes(true);
        let subject = two.pushed.digest;
        let repository = two.world.repository("registry.test/library/app").await;
        let at_own = two.world.repository(&format!("{}/library/app", two.own.host())).await;
        let one = refer(&at_own, subject, "one", &[]).await;
        two.mirror.mirror(&two.own);
        let other = refer(&at_own, subject, "other", &[one.digest]).await;
        let all = repository.referrers(&subject, TYPE).await.unwrap();
        assert_eq!(all, std::slice::from_ref(&one), "the mirror's list is an old one");
        assert!(repository.own_referrers(&subject, TYPE).await.unwrap().contains(&other));

        two.mirror.have_referrers(api);
        let both = vec![other, refer(&repository, subject, "two", &[one.digest]).await];
        let mut found = at_own.referrers(&subject, TYPE).await.unwrap();
        found.sort_by_key(|referrer| referrer.annotations["text"].clone());
        assert_eq!(found, both, "api {api}");
    }
}

#[tokio::test]
async fn a_mirror_that_lists_only_what_it_holds_hides_no_referrers() {
    for api in [true, false] {
        let two = start("capabilities = ['pull', 'resolve']").await;
        two.mirror.have_referrers(true);
        two.own.have_referrers(api);
        let subject = two.pushed.digest;
        let repository = two.world.repository("registry.test/library/app").await;
        assert_eq!(repository.referrers(&subject, TYPE).await.unwrap(), []);
        let one = refer(&repository, subject, "one", &[]).await;
        let elsewhere = two.world.repository(&format!("{}/library/app", two.mirror.host())).await;
        assert_eq!(elsewhere.referrers(&subject, TYPE).await.unwrap(), []);
        assert_eq!(repository.referrers(&subject, TYPE).await.unwrap(), std::slice::from_ref(&one), "api {api}");
        two.own.fault("/referrers/", Fault::error(403, "DENIED", "no"), 1);
        let denied = repository.referrers(&subject, TYPE).await.unwrap();
        assert_eq!(denied.is_empty(), api, "the mirror's word: {denied:?}");
        // Nor is the registry waited for.
        if api {
            two.own.fault("/referrers/", Fault::NoAnswer, ALWAYS);
            assert_eq!(repository.referrers(&subject, TYPE).await.unwrap(), []);
            assert_eq!(two.own.count("/referrers/"), 4);
        }
    }
}
