//! Any bytes as an index: as a file, and as the payload of one whose header is right. One that is accepted is used, on the
//! rest of the bytes as the blob.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};
use silk_layer::index::{MAGIC, MAX_SPAN, VERSION, decode, encode, read};

fuzz_target!(|data: &[u8]| {
    let _ = decode(data);
    let Some((cut, data)) = data.split_first_chunk::<2>() else { return };
    let (payload, blob) = data.split_at(data.len().min(usize::from(u16::from_le_bytes(*cut))));
    let mut file = MAGIC.to_vec();
    file.extend(VERSION.to_le_bytes());
    file.extend([0; 4]);
    file.extend((payload.len() as u64).to_le_bytes());
    file.extend([0; 8]);
    let hash = Sha256::new().chain_update(&file).chain_update(payload).finalize();
    file.extend(hash);
    file.extend(payload);
    let Ok(index) = decode(&file) else { return };
    assert_eq!(decode(&encode(&index)).unwrap(), index);
    let index = Arc::new(index);
    let mut out = Vec::new();
    for span in 0..index.len() {
        let run = index.segment(span);
        let range = index.blob_range(run.clone());
        assert!(run.contains(&span) && range.start < range.end && range.end <= index.blob_size);
        let start = usize::try_from(range.start).unwrap_or(usize::MAX).min(blob.len());
        let mut spans = read(Arc::clone(&index), run, &blob[start..]);
        while let Ok(Some(span)) = spans.next(&mut out) {
            assert!(out.len() as u64 <= MAX_SPAN && index.is_good(span, &out));
        }
    }
});
