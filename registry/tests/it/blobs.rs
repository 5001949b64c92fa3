//! Ranges of blobs from one registry: exact bytes, whatever happens.

use std::time::Duration;

use futures::{FutureExt as _, future::join_all};
use silk_model::{Class, Use};
use silk_registry::{Blob, Error};
use silk_testkit::{ALWAYS, Fake, Fault};

use crate::world::{World, pattern, read, rest};

const SIZE: u64 = 300_000;

async fn start() -> (Fake, Blob, bytes::Bytes) {
    start_in(World::new).await
}

async fn start_in(world: fn(&[&Fake]) -> World) -> (Fake, Blob, bytes::Bytes) {
    let fake = Fake::start().await;
    let content = pattern(SIZE as usize);
    let digest = fake.put_blob(content.clone());
    let blob = world(&[&fake]).repository(&format!("{}/library/app", fake.host())).await.blob(digest, SIZE);
    (fake, blob, content)
}

fn ranges_of(fake: &Fake) -> Vec<Option<String>> {
    fake.requests().iter().map(|request| request.header("range").map(str::to_owned)).collect()
}

#[tokio::test]
async fn whole_without_a_range_and_parts_with_one() {
    let (fake, blob, content) = start().await;
    assert_eq!((blob.size(), blob.ranges(), blob.host()), (SIZE, None, fake.host()));
    assert_eq!(read(&blob, 0..SIZE).await.unwrap(), content);
    assert_eq!(blob.ranges(), None, "not asked for yet");
    for range in [0..1, 17..100_000, SIZE - 1..SIZE, 1..SIZE] {
        assert_eq!(read(&blob, range.clone()).await.unwrap(), content[range.start as usize..range.end as usize]);
    }
    assert_eq!(blob.ranges(), Some(true));
    let expected =
        [None, Some("bytes=0-0"), Some("bytes=17-99999"), Some("bytes=299999-299999"), Some("bytes=1-299999")];
    assert_eq!(ranges_of(&fake), expected.map(|range| range.map(str::to_owned)));
    assert_eq!(blob.received(), SIZE + 1 + 99_983 + 1 + SIZE - 1);
    assert_eq!(fake.requests()[0].header("accept-encoding"), Some("identity"));
}

#[tokio::test]
async fn empty_and_impossible_ranges_ask_nobody() {
    let (fake, blob, _) = start().await;
    assert!(read(&blob, 5..5).await.unwrap().is_empty());
    #[allow(clippy::reversed_empty_ranges)]
    for range in [0..SIZE + 1, SIZE + 1..SIZE + 1, 2..1] {
        let error = read(&blob, range).await.unwrap_err();
        assert!(matches!(error, Error::OutOfBounds { .. }) && error.class() == Class::Invalid);
    }
    assert_eq!(fake.requests().len(), 0);
}

#[tokio::test]
async fn a_broken_body_goes_on_at_the_next_byte() {
    for fault in [Fault::CutAfter(100_000), Fault::EndAfter(100_000), Fault::StallAfter(100_000)] {
        for start_at in [0, 50_000] {
            let (fake, blob, content) = start_in(World::hasty).await;
            fake.fault("blobs", fault.clone(), 2);
            assert_eq!(read(&blob, start_at..SIZE).await.unwrap(), content[start_at as usize..], "{fault:?}");
            let ranges: Vec<String> = ranges_of(&fake).into_iter().flatten().collect();
            let expected = [100_000, 200_000].map(|at| format!("bytes={}-299999", at + start_at));
            assert_eq!(ranges[ranges.len() - 2..], expected, "{fault:?}");
            assert_eq!(blob.received(), SIZE - start_at, "nothing came twice");
        }
    }
}

#[tokio::test]
async fn progress_keeps_a_stream_alive_through_any_number_of_cuts() {
    let (fake, blob, content) = start().await;
    fake.fault("blobs", Fault::CutAfter(20_000), ALWAYS);
    assert_eq!(read(&blob, 0..SIZE).await.unwrap(), content);
    assert_eq!(fake.requests().len(), 15);
}

