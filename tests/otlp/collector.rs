//! The same through a collector that others wrote, which hands on what it takes to the receiver.
//!
//! It keeps what it has understood in types of its own and writes it anew, so what it does not understand does not get through.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Stdio;

use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric};
use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::process::{Child, Command};

use super::platform::Platform;
use super::receiver::{Mood, Receiver};
use super::site::free_address;
use super::{
    FAILED, FAILED_METRICS, LIMIT, Logged, POLL_INTERVAL, counted, exported, exporting,
    insert_traced, linked, messages, rotel, same_as_exposition, spans_of_mode, string, terminate,
    traceparent, with_traces,
};

/// rotel, between a relay and a receiver.
struct Collector {
    child: Child,
    address: SocketAddr,
}

impl Collector {
    async fn start(receiver: &Receiver) -> Collector {
        Collector::start_at(free_address(), receiver).await
    }

    async fn start_at(address: SocketAddr, receiver: &Receiver) -> Collector {
        let mut command = Command::from(rotel::command(address, Some(&receiver.url())));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("the collector starts");
        let listening = async {
            while !rotel::listens(address) {
                let ended = child.try_wait().expect("waited for");
                assert!(ended.is_none(), "the collector ends: {ended:?}");
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        let listening = tokio::time::timeout(LIMIT, listening).await;
        listening.expect("the collector listens");
        Collector { child, address }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// It hands on what it has, and ends.
    async fn stop(mut self) {
        terminate(&self.child);
        let status = tokio::time::timeout(LIMIT, self.child.wait()).await;
        let status = status.expect("it stops in time").expect("waited for");
        assert_eq!(status.code(), Some(0));
    }
}

/// Kind and help of each family, by the name that the exposition has for it.
type Families = BTreeMap<String, (&'static str, String)>;

fn families_of_exposition(text: &str) -> Families {
    let after = |line: &str, word: &str| {
        let (name, rest) = line.strip_prefix(word)?.split_once(' ')?;
        Some((name.to_owned(), rest.to_owned()))
    };
    let helps = text.lines().filter_map(|line| after(line, "# HELP "));
    let kinds = text.lines().filter_map(|line| after(line, "# TYPE "));
    let kinds: BTreeMap<String, String> = kinds.collect();
    let family = |(name, help): (String, String)| {
        let kind = match kinds[&name].as_str() {
            "counter" => "counter",
            "gauge" => "gauge",
            "histogram" => "histogram",
            other => panic!("{name} is a {other}"),
        };
        (name, (kind, help))
    };
    helps.map(family).collect()
}

fn families_of_export<'a>(metrics: impl Iterator<Item = &'a Metric>) -> Families {
    let family = |metric: &Metric| {
        let (kind, total) = match metric.data.as_ref().expect("data") {
            metric::Data::Sum(_) => ("counter", "_total"),
            metric::Data::Gauge(_) => ("gauge", ""),
            metric::Data::Histogram(_) => ("histogram", ""),
            other => panic!("{}: {other:?}", metric.name),
        };
        let name = format!("{}{total}", metric.name);
        (name, (kind, metric.description.clone()))
    };
    metrics.map(family).collect()
}

/// Who the relay says that it is, as [`as_orders`] has it.
fn is_of_orders(resource: Option<&Resource>, scope: Option<&InstrumentationScope>) {
    let attributes: &[KeyValue] = &resource.expect("a resource").attributes;
    for (key, value) in [
        ("service.name", "orders-relay"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("deployment.environment.name", "prod,1"),
    ] {
        assert_eq!(string(attributes, key).as_deref(), Some(value), "{key}");
    }
    assert!(string(attributes, "service.instance.id").is_some());
    let scope = scope.expect("a scope");
    assert_eq!(scope.name, "walrelay");
    assert_eq!(scope.version, env!("CARGO_PKG_VERSION"));
}

/// A relay with a name that may export at leisure: what it sends again would come twice.
fn as_orders(platform: &mut Platform) {
    platform.set("OTEL_SERVICE_NAME", "orders-relay");
    let attributes = "deployment.environment.name=prod%2C1";
    platform.set("OTEL_RESOURCE_ATTRIBUTES", attributes);
    platform.set("OTEL_EXPORTER_OTLP_TIMEOUT", "10000");
}

#[tokio::test]
#[ignore = "needs a collector: make otlp"]
async fn metrics_behind_it_are_those_of_the_exposition() {
    let receiver = Receiver::start(Mood::Takes).await;
    let collector = Collector::start(&receiver).await;
    let (mut platform, address) = exporting(&collector.url()).await;
    as_orders(&mut platform);
    let relay = Logged::run(&platform);
    platform.insert(20).await;
    platform.wait_for(20).await;
    let (text, request) = same_as_exposition(address, &receiver, 20).await;
    let resources = &request.resource_metrics;
    let scopes = || resources.iter().flat_map(|it| &it.scope_metrics);
    let metrics = scopes().flat_map(|scope| &scope.metrics);
    assert_eq!(families_of_export(metrics), families_of_exposition(&text));
    for metrics in resources {
        for scope in &metrics.scope_metrics {
            is_of_orders(metrics.resource.as_ref(), scope.scope.as_ref());
        }
    }
    assert!(scopes().next().is_some());
    relay.stop().await;
    collector.stop().await;
}

#[tokio::test]
#[ignore = "needs a collector: make otlp"]
async fn spans_behind_it_are_linked_to_the_traces_of_their_rows() {
    let receiver = Receiver::start(Mood::Takes).await;
    let collector = Collector::start(&receiver).await;
    let prepare = async |platform: &mut Platform| as_orders(platform);
    spans_of_mode("fast-ingest", &receiver, &collector.url(), prepare).await;
    for spans in receiver.resources() {
        for scope in &spans.scope_spans {
            is_of_orders(spans.resource.as_ref(), scope.scope.as_ref());
        }
    }
    collector.stop().await;
}

#[tokio::test]
#[ignore = "needs a collector: make otlp"]
async fn it_may_come_late_go_away_and_come_back() {
    let receiver = Receiver::start(Mood::Takes).await;
    let at = free_address();
    let (mut platform, address) = with_traces(&format!("http://{at}")).await;
    as_orders(&mut platform);
    let relay = Logged::run(&platform);
    let traces: Vec<String> = (1..=30).map(traceparent).collect();
    let told = async |count: usize| {
        let rows = |it: &Receiver| messages(&it.spans()) == count as u64;
        receiver.until("all rows are in spans", rows).await;
    };
    insert_traced(&platform, &traces[..10]).await;
    platform.wait_for(10).await;
    counted(address, FAILED, |count| count >= 1.0).await;
    counted(address, FAILED_METRICS, |count| count >= 1.0).await;

    let collector = Collector::start_at(at, &receiver).await;
    told(10).await;
    insert_traced(&platform, &traces[10..20]).await;
    told(20).await;

    collector.stop().await;
    let before = counted(address, FAILED, |_| true).await;
    insert_traced(&platform, &traces[20..]).await;
    platform.wait_for(30).await;
    counted(address, FAILED, |count| count > before).await;
    let collector = Collector::start_at(at, &receiver).await;
    told(30).await;
    let exported = "walrelay_otlp_spans_exported_total{relay=\"walrelay\"}";
    let spans = receiver.spans().len() as f64;
    counted(address, exported, |count| count == spans).await;
    same_as_exposition(address, &receiver, 30).await;

    let log = relay.stop().await;
    let times = |text: &str| log.matches(text).count();
    for signal in ["metrics", "traces"] {
        let away = format!("OTLP: {signal} cannot be exported");
        let back = format!("OTLP: {signal} are exported again");
        assert_eq!((times(&away), times(&back)), (2, 2), "{log}");
    }
    let mut found = linked(&receiver.spans());
    found.sort();
    assert_eq!(found, traces);
    collector.stop().await;
}

#[tokio::test]
#[ignore = "needs a collector: make otlp"]
async fn a_stop_hands_it_what_is_left() {
    let receiver = Receiver::start(Mood::Takes).await;
    let collector = Collector::start(&receiver).await;
    let (mut platform, address) = with_traces(&collector.url()).await;
    as_orders(&mut platform);
    platform.set("OTEL_METRIC_EXPORT_INTERVAL", "3600000");
    platform.set("OTEL_BSP_SCHEDULE_DELAY", "3600000");
    let relay = Logged::run(&platform);
    let traces: Vec<String> = (1..=7).map(traceparent).collect();
    insert_traced(&platform, &traces).await;
    let acknowledged = "walrelay_events_acknowledged_total{relay=\"walrelay\"}";
    counted(address, acknowledged, |count| count == 7.0).await;
    assert_eq!(messages(&receiver.spans()), 0);
    relay.stop().await;
    collector.stop().await;
    assert_eq!(linked(&receiver.spans()), traces);
    assert_eq!(messages(&receiver.spans()), 7);
    let last = exported(&receiver.metrics().expect("an export"));
    assert_eq!(last[acknowledged], 7.0);
}
