//! One run of the command at a time, and none beside a command that publishes by itself.
//!
//! In: the session that changes publications and drops slots. Out: a lock that it holds to its end. Guarantee: no other run changes
//! this outbox meanwhile. An older one that still waits for shares that are no more would drop those that a newer one has made of
//! them again.

use std::time::{Duration, Instant};

use anyhow::bail;

use super::{LOOK_INTERVAL, of_all_rows};
use crate::postgres::client::{Client, SqlError};
use crate::postgres::division;
use crate::postgres::settings::PostgresSettings;
use crate::relay::settings::Settings;

/// A session whose client was killed ends within that time.
const PATIENCE: Duration = Duration::from_secs(3);

/// Takes the lock, for as long as `sql` is connected.
///
/// # Errors
/// Another run has it, or Postgres refuses.
pub(super) async fn lock(sql: &Client, outbox: &PostgresSettings) -> anyhow::Result<()> {
    lock_as(sql, "reshard", &name(outbox)).await
}

/// The same of a `command`, under a name.
///
/// # Errors
/// As [`lock`].
pub(in crate::cli) async fn lock_as(sql: &Client, command: &str, name: &str) -> anyhow::Result<()> {
    let take = "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended($1, 0))";
    let begun = Instant::now();
    while !sql.query_one(take, &[&name]).await?.try_get(0)? {
        wait(sql, command, name, begun).await?;
    }
    Ok(())
}

/// Makes sure that no run is at work, for a command that has its lane's lease: a run that was frozen has lost its own, and still
/// changes the publications once it wakes up, beneath whoever publishes by what they were.
///
/// # Errors
/// One is, or Postgres refuses.
pub(in crate::cli) async fn none_at_work(
    sql: &Client,
    outbox: &PostgresSettings,
) -> anyhow::Result<()> {
    let (name, begun) = (name(outbox), Instant::now());
    while holder_as(sql, &name).await?.is_some() {
        wait(sql, "reshard", &name, begun).await?;
    }
    Ok(())
}

async fn wait(sql: &Client, command: &str, name: &str, begun: Instant) -> anyhow::Result<()> {
    let is_late = begun.elapsed() >= PATIENCE;
    if let Some(pid) = holder_as(sql, name).await?.filter(|_| is_late) {
        bail!(
            "another walrelay {command} is at work on this outbox, as process {pid} of Postgres: wait until it has ended. Where its \
             machine is gone, SELECT pg_terminate_backend({pid}); ends it. Then run this again"
        );
    }
    tokio::time::sleep(LOOK_INTERVAL).await;
    Ok(())
}

/// Makes sure that none was ended half way: rows that lanes had which are no more may be in their slots still, and are other lanes'
/// already.
///
/// # Errors
/// One was, or Postgres refuses.
pub(in crate::cli) async fn none_unfinished(
    sql: &Client,
    settings: &Settings,
) -> anyhow::Result<()> {
    let outbox = &settings.postgres;
    let division = division::division(sql, outbox).await?;
    let unfinished = |undivided| division.unfinished(&outbox.any_share(), undivided);
    if unfinished(None).is_some()
        && let Some(left) = unfinished(of_all_rows(settings).await.as_ref())
    {
        bail!("{}: {}; then run this again", left.what, left.mend);
    }
    Ok(())
}

/// The server process of the run that is at work.
///
/// # Errors
/// Postgres refuses.
pub(in crate::cli) async fn holder(
    sql: &Client,
    outbox: &PostgresSettings,
) -> Result<Option<i32>, SqlError> {
    holder_as(sql, &name(outbox)).await
}

/// The one that has the lock under this name.
///
/// # Errors
/// As [`holder`].
pub(in crate::cli) async fn holder_as(sql: &Client, name: &str) -> Result<Option<i32>, SqlError> {
    let query = "SELECT pid FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted \
         AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
         AND (classid::int8 << 32) | objid::int8 = pg_catalog.hashtextextended($1, 0)";
    let found = sql.query_opt(query, &[&name]).await?;
    Ok(found.map(|row| row.try_get(0)).transpose()?)
}

fn name(outbox: &PostgresSettings) -> String {
    format!("walrelay reshard {}", outbox.any_share().whole_publication)
}
