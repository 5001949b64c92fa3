//! Any bytes as a blob: reading ends, with what is in it or with an error.

#![no_main]

use std::io::{BufReader, Read as _};

use libfuzzer_sys::fuzz_target;
use silk_layer::decode::open;

/// Bombs unfold for as long as they like; that is the caller's to bound.
const ENOUGH: u64 = 4 << 20;

fuzz_target!(|data: &[u8]| {
    let Ok(decoder) = open(BufReader::with_capacity(64, data)) else { return };
    let _ = decoder.take(ENOUGH).read_to_end(&mut Vec::new());
});
