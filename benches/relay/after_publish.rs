//! What it costs to delete published rows beside the relay: the same load with and without it, on the same servers at the same
//! time, so that whatever else the machine does falls on both; autovacuum as by default.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::child::{Child, cpu_us};
use crate::lane::Lane;
use crate::latency::{Latencies, Writer};
use crate::report::{Cell, Report};
use crate::servers::Servers;

/// Transactions a second of each.
const RATE: u32 = 500;
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What Postgres says of the table.
struct Look {
    rows: i64,
    dead: i64,
    bytes: i64,
}

async fn look(lane: &Lane<'_>) -> anyhow::Result<Look> {
    let query = "SELECT n_live_tup, n_dead_tup, pg_total_relation_size(relid) FROM pg_stat_user_tables \
                 WHERE relname = 'outbox_events'";
    let row = lane.sql.query_one(query, &[]).await?;
    Ok(Look {
        rows: row.try_get(0)?,
        dead: row.try_get(1)?,
        bytes: row.try_get(2)?,
    })
}

/// The load for as long as so many events take, with each setting.
pub async fn settings(servers: &Servers, events: u64, report: &mut Report) -> anyhow::Result<()> {
    let seconds = events / u64::from(RATE);
    eprintln!("after_publish = keep and delete for {seconds} s");
    let (keep, delete) = tokio::try_join!(
        with(servers, "keep", seconds),
        with(servers, "delete", seconds)
    )?;
    let header = [
        "after_publish",
        "seconds",
        "events/s",
        "commit → stored p99, ms",
        "relay CPU, µs an event",
        "rows at the end",
        "dead tuples at the end",
        "at most",
        "table, MiB",
    ];
    let table = report.table("Deleting what is published", &header);
    table.extend([keep, delete]);
    Ok(())
}

/// The load beside a relay with this setting: a row of the table.
async fn with(servers: &Servers, setting: &str, seconds: u64) -> anyhow::Result<Vec<Cell>> {
    let lane = Lane::new(servers, &format!("after_{setting}")).await?;
    let (slot, stream) = (format!("{}_0", lane.name), setting.to_uppercase());
    lane.setup(&slot, &stream)?;
    let mut command = lane.walrelay(&["run"], &slot, &stream);
    command.env("WALRELAY_OUTBOX_AFTER_PUBLISH", setting);
    let mut relay = Child::spawn(command)?;
    relay.streaming_after().await?;
    let begin = Instant::now();
    let writer = Writer::start(&lane, RATE, 4, Duration::from_secs(seconds)).await?;
    let mut most_dead = 0;
    while begin.elapsed() < Duration::from_secs(seconds) {
        tokio::time::sleep(LOOK_INTERVAL).await;
        most_dead = most_dead.max(look(&lane).await?.dead);
    }
    let written = writer.end().await?;
    let reached = written.len() as f64 / begin.elapsed().as_secs_f64();
    let last = look(&lane).await?;
    let latencies = Latencies::of(servers, &stream, 0, &written).await?;
    let p99_ns = latencies.from_commit.value_at_quantile(0.99);
    let row = vec![
        Cell::text(setting.to_owned()),
        Cell::count(seconds),
        Cell::rate(reached),
        Cell::number(p99_ns as f64 / 1e6, 2),
        Cell::maybe(cpu_us(relay.pid()).map(|us| us / written.len() as f64), 1),
        Cell::count(u64::try_from(last.rows).context("a count")?),
        Cell::count(u64::try_from(last.dead).context("a count")?),
        Cell::count(u64::try_from(most_dead).context("a count")?),
        Cell::number(last.bytes as f64 / f64::from(1 << 20), 0),
    ];
    relay.stop().await?;
    servers.jetstream.delete_stream(&stream).await?;
    lane.close().await?;
    Ok(row)
}
