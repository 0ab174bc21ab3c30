//! The demo's eye on the stream.
//!
//! In: the stream, as it grows. Out: a few lines for the person who watches, a count, latencies. Guarantee: none; what
//! it saw is for show and for pacing the story, the verdict reads the stream anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use uuid::Uuid;

use super::narrator::Narrator;
use crate::cli::tail::entry::{Class, Entry};
use crate::cli::tail::reader::{Read, Reader, Since};
use crate::event::DomainEvent as _;
use crate::event::teaching::UserEraseRequested;
use crate::relay::settings::NatsSettings;

/// A task that reads the stream; ends when dropped.
pub(super) struct Watcher {
    task: JoinHandle<anyhow::Result<()>>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// Events in the order of their arrival, and when the broker stored each.
    stored: Vec<(Uuid, DateTime<Utc>)>,
    lines_left: u32,
    line_interval: Duration,
    last_line: Option<Instant>,
}

impl Watcher {
    pub(super) async fn start(settings: &NatsSettings, narrator: Narrator) -> anyhow::Result<Self> {
        let mut reader = Reader::open(settings, None, Since::All).await?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let watched = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                if let Read::Message(entry) = reader.next().await?
                    && watched
                        .lock()
                        .expect("no holder of the lock panics")
                        .take(&entry)
                {
                    narrator.event(&entry);
                }
            }
        });
        Ok(Self { task, seen })
    }

    /// Shows a few of the events that arrive from now on, one in each interval.
    pub(super) fn show(&self, lines: u32, interval: Duration) {
        let mut seen = self.seen.lock().expect("no holder of the lock panics");
        (seen.lines_left, seen.line_interval) = (lines, interval);
    }

    /// How many events arrived.
    pub(super) fn events(&self) -> u64 {
        self.seen
            .lock()
            .expect("no holder of the lock panics")
            .stored
            .len() as u64
    }

    /// When the broker stored the event that arrived as the `number`th, from 1.
    pub(super) fn stored_at(&self, number: u64) -> Option<DateTime<Utc>> {
        let seen = self.seen.lock().expect("no holder of the lock panics");
        seen.stored
            .get(usize::try_from(number).ok()?.checked_sub(1)?)
            .map(|(_, stored_at)| *stored_at)
    }

    /// From each event's commit, as Postgres kept it, to the broker: median and 99th percentile, in milliseconds.
    pub(super) async fn latency_ms(&self, client: &Client) -> anyhow::Result<[f64; 2]> {
        let sql = "select id, pg_xact_commit_timestamp(xmin) from outbox_events";
        let rows = client
            .query(sql, &[])
            .await
            .context("cannot read the commits' times")?;
        let committed: HashMap<Uuid, DateTime<Utc>> =
            rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let seen = self.seen.lock().expect("no holder of the lock panics");
        let mut sorted: Vec<f64> = seen
            .stored
            .iter()
            .filter_map(|(id, stored_at)| (*stored_at - *committed.get(id)?).num_microseconds())
            .map(|microseconds| microseconds as f64 / 1_000.0)
            .collect();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            sorted
                .get(sorted.len() * percent / 100)
                .copied()
                .unwrap_or(f64::NAN)
        };
        Ok([at(50), at(99)])
    }

    /// # Errors
    /// Where the task ended, which it never should.
    pub(super) async fn check(&mut self) -> anyhow::Result<()> {
        if self.task.is_finished() {
            (&mut self.task)
                .await
                .context("the task that watches the stream panicked")??;
        }
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    /// Counts a message; whether it is one to show.
    fn take(&mut self, entry: &Entry) -> bool {
        if entry.class != Class::Event {
            return false;
        }
        self.stored.extend(entry.uuid().zip(entry.stored_at));
        let due = self
            .last_line
            .is_none_or(|last| last.elapsed() >= self.line_interval);
        // Every third line is an erasure request, which among so many lessons would hardly be seen.
        let erasure = entry.event_type.as_deref() == Some(UserEraseRequested::EVENT_TYPE);
        let fits = self.lines_left % 3 != 1 || erasure;
        let show = self.lines_left > 0 && due && fits;
        if show {
            self.lines_left -= 1;
            self.last_line = Some(Instant::now());
        }
        show
    }
}
