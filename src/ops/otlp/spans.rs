//! Spans as OTLP has them.
//!
//! In: batches. Out: the message of an export. Attributes are those of OpenTelemetry's semantic conventions for messaging, and
//! `walrelay.…` for what these have no name for. The traces that a span is linked to go on in the messages, so it is a client's
//! span and not a producer's.

use super::request::{attribute, nanos, resource, scope, text};
use crate::relay::span_queue::{BatchSpan, TraceContext};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span, Status, span, status,
};

/// Trace flags, bit 0: it is exported, so it was sampled (W3C Trace Context).
const SAMPLED: u32 = 1;

/// The message with these batches.
pub(super) fn request(
    attributes: &[(String, String)],
    batches: Vec<BatchSpan>,
) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource(attributes)),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope()),
                spans: batches.into_iter().map(span).collect(),
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }],
    }
}

/// A root: each batch is a trace of its own.
fn span(batch: BatchSpan) -> Span {
    Span {
        trace_id: random_id::<16>(),
        span_id: random_id::<8>(),
        flags: SAMPLED,
        name: format!("publish {}", batch.lane.stream),
        kind: span::SpanKind::Client.into(),
        start_time_unix_nano: nanos(batch.began),
        end_time_unix_nano: nanos(batch.ended),
        attributes: attributes(&batch),
        dropped_links_count: batch.links_dropped,
        status: batch.failed.map(|reason| Status {
            message: reason.to_owned(),
            code: status::StatusCode::Error.into(),
        }),
        links: batch.links.into_iter().map(link).collect(),
        ..Span::default()
    }
}

fn attributes(batch: &BatchSpan) -> Vec<KeyValue> {
    let lane = &batch.lane;
    let whole = |value: u64| Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX));
    let mut attributes = vec![
        text("messaging.system", "nats"),
        text("messaging.operation.name", "publish"),
        text("messaging.operation.type", "send"),
        text("messaging.destination.name", lane.stream.as_str()),
        attribute("messaging.batch.message_count", whole(batch.events)),
        attribute("walrelay.batch.bytes", whole(batch.bytes)),
        text("walrelay.relay", lane.relay.as_str()),
        text("walrelay.slot", lane.slot.as_str()),
        text("walrelay.publish_mode", lane.mode),
    ];
    if let Some(share) = lane.share {
        attributes.push(attribute("walrelay.share", whole(share.into())));
    }
    for (key, position) in [
        ("walrelay.position.first", batch.first),
        ("walrelay.position.last", batch.last),
    ] {
        attributes.extend(position.map(|position| text(key, position.to_string())));
    }
    attributes.extend(batch.failed.map(|reason| text("error.type", reason)));
    attributes
}

fn link(trace: TraceContext) -> span::Link {
    span::Link {
        trace_id: trace.trace_id.to_vec(),
        span_id: trace.span_id.to_vec(),
        flags: trace.flags.into(),
        ..span::Link::default()
    }
}

/// Not all zero.
fn random_id<const N: usize>() -> Vec<u8> {
    loop {
        let id: [u8; N] = std::array::from_fn(|_| rand::random());
        if id != [0; N] {
            return id.to_vec();
        }
    }
}
