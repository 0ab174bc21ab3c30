//! Ranges that are published again, beside bare fast ingest, in turns: `backfill` of the table, `replay` of the stream; a backfill
//! beside a relay that has something to do; and `verify` beside reading table and stream once.
//!
//! Whole processes are measured, from their start to their end: connecting, comparing table and stream, and reading back belong
//! to it.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream::consumer::pull;
use futures_util::{StreamExt as _, TryStreamExt as _};
use walrelay::pipeline::publish::Mode;

use crate::child::{Child, peak_mib};
use crate::lane::{Lane, PAYLOAD};
use crate::latency::{Latencies, STEADY, Writer};
use crate::publish;
use crate::report::{Cell, Report, median, spread};
use crate::servers::Servers;

/// Bytes of an event of the backlog in its envelope.
const EVENT_BYTES: usize = 370;

/// A table of rows that no slot holds.
pub async fn ranges(
    servers: &Servers,
    events: u64,
    rounds: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    eprintln!("{events} rows are backfilled and replayed");
    let mut lane = Lane::new(servers, "bulk").await?;
    lane.fill(events, 10, PAYLOAD).await?;
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..rounds {
        let (bare, stream) = (format!("BULK_BARE_{round}"), format!("BULK_{round}"));
        let seconds =
            publish::bare(&mut lane, Mode::FastIngest, &bare, events, EVENT_BYTES).await?;
        rates[0].push(events as f64 / seconds);
        let slot = format!("bulk_rows_{round}");
        lane.setup(&slot, &stream)?;
        let from = ["replay", "--yes", "--from", "2000-01-01T00:00:00Z"];
        for (command, of_command) in [&["backfill"][..], &from].into_iter().zip(&mut rates[1..]) {
            let begin = Instant::now();
            let output = lane.walrelay(command, &slot, &stream).output()?;
            anyhow::ensure!(
                output.status.success(),
                "walrelay {command:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            of_command.push(events as f64 / begin.elapsed().as_secs_f64());
        }
        for name in [stream.clone(), format!("{stream}_REPLAY")] {
            let mut found = servers.jetstream.get_stream(&name).await?;
            let stored = found.info().await?.state.messages;
            anyhow::ensure!(stored == events, "stream {name} has {stored} messages");
            servers.jetstream.delete_stream(&name).await?;
        }
        lane.drop_slot(&slot).await?;
    }
    tell(&rates, report);
    lane.close().await
}

fn tell(rates: &[Vec<f64>; 3], report: &mut Report) {
    let names = ["bare fast ingest", "backfill", "replay"];
    for (name, of_name) in names.into_iter().zip(rates) {
        let table = report.table(
            "Ranges published again",
            &["what", "events/s", "spread", "of bare fast ingest"],
        );
        table.push(vec![
            Cell::text(name.to_owned()),
            Cell::rate(median(of_name)),
            Cell::text(spread(of_name)),
            Cell::number(median(of_name) / median(&rates[0]), 2),
        ]);
    }
}

/// A backfill beside a relay that has 1,000 transactions a second to publish to the same stream.
pub async fn beside_relay(
    servers: &Servers,
    events: u64,
    report: &mut Report,
) -> anyhow::Result<()> {
    const RATE: u32 = 1_000;
    eprintln!("{events} rows are backfilled beside a relay");
    let mut lane = Lane::new(servers, "beside").await?;
    lane.fill(events, 10, PAYLOAD).await?;
    let bare = publish::bare(&mut lane, Mode::FastIngest, "BARE", events, EVENT_BYTES).await?;
    let (slot, stream) = ("beside_rows", "BESIDE");
    lane.setup(slot, stream)?;
    let mut relay = lane.run(slot, stream).await?;
    relay.streaming_after().await?;
    let alone = Writer::start(&lane, RATE, 4, STEADY).await?.end().await?;
    let alone = Latencies::of(servers, stream, 0, &alone).await?;
    // For as long as the backfill takes.
    let writer = Writer::start(&lane, RATE, 4, Duration::from_secs(600)).await?;
    let mut backfill = Child::spawn(lane.walrelay(&["backfill"], slot, stream))?;
    let (took, _) = backfill.ended().await?;
    let written = writer.stop().await?;
    let beside = Latencies::of(servers, stream, 0, &written).await?;
    let ms = |latencies: &Latencies, quantile| {
        Cell::number(
            latencies.from_commit.value_at_quantile(quantile) as f64 / 1e6,
            2,
        )
    };
    let header = [
        "what",
        "backfill, events/s",
        "of bare fast ingest",
        "it took, s",
        "the relay's commit → stored p50, ms",
        "p99, ms",
        "alone p50, ms",
        "p99, ms",
    ];
    report
        .table("A backfill beside a relay", &header)
        .push(vec![
            Cell::text(format!("{RATE} transactions/s")),
            Cell::rate(events as f64 / took.as_secs_f64()),
            Cell::number(bare / took.as_secs_f64(), 2),
            Cell::number(took.as_secs_f64(), 1),
            ms(&beside, 0.5),
            ms(&beside, 0.99),
            ms(&alone, 0.5),
            ms(&alone, 0.99),
        ]);
    relay.stop().await?;
    servers.jetstream.delete_stream(stream).await?;
    lane.close().await
}

/// `verify` of a table that is in the stream as a whole, beside reading each of the two once.
pub async fn verify(servers: &Servers, events: u64, report: &mut Report) -> anyhow::Result<()> {
    const SAMPLE_INTERVAL: Duration = Duration::from_millis(5);
    eprintln!("verify of {events} rows");
    let mut lane = Lane::new(servers, "verify").await?;
    lane.fill(events, 10, PAYLOAD).await?;
    let (slot, stream) = ("verify_rows", "VERIFY");
    lane.setup(slot, stream)?;
    let mut backfill = Child::spawn(lane.walrelay(&["backfill"], slot, stream))?;
    backfill.ended().await?;

    let begin = Instant::now();
    let rows = lane.sql.copy_out("COPY outbox_events TO STDOUT").await?;
    let copied = rows.try_fold(0, async |count, _| Ok(count + 1)).await?;
    let copy = begin.elapsed();
    let begin = Instant::now();
    let found = servers.jetstream.get_stream(stream).await?;
    let consumer = found
        .create_consumer(pull::OrderedConfig::default())
        .await?;
    let mut messages = consumer.messages().await?;
    for _ in 0..events {
        messages.next().await.context("the stream ends")??;
    }
    let read = begin.elapsed();
    anyhow::ensure!(copied == events, "{copied} rows were copied");

    let mut verify = Child::spawn(lane.walrelay(&["verify"], slot, stream))?;
    let (pid, mut peak) = (verify.pid(), None);
    let ended = verify.ended();
    tokio::pin!(ended);
    let (took, _) = loop {
        tokio::select! {
            ended = &mut ended => break ended?,
            () = tokio::time::sleep(SAMPLE_INTERVAL) => peak = peak_mib(pid).or(peak),
        }
    };
    let header = [
        "rows",
        "COPY TO STDOUT, s",
        "reading the stream once, s",
        "verify, s",
        "of both",
        "peak memory, MiB",
    ];
    report.table("verify", &header).push(vec![
        Cell::count(events),
        Cell::number(copy.as_secs_f64(), 1),
        Cell::number(read.as_secs_f64(), 1),
        Cell::number(took.as_secs_f64(), 1),
        Cell::number(took.as_secs_f64() / (copy + read).as_secs_f64(), 2),
        Cell::maybe(peak, 1),
    ]);
    servers.jetstream.delete_stream(stream).await?;
    lane.close().await
}
