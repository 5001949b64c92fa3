//! A pull's spans at a collector, and a collector that is not there.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use silk_model::{Digest, chain_ids};
use silk_pull::{Caller, Claim, Contents, ContentsError, Held, Lazies, Puller, Seams, Show, ShowError};
use silk_registry::Registry;
use silk_share::Share;
use silk_store::Store;
use silk_testkit::{Compression, Fake, ImageSpec, Pushed, eventually, noise, tar};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use tracing::{Instrument as _, trace_span};
use tracing_subscriber::{fmt::MakeWriter, layer::SubscriberExt as _};

use super::*;

/// Takes all spans.
#[derive(Debug, Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_one in request.into_inner().resource_spans {
            let attributes = of_one.resource.unwrap().attributes;
            let name = attributes.iter().find(|a| a.key == "service.name").unwrap();
            let Some(Value::StringValue(service)) = name.value.clone().unwrap().value else { panic!("{name:?}") };
            let spans = of_one.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().unwrap().extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> (Self, Tracing) {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let otlp_endpoint = Some(format!("http://{}", listener.local_addr().unwrap()));
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, Tracing { otlp_endpoint })
    }

    fn spans(&self) -> Vec<Span> {
        self.0.lock().unwrap().iter().map(|(_, span)| span.clone()).collect()
    }
}

/// A containerd that has an image's documents, and mounts that are none.
#[derive(Debug)]
struct Node(HashMap<Digest, Vec<u8>>);

impl Contents for Node {
    fn read<'a>(&'a self, _: &'a str, digest: &'a Digest, _: u64) -> BoxFuture<'a, Result<Vec<u8>, ContentsError>> {
        let found = self.0.get(digest).cloned();
        Box::pin(async move { found.ok_or(ContentsError { digest: *digest, message: "not found".into() }) })
    }

    fn held<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> BoxFuture<'a, Result<Vec<Held>, String>> {
        Box::pin(async { Ok(vec![]) })
    }
}

impl Show for Node {
    fn possible(&self) -> Result<(), String> {
        Ok(())
    }

    fn lazily(&self) -> bool {
        true
    }

    fn show(&self, _: &[Digest]) -> Result<(), ShowError> {
        Ok(())
    }

    fn renew(&self, _: &Digest, _: bool) {}

    fn put_away(&self, _: Duration) {}

    fn warm(&self, _: &Digest, _: &[std::ops::Range<u64>]) -> bool {
        false
    }

    fn forget(&self, _: &Digest) {}
}

/// Claims and awaits an image.
async fn pull(pushed: &Pushed, store: &Arc<Store>) {
    let documents = [(pushed.manifest_digest, &pushed.manifest), (pushed.config_digest, &pushed.config)];
    let node = Arc::new(Node(documents.into_iter().map(|(digest, bytes)| (digest, bytes.to_vec())).collect()));
    let share = Arc::new(Share::new(&silk_share::Config::default(), vec![]).unwrap());
    let registry = silk_registry::Config { docker_config: Some("/nonexistent".into()), ..Default::default() };
    let config = silk_pull::Config { range_bytes: 100_000, ..Default::default() };
    let lazies = Lazies::new(Arc::clone(store), &config);
    let seams = Seams { contents: Arc::clone(&node) as Arc<_>, show: node, share };
    let puller = Puller::new(config, Registry::new(registry).unwrap(), Arc::clone(&lazies), seams).unwrap();
    let layer = &pushed.layers[0];
    let claim = Claim {
        namespace: "default".into(),
        reference: pushed.reference.clone(),
        manifest: pushed.manifest_digest,
        blob: layer.blob_digest,
        chain_id: chain_ids(&[layer.diff_id])[0],
        below: 0,
    };
    puller.claim(claim).instrument(trace_span!(target: SPANS, "Prepare")).await.unwrap();
    let caller = Caller { namespace: "default".into(), lease: None };
    puller.ready(&pushed.manifest_digest, &pushed.reference, &caller).await.unwrap();
    // One that fills goes on.
    eventually("nothing fills", || lazies.list().is_empty()).await;
}

fn text(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|a| a.key == key).unwrap_or_else(|| panic!("{key} of {span:?}"));
    match found.value.clone().unwrap().value.unwrap() {
        Value::StringValue(text) => text,
        other => format!("{other:?}"),
    }
}

/// The names of a span and of all that it is a part of, from the outermost.
fn path(span: &Span, all: &[Span]) -> String {
    match all.iter().find(|parent| parent.span_id == span.parent_span_id) {
        Some(parent) => {
            assert_eq!(parent.trace_id, span.trace_id);
            format!("{}/{}", path(parent, all), span.name)
        }
        None => {
            assert_eq!(span.parent_span_id, [] as [u8; 0], "the parent of {} did not come", span.name);
            span.name.clone()
        }
    }
}

