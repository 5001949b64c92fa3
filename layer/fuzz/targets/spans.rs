//! Any bytes as a blob: its index gives back what the stream gave, and what is damaged afterwards never gives
//! another byte. The first bytes say what is damaged.

#![no_main]

use std::{io::Read as _, sync::Arc};

use libfuzzer_sys::fuzz_target;
use silk_layer::{
    decode::open_learning,
    index::{Builder, Index, decode, encode, read},
};

/// Bombs unfold for as long as they like.
const ENOUGH: usize = 16 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((damage, blob)) = data.split_first_chunk::<4>() else { return };
    let Some((index, tar)) = learn(blob) else { return };
    assert_eq!(decode(&encode(&index)).unwrap(), index);
    let index = Arc::new(index);
    assert!(whole(&index, blob, &tar), "an index does not fit its own blob");
    let Some(place) = (u32::from_le_bytes(*damage) as usize >> 3).checked_rem(blob.len()) else { return };
    let mut bad = blob.to_vec();
    bad[place] ^= 1 << (damage[0] & 7);
    whole(&index, &bad, &tar);
});

fn learn(blob: &[u8]) -> Option<(Index, Vec<u8>)> {
    let mut decoder = open_learning(blob).ok()?;
    let (mut builder, mut tar, mut buffer) = (Builder::new(), Vec::new(), vec![0; 64 << 10]);
    loop {
        let n = decoder.read(&mut buffer).ok()?;
        builder.entries(decoder.take_entries());
        builder.push(&buffer[..n]);
        tar.extend_from_slice(&buffer[..n]);
        match n {
            0 => return Some((builder.finish(decoder.compression(), blob.len() as u64), tar)),
            _ if tar.len() > ENOUGH => return None,
            _ => {}
        }
    }
}

/// Reads each segment; whether all of them could be read. Bytes that are given out are right.
fn whole(index: &Arc<Index>, blob: &[u8], tar: &[u8]) -> bool {
    let (mut next, mut out, mut whole) = (0, Vec::new(), true);
    while next < index.len() {
        let run = index.segment(next);
        next = run.end;
        let range = index.blob_range(run.clone());
        let mut spans = read(Arc::clone(index), run, &blob[range.start as usize..range.end as usize]);
        loop {
            match spans.next(&mut out) {
                Ok(Some(span)) => {
                    let range = index.range(span);
                    assert!(out == tar[range.start as usize..range.end as usize], "wrong bytes");
                }
                Ok(None) => break,
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
    }
    whole
}
