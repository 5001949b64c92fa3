//! A client with a scratch directory for its files, and what tests ask of it.

use std::{fs, ops::Range};

use bytes::Bytes;
use silk_registry::{Blob, BlobStream, Config, Error, Reference, Registry, Repository};
use silk_testkit::Fake;
use tempfile::TempDir;

pub struct World {
    dir: TempDir,
    pub config: Config,
}

impl World {
    /// For plain HTTP with these registries; retries cost a millisecond, and a body may be silent for longer than a machine pauses.
    pub fn new(plain: &[&Fake]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            hosts_dirs: vec![dir.path().join("certs.d")],
            docker_config: Some(dir.path().join("config.json")),
            plain_http: plain.iter().map(|fake| fake.host()).collect(),
            connect_timeout_secs: 5,
            response_timeout_secs: 5,
            stall_timeout_secs: 10,
            attempts: 4,
            retry_delay_ms: 1,
            ..Config::default()
        };
        Self { dir, config }
    }

    /// Silence of a body is noticed after one second.
    pub fn hasty(plain: &[&Fake]) -> Self {
        let mut world = Self::new(plain);
        world.config.stall_timeout_secs = 1;
        world
    }

    pub fn hosts(&self, registry: &str, toml: &str) {
        self.file(&format!("certs.d/{registry}/hosts.toml"), toml);
    }

    pub fn login(&self, json: &str) {
        self.file("config.json", json);
    }

    /// The path of a file with this text.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    pub fn registry(&self) -> Registry {
        Registry::new(self.config.clone()).unwrap()
    }

    /// With a client of its own.
    pub async fn repository(&self, reference: &str) -> Repository {
        self.registry().repository(&reference.parse::<Reference>().unwrap()).await.unwrap()
    }
}

/// Bytes in which every position differs from its neighbours.
pub fn pattern(length: usize) -> Bytes {
    (0..length as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

/// Everything a stream has left.
pub async fn rest(stream: &mut BlobStream) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    while let Some(bytes) = stream.next().await? {
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

pub async fn read(blob: &Blob, range: Range<u64>) -> Result<Vec<u8>, Error> {
    rest(&mut blob.read(range)).await
}
