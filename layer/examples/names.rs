//! What the names of a layer take: `names layer.tar`, an uncompressed tar.
//!
//! Its table of contents is made as while the layer streams in, and then its metadata image as when it is mounted. One line for each step:
//! milliseconds, and the most memory that the process had (`VmHWM`, in MB) since the last step began: `scan` and `image`, which hold others,
//! tell their milliseconds alone by that.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    time::Instant,
};

use silk_layer::{
    erofs::{Device, Plan},
    tar::{Limits, Scanner},
    toc,
    tree::{Below, Source, Tree},
};
use silk_model::Digest;

fn main() {
    let path = std::env::args().nth(1).expect("the path of a tar");
    let size = fs::metadata(&path).expect("a readable tar").len();
    let file = step("scan", || {
        let mut scanner = Scanner::new(Limits::default());
        let (mut tar, mut chunk) = (File::open(&path).expect("a readable tar"), vec![0; 512 << 10]);
        loop {
            match tar.read(&mut chunk).expect("a readable tar") {
                0 => break,
                len => scanner.push(&chunk[..len]).expect("a sound tar"),
            }
        }
        println!("{} entries", scanner.entries());
        let toc = scanner.finish().expect("a sound tar");
        step("encode", || toc::encode(&toc))
    });
    step("image", || {
        let toc = step("decode", || toc::decode(&file).expect("a table"));
        let tree = step("build", || Tree::build(&toc, Below::Above(&[])).expect("a tree").tree);
        let devices = [Device { source: Source::Own, size, layer: Digest::of(b"") }];
        let plan = step("plan", || Plan::new(&tree, &devices, [0; 16]).expect("an image"));
        step("write", || plan.write(&mut io::sink(), &mut |_, _, _| Ok(())).expect("a sink takes all"));
    });
}

fn step<T>(name: &str, run: impl FnOnce() -> T) -> T {
    // proc_pid_clear_refs(5): 5 resets the peak.
    fs::write("/proc/self/clear_refs", "5").expect("one's own peak can be reset");
    let began = Instant::now();
    let result = run();
    let millis = began.elapsed().as_millis();
    let status = fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).and_then(|rest| rest.split_whitespace().next());
    let peak = peak.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() / 1000;
    println!("{name}: {millis} ms, {peak} MB");
    result
}
