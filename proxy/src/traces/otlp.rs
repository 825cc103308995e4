//! Turns finished spans into a request of OTLP: one resource a unit.

use std::collections::BTreeMap;

use hostmesh_proxy_core::config::Unit;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

use super::{Finished, Kind, Value};

/// The W3C flag of a sampled trace, as `Span.flags` has it.
const SAMPLED: u32 = 1;

/// The request that hands these to a collector.
pub fn request(spans: Vec<Finished>, host: &str) -> ExportTraceServiceRequest {
    let mut units = BTreeMap::<_, (Resource, Vec<Span>)>::new();
    for span in spans {
        let place = units.entry(span.unit.unit.clone());
        let (_, written) = place.or_insert_with(|| (resource(&span.unit, host), Vec::new()));
        written.push(write(span));
    }
    let resource_spans = units.into_values().map(|(resource, spans)| ResourceSpans {
        resource: Some(resource),
        scope_spans: vec![ScopeSpans {
            scope: Some(InstrumentationScope {
                name: env!("CARGO_PKG_NAME").to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..InstrumentationScope::default()
            }),
            spans,
            ..ScopeSpans::default()
        }],
        ..ResourceSpans::default()
    });
    ExportTraceServiceRequest {
        resource_spans: resource_spans.collect(),
    }
}

fn resource(unit: &Unit, host: &str) -> Resource {
    let text = |key: &str, value: &str| pair(key, Any::StringValue(value.to_owned()));
    Resource {
        attributes: vec![
            text("service.name", &unit.service),
            text("host.name", host),
            text("hostmesh.unit", &unit.unit),
            text("hostmesh.spiffe_id", &unit.spiffe_id),
        ],
        ..Resource::default()
    }
}

fn write(span: Finished) -> Span {
    let attributes = span.attributes.into_iter().map(|(key, value)| {
        let value = match value {
            Value::Number(number) => Any::IntValue(number),
            Value::Word(word) => Any::StringValue(word.to_owned()),
            Value::Shared(text) => Any::StringValue(text.to_string()),
            Value::Text(text) => Any::StringValue(text),
        };
        pair(key, value)
    });
    let kind = match span.kind {
        Kind::Client => SpanKind::Client,
        Kind::Server => SpanKind::Server,
        Kind::Internal => SpanKind::Internal,
    };
    Span {
        trace_id: span.span.trace_id.to_be_bytes().to_vec(),
        span_id: span.span.span_id.to_be_bytes().to_vec(),
        parent_span_id: span.parent.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
        flags: if span.span.is_sampled { SAMPLED } else { 0 },
        name: span.name.into_owned(),
        kind: kind.into(),
        start_time_unix_nano: span.begun_ns,
        end_time_unix_nano: span.ended_ns,
        attributes: attributes.collect(),
        status: span.failed.map(|message| Status {
            message,
            code: StatusCode::Error.into(),
        }),
        ..Span::default()
    }
}

fn pair(key: &str, value: Any) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}
