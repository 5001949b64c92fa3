//! What an operator reads.

use silk_api::control;

use super::*;

fn answer() -> StatusResponse {
    let layer = |digit: &str, state: &str| Layer {
        diff_id: format!("sha256:{}", digit.repeat(64)),
        blob_digest: format!("sha256:{}", "b".repeat(64)),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        state: state.into(),
        names: state == "whole",
        proved: state == "whole",
        durable: false,
        blob_size: 29_100_000,
        blob_received: 1_500_000,
        data_bytes: 74_800_000,
        source: "docker.io".into(),
        rate: 45_000_000.0,
        error: String::new(),
        mountpoint: String::new(),
        variant: if state == "whole" { "shared".into() } else { String::new() },
        snapshots: 1,
        names_from: String::new(),
        demand_bytes: 0,
        profile_bytes: 0,
        background_bytes: 0,
        reads_waiting: 0,
    };
    StatusResponse {
        version: "0.1.0".into(),
        rung: "file".into(),
        rung_reason: "Linux 6.12".into(),
        root: "/var/lib/silk".into(),
        layer_bytes: 1_200_000_000,
        unused_bytes: 0,
        quota_bytes: 0,
        node: Some(control::Node { layers: 7, containers_on_silkd: 2, ..control::Node::default() }),
        backends: vec![
            Backend {
                name: "redis 10.0.0.5:6379".into(),
                up: true,
                seconds: 185.0,
                hits: 12,
                misses: 3,
                ..Backend::default()
            },
            Backend {
                name: "referrers".into(),
                seconds: 2.5,
                why: "registry a did not answer".into(),
                dropped: 1,
                trouble: "no right to push".into(),
                trouble_seconds: 70.0,
                ..Backend::default()
            },
        ],
        images: vec![
            Image {
                reference: "docker.io/library/app:1".into(),
                manifest_digest: "sha256:m".into(),
                state: "pulling".into(),
                error: String::new(),
                layers: vec![layer("1", "whole"), layer("2", "pulling")],
                seconds: 1.5,
                namespace: "k8s.io".into(),
                waiting: 1,
            },
            Image {
                reference: "docker.io/library/other:1".into(),
                manifest_digest: "sha256:n".into(),
                state: "refused".into(),
                error: "registry docker.io refused silk\u{1b}".into(),
                namespace: "k8s.io".into(),
                ..Image::default()
            },
        ],
    }
}

#[test]
fn the_table() {
    let expected = "\
silkd 0.1.0 in /var/lib/silk
layers are shown by EROFS from files (Linux 6.12)
1.2 GB of layers on disk, 0 B of them unused (none is kept)
containers that read through silkd, and lose their image when it ends: 2
shared through redis 10.0.0.5:6379, up for 3 min 5 s
  12 found, 3 not there, 0 refused; 0 published, 0 dropped
shared through referrers, away for 2.50 s: registry a did not answer
  0 found, 0 not there, 0 refused; 0 published, 1 dropped
  last trouble, 1 min 10 s ago: no right to push

docker.io/library/app:1  pulling for 1.50 s
  manifest sha256:m, namespace k8s.io
  LAYER         STATE    NAMES  RECEIVED           DATA     PROVED           FROM       RATE       MOUNT   SNAPSHOTS  ERROR
  111111111111  whole    yes    29.1 MB            74.8 MB  yes, not synced  docker.io  45.0 MB/s  shared  1
  222222222222  pulling  no     1.5 MB of 29.1 MB  74.8 MB  no               docker.io  45.0 MB/s          1

docker.io/library/other:1  refused
  manifest sha256:n, namespace k8s.io
  registry docker.io refused silk\\u{1b}
";
    assert_eq!(human::clean(&text(&answer())), expected);
}

#[test]
fn the_json_has_the_names_of_the_service() {
    let value: serde_json::Value = serde_json::from_str(&json::text(answer())).unwrap();
    let layer = &value["images"][0]["layers"][1];
    assert_eq!(value["quota_bytes"], 0);
    assert_eq!(value["images"][0]["manifest_digest"], "sha256:m");
    assert_eq!(
        (&layer["state"], &layer["proved"], &layer["blob_received"]),
        (&"pulling".into(), &false.into(), &1_500_000.into())
    );
    assert_eq!(value["images"][1]["layers"], serde_json::json!([]));
    has_every_field(&[
        ("StatusResponse", &value),
        ("Image", &value["images"][0]),
        ("Layer", layer),
        ("Backend", &value["backends"][0]),
        ("Node", &value["node"]),
    ]);
}

