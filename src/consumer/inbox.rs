//! Which events a consumer has taken, in the transaction that has their effects.
//!
//! In: events, and the consumer's open transaction. Out: whether it is the first time. Guarantee: effects exactly once, whatever
//! is delivered again, in whatever order and to however many instances. The work is done by the functions of `sql/inbox.sql`, which
//! any other language calls as well.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Row, Transaction};

use super::{Event, Kind};

/// The tables and functions of the inbox, for the consumer's own database: `sql/inbox.sql`. To run it again does no harm.
pub const INBOX_SQL: &str = include_str!("../../sql/inbox.sql");

/// What one consumer has taken. Instances of a service share it by its name.
///
/// ```no_run
/// # async fn apply(client: &mut tokio_postgres::Client, message: async_nats::jetstream::Message)
/// # -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use walrelay::consumer::{Event, Inbox, Taken};
///
/// let event = Event::read(&message)?;
/// let transaction = client.transaction().await?;
/// if Inbox::new("billing").take(&transaction, &event).await? == Taken::First {
///     transaction.execute("update accounts set events = events + 1", &[]).await?;
/// }
/// transaction.commit().await?;
/// message.ack().await?; // Only now. Killed before it, the service is given the message again, and leaves it at that.
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Inbox {
    name: String,
}

/// Whether an event was taken before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an event that was taken before must have no effects"]
pub enum Taken {
    /// It has its effects now, if the transaction commits.
    First,
    /// It had them.
    Again,
}

/// Why an event could not be taken. The transaction cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InboxError {
    /// The database has no inbox.
    #[error(
        "the database has no function inbox_take: run sql/inbox.sql in it (consumer::INBOX_SQL), in a schema on the search_path"
    )]
    NoInbox,
    /// What Postgres answered.
    #[error("taking an event into inbox {inbox}")]
    Postgres {
        /// The inbox's name.
        inbox: String,
        /// Postgres' own words.
        source: tokio_postgres::Error,
    },
}

impl Inbox {
    /// The inbox of this name: one for each consumer, and for each stream that it reads, since ids of two tables may be the same.
    pub fn new(name: impl Into<String>) -> Self {
        Inbox { name: name.into() }
    }

    /// Notes that the event is taken, in the transaction of its effects. One round trip. Where another transaction is taking the
    /// same event, it waits for the end of that one.
    ///
    /// # Errors
    /// [`InboxError`]: roll back, and do not acknowledge the message.
    pub async fn take(
        &self,
        transaction: &Transaction<'_>,
        event: &Event,
    ) -> Result<Taken, InboxError> {
        let place = event.place.as_ref().map(ToString::to_string);
        // The event of a dead letter may come later, by the same id.
        let id = match (&event.kind, &place) {
            (Kind::DeadLetter { .. }, Some(place)) => format!("dead-letter {place}"),
            _ => event.id.clone(),
        };
        let sql = "select inbox_take($1, $2, $3)";
        let values: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] = [
            (&self.name, Type::TEXT),
            (&id, Type::TEXT),
            (&place, Type::TEXT),
        ];
        let row = self.one(transaction.query_typed(sql, &values).await)?;
        Ok(match row.get(0) {
            true => Taken::First,
            false => Taken::Again,
        })
    }

    /// Forgets the ids of events that were taken longer ago than this; the last position of each lane then stands for them. Longer
    /// than a message may be delivered again, and than the service may lag in one event behind another; and as long as rows are
    /// kept in the outbox, where they may be published by `walrelay backfill`. Returns how many ids were forgotten.
    ///
    /// # Errors
    /// [`InboxError`].
    pub async fn forget<C: GenericClient>(
        &self,
        client: &C,
        older_than: Duration,
    ) -> Result<u64, InboxError> {
        let seconds = older_than.as_secs_f64();
        let sql = "select inbox_forget($1, make_interval(secs => $2))";
        let values: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&self.name, Type::TEXT), (&seconds, Type::FLOAT8)];
        let row = self.one(client.query_typed(sql, &values).await)?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }

    fn one(&self, rows: Result<Vec<Row>, tokio_postgres::Error>) -> Result<Row, InboxError> {
        match rows {
            Ok(mut rows) => Ok(rows.pop().expect("a function gives one row")),
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_FUNCTION) => {
                Err(InboxError::NoInbox)
            }
            Err(source) => Err(InboxError::Postgres {
                inbox: self.name.clone(),
                source,
            }),
        }
    }
}
