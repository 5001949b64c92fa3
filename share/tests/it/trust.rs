//! Values in Redis that are damaged, forged, foreign or lies: never given, and their source is named.

use silk_share::{Config, RedisConfig, Share};

use crate::{
    server::Server,
    world::{config, eventually, has, image, key, layer, put, share, share_with, status, wait_up},
};

fn stored(server: &Server, n: u64) -> Vec<u8> {
    server.redo(&[b"GET", key(n).as_bytes()])
}

fn store(server: &Server, n: u64, value: &[u8]) {
    server.redo::<()>(&[b"SET", key(n).as_bytes(), value]);
}

/// Asks for layer 1 and expects it to be refused for this reason; layer 2, intact, is given all the same.
async fn refused(server: &Server, share: &Share, why: &str) {
    let before = status(share).refused;
    let known = share.image(&image(0), &[layer(1, 0).blob, layer(2, 0).blob]).await;
    assert_eq!(known.layers[0], None, "{why}");
    assert_eq!(known.layers[1].as_ref().unwrap().value, layer(2, 500), "{why}");
    let status = status(share);
    let trouble = status.trouble.unwrap().1;
    let start = format!("the index of layer {} from redis {} is not believed: ", layer(1, 0).blob, server.address());
    assert!(trouble.starts_with(&start) && trouble.contains(why), "{trouble}");
    assert_eq!((status.refused - before, status.state.is_up()), (1, true));
}

fn with_key(server: &Server, key: &str) -> Share {
    let key_file = Some(server.file(key, &key.repeat(32)));
    Share::new(&Config { key_file, redis: config(server), ..Config::default() }, Vec::new()).unwrap()
}

#[tokio::test]
async fn a_flipped_byte_in_any_region_is_noticed() {
    let server = Server::start(&[]).await;
    for share in [share(&server), with_key(&server, "k")] {
        put(&share, 1, 500).await;
        put(&share, 2, 500).await;
        let good = stored(&server, 1);
        assert_eq!(good.len(), 96 + 500 + 32);
        for (at, why) in [
            (0, "not a value of silk's"),
            (8, "version"),
            (12, "seal is wrong"),
            (13, ""),
            (14, "seal is wrong"),
            (20, "seal is wrong"),
            (60, "seal is wrong"),
            (80, "truncated"),
            (95, "truncated"),
            (96, "seal is wrong"),
            (96 + 125, "seal is wrong"),
            (595, "seal is wrong"),
            (596, "seal is wrong"),
            (627, "seal is wrong"),
        ] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            store(&server, 1, &bad);
            refused(&server, &share, why).await;
        }
        // The seal at its end is still the right one; published again, it is stored all the same.
        let mut bad = good.clone();
        bad[300] ^= 1;
        store(&server, 1, &bad);
        refused(&server, &share, "seal is wrong").await;
        put(&share, 1, 500).await;
        assert_eq!(stored(&server, 1), good);
        assert!(has(&share, 1).await);
        // Also when that does not succeed at once.
        store(&server, 1, &bad);
        refused(&server, &share, "seal is wrong").await;
        server.say::<()>("REPLICAOF 127.0.0.1 1");
        let item = silk_share::Item::Layer(layer(1, 500));
        let outcome = share.publish_now(&image(0), &[item]).await.remove(0).1;
        outcome.unwrap_err();
        server.say::<()>("REPLICAOF NO ONE");
        put(&share, 1, 500).await;
        assert_eq!(stored(&server, 1), good);
        server.say::<()>("FLUSHALL");
    }
}

#[tokio::test]
async fn what_is_no_value_is_refused() {
    let server = Server::start(&[]).await;
    let share = share_with(RedisConfig { max_value_bytes: 10_000, ..config(&server) });
    put(&share, 1, 500).await;
    put(&share, 2, 500).await;
    let good = stored(&server, 1);

    store(&server, 1, &good[..300]);
    refused(&server, &share, "truncated").await;
    store(&server, 1, &[&good[..], b"tail"].concat());
    refused(&server, &share, "tail").await;
    let mut newer = good.clone();
    newer[8] = 2;
    store(&server, 1, &newer);
    refused(&server, &share, "version 2").await;
    store(&server, 1, &stored(&server, 2));
    refused(&server, &share, "stored under a wrong key").await;
    store(&server, 1, b"hello");
    refused(&server, &share, "not a value of silk's").await;
    server.redo::<()>(&[b"SETRANGE", key(1).as_bytes(), b"20000", b"x"]);
    let sent = |server: &Server| -> u64 {
        let info: String = server.say("INFO stats");
        info.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:")).unwrap().parse().unwrap()
    };
    let before = sent(&server);
    refused(&server, &share, "it has more than 10000 bytes").await;
    assert!(sent(&server) - before < 20_000, "no more than that was read");
    server.say::<()>(&format!("DEL {}", key(1)));
    server.say::<()>(&format!("LPUSH {} x", key(1)));
    refused(&server, &share, "not a value of silk's").await;
    // Published again, all is well.
    put(&share, 1, 500).await;
    assert!(has(&share, 1).await);
}

#[tokio::test]
async fn without_the_fleets_key_nothing_can_be_forged() {
    let server = Server::start(&[]).await;
    let (fleet, other, none) = (with_key(&server, "k"), with_key(&server, "o"), share(&server));
    put(&fleet, 2, 500).await;
    put(&other, 1, 500).await;
    refused(&server, &fleet, "seal is wrong").await;
    put(&none, 1, 500).await;
    refused(&server, &fleet, "not sealed with a key").await;
    put(&fleet, 1, 500).await;
    assert!(has(&fleet, 1).await);
    wait_up(&none).await;
    assert!(!has(&none, 1).await);
    assert!(status(&none).trouble.unwrap().1.contains("this node has none (share.key_file)"));
}

#[tokio::test]
async fn a_lie_is_remembered_removed_and_replaced_by_the_truth() {
    let server = Server::start(&[]).await;
    let (node, liar) = (share(&server), share(&server));
    put(&liar, 1, 500).await;
    let lie = stored(&server, 1);
    wait_up(&node).await;
    let found = node.image(&image(0), &[layer(1, 0).blob]).await.layers.remove(0).unwrap();
    node.distrust(&image(0), &found, "its spans are not those of the blob");
    let source = format!("from redis {} was wrong: its spans", server.address());
    assert!(status(&node).trouble.unwrap().1.contains(&source));
    eventually("it is removed", || server.say::<u64>(&format!("EXISTS {}", key(1))) == 0).await;
    assert_eq!(server.say::<u64>("ZCARD silk:1:uses"), 0);

    store(&server, 1, &lie);
    assert!(!has(&node, 1).await, "not a second time");
    assert!(has(&liar, 1).await);
    put(&node, 1, 600).await;
    assert!(has(&node, 1).await, "the truth is another value");
    // A removal that comes late leaves the truth alone.
    node.distrust(&image(0), &found, "again");
    put(&node, 3, 10).await;
    eventually("the second removal is done", || server.calls("getrange") > 4).await;
    assert!(has(&node, 1).await);
}
