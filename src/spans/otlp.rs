//! To an OpenTelemetry collector.
//!
//! Spans are made whole when what they tell is over, with the ids that the event's header names:
//! it may have been received by the process before this one. The SDK's own tracer cannot be told
//! the ids, so its processor is given the spans; it sends them in batches, on a thread of its own,
//! and drops what is too much for the collector: no event waits for a span.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor,
};
use reqwest::redirect::Policy;
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::clock;
use crate::destination::for_log;
use crate::event::{Event, EventId, Facts, Headers};
use crate::qstash::{ExtraRoots, Outcome, tls};

/// Where spans go; the first that is set turns the export on.
/// <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>
const ENDPOINTS: [&str; 2] = [
    opentelemetry_otlp::OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    opentelemetry_otlp::OTEL_EXPORTER_OTLP_ENDPOINT,
];

/// How long the last spans may take.
const LAST_SPANS: Duration = Duration::from_secs(1);

pub(crate) struct Spans {
    processor: Option<Arc<BatchSpanProcessor>>,
    scope: InstrumentationScope,
}

/// An event that is being received.
pub(crate) struct Receiving(Option<Begun>);

struct Begun {
    at: SystemTime,
    parent: Parent,
    /// Its trace begins here, and so does this span in it.
    is_root: bool,
    attributes: Vec<KeyValue>,
}

#[derive(Clone, Copy)]
struct Parent {
    trace: TraceId,
    span: SpanId,
}

impl Spans {
    /// As the variables say that all of OpenTelemetry's exporters read: endpoint and headers,
    /// `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`. They are often set for all of a
    /// cluster, so one that is wrong is told and stops nothing: events come before spans.
    pub(crate) async fn from_environment(roots: &ExtraRoots) -> Self {
        let scope = InstrumentationScope::builder(env!("CARGO_PKG_NAME"))
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let mut processor = None;
        if ENDPOINTS.iter().any(is_set) {
            let tls = tls::client_config(roots);
            // A blocking client has a runtime of its own, which cannot be made within another.
            let made = spawn_blocking(move || self::processor(tls)).await;
            match made.map_err(Into::into).flatten() {
                Ok(made) => processor = Some(Arc::new(made)),
                Err(error) => warn!(
                    error = &*error as &dyn Error,
                    "No spans are exported; correct the OTEL_EXPORTER_OTLP_* variables, or take them away"
                ),
            }
        }
        Self { processor, scope }
    }

    pub(crate) fn receive(&self, event: &Event) -> Receiving {
        let parent = self.processor.as_ref();
        let parent = parent.and_then(|_| Parent::of(&event.payload.headers));
        Receiving(parent.map(|parent| Begun {
            at: clock::precisely(),
            is_root: parent.trace.to_bytes() == *event.id.as_bytes(),
            parent,
            attributes: attributes(event.id, &event.facts),
        }))
    }

    pub(crate) fn received(&self, receiving: Receiving, status: StatusCode) {
        let Some(mut begun) = receiving.0 else { return };
        let code = i64::from(status.as_u16());
        begun
            .attributes
            .push(KeyValue::new("http.response.status_code", code));
        let (span, parent) = match begun.is_root {
            true => (begun.parent.span, SpanId::INVALID),
            false => (new_span_id(), begun.parent.span),
        };
        let result = match status.is_success() {
            true => Status::Unset,
            false => Status::error(status.to_string()),
        };
        self.export(
            "receive",
            SpanKind::Server,
            (begun.parent.trace, span, parent),
            (begun.at, clock::precisely()),
            begun.attributes,
            result,
        );
    }

    pub(crate) fn published(
        &self,
        id: EventId,
        facts: &Facts,
        destination: &str,
        headers: &Headers,
        outcome: &Outcome,
        took: Duration,
    ) {
        if self.processor.is_none() {
            return;
        }
        let Some(parent) = Parent::of(headers) else {
            return;
        };
        let mut attributes = attributes(id, facts);
        attributes.push(KeyValue::new(
            "destination",
            for_log(destination).into_owned(),
        ));
        let result = match outcome {
            Outcome::Accepted { message_ids, .. } => {
                attributes.push(KeyValue::new("message_id", message_ids.join(",")));
                Status::Unset
            }
            Outcome::Rejected { reason }
            | Outcome::TooLarge { reason }
            | Outcome::UnknownDestination { reason }
            | Outcome::Unauthorized { reason, .. }
            | Outcome::Limited { reason, .. }
            | Outcome::Unreachable { reason, .. } => Status::error(reason.clone()),
        };
        let end = clock::precisely();
        self.export(
            "publish",
            SpanKind::Producer,
            (parent.trace, new_span_id(), parent.span),
            (end.checked_sub(took).unwrap_or(end), end),
            attributes,
            result,
        );
    }

    /// Sends what has not been sent.
    pub(crate) async fn end(&self) {
        if let Some(processor) = &self.processor {
            let processor = Arc::clone(processor);
            let ended = spawn_blocking(move || processor.shutdown_with_timeout(LAST_SPANS));
            ended.await.ok(); // the SDK has told what was wrong
        }
    }

    fn export(
        &self,
        name: &'static str,
        span_kind: SpanKind,
        (trace, span, parent_span_id): (TraceId, SpanId, SpanId),
        (start_time, end_time): (SystemTime, SystemTime),
        attributes: Vec<KeyValue>,
        status: Status,
    ) {
        let Some(processor) = &self.processor else {
            return;
        };
        processor.on_end(SpanData {
            span_context: SpanContext::new(
                trace,
                span,
                TraceFlags::SAMPLED,
                false,
                TraceState::NONE,
            ),
            parent_span_id,
            parent_span_is_remote: true,
            span_kind,
            name: name.into(),
            start_time,
            end_time,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: self.scope.clone(),
        });
    }
}

impl Parent {
    /// `None` where the sender's trace is not recorded.
    fn of(headers: &Headers) -> Option<Self> {
        let value = headers.values("traceparent").next()?;
        let mut parts = std::str::from_utf8(value).ok()?.split('-').skip(1);
        let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
        let is_recorded = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Self {
            trace: TraceId::from_hex(trace).ok()?,
            span: SpanId::from_hex(span).ok()?,
        })
        .filter(|_| is_recorded)
    }
}

fn processor(
    tls: rustls::ClientConfig,
) -> Result<BatchSpanProcessor, Box<dyn Error + Send + Sync>> {
    let http = reqwest::blocking::Client::builder()
        .tls_backend_preconfigured(tls)
        // A redirect would carry the headers' secrets to another host.
        .redirect(Policy::none())
        .build()?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(http)
        .build()?;
    let mut processor = BatchSpanProcessor::builder(exporter).build();
    let mut resource = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(env!("CARGO_PKG_NAME"));
    }
    processor.set_resource(&resource.build());
    Ok(processor)
}

/// By the names that the log has for them.
fn attributes(id: EventId, facts: &Facts) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("event.id", id.to_string()),
        KeyValue::new("event.kind", facts.kind.clone()),
    ];
    for (name, value) in [("event.model", &facts.model), ("event.uid", &facts.uid)] {
        attributes.extend(value.clone().map(|value| KeyValue::new(name, value)));
    }
    attributes
}

fn new_span_id() -> SpanId {
    SpanId::from_bytes(fastrand::u64(1..).to_be_bytes())
}
