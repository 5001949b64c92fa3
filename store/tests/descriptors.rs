//! A process that has no file descriptors left. Alone in its binary: the limit is the process's.

#![allow(clippy::unwrap_used)] // a test's helper panics where the test would

use std::{fs::File, sync::Arc};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use silk_layer::{index::Builder, media::Compression, toc::Toc};
use silk_model::{Class, Digest};
use silk_store::{Config, Facts, Finding, Store};

#[test]
fn a_layer_that_cannot_be_opened_now_is_not_called_damaged() {
    let root = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(root.path(), Config::default()).unwrap());
    let id = Digest::of(b"a layer");
    let mut writer = store.writer(id).unwrap();
    writer.append(b"a layer").unwrap();
    let mut builder = Builder::new();
    builder.push(b"a layer");
    let facts = Facts { size: 7, entries: 0, blob: id, blob_size: 7, source: String::new(), millis: 0 };
    writer.finish(&Toc::new(7, []), &builder.finish(Compression::None, 7), facts).unwrap();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), ..limit }).unwrap();
    let mut held = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        held.push(file);
    }
    let proof = store.prove(&id);
    drop(held);
    setrlimit(Resource::Nofile, limit).unwrap();
    assert_eq!(proof.map_err(|e| e.class()), Err(Class::Internal));
    assert_eq!(store.prove(&id).unwrap().finding, Finding::Good);
}
