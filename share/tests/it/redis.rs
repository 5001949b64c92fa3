//! Redis well, small, full, slow, restarted and gone.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use silk_model::{Class, Digest};
use silk_share::{
    Answer, Backend, BackendError, Config, Found, Image, Item, Key, Published, Query, RedisConfig, Share, State,
};
use silk_testkit::Certificates;

use crate::{
    server::Server,
    world::{config, eventually, has, image, key, layer, put, share, share_with, status, wait_up, with_own},
};

#[tokio::test]
async fn one_node_publishes_and_another_finds_all_of_it_in_one_round_trip() {
    let server = Server::start(&[]).await;
    let (first, second) = (share(&server), share(&server));
    wait_up(&first).await;
    let layers: Vec<_> = (0..30).map(|n| layer(n, 1000 * (n as usize + 1))).collect();
    for layer in &layers {
        first.publish_layer(&image(0), layer.clone());
    }
    first.publish_profile(&image(0), Bytes::from_static(b"profile"));
    eventually("all is published", || status(&first).published == 31).await;

    wait_up(&second).await;
    let mut blobs: Vec<Digest> = layers.iter().map(|layer| layer.blob).collect();
    blobs.insert(3, Digest::of(b"unknown"));
    blobs.push(blobs[0]);
    let calls = || ["getrange", "evalsha", "get"].map(|command| server.calls(command));
    let before = calls();
    let mut known = second.image(&image(0), &blobs).await;
    let calls: Vec<u64> = calls().iter().zip(before).map(|(after, before)| after - before).collect();
    assert_eq!(calls, [32, 1, 0], "30 layers, an unknown one, a profile, and the renewal");
    let twice = known.layers.pop().unwrap().unwrap();
    assert_eq!(twice.value, layers[0]);
    assert_eq!(known.layers.remove(3), None);
    for (found, layer) in known.layers.into_iter().zip(&layers) {
        let found = found.unwrap();
        assert_eq!((&found.value, found.key), (layer, Key::Layer(layer.blob)));
        assert_eq!(found.source, format!("redis {}", server.address()));
    }
    assert_eq!(known.profiles.len(), 1);
    assert_eq!(known.profiles[0].value, b"profile"[..]);
    let status = status(&second);
    assert_eq!((status.hits, status.misses, status.refused), (31, 1, 0));

    let other = second.image(&image(1), &[]).await;
    assert!(other.profiles.is_empty(), "another image's profile is not ours");
}

#[tokio::test]
async fn over_tcp_as_well() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::start(&[&format!("port {port}"), "bind 127.0.0.1"]).await;
    let share = share_with(RedisConfig { address: Some(format!("127.0.0.1:{port}")), database: 3, ..config(&server) });
    put(&share, 1, 100).await;
    assert!(has(&share, 1).await);
    assert_eq!(server.say::<u64>("DBSIZE"), 0, "it is in database 3");
    assert_eq!(status(&share).name, format!("redis 127.0.0.1:{port}"));
}

#[tokio::test]
async fn over_tls_with_certificates_of_both_sides() {
    let certificates = Certificates::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (ca, server) = (file("ca.pem", &certificates.ca), file("server.pem", &certificates.server));
    let key = file("server-key.pem", &certificates.server_key);
    let client = file("client.pem", &format!("{}{}", certificates.client, certificates.client_key));
    let lines = [
        format!("tls-port {port}"),
        "bind 127.0.0.1".to_owned(),
        format!("tls-cert-file {}", server.display()),
        format!("tls-key-file {}", key.display()),
        format!("tls-ca-cert-file {}", ca.display()),
        "tls-auth-clients yes".to_owned(),
    ];
    let server = Server::start(&lines.each_ref().map(String::as_str)).await;
    let redis = |ca_file, certificate_file| RedisConfig {
        address: Some(format!("localhost:{port}")),
        tls: true,
        ca_file,
        certificate_file,
        ..config(&server)
    };
    let share = share_with(redis(Some(ca.clone()), Some(client.clone())));
    wait_up(&share).await;
    // Larger than what TLS sends in one piece.
    put(&share, 1, 1 << 20).await;
    assert!(has(&share, 1).await);

    let other = file("other.pem", &Certificates::new().ca);
    let plain = RedisConfig { tls: false, database: 1, ..redis(None, None) };
    for (what, config, said) in [
        ("nobody told whom to believe", redis(None, Some(client.clone())), "share.redis.ca_file"),
        ("another CA", redis(Some(other), Some(client.clone())), "share.redis.ca_file"),
        ("a file that is not there", redis(Some(files.path().join("none.pem")), Some(client)), "none.pem"),
        ("no client certificate", redis(Some(ca), None), "share.redis.certificate_file"),
        ("no TLS", plain, "it may want TLS (share.redis.tls)"),
    ] {
        let share = share_with(config);
        let why = || match status(&share).state {
            State::Away { why, .. } => why,
            State::Up { .. } => panic!("{what}: it is up"),
        };
        eventually(what, || why().contains(said)).await;
    }
}

