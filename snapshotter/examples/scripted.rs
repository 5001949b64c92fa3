//! The snapshots service alone, on a unix socket, with layers that a script of files stands for. Tests of the service drive
//! it where no registry, no pull and no kernel rung shall be in the way:
//!
//! ```text
//! scripted --root DIR --address SOCKET
//! DIR/script/<manifest hex>          one line a layer, base first: "<blob digest> <diff ID>"; missing: claims are refused
//! DIR/script/<manifest hex>.failed   the pull of the image fails with this text (until the file goes away)
//! DIR/script/<manifest hex>.ready    the image is whole
//! DIR/script/layers/<diff ID hex>/   what the layer mounts as
//! DIR/script/log                     written: a line for each call of the layers' side
//! ```

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use silk_model::{Class, Digest};
use silk_snapshotter::{
    Claim, Claimed, Config, Layers, NotReady, Refused, RemoteChain, Service, Snapshots, State, Usage,
};
use tokio_stream::wrappers::UnixListenerStream;

/// How often the script is read while somebody waits for it.
const POLL: Duration = Duration::from_millis(10);

#[derive(Debug)]
struct Script(PathBuf);

impl Script {
    fn path(&self, image: &Digest, suffix: &str) -> PathBuf {
        self.0.join(format!("{}{suffix}", image.hex()))
    }

    fn layers(&self, image: &Digest) -> Vec<(Digest, Digest)> {
        let text = fs::read_to_string(self.path(image, "")).unwrap_or_default();
        let pair = |line: &str| line.split_once(' ').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        text.lines().filter_map(pair).collect()
    }

    fn log(&self, line: &str) {
        let file = fs::OpenOptions::new().create(true).append(true).open(self.0.join("log"));
        file.and_then(|mut file| writeln!(file, "{line}")).expect("the log can be written");
    }
}

#[tonic::async_trait]
impl Layers for Script {
    async fn claim(&self, claim: Claim) -> Result<Claimed, Refused> {
        self.log(&format!("claim {} {}", claim.namespace, claim.chain_id));
        let layers = self.layers(&claim.manifest_digest);
        let number = claim.parent_chain.len();
        match layers.get(number) {
            Some((blob, diff_id)) if *blob == claim.layer_digest => {
                Ok(Claimed { diff_id: *diff_id, top: number + 1 == layers.len() })
            }
            _ => Err(Refused { reason: format!("{} is not in the script", claim.image_ref) }),
        }
    }

    async fn ready(&self, chain: RemoteChain) -> Result<(), NotReady> {
        self.log(&format!("wait {}", chain.image_ref));
        loop {
            match self.state(&chain) {
                State::Ready => return Ok(()),
                State::Failed(cause) => return Err(cause),
                State::Coming => tokio::time::sleep(POLL).await,
            }
        }
    }

    fn state(&self, chain: &RemoteChain) -> State {
        if let Ok(text) = fs::read_to_string(self.path(&chain.image, ".failed")) {
            return State::Failed(NotReady::new(Class::Transient, text));
        }
        if self.path(&chain.image, ".ready").exists() { State::Ready } else { State::Coming }
    }

    fn lowers(&self, diff_ids: &[Digest]) -> Result<Vec<PathBuf>, NotReady> {
        Ok(diff_ids.iter().rev().map(|id| self.0.join("layers").join(id.hex())).collect())
    }

    fn usage(&self, diff_id: &Digest) -> Option<Usage> {
        self.0.join("layers").join(diff_id.hex()).exists().then_some(Usage { size: 4096, inodes: 1 })
    }

    fn changed(&self) {
        self.log("changed");
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let arguments: Vec<_> = std::env::args().collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|a| a == name);
        at.and_then(|at| arguments.get(at + 1)).ok_or_else(|| format!("{name} is missing"))
    };
    let (root, address) = (Path::new(value("--root")?), Path::new(value("--address")?));
    let script = root.join("script");
    fs::create_dir_all(script.join("layers"))?;
    let snapshots = Snapshots::open(Arc::new(redb::Database::create(root.join("silk.redb"))?), root)?;
    let service = Service::new(&Config::default(), snapshots, Arc::new(Script(script)));
    let _ = fs::remove_file(address);
    let listener = UnixListenerStream::new(tokio::net::UnixListener::bind(address)?);
    let server = tonic::transport::Server::builder().add_service(service.into_server());
    server
        .serve_with_incoming_shutdown(listener, async {
            // Stops at once on a signal it cannot listen for.
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    Ok(())
}
