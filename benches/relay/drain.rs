//! A backlog drained by walrelay and by `pg_recvlogical -f /dev/null`, in turns.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use walrelay::pipeline::publish::Mode;

use crate::child::{Child, cpu_us, peak_mib};
use crate::lane::{Lane, PAYLOAD, payload};
use crate::peer;
use crate::publish;
use crate::report::{Cell, Report, median, spread};
use crate::servers::Servers;

/// How often the stream's length is asked for: a request a turn of this, which costs the server nothing to speak of.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(300);
/// What an envelope adds to a payload, in bytes.
const ENVELOPE_BYTES: usize = 220;

/// What one drain took.
pub struct Drained {
    pub seconds: f64,
    pub cpu_us: Option<f64>,
    pub peak_mib: Option<f64>,
    pub nats_cpu_us: Option<f64>,
    pub walsender_cpu_us: Option<f64>,
}

impl Drained {
    /// CPU time in microseconds of the relay, the walsender and nats-server, where the system tells all of it.
    fn costs(&self) -> Option<[f64; 3]> {
        Some([self.cpu_us?, self.walsender_cpu_us?, self.nats_cpu_us?])
    }
}

/// Waits until the stream holds so many events.
pub async fn filled(servers: &Servers, stream: &str, events: u64) -> anyhow::Result<()> {
    let begin = Instant::now();
    let found = servers.jetstream.get_stream(stream).await?;
    loop {
        // A shared stream has messages of the lane itself too.
        let subjects = found.info_with_subjects(">").await?;
        let counts = subjects.try_fold(0, async |sum, (subject, count)| {
            let is_event = !subject.starts_with("walrelay.");
            Ok(sum + if is_event { count as u64 } else { 0 })
        });
        if counts.await? >= events {
            return Ok(());
        }
        anyhow::ensure!(begin.elapsed() < LIMIT, "stream {stream} does not fill");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Drains by walrelay, from the start of the process to the last message in the stream.
pub async fn by_walrelay(
    lane: &mut Lane<'_>,
    stream: &str,
    events: u64,
) -> anyhow::Result<Drained> {
    let slot = lane.slot().await?;
    lane.setup(&slot, stream)?;
    let nats_pid = lane.servers.nats.pid().context("nats-server runs")?;
    let nats_before = cpu_us(nats_pid);
    let mut child = lane.run(&slot, stream).await?;
    child.streaming_after().await?;
    let walsender = lane.walsender_pid().await?;
    filled(lane.servers, stream, events).await?;
    let seconds = child.spawned.elapsed().as_secs_f64();
    let drained = Drained {
        seconds,
        cpu_us: cpu_us(child.pid()),
        peak_mib: peak_mib(child.pid()),
        nats_cpu_us: nats_before
            .zip(cpu_us(nats_pid))
            .map(|(before, after)| after - before),
        walsender_cpu_us: walsender.and_then(cpu_us),
    };
    child.stop().await?;
    lane.drop_slot(&slot).await?;
    Ok(drained)
}

/// Drains by pg_recvlogical into /dev/null, from its start to its end; seconds and its CPU time.
pub async fn by_pg_recvlogical(lane: &mut Lane<'_>) -> anyhow::Result<(f64, Option<f64>)> {
    let slot = lane.slot().await?;
    let mut command = Command::new(lane.servers.postgres.bin("pg_recvlogical"));
    command
        .args([
            "--start",
            "--no-loop",
            "-f",
            "/dev/null",
            "--fsync-interval=0",
        ])
        .args(["--dbname", &lane.url()])
        .args(["--slot", &slot, "--endpos", &lane.end_lsn])
        .args([
            "-o",
            "proto_version=1",
            "-o",
            &format!("publication_names={}", lane.name),
        ]);
    let (took, cpu) = Child::spawn(command)?.ended().await?;
    lane.drop_slot(&slot).await?;
    Ok((took.as_secs_f64(), cpu))
}

/// Of each round, so that what the machine did in it falls on both.
pub fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter()
        .zip(theirs)
        .map(|(ours, theirs)| ours / theirs)
        .collect()
}

pub fn per_event(values: &[Drained], events: u64, of: impl Fn(&Drained) -> Option<f64>) -> Cell {
    let values: Option<Vec<f64>> = values.iter().map(of).collect();
    Cell::maybe(values.map(|values| median(&values) / events as f64), 2)
}

/// One shape of transactions, interleaved rounds.
pub async fn backlog(
    servers: &Servers,
    events: u64,
    rows: u64,
    rounds: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    eprintln!("backlog of {events} events, {rows} a transaction: filling");
    let mut lane = Lane::new(servers, &format!("rows{rows}")).await?;
    lane.fill(events, rows, PAYLOAD).await?;
    let (mut ours, mut theirs, mut theirs_cpu) = (Vec::new(), Vec::new(), Vec::new());
    let mut peers = Vec::new();
    let has_peer = peer::version().is_some();
    for round in 0..rounds {
        let stream = format!("ROWS{rows}_{round}");
        ours.push(by_walrelay(&mut lane, &stream, events).await?);
        let (seconds, cpu) = by_pg_recvlogical(&mut lane).await?;
        theirs.push(seconds);
        theirs_cpu.extend(cpu);
        eprintln!(
            "  walrelay {:.2} s, pg_recvlogical {seconds:.2} s",
            ours.last().map_or(0.0, |drained| drained.seconds)
        );
        if rows == 10 && round + 1 == rounds {
            let took = starts(&mut lane, &stream, events).await?;
            report_starts(report, "plain", events, &took);
        }
        servers.jetstream.delete_stream(&stream).await?;
        if has_peer {
            peers.push(peer::drain(&mut lane, events).await?);
        }
    }
    let rates = |seconds: &[f64]| {
        seconds
            .iter()
            .map(|seconds| events as f64 / seconds)
            .collect::<Vec<_>>()
    };
    let our_seconds: Vec<f64> = ours.iter().map(|drained| drained.seconds).collect();
    let (our_rates, their_rates) = (rates(&our_seconds), rates(&theirs));
    let table = report.table(
        "Draining a backlog",
        &[
            "rows a transaction",
            "walrelay, events/s",
            "spread",
            "pg_recvlogical, events/s",
            "spread",
            "ratio",
            "relay CPU, µs an event",
            "walsender CPU",
            "nats-server CPU",
            "pg_recvlogical CPU",
            "peak memory, MiB",
        ],
    );
    table.push(vec![
        Cell::count(rows),
        Cell::rate(median(&our_rates)),
        Cell::text(spread(&our_rates)),
        Cell::rate(median(&their_rates)),
        Cell::text(spread(&their_rates)),
        Cell::number(median(&ratios(&our_rates, &their_rates)), 2),
        per_event(&ours, events, |drained| drained.cpu_us),
        per_event(&ours, events, |drained| drained.walsender_cpu_us),
        per_event(&ours, events, |drained| drained.nats_cpu_us),
        Cell::maybe(
            (!theirs_cpu.is_empty()).then(|| median(&theirs_cpu) / events as f64),
            2,
        ),
        Cell::maybe(
            ours.iter()
                .map(|drained| drained.peak_mib)
                .collect::<Option<Vec<_>>>()
                .map(|peaks| peaks.into_iter().fold(0.0, f64::max)),
            1,
        ),
    ]);
    if has_peer {
        let seconds: Vec<f64> = peers.iter().map(|drained| drained.seconds).collect();
        peer_row(report, rows, events, &our_rates, &rates(&seconds), &peers);
    }
    report.bar(
        &format!("walrelay, {rows} a transaction"),
        median(&our_rates),
    );
    report.bar(
        &format!("pg_recvlogical, {rows} a transaction"),
        median(&their_rates),
    );
    lane.close().await
}

fn peer_row(
    report: &mut Report,
    rows: u64,
    events: u64,
    our_rates: &[f64],
    rates: &[f64],
    peers: &[Drained],
) {
    let header = [
        "rows a transaction",
        "mq-bridge, events/s",
        "spread",
        "walrelay to it",
        "its CPU, µs an event",
        "its peak memory, MiB",
    ];
    let peak = peers.iter().filter_map(|peer| peer.peak_mib);
    report.table("Beside mq-bridge", &header).push(vec![
        Cell::count(rows),
        Cell::rate(median(rates)),
        Cell::text(spread(rates)),
        Cell::number(median(&ratios(our_rates, rates)), 1),
        per_event(peers, events, |peer| peer.cpu_us),
        Cell::number(peak.fold(0.0, f64::max), 1),
    ]);
    report.bar(&format!("mq-bridge, {rows} a transaction"), median(rates));
}

/// Starts on the stream that the backlog has filled; milliseconds of the process' start to streaming.
pub async fn starts(lane: &mut Lane<'_>, stream: &str, events: u64) -> anyhow::Result<Vec<f64>> {
    let slot = lane.name.clone() + "_0";
    let mut took = Vec::new();
    // By the slot that has published nothing: it has to find the other one's lane foreign, so its own stream is used.
    let own = format!("{stream}_START");
    lane.setup(&slot, &own)?;
    let child = lane.run(&slot, &own).await?;
    filled(lane.servers, &own, events).await?;
    child.stop().await?;
    for _ in 0..7 {
        let mut child = lane.run(&slot, &own).await?;
        took.push(child.streaming_after().await?.as_secs_f64() * 1_000.0);
        child.stop().await?;
    }
    lane.servers.jetstream.delete_stream(&own).await?;
    Ok(took)
}

pub fn report_starts(report: &mut Report, how: &str, events: u64, took: &[f64]) {
    let header = [
        "connections",
        "messages in the stream",
        "median, ms",
        "spread",
    ];
    report
        .table("Process start to streaming", &header)
        .push(vec![
            Cell::text(how.to_owned()),
            Cell::count(events),
            Cell::number(median(took), 0),
            Cell::text(spread(took)),
        ]);
}

/// Of the relay, the walsender and nats-server, in the order of [`Drained::costs`].
fn cost(costs: &[[f64; 3]], who: usize) -> Option<f64> {
    let values: Vec<f64> = costs.iter().map(|costs| costs[who]).collect();
    (!values.is_empty()).then(|| median(&values))
}

/// What all cores could do if they never waited.
fn allowed(costs: &[[f64; 3]]) -> Option<f64> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let all: f64 = (0..3).filter_map(|who| cost(costs, who)).sum();
    (!costs.is_empty()).then_some(cores as f64 * 1e6 / all)
}

