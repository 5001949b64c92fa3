//! Calls to silkd's control service, with deadlines and the sentence for when nobody answers.

use std::{future::Future, time::Duration};

use silk_api::{
    Connect,
    control::{
        ExplainRequest, ExplainResponse, FsckReport, FsckRequest, GcRequest, GcResponse, Profile, ProfileRequest,
        PutProfileRequest, StatusRequest, StatusResponse, TimingRequest, TimingResponse, control_client::ControlClient,
    },
};
use silk_model::Digest;
use silk_registry::Reference;
use tonic::{Code, Response, Status, Streaming, transport::Channel};

use crate::failure::{Daemon, Failure};

/// silkd answers these from memory.
const ANSWER: Duration = Duration::from_secs(10);
/// Unlinking takes an ext4 about 0.1 s a gigabyte on a slow disk; a full cache of a terabyte stays within this.
const GC: Duration = Duration::from_secs(300);
/// A layer's status has about 500 bytes; nodes with a thousand images of ten layers have been seen.
const MAX_ANSWER: usize = 64 << 20;

/// silkd.
#[derive(Debug, Clone)]
pub struct Control(Connect);

impl Control {
    /// Connects at the first call.
    pub fn new(socket: &std::path::Path) -> Self {
        Self(silk_api::connect(socket))
    }

    fn client(&self) -> ControlClient<Channel> {
        ControlClient::new(self.0.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    fn failure(&self, doing: &str, status: &Status) -> Failure {
        Failure::of(Daemon::Silkd, &self.0.socket, doing, status)
    }

    async fn call<T>(
        &self,
        doing: &str,
        after: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(after, call).await {
            Ok(answer) => answer.map(Response::into_inner).map_err(|status| self.failure(doing, &status)),
            Err(_) => Err(Failure::Late { daemon: Daemon::Silkd, doing: doing.to_owned(), after }),
        }
    }

    /// All images, or those with this reference or manifest digest.
    pub async fn status(&self, image: &str) -> Result<StatusResponse, Failure> {
        let request = StatusRequest { image: image.to_owned(), unfinished: false };
        self.call("tell its status", ANSWER, self.client().status(request)).await
    }

    /// Images that arrive or failed to.
    pub async fn unfinished(&self) -> Result<StatusResponse, Failure> {
        let request = StatusRequest { image: String::new(), unfinished: true };
        self.call("tell its status", ANSWER, self.client().status(request)).await
    }

    /// Where the time of an image's last pull went.
    pub async fn timing(&self, image: &str) -> Result<TimingResponse, Failure> {
        let request = TimingRequest { image: image.to_owned() };
        self.call(&format!("tell where the time of {image} went"), ANSWER, self.client().timing(request)).await
    }

    /// One image.
    pub async fn explain(&self, image: &str) -> Result<ExplainResponse, Failure> {
        let request = ExplainRequest { image: image.to_owned() };
        self.call(&format!("explain {image}"), ANSWER, self.client().explain(request)).await
    }

    /// Evicts until `keep` bytes of unused layers are left; silkd's quota when none is given.
    pub async fn gc(&self, keep: Option<u64>) -> Result<GcResponse, Failure> {
        self.call("drop unused layers", GC, self.client().gc(GcRequest { keep_bytes: keep })).await
    }

    /// What starts of an image touch.
    pub async fn profile(&self, image: &str) -> Result<Profile, Failure> {
        let request = ProfileRequest { image: image.to_owned() };
        self.call(&format!("tell the start profile of {image}"), ANSWER, self.client().get_profile(request)).await
    }

    /// Joins a start profile with what is known.
    pub async fn put_profile(&self, image: &str, profile: Vec<u8>) -> Result<Profile, Failure> {
        let request = PutProfileRequest { image: image.to_owned(), profile };
        self.call(&format!("take a start profile of {image}"), ANSWER, self.client().put_profile(request)).await
    }

    /// Forgets what starts of an image touch.
    pub async fn drop_profile(&self, image: &str) -> Result<Profile, Failure> {
        let request = ProfileRequest { image: image.to_owned() };
        self.call(&format!("drop the start profile of {image}"), ANSWER, self.client().drop_profile(request)).await
    }

    /// Starts to prove one layer, named by its diff ID or the first digits of that, or all where `layer` is empty.
    pub async fn fsck(&self, layer: &str) -> Result<Reports<'_>, Failure> {
        let request = FsckRequest { diff_id: layer.to_owned() };
        // The answer's head comes with the first report, which takes as long as reading a layer.
        let reports = self.client().fsck(request).await.map_err(|status| self.unproved(&status))?;
        Ok(Reports { control: self, stream: reports.into_inner() })
    }

    /// silkd answers first digits that name no layer at once, and a whole diff ID of none when it looks for its data.
    fn unproved(&self, status: &Status) -> Failure {
        match status.code() {
            Code::InvalidArgument | Code::NotFound => Failure::NoSuchLayer(status.message().to_owned()),
            _ => self.failure("prove layers", status),
        }
    }
}

/// fsck's answers, one a layer.
#[derive(Debug)]
pub struct Reports<'a> {
    control: &'a Control,
    stream: Streaming<FsckReport>,
}

impl Reports<'_> {
    /// The next one, after as long as reading the layer takes.
    pub async fn next(&mut self) -> Result<Option<FsckReport>, Failure> {
        self.stream.message().await.map_err(|status| self.control.unproved(&status))
    }
}

/// An image as silkd knows it: a reference in its full form, as containerd's clients write it, or a manifest's digest.
pub fn full_name(image: &str) -> String {
    if image.parse::<Digest>().is_ok() {
        return image.to_owned();
    }
    image.parse::<Reference>().map_or_else(|_| image.to_owned(), |reference| reference.canonical().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_named_in_full() {
        let digest = Digest::of(b"").to_string();
        for (given, full) in [
            ("python:3.13", "docker.io/library/python:3.13"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            // As pods have it, and as CRI names it.
            (&format!("python:3.13@{digest}"), &format!("docker.io/library/python@{digest}")),
            (digest.as_str(), digest.as_str()),
            ("Not A Reference", "Not A Reference"),
        ] {
            assert_eq!(full_name(given), full);
        }
    }

    #[tokio::test]
    async fn nobody_there_is_told_from_a_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let failure = Control::new(&dir.path().join("silk.sock")).status("").await.unwrap_err();
        let Failure::Unreachable { cause, .. } = &failure else { panic!("{failure:?}") };
        assert_eq!(cause.kind(), std::io::ErrorKind::NotFound);
        assert!(failure.to_string().contains("silk.sock: No such file"), "{failure}");
    }
}