#[tokio::test]
async fn without_progress_a_stream_ends_and_may_be_asked_again() {
    let (fake, blob, content) = start().await;
    fake.fault("blobs", Fault::CutAfter(100_000), 1);
    fake.fault("blobs", Fault::CutAfter(0), ALWAYS);
    let mut stream = blob.read(0..SIZE);
    let mut got = Vec::new();
    let error = loop {
        match stream.next().await {
            Ok(bytes) => got.extend_from_slice(&bytes.unwrap()),
            Err(error) => break error,
        }
    };
    assert_eq!((error.class(), stream.position(), fake.requests().len()), (Class::Transient, 100_000, 4));
    let message = error.to_string();
    assert!(message.contains(&format!("cut blob {} of library/app at byte 100000", blob.digest())), "{message}");
    fake.heal();
    got.extend(rest(&mut stream).await.unwrap());
    assert_eq!(got, content);
}

#[tokio::test]
async fn passing_statuses_are_waited_out_and_final_ones_are_not() {
    let (fake, blob, content) = start().await;
    for fault in [Fault::status(500), Fault::status(408), Fault::too_many_requests("0"), Fault::Close] {
        fake.fault("blobs", fault, 1);
        assert_eq!(read(&blob, 5..10).await.unwrap(), content[5..10]);
    }
    fake.fault("blobs", Fault::error(404, "BLOB_UNKNOWN", "gone"), 1);
    let error = read(&blob, 5..10).await.unwrap_err();
    assert_eq!(error.class(), Class::NotFound);
    let name = format!("blob {} of library/app", blob.digest());
    assert_eq!(
        error.to_string(),
        format!("registry {} has no {name}: 404 Not Found (BLOB_UNKNOWN: gone)", fake.host())
    );
}

