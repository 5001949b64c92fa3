//! The cases that Go's package documents and tests, and real requests through proxies.

use silk_testkit::{Fake, ImageSpec};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::{Config, MANIFEST_TYPES, Registry, Selector};

const NO_PROXY: &str = "foobar.com, .barbaz.net, *.wild.example:443, 192.168.1.1, 192.168.1.2:81, 192.168.1.3:80, 10.0.0.0/30, \
    2001:db8::52:0:1, [2001:db8::52:0:2]:443, [2001:db8::52:0:3]:80, 2002:db8:a::45/64, ports.example:5000, any.example:, \
    UPPER.example, , :80, *, x.example:http";

#[test]
fn no_proxy_is_read_as_go_reads_it() {
    let no = NO_PROXY.replace(", *,", ",");
    let proxies = Proxies::new("proxy.test:3128", "https://proxy.test", &no);
    for (host, expected) in [
        ("localhost", false),
        ("localhost:5000", false),
        ("127.0.0.1", false),
        ("127.0.0.2:80", false),
        ("[::1]", false),
        ("[::ffff:127.0.0.1]:5000", false),
        ("[::2]", true),
        ("192.168.1.1", false),
        ("192.168.1.1:5000", false),
        ("192.168.1.2", true),
        ("192.168.1.2:81", false),
        ("192.168.1.3", false),
        ("192.168.1.3:81", true),
        ("192.168.1.4", true),
        ("10.0.0.2", false),
        ("10.0.0.4", true),
        ("[2001:db8::52:0:1]", false),
        ("[2001:db8::52:0:2]", true),
        ("[2001:db8::52:0:2]:443", false),
        ("[2001:db8::52:0:3]", false),
        ("[2001:db8::52:0:4]", true),
        ("[2002:db8:a::123]", false),
        ("[fe80::424b:c8be:1643:a1b6]", true),
        ("barbaz.net", true),
        ("www.barbaz.net", false),
        ("notbarbaz.net", true),
        ("foobar.com", false),
        ("www.foobar.com", false),
        ("foofoobar.com", true),
        ("foobar.com.evil.example", true),
        ("a.wild.example", true),
        ("a.wild.example:443", false),
        ("wild.example:443", true),
        ("ports.example", true),
        ("ports.example:5000", false),
        ("sub.ports.example:5000", false),
        ("any.example:7", false),
        ("upper.EXAMPLE", false),
        ("x.example", true),
        ("baz.com", true),
    ] {
        let url = Url::parse(&format!("http://{host}/v2/")).unwrap();
        assert_eq!(proxies.of(&url).is_some(), expected, "{host}");
    }
    let all = Proxies::new("proxy.test:3128", "", NO_PROXY);
    assert_eq!(all.of(&Url::parse("http://baz.com").unwrap()), None);
}

#[test]
fn each_scheme_has_its_proxy() {
    let of = |proxies: &Proxies, url: &str| proxies.of(&Url::parse(url).unwrap()).map(|url| url.as_str().to_owned());
    let proxies = Proxies::new("10.1.1.1:3128", "http://user:p%40ss@proxy.test:8080/", "ports.example:443");
    assert_eq!(of(&proxies, "http://r.example"), Some("http://10.1.1.1:3128/".into()));
    assert_eq!(of(&proxies, "https://r.example"), Some("http://user:p%40ss@proxy.test:8080/".into()));
    assert_eq!(of(&proxies, "https://ports.example"), None, "443 is what https means");
    assert!(of(&proxies, "http://ports.example").is_some());
    assert!(!format!("{proxies:?}").contains("p%40ss"));
    let only = Proxies::new("socks5://proxy.test:1080", "", "");
    assert_eq!(of(&only, "http://r.example"), Some("socks5h://proxy.test:1080".into()));
    assert_eq!(of(&only, "https://r.example"), None);
    for unusable in ["", "ftp://proxy.test", "http://", "proxy test", "http://proxy.test:port"] {
        assert!(Proxies::new(unusable, unusable, "").are_none(), "{unusable}");
    }
}

#[test]
fn an_empty_variable_leaves_the_word_to_its_twin() {
    let read = |set: &[(&str, &str)]| {
        let proxies =
            Proxies::read(|name| set.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned()));
        [&proxies.http, &proxies.https].map(|url| url.as_ref().and_then(Url::host_str).unwrap_or_default().to_owned())
    };
    let both = [("HTTP_PROXY", ""), ("http_proxy", "low"), ("HTTPS_PROXY", "up"), ("https_proxy", "low")];
    assert_eq!(read(&both), ["low", "up"]);
    assert_eq!(read(&[both[1], both[3], ("REQUEST_METHOD", "GET")]), ["", "low"]);
    assert_eq!(read(&[("ALL_PROXY", "all")]), ["", ""]);
}

/// The manifest of `http://registry.test`, a name that only a proxy can resolve.
async fn get(proxies: Proxies) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        hosts_dirs: Vec::new(),
        docker_config: Some(dir.path().join("none")),
        plain_http: vec!["registry.test".into()],
        attempts: 1,
        ..Config::default()
    };
    let registry = Registry::with_proxies(config, proxies).unwrap();
    let repository = registry.repository(&"registry.test/app".parse().unwrap()).await.unwrap();
    repository.manifest(&Selector::Tag("latest".into()), MANIFEST_TYPES).await.unwrap();
}

#[tokio::test]
async fn requests_go_through_the_proxy_with_its_password() {
    let fake = Fake::start().await;
    fake.push_image("app:latest", &ImageSpec::new());
    get(Proxies::new(&format!("http://user:p%40ss@{}", fake.host()), "", "other.test")).await;
    let request = &fake.requests()[0];
    assert_eq!(request.header("host"), Some("registry.test"));
    assert_eq!(request.header("proxy-authorization"), Some("Basic dXNlcjpwQHNz"));
}

#[tokio::test]
async fn a_socks_proxy_is_given_the_name() {
    let fake = Fake::start().await;
    fake.push_image("app:latest", &ImageSpec::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("socks5://{}", listener.local_addr().unwrap());
    let target = fake.host();
    // RFC 1928, one connection: greeting, then a request for a name of 13 letters.
    let server = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let (mut greeting, mut request) = ([0; 3], [0; 20]);
        client.read_exact(&mut greeting).await.unwrap();
        client.write_all(&[5, 0]).await.unwrap();
        client.read_exact(&mut request).await.unwrap();
        client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
        let mut registry = tokio::net::TcpStream::connect(target).await.unwrap();
        tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut registry).await });
        request
    });
    get(Proxies::new(&proxy, "", "")).await;
    assert_eq!(server.await.unwrap()[..], *b"\x05\x01\x00\x03\x0dregistry.test\x00\x50");
}