/// How often each path came.
fn paths(all: &[Span]) -> HashMap<String, usize> {
    let mut count = HashMap::new();
    all.iter().for_each(|span| *count.entry(path(span, all)).or_default() += 1);
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pulls_spans_arrive_with_their_parents() {
    let (collector, config) = Collector::start().await;
    let (layer, traces) = Traces::layer(&config).unwrap().unwrap();
    // For all threads: no other test of this binary looks at spans of its own.
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)).unwrap();
    let registry = Fake::start().await;
    let tar = tar(&[("f", &noise(1, 1_600_000))]);
    let pushed = registry.push_image("library/app:1", &ImageSpec::new().layer(&tar, Compression::Plain));
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path(), silk_store::Config::default()).unwrap());
    pull(&pushed, &store).await;
    // A second node, to which the layer is known.
    let other_dir = tempfile::tempdir().unwrap();
    let other = Arc::new(Store::open(other_dir.path(), silk_store::Config::default()).unwrap());
    let id = pushed.layers[0].diff_id;
    other.learn(&store.known(&id).unwrap(), "a peer").unwrap();
    // The outermost comes last.
    let prepared = || {
        traces.flush().unwrap();
        collector.spans().iter().any(|span| span.name == "Prepare")
    };
    eventually("all spans come", prepared).await;
    let streamed = collector.spans();
    let ranges = tar.len().div_ceil(100_000);
    let expected: HashMap<_, _> = [
        ("Prepare", 1),
        ("Prepare/resolve", 1),
        ("Prepare/first contact", 1),
        ("Prepare/pull", 1),
        ("Prepare/pull/known", 1),
        ("Prepare/pull/layer", 1),
        ("Prepare/pull/layer/fetch", ranges),
        ("Prepare/pull/layer/decode", 1),
        ("Prepare/pull/layer/store", 1),
        ("Prepare/pull/layer/prove", 1),
        ("Prepare/pull/mount", 1),
    ]
    .into_iter()
    .map(|(path, count)| (path.to_owned(), count))
    .collect();
    assert_eq!(paths(&streamed), expected);
    let of = |spans: &[Span], name: &str| spans.iter().find(|span| span.name == name).unwrap().clone();
    let image = of(&streamed, "pull");
    assert_eq!(text(&image, "image.reference"), pushed.reference);
    assert_eq!(text(&image, "image.manifest"), pushed.manifest_digest.to_string());
    assert_eq!((text(&image, "kind"), text(&image, "result")), ("first".into(), "ready".into()));
    let layer = of(&streamed, "layer");
    assert_eq!((text(&layer, "layer.diff_id"), text(&layer, "result")), (id.to_string(), "whole".into()));
    assert_eq!(text(&layer, "layer.blob"), pushed.layers[0].blob_digest.to_string());
    assert_eq!(text(&layer, "layer.bytes"), format!("IntValue({})", tar.len()));
    // Prepare is answered before the pull ends.
    let (call, image) = (of(&streamed, "Prepare"), of(&streamed, "pull"));
    assert!(call.end_time_unix_nano <= image.end_time_unix_nano, "{call:?} {image:?}");
    assert!(collector.0.lock().unwrap().iter().all(|(service, _)| service == "silkd"));

    collector.0.lock().unwrap().clear();
    pull(&pushed, &other).await;
    eventually("all spans come", prepared).await;
    let filled = collector.spans();
    let paths = paths(&filled);
    let ranges = paths["Prepare/pull/known/layer/range"];
    assert!(ranges > 0 && paths["Prepare/pull/known/layer/range/decode"] == ranges, "{paths:?}");
    assert_eq!((paths.get("Prepare/pull/mount"), paths.get("Prepare/pull/layer")), (Some(&1), None), "{paths:?}");
    let layer = of(&filled, "layer");
    assert_eq!((text(&layer, "way"), text(&layer, "result")), ("filled".into(), "whole".into()));
    traces.end();
}

/// What is logged.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_holds_up_nobody() {
    // Nobody listens there: the port was free a moment ago, and the connection is refused.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let otlp_endpoint = Some(format!("http://{}", listener.local_addr().unwrap()));
    drop(listener);
    let (layer, traces) = Traces::layer(&Tracing { otlp_endpoint }).unwrap().unwrap();
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, || {
        // More than wait.
        for _ in 0..3 * QUEUE {
            drop(trace_span!(target: SPANS, "layer").entered());
        }
    });
    let _ = traces.flush();
    let asked = Instant::now();
    traces.end();
    assert!(asked.elapsed() < Duration::from_secs(60), "it has a deadline");
}

/// Answers as it is told.
#[derive(Debug, Default)]
struct Moody(Arc<AtomicBool>);

impl SpanExporter for Moody {
    async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
        match self.0.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(opentelemetry_sdk::error::OTelSdkError::InternalFailure("nobody listens".into())),
        }
    }
}

#[tokio::test]
async fn the_log_says_once_that_a_collector_is_away_and_once_that_it_is_back() {
    let (log, works) = (Log::default(), Arc::<AtomicBool>::default());
    let told = Told { exporter: Moody(Arc::clone(&works)), endpoint: "http://c".into(), away: AtomicBool::default() };
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    let _here = tracing::subscriber::set_default(subscriber);
    for well in [true, false, false, false, true, true, false] {
        works.store(well, Ordering::Relaxed);
        assert_eq!(told.export(vec![]).await.is_ok(), well);
    }
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.matches("cannot be sent").count(), 2, "{text}");
    assert_eq!(text.matches("can be sent again").count(), 1, "{text}");
}

#[test]
fn an_address_that_is_none_is_told_at_the_start() {
    type Registry = tracing_subscriber::Registry;
    for bad in ["127.0.0.1:4317", "https://c:4317", "http://", ""] {
        let config = Tracing { otlp_endpoint: Some(bad.into()) };
        let error = Traces::layer::<Registry>(&config).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("tracing.otlp_endpoint"), "{bad}: {error}");
    }
    assert!(Traces::layer::<Registry>(&Tracing::default()).unwrap().is_none(), "off by default");
}