#[tokio::test]
async fn what_is_no_tls_is_said_to_be_none() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::start(&[&format!("port {port}"), "bind 127.0.0.1"]).await;
    let tls =
        RedisConfig { address: Some(format!("127.0.0.1:{port}")), tls: true, deadline_millis: 100, ..config(&server) };
    let share = share_with(tls.clone());
    eventually(
        "it does not speak TLS",
        || matches!(status(&share).state, State::Away { why, .. } if why.contains("(share.redis.tls)")),
    )
    .await;
    let redis = RedisConfig { address: Some(server.address()), ..tls };
    let error = Share::new(&Config { redis, ..Config::default() }, Vec::new()).err().unwrap();
    assert!(error.to_string().contains("unix socket"), "{error}");
}

#[tokio::test]
async fn the_same_value_is_not_sent_again_and_another_replaces_it() {
    let server = Server::start(&[]).await;
    let share = share(&server);
    wait_up(&share).await;
    for size in [10_000, 10_000, 20_000] {
        put(&share, 1, size).await;
    }
    assert_eq!(server.calls("set"), 2);
    assert_eq!(counted(&server), vec![20_128 + 512]);
    for profile in ["old", "new"] {
        let item = Item::Profile(Bytes::from_static(profile.as_bytes()));
        share.publish_now(&image(0), &[item]).await.remove(0).1.unwrap();
    }
    assert_eq!(share.image(&image(0), &[]).await.profiles[0].value, b"new"[..]);
}

/// The sizes that are counted; their sum is checked.
fn counted(server: &Server) -> Vec<u64> {
    let all: Vec<(String, u64)> = server.say("HGETALL silk:1:sizes");
    let (total, values): (Vec<_>, Vec<_>) = all.into_iter().partition(|(key, _)| key == "total");
    let mut sizes: Vec<u64> = values.into_iter().map(|(_, size)| size).collect();
    sizes.sort();
    assert_eq!(total.first().map_or(0, |(_, total)| *total), sizes.iter().sum::<u64>());
    sizes
}

#[tokio::test]
async fn values_expire_and_each_use_renews_them() {
    let server = Server::start(&[]).await;
    let share = share_with(RedisConfig { expiry_secs: 1000, ..config(&server) });
    put(&share, 1, 100).await;
    put(&share, 2, 100).await;
    let ttl = |key: &str| server.say::<i64>(&format!("TTL {key}"));
    for key in [&key(1), &key(2), "silk:1:uses", "silk:1:sizes"] {
        assert!((1..=1000).contains(&ttl(key)), "{key}: {}", ttl(key));
        server.say::<()>(&format!("EXPIRE {key} 100"));
    }
    assert!(has(&share, 1).await);
    for key in [&key(1), "silk:1:uses", "silk:1:sizes"] {
        assert!(ttl(key) > 100, "{key}: renewed");
    }
    assert!(ttl(&key(2)) <= 100, "not used, not renewed");

    // The time of number 2 is over, in Redis and in the books.
    server.say::<()>(&format!("PEXPIRE {} 0", key(2)));
    server.say::<()>(&format!("ZADD silk:1:uses 1 {}", key(2)));
    assert!(!has(&share, 2).await);
    put(&share, 3, 100).await;
    assert_eq!(counted(&server).len(), 2);
    assert_eq!(server.say::<u64>("ZCARD silk:1:uses"), 2);
}

