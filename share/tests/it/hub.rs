//! Debian's docker-registry (distribution 2.8): it has no referrers API, so the tag schema is what is tested.

use std::{
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use silk_model::Digest;
use silk_registry::Registry;
use silk_share::{Image, Item};
use silk_testkit::within_patience;
use tempfile::TempDir;

use crate::{
    referrers::{KEY, registry, sharing},
    world::{eventually, layer},
};

struct Hub {
    host: String,
    child: Child,
    _dir: TempDir,
}

impl Hub {
    async fn start(deletes: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: {deletes}}}}}\n\
             http: {{addr: \"{host}\"}}\nlog: {{level: error}}\n",
            dir.path().join("registry").display()
        );
        let file = dir.path().join("registry.yml");
        std::fs::write(&file, config).unwrap();
        let child =
            Command::new("docker-registry").arg("serve").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.expect("docker-registry is installed (hack/lib/deps.sh)");
        eventually("the registry listens", || TcpStream::connect(&host).is_ok()).await;
        Self { host, child, _dir: dir }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An image of no layers, pushed with silk's own client.
async fn push_image(registry: &Registry, host: &str) -> Image {
    let repository = registry.repository(&format!("{host}/library/app").parse().unwrap()).await.unwrap();
    let config = repository.push_blob(Bytes::from_static(b"{}")).await.unwrap();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{media_type}","layers":[],
        "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}}}}"#
    );
    let pushed = repository.push_manifest(Some("latest"), media_type, manifest.into()).await.unwrap();
    Image { repository: Some(repository), manifest: pushed.digest }
}

#[tokio::test]
async fn a_real_registry_without_the_api() {
    for deletes in [false, true] {
        let hub = Hub::start(deletes).await;
        let registry = registry(&hub.host);
        let image = push_image(&registry, &hub.host).await;
        let (first, second) = (sharing(Some(KEY), |_| ()), sharing(Some(KEY), |_| ()));
        assert!(first.image(&image, &[layer(1, 0).blob]).await.layers[0].is_none());
        let items =
            [Item::Layer(layer(1, 3_000_000)), Item::Layer(layer(2, 10)), Item::Profile(Bytes::from_static(b"p"))];
        for items in [&items[..1], &items[1..2], &items[2..], &items[..]] {
            let outcome = first.publish_now(&image, items).await.remove(0).1;
            assert_eq!(outcome.unwrap().kept, items.len() as u64);
        }
        let blobs: Vec<Digest> = (1..=3).map(|n| layer(n, 0).blob).collect();
        let known = second.image(&image, &blobs).await;
        assert_eq!(known.layers[0].as_ref().unwrap().value, layer(1, 3_000_000));
        assert_eq!(known.layers[1].as_ref().unwrap().value, layer(2, 10));
        assert!(known.layers[2].is_none());
        let found = &known.profiles[0];
        assert_eq!((&found.value[..], &found.source), (&b"p"[..], &format!("referrers of {}/library/app", hub.host)));

        second.distrust(&image, known.layers[0].as_ref().unwrap(), "a test");
        let third = sharing(Some(KEY), |_| ());
        let removed = async {
            loop {
                let known = third.image(&image, &blobs).await;
                assert_eq!((known.layers[1].is_some(), known.profiles.len()), (true, 1), "the others stay");
                if known.layers[0].is_none() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        within_patience("it is removed", removed).await;
    }
}
