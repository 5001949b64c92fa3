//! Any bytes as a table of contents: as a file, and as the payload of one whose header is right.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};
use silk_layer::{
    toc::{MAGIC, VERSION, decode, encode},
    tree::{Below, Tree},
};

fuzz_target!(|data: &[u8]| {
    let _ = decode(data);
    let payload = zstd::bulk::compress(data, 1).unwrap();
    let mut file = MAGIC.to_vec();
    file.extend(VERSION.to_le_bytes());
    file.extend([0; 4]);
    file.extend((data.len() as u64).to_le_bytes());
    file.extend((payload.len() as u64).to_le_bytes());
    file.extend(Sha256::digest(&payload));
    file.extend(payload);
    let Ok(toc) = decode(&file) else { return };
    assert_eq!(decode(&encode(&toc)).unwrap(), toc);
    let _ = Tree::dependence(&toc);
    if let Ok(base) = Tree::build(&toc, Below::Base) {
        let _ = Tree::build(&toc, Below::Above(&[&base.tree]));
    }
});
