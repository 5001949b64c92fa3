//! The program as a whole, without daemons: words on stderr and exit codes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Command, Output};

fn silk(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_silk"));
    for name in ["SILK_ADDRESS", "CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE", "CONTAINERD_SNAPSHOTTER"] {
        command.env_remove(name);
    }
    command.args(arguments).output().expect("cargo built it")
}

#[track_caller]
fn fails(arguments: &[&str], code: i32, words: &[&str]) {
    let output = silk(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    words.iter().for_each(|word| assert!(said.contains(word), "{arguments:?}: {said}"));
    assert!(output.stdout.is_empty(), "{arguments:?}");
}

#[test]
fn a_daemon_that_is_not_there_is_named_with_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("no.sock");
    let socket = socket.to_str().unwrap();
    for command in [&["status"][..], &["explain", "a"], &["fsck"], &["fsck", "0123456789ab"], &["gc"]] {
        let arguments = [&["--address", socket], command].concat();
        fails(
            &arguments,
            3,
            &["silkd does not answer on", socket, "No such file", "systemctl status silkd", "--address"],
        );
    }
    let pull = ["pull", "127.0.0.1:1/app", "--containerd", socket];
    fails(&pull, 3, &["containerd does not answer on", socket, "--containerd"]);
}

#[test]
fn a_socket_that_nobody_serves_is_told_from_a_missing_one() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    fails(&["--address", socket.to_str().unwrap(), "status"], 3, &["Connection refused"]);
}

#[test]
fn configuration_is_checked_before_anything_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let path = file.to_str().unwrap();
    let pull = ["pull", "127.0.0.1:1/app", "--containerd", "/no.sock", "--config", path];
    fails(&pull, 2, &["cannot use", path, "No such file"]);
    std::fs::write(&file, "root = 1\n[registry]\nattempt = 3\n").unwrap();
    fails(&pull, 2, &["unknown field `attempt`"]);
    std::fs::write(&file, "root = 1\n[registry]\nattempts = 3\n").unwrap();
    fails(&pull, 3, &["containerd does not answer"]);
    fails(&["pull", "127.0.0.1:1/app", "-n", "a\nb", "--config", path], 2, &["cannot be a containerd namespace"]);
}

#[test]
fn help_names_the_exit_codes() {
    let output = silk(&["--help"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("130 interrupted"), "{said}");
}

#[test]
fn an_exit_code_does_not_depend_on_who_listens() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_silk"));
    let status = command.args(["--address", "/no.sock", "status"]).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(3));
}
