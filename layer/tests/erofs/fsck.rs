//! fsck.erofs as a second reader. Only versions from 1.6 on know blocks of 512 bytes: `SILK_FSCK_EROFS` names one, else
//! the one on the path is asked for its version, and an older one checks nothing.

use std::{env, process::Command};

use crate::make::Image;

/// Fails unless fsck.erofs accepts the image and can read every file in it.
pub fn check(image: &Image) {
    let program = env::var("SILK_FSCK_EROFS").unwrap_or_else(|_| "fsck.erofs".into());
    if !env::var("SILK_FSCK_EROFS").is_ok_and(|p| !p.is_empty()) && !knows_small_blocks(&program) {
        eprintln!("no fsck.erofs of version 1.6 or later: not checked (the kernel's mount is)");
        return;
    }
    let mut command = Command::new(&program);
    command.args(image.devices.iter().map(|d| format!("--device={}", d.display())));
    let output = command.arg("--extract").arg(&image.path).output().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    // Some of what it finds leaves its status as it is.
    assert!(output.status.success() && !said.contains("<E>"), "{said}");
}

fn knows_small_blocks(program: &str) -> bool {
    let Ok(output) = Command::new(program).arg("-V").output() else { return false };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let mut numbers = numbers.unwrap_or_default().split('.').map_while(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(1), Some(6))
}
