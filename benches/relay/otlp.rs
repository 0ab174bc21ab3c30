//! What the export by OTLP costs the relay: a build without it, one with it that exports nothing, and one that exports metrics and
//! spans to a collector at the default intervals, in turns. The collector throws away what it takes.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::child::{Child, peak_mib};
use crate::drain::{filled, ratios};
use crate::lane::{Lane, PAYLOAD};
use crate::latency::Writer;
use crate::report::{Cell, Report, median, spread};
use crate::servers::Servers;

#[path = "../../tests/otlp/rotel.rs"]
mod rotel;

/// Names a build without the feature.
const WITHOUT: &str = "WALRELAY_BENCH_WITHOUT_OTLP";
/// Rows of a transaction of the backlog.
const ROWS: u64 = 10;
/// Transactions a second, one row each; so nearly each is a batch, and so a span.
const RATE: u32 = 2_000;
/// Metrics are exported once a minute, and at both ends.
const STEADY_MAX: Duration = Duration::from_secs(65);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(30);

/// A trace of its own for each row.
const TRACES: &str = "ALTER TABLE outbox_events ADD COLUMN traceparent text \
                      DEFAULT '00-' || md5(random()::text) || '-' || left(md5(random()::text), 16) || '-01'";

/// A build, and whether it exports.
struct Way {
    name: &'static str,
    program: Option<PathBuf>,
    exports: bool,
}

/// One life of a relay. Its CPU is that of its whole life: spans leave until the end.
struct Life {
    cpu_us_an_event: Option<f64>,
    rate: f64,
    peak_mib: Option<f64>,
}

/// A backlog without traces, the same with links to them, and single rows at a fixed rate.
pub async fn export(
    servers: &Servers,
    events: u64,
    rounds: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    anyhow::ensure!(
        cfg!(feature = "otlp"),
        "built without the feature otlp: make bench-otlp"
    );
    let without = std::env::var_os(WITHOUT);
    let without = without.with_context(|| format!("{WITHOUT} names no build: make bench-otlp"))?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let collector = collector(address).await?;
    let ways = [
        Way {
            name: "built without it",
            program: Some(without.into()),
            exports: false,
        },
        Way {
            name: "built with it, nothing exported",
            program: None,
            exports: false,
        },
        Way {
            name: "metrics and spans exported",
            program: None,
            exports: true,
        },
    ];
    let endpoint = format!("http://{address}");
    for traced in [false, true] {
        backlog(servers, events, rounds, traced, &ways, &endpoint, report).await?;
    }
    let lasts = Duration::from_secs(events / u64::from(RATE)).min(STEADY_MAX);
    steady(servers, lasts, rounds, &ways, &endpoint, report).await?;
    collector.stop().await?;
    Ok(())
}