#[tokio::test]
async fn the_bound_holds_and_the_longest_unused_goes() {
    let server = Server::start(&[]).await;
    // Three of 1000 bytes, each with its envelope and what Redis needs.
    let share = share_with(RedisConfig { max_bytes: 3 * (1000 + 128 + 512), ..config(&server) });
    for n in 1..=3 {
        put(&share, n, 1000).await;
    }
    assert!(has(&share, 1).await, "which makes it the last used");
    put(&share, 4, 1000).await;
    assert_eq!(counted(&server).len(), 3);
    assert!(!has(&share, 2).await);
    for n in [1, 3, 4] {
        assert!(has(&share, n).await, "{n}");
    }
    // One that is as large as three takes all.
    put(&share, 5, 3 * 1640 - 640).await;
    assert_eq!(counted(&server).len(), 1);
    // One that is larger than the bound is not even tried.
    let outcome = share.publish_now(&image(0), &[Item::Layer(layer(6, 5000))]).await.remove(0).1;
    assert!(matches!(outcome.unwrap().refused[..], [(_, BackendError::TooLarge { limit: 4408, .. })]));
    assert!(has(&share, 5).await);
    // Many nodes at once.
    let puts = (10..60).map(|n| {
        let (share, image) = (&share, image(0));
        async move { share.publish_now(&image, &[Item::Layer(layer(n, 900))]).await.remove(0).1.unwrap() }
    });
    futures::future::join_all(puts).await;
    assert_eq!(counted(&server).len(), 3);
    assert_eq!(server.say::<u64>("DBSIZE"), 5);
}

#[tokio::test]
async fn values_that_redis_evicted_itself_do_not_count_for_ever() {
    let server = Server::start(&[]).await;
    let share = share_with(RedisConfig { max_bytes: 3 * 1640, ..config(&server) });
    for n in 1..=3 {
        put(&share, n, 1000).await;
    }
    server.say::<()>(&format!("DEL {}", key(1)));
    server.say::<()>(&format!("DEL {}", key(2)));
    for n in 4..=6 {
        put(&share, n, 1000).await;
    }
    assert_eq!((counted(&server).len(), server.say::<u64>("DBSIZE")), (3, 5));
    // The books themselves are lost: what is stored then goes by its expiry.
    server.say::<()>("DEL silk:1:uses silk:1:sizes");
    put(&share, 7, 1000).await;
    assert_eq!(counted(&server).len(), 1);
    assert!(has(&share, 4).await && has(&share, 7).await);
}

#[tokio::test]
async fn a_book_that_redis_evicted_takes_no_room_for_ever() {
    for lost in ["uses", "sizes"] {
        let server = Server::start(&[]).await;
        let share = share_with(RedisConfig { max_bytes: 3 * 1640, ..config(&server) });
        for n in 1..=3 {
            put(&share, n, 1000).await;
        }
        server.say::<()>(&format!("DEL silk:1:{lost}"));
        for n in 4..=6 {
            put(&share, n, 1000).await;
        }
        for n in 4..=6 {
            assert!(has(&share, n).await, "{n} is there without {lost}");
        }
        assert_eq!(counted(&server).len(), 3, "{lost}");
    }
}

