//! A pull that waits for layers, with a silkd that says what the test wants.

use std::sync::Arc;

use silk_api::control::{
    ExplainRequest, ExplainResponse, FsckReport, FsckRequest, GcRequest, GcResponse, Image, Layer, Profile,
    ProfileRequest, PutProfileRequest, StatusRequest, StatusResponse, TimingRequest, TimingResponse,
    control_server::{Control as Service, ControlServer},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::*;

/// What it knows.
#[derive(Debug, Clone, Default)]
struct Silkd(Arc<Mutex<Vec<Image>>>);

impl Silkd {
    /// Serves until the runtime ends.
    fn serve(&self, socket: &std::path::Path) {
        let listener = UnixListenerStream::new(tokio::net::UnixListener::bind(socket).unwrap());
        let server = tonic::transport::Server::builder().add_service(ControlServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(listener));
    }
}

#[tonic::async_trait]
impl Service for Silkd {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let StatusRequest { image, unfinished } = request.into_inner();
        let all = self.0.lock().unwrap().clone();
        let wanted = |known: &Image| (unfinished && known.state != "whole") || known.manifest_digest == image;
        let images = all.into_iter().filter(wanted).collect();
        Ok(Response::new(StatusResponse { images, ..StatusResponse::default() }))
    }

    type FsckStream = tokio_stream::Empty<Result<FsckReport, Status>>;

    async fn fsck(&self, _: Request<FsckRequest>) -> Result<Response<Self::FsckStream>, Status> {
        unimplemented!()
    }

    async fn timing(&self, _: Request<TimingRequest>) -> Result<Response<TimingResponse>, Status> {
        unimplemented!()
    }

    async fn explain(&self, _: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        unimplemented!()
    }

    async fn gc(&self, _: Request<GcRequest>) -> Result<Response<GcResponse>, Status> {
        unimplemented!()
    }

    async fn get_profile(&self, _: Request<ProfileRequest>) -> Result<Response<Profile>, Status> {
        unimplemented!()
    }

    async fn put_profile(&self, _: Request<PutProfileRequest>) -> Result<Response<Profile>, Status> {
        unimplemented!()
    }

    async fn drop_profile(&self, _: Request<ProfileRequest>) -> Result<Response<Profile>, Status> {
        unimplemented!()
    }
}

const NAME: &str = "registry.example/app:1";

fn layer(of: &str, state: &str) -> Layer {
    Layer { diff_id: Digest::of(of.as_bytes()).to_string(), state: state.to_owned(), ..Layer::default() }
}

fn image(state: &str, layers: [&str; 2]) -> Image {
    let layers = ["base", "top"].into_iter().zip(layers).map(|(of, state)| layer(of, state)).collect();
    let (reference, manifest_digest) = (NAME.to_owned(), Digest::of(b"manifest").to_string());
    Image { reference, manifest_digest, state: state.to_owned(), layers, ..Image::default() }
}

/// A board of the image's two layers, which containerd said exist, and the silkd that it asks.
fn board(dir: &std::path::Path) -> (Arc<Board>, Silkd) {
    let (socket, silkd) = (dir.join("s"), Silkd::default());
    silkd.serve(&socket);
    (Arc::new(asking(&socket)), silkd)
}

fn asking(socket: &std::path::Path) -> Board {
    let of = |of: &str| Row { diff_id: Digest::of(of.as_bytes()), exists: true, ..row(Stage::Waiting, 0) };
    Board {
        rows: Mutex::new(vec![of("base"), of("top")]),
        manifest: Digest::of(b"manifest"),
        reference: NAME.to_owned(),
        silkd: Some(super::Silkd { control: Control::new(socket), before: HashSet::new() }),
        unasked: Mutex::default(),
        notes: Mutex::default(),
    }
}

fn stages(board: &Board) -> Vec<Stage> {
    board.rows().iter().map(|row| row.stage).collect()
}

