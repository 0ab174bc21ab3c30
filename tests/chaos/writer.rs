//! The application: sessions that commit at once, and a ledger by which the database itself tells the commit order.
//!
//! In: a rate, a seed. Out: transactions of 1 to 500 rows, rolled back at times, whole or to a savepoint, some left open
//! for a while. Guarantee: as in `walrelay demo`, each transaction takes its number from `last_commit` as its last act,
//! and the lock on that row is let go only when the commit stands in the log: the ledger is the commit order, and owes
//! nothing to the relay. What became of a COMMIT whose answer never came, the ledger knows too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::RwLock;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, Transaction};
use uuid::Uuid;
use walrelay::outbox::SCHEMA_SQL;

use crate::event::{Kind, Row, kind, new_id};

/// How many connections commit at once.
const SESSIONS: u64 = 5;
/// Between two attempts to get at the database.
const RETRY: Duration = Duration::from_millis(100);
/// The longest that a session sleeps to keep its rate.
const PAUSE_MAX: Duration = Duration::from_secs(3);

const TABLES: &str = "
create table last_commit (number bigint not null);
insert into last_commit values (0);
create table ledger (commit_number bigint primary key, event_ids uuid[] not null);
create table noise (id bigint generated always as identity, text text);
";

const INSERT: &str = "
insert into outbox_events (id, aggregate_id, event_type, event_version, occurred_at, payload_json)
select id, aggregate_id, event_type, event_version, occurred_at::timestamptz, payload::jsonb
from unnest($1::uuid[], $2::uuid[], $3::text[], $4::int2[], $5::text[], $6::text[])
as row (id, aggregate_id, event_type, event_version, occurred_at, payload)";

const ENTER: &str = "
with next as (update last_commit set number = number + 1 returning number)
insert into ledger select number, $1 from next";

/// What was done, as far as the sessions know.
#[derive(Debug, Default)]
pub struct Tally {
    pub rollbacks: AtomicU64,
    pub savepoints: AtomicU64,
    pub rolled_back_events: AtomicU64,
    pub interrupted: AtomicU64,
}

/// The sessions.
pub struct Writer {
    sessions: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    /// Held for writing, no transaction is under way.
    pub gate: Arc<RwLock<()>>,
    pub tally: Arc<Tally>,
}

impl Writer {
    /// Makes the tables.
    pub async fn create_tables(client: &Client) -> anyhow::Result<()> {
        client.batch_execute(SCHEMA_SQL).await?;
        client.batch_execute(TABLES).await?;
        Ok(())
    }

    /// Begins to write about `rate` events a second into the database at `url`.
    pub fn start(url: &str, rate: f64, seed: u64) -> Writer {
        let mut writer = Writer {
            sessions: Vec::new(),
            stop: Arc::default(),
            gate: Arc::default(),
            tally: Arc::default(),
        };
        for number in 0..SESSIONS {
            let session = Session {
                url: url.to_owned(),
                random: StdRng::seed_from_u64(
                    seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
                ),
                seconds_per_event: SESSIONS as f64 / rate,
                stop: Arc::clone(&writer.stop),
                gate: Arc::clone(&writer.gate),
                tally: Arc::clone(&writer.tally),
            };
            writer.sessions.push(tokio::spawn(session.run()));
        }
        writer
    }

    /// Lets each session end its transaction; the database must be up.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for session in self.sessions.drain(..) {
            session.await.context("a session of the writer panicked")?;
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        for session in &self.sessions {
            session.abort();
        }
    }
}

struct Session {
    url: String,
    random: StdRng,
    seconds_per_event: f64,
    stop: Arc<AtomicBool>,
    gate: Arc<RwLock<()>>,
    tally: Arc<Tally>,
}

