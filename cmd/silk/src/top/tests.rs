//! What an operator sees.

use std::time::{Duration, Instant};

use silk_api::control::{Backend, Budget, Image, Layer, Node, StatusResponse};

use super::{Sample, frame, interval, screen::drawn};

fn layer(digit: char, state: &str, received: u64) -> Layer {
    Layer {
        diff_id: format!("sha256:{}", digit.to_string().repeat(64)),
        state: state.into(),
        blob_size: 30_000_000,
        blob_received: received,
        rate: 1_000_000.0,
        ..Layer::default()
    }
}

fn samples() -> (Sample, Sample) {
    let budget = |name: &str, in_use, limit| Budget { name: name.into(), limit, in_use };
    let node = Node {
        resident_bytes: 73_400_000,
        descriptors: 42,
        descriptors_limit: 20_000,
        threads: 18,
        cpu_seconds: 10.0,
        seconds: 3725.0,
        retries: 3,
        layers: 37,
        reads_waiting: 2,
        budgets: vec![
            budget("registry_connections", 6, 10),
            budget("bytes_in_flight", 12_500_000, 33_554_432),
            budget("decoders", 3, 3),
            budget("cache_bytes", 0, 10),
        ],
        ..Node::default()
    };
    let image = |layers| Image {
        reference: "docker.io/library/app:1".into(),
        state: "pulling".into(),
        seconds: 1.5,
        waiting: 2,
        layers,
        ..Image::default()
    };
    let failed = Image {
        reference: "docker.io/library/other:1".into(),
        state: "failed".into(),
        error: "no such\u{1b} blob".into(),
        ..Image::default()
    };
    let before = StatusResponse {
        version: "0.1.0".into(),
        root: "/var/lib/silk".into(),
        layer_bytes: 1_200_000_000,
        unused_bytes: 200_000_000,
        quota_bytes: 10_737_418_240,
        images: vec![image(vec![layer('1', "pulling", 1_000_000), layer('2', "waiting", 0)])],
        backends: vec![
            Backend { name: "redis 10.0.0.5:6379".into(), up: true, ..Backend::default() },
            Backend { name: "referrers".into(), why: "no answer".into(), ..Backend::default() },
        ],
        node: Some(node.clone()),
        ..StatusResponse::default()
    };
    let filling = Layer { reads_waiting: 2, ..layer('3', "filling", 29_000_000) };
    let now = StatusResponse {
        images: vec![
            image(vec![layer('1', "pulling", 21_000_000), layer('0', "whole", 30_000_000), layer('2', "waiting", 0)]),
            Image { state: "ready".into(), waiting: 0, ..image(vec![layer('1', "pulling", 21_000_000), filling]) },
            failed,
        ],
        node: Some(Node {
            cpu_seconds: 11.5,
            received_bytes: 90_000_000,
            stream_bytes: 180_000_000,
            demand_bytes: 1_000_000,
            requests: 24,
            reads_at_once: 400,
            reads_parked: 6,
            ..node
        }),
        ..before.clone()
    };
    let at = Instant::now();
    (Sample { at, status: before }, Sample { at: at + Duration::from_secs(2), status: now })
}

#[test]
fn a_frame() {
    let (before, now) = samples();
    let expected = "\
silkd     0.1.0 in /var/lib/silk, up for 1 h 2 min
network   45.0 MB/s received, 12 requests/s, 3 retries
arriving  90.0 MB/s streamed, 500.0 kB/s for reads, 0 B/s for starts,
          0 B/s behind them
reads     2 waiting, 200/s at once, 3/s after a wait, 0 failed
cache     37 layers, 1.2 GB, 200.0 MB unused (at most 10.7 GB)
process   73.4 MB of memory, 42 of 20000 descriptors, 18 threads,
          75 % of a core
budgets   registry connections 6/10, bytes in flight 12.5 MB/33.6 MB,
          decoders 3/3
shared    redis 10.0.0.5:6379 up, referrers away: no answer

docker.io/library/app:1  pulling for 1.50 s, 1 of 3 layers whole, 2 pulls wait
  1/3  111111111111  pulling  21.0 MB of 30.0 MB   70 %  10.0 MB/s
  3/3  222222222222  waiting  0 B of 30.0 MB        0 %

docker.io/library/app:1  ready, 0 of 2 layers whole
  2/2  333333333333  filling  29.0 MB of 30.0 MB   96 %  1.0 MB/s   2 reads wait

docker.io/library/other:1  failed: no such\\u{1b} blob
";
    assert_eq!(frame::text(Some(&before), &now, 72), expected);
}

#[test]
fn a_first_frame_knows_no_rates_and_an_idle_node_says_so() {
    let (before, _) = samples();
    let text = frame::text(None, &before, 200);
    assert!(text.contains("network   0 B/s received, 0 requests/s, 3 retries\n"), "{text}");
    assert!(text.contains("pulling  1.0 MB of 30.0 MB    3 %  1.0 MB/s\n"), "silkd's own mean: {text}");
    assert!(!text.contains("of a core"), "{text}");
    let idle = Sample { at: before.at, status: StatusResponse::default() };
    assert!(frame::text(Some(&idle), &idle, 80).ends_with("\nnothing arrives\n"));
    // silkd was started anew: what it counts begins at 0.
    assert!(frame::text(Some(&before), &idle, 80).contains("0 B/s received"));
}

#[test]
fn a_frame_fits_the_terminal() {
    let clear = "\x1b[K\r\n";
    assert_eq!(drawn("one\ntwo\n", "", (5, 80)), format!("\x1b[Hone{clear}two\x1b[K\x1b[J"));
    assert_eq!(drawn("one\ntwo\n", "note", (5, 3)), format!("\x1b[Hno…{clear}one{clear}two\x1b[K\x1b[J"));
    assert_eq!(drawn("1\n2\n3\n4\n", "", (3, 80)), format!("\x1b[H1{clear}2{clear}… and 2 more lines\x1b[K\x1b[J"));
    let (before, now) = samples();
    for size in [(1, 1), (10, 20), (24, 80), (0, 0)] {
        let frame = drawn(&frame::text(Some(&before), &now, size.1), "", size);
        let lines: Vec<_> = frame.trim_start_matches("\x1b[H").trim_end_matches("\x1b[K\x1b[J").split(clear).collect();
        assert!(lines.len() <= size.0.max(1), "{size:?}: {lines:?}");
        assert!(lines.iter().all(|line| console::measure_text_width(line) <= size.1), "{size:?}: {lines:?}");
    }
}

#[test]
fn intervals() {
    assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
    for bad in ["", "0", "0.01", "-1", "nan", "inf", "4000", "1s"] {
        assert!(interval(bad).is_err(), "{bad}");
    }
}
