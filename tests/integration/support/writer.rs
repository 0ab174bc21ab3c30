//! An application under load: several connections that commit events, roll back some, and keep a ledger.
//!
//! The ledger is the database's own word on the commit order: each transaction takes its number as the last thing
//! that it does, under a row lock that lasts until its commit is in the WAL.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::NoTls;
use uuid::Uuid;

use super::fixture::Fixture;

/// Behind so many events a writer goes on slowly, so that a slow machine is not flooded. It never ends by itself: who waits for events to
/// go on has to see some.
const EVENTS_MAX: u64 = 10_000;
const CONNECTIONS: usize = 3;
/// How soon a writer knocks again at a server that is away, and pauses between transactions.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
const PACE: Duration = Duration::from_millis(5);
const SLOW_PACE: Duration = Duration::from_millis(50);

const LEDGER: &str = "
CREATE TABLE commit_order (number bigint NOT NULL);
INSERT INTO commit_order VALUES (0);
CREATE TABLE ledger (number bigint, place bigint, id uuid);

CREATE FUNCTION write_events(wanted int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    ids uuid[] := ARRAY(SELECT gen_random_uuid() FROM generate_series(1, wanted));
BEGIN
    INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
    SELECT id, gen_random_uuid(), 'lesson.published.v1', jsonb_build_object('place', place)
    FROM unnest(ids) WITH ORDINALITY AS event (id, place) ORDER BY place;
    IF random() < 0.2 THEN
        BEGIN
            INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
            VALUES (gen_random_uuid(), gen_random_uuid(), 'savepoint.rolled.back', '{}');
            RAISE EXCEPTION 'never mind';
        EXCEPTION WHEN raise_exception THEN NULL;
        END;
    END IF;
    UPDATE commit_order SET number = number + 1;
    INSERT INTO ledger
    SELECT number, place, id FROM commit_order, unnest(ids) WITH ORDINALITY AS event (id, place);
END
$$";

/// Writes until it is stopped; ended by its drop.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writer {
    /// Makes the ledger and begins to write.
    pub(crate) async fn start(fixture: &Fixture) -> Writer {
        let url = fixture.servers().postgres.url(&fixture.name);
        Writer::start_at(fixture, &url, EVENTS_MAX).await
    }

    /// The same where these servers are, slowly behind so many events.
    pub(crate) async fn start_at(fixture: &Fixture, url: &str, events_max: u64) -> Writer {
        let made = fixture.sql.batch_execute(LEDGER).await;
        made.expect("the database has no ledger yet");
        let stop = Arc::new(AtomicBool::new(false));
        let committed = Arc::new(AtomicU64::new(0));
        let tasks = (0..CONNECTIONS)
            .map(|_| {
                let (stop, committed) = (stop.clone(), committed.clone());
                tokio::spawn(write(url.to_owned(), events_max, stop, committed))
            })
            .collect();
        Writer {
            stop,
            committed,
            tasks,
        }
    }

    /// How many events have been committed, at least.
    pub(crate) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Stops writing; the committed events in commit order.
    pub(crate) async fn stop(mut self, fixture: &Fixture) -> Vec<Uuid> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            task.await.expect("a writer does not panic");
        }
        let sql = fixture.connect().await;
        let rows = sql
            .query("SELECT id FROM ledger ORDER BY number, place", &[])
            .await
            .expect("the ledger");
        rows.iter().map(|row| row.get(0)).collect()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn write(url: String, events_max: u64, stop: Arc<AtomicBool>, committed: Arc<AtomicU64>) {
    while !stop.load(Ordering::Relaxed) {
        // A server that is away or goes away is part of the tests.
        let _ = session(&url, events_max, &stop, &committed).await;
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn session(
    url: &str,
    events_max: u64,
    stop: &AtomicBool,
    committed: &AtomicU64,
) -> Result<(), tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    let connection = tokio::spawn(connection);
    while !stop.load(Ordering::Relaxed) {
        let count = rand::random_range(1..=8_i32);
        let end = if rand::random_bool(0.1) {
            "ROLLBACK"
        } else {
            "COMMIT"
        };
        let sql = format!("BEGIN; SELECT write_events({count}); {end}");
        client.batch_execute(&sql).await?;
        if end == "COMMIT" {
            committed.fetch_add(u64::from(count.unsigned_abs()), Ordering::Relaxed);
        }
        let is_slow = committed.load(Ordering::Relaxed) >= events_max;
        tokio::time::sleep(if is_slow { SLOW_PACE } else { PACE }).await;
    }
    connection.abort();
    Ok(())
}