/// Every field of the service, by the text that defines it.
fn has_every_field(messages: &[(&str, &serde_json::Value)]) {
    let proto = include_str!("../../../../api/proto/silk/control/v1/control.proto");
    for (message, object) in messages {
        let body = proto.split(&format!("message {message} {{")).nth(1).unwrap().split('}').next().unwrap();
        let fields: Vec<_> = body.lines().filter_map(|line| line.split_once(" = ")?.0.split(' ').next_back()).collect();
        assert!(fields.len() > 5, "{message}: {fields:?}");
        assert_eq!(object.as_object().unwrap().len(), fields.len(), "{message}");
        fields.iter().for_each(|field| assert!(object.get(field).is_some(), "{message}.{field}"));
    }
}

fn timed() -> control::TimingResponse {
    let layer = |digit: &str, way: &str, limit: &str| control::LayerTiming {
        diff_id: format!("sha256:{}", digit.repeat(64)),
        blob_size: 29_100_000,
        way: way.into(),
        limit: limit.into(),
        first_byte: (way != "here").then_some(0.05),
        last_byte: (way != "here").then_some(1.0),
        ended: (way == "streamed").then_some(1.25),
        turn: 0.001,
        wait_first_byte: 0.02,
        wait_bytes: 0.3,
        inflate: 0.5,
        blob_digest_seconds: 0.05,
        wait_store: 0.1,
        digest: 0.2,
        scan: 0.01,
        index: 0.03,
        write: 0.15,
        wait_decoder: 0.4,
        proof: 0.004,
        ..control::LayerTiming::default()
    };
    let pulled = control::ImageTiming {
        reference: "docker.io/library/app:1".into(),
        manifest_digest: "sha256:m".into(),
        state: "ready".into(),
        known: true,
        seconds: Some(1.3),
        resolve_seconds: Some(0.04),
        layers_seconds: Some(1.21),
        mount_seconds: Some(0.05),
        limit: "inflate".into(),
        layers: vec![layer("1", "streamed", "inflate"), layer("2", "filled", "link"), layer("3", "here", "")],
    };
    let known = control::ImageTiming {
        reference: "docker.io/library/app:1".into(),
        state: "idle".into(),
        ..control::ImageTiming::default()
    };
    control::TimingResponse { images: vec![pulled, known] }
}

#[test]
fn the_tables_of_times() {
    let expected = "\
docker.io/library/app:1  ready, mounted and whole after 1.30 s: inflate
  manifest sha256:m
  resolve 40 ms, layers 1.21 s, mount 50 ms
  STREAMED      SIZE     FIRST  LAST   END    TURN   BYTES  DECODE  STORE  DIGEST  SCAN   INDEX  WRITE  DECODER  PROOF  LIMIT
  111111111111  29.1 MB  0.050  1.000  1.250  0.001  0.320  0.550   0.100  0.200   0.010  0.030  0.150  0.400    0.004  inflate
  FILLED        SIZE     FIRST  LAST   END  TURN   BYTES  DECODE  WRITE  PROOF  LIMIT
  222222222222  29.1 MB  0.050  1.000  -    0.001  0.320  0.710   0.150  0.004  link
  1 layer here before

docker.io/library/app:1  idle
  nothing is known of its pull: silkd has not pulled it since its own start
";
    assert_eq!(timing::text(&timed(), "app"), expected);
    assert_eq!(timing::text(&control::TimingResponse::default(), "app"), "silkd does not know app\n");
    let mut pulling = timed();
    pulling.images.truncate(1);
    let image = &mut pulling.images[0];
    (image.state, image.seconds, image.mount_seconds, image.layers) = ("pulling".into(), None, None, vec![]);
    let expected = "docker.io/library/app:1  pulling\n  manifest sha256:m\n  resolve 40 ms, layers 1.21 s, mount -\n";
    assert_eq!(timing::text(&pulling, "app"), expected);
}

#[test]
fn the_times_as_json_have_the_names_of_the_service() {
    let value: serde_json::Value = serde_json::from_str(&timing::json(timed())).unwrap();
    let image = &value["images"][0];
    assert_eq!((&image["limit"], &image["layers"][1]["ended"]), (&"inflate".into(), &serde_json::Value::Null));
    assert_eq!(value["images"][1]["known"], false);
    has_every_field(&[("ImageTiming", image), ("LayerTiming", &image["layers"][0])]);
}
