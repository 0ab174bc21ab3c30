//! The export by OTLP, to a receiver that reads it by OpenTelemetry's own schema, and through a collector that others wrote.

#[path = "otlp/collector.rs"]
mod collector;
mod platform;
#[path = "otlp/receiver.rs"]
mod receiver;
#[path = "otlp/rotel.rs"]
mod rotel;
mod site;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric, number_data_point};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use platform::Platform;
use receiver::{Mood, Receiver};
use rustix::process::{Pid, Signal, kill_process};
use site::{free_address, get};
use tokio::process::Child;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

const LIMIT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A relay that exports often to there, and serves its metrics at the address that is returned.
async fn exporting(endpoint: &str) -> (Platform, std::net::SocketAddr) {
    let mut platform = Platform::start().await;
    let address = free_address();
    platform.set("WALRELAY_HTTP_LISTEN", &address.to_string());
    platform.set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    platform.set("OTEL_METRIC_EXPORT_INTERVAL", "100");
    platform.set("OTEL_BSP_SCHEDULE_DELAY", "100");
    platform.set("OTEL_EXPORTER_OTLP_TIMEOUT", "500");
    (platform, address)
}

/// The program with its log in a file.
struct Logged {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Logged {
    fn run(platform: &Platform) -> Logged {
        let log = tempfile::NamedTempFile::new().expect("a file");
        let child = platform
            .command(&["run"])
            .stderr(Stdio::from(File::create(log.path()).expect("a file")))
            .spawn()
            .expect("the relay starts");
        Logged { child, log }
    }

    /// SIGTERM, exit code 0, and what was logged.
    async fn stop(mut self) -> String {
        terminate(&self.child);
        let status = tokio::time::timeout(LIMIT, self.child.wait()).await;
        let status = status.expect("it stops in time").expect("waited for");
        let log = std::fs::read_to_string(self.log.path()).expect("a log");
        assert_eq!(status.code(), Some(0), "{log}");
        log
    }
}

/// SIGTERM.
fn terminate(child: &Child) {
    let pid = i32::try_from(child.id().expect("it runs")).expect("a pid");
    kill_process(Pid::from_raw(pid).expect("not 0"), Signal::TERM).expect("signalled");
}

fn string(attributes: &[KeyValue], key: &str) -> Option<String> {
    match value(attributes, key)? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{key}: {other:?}"),
    }
}

fn value(attributes: &[KeyValue], key: &str) -> Option<Value> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.as_ref()?.value.clone()
}

