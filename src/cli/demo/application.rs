//! The sample application: it publishes lessons of live teaching and takes erasure requests.
//!
//! In: connections to its database. Out: transactions of all kinds, and a tally. Guarantee: the database itself records
//! in which order they committed: each one takes its number from `last_commit` as its last act, and the lock on that row
//! is let go only when the commit stands in the log. So the ledger is the commit order, and owes nothing to the relay.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use crate::event::EventEnvelope;
use crate::event::teaching::{LessonPublished, UserEraseRequested};
use crate::outbox::{Outbox, SCHEMA_SQL};

/// How many connections commit at once.
pub(super) const SESSIONS: u64 = 4;

/// Longest pause of a session between two transactions.
const PAUSE_MS_MAX: u64 = 25;

const TABLES: &str = "
create table lessons (id uuid primary key, teacher_id uuid not null, title text not null);
create table users (id uuid primary key, erase_requested_at timestamptz);
create table last_commit (number bigint not null);
insert into last_commit values (0);
create table ledger (commit_number bigint primary key, event_ids uuid[] not null);
";

const TITLES: [&str; 6] = [
    "Fractions, part two",
    "The water cycle",
    "Größer und kleiner",
    "Past tense",
    "Leaves under a lens",
    "«Le Petit Prince»",
];

/// Makes the application's tables, the outbox among them.
pub(super) async fn create_tables(client: &Client) -> anyhow::Result<()> {
    client
        .batch_execute(SCHEMA_SQL)
        .await
        .context("cannot create the outbox table")?;
    client
        .batch_execute(TABLES)
        .await
        .context("cannot create the application's tables")
}

/// What the application did.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(super) struct Tally {
    pub(super) transactions: u64,
    pub(super) events: u64,
    /// Transactions that were rolled back, whole or to a savepoint.
    pub(super) rollbacks: u64,
    /// The events that these took with them.
    pub(super) rolled_back_events: u64,
}

/// The application, running or not.
pub(super) struct Application {
    clients: Vec<Client>,
    sessions: Vec<JoinHandle<anyhow::Result<()>>>,
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
}

impl Application {
    pub(super) fn new(clients: Vec<Client>) -> Self {
        Self {
            clients,
            sessions: Vec::new(),
            stop: Arc::default(),
            tally: Arc::default(),
        }
    }

    /// One task a session, so that their transactions overlap as those of an application do.
    pub(super) fn start(&mut self) {
        for client in self.clients.drain(..) {
            let session = Session {
                client,
                outbox: Outbox::default(),
                random: StdRng::from_os_rng(),
                tally: Arc::clone(&self.tally),
            };
            self.sessions
                .push(tokio::spawn(session.run(Arc::clone(&self.stop))));
        }
    }

    /// Lets each session end its transaction.
    ///
    /// # Errors
    /// Of the first session that had one.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for session in self.sessions.drain(..) {
            session
                .await
                .context("a session of the application panicked")??;
        }
        Ok(())
    }

    /// # Errors
    /// Where a session ended by itself.
    pub(super) async fn check(&mut self) -> anyhow::Result<()> {
        if self.sessions.iter().any(JoinHandle::is_finished) {
            self.stop().await?;
        }
        Ok(())
    }

    pub(super) fn tally(&self) -> Tally {
        *self.tally.lock().expect("no holder of the lock panics")
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        for session in &self.sessions {
            session.abort();
        }
    }
}

/// What a transaction does.
#[derive(Clone, Copy)]
enum Kind {
    /// One lesson, or a course of many.
    Publish { lessons: usize },
    /// A user asks to be forgotten.
    Erase,
    /// Lessons, and then everything is taken back.
    RollBack { lessons: usize },
    /// A lesson, drafts that are taken back, another lesson.
    Savepoint { drafts: usize },
}

struct Session {
    client: Client,
    outbox: Outbox,
    random: StdRng,
    tally: Arc<Mutex<Tally>>,
}

