//! `silkd --check`, as an operator runs it before a restart.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{path::Path, process::Command};

fn check(dir: &Path, config: &str) -> (bool, String) {
    let file = dir.join("config.toml");
    std::fs::write(&file, config).unwrap();
    let root = dir.join("root");
    let silkd = Command::new(env!("CARGO_BIN_EXE_silkd"))
        .arg("--check")
        .arg("--config")
        .arg(&file)
        .args(["--root".as_ref(), root.as_os_str()])
        .output()
        .unwrap();
    assert!(!root.exists(), "nothing is touched");
    (silkd.status.success(), String::from_utf8(silkd.stderr).unwrap())
}

#[test]
fn what_a_start_would_refuse_is_said_and_nothing_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let (good, weak) = (dir.path().join("good"), dir.path().join("weak"));
    std::fs::write(&good, "k".repeat(32)).unwrap();
    std::fs::write(&weak, "k").unwrap();
    let sealed = |key: &Path| format!("[share]\nkey_file = {key:?}\n[share.referrers]\npublish = true\n");
    for config in [String::new(), "[tracing]\notlp_endpoint = 'http://127.0.0.1:1'".into(), sealed(&good)] {
        assert_eq!(check(dir.path(), &config), (true, String::new()), "{config}");
    }
    for (config, said) in [
        ("[pull]\nrange_byte = 1\n".to_owned(), "range_byte"),
        ("log = 'warning'\n".to_owned(), "\"warning\" is no level"),
        ("[registry]\nattempts = 0\n".to_owned(), "attempts"),
        ("[tracing]\notlp_endpoint = 'collector:4317'\n".to_owned(), "tracing.otlp_endpoint"),
        ("[share.redis]\naddress = 'nowhere'\n".to_owned(), "nowhere"),
        ("[share.referrers]\npublish = true\n".to_owned(), "share.key_file"),
        (sealed(&weak), "weak"),
        (sealed(Path::new("/nonexistent/key")), "/nonexistent/key"),
    ] {
        let (is_good, error) = check(dir.path(), &config);
        assert!(!is_good && error.contains(said), "{config}: {error}");
    }
}
