//! A containerd of its own in a scratch directory, and silk run against it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use silk_api::{
    Connect,
    containerd::services::{
        content::v1::{ListContentRequest, content_client::ContentClient},
        images::v1::{ListImagesRequest, images_client::ImagesClient},
        leases::v1::{ListRequest, leases_client::LeasesClient},
        snapshots::v1::{Kind, ListSnapshotsRequest, snapshots_client::SnapshotsClient},
        version::v1::version_client::VersionClient,
    },
    namespaced,
};
use tokio::process::{Child, Command};

/// All that a pull leaves in a namespace; two pulls of one image leave the same.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct World {
    /// Name to media type and digest.
    pub images: BTreeMap<String, String>,
    /// Digest to labels.
    pub blobs: BTreeMap<String, BTreeMap<String, String>>,
    /// Name to parent and label of the chain ID.
    pub snapshots: BTreeMap<String, (String, String)>,
    /// Those that are not committed.
    pub unfinished: Vec<String>,
    pub leases: Vec<String>,
}

/// Stops when dropped.
pub struct Node {
    pub dir: tempfile::TempDir,
    binary: PathBuf,
    connect: Connect,
    _containerd: Child,
}

/// Says what a test leaves out on this machine, or fails it where everything must run.
pub fn cannot(why: &str) {
    assert!(std::env::var_os("SILK_E2E_ALL").is_none(), "{why}");
    println!("skipped: {why}");
}

/// The containerds to test with: the packaged one, and the one that `SILK_CONTAINERD_2` names.
pub fn generations() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let first = variable("SILK_CONTAINERD_1").unwrap_or_else(|| "/usr/bin/containerd".into());
    let mut all = Vec::new();
    match first.exists() {
        true => all.push(first),
        false => cannot(&format!("there is no {}", first.display())),
    }
    match variable("SILK_CONTAINERD_2") {
        Some(second) => all.push(second),
        None => cannot("SILK_CONTAINERD_2 names no containerd of the second generation"),
    }
    all
}

impl Node {
    pub async fn start(binary: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("silk-pull-").tempdir().unwrap();
        let at = dir.path().display();
        let config = format!(
            "version = 2\nroot = \"{at}/root\"\nstate = \"{at}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.nri.v1.nri\"]\n\
             [grpc]\naddress = \"{at}/c.sock\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{at}/opt\"\n"
        );
        std::fs::write(dir.path().join("config.toml"), config).unwrap();
        let log = std::fs::File::create(dir.path().join("containerd.log")).unwrap();
        let containerd = Command::new(binary)
            .arg("--config")
            .arg(dir.path().join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let connect = silk_api::connect(&dir.path().join("c.sock"));
        let node = Self { dir, binary: binary.to_owned(), connect, _containerd: containerd };
        node.answers().await;
        node
    }

    async fn answers(&self) {
        for _ in 0..300 {
            if VersionClient::new(self.connect.channel.clone()).version(()).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let log = std::fs::read_to_string(self.dir.path().join("containerd.log")).unwrap_or_default();
        panic!("containerd does not answer: {log}");
    }

    /// `silk pull ARGUMENTS`, in a namespace.
    pub fn silk(&self, namespace: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_silk"));
        command
            .arg("--containerd")
            .arg(self.dir.path().join("c.sock"))
            .arg("--address")
            .arg(self.dir.path().join("no-silkd.sock"))
            .args(["--namespace", namespace, "pull"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs it to its end; its output is in the test's, should it fail.
    pub async fn pull(&self, namespace: &str, arguments: &[&str]) -> Output {
        let output = self.silk(namespace, arguments).output().await.unwrap();
        print!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        output
    }

    /// The same with containerd's own client.
    pub async fn ctr_pull(&self, namespace: &str, snapshotter: &str, reference: &str) {
        let ctr = self.binary.with_file_name("ctr");
        let help = Command::new(&ctr).args(["images", "pull", "--help"]).output().await.unwrap();
        let mut command = Command::new(ctr);
        command.arg("--address").arg(self.dir.path().join("c.sock")).args(["--namespace", namespace, "images", "pull"]);
        command.args(["--plain-http", "--snapshotter", snapshotter]);
        // Where there is a choice, not the transfer service, which unpacks for one snapshotter only.
        if String::from_utf8_lossy(&help.stdout).contains("--local") {
            command.arg("--local");
        }
        command.arg(reference);
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The content store of this containerd.
    pub fn content(&self) -> ContentClient<tonic::transport::Channel> {
        ContentClient::new(self.connect.channel.clone())
    }

    /// What is in a namespace.
    pub async fn world(&self, namespace: &str, snapshotter: &str) -> World {
        let channel = || self.connect.channel.clone();
        let mut world = World::default();
        let request = namespaced(namespace, ListImagesRequest::default());
        for image in ImagesClient::new(channel()).list(request).await.unwrap().into_inner().images {
            let target = image.target.unwrap();
            world.images.insert(image.name, format!("{} {} {}", target.media_type, target.digest, target.size));
        }
        let request = namespaced(namespace, ListContentRequest::default());
        let mut blobs = self.content().list(request).await.unwrap().into_inner();
        while let Some(answer) = blobs.message().await.unwrap() {
            for info in answer.info {
                world.blobs.insert(info.digest, info.labels.into_iter().collect());
            }
        }
        let request = ListSnapshotsRequest { snapshotter: snapshotter.to_owned(), ..ListSnapshotsRequest::default() };
        let request = namespaced(namespace, request);
        let mut snapshots = SnapshotsClient::new(channel()).list(request).await.unwrap().into_inner();
        while let Some(answer) = snapshots.message().await.unwrap() {
            for mut info in answer.info {
                match info.kind() {
                    Kind::Committed => {
                        let chain_id = info.labels.remove("containerd.io/snapshot.ref").unwrap_or_default();
                        world.snapshots.insert(info.name, (info.parent, chain_id));
                    }
                    _ => world.unfinished.push(info.name),
                }
            }
        }
        let request = namespaced(namespace, ListRequest::default());
        let leases = LeasesClient::new(channel()).list(request).await.unwrap().into_inner().leases;
        world.leases = leases.into_iter().map(|lease| lease.id).collect();
        world
    }
}
