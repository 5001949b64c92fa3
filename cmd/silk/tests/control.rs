//! The commands that ask silkd, against a silkd that says what the test wants.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::{BufRead as _, BufReader},
    pin::Pin,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
};

use silk_api::control::{
    Backend, ExplainRequest, ExplainResponse, FsckReport, FsckRequest, GcRequest, GcResponse, Image, ImageTiming,
    Layer, Profile, ProfileRequest, PutProfileRequest, StatusRequest, StatusResponse, TimingRequest, TimingResponse,
    control_server::{Control, ControlServer},
};
use silk_model::Digest;
use tokio::{net::UnixListener, process::Command};
use tokio_stream::{Stream, StreamExt as _, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status};

/// Remembers what it was asked.
#[derive(Debug, Clone, Default)]
struct Silkd(Arc<Mutex<Vec<String>>>);

impl Silkd {
    fn asked(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }

    fn questions(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn diff_id(of: &str) -> String {
    Digest::of(of.as_bytes()).to_string()
}

fn image() -> Image {
    let layer = |of: &str| Layer { diff_id: diff_id(of), state: "whole".into(), ..Layer::default() };
    let reference = "docker.io/library/app:latest".into();
    Image { reference, state: "ready".into(), layers: vec![layer("a"), layer("b")], ..Image::default() }
}

#[tonic::async_trait]
impl Control for Silkd {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let name = request.into_inner().image;
        let images = [image()].into_iter().filter(|image| name.is_empty() || name == image.reference).collect();
        self.asked(format!("status {name}"));
        Ok(Response::new(StatusResponse { rung: "file".into(), images, ..StatusResponse::default() }))
    }

    async fn timing(&self, request: Request<TimingRequest>) -> Result<Response<TimingResponse>, Status> {
        let reference = request.into_inner().image;
        self.asked(format!("timing {reference}"));
        let image =
            ImageTiming { reference, known: true, limit: "link".into(), seconds: Some(2.0), ..Default::default() };
        Ok(Response::new(TimingResponse { images: vec![image] }))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        match request.into_inner().image {
            name if name == image().reference => Ok(Response::new(ExplainResponse {
                image: Some(image()),
                verdict: "here".into(),
                layers: vec!["one".into(), "two".into()],
                backends: vec![Backend { name: "redis x".into(), up: true, seconds: 1.0, ..Backend::default() }],
                ..ExplainResponse::default()
            })),
            name if name.ends_with("/again:latest") => {
                let told = |digest: &str, verdict: &str| ExplainResponse {
                    image: Some(Image { reference: name.clone(), manifest_digest: digest.into(), ..Image::default() }),
                    verdict: verdict.into(),
                    ..ExplainResponse::default()
                };
                Ok(Response::new(ExplainResponse { others: vec![told("two", "here")], ..told("one", "not here") }))
            }
            name => Err(Status::not_found(format!("silk has not seen {name}"))),
        }
    }

    type FsckStream = Pin<Box<dyn Stream<Item = Result<FsckReport, Status>> + Send>>;

    async fn fsck(&self, request: Request<FsckRequest>) -> Result<Response<Self::FsckStream>, Status> {
        let only = request.into_inner().diff_id;
        self.asked(format!("fsck {only}"));
        let report = |of: &str, ok| FsckReport { diff_id: diff_id(of), ok, detail: "said".into(), bytes: 1500 };
        let reports = [report("a", true), report("b", false)];
        let hex = only.trim_start_matches("sha256:");
        let wanted: Vec<_> = reports.into_iter().filter(|r| r.diff_id["sha256:".len()..].starts_with(hex)).collect();
        match wanted.is_empty() {
            true if hex.len() == 64 => {
                let gone = Status::not_found(format!("layer {only} is not in the store"));
                Ok(Response::new(Box::pin(tokio_stream::iter([Err(gone)]))))
            }
            true => Err(Status::invalid_argument("0 whole layers have a diff ID that starts with it")),
            false if only == endless() => {
                let reports = tokio_stream::iter(wanted.into_iter().map(Ok));
                Ok(Response::new(Box::pin(reports.chain(tokio_stream::pending()))))
            }
            false => Ok(Response::new(Box::pin(tokio_stream::iter(wanted.into_iter().map(Ok).collect::<Vec<_>>())))),
        }
    }

    async fn get_profile(&self, _: Request<ProfileRequest>) -> Result<Response<Profile>, Status> {
        Err(Status::not_found("no start of it was seen"))
    }

    async fn put_profile(&self, _: Request<PutProfileRequest>) -> Result<Response<Profile>, Status> {
        Err(Status::invalid_argument("no profile"))
    }

    async fn drop_profile(&self, _: Request<ProfileRequest>) -> Result<Response<Profile>, Status> {
        Err(Status::not_found("no start of it was seen"))
    }

    async fn gc(&self, request: Request<GcRequest>) -> Result<Response<GcResponse>, Status> {
        self.asked(format!("gc {:?}", request.into_inner().keep_bytes));
        Ok(Response::new(GcResponse { layers: 3, bytes: 210_400_000 }))
    }
}

/// Reports of this one never end.
fn endless() -> String {
    diff_id("a")
}

struct Setup {
    dir: tempfile::TempDir,
    silkd: Silkd,
}

fn start() -> Setup {
    let (dir, silkd) = (tempfile::tempdir().unwrap(), Silkd::default());
    let listener = UnixListener::bind(dir.path().join("silk.sock")).unwrap();
    let server = tonic::transport::Server::builder().add_service(ControlServer::new(silkd.clone()));
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    Setup { dir, silkd }
}

impl Setup {
    async fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_silk"));
        command.arg("--address").arg(self.dir.path().join("silk.sock")).args(arguments);
        let Output { status, stdout, stderr } = command.output().await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (status.code(), text(stdout), text(stderr))
    }
}