async fn collector(address: SocketAddr) -> anyhow::Result<Child> {
    let collector = Child::spawn(rotel::command(address, None))?;
    while !rotel::listens(address) {
        anyhow::ensure!(
            collector.spawned.elapsed() < LIMIT,
            "the collector does not listen"
        );
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(collector)
}

fn environment(way: &Way, traced: bool, endpoint: &str) -> Vec<(&'static str, String)> {
    let mut environment = Vec::new();
    if traced {
        let headers = "{ traceparent = 'traceparent' }".to_owned();
        environment.push(("WALRELAY_MESSAGE_HEADERS", headers));
    }
    if way.exports {
        environment.push(("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.to_owned()));
    }
    environment
}

/// A relay that streams, with a slot and a stream of its own.
struct Run {
    relay: Child,
    slot: String,
    stream: String,
}

impl Run {
    async fn begin(lane: &Lane<'_>, slot: String, stream: String) -> anyhow::Result<Run> {
        lane.setup(&slot, &stream)?;
        let mut relay = lane.run(&slot, &stream).await?;
        relay.streaming_after().await?;
        Ok(Run {
            relay,
            slot,
            stream,
        })
    }

    /// Once the stream has so many events, which have come since `begin`.
    async fn end(self, lane: &Lane<'_>, events: u64, begin: Instant) -> anyhow::Result<Life> {
        filled(lane.servers, &self.stream, events).await?;
        let rate = events as f64 / begin.elapsed().as_secs_f64();
        let peak_mib = peak_mib(self.relay.pid());
        let log = self.relay.log();
        anyhow::ensure!(!log.contains("cannot be exported"), "{log}");
        let cpu_us = self.relay.stop().await?;
        lane.drop_slot(&self.slot).await?;
        lane.servers.jetstream.delete_stream(&self.stream).await?;
        Ok(Life {
            cpu_us_an_event: cpu_us.map(|us| us / events as f64),
            rate,
            peak_mib,
        })
    }
}

/// The lives of each way, in turns; each has a name of its own.
async fn in_turns(
    lane: &mut Lane<'_>,
    rounds: usize,
    traced: bool,
    ways: &[Way; 3],
    endpoint: &str,
    mut live: impl AsyncFnMut(&mut Lane<'_>, String) -> anyhow::Result<Life>,
) -> anyhow::Result<[Vec<Life>; 3]> {
    let mut lives: [Vec<Life>; 3] = Default::default();
    for round in 0..rounds {
        for (index, (way, lives)) in ways.iter().zip(&mut lives).enumerate() {
            lane.program.clone_from(&way.program);
            lane.environment = environment(way, traced, endpoint);
            let name = format!("{}_{round}_{index}", lane.name);
            lives.push(live(lane, name).await?);
        }
    }
    Ok(lives)
}

async fn backlog(
    servers: &Servers,
    events: u64,
    rounds: usize,
    traced: bool,
    ways: &[Way; 3],
    endpoint: &str,
    report: &mut Report,
) -> anyhow::Result<()> {
    let what = if traced { "a trace each" } else { "no trace" };
    eprintln!("export by OTLP: backlog of {events} events, {what}: filling");
    let mut lane = Lane::new(servers, &format!("otlp_{traced}")).await?;
    if traced {
        lane.sql.batch_execute(TRACES).await?;
    }
    lane.fill(events, ROWS, PAYLOAD).await?;
    let lives = in_turns(
        &mut lane,
        rounds,
        traced,
        ways,
        endpoint,
        async |lane, name| {
            let slot = lane.slot().await?;
            let run = Run::begin(lane, slot, name.to_uppercase()).await?;
            let begin = run.relay.spawned;
            run.end(lane, events, begin).await
        },
    );
    rows(report, &format!("backlog, {what}"), ways, &lives.await?);
    lane.close().await
}

async fn steady(
    servers: &Servers,
    lasts: Duration,
    rounds: usize,
    ways: &[Way; 3],
    endpoint: &str,
    report: &mut Report,
) -> anyhow::Result<()> {
    eprintln!(
        "export by OTLP: {RATE} transactions a second, {} times {lasts:?}",
        3 * rounds
    );
    let mut lane = Lane::new(servers, "otlp_steady").await?;
    lane.sql.batch_execute(TRACES).await?;
    let lives = in_turns(
        &mut lane,
        rounds,
        true,
        ways,
        endpoint,
        async |lane, name| {
            // The slot in front of what comes now: each round has the whole of its own load and nothing else.
            let make = "SELECT lsn::text FROM pg_create_logical_replication_slot($1, 'pgoutput')";
            lane.sql.query_one(make, &[&name]).await?;
            let stream = name.to_uppercase();
            let run = Run::begin(lane, name, stream).await?;
            let begin = Instant::now();
            let written = Writer::start(lane, RATE, 8, lasts).await?.end().await?;
            run.end(lane, written.len() as u64, begin).await
        },
    );
    let what = format!("{RATE} transactions/s wanted, a trace each");
    rows(report, &what, ways, &lives.await?);
    lane.close().await
}

fn rows(report: &mut Report, load: &str, ways: &[Way; 3], lives: &[Vec<Life>; 3]) {
    let cpu = |lives: &[Life]| -> Option<Vec<f64>> {
        lives.iter().map(|life| life.cpu_us_an_event).collect()
    };
    let rate = |lives: &[Life]| -> Vec<f64> { lives.iter().map(|life| life.rate).collect() };
    let header = [
        "load",
        "walrelay",
        "relay CPU, µs an event",
        "spread",
        "to a build without it",
        "events/s",
        "to a build without it",
        "peak memory, MiB",
    ];
    for (way, of_way) in ways.iter().zip(lives) {
        let ours = cpu(of_way);
        let to_without = (ours.as_ref().zip(cpu(&lives[0])))
            .map(|(ours, without)| median(&ratios(ours, &without)));
        let rates = rate(of_way);
        let peaks = of_way.iter().filter_map(|life| life.peak_mib);
        report.table("The export by OTLP", &header).push(vec![
            Cell::text(load.to_owned()),
            Cell::text(way.name.to_owned()),
            Cell::maybe(ours.as_deref().map(median), 2),
            Cell::text(ours.as_deref().map_or_else(String::new, spread)),
            Cell::maybe(to_without, 2),
            Cell::rate(median(&rates)),
            Cell::number(median(&ratios(&rates, &rate(&lives[0]))), 2),
            Cell::number(peaks.fold(0.0, f64::max), 1),
        ]);
    }
}