impl Session {
    async fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            if self.connected().await.is_err() {
                self.tally.interrupted.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Writes until the connection breaks, or the writer stops.
    async fn connected(&mut self) -> Result<(), tokio_postgres::Error> {
        let (mut client, connection) = tokio_postgres::connect(&self.url, NoTls).await?;
        let connection = tokio::spawn(connection);
        let result = self.write(&mut client).await;
        connection.abort();
        result
    }

    async fn write(&mut self, client: &mut Client) -> Result<(), tokio_postgres::Error> {
        while !self.stop.load(Ordering::Relaxed) {
            let gate = Arc::clone(&self.gate);
            let open = gate.read().await;
            let events = self.transact(client).await?;
            drop(open);
            let seconds =
                events as f64 * self.seconds_per_event * self.random.random_range(0.5..1.5);
            tokio::time::sleep(Duration::from_secs_f64(seconds).min(PAUSE_MAX)).await;
        }
        Ok(())
    }

    /// One transaction; how many rows it cost.
    async fn transact(&mut self, client: &mut Client) -> Result<usize, tokio_postgres::Error> {
        let rows = match self.random.random_range(0..1000) {
            0..500 => 1,
            500..780 => self.random.random_range(2..12),
            780..930 => self.random.random_range(12..60),
            930..990 => self.random.random_range(60..300),
            _ => 500,
        };
        let transaction = client.transaction().await?;
        if self.random.random_range(0..10) == 0 {
            transaction
                .execute("insert into noise (text) values ('in front')", &[])
                .await?;
        }
        let mut ids = Vec::new();
        let mut left = rows;
        while left > 0 {
            let part = self.random.random_range(1..=left);
            ids.extend(self.insert(&transaction, part).await?);
            left -= part;
        }
        if self.random.random_range(0..25) == 0 {
            // Left open: others commit what they began later.
            let pause = Duration::from_millis(self.random.random_range(1..1_500));
            tokio::time::sleep(pause).await;
        }
        if self.random.random_range(0..30) == 0 {
            // The table is not where the relay looks, but for a row that a dead letter does not hold: it halts where that
            // has gone.
            let gone: Vec<Uuid> = ids
                .iter()
                .copied()
                .filter(|id| kind(*id) != Some(Kind::TooLarge))
                .collect();
            transaction
                .execute("delete from outbox_events where id = any($1)", &[&gone])
                .await?;
        }
        let mut transaction = transaction;
        if self.random.random_range(0..8) == 0 {
            let drafts = self.random.random_range(1..20);
            let savepoint = transaction.savepoint("drafts").await?;
            self.insert(&savepoint, drafts).await?;
            savepoint.rollback().await?;
            self.tally.savepoints.fetch_add(1, Ordering::Relaxed);
            self.tally
                .rolled_back_events
                .fetch_add(drafts as u64, Ordering::Relaxed);
            ids.extend(self.insert(&transaction, 1).await?);
        }
        if self.random.random_range(0..8) == 0 {
            transaction.rollback().await?;
            self.tally.rollbacks.fetch_add(1, Ordering::Relaxed);
            self.tally
                .rolled_back_events
                .fetch_add(ids.len() as u64, Ordering::Relaxed);
            return Ok(rows);
        }
        transaction.execute(ENTER, &[&ids]).await?;
        transaction.commit().await?;
        Ok(rows)
    }

    async fn insert(
        &mut self,
        transaction: &Transaction<'_>,
        rows: usize,
    ) -> Result<Vec<Uuid>, tokio_postgres::Error> {
        let ids: Vec<Uuid> = (0..rows).map(|_| new_id(&mut self.random)).collect();
        let rows: Vec<Row> = ids.iter().map(|id| Row::of(*id)).collect();
        let aggregate_ids: Vec<Uuid> = rows.iter().map(|row| row.aggregate_id).collect();
        let event_types: Vec<&str> = rows.iter().map(|row| &*row.event_type).collect();
        let event_versions: Vec<i16> = rows.iter().map(|row| row.event_version).collect();
        let occurred_at: Vec<&str> = rows.iter().map(|row| &*row.occurred_at).collect();
        let payloads: Vec<&str> = rows.iter().map(|row| &*row.payload).collect();
        transaction
            .execute(
                INSERT,
                &[
                    &ids,
                    &aggregate_ids,
                    &event_types,
                    &event_versions,
                    &occurred_at,
                    &payloads,
                ],
            )
            .await?;
        Ok(ids)
    }
}

/// The ids that were committed, in commit order, and how many transactions they came in.
pub async fn committed(client: &Client) -> anyhow::Result<(Vec<Uuid>, u64)> {
    /// Transactions in one answer.
    const PAGE: i64 = 10_000;
    let (mut ids, mut transactions, mut after) = (Vec::new(), 0, 0_i64);
    loop {
        let sql = "select commit_number, event_ids from ledger where commit_number > $1 order by 1 limit $2";
        let rows = client.query(sql, &[&after, &PAGE]).await?;
        let Some(last) = rows.last() else {
            return Ok((ids, transactions));
        };
        after = last.get(0);
        transactions += rows.len() as u64;
        for row in &rows {
            ids.extend(row.get::<_, Vec<Uuid>>(1));
        }
    }
}