/// The samples of an exposition.
fn scraped(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (sample, value) = line.rsplit_once(' ').expect("a sample");
            (sample.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

/// The same of an export, under the names that a collector's Prometheus exporter gives them.
fn exported(request: &ExportMetricsServiceRequest) -> BTreeMap<String, f64> {
    let scopes = request
        .resource_metrics
        .iter()
        .flat_map(|it| &it.scope_metrics);
    let metrics = scopes.flat_map(|scope| &scope.metrics);
    metrics.flat_map(samples).collect()
}

fn samples(metric: &Metric) -> Vec<(String, f64)> {
    let labels = |attributes: &[KeyValue], more: Option<(&str, &str)>| {
        let own = attributes.iter().map(|attribute| {
            let value = string(attributes, &attribute.key).expect("a label");
            format!("{}=\"{value}\"", attribute.key)
        });
        let more = more.map(|(name, value)| format!("{name}=\"{value}\""));
        own.chain(more).collect::<Vec<_>>().join(",")
    };
    let name = metric.name.as_str();
    let unit_is_in_the_name = match metric.unit.as_str() {
        "By" => name.ends_with("_bytes"),
        "s" => name.ends_with("_seconds"),
        unit => unit.is_empty(),
    };
    assert!(unit_is_in_the_name, "{name} has the unit {:?}", metric.unit);
    let (points, total) = match metric.data.as_ref().expect("data") {
        metric::Data::Sum(sum) => {
            assert!(sum.is_monotonic && sum.aggregation_temporality == 2);
            (&sum.data_points, "_total")
        }
        metric::Data::Gauge(gauge) => (&gauge.data_points, ""),
        metric::Data::Histogram(histogram) => {
            assert_eq!(histogram.aggregation_temporality, 2);
            let [point] = &histogram.data_points[..] else {
                panic!("one lane, one histogram");
            };
            let mut so_far = 0;
            let mut samples = Vec::new();
            for (index, count) in point.bucket_counts.iter().enumerate() {
                so_far += count;
                let bound = point.explicit_bounds.get(index);
                let bound = bound.map_or_else(|| "+Inf".to_owned(), |it| format!("{it:?}"));
                let labels = labels(&point.attributes, Some(("le", &bound)));
                samples.push((format!("{name}_bucket{{{labels}}}"), so_far as f64));
            }
            let labels = labels(&point.attributes, None);
            samples.push((format!("{name}_sum{{{labels}}}"), point.sum.expect("a sum")));
            samples.push((format!("{name}_count{{{labels}}}"), point.count as f64));
            return samples;
        }
        other => panic!("{name}: {other:?}"),
    };
    let number = |value: &Option<number_data_point::Value>| match value {
        Some(number_data_point::Value::AsInt(value)) => *value as f64,
        Some(number_data_point::Value::AsDouble(value)) => *value,
        None => panic!("{name} has no value"),
    };
    let sample = |point: &opentelemetry_proto::tonic::metrics::v1::NumberDataPoint| {
        assert!(
            point.start_time_unix_nano > 0 && point.time_unix_nano >= point.start_time_unix_nano
        );
        let labels = labels(&point.attributes, None);
        (format!("{name}{total}{{{labels}}}"), number(&point.value))
    };
    points.iter().map(sample).collect()
}

/// Whether a sample is what it was a moment ago: not the process' own usage, nor the export's counts of itself.
fn is_at_rest(sample: &str) -> bool {
    !sample.starts_with("process_") && !sample.starts_with("walrelay_otlp_")
}

/// Waits until the last export is what the exposition says of so many events, and gives both.
async fn same_as_exposition(
    address: std::net::SocketAddr,
    receiver: &Receiver,
    events: u64,
) -> (String, ExportMetricsServiceRequest) {
    let mut last = String::new();
    let equal = async {
        loop {
            let scrape = get(address, "/metrics").await;
            if let (Some((_, text)), Some(request)) = (scrape, receiver.metrics()) {
                let (scraped, exported) = (scraped(&text), exported(&request));
                let names =
                    |all: &BTreeMap<String, f64>| all.keys().cloned().collect::<BTreeSet<_>>();
                let at_rest = |all: &BTreeMap<String, f64>| -> BTreeMap<String, f64> {
                    let all = all.clone().into_iter();
                    all.filter(|(sample, _)| is_at_rest(sample)).collect()
                };
                let done = "walrelay_events_acknowledged_total{relay=\"walrelay\"}";
                if scraped.get(done) == Some(&(events as f64))
                    && names(&scraped) == names(&exported)
                    && at_rest(&scraped) == at_rest(&exported)
                {
                    return (text, request);
                }
                last = format!("{scraped:#?}\n{exported:#?}");
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    match tokio::time::timeout(LIMIT, equal).await {
        Ok(both) => both,
        Err(_) => panic!("they are never the same: {last}"),
    }
}

#[tokio::test]
async fn metrics_are_those_of_the_exposition() {
    let receiver = Receiver::start(Mood::Takes).await;
    let (mut platform, address) = exporting(&receiver.url()).await;
    platform.set("OTEL_TRACES_EXPORTER", "none");
    platform.set("OTEL_SERVICE_NAME", "orders-relay");
    let relay = Logged::run(&platform);
    platform.insert(20).await;
    platform.wait_for(20).await;
    let (text, request) = same_as_exposition(address, &receiver, 20).await;
    let scraped = scraped(&text);
    // The histogram and the process' usage are among them.
    for name in [
        "walrelay_commit_to_ack_seconds_count{relay=\"walrelay\"}",
        "walrelay_commit_to_ack_seconds_bucket{relay=\"walrelay\",le=\"+Inf\"}",
        "process_cpu_seconds_total{relay=\"walrelay\"}",
        "walrelay_otlp_exports_failed_total{relay=\"walrelay\",signal=\"metrics\"}",
    ] {
        assert!(scraped.contains_key(name), "{name} is not in {scraped:#?}");
    }
    let resource = request.resource_metrics[0].resource.as_ref();
    let attributes = &resource.expect("a resource").attributes;
    assert_eq!(
        string(attributes, "service.name").as_deref(),
        Some("orders-relay")
    );
    relay.stop().await;
    assert!(receiver.spans().is_empty(), "none are asked for");
    let runbook = std::fs::read_to_string("docs/runbook.md").expect("a page");
    let own = scraped
        .keys()
        .filter(|sample| sample.starts_with("walrelay_otlp_"));
    for name in own.filter_map(|sample| sample.split('{').next()) {
        assert!(runbook.contains(name), "docs/runbook.md lacks {name}");
    }
}

fn traceparent(number: usize) -> String {
    format!("00-{number:032x}-{:016x}-01", number + 4096)
}

/// What a span is linked to, as it was inserted.
fn linked(spans: &[Span]) -> Vec<String> {
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let links = spans.iter().flat_map(|span| &span.links);
    links
        .map(|link| {
            format!(
                "00-{}-{}-{:02x}",
                hex(&link.trace_id),
                hex(&link.span_id),
                link.flags
            )
        })
        .collect()
}

fn messages(spans: &[Span]) -> u64 {
    let counts = spans
        .iter()
        .map(|span| string(&span.attributes, "messaging.batch.message_count"));
    counts
        .map(|count| count.expect("a count").parse::<u64>().expect("a number"))
        .sum()
}

/// Rows with a `traceparent` each, but for those where it is empty.
async fn insert_traced(platform: &Platform, traces: &[String]) {
    let text = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json, trace) \
                SELECT gen_random_uuid(), gen_random_uuid(), 'lesson.published.v1', '{\"secret\": \"payload\"}', nullif(trace, '') \
                FROM unnest($1::text[]) AS trace";
    platform
        .sql
        .execute(text, &[&traces])
        .await
        .expect("inserted");
}

async fn with_traces(endpoint: &str) -> (Platform, std::net::SocketAddr) {
    let (mut platform, address) = exporting(endpoint).await;
    let column = "ALTER TABLE outbox_events ADD COLUMN trace text";
    platform.sql.batch_execute(column).await.expect("a column");
    platform.set("WALRELAY_MESSAGE_HEADERS", "{ traceparent = 'trace' }");
    (platform, address)
}

/// Runs a relay that exports to there, and looks at the spans that come to the receiver.
async fn spans_of_mode(
    mode: &str,
    receiver: &Receiver,
    endpoint: &str,
    prepare: impl AsyncFn(&mut Platform),
) {
    let (mut platform, _) = with_traces(endpoint).await;
    prepare(&mut platform).await;
    let relay = Logged::run(&platform);
    let mut traces: Vec<String> = (1..=60).map(traceparent).collect();
    // Of one request, of none, and of somebody who does not know the specification.
    traces.insert(10, traces[9].clone());
    traces.insert(20, String::new());
    traces.insert(30, "00-nothing".to_owned());
    for chunk in traces.chunks(9) {
        insert_traced(&platform, chunk).await;
    }
    let rows = traces.len() as u64;
    receiver
        .until("all rows are in spans", |it| messages(&it.spans()) >= rows)
        .await;
    relay.stop().await;
    let mut spans = receiver.spans();
    // A collector promises no order.
    spans.sort_by_key(|span| span.start_time_unix_nano);
    assert_eq!(messages(&spans), rows);
    // Rows of one commit and of several, in the order of the WAL.
    let mut found: Vec<String> = linked(&spans);
    found.dedup();
    let expected: Vec<String> = (1..=60).map(traceparent).collect();
    assert_eq!(found, expected);
    for span in &spans {
        let text = |key| string(&span.attributes, key);
        assert_eq!(text("messaging.system").as_deref(), Some("nats"));
        assert_eq!(
            text("messaging.destination.name").as_deref(),
            Some("OUTBOX")
        );
        assert_eq!(text("messaging.operation.type").as_deref(), Some("send"));
        assert_eq!(text("walrelay.slot").as_deref(), Some("walrelay"));
        assert_eq!(text("walrelay.publish_mode").as_deref(), Some(mode));
        assert_eq!(
            (span.name.as_str(), span.kind),
            ("publish OUTBOX", SpanKind::Client.into())
        );
        assert!(
            span.start_time_unix_nano > 0 && span.end_time_unix_nano > span.start_time_unix_nano
        );
        assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
        assert!(span.status.is_none() && text("error.type").is_none());
    }
    // Positions are those of the messages.
    let of_message = |header: &str| header.rsplit(' ').next().expect("a position").to_owned();
    let (first, _) = platform.message(first_event(&platform).await).await;
    let first = of_message(first.get("Walrelay-Position").expect("a position").as_str());
    assert_eq!(
        string(&spans[0].attributes, "walrelay.position.first"),
        Some(first)
    );
    // Nothing of a row but its trace.
    let all = format!("{:?}", receiver.resources());
    assert!(!all.contains("payload") && !all.contains("lesson"), "{all}");
}

/// In a stream that is shared a fence stands before it.
async fn first_event(platform: &Platform) -> u64 {
    let stream = platform.stream().await;
    let first = stream.get_first_raw_message_by_subject("outbox.>", 1).await;
    first.expect("an event").sequence
}

#[tokio::test]
async fn a_batch_is_a_span_with_links_to_the_traces_of_its_rows() {
    let receiver = Receiver::start(Mood::Takes).await;
    spans_of_mode("fast-ingest", &receiver, &receiver.url(), async |_| {}).await;
}

#[tokio::test]
async fn in_a_shared_stream_too() {
    let receiver = Receiver::start(Mood::Takes).await;
    let share = async |platform: &mut Platform| {
        platform.set("WALRELAY_NATS_SHARED", "true");
        platform.set("WALRELAY_NATS_STREAM", "OUTBOX");
        platform
            .jetstream
            .delete_stream("OUTBOX")
            .await
            .expect("deleted");
        platform.expect(&["setup"], 0).await;
    };
    spans_of_mode("atomic", &receiver, &receiver.url(), share).await;
}

#[tokio::test]
async fn links_have_an_end_and_what_finds_no_room_is_counted() {
    let receiver = Receiver::start(Mood::Takes).await;
    let (mut platform, address) = with_traces(&receiver.url()).await;
    platform.set("OTEL_SPAN_LINK_COUNT_LIMIT", "3");
    let traces: Vec<String> = (1..=200).map(traceparent).collect();
    // One commit before the relay runs: few batches.
    insert_traced(&platform, &traces).await;
    let relay = Logged::run(&platform);
    receiver
        .until("all rows are in spans", |it| messages(&it.spans()) == 200)
        .await;
    let spans = receiver.spans();
    assert!(spans.iter().all(|span| span.links.len() <= 3));
    let dropped: u32 = spans.iter().map(|span| span.dropped_links_count).sum();
    assert_eq!(linked(&spans).len() + dropped as usize, 200);
    assert!(dropped > 0);
    let name = "walrelay_otlp_links_dropped_total{relay=\"walrelay\"}";
    let text = get(address, "/metrics").await.expect("metrics").1;
    assert_eq!(scraped(&text)[name], f64::from(dropped));
    relay.stop().await;
}

/// Waits for a sample.
async fn counted(address: std::net::SocketAddr, sample: &str, enough: impl Fn(f64) -> bool) -> f64 {
    let mut last = String::new();
    let counted = async {
        loop {
            if let Some((_, text)) = get(address, "/metrics").await {
                if let Some(value) = scraped(&text).get(sample).copied().filter(|it| enough(*it)) {
                    return value;
                }
                last = text;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    match tokio::time::timeout(LIMIT, counted).await {
        Ok(value) => value,
        Err(_) => panic!("{sample} never gets there:\n{last}"),
    }
}

const FAILED: &str = "walrelay_otlp_exports_failed_total{relay=\"walrelay\",signal=\"traces\"}";
const FAILED_METRICS: &str =
    "walrelay_otlp_exports_failed_total{relay=\"walrelay\",signal=\"metrics\"}";

fn dropped(reason: &str) -> String {
    format!("walrelay_otlp_spans_dropped_total{{relay=\"walrelay\",reason=\"{reason}\"}}")
}

/// A collector in this mood disturbs nothing and is told of once for each signal.
async fn disturbs_nothing(mood: Option<Mood>, reason: Option<&str>) {
    let receiver = Receiver::start(mood.unwrap_or(Mood::Takes)).await;
    let endpoint = match mood {
        Some(_) => receiver.url(),
        // Nobody listens there.
        None => format!("http://{}", free_address()),
    };
    let (platform, address) = exporting(&endpoint).await;
    let relay = Logged::run(&platform);
    for _ in 0..5 {
        platform.insert(10).await;
    }
    platform.wait_for(50).await;
    counted(address, FAILED, |count| count >= 1.0).await;
    counted(address, FAILED_METRICS, |count| count >= 2.0).await;
    if let Some(reason) = reason {
        counted(address, &dropped(reason), |count| count >= 1.0).await;
    }
    platform.insert(10).await;
    platform.wait_for(60).await;
    let log = relay.stop().await;
    assert_eq!(
        log.matches("OTLP: traces cannot be exported").count(),
        1,
        "{log}"
    );
    assert_eq!(
        log.matches("OTLP: metrics cannot be exported").count(),
        1,
        "{log}"
    );
    platform.verify(0).await;
}

#[tokio::test]
async fn a_collector_that_is_away_disturbs_nothing() {
    disturbs_nothing(None, None).await;
}

#[tokio::test]
async fn one_that_is_silent_disturbs_nothing() {
    disturbs_nothing(Some(Mood::Silent), None).await;
}

#[tokio::test]
async fn one_that_refuses_disturbs_nothing() {
    disturbs_nothing(Some(Mood::Refuses), Some("refused")).await;
}

#[tokio::test]
async fn one_that_answers_garbage_disturbs_nothing() {
    disturbs_nothing(Some(Mood::Garbage), Some("refused")).await;
}

#[tokio::test]
async fn one_that_never_ends_its_answer_disturbs_nothing() {
    disturbs_nothing(Some(Mood::Endless), Some("refused")).await;
}

#[tokio::test]
async fn spans_of_a_busy_collector_come_once_it_has_time() {
    let receiver = Receiver::start(Mood::Busy).await;
    let (platform, address) = exporting(&receiver.url()).await;
    let relay = Logged::run(&platform);
    platform.insert(30).await;
    platform.wait_for(30).await;
    counted(address, FAILED, |count| count >= 2.0).await;
    receiver.set(Mood::Takes);
    receiver
        .until("all rows are in spans", |it| messages(&it.spans()) == 30)
        .await;
    let exported = "walrelay_otlp_spans_exported_total{relay=\"walrelay\"}";
    let spans = receiver.spans().len() as f64;
    counted(address, exported, |count| count == spans).await;
    let log = relay.stop().await;
    assert_eq!(
        log.matches("OTLP: traces are exported again").count(),
        1,
        "{log}"
    );
    assert_eq!(
        log.matches("OTLP: traces cannot be exported").count(),
        1,
        "{log}"
    );
}

#[tokio::test]
async fn what_a_collector_refuses_in_part_is_counted() {
    let receiver = Receiver::start(Mood::RefusesInPart).await;
    let (platform, address) = exporting(&receiver.url()).await;
    let relay = Logged::run(&platform);
    platform.insert(1).await;
    platform.wait_for(1).await;
    counted(address, &dropped("refused"), |count| count == 1.0).await;
    let log = relay.stop().await;
    assert!(
        log.contains("the collector refuses 1 spans: no room"),
        "{log}"
    );
}

#[tokio::test]
async fn the_queue_has_an_end() {
    let (mut platform, address) = exporting(&format!("http://{}", free_address())).await;
    platform.set("OTEL_BSP_MAX_QUEUE_SIZE", "2");
    let relay = Logged::run(&platform);
    for number in 1..=40 {
        platform.insert(1).await;
        platform.wait_for(number).await;
    }
    counted(address, &dropped("queue-full"), |count| count >= 1.0).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_stop_exports_what_is_left_and_does_not_wait_for_ever() {
    let receiver = Receiver::start(Mood::Takes).await;
    let (mut platform, _) = exporting(&receiver.url()).await;
    platform.set("OTEL_METRIC_EXPORT_INTERVAL", "3600000");
    platform.set("OTEL_BSP_SCHEDULE_DELAY", "3600000");
    let relay = Logged::run(&platform);
    platform.insert(7).await;
    platform.wait_for(7).await;
    assert_eq!(messages(&receiver.spans()), 0);
    relay.stop().await;
    assert_eq!(messages(&receiver.spans()), 7);
    let last = exported(&receiver.metrics().expect("an export"));
    assert_eq!(
        last["walrelay_events_acknowledged_total{relay=\"walrelay\"}"],
        7.0
    );

    receiver.set(Mood::Silent);
    platform.set("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000");
    let relay = Logged::run(&platform);
    platform.insert(3).await;
    platform.wait_for(10).await;
    let log = relay.stop().await;
    assert!(
        log.contains("what was still to be exported was not taken within 5s"),
        "{log}"
    );
}

#[tokio::test]
async fn a_batch_without_an_acknowledgement_ends_with_the_fault() {
    let receiver = Receiver::start(Mood::Takes).await;
    let (mut platform, address) = exporting(&receiver.url()).await;
    // Nothing is confirmed, so no probe is under way that would be missed first.
    platform.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    platform.set("WALRELAY_RELAY_ACK_TIMEOUT", "500ms");
    let relay = Logged::run(&platform);
    platform.insert(1).await;
    let acknowledged = "walrelay_events_acknowledged_total{relay=\"walrelay\"}";
    counted(address, acknowledged, |count| count == 1.0).await;
    platform.nats.pause();
    platform.insert(5).await;
    let failed = |it: &Receiver| it.spans().iter().any(|span| span.status.is_some());
    receiver.until("a span has failed", failed).await;
    platform.nats.resume();
    platform.wait_for(6).await;
    let whole = |it: &Receiver| {
        let spans = it.spans().into_iter();
        let whole: Vec<Span> = spans.filter(|span| span.status.is_none()).collect();
        messages(&whole) == 6
    };
    // What the server had read before it was paused is found stored and has the failed span alone.
    let stored = |it: &Receiver| messages(&it.spans()) == 6 && failed(it);
    receiver
        .until("all rows are told of", |it| whole(it) || stored(it))
        .await;
    let spans = receiver.spans();
    let failed = spans.iter().find(|span| span.status.is_some());
    let failed = failed.expect("failed");
    let status = failed.status.as_ref().expect("a status");
    assert_eq!(status.code, i32::from(StatusCode::Error));
    let reason = string(&failed.attributes, "error.type").expect("a reason");
    assert_eq!(reason, status.message);
    let text = get(address, "/metrics").await.expect("metrics").1;
    let known = format!("side=\"nats\",reason=\"{reason}\"");
    assert!(text.contains(&known), "{reason} is not in {text}");
    relay.stop().await;
}

#[tokio::test]
async fn tls_is_checked_and_headers_reach_the_collector_alone() {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let own = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("a key");
    let config = ServerConfig::builder_with_provider(walrelay::tls::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .expect("a pair");
    let receiver = Receiver::with_tls(config).await;
    let endpoint = format!("https://{}", receiver.address);
    let (mut platform, _) = exporting(&endpoint).await;
    platform.set(
        "OTEL_EXPORTER_OTLP_HEADERS",
        "authorization=Bearer%20hunter2",
    );
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, own.cert.pem()).expect("written");

    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("another");
    let stranger = folder.path().join("stranger.pem");
    std::fs::write(&stranger, other.cert.pem()).expect("written");
    let refused = tls_run(&mut platform, &stranger, async |_| {
        platform_is_quiet(&receiver);
    });
    let log = refused.await;
    assert!(log.contains("OTLP: traces cannot be exported"), "{log}");
    assert_eq!(receiver.attempts(), 0);
    assert!(!log.contains("hunter2"), "{log}");

    let log = tls_run(&mut platform, &file, async |_| {
        receiver
            .until("spans come", |it| !it.spans().is_empty())
            .await;
    })
    .await;
    assert!(
        !log.contains("cannot be exported") && !log.contains("hunter2"),
        "{log}"
    );
    let headers = receiver.headers();
    assert!(
        headers
            .iter()
            .all(|headers| headers["authorization"] == "Bearer hunter2")
    );

    platform.set("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem");
    let text = platform.expect(&["run"], 1).await;
    assert!(text.contains("/nowhere.pem"), "{text}");
}

fn platform_is_quiet(receiver: &Receiver) {
    assert!(receiver.spans().is_empty());
}

/// Runs with this authority for long enough to publish one event and for what is waited for.
async fn tls_run(
    platform: &mut Platform,
    authority: &Path,
    until: impl AsyncFn(&Platform),
) -> String {
    let path = authority.to_str().expect("UTF-8");
    platform.set("OTEL_EXPORTER_OTLP_CERTIFICATE", path);
    let before = platform.last_sequence().await;
    let relay = Logged::run(platform);
    platform.insert(1).await;
    platform.wait_for(before + 1).await;
    until(platform).await;
    relay.stop().await
}

#[tokio::test]
async fn what_cannot_work_is_refused_before_anything_begins() {
    let mut platform = Platform::servers().await;
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
    ] {
        platform.set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        platform.set(name, value);
        let text = platform.expect(&["run"], 2).await;
        assert!(text.contains(name) && !text.contains("hunter2"), "{text}");
        platform.environment.retain(|(known, _)| *known != name);
    }
}
