//! Docker's config.json in its shapes, and helpers that behave and misbehave.

use std::{fs, io::Write as _};

use futures::FutureExt as _;

use super::*;

fn password(user: &str, password: &str) -> Option<Credential> {
    Some(Credential::Password { user: user.into(), password: password.into() })
}

async fn lookup(json: &str, host: &str) -> Found {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    fs::write(&path, json).unwrap();
    Credentials::new(path, Duration::from_secs(1)).lookup(host).await
}

/// Credentials whose helper `h` is this shell script.
pub(crate) fn with_helper(dir: &tempfile::TempDir, script: &str, json: &str) -> Credentials {
    let prefix = dir.path().join("docker-credential-").display().to_string();
    let program = format!("{prefix}h");
    // By another process: a program cannot run while it is open for writing, and another test may fork at that moment.
    let mut install = std::process::Command::new("install")
        .args(["-m755", "/dev/stdin", &program])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    install.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
    assert!(install.wait().unwrap().success());
    let path = dir.path().join("config.json");
    fs::write(&path, json).unwrap();
    Credentials { path, helper_timeout: Duration::from_secs(60), helper_prefix: prefix, runs: Arc::default() }
}

#[tokio::test]
async fn inline_entries_are_found_under_all_their_names() {
    let json = r#"{"auths": {
        "https://index.docker.io/v1/": {"auth": "aHViOnA6dw=="},
        "https://index.docker.io/v1/refresh-token": {"auth": "bm86bm8="},
        "plain:5000": {"username": "u", "password": "p"},
        "http://url.example/v2/": {"auth": "dTpw"},
        "id.example": {"auth": "eDo=", "identitytoken": "tok"},
        "empty.example": {}
    }}"#;
    for (host, expected) in [
        ("registry-1.docker.io", password("hub", "p:w")),
        ("docker.io", password("hub", "p:w")),
        ("plain:5000", password("u", "p")),
        ("url.example", password("u", "p")),
        ("id.example", Some(Credential::IdentityToken("tok".into()))),
        ("empty.example", None),
        ("plain", None),
        ("other.example", None),
    ] {
        assert_eq!(lookup(json, host).await.credential, expected, "{host}");
    }
}