#[tokio::test]
async fn an_outage_is_waited_out() {
    let (fake, _, content) = start().await;
    let mut world = World::hasty(&[&fake]);
    world.config.attempts = 1_000_000;
    let digest = silk_model::Digest::of(&content);
    let blob = world.repository(&format!("{}/app", fake.host())).await.blob(digest, SIZE);
    fake.fault("blobs", Fault::StallAfter(100_000), 1);
    let reader = tokio::spawn(async move { read(&blob, 0..SIZE).await });
    fake.wait_for_stalls(1).await;
    fake.stop().await;
    fake.resume().await;
    assert_eq!(reader.await.unwrap().unwrap(), content);
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_its_start() {
    let (fake, blob, content) = start().await;
    fake.fault("blobs", Fault::NoRanges, ALWAYS);
    assert_eq!(read(&blob, 100_000..200_000).await.unwrap(), content[100_000..200_000]);
    assert_eq!(blob.ranges(), Some(false));
    assert_eq!(read(&blob, 299_999..SIZE).await.unwrap(), content[299_999..]);
    assert_eq!(fake.requests().len(), 2);
    // A pull-through cache has them once it has the blob.
    fake.heal();
    let before = blob.received();
    assert_eq!(read(&blob, 299_000..SIZE).await.unwrap(), content[299_000..]);
    assert_eq!((blob.ranges(), blob.received() - before), (Some(true), 1000));
}

#[tokio::test]
async fn a_server_without_ranges_may_still_be_cut() {
    let (fake, blob, content) = start().await;
    fake.fault("blobs", Fault::CutAfter(150_000), 1);
    fake.fault("blobs", Fault::NoRanges, ALWAYS);
    assert_eq!(read(&blob, 0..SIZE).await.unwrap(), content);
    assert_eq!(blob.received(), 150_000 + SIZE);
}

#[tokio::test]
async fn wrong_ranges_never_become_wrong_bytes() {
    for wrong in ["bytes 0-99999/300000", "bytes 100001-200000/300000", "bytes 100000-99/300000", "nonsense", ""] {
        let (fake, blob, content) = start().await;
        fake.fault("blobs", Fault::ContentRange(wrong.into()), 1);
        assert_eq!(read(&blob, 100_000..200_000).await.unwrap(), content[100_000..200_000], "{wrong}");
        assert_eq!(ranges_of(&fake), [Some("bytes=100000-199999".to_owned()), None], "{wrong}");
    }
}

#[tokio::test]
async fn what_was_compressed_on_the_way_is_as_it_was() {
    for coding in ["gzip", "zstd"] {
        let (fake, blob, content) = start().await;
        fake.fault("blobs", Fault::Compressed { coding, ranges: true }, 1);
        assert_eq!(read(&blob, 0..SIZE).await.unwrap(), content, "{coding}");
        assert_eq!((blob.ranges(), blob.received()), (None, SIZE), "{coding}");

        fake.fault("blobs", Fault::Compressed { coding, ranges: true }, 2);
        assert_eq!(read(&blob, 10..200_000).await.unwrap(), content[10..200_000], "{coding}");
        let expected = [None, Some("bytes=10-199999".to_owned()), None];
        assert_eq!(ranges_of(&fake), expected, "a range of what came out is of no use");

        let (fake, blob, content) = start().await;
        fake.fault("blobs", Fault::Compressed { coding, ranges: false }, 1);
        assert_eq!(read(&blob, 10..200_000).await.unwrap(), content[10..200_000], "{coding}");
        assert_eq!(fake.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_coding_that_is_only_said_changes_nothing() {
    for coding in ["gzip", "zstd", "aws-chunked", "identity"] {
        let (fake, blob, content) = start().await;
        fake.fault("blobs", Fault::Coding(coding), ALWAYS);
        assert_eq!(read(&blob, 0..SIZE).await.unwrap(), content, "{coding}");
        assert_eq!(read(&blob, 10..200_000).await.unwrap(), content[10..200_000], "{coding}");
        assert_eq!(blob.ranges(), Some(true), "{coding}");
    }
}

#[tokio::test]
async fn what_was_compressed_and_damaged_is_asked_for_again() {
    for coding in ["gzip", "zstd"] {
        let (fake, blob, content) = start().await;
        let headers = vec![("content-encoding".to_owned(), coding.to_owned())];
        let damaged = Fault::Status { code: 200, headers, body: "what is this".to_owned() };
        fake.fault("blobs", damaged.clone(), 2);
        assert_eq!(read(&blob, 0..SIZE).await.unwrap(), content, "{coding}");
        fake.fault("blobs", damaged, ALWAYS);
        let error = read(&blob, 0..SIZE).await.unwrap_err();
        assert_eq!(error.class(), Class::Transient);
        assert!(error.to_string().contains("at byte 0: it was compressed on the way, and is damaged: "), "{error}");
    }
}

#[tokio::test]
async fn a_shorter_range_than_asked_for_is_continued() {
    let (fake, blob, content) = start().await;
    fake.fault("blobs", Fault::ShortRange(30_000), ALWAYS);
    assert_eq!(read(&blob, 100_000..200_000).await.unwrap(), content[100_000..200_000]);
    assert_eq!(fake.requests().len(), 4);
}

#[tokio::test]
async fn more_bytes_than_promised_are_an_error() {
    for range in [0..SIZE, 100..200_000] {
        let (fake, blob, _) = start().await;
        fake.fault("blobs", Fault::Extra(1), ALWAYS);
        let error = read(&blob, range).await.unwrap_err();
        assert!(matches!(error, Error::Overlong { .. }) && error.class() == Class::Corrupt, "{error}");
    }
}

#[tokio::test]
async fn a_blob_of_another_size_is_an_error() {
    let (fake, blob, _) = start().await;
    fake.fault("blobs", Fault::Truncate(200_000), ALWAYS);
    for range in [0..SIZE, 100_000..SIZE] {
        let error = read(&blob, range).await.unwrap_err();
        assert!(matches!(error, Error::WrongSize { expected: SIZE, actual: 200_000, .. }), "{error}");
    }
}

#[tokio::test]
async fn a_range_that_is_refused_is_asked_for_again() {
    let (fake, blob, content) = start().await;
    // What a cache says that has not received as much itself yet.
    fake.fault("blobs", Fault::Truncate(200_000), 2);
    assert_eq!(read(&blob, 250_000..SIZE).await.unwrap(), content[250_000..]);
    assert_eq!(ranges_of(&fake), vec![Some("bytes=250000-299999".to_owned()); 3]);
    fake.fault("blobs", Fault::status(416), ALWAYS);
    let error = read(&blob, 250_000..SIZE).await.unwrap_err();
    assert_eq!((error.class(), fake.requests().len()), (Class::Transient, 3 + 4));
    assert!(error.to_string().contains("cannot serve bytes 250000-299999 of blob sha256:"), "{error}");
}

#[tokio::test]
async fn a_dropped_next_loses_nothing() {
    let (fake, blob, content) = start().await;
    fake.fault("blobs", Fault::Slow(3_000_000), ALWAYS);
    let mut stream = blob.read(0..SIZE);
    let mut got = Vec::new();
    loop {
        // Polled once and dropped, again and again.
        match stream.next().now_or_never() {
            None => tokio::time::sleep(Duration::from_millis(1)).await,
            Some(Ok(None)) => break,
            Some(bytes) => got.extend_from_slice(&bytes.unwrap().unwrap()),
        }
        if fake.requests().is_empty() {
            // The request itself needs one poll that lasts.
            got.extend_from_slice(&stream.next().await.unwrap().unwrap());
        }
    }
    assert_eq!(got, content);
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_bodies_come_from_a_host_than_may() {
    let (fake, _, content) = start().await;
    let mut world = World::new(&[&fake]);
    world.config.connections_per_registry = 3;
    let registry = world.registry();
    let reference = format!("{}/app", fake.host()).parse().unwrap();
    let blob = registry.repository(&reference).await.unwrap().blob(silk_model::Digest::of(&content), SIZE);
    // Holds bodies back until as many are on their way as may be.
    let full = async |most: usize| {
        let come = tokio::time::timeout(Duration::from_secs(60), fake.wait_for_bodies(most));
        come.await.expect("as many as may be");
        // For more of them, if more may come.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(registry.connections(), Use { limit: 4, in_use: most as u64 });
        fake.heal();
    };
    fake.most_bodies();
    fake.fault("GET .*blobs", Fault::Hold, ALWAYS);
    let patient = (0..24).map(|i| read(&blob, i..i + 50_000));
    let (results, ()) = tokio::join!(join_all(patient), full(3));
    assert!(results.into_iter().enumerate().all(|(i, bytes)| bytes.unwrap() == content[i..i + 50_000]));
    assert_eq!(fake.most_bodies().all, 3);
    fake.fault("GET .*blobs", Fault::Hold, ALWAYS);
    let urgent = (0..24).map(|i| {
        let mut stream = blob.read(i..i + 50_000).urgent();
        async move { rest(&mut stream).await.unwrap() }
    });
    // One more for those that somebody waits for.
    let (results, ()) = tokio::join!(join_all(urgent), full(4));
    assert!(results.into_iter().enumerate().all(|(i, bytes)| bytes == content[i..i + 50_000]));
    assert_eq!(fake.most_bodies().all, 4);
    assert_eq!(registry.connections(), Use { limit: 4, in_use: 0 });
}

#[tokio::test]
async fn bodies_at_a_time_are_limited_and_the_rest_wait() {
    let (fake, _, content) = start().await;
    let mut world = World::new(&[&fake]);
    world.config.connections_per_registry = 2;
    let digest = silk_model::Digest::of(&content);
    let blob = world.repository(&format!("{}/app", fake.host())).await.blob(digest, SIZE);
    // Slow bodies, so that both are still on their way when the third comes.
    fake.fault("blobs", Fault::StallAfter(50_000), 2);
    let mut first = blob.read(0..SIZE);
    let mut second = blob.read(1..SIZE);
    first.next().await.unwrap();
    second.next().await.unwrap();
    let third = blob.clone();
    let third = tokio::spawn(async move { read(&third, 2..SIZE).await });
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fake.requests().len(), 2);
    let mut urgent = blob.read(3..1003).urgent();
    assert_eq!(urgent.next().await.unwrap().unwrap(), content[3..1003], "somebody waits for it");
    assert_eq!(fake.requests().len(), 3);
    drop(first);
    assert_eq!(third.await.unwrap().unwrap(), content[2..]);
    drop(second);
    let reads = (0..20).map(|i| read(&blob, i..i + 1000));
    assert!(join_all(reads).await.into_iter().all(|bytes| bytes.is_ok()));
}
