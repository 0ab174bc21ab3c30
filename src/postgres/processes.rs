//! The server's end of a replication connection: what it does, and its end.
//!
//! In: a client, the number of the process. Out: what it is at, or whether it has gone. Guarantee: ends no process but the
//! one that was meant, also where its number is another's by now.

use std::time::Duration;

use postgres_types::PgLsn;

use crate::postgres::client::{Client, SqlError};

/// What a walsender is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    /// It sends, or waits for WAL or for its client; or the role may not see it.
    Streaming,
    /// It is in the middle of one transaction: it works, gets no further in the WAL, and hears no replies. In one that sends
    /// nothing, since it is of other tables or filtered out, it answers no question either.
    Decoding,
    /// It waits until its client has read everything: it has been ended, and its last words do not fit into the socket.
    /// Whoever has ended it waits as well, such as the checkpoint that gives the slot up.
    Ending,
}

/// A walsender at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Walsender {
    /// Streaming, where that says nothing by itself.
    seems: Activity,
    sent_lsn: Option<PgLsn>,
    reply_time: Option<String>,
}

/// Between the two looks of [`activity`].
const ACTIVITY_PAUSE: Duration = Duration::from_millis(500);

/// What the walsender `pid` is at.
///
/// # Errors
/// A failed query.
pub(crate) async fn activity(client: &Client, pid: i32) -> Result<Activity, SqlError> {
    let first = walsender(client, pid).await?;
    let Some(first) = first.filter(|first| first.seems != Activity::Streaming) else {
        return Ok(Activity::Streaming);
    };
    tokio::time::sleep(ACTIVITY_PAUSE).await;
    Ok(match walsender(client, pid).await? {
        Some(second) if second == first => first.seems,
        _ => Activity::Streaming,
    })
}

async fn walsender(client: &Client, pid: i32) -> Result<Option<Walsender>, SqlError> {
    // What a stream sends waits in WalSenderWriteData.
    let query = "SELECT a.wait_event = 'ClientWrite', \
                 a.state = 'active' AND coalesce(a.wait_event_type, '') NOT IN ('Activity', 'Client'), \
                 r.sent_lsn, r.reply_time::text \
                 FROM pg_catalog.pg_stat_activity a JOIN pg_catalog.pg_stat_replication r USING (pid) WHERE pid = $1";
    let row = client.query_opt(query, &[&pid]).await?;
    row.map(|row| {
        // A state that the role may not see is NULL.
        let is = |column| Ok::<_, SqlError>(row.try_get::<_, Option<bool>>(column)? == Some(true));
        let seems = match (is(0)?, is(1)?) {
            (true, _) => Activity::Ending,
            (false, true) => Activity::Decoding,
            (false, false) => Activity::Streaming,
        };
        Ok(Walsender {
            seems,
            sent_lsn: row.try_get(2)?,
            reply_time: row.try_get(3)?,
        })
    })
    .transpose()
}

/// One process of the server; its number alone may be another's later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// As `pg_stat_activity` has it.
    pub pid: i32,
    /// When it began, as text.
    pub(crate) backend_start: String,
}

/// The process with this number; `None` where there is none.
///
/// # Errors
/// A failed query.
pub async fn process(client: &Client, pid: i32) -> Result<Option<Process>, SqlError> {
    // Everybody may see the time, but not that of another role's process.
    let query =
        "SELECT coalesce(backend_start::text, '') FROM pg_catalog.pg_stat_activity WHERE pid = $1";
    let row = client.query_opt(query, &[&pid]).await?;
    row.map(|row| {
        Ok(Process {
            pid,
            backend_start: row.try_get(0)?,
        })
    })
    .transpose()
}

/// Ends a process of our own, and waits for its end; whether it has gone.
///
/// # Errors
/// A failed query; 42501 where it is another role's.
pub(crate) async fn end_process(
    client: &Client,
    process: &Process,
    limit: Duration,
) -> Result<bool, SqlError> {
    let query = "SELECT pg_catalog.pg_terminate_backend(pid, $3::int8) FROM pg_catalog.pg_stat_activity \
                 WHERE pid = $1 AND coalesce(backend_start::text, '') = $2::text";
    let limit_ms = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
    let row = client
        .query_opt(query, &[&process.pid, &process.backend_start, &limit_ms])
        .await?;
    row.map_or(Ok(true), |row| Ok(row.try_get(0)?))
}