#[tokio::test]
async fn status_asks_for_the_full_name() {
    let setup = start();
    let (code, out, _) = setup.run(&["status", "app"]).await;
    assert_eq!((code, out.contains("docker.io/library/app:latest  ready")), (Some(0), true), "{out}");
    let (code, out, _) = setup.run(&["status", "other:1"]).await;
    assert_eq!((code, out.ends_with("silkd does not know docker.io/library/other:1\n")), (Some(0), true), "{out}");
    let (code, out, _) = setup.run(&["status", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["images"][0]["layers"][1]["diff_id"]), (Some(0), &diff_id("b").into()));
    let asked = ["status docker.io/library/app:latest", "status docker.io/library/other:1", "status "];
    assert_eq!(setup.silkd.questions(), asked);
}

#[tokio::test]
async fn timing_is_of_one_image() {
    let setup = start();
    let (code, out, _) = setup.run(&["status", "--timing", "app"]).await;
    assert!(code == Some(0) && out.contains("whole after 2.00 s: link"), "{out}");
    let (code, out, _) = setup.run(&["status", "--timing", "--json", "app"]).await;
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["images"][0]["limit"]), (Some(0), &"link".into()));
    assert_eq!(setup.silkd.questions(), ["timing docker.io/library/app:latest"; 2]);
    let (code, ..) = setup.run(&["status", "--timing"]).await;
    assert_eq!(code, Some(2));
}

#[tokio::test]
async fn explain_numbers_the_layers() {
    let setup = start();
    let (code, out, _) = setup.run(&["explain", "app"]).await;
    let (a, b) = (Digest::of(b"a").short(), Digest::of(b"b").short());
    let expected = format!(
        "docker.io/library/app:latest: here\n  1/2 {a}  one\n  2/2 {b}  two\nshared through redis x, up for 1.00 s\n"
    );
    assert!(code == Some(0) && out.starts_with(&expected), "{out}");
    let (code, _, err) = setup.run(&["explain", "other"]).await;
    assert_eq!(code, Some(1));
    assert!(err.contains("silk has not seen docker.io/library/other:latest"), "{err}");
    let (_, out, _) = setup.run(&["explain", "again"]).await;
    let name = "docker.io/library/again:latest";
    assert_eq!(out, format!("{name} (one): not here\n{name} (two): here\n"), "it was pushed again");
}

#[tokio::test]
async fn fsck_fails_when_a_layer_is_damaged() {
    let setup = start();
    let (a, b) = (Digest::of(b"a").short(), Digest::of(b"b").short());
    let (code, out, err) = setup.run(&["fsck"]).await;
    let lines =
        format!("ok       {a}     1.5 kB  said\ndamaged  {b}     1.5 kB  said\n2 layers, 3.0 kB read, 1 damaged\n");
    assert_eq!((code, out), (Some(1), lines));
    assert!(err.starts_with("error: damaged layers: 1 of 2"), "{err}");
    let (code, ..) = setup.run(&["fsck", &a]).await;
    assert_eq!(code, Some(0));
    let (code, _, err) = setup.run(&["fsck", "0000000"]).await;
    assert!(code == Some(2) && err.starts_with("error: 0 whole layers"), "{err}");
    let gone = diff_id("gone");
    let (code, _, err) = setup.run(&["fsck", &gone]).await;
    assert!(code == Some(2) && err.starts_with(&format!("error: layer {gone} is not in the store; ")), "{err}");
    let questions = ["fsck ".to_owned(), format!("fsck {a}"), "fsck 0000000".into(), format!("fsck {gone}")];
    assert_eq!(setup.silkd.questions(), questions);
}

#[test]
fn a_silkd_that_ends_under_fsck_is_no_damaged_layer() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let setup = runtime.block_on(async { start() });
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_silk"));
    command.arg("--address").arg(setup.dir.path().join("silk.sock")).args(["fsck", &endless()]);
    let mut silk = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(silk.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("ok "), "{first}");
    runtime.shutdown_background();
    let Output { status, stderr, .. } = silk.wait_with_output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert!(status.code() == Some(3) && said.starts_with("error: silkd does not answer"), "{status}: {said}");
}

#[tokio::test]
async fn gc_keeps_what_it_is_told_to() {
    let setup = start();
    let (code, out, _) = setup.run(&["gc"]).await;
    assert_eq!((code, out.as_str()), (Some(0), "dropped 3 layers, 210.4 MB\n"));
    setup.run(&["gc", "--keep", "1GiB"]).await;
    setup.run(&["gc", "--keep", "0"]).await;
    assert_eq!(setup.silkd.questions(), ["gc None", "gc Some(1073741824)", "gc Some(0)"]);
}

#[tokio::test]
async fn output_that_nobody_reads_is_no_error_to_tell() {
    let setup = start();
    for arguments in [&["status"][..], &["status", "--json"], &["explain", "app"], &["fsck"], &["gc"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_silk"));
        command.arg("--address").arg(setup.dir.path().join("silk.sock")).args(arguments);
        let output = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.as_str()), (Some(141), ""), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_silkd_that_does_not_know_the_call_is_told_from_one_that_cannot_do_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("silk.sock");
    let server = tonic::transport::Server::builder().add_routes(tonic::service::Routes::default());
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(UnixListener::bind(&socket).unwrap())));
    let mut command = Command::new(env!("CARGO_BIN_EXE_silk"));
    let output = command.arg("--address").arg(&socket).args(["status", "app", "--timing"]).output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in ["silkd cannot tell where the time of", "it does not know this call", "older", "--address"] {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
}
