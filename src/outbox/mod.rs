//! The application's side of the outbox: events into `outbox_events`, in the transaction that changes the aggregates.
//!
//! In: [`DomainEvent`](crate::event::DomainEvent)s and an open transaction. Out: rows, which the relay reads from the
//! write-ahead log. Guarantee: an event becomes visible to the relay if and only if its transaction commits, and what
//! is accepted here can be published: what Postgres or a NATS subject would refuse is refused before it is sent.
//!
//! `insert.rs` has the statements; `on_tokio_postgres.rs` and `on_sqlx.rs` send them, with the features `outbox` and
//! `outbox-sqlx`. `pending.rs` is the option of marking rows as dispatched, and the backfill's view, on tokio-postgres.
//!
//! On tokio-postgres; with a transaction of sqlx it is `outbox.add_event(&mut transaction, &event)`:
//! ```no_run
//! use uuid::Uuid;
//! use walrelay::event::teaching::LessonPublished;
//! use walrelay::outbox::Outbox;
//!
//! # async fn publish(client: &mut tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
//! let outbox = Outbox::default();
//! let (lesson_id, teacher_id) = (Uuid::now_v7(), Uuid::now_v7());
//! let transaction = client.transaction().await?;
//! transaction.execute("update lessons set published = true where id = $1", &[&lesson_id]).await?;
//! outbox.add_event(&transaction, &LessonPublished::new(lesson_id, teacher_id, "Fractions")).await?;
//! transaction.commit().await?; // Both, or neither. A millisecond later the event is in the stream.
//! # Ok(())
//! # }
//! ```

mod insert;
#[cfg(feature = "outbox-sqlx")]
mod on_sqlx;
#[cfg(feature = "outbox")]
mod on_tokio_postgres;
#[cfg(feature = "outbox")]
mod pending;

use uuid::Uuid;

use crate::event::{EventEnvelope, EventError};
use crate::table_name::DEFAULT_SCHEMA;

pub use crate::table_name::{TableName, TableNameError};
#[cfg(feature = "outbox")]
pub use on_tokio_postgres::PreparedOutbox;

/// The table as `walrelay setup` creates it; an existing one with more columns or another order serves as well.
pub const SCHEMA_SQL: &str = include_str!("../../sql/0001_outbox_events.sql");

/// An outbox table. Cheap to make and to clone; keep one, or make it where it is needed.
#[derive(Clone, Debug)]
pub struct Outbox {
    /// Schema and table as SQL text.
    table: String,
    insert_sql: String,
    insert_many_sql: String,
}

/// `public.outbox_events`, the configuration's default.
impl Default for Outbox {
    fn default() -> Self {
        Self::new(&TableName {
            schema: DEFAULT_SCHEMA.to_owned(),
            table: "outbox_events".to_owned(),
        })
    }
}

impl Outbox {
    /// The outbox in another table, such as `"billing.outbox".parse()?`.
    pub fn new(table: &TableName) -> Self {
        let table = table.to_string();
        Self {
            insert_sql: insert::insert_sql(&table),
            insert_many_sql: insert::insert_many_sql(&table),
            table,
        }
    }

    /// The table as SQL text: `public.outbox_events`, quoted where it has to be.
    pub fn table(&self) -> &str {
        &self.table
    }
}

/// A transaction that takes events: `&Transaction` of tokio-postgres, `&mut Transaction<Postgres>` of sqlx.
#[expect(private_bounds, reason = "the clients are those that walrelay knows")]
pub trait OpenTransaction: Insert {}

/// What [`Outbox`] does in a transaction, over one client or another, with envelopes that it has checked.
trait Insert: Send {
    fn insert(
        self,
        outbox: &Outbox,
        envelope: &EventEnvelope,
    ) -> impl Future<Output = Result<(), OutboxError>> + Send;

    fn insert_many(
        self,
        outbox: &Outbox,
        envelopes: &[EventEnvelope],
    ) -> impl Future<Output = Result<(), OutboxError>> + Send;
}

/// Why an event could not be stored, or a stored one not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The event does not become an envelope.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The event type cannot be part of a NATS subject, so the relay could only make it a dead letter.
    #[error(
        "event {id} has the type {event_type:?}: an event type is tokens joined by dots, without white space, '*' or '>'"
    )]
    EventType {
        /// The event that was refused; nothing of the call was stored.
        id: Uuid,
        /// Its type.
        event_type: String,
    },
    /// The payload holds U+0000, which jsonb cannot store.
    #[error(
        "the payload of event {id} holds the character U+0000 (\\u0000), which Postgres' jsonb cannot store"
    )]
    NulCharacter {
        /// The event that was refused; nothing of the call was stored.
        id: Uuid,
    },
    /// A row's version does not fit the envelope's byte: another program wrote it.
    #[error("the row {id} has event_version {found}, which is not between 0 and 255")]
    EventVersion {
        /// The row.
        id: Uuid,
        /// Its version.
        found: i64,
    },
    /// The table has no `dispatched_at`, which only those who mark rows need.
    #[error(
        "{table} has no column dispatched_at: add it with `alter table {table} add column dispatched_at timestamptz`, \
         or leave marking to the stream, which knows what was published"
    )]
    NoDispatchedAt {
        /// The table as SQL text.
        table: String,
    },
    /// The table is not there.
    #[error(
        "there is no table {table}: create it with `walrelay setup`, or name yours in [postgres] table"
    )]
    NoTable {
        /// The table as SQL text.
        table: String,
    },
    /// Postgres refused, or could not be asked. After a refusal the transaction can only be rolled back, as always.
    #[cfg(feature = "outbox")]
    #[error("{action} {table} failed")]
    Postgres {
        /// What was tried, to be read before the table.
        action: &'static str,
        /// The table as SQL text.
        table: String,
        /// Postgres' own words.
        source: tokio_postgres::Error,
    },
    /// The same over sqlx.
    #[cfg(feature = "outbox-sqlx")]
    #[error("{action} {table} failed")]
    Sqlx {
        /// What was tried, to be read before the table.
        action: &'static str,
        /// The table as SQL text.
        table: String,
        /// Postgres' own words, or sqlx'.
        source: sqlx_core::Error,
    },
}

#[cfg(feature = "outbox-sqlx")]
impl OutboxError {
    /// As [`Self::postgres`], of an insert.
    fn sqlx(action: &'static str, table: &str, source: sqlx_core::Error) -> Self {
        let table = table.to_owned();
        match source.as_database_error().and_then(|error| error.code()) {
            Some(code) if code == "42P01" => Self::NoTable { table },
            _ => Self::Sqlx {
                action,
                table,
                source,
            },
        }
    }
}

#[cfg(feature = "outbox")]
impl OutboxError {
    /// The one place where Postgres' refusals become ours: the two that have a command that mends them.
    fn postgres(action: &'static str, table: &str, source: tokio_postgres::Error) -> Self {
        use tokio_postgres::error::SqlState;
        let table = table.to_owned();
        match source.as_db_error() {
            Some(db) if *db.code() == SqlState::UNDEFINED_TABLE => Self::NoTable { table },
            Some(db)
                if *db.code() == SqlState::UNDEFINED_COLUMN
                    && db.message().contains("dispatched_at") =>
            {
                Self::NoDispatchedAt { table }
            }
            _ => Self::Postgres {
                action,
                table,
                source,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_configurations() {
        assert_eq!(Outbox::default().table(), "public.outbox_events");
        let other = r#""My Schema".outbox"#;
        assert_eq!(Outbox::new(&other.parse().unwrap()).table(), other);
    }
}