/// Waits until the board has the layers at these stages.
async fn until(board: &Board, wanted: [Stage; 2]) {
    let reached = async {
        while stages(board) != wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reached).await.unwrap();
}

#[tokio::test]
async fn it_waits_until_the_last_layer_is_whole_and_says_once_what_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let (board, silkd) = board(dir.path());
    let mut troubled = image("ready", ["whole", "filling"]);
    troubled.layers[1].error = "registry.example is on fire".to_owned();
    *silkd.0.lock().unwrap() = vec![troubled];
    board.refresh().await.unwrap();
    assert_eq!(board.summary(), "2 layers, 4.0 MB (1 arrives while it is read)");
    let waiter = tokio::spawn({
        let board = Arc::clone(&board);
        async move { board.whole(AWAY).await }
    });
    until(&board, [Stage::Done, Stage::Mounted]).await;
    board.refresh().await.unwrap();
    assert!(!waiter.is_finished());
    *silkd.0.lock().unwrap() = vec![image("ready", ["whole", "whole"])];
    waiter.await.unwrap().unwrap();
    assert_eq!(board.summary(), "2 layers, 4.0 MB");
    let short = Digest::of(b"x").short();
    let said = format!("layer 2/2 {short} does not arrive: registry.example is on fire\n");
    assert_eq!(*board.notes.lock().unwrap(), [said]);
}

#[tokio::test]
async fn an_image_that_fails_ends_the_wait_and_one_of_containerd_needs_none() {
    let dir = tempfile::tempdir().unwrap();
    let (board, silkd) = board(dir.path());
    let error = "image registry.example/app:1, layer 2: gone".to_owned();
    *silkd.0.lock().unwrap() = vec![Image { error: error.clone(), ..image("failed", ["whole", "absent"]) }];
    assert_eq!(board.whole(AWAY).await.unwrap_err().to_string(), error);
    *silkd.0.lock().unwrap() = vec![Image { layers: vec![], ..image("refused", ["", ""]) }];
    board.whole(AWAY).await.unwrap();
    assert_eq!(stages(&board), [Stage::Done, Stage::Here]);
}

#[tokio::test]
async fn layers_of_an_image_that_containerd_knew_before_are_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let (board, silkd) = board(dir.path());
    let mut other = Image { manifest_digest: "another".into(), ..image("pulling", ["whole", "filling"]) };
    other.layers.push(layer("above", "absent"));
    *silkd.0.lock().unwrap() = vec![other.clone()];
    let waiter = tokio::spawn({
        let board = Arc::clone(&board);
        async move { board.whole(AWAY).await }
    });
    until(&board, [Stage::Done, Stage::Mounted]).await;
    // What is above is no matter of this image.
    other.state = "failed".into();
    *silkd.0.lock().unwrap() = vec![other.clone()];
    board.refresh().await.unwrap();
    (other.layers[1].state, other.error) = ("absent".into(), "gone".into());
    *silkd.0.lock().unwrap() = vec![other];
    assert_eq!(waiter.await.unwrap().unwrap_err().to_string(), "gone");
}

#[tokio::test]
async fn a_silkd_that_stays_away_ends_the_wait() {
    let dir = tempfile::tempdir().unwrap();
    let board = asking(&dir.path().join("nobody"));
    let failure = board.whole(Duration::from_millis(1)).await.unwrap_err();
    assert!(matches!(failure, Failure::Unreachable { daemon: Daemon::Silkd, .. }), "{failure}");
    let back = Arc::new(asking(&dir.path().join("s")));
    let waiter = tokio::spawn({
        let board = Arc::clone(&back);
        async move { board.whole(AWAY).await }
    });
    assert!(back.refresh().await.is_err());
    Silkd(Arc::new(Mutex::new(vec![image("ready", ["whole", "whole"])]))).serve(&dir.path().join("s"));
    waiter.await.unwrap().unwrap();
    assert_eq!(stages(&back), [Stage::Done; 2]);
}
