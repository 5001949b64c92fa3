//! Any bytes as a blob: reading ends, with what is in it or with an error, and learning changes nothing.

#![no_main]

use std::io::{BufReader, Read as _};

use libfuzzer_sys::fuzz_target;
use silk_layer::decode::{open, open_learning};

/// Bombs unfold for as long as they like; that is the caller's to bound.
const ENOUGH: u64 = 4 << 20;

fuzz_target!(|data: &[u8]| {
    let input = || BufReader::with_capacity(64, data);
    let (Ok(plain), Ok(learning)) = (open(input()), open_learning(input())) else { return };
    let (mut one, mut other) = (Vec::new(), Vec::new());
    let first = plain.take(ENOUGH).read_to_end(&mut one);
    let second = learning.take(ENOUGH).read_to_end(&mut other);
    assert_eq!(first.is_ok(), second.is_ok());
    // Before an error the one may have given out more than the other.
    assert!(first.is_err() || one == other);
});