#[tokio::test]
async fn a_redis_full_of_other_things_takes_nothing_and_still_gives() {
    let server = Server::start(&["maxmemory-policy noeviction"]).await;
    let share = share(&server);
    put(&share, 1, 1000).await;
    server.redo::<()>(&[b"SET", b"other", &vec![b'x'; 4 << 20]]);
    server.say::<()>("CONFIG SET maxmemory 2mb");
    let outcome = share.publish_now(&image(0), &[Item::Layer(layer(2, 1_000_000))]).await.remove(0).1;
    let refused = outcome.unwrap().refused;
    assert_eq!((refused.len(), refused[0].1.class()), (1, Class::NoSpace), "{refused:?}");
    share.publish_layer(&image(0), layer(3, 1_000_000));
    eventually("number 3 is dropped", || status(&share).dropped == 1).await;
    let trouble = status(&share).trouble.unwrap().1;
    assert!(trouble.contains("it is full") && trouble.contains("OOM"), "{trouble}");
    assert!(has(&share, 1).await, "reading goes on");
    assert!(!has(&share, 2).await && status(&share).state.is_up());
    assert_eq!(counted(&server), vec![1000 + 128 + 512]);
    assert_eq!(server.say::<u64>("EXISTS other"), 1);
}

#[tokio::test]
async fn a_redis_full_of_silks_own_values_replaces_the_longest_unused() {
    let server = Server::start(&["maxmemory-policy noeviction"]).await;
    let share = share(&server);
    for n in 1..=4 {
        put(&share, n, 1_000_000).await;
    }
    server.say::<()>("CONFIG SET maxmemory 3mb");
    put(&share, 5, 1_000_000).await;
    assert!(!has(&share, 1).await && has(&share, 5).await);
    for n in 6..=15 {
        put(&share, n, 1_000_000).await;
    }
    assert_eq!(counted(&server).len(), 4, "as many as before it was full");
}

#[tokio::test]
async fn a_redis_that_is_silent_costs_one_deadline_and_comes_back() {
    let server = Server::start(&[]).await;
    put(&share(&server), 1, 100).await;
    let share = share_with(RedisConfig { deadline_millis: 200, ..config(&server) });
    wait_up(&share).await;
    server.freeze();
    assert!(!has(&share, 1).await, "it returns although nobody answers");
    eventually("it is away", || !status(&share).state.is_up()).await;
    let State::Away { why, since } = status(&share).state else { panic!() };
    assert!(why.contains("no answer within ") || why.contains("did not let silk in"), "{why}");
    for _ in 0..1000 {
        // At 200 ms each this would be minutes.
        assert!(!has(&share, 1).await);
    }
    assert!(matches!(status(&share).state, State::Away { since: now, .. } if now == since), "it was away all the time");
    share.publish_layer(&image(0), layer(2, 100));
    server.thaw();
    let found = async {
        // 200 ms may be too short for a slow machine, and then it is away once more.
        while !has(&share, 1).await {
            wait_up(&share).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), found).await.expect("it comes back");
    eventually("what could not be published is, then", || status(&share).published == 1).await;
}

#[tokio::test]
async fn a_failover_is_waited_for_in_the_background() {
    let server = Server::start(&[]).await;
    let share = share(&server);
    put(&share, 1, 100).await;
    server.say::<()>("CONFIG SET min-replicas-to-write 1");
    let error = share.publish_now(&image(0), &[Item::Layer(layer(2, 100))]).await.remove(0).1.unwrap_err();
    assert!(error.class() == Class::Transient && error.to_string().contains("replicas"), "{error}");
    server.say::<()>("CONFIG SET min-replicas-to-write 0");
    server.say::<()>("REPLICAOF 127.0.0.1 1");
    share.publish_layer(&image(0), layer(3, 100));
    eventually("a write is refused", || server.say::<String>("INFO errorstats").contains("errorstat_READONLY")).await;
    server.say::<()>("REPLICAOF NO ONE");
    eventually("it is published", || status(&share).published == 2).await;
    assert!(has(&share, 3).await);
}

