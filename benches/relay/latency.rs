//! From the commit to the stream.
//!
//! Two clocks are read on this one machine: the writer's, just before its INSERT leaves and just after the answer to its
//! commit has come, and nats-server's, which stamps each message when it stores it. *Insert → stored* so contains the
//! insert and its own commit; *commit → stored* begins when the application knows that it has committed, which is after
//! the relay may know: it can be negative, and is counted as 0 then. Nothing is said about the consumer's side.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use futures_util::StreamExt as _;
use hdrhistogram::Histogram;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::lane::{Lane, PAYLOAD};
use crate::report::{Cell, Report};
use crate::servers::Servers;

/// How long the steady load lasts, and how much of its beginning is not counted.
pub const STEADY: Duration = Duration::from_secs(12);
const WARM_UP: Duration = Duration::from_secs(2);

/// When an event was sent and known to be committed, in ns of Unix time.
#[derive(Clone, Copy)]
pub struct Written {
    sent_ns: i128,
    committed_ns: i128,
}

type Session = JoinHandle<anyhow::Result<Vec<(Uuid, Written)>>>;

/// Sessions that commit one event a transaction at a fixed rate, whatever the answers take.
pub struct Writer {
    sessions: Vec<Session>,
    stopped: Arc<AtomicBool>,
}

fn wall_clock_ns() -> i128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i128::try_from(since.as_nanos()).unwrap_or(0))
}

impl Writer {
    /// Begins; `rate` is of all sessions together, in transactions a second.
    pub async fn start(
        lane: &Lane<'_>,
        rate: u32,
        sessions: u32,
        lasts: Duration,
    ) -> anyhow::Result<Writer> {
        let interval = Duration::from_secs(1) * sessions / rate;
        let begin = Instant::now() + Duration::from_millis(50);
        let mut tasks = Vec::new();
        let stopped = Arc::new(AtomicBool::new(false));
        for session in 0..sessions {
            let stopped = stopped.clone();
            let sql = lane.servers.postgres.connect(&lane.name).await?;
            let mut due = begin + interval * session / sessions;
            tasks.push(tokio::spawn(async move {
                let insert = sql
                    .prepare(
                        "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
                         VALUES ($1, $1, 'lesson.published.v1', $2::text::jsonb)",
                    )
                    .await?;
                let mut written = Vec::new();
                while due < begin + lasts && !stopped.load(Ordering::Relaxed) {
                    tokio::time::sleep_until(due.into()).await;
                    let id = Uuid::new_v4();
                    let sent_ns = wall_clock_ns();
                    sql.execute(&insert, &[&id, &PAYLOAD]).await?;
                    let committed_ns = wall_clock_ns();
                    written.push((
                        id,
                        Written {
                            sent_ns,
                            committed_ns,
                        },
                    ));
                    due += interval;
                }
                Ok(written)
            }));
        }
        Ok(Writer {
            sessions: tasks,
            stopped,
        })
    }

    /// Ends it now.
    pub async fn stop(self) -> anyhow::Result<HashMap<Uuid, Written>> {
        self.stopped.store(true, Ordering::Relaxed);
        self.end().await
    }

    /// Waits for its end.
    pub async fn end(self) -> anyhow::Result<HashMap<Uuid, Written>> {
        let mut all = HashMap::new();
        for session in self.sessions {
            all.extend(session.await??);
        }
        Ok(all)
    }
}

/// Histograms in ns.
pub struct Latencies {
    pub from_insert: Histogram<u64>,
    pub from_commit: Histogram<u64>,
    pub insert_itself: Histogram<u64>,
}

