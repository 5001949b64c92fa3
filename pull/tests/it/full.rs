//! A layer that streams in on a disk that has no room for it. (`lazy` has the one that fills.)

use std::fs;

use silk_model::Class;
use silk_testkit::{Compression, Fake, ImageSpec, noise, tar};

use crate::{lazy::SmallDisk, node::Node};

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pull_that_fills_the_disk_says_so_leaves_nothing_and_succeeds_when_there_is_room() {
    let registry = Fake::start().await;
    let disk = SmallDisk::new();
    let node = Node::on(disk.0.path());
    let large = tar(&[("large", &noise(2, 24_000_000))]);
    let image = ImageSpec::new().layer(tar(&[("small", b"small")]), Compression::Gzip).layer(&large, Compression::Gzip);
    let pushed = registry.push_image("library/app:1", &image);
    let layer = &pushed.layers[1];
    // Of its 48 MiB some 20 are left: it fails in the middle.
    let filler = disk.0.path().join("filler");
    fs::write(&filler, vec![1; 24 << 20]).unwrap();
    let free = || node.store.disk().unwrap().1;
    let before = free();
    let error = node.pull(&pushed).await.unwrap_err();
    assert_eq!(error.class(), Class::NoSpace, "{error}");
    let text = error.to_string();
    let start = format!("silk cannot pull {}: layer 2 of 2 ({}): ", pushed.reference, layer.blob_digest);
    assert!(text.starts_with(&start) && text.contains("No space left on device"), "{text}");
    let status = node.puller.status(Some(&pushed.reference));
    assert_eq!((status[0].state, status[0].error.as_deref()), ("failed", Some(text.as_str())));
    assert!(!node.store.layer_path(&layer.diff_id).exists());
    assert!(before - free() < 1 << 20, "{} of {before} bytes are left", free());
    fs::remove_file(&filler).unwrap();
    node.ready(&pushed).await.unwrap();
    assert_eq!(node.data(&layer.diff_id), large);
}