#[tokio::test]
async fn what_go_takes_is_taken() {
    let auths =
        r#""auths": {"r": {"username": "u", "password": "p", "auth": null, "identitytoken": null}, "other": null}"#;
    for rest in [
        r#""credHelpers": null, "credsStore": null"#,
        r#""credHelpers": {}, "credsStore": """#,
        r#""credHelpers": {"r": null, "other": null}, "credsStore": "none""#,
        r#""credHelpers": {"r": ""}, "credsStore": "none""#,
        r#""HttpHeaders": 3, "proxies": null, "plugins": [], "credentialHelpers": {"r": "none"}"#,
    ] {
        let found = lookup(&format!("{{{rest}, {auths}}}\n trailing"), "r").await;
        assert_eq!(found.credential, password("u", "p"), "{rest}: {}", found.hint);
    }
    for nothing in
        ["", " \n", "null", "{}", r#"{"auths": null}"#, r#"{"auths": {"r": null}}"#, r#"{"auths": {"r": {}}}"#]
    {
        let found = lookup(nothing, "r").await;
        assert_eq!(found.credential, None);
        assert!(found.hint.to_string().contains("no credentials for r in"), "{nothing:?}: {}", found.hint);
    }
}

#[tokio::test]
async fn faults_are_named_and_quote_no_secret() {
    for (json, words) in [
        (r#"{"auths": {"r": {"auth": "?hunter2?"}}}"#, "auth entry for r"),
        (r#"{"auths": {"r": {"auth": "aHVudGVyMg=="}}}"#, "auth entry for r"),
        (r#"{"auths": {"r": "hunter2"}}"#, "is not a docker config.json (line 1)"),
        (r#"{"credHelpers": {"r": "silk-none-such"}}"#, "docker-credential-silk-none-such cannot be run"),
        (r#"{}"#, "no credentials for r in"),
    ] {
        let found = lookup(json, "r").await;
        assert_eq!(found.credential, None);
        assert!(
            found.hint.to_string().contains(words) && !found.hint.to_string().contains("hunter2"),
            "{}",
            found.hint
        );
    }
    let secret = Credential::Password { user: "u".into(), password: "hunter2".into() };
    assert!(!format!("{secret:?} {:?}", Credential::IdentityToken("hunter2".into())).contains("hunter2"));
}

const PER_HOST: &str = r#"{"credHelpers": {"r:5000": "h", "docker.io": "h"}, "credsStore": "none"}"#;
pub(crate) const STORE: &str = r#"{"credsStore": "h", "auths": {"r": {"username": "inline", "password": "p"}}}"#;

#[tokio::test]
async fn helpers_are_asked_in_their_protocol() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"[ "$1" = get ] && s=$(cat) && printf '{"ServerURL":"x","Username":"%s","Secret":"s"}' "$s""#;
    let credentials = with_helper(&dir, script, PER_HOST);
    assert_eq!(credentials.lookup("r:5000").await.credential, password("r:5000", "s"));
    assert_eq!(credentials.lookup("registry-1.docker.io").await.credential, password(DOCKER_HUB, "s"));

    let token = with_helper(&dir, r#"echo '{"Username":"<token>","Secret":"t"}'"#, STORE);
    assert_eq!(token.lookup("r").await.credential, Some(Credential::IdentityToken("t".into())));
}

#[tokio::test]
async fn a_store_that_has_nothing_leaves_the_inline_entry_and_a_broken_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let nothing = with_helper(&dir, &format!("echo '{NOT_FOUND}'; exit 1"), STORE);
    assert_eq!(nothing.lookup("r").await.credential, password("inline", "p"));
    for (script, words) in [("echo hunter2; exit 3", "failed (exit status: 3)"), ("echo hunter2", "no credential")] {
        let found = with_helper(&dir, script, STORE).lookup("r").await;
        assert_eq!(found.credential, None);
        assert!(
            found.hint.to_string().contains(words) && !found.hint.to_string().contains("hunter2"),
            "{}",
            found.hint
        );
    }
}

#[tokio::test]
async fn a_hung_helper_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    let script = format!("echo $$ > {}; exec sleep 1000", pid_file.display());
    let credentials = Credentials { helper_timeout: Duration::from_secs(5), ..with_helper(&dir, &script, STORE) };
    let found = credentials.lookup("r").await;
    assert!(found.hint.to_string().ends_with("did not answer within 5 s"), "{}", found.hint);
    let pid = fs::read_to_string(pid_file).unwrap();
    let gone = || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).map_or(true, |stat| stat.contains(") Z "));
    silk_testkit::eventually("it is gone", gone).await;
}

/// A helper that writes a line to `runs` and waits for somebody to write to `gate`.
pub(crate) fn gated(dir: &tempfile::TempDir) -> String {
    let [runs, gate] = ["runs", "gate"].map(|name| dir.path().join(name));
    shut_gate(dir);
    let answer = r#"echo '{"Username":"u","Secret":"p"}'"#;
    format!("echo run >> {}; cat {}; {answer}", runs.display(), gate.display())
}

/// Gated helpers wait from now on.
pub(crate) fn shut_gate(dir: &tempfile::TempDir) {
    let [gate, new] = ["gate", "new"].map(|name| dir.path().join(name));
    assert!(std::process::Command::new("mkfifo").arg(&new).status().unwrap().success());
    fs::rename(new, gate).unwrap();
}

/// Gated helpers do not wait any more.
pub(crate) fn leave_gate_open(dir: &tempfile::TempDir) {
    let [gate, new] = ["gate", "new"].map(|name| dir.path().join(name));
    // Also one that has come already; whoever comes later finds a file.
    let let_go = fs::File::options().read(true).write(true).open(&gate).unwrap();
    fs::write(&new, "").unwrap();
    fs::rename(new, gate).unwrap();
    drop(let_go);
}

#[tokio::test]
async fn a_helper_runs_once_for_all_who_ask_and_goes_on_when_they_leave() {
    let dir = tempfile::tempdir().unwrap();
    let credentials = with_helper(&dir, &gated(&dir), STORE);
    assert!(credentials.ask("h", "r").now_or_never().is_none(), "it waits for the gate");
    let (one, two, ()) =
        futures::join!(credentials.ask("h", "r"), credentials.ask("h", "r"), async { leave_gate_open(&dir) });
    assert_eq!((one.unwrap(), two.unwrap()), (password("u", "p"), password("u", "p")));
    assert_eq!(fs::read_to_string(dir.path().join("runs")).unwrap(), "run\n");
    // Its answer is not kept.
    assert_eq!(credentials.ask("h", "r").await.unwrap(), password("u", "p"));
    assert_eq!(fs::read_to_string(dir.path().join("runs")).unwrap(), "run\nrun\n");
}
