//! Metrics as OTLP has them.
//!
//! In: the families of `/metrics`. Out: the message of an export. A counter's name loses `_total` and each has its unit, so that a
//! collector's Prometheus exporter, and Prometheus itself, give it the name back that it has on `/metrics`.

use crate::ops::metrics::families::{Family, Kind, Number, Sample, Value};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use std::time::{SystemTime, UNIX_EPOCH};

/// The message with these families, counted from `started` on.
pub(super) fn metrics(
    resource: &[(String, String)],
    families: Vec<Family>,
    started: SystemTime,
    now: SystemTime,
) -> ExportMetricsServiceRequest {
    let times = (nanos(started), nanos(now));
    let metrics = families.into_iter().map(|family| metric(family, times));
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(self::resource(resource)),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(scope()),
                metrics: metrics.collect(),
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }],
    }
}

pub(super) fn resource(attributes: &[(String, String)]) -> Resource {
    let attributes = attributes.iter();
    Resource {
        attributes: attributes
            .map(|(key, value)| text(key.clone(), value.clone()))
            .collect(),
        ..Resource::default()
    }
}

pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "walrelay".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

pub(super) fn text(key: impl Into<String>, value: impl Into<String>) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value.into()))
}

pub(super) fn attribute(key: impl Into<String>, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// Nanoseconds of Unix time.
pub(super) fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn metric(family: Family, (started, now): (u64, u64)) -> Metric {
    let name = family.name.strip_suffix("_total").unwrap_or(family.name);
    let numbers = || {
        let samples = family.samples.iter();
        samples
            .filter_map(|sample| number(sample, started, now))
            .collect()
    };
    let data = match family.kind {
        Kind::Counter => metric::Data::Sum(Sum {
            data_points: numbers(),
            aggregation_temporality: AggregationTemporality::Cumulative.into(),
            is_monotonic: true,
        }),
        Kind::Gauge => metric::Data::Gauge(Gauge {
            data_points: numbers(),
        }),
        Kind::Histogram => {
            let samples = family.samples.iter();
            metric::Data::Histogram(Histogram {
                data_points: samples
                    .filter_map(|sample| histogram(sample, started, now))
                    .collect(),
                aggregation_temporality: AggregationTemporality::Cumulative.into(),
            })
        }
    };
    Metric {
        name: name.to_owned(),
        description: family.help.to_owned(),
        unit: unit(name).to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

/// By the name's end, in UCUM; none for what is merely counted, since a `1` would become `_ratio`.
fn unit(name: &str) -> &'static str {
    match name.rsplit('_').next() {
        Some("bytes") => "By",
        Some("seconds") => "s",
        _ => "",
    }
}

fn labels(sample: &Sample) -> Vec<KeyValue> {
    let labels = sample.labels.iter();
    labels
        .map(|(name, value)| text(name.clone(), value.clone()))
        .collect()
}

#[allow(clippy::cast_precision_loss, reason = "no count or LSN is beyond 2⁶³")]
fn number(sample: &Sample, started: u64, now: u64) -> Option<NumberDataPoint> {
    let Value::Number(number) = sample.value else {
        return None;
    };
    let value = match number {
        Number::Whole(value) => match i64::try_from(value) {
            Ok(value) => number_data_point::Value::AsInt(value),
            Err(_) => number_data_point::Value::AsDouble(value as f64),
        },
        Number::Signed(value) => number_data_point::Value::AsInt(value),
        Number::Real(value) => number_data_point::Value::AsDouble(value),
    };
    Some(NumberDataPoint {
        attributes: labels(sample),
        start_time_unix_nano: started,
        time_unix_nano: now,
        value: Some(value),
        ..NumberDataPoint::default()
    })
}

fn histogram(sample: &Sample, started: u64, now: u64) -> Option<HistogramDataPoint> {
    let Value::Histogram {
        bounds,
        counts,
        sum,
    } = &sample.value
    else {
        return None;
    };
    Some(HistogramDataPoint {
        attributes: labels(sample),
        start_time_unix_nano: started,
        time_unix_nano: now,
        count: counts.iter().sum(),
        sum: Some(*sum),
        bucket_counts: counts.clone(),
        explicit_bounds: bounds.clone(),
        ..HistogramDataPoint::default()
    })
}
