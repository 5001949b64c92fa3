//! Any bytes as a tar: the first says how it is cut. Headers get their checksums, or hardly any would be looked at.

#![no_main]

use libfuzzer_sys::fuzz_target;
use silk_layer::{
    tar::{Limits, Scanner},
    toc::{decode, encode},
    tree::{Below, Tree},
};

fuzz_target!(|data: &[u8]| {
    let Some((cut, tar)) = data.split_first() else { return };
    let mut tar = tar.to_vec();
    for block in tar.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    let scan = |chunk: usize| {
        let mut scanner = Scanner::new(Limits::default());
        tar.chunks(chunk).try_for_each(|chunk| scanner.push(chunk)).and_then(|()| scanner.finish())
    };
    let toc = scan(usize::from(*cut) + 1);
    assert_eq!(toc, scan(tar.len().max(1)));
    let Ok(toc) = toc else { return };
    assert_eq!(decode(&encode(&toc)).unwrap(), toc);
    let _ = Tree::dependence(&toc);
    if let Ok(base) = Tree::build(&toc, Below::Base) {
        let _ = Tree::build(&toc, Below::Above(&[&base.tree]));
    }
});
