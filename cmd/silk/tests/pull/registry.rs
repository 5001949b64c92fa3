//! Debian's docker-registry on a loopback port, filled by skopeo.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::json;
use silk_model::Digest;
use silk_testkit::{LayerSpec, Pushed};
use tokio::process::{Child, Command};

/// Stops when dropped.
pub struct Registry {
    host: String,
    _dir: tempfile::TempDir,
    _server: Child,
}

/// None when the machine has not what it takes.
pub async fn start() -> Option<Registry> {
    for program in ["/usr/bin/docker-registry", "/usr/bin/skopeo"] {
        if !Path::new(program).exists() {
            crate::node::cannot(&format!("there is no {program}"));
            return None;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = format!("127.0.0.1:{port}");
    let config = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{host}\"}}\nlog: {{level: error}}\n",
        dir.path().join("data").display()
    );
    let file = dir.path().join("config.yml");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new("docker-registry");
    let server = command.arg("serve").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = server.kill_on_drop(true).spawn().unwrap();
    for _ in 0..100 {
        if tokio::net::TcpStream::connect(&host).await.is_ok() {
            return Some(Registry { host, _dir: dir, _server: server });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("docker-registry does not listen on {host}");
}

impl Registry {
    /// Pushes an image; gives its reference.
    pub async fn push(&self, name: &str, image: &Pushed, layers: &[LayerSpec]) -> String {
        let layout = tempfile::tempdir().unwrap();
        let blobs = layout.path().join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let layers = layers.iter().map(LayerSpec::blob);
        for blob in [&image.manifest, &image.config].into_iter().chain(layers) {
            std::fs::write(blobs.join(Digest::of(blob).hex()), blob).unwrap();
        }
        let write =
            |name, value: serde_json::Value| std::fs::write(layout.path().join(name), value.to_string()).unwrap();
        write("oci-layout", json!({ "imageLayoutVersion": "1.0.0" }));
        let manifest = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": image.manifest_digest.to_string(),
            "size": image.manifest.len(),
        });
        write("index.json", json!({ "schemaVersion": 2, "manifests": [manifest] }));
        let reference = format!("{}/{name}", self.host);
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--dest-tls-verify=false", "--preserve-digests"]);
        command.arg(format!("oci:{}", layout.path().display())).arg(format!("docker://{reference}"));
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        reference
    }
}
