//! Which manifest is chosen, and what documents are taken for.

use super::*;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn index(platforms: &[Option<&str>]) -> ImageIndex {
    let manifests: Vec<_> = platforms
        .iter()
        .enumerate()
        .map(|(i, platform)| {
            let mut manifest = serde_json::json!({
                "mediaType": MANIFEST, "digest": Digest::of(&[i as u8]).to_string(), "size": i,
            });
            if let Some(platform) = platform {
                let parts: Vec<_> = platform.split('/').collect();
                manifest["platform"] = serde_json::json!({ "os": parts[0], "architecture": parts[1] });
                if let Some(variant) = parts.get(2) {
                    manifest["platform"]["variant"] = (*variant).into();
                }
            }
            manifest
        })
        .collect();
    serde_json::from_value(serde_json::json!({ "schemaVersion": 2, "manifests": manifests })).unwrap()
}

fn chosen(platforms: &[Option<&str>], wanted: &str) -> Option<u64> {
    choose(&index(platforms), &wanted.parse().unwrap()).ok().map(|manifest| manifest.size)
}

#[test]
fn the_best_platform_is_chosen() {
    let all = [Some("unknown/unknown"), Some("linux/arm/v6"), Some("linux/arm/v7"), Some("linux/amd64"), None];
    assert_eq!(chosen(&all, "linux/amd64"), Some(3));
    assert_eq!(chosen(&all, "linux/arm64"), Some(2));
    assert_eq!(chosen(&all, "linux/arm/v6"), Some(1));
    assert_eq!(chosen(&all, "linux/s390x"), Some(4), "the one that does not say");
    assert_eq!(chosen(&all[..4], "linux/s390x"), None);
    assert_eq!(chosen(&[Some("linux/amd64"), Some("linux/amd64")], "linux/amd64"), Some(0), "the first of equals");
}

#[test]
fn a_missing_platform_is_told_with_what_there_is() {
    let wanted = "linux/s390x".parse().unwrap();
    let missing = choose(&index(&[Some("linux/amd64"), Some("linux/arm64/v8")]), &wanted).unwrap_err();
    let failure = missing.of("index", Digest::of(b""));
    assert_eq!(
        failure.to_string(),
        "the image is not made for linux/s390x, only for linux/amd64, linux/arm64; --platform chooses another"
    );
}

#[test]
fn documents_are_told_apart() {
    let manifest = br#"{"schemaVersion":2,"config":{},"layers":[]}"#;
    let index = br#"{"schemaVersion":2,"manifests":[]}"#;
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let typed = br#"{"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{},"layers":[]}"#;
    assert_eq!(kind(MANIFEST, manifest).unwrap(), MANIFEST);
    assert_eq!(kind(docker, manifest).unwrap(), docker);
    assert_eq!(kind("application/json", typed).unwrap(), docker, "the document's own word");
    assert_eq!(kind("", manifest).unwrap(), MANIFEST, "its shape");
    assert_eq!(kind("text/plain", index).unwrap(), INDEX);
}

#[test]
fn what_is_two_things_or_none_is_refused() {
    let manifest = br#"{"config":{},"layers":[]}"#.as_slice();
    let both = br#"{"config":{},"layers":[],"manifests":[]}"#.as_slice();
    let liar = br#"{"mediaType":"application/vnd.oci.image.index.v1+json","config":{},"layers":[]}"#.as_slice();
    for (media_type, bytes) in
        [(INDEX, manifest), (MANIFEST, both), (INDEX, both), ("", both), (MANIFEST, liar), ("", liar)]
    {
        assert!(matches!(kind(media_type, bytes), Err(Malformed::Mislabelled(_))), "{media_type}");
    }
    let schema1 = br#"{"schemaVersion":1,"fsLayers":[]}"#.as_slice();
    for bytes in [schema1, b"{}"] {
        assert!(matches!(kind("x/y", bytes), Err(Malformed::NoImage(_))));
    }
    assert!(matches!(kind(MANIFEST, b"<html>"), Err(Malformed::Json(_))));
}

#[test]
fn a_configuration_may_leave_its_platform_out() {
    let platform = |text: &str| serde_json::from_str::<Config>(text).unwrap().platform().map(|p| p.to_string());
    assert_eq!(platform(r#"{"architecture":"amd64","os":"linux","rootfs":{}}"#).as_deref(), Some("linux/amd64"));
    assert_eq!(platform(r#"{"architecture":"arm64","os":null,"variant":null}"#).as_deref(), Some("linux/arm64"));
    assert_eq!(platform(r#"{"architecture":null,"os":"linux"}"#), None);
    assert_eq!(platform("{}"), None);
}

#[test]
fn null_is_an_empty_list() {
    let diff_ids = |text: &str| serde_json::from_str::<Config>(text).unwrap().diff_ids().to_vec();
    for none in [r#"{"rootfs":null}"#, r#"{"rootfs":{}}"#, r#"{"rootfs":{"type":"layers","diff_ids":null}}"#] {
        assert_eq!(diff_ids(none), [""; 0], "{none}");
    }
    assert_eq!(diff_ids(r#"{"rootfs":{"diff_ids":["a"]}}"#), ["a"]);
    let digest = Digest::of(b"{}");
    let config = format!(r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":2}}"#);
    let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":null}}"#);
    assert_eq!(kind(MANIFEST, manifest.as_bytes()).unwrap(), MANIFEST);
    let manifest: Manifest = serde_json::from_str(&manifest).unwrap();
    assert!(manifest.layers().is_empty());
}
