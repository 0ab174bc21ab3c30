//! Locks of a database by name, which tell who is there: a command that is to run alone, relays that wait.
//!
//! In: a session, a name. Out: the lock for as long as the session is there, or who has it. Guarantee: whoever cannot be asked tells by
//! it that it lives, and one that was killed does not: the server frees what its session had.

use crate::postgres::client::{Client, SqlError};
use postgres_types::Type;
#[cfg(feature = "cli")]
use serde::Serialize;
#[cfg(feature = "cli")]
use std::time::{Duration, Instant};

/// The number that Postgres knows the lock by.
const KEY: &str = "pg_catalog.hashtextextended($1, 0)";
/// A session whose client was killed ends within that time.
#[cfg(feature = "cli")]
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks at a lock that somebody has.
#[cfg(feature = "cli")]
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// A session that has a lock.
#[cfg(feature = "cli")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LockHolder {
    /// The server's process of its session.
    pub(crate) pid: i32,
    /// Where it is, as the server sees it; none where the server does not tell, or over a local socket.
    pub(crate) host: Option<String>,
}

#[cfg(feature = "cli")]
impl std::fmt::Display for LockHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} of Postgres", self.pid)?;
        match &self.host {
            Some(host) => write!(f, " from {host}"),
            None => Ok(()),
        }
    }
}

#[cfg(feature = "cli")]
impl LockHolder {
    /// That it is another run of this command, which is in the way of one more, and what to do.
    pub(crate) fn is_another(&self, command: &str) -> String {
        let pid = self.pid;
        format!(
            "another walrelay {command} is at work on this outbox, as process {pid} of Postgres: wait until it has ended. Where its \
             machine is gone, SELECT pg_terminate_backend({pid}); ends it. Then run this again"
        )
    }
}

/// Takes it beside others that share it; whether nobody has it alone.
///
/// # Errors
/// A failed query.
pub(crate) async fn try_share(client: &Client, name: &str) -> Result<bool, SqlError> {
    ask(client, "pg_try_advisory_lock_shared", name).await
}

/// Gives a share back; whether there was one.
///
/// # Errors
/// A failed query.
pub(crate) async fn release_share(client: &Client, name: &str) -> Result<bool, SqlError> {
    ask(client, "pg_advisory_unlock_shared", name).await
}

/// Takes it alone, and else tells who has it: whoever still has it once a killed one would have lost it.
///
/// # Errors
/// A failed query.
#[cfg(feature = "cli")]
pub(crate) async fn take(client: &Client, name: &str) -> Result<Option<LockHolder>, SqlError> {
    let begun = Instant::now();
    while !ask(client, "pg_try_advisory_lock", name).await? {
        if begun.elapsed() >= PATIENCE
            && let Some(holder) = holder(client, name).await?
        {
            return Ok(Some(holder));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(None)
}

/// Waits until nobody has it, without taking it; else as [`take`].
///
/// # Errors
/// A failed query.
#[cfg(feature = "cli")]
pub(crate) async fn until_free(
    client: &Client,
    name: &str,
) -> Result<Option<LockHolder>, SqlError> {
    let begun = Instant::now();
    while let Some(holder) = holder(client, name).await? {
        if begun.elapsed() >= PATIENCE {
            return Ok(Some(holder));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(None)
}

/// Who has it: one of them.
///
/// # Errors
/// A failed query.
#[cfg(feature = "cli")]
pub(crate) async fn holder(client: &Client, name: &str) -> Result<Option<LockHolder>, SqlError> {
    Ok(holders(client, name).await?.into_iter().next())
}

/// All that have it.
///
/// # Errors
/// A failed query.
#[cfg(feature = "cli")]
pub(crate) async fn holders(client: &Client, name: &str) -> Result<Vec<LockHolder>, SqlError> {
    let query = format!(
        "SELECT l.pid, coalesce(a.client_hostname, pg_catalog.host(a.client_addr)) \
         FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
         WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted \
         AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
         AND (l.classid::int8 << 32) | l.objid::int8 = {KEY} ORDER BY 1"
    );
    let rows = client.query(&query, &[&name]).await?;
    let holder = |row: &tokio_postgres::Row| {
        Ok(LockHolder {
            pid: row.try_get(0)?,
            host: row.try_get(1)?,
        })
    };
    rows.iter().map(holder).collect()
}

async fn ask(client: &Client, function: &str, name: &str) -> Result<bool, SqlError> {
    let query = format!("SELECT pg_catalog.{function}({KEY})");
    // With its type known there is nothing to ask the server before.
    let row = client
        .answer(client.query_typed_one(&query, &[(&name, Type::TEXT)]))
        .await?;
    Ok(row.try_get(0)?)
}
