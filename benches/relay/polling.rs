//! The dispatcher that walrelay replaces, as it was: `SELECT … WHERE dispatched_at IS NULL ORDER BY occurred_at LIMIT
//! 100` every two seconds, eight publishes at once, `UPDATE … SET dispatched_at` when all have succeeded.
//!
//! It published to core NATS and so without an answer; here it waits for JetStream's acknowledgement, or what it stores
//! could not be compared. Its throughput is measured without its pause, which would allow 50 events a second.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio_postgres::Client;
use uuid::Uuid;
use walrelay::event::EventEnvelope;

use crate::lane::{Lane, PAYLOAD};
use crate::latency::{Latencies, Writer};
use crate::report::{Cell, Report};
use crate::servers::Servers;

const BATCH: i64 = 100;
const PUBLISHES_AT_ONCE: usize = 8;
const INTERVAL: Duration = Duration::from_secs(2);

struct Dispatcher<'a> {
    sql: &'a Client,
    jetstream: &'a jetstream::Context,
    stream: &'a str,
}

impl Dispatcher<'_> {
    /// One poll; how many events it dispatched.
    async fn poll(&self) -> anyhow::Result<usize> {
        let rows = self
            .sql
            .query(
                "SELECT id, aggregate_id, event_type, event_version, occurred_at, payload_json::text FROM outbox_events
                 WHERE dispatched_at IS NULL ORDER BY occurred_at LIMIT $1",
                &[&BATCH],
            )
            .await?;
        let published: Vec<Uuid> = futures_util::stream::iter(&rows)
            .map(|row| self.publish(row))
            .buffer_unordered(PUBLISHES_AT_ONCE)
            .try_collect()
            .await?;
        self.sql
            .execute(
                "UPDATE outbox_events SET dispatched_at = now() WHERE id = ANY ($1)",
                &[&published],
            )
            .await?;
        Ok(published.len())
    }

    async fn publish(&self, row: &tokio_postgres::Row) -> anyhow::Result<Uuid> {
        let envelope = EventEnvelope {
            id: row.get(0),
            aggregate_id: row.get(1),
            event_type: row.get(2),
            event_version: u8::try_from(row.get::<_, i16>(3))?,
            occurred_at: row.get(4),
            payload_json: serde_json::value::RawValue::from_string(row.get(5))?,
        };
        let subject = format!("{}.{}", self.stream, envelope.event_type);
        self.jetstream
            .publish(subject, serde_json::to_vec(&envelope)?.into())
            .await?
            .await?;
        Ok(envelope.id)
    }
}

/// Throughput on a backlog, and latency under a light load.
pub async fn dispatcher(servers: &Servers, events: u64, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("the polling dispatcher on {events} events");
    let mut lane = Lane::new(servers, "polling").await?;
    lane.sql
        .batch_execute(
            "ALTER TABLE outbox_events ADD COLUMN dispatched_at timestamptz;
             CREATE INDEX ON outbox_events (occurred_at) WHERE dispatched_at IS NULL",
        )
        .await?;
    lane.fill(events, 10, PAYLOAD).await?;
    lane.setup("polling_0", "POLLING")?;
    let sql = servers.postgres.connect(&lane.name).await?;
    let dispatcher = Dispatcher {
        sql: &sql,
        jetstream: &servers.jetstream,
        stream: "POLLING",
    };
    let begin = Instant::now();
    let mut dispatched = 0;
    while dispatched < events {
        dispatched += dispatcher.poll().await? as u64;
    }
    let rate = events as f64 / begin.elapsed().as_secs_f64();

    let writer = Writer::start(&lane, 10, 1, Duration::from_secs(8)).await?;
    let begin = Instant::now();
    let mut next = begin;
    while begin.elapsed() < Duration::from_secs(11) {
        dispatcher.poll().await?;
        next += INTERVAL;
        tokio::time::sleep_until(next.into()).await;
    }
    let written = writer.end().await?;
    let latencies = Latencies::of(servers, "POLLING", events, &written).await?;
    report
        .table(
            "The polling dispatcher",
            &[
                "events/s without its pause",
                "with it, at most",
                "insert → stored p50, ms",
                "p99, ms",
            ],
        )
        .push(vec![
            Cell::rate(rate),
            Cell::count(u64::try_from(BATCH).context("positive")? / INTERVAL.as_secs()),
            Cell::number(latencies.from_insert.value_at_quantile(0.5) as f64 / 1e6, 0),
            Cell::number(
                latencies.from_insert.value_at_quantile(0.99) as f64 / 1e6,
                0,
            ),
        ]);
    report.bar("polling dispatcher, without its pause", rate);
    servers.jetstream.delete_stream("POLLING").await?;
    lane.close().await
}