fn memory_row(report: &mut Report, what: &str, events: u64, drained: &Drained, bytes: u64) {
    report
        .table(
            "Peak memory",
            &["load", "events", "events/s", "MB/s", "peak memory, MiB"],
        )
        .push(vec![
            Cell::text(what.to_owned()),
            Cell::count(events),
            Cell::rate(events as f64 / drained.seconds),
            Cell::number((events * bytes) as f64 / drained.seconds / 1e6, 0),
            Cell::maybe(drained.peak_mib, 1),
        ]);
}

/// One transaction of everything.
pub async fn one_transaction(
    servers: &Servers,
    events: u64,
    report: &mut Report,
) -> anyhow::Result<()> {
    eprintln!("one transaction of {events} events");
    let mut lane = Lane::new(servers, "huge").await?;
    lane.fill(events, events, PAYLOAD).await?;
    let drained = by_walrelay(&mut lane, "HUGE", events).await?;
    servers.jetstream.delete_stream("HUGE").await?;
    memory_row(
        report,
        "one transaction of all",
        events,
        &drained,
        PAYLOAD.len() as u64,
    );
    lane.close().await
}

/// Events close to what nats-server takes.
pub async fn large_events(
    servers: &Servers,
    events: u64,
    report: &mut Report,
) -> anyhow::Result<()> {
    let bytes = 900_000;
    eprintln!("{events} events of {bytes} bytes");
    let mut lane = Lane::new(servers, "large").await?;
    lane.fill(events, 1, &payload(bytes)).await?;
    let drained = by_walrelay(&mut lane, "LARGE", events).await?;
    servers.jetstream.delete_stream("LARGE").await?;
    memory_row(report, "events of 900 KB", events, &drained, bytes as u64);
    lane.close().await
}