impl Latencies {
    /// Reads the stream behind `after`, and joins it with what was written.
    pub async fn of(
        servers: &Servers,
        stream: &str,
        after: u64,
        written: &HashMap<Uuid, Written>,
    ) -> anyhow::Result<Latencies> {
        let stream = servers.jetstream.get_stream(stream).await?;
        let config = pull::OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: after + 1,
            },
            ..pull::OrderedConfig::default()
        };
        let mut messages = stream.create_consumer(config).await?.messages().await?;
        let new = || Histogram::new(3).context("three digits");
        let mut latencies = Latencies {
            from_insert: new()?,
            from_commit: new()?,
            insert_itself: new()?,
        };
        let first_ns = written
            .values()
            .map(|written| written.sent_ns)
            .min()
            .unwrap_or(0);
        let counted_from = if written.len() > 2_000 {
            first_ns + WARM_UP.as_nanos() as i128
        } else {
            first_ns
        };
        let mut seen = 0;
        while seen < written.len() {
            let message = tokio::time::timeout(Duration::from_secs(30), messages.next())
                .await
                .context("the stream lacks events")?
                .context("the stream ends")??;
            let info = message.info().map_err(|error| anyhow::anyhow!("{error}"))?;
            let stored_ns = info.published.unix_timestamp_nanos();
            // {"id":"<36 characters>
            let id = message
                .payload
                .get(7..43)
                .and_then(|id| Uuid::try_parse_ascii(id).ok());
            let Some(written) = id.and_then(|id| written.get(&id)) else {
                continue;
            };
            seen += 1;
            if written.sent_ns < counted_from {
                continue;
            }
            let since = |ns: i128| u64::try_from(stored_ns - ns).unwrap_or(0);
            latencies.from_insert.record(since(written.sent_ns))?;
            latencies.from_commit.record(since(written.committed_ns))?;
            latencies
                .insert_itself
                .record(u64::try_from(written.committed_ns - written.sent_ns).unwrap_or(0))?;
        }
        Ok(latencies)
    }

    fn row(&self, what: String) -> Vec<Cell> {
        let at = |histogram: &Histogram<u64>, quantile| {
            Cell::number(histogram.value_at_quantile(quantile) as f64 / 1e6, 2)
        };
        vec![
            Cell::text(what),
            at(&self.from_insert, 0.5),
            at(&self.from_insert, 0.99),
            at(&self.from_commit, 0.5),
            at(&self.from_commit, 0.99),
            at(&self.insert_itself, 0.5),
            at(&self.insert_itself, 0.99),
        ]
    }
}

const HEADER: [&str; 7] = [
    "load",
    "insert → stored p50, ms",
    "p99, ms",
    "commit → stored p50, ms",
    "p99, ms",
    "the insert itself p50, ms",
    "p99, ms",
];

/// Single-row transactions at a fixed rate.
pub async fn steady(
    servers: &Servers,
    rate: u32,
    sessions: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    eprintln!("latency at {rate} transactions a second");
    let lane = Lane::new(servers, "steady").await?;
    lane.setup("steady_0", "STEADY")?;
    let mut relay = lane.run("steady_0", "STEADY").await?;
    relay.streaming_after().await?;
    let begin = Instant::now();
    let written = Writer::start(&lane, rate, sessions, STEADY)
        .await?
        .end()
        .await?;
    let reached = written.len() as f64 / begin.elapsed().as_secs_f64();
    let latencies = Latencies::of(servers, "STEADY", 0, &written).await?;
    let cpu = crate::child::cpu_us(relay.pid()).map(|cpu| cpu / written.len() as f64);
    let peak = crate::child::peak_mib(relay.pid());
    let what = format!(
        "{rate} transactions/s wanted, {reached:.0} reached, {sessions} sessions; relay {} µs CPU an event, peak {} MiB",
        Cell::maybe(cpu, 1).0,
        Cell::maybe(peak, 1).0
    );
    report.table("Latency", &HEADER).push(latencies.row(what));
    relay.stop().await?;
    servers.jetstream.delete_stream("STEADY").await?;
    lane.close().await
}

/// One event, and then nothing for a while.
pub async fn lone(servers: &Servers, events: u32, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("latency of lone events");
    let lane = Lane::new(servers, "lone").await?;
    lane.setup("lone_0", "LONE")?;
    let mut relay = lane.run("lone_0", "LONE").await?;
    relay.streaming_after().await?;
    let rate = 10;
    let lasts = Duration::from_secs(1) * events / rate;
    let written = Writer::start(&lane, rate, 1, lasts).await?.end().await?;
    let latencies = Latencies::of(servers, "LONE", 0, &written).await?;
    report
        .table("Latency", &HEADER)
        .push(latencies.row("lone events, one every 100 ms".to_owned()));
    relay.stop().await?;
    servers.jetstream.delete_stream("LONE").await?;
    lane.close().await
}
