//! containerd's own examples, and what its code does with the odd ones.

use std::fs;

use super::*;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn config(&self) -> Config {
        Config { hosts_dirs: vec![self.0.path().join("a"), self.0.path().join("b")], ..Config::default() }
    }

    fn load(&self, registry: &str) -> Vec<Host> {
        load(&self.config(), registry).unwrap()
    }
}

fn urls(hosts: &[Host]) -> Vec<String> {
    hosts.iter().map(|host| format!("{host:?}")).collect()
}

#[test]
fn no_folder_means_the_registry_itself() {
    let dir = Dir::new();
    assert_eq!(urls(&dir.load("quay.io")), ["Host(https://quay.io/v2)"]);
    assert_eq!(urls(&dir.load("docker.io")), ["Host(https://registry-1.docker.io/v2)"]);
}

#[test]
fn loopback_is_tried_with_tls_and_then_without() {
    let dir = Dir::new();
    for (registry, tls, may_fall_back, skip_verify) in [
        ("localhost:5000", true, true, true),
        ("127.0.0.1:5000", true, true, true),
        ("[::1]:5000", true, true, true),
        ("localhost", true, false, true),
        ("localhost:443", true, false, true),
        ("localhost:80", false, false, false),
        ("example.com:5000", true, false, false),
    ] {
        let host = &dir.load(registry)[0];
        assert_eq!((host.tls, host.may_fall_back, host.skip_verify), (tls, may_fall_back, skip_verify), "{registry}");
    }
    let config = Config { plain_http: vec!["example.com:5000".into(), "localhost:5000".into()], ..dir.config() };
    for registry in ["example.com:5000", "localhost:5000"] {
        let host = &load(&config, registry).unwrap()[0];
        assert_eq!((host.tls, host.may_fall_back), (false, false), "{registry}");
    }
}

#[test]
fn folders_are_looked_for_in_containerds_order() {
    let dir = Dir::new();
    let names = |dir: &Dir| urls(&dir.load("r.example:5000"));
    dir.put("b/r.example_5000_/hosts.toml", "server = 'http://in-b'");
    assert_eq!(names(&dir), ["Host(http://in-b/v2)"]);
    dir.put("a/_default/hosts.toml", "server = 'http://default'");
    assert_eq!(names(&dir), ["Host(http://default/v2)"], "the first directory with a folder decides");
    dir.put("a/r.example:5000/hosts.toml", "server = 'http://colon'");
    assert_eq!(names(&dir), ["Host(http://colon/v2)"]);
    dir.put("a/r.example_5000_/hosts.toml", "server = 'http://underscore'");
    assert_eq!(names(&dir), ["Host(http://underscore/v2)"]);
}

#[test]
fn hosts_keep_the_files_order_and_the_registry_comes_last() {
    let dir = Dir::new();
    dir.put("a/docker.io/ca.pem", "ca");
    dir.put("a/docker.io/c1.pem", "c1");
    dir.put("a/docker.io/k1.pem", "k1");
    dir.put(
        "a/docker.io/hosts.toml",
        r#"
        skip_verify = true
        [host."https://z.example"]
          capabilities = ["pull"]
          ca = "ca.pem"
          client = [["c1.pem", "k1.pem"], "c1.pem"]
          dial_timeout = "1.5s"
          some_future_field = 3
          [host."https://z.example".header]
            x-one = "1"
            x-two = ["2", "3"]
        [host."http://a.example:8080/v2/mirror"]
          capabilities = ["pull", "Resolve", "push"]
          override_path = true
          client = "c1.pem"
        [host."https://two.example"]
          client = ["c1.pem", "k1.pem"]
        "#,
    );
    let hosts = dir.load("docker.io");
    assert_eq!(
        urls(&hosts),
        [
            "Host(https://z.example/v2)",
            "Host(http://a.example:8080/v2/mirror)",
            "Host(https://two.example/v2)",
            "Host(https://registry-1.docker.io/v2)"
        ]
        .map(|url| url.replace("http://a.example", "https://a.example")),
        "a host with TLS settings is tried with TLS"
    );
    let [z, a, two, own] = &hosts[..] else { panic!() };
    assert_eq!(z.capabilities, Capabilities { pull: true, resolve: false, push: false });
    assert_eq!((z.ca.len(), z.identities.len(), z.dial_timeout), (1, 2, Some(Duration::from_millis(1500))));
    assert_eq!(z.identities[0].key.as_ref().unwrap().bytes, b"k1");
    let pairs: Vec<_> = z.headers.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(pairs, ["x-one=1", "x-two=2", "x-two=3"]);
    assert_eq!(a.capabilities, Capabilities { pull: true, resolve: true, push: true });
    assert!(a.may_fall_back && a.identities[0].key.is_none());
    let alone: Vec<_> = two.identities.iter().map(|identity| identity.key.is_none()).collect();
    assert_eq!(alone, [true, true], "as containerd reads it: no pair");
    assert!(own.skip_verify && own.ca.is_empty());
}

#[test]
fn the_capability_that_containerd_2_2_added_is_known() {
    let dir = Dir::new();
    dir.put("a/r/hosts.toml", "[host.'https://mirror']\ncapabilities = ['pull', 'Referrers']");
    let hosts = dir.load("r");
    assert_eq!(urls(&hosts), ["Host(https://mirror/v2)", "Host(https://r/v2)"]);
    assert_eq!(hosts[0].capabilities, Capabilities { pull: true, resolve: false, push: false });
}

#[test]
fn a_timeout_of_zero_is_no_fault() {
    let dir = Dir::new();
    dir.put("a/r/hosts.toml", "[host.'https://mirror']\ndial_timeout = '0s'");
    let hosts = dir.load("r");
    assert_eq!(urls(&hosts), ["Host(https://mirror/v2)", "Host(https://r/v2)"]);
    assert_eq!(hosts[0].dial_timeout, None);
}

#[test]
fn a_broken_file_leaves_the_certificate_files() {
    let dir = Dir::new();
    dir.put("a/r/own.crt", "ca");
    dir.put("a/r/me.cert", "cert");
    dir.put("a/r/me.key", "key");
    dir.put("a/r/other.cert", "both");
    for broken in ["", "server = 3", "[host.'ftp://x']", "[host.'http://x']\ncapabilities = ['fly']", "\u{0}"] {
        dir.put("a/r/hosts.toml", broken);
        let hosts = dir.load("r");
        assert_eq!(urls(&hosts), ["Host(https://r/v2)"], "{broken:?}");
        assert_eq!(hosts[0].ca[0].bytes, b"ca");
        assert_eq!(hosts[0].identities[0].key.as_ref().unwrap().bytes, b"key");
        assert!(hosts[0].identities[1].key.is_none());
    }
}

#[test]
fn a_missing_certificate_is_an_error_that_names_it() {
    let dir = Dir::new();
    dir.put("a/r/hosts.toml", "ca = 'gone.pem'");
    let message = load(&dir.config(), "r").unwrap_err().to_string();
    assert!(message.contains("a/r/gone.pem"), "{message}");
}