/// Payloads from 100 bytes to 100 KB.
pub async fn sizes(
    servers: &Servers,
    events: u64,
    rounds: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    for bytes in [100_u64, 1_000, 10_000, 100_000] {
        // Some times as many bytes as the usual backlog has, within reason: a start must not count.
        let events = (events * 600 / bytes).clamp(500, events / 2 + 1);
        eprintln!("{events} events of {bytes} bytes");
        let mut lane = Lane::new(servers, &format!("size{bytes}")).await?;
        lane.fill(events, 10, &payload(bytes as usize)).await?;
        let (mut ours, mut theirs, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        let mut costs = Vec::new();
        for round in 0..rounds {
            let stream = format!("SIZE{bytes}_{round}");
            let megabytes = (events * bytes) as f64 / 1e6;
            let drained = by_walrelay(&mut lane, &stream, events).await?;
            ours.push(megabytes / drained.seconds);
            costs.extend(drained.costs().map(|costs| costs.map(|us| us / megabytes)));
            theirs.push(megabytes / by_pg_recvlogical(&mut lane).await?.0);
            servers.jetstream.delete_stream(&stream).await?;
            let body_bytes = bytes as usize + ENVELOPE_BYTES;
            let published =
                publish::bare(&mut lane, Mode::FastIngest, &stream, events, body_bytes).await?;
            bare.push(megabytes / published);
        }
        report
            .table(
                "Size of events",
                &[
                    "payload, bytes",
                    "events",
                    "walrelay, MB/s",
                    "spread",
                    "pg_recvlogical, MB/s",
                    "spread",
                    "ratio",
                    "bare publishing, MB/s",
                    "spread",
                    "ratio",
                    "CPU µs a MB: relay",
                    "walsender",
                    "nats-server",
                    "MB/s that the cores allow",
                ],
            )
            .push(vec![
                Cell::count(bytes),
                Cell::count(events),
                Cell::number(median(&ours), 1),
                Cell::text(spread(&ours)),
                Cell::number(median(&theirs), 1),
                Cell::text(spread(&theirs)),
                Cell::number(median(&ratios(&ours, &theirs)), 2),
                Cell::number(median(&bare), 1),
                Cell::text(spread(&bare)),
                Cell::number(median(&ratios(&ours, &bare)), 2),
                Cell::maybe(cost(&costs, 0), 0),
                Cell::maybe(cost(&costs, 1), 0),
                Cell::maybe(cost(&costs, 2), 0),
                Cell::maybe(allowed(&costs), 0),
            ]);
        report.point(bytes, median(&ours), median(&theirs), median(&bare));
        lane.close().await?;
    }
    Ok(())
}