impl Session {
    async fn run(mut self, stop: Arc<AtomicBool>) -> anyhow::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let kind = self.choose();
            self.transact(kind)
                .await
                .context("a transaction of the application failed")?;
            // A pause as people make it, not a wait for something.
            tokio::time::sleep(Duration::from_millis(
                self.random.random_range(1..=PAUSE_MS_MAX),
            ))
            .await;
        }
        Ok(())
    }

    fn choose(&mut self) -> Kind {
        match self.random.random_range(0..100) {
            0..55 => Kind::Publish { lessons: 1 },
            55..66 => Kind::Publish {
                lessons: self.random.random_range(10..60),
            },
            66..67 => Kind::Publish { lessons: 500 },
            67..77 => Kind::Erase,
            77..89 => Kind::RollBack {
                lessons: self.random.random_range(1..8),
            },
            _ => Kind::Savepoint {
                drafts: self.random.random_range(1..5),
            },
        }
    }

    async fn transact(&mut self, kind: Kind) -> anyhow::Result<()> {
        let (outbox, random) = (&self.outbox, &mut self.random);
        let mut transaction = self.client.transaction().await?;
        let mut rolled_back = 0;
        let mut event_ids = match kind {
            Kind::Publish { lessons } | Kind::RollBack { lessons } => {
                publish(&transaction, outbox, random, lessons).await?
            }
            Kind::Erase => vec![request_erasure(&transaction, outbox).await?],
            Kind::Savepoint { .. } => publish(&transaction, outbox, random, 1).await?,
        };
        if let Kind::RollBack { .. } = kind {
            rolled_back = event_ids.len();
            event_ids.clear();
            transaction.rollback().await?;
        } else {
            if let Kind::Savepoint { drafts } = kind {
                let savepoint = transaction.savepoint("drafts").await?;
                rolled_back = publish(&savepoint, outbox, random, drafts).await?.len();
                savepoint.rollback().await?;
                event_ids.extend(publish(&transaction, outbox, random, 1).await?);
            }
            enter(&transaction, &event_ids).await?;
            transaction.commit().await?;
        }
        let mut tally = self.tally.lock().expect("no holder of the lock panics");
        tally.transactions += u64::from(!event_ids.is_empty());
        tally.events += event_ids.len() as u64;
        tally.rollbacks += u64::from(rolled_back > 0);
        tally.rolled_back_events += rolled_back as u64;
        Ok(())
    }
}

/// Publishes lessons, in one statement for the table and one for the outbox.
async fn publish(
    transaction: &Transaction<'_>,
    outbox: &Outbox,
    random: &mut StdRng,
    lessons: usize,
) -> anyhow::Result<Vec<Uuid>> {
    let teacher_id = Uuid::now_v7();
    let title = TITLES[random.random_range(0..TITLES.len())];
    let events: Vec<_> = (0..lessons)
        .map(|_| LessonPublished::new(Uuid::now_v7(), teacher_id, title))
        .collect();
    let lesson_ids: Vec<_> = events.iter().map(|event| event.lesson_id).collect();
    let sql = "insert into lessons select id, $2, $3 from unnest($1::uuid[]) as given (id)";
    transaction
        .execute(sql, &[&lesson_ids, &teacher_id, &title])
        .await?;
    match &*events {
        [event] => outbox.add_event(transaction, event).await?,
        events => outbox.add_events(transaction, events).await?,
    }
    Ok(events.iter().map(|event| event.event_id).collect())
}

async fn request_erasure(transaction: &Transaction<'_>, outbox: &Outbox) -> anyhow::Result<Uuid> {
    let event = UserEraseRequested::new(Uuid::now_v7());
    transaction
        .execute(
            "insert into users values ($1, $2)",
            &[&event.user_id, &event.requested_at],
        )
        .await?;
    let envelope = EventEnvelope::from_event(&event)?;
    outbox.add_envelope(transaction, &envelope).await?;
    Ok(event.event_id)
}

/// Takes the transaction's place in the commit order; whoever comes next waits here until this commit stands.
async fn enter(transaction: &Transaction<'_>, event_ids: &[Uuid]) -> anyhow::Result<()> {
    let sql = "with next as (update last_commit set number = number + 1 returning number) \
               insert into ledger select number, $1 from next";
    transaction.execute(sql, &[&event_ids]).await?;
    Ok(())
}
