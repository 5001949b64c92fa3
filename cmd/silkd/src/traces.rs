//! Spans to a collector of OpenTelemetry, at an address of the operator's choice, as OTLP over gRPC.
//!
//! A thread of its own sends them in batches. What it cannot send in time is dropped: a pull never waits for a collector, and the log
//! says once that it is away and once that it is back.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, bail};
use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{RetryPolicy, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter},
};
use silk_model::{SPANS, VERSION};
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

use crate::config::Tracing;

/// Spans that wait to be sent; more are dropped. With about 1 KiB a span, 4 MiB; a pull of a hundred layers in ranges of 4 MiB makes
/// about a thousand.
const QUEUE: usize = 4096;

/// Spans wait this long for others, as is the rule of OpenTelemetry's own processors within a factor of a few: soon enough for who looks.
const DELAY: Duration = Duration::from_secs(1);

/// A collector that has not answered by then does not get the batch.
const ANSWER: Duration = Duration::from_secs(3);

/// At silkd's end, what is left is sent for so long.
const FLUSH: Duration = Duration::from_secs(1);

/// Sends what is left when it is told to end.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// The layer of a subscriber that takes silk's spans, and no others; nothing where the configuration names no collector.
    /// To be called within the runtime that is to carry the connection.
    pub fn layer<S>(config: &Tracing) -> anyhow::Result<Option<(impl Layer<S> + use<S>, Self)>>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let Some(endpoint) = &config.otlp_endpoint else { return Ok(None) };
        if !endpoint.starts_with("http://") {
            bail!("`tracing.otlp_endpoint = {endpoint:?}` is no address such as \"http://127.0.0.1:4317\"");
        }
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint.clone())
            .with_timeout(ANSWER)
            // The next batch is the next try.
            .with_retry_policy(RetryPolicy::disabled())
            .build()
            .with_context(|| format!("`tracing.otlp_endpoint = {endpoint:?}`"))?;
        let exporter = Told { exporter, endpoint: endpoint.clone(), away: AtomicBool::new(false) };
        let batches = BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_scheduled_delay(DELAY).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            .with_resource(resource())
            .build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("silk"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target(SPANS, LevelFilter::TRACE));
        Ok(Some((layer, Self(provider))))
    }

    /// Sends what is left, for [`FLUSH`] at most. Blocks; the runtime must still be there.
    pub fn end(self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH) {
            tracing::debug!(%error, "some of the last spans were not sent");
        }
    }

    #[cfg(test)]
    fn flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }
}

/// Whose spans they are.
fn resource() -> Resource {
    let uname = rustix::system::uname();
    Resource::builder()
        .with_service_name("silkd")
        .with_attribute(KeyValue::new("service.version", VERSION))
        .with_attribute(KeyValue::new("host.name", uname.nodename().to_string_lossy().into_owned()))
        .build()
}

/// Says when the collector goes away and when it is back.
#[derive(Debug)]
struct Told<E> {
    exporter: E,
    endpoint: String,
    away: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let sent = self.exporter.export(batch).await;
        let was_away = self.away.swap(sent.is_err(), Ordering::Relaxed);
        match (&sent, was_away) {
            (Err(error), false) => {
                tracing::warn!(endpoint = self.endpoint, %error, spans, "spans cannot be sent: they are dropped until they can");
            }
            (Ok(()), true) => tracing::info!(endpoint = self.endpoint, "spans can be sent again"),
            (Err(_), true) | (Ok(()), false) => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests;
