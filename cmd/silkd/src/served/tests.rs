#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use silk_layer::{index, toc};
use silk_store::{Config, Known};

use super::*;

#[tokio::test]
async fn the_disk_of_a_layer_that_was_read_is_given_back() {
    let root = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(root.path(), Config::default()).unwrap());
    let bytes: Vec<u8> = (0..2_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut decoder = silk_layer::decode::open_learning(&bytes[..]).unwrap();
    let (mut builder, mut piece) = (index::Builder::new(), vec![0; 100_000]);
    loop {
        let len = std::io::Read::read(&mut decoder, &mut piece).unwrap();
        builder.entries(decoder.take_entries());
        if len == 0 {
            break;
        }
        builder.push(&piece[..len]);
    }
    let index = builder.finish(decoder.compression(), bytes.len() as u64);
    let names = toc::Toc { size: bytes.len() as u64, entries: vec![] };
    let id = Digest::of(&bytes);
    let (encoded, blob, blob_size) = (index::encode(&index), Digest::of(b"blob"), index.blob_size);
    store.learn(&Known { diff_id: id, blob, blob_size, toc: toc::encode(&names), index: encoded }, "a peer").unwrap();
    let partial = store.partial(id).unwrap();
    for nr in 0..index.len() {
        let range = index.range(nr);
        partial.fill(nr, &bytes[range.start as usize..range.end as usize], false).unwrap();
    }
    partial.finish(&names, 1).unwrap();
    drop(partial);
    let lazies = Lazies::new(Arc::clone(&store), &silk_pull::Config::default());
    let files = Files::new(lazies, Slots::open(store.database()).unwrap(), 512);
    // A container that was started before the layer was whole reads through silkd.
    assert_eq!(files.read_whole(&id, 0, 4096).unwrap(), bytes[..4096]);
    files.close(&id);
    assert_eq!(store.evict(&id).unwrap().layers, 1);
    let held = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let held: Vec<_> = held.filter(|to| to.to_string_lossy().contains(&id.hex())).collect();
    assert!(held.is_empty(), "{held:?}");
}