#[tokio::test]
async fn a_redis_that_was_restarted_is_used_again() {
    let mut server = Server::start(&[]).await;
    let share = share(&server);
    put(&share, 1, 100).await;
    server.stop();
    eventually("it is away", || !status(&share).state.is_up()).await;
    assert!(!has(&share, 1).await);
    // Meanwhile something is learned.
    share.publish_layer(&image(0), layer(2, 100));
    server.run().await;
    wait_up(&share).await;
    eventually("what waited is published", || status(&share).published == 2).await;
    assert!(!has(&share, 1).await && has(&share, 2).await);
    // Only the scripts are forgotten.
    server.say::<()>("SCRIPT FLUSH");
    put(&share, 3, 100).await;
    server.say::<()>("SCRIPT FLUSH");
    assert!(has(&share, 2).await);
    // Soon lookups renew again what they read.
    for _ in 0..3000 {
        server.say::<()>(&format!("EXPIRE {} 100", key(2)));
        assert!(has(&share, 2).await);
        if server.say::<i64>(&format!("TTL {}", key(2))) > 100 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("number 2 is not renewed");
}

#[tokio::test]
async fn a_redis_that_never_was_is_no_error() {
    let nowhere = |address: &str| RedisConfig { address: Some(address.into()), ..RedisConfig::default() };
    for address in ["unix:/nowhere/redis.sock", "127.0.0.1:1", "no.such.host.invalid:6379"] {
        let share = share_with(nowhere(address));
        assert!(!has(&share, 1).await);
        eventually("the reason is known", || {
            matches!(&status(&share).state, State::Away { why, .. } if why.contains("cannot connect: ") || why.contains("did not let silk in"))
        })
        .await;
    }
}

#[tokio::test]
async fn passwords_come_from_a_file_that_is_read_each_time() {
    // The rights that the operator's page names, and no more.
    let documents = include_str!("../../../docs/formats/share.md");
    let rights = documents.lines().find_map(|line| line.trim().strip_prefix("ACL SETUSER silk on >PASSWORD ")).unwrap();
    assert!(rights.ends_with("-@dangerous"), "FLUSHALL is a write of no key: {rights}");
    let server = Server::start(&["user default on >admin ~* +@all", &format!("user silk on >secret {rights}")]).await;
    let file = server.file("password", "wrong\n");
    let with_user = |name: &str| RedisConfig {
        username: Some(name.into()),
        password_file: Some(file.clone()),
        database: 1,
        ..config(&server)
    };
    let share = share_with(with_user("silk"));
    let refused = || matches!(&status(&share).state, State::Away { why, .. } if why.contains("share.redis.password_file") && !why.contains("secret"));
    eventually("it is refused", refused).await;
    assert!(!has(&share, 1).await);
    std::fs::write(&file, "secret\n").unwrap();
    wait_up(&share).await;
    put(&share, 1, 100).await;
    assert!(has(&share, 1).await);
    let found = share.image(&image(0), &[layer(1, 0).blob]).await.layers.remove(0).unwrap();
    share.distrust(&image(0), &found, "a test");
    put(&share, 2, 100).await;
    assert!(!has(&share, 1).await && has(&share, 2).await);

    let unreadable = share_with(RedisConfig { password_file: Some("/nowhere".into()), ..with_user("silk") });
    let told =
        || matches!(&status(&unreadable).state, State::Away { why, .. } if why.contains("password_file /nowhere"));
    eventually("the reason is told", told).await;
}

#[tokio::test]
async fn a_replica_still_gives_and_takes_nothing() {
    let server = Server::start(&[]).await;
    let share = share(&server);
    put(&share, 1, 1000).await;
    server.say::<()>("REPLICAOF 127.0.0.1 1");
    assert!(has(&share, 1).await);
    let error = share.publish_now(&image(0), &[Item::Layer(layer(2, 10))]).await.remove(0).1.unwrap_err();
    assert!(error.class() == Class::Transient && error.to_string().contains("read only"), "{error}");
}

#[tokio::test]
async fn a_very_large_value_among_many_is_found_too() {
    let server = Server::start(&[]).await;
    let share = share(&server);
    // 96 MiB for 101 values are less than one MiB each.
    put(&share, 1, 5 << 20).await;
    put(&share, 2, 1000).await;
    put(&share, 3, 6 << 20).await;
    let blobs: Vec<Digest> = (1..=100).map(|n| layer(n, 0).blob).collect();
    let known = share.image(&image(0), &blobs).await;
    for (n, size) in [(1, 5 << 20), (2, 1000), (3, 6 << 20)] {
        assert_eq!(known.layers[n as usize - 1].as_ref().unwrap().value, layer(n, size));
    }
    assert_eq!((status(&share).hits, status(&share).refused), (3, 0));
}

#[tokio::test]
async fn of_more_than_is_bearable_as_much_as_is_bearable_is_taken() {
    let server = Server::start(&[]).await;
    let share = share(&server);
    // With a profile that is not there, 19 MiB are each one's share of 96.
    let large = 28 << 20;
    for n in 1..=4 {
        put(&share, n, large).await;
    }
    let blobs = [1, 2, 3, 4].map(|n| layer(n, 0).blob);
    let known = share.image(&image(0), &blobs).await;
    let there: Vec<_> = known.layers.iter().map(Option::is_some).collect();
    assert_eq!(there, [true, true, true, false]);
    assert_eq!(known.layers[0].as_ref().unwrap().value, layer(1, large));
    assert_eq!((status(&share).hits, status(&share).refused), (3, 0), "nothing is wrong with them");
}

#[tokio::test]
async fn a_large_answer_does_not_keep_its_memory() {
    let server = Server::start(&[]).await;
    let share = share(&server);
    put(&share, 1, 8 << 20).await;
    let client = || -> Vec<String> {
        let list: String = server.say("CLIENT LIST");
        let ids =
            list.lines().filter(|line| ["cmd=evalsha", "cmd=script", "cmd=ping"].iter().any(|cmd| line.contains(cmd)));
        ids.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
    };
    eventually("only the connection for lookups is left", || client().len() == 1).await;
    let before = client();
    assert!(has(&share, 1).await);
    eventually("it is another one now", || client().len() == 1 && client() != before).await;
    assert!(status(&share).state.is_up() && has(&share, 1).await);
}

/// A backend that knows layer 1 and keeps count.
#[derive(Debug, Default)]
struct Own {
    asked: AtomicUsize,
}

impl Backend for Own {
    fn name(&self) -> String {
        "own".into()
    }

    fn look_up<'a>(&'a self, query: &'a Query<'a>) -> BoxFuture<'a, Answer> {
        self.asked.fetch_add(query.blobs.len(), Ordering::Relaxed);
        let known = layer(1, 10);
        let found = query
            .blobs
            .contains(&known.blob)
            .then(|| Found::new(known.clone(), self.name(), Key::Layer(known.blob), Digest::of(b"own")));
        async move { Answer { layers: found.into_iter().collect(), ..Answer::default() } }.boxed()
    }

    fn publish<'a>(&'a self, _: &'a Image, _: &'a [Item]) -> BoxFuture<'a, Result<Published, BackendError>> {
        async { Ok(Published::default()) }.boxed()
    }

    fn remove<'a>(&'a self, _: &'a Image, _: Key, _: Digest) -> BoxFuture<'a, Result<bool, BackendError>> {
        async { Ok(false) }.boxed()
    }

    fn state(&self) -> State {
        State::Up { since: std::time::SystemTime::UNIX_EPOCH }
    }
}

#[tokio::test]
async fn what_one_backend_lacks_the_next_is_asked_for() {
    let server = Server::start(&[]).await;
    let own = Arc::new(Own::default());
    let share = with_own(&server, own.clone());
    put(&share, 1, 20).await;
    put(&share, 2, 20).await;
    let known = share.image(&image(0), &[layer(1, 0).blob, layer(2, 0).blob]).await;
    let sources: Vec<_> = known.layers.iter().map(|found| found.as_ref().unwrap().source.clone()).collect();
    assert_eq!(sources, ["own".to_owned(), format!("redis {}", server.address())]);
    let [own_status, redis] = &share.status()[..] else { panic!() };
    assert_eq!((own.asked.load(Ordering::Relaxed), own_status.hits, own_status.misses), (2, 1, 2));
    assert_eq!((redis.hits, redis.misses), (1, 1), "asked for layer 2 and a profile only");
    // The own one lied: the next has another value of that layer.
    share.distrust(&image(0), known.layers[0].as_ref().unwrap(), "a test");
    let known = share.image(&image(0), &[layer(1, 0).blob]).await;
    assert_eq!(known.layers[0].as_ref().unwrap().value, layer(1, 20));
}
