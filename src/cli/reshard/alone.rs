//! One run of the command at a time, and none beside a command that publishes by itself.
//!
//! In: the session that changes publications and drops slots. Out: a lock that it holds to its end. Guarantee: no other run changes
//! this outbox meanwhile. An older one that still waits for shares that are no more would drop those that a newer one has made of
//! them again.

use anyhow::bail;

use super::of_all_rows;
use crate::postgres::client::{Client, SqlError};
use crate::postgres::division;
use crate::postgres::findings::Finding;
use crate::postgres::named_lock::{self, LockHolder};
use crate::postgres::settings::PostgresSettings;
use crate::relay::settings::Settings;

/// Takes the lock, for as long as `sql` is connected.
///
/// # Errors
/// Another run has it, or Postgres refuses.
pub(super) async fn lock(sql: &Client, outbox: &PostgresSettings) -> anyhow::Result<()> {
    none(named_lock::take(sql, &name(outbox)).await?)
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
    none(named_lock::until_free(sql, &name(outbox)).await?)
}

fn none(other: Option<LockHolder>) -> anyhow::Result<()> {
    match other {
        Some(other) => bail!(other.is_another("reshard")),
        None => Ok(()),
    }
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
    match unfinished(sql, settings).await? {
        Some(left) => bail!("{left}; then run this again"),
        None => Ok(()),
    }
}

/// That one was ended half way, or is at it.
///
/// # Errors
/// Postgres refuses.
pub(in crate::cli) async fn unfinished(
    sql: &Client,
    settings: &Settings,
) -> Result<Option<Finding>, SqlError> {
    let outbox = &settings.postgres;
    let division = division::division(sql, outbox).await?;
    let unfinished = |undivided| division.unfinished(&outbox.any_share(), undivided);
    match unfinished(None) {
        Some(_) => Ok(unfinished(of_all_rows(settings).await.as_ref())),
        None => Ok(None),
    }
}

/// Why rows without a message may be in the slots of lanes that are no more.
///
/// # Errors
/// Postgres refuses.
pub(in crate::cli) async fn left_behind(
    sql: &Client,
    settings: &Settings,
) -> Result<Option<String>, SqlError> {
    let Some(left) = unfinished(sql, settings).await? else {
        return Ok(None);
    };
    let rows = "rows that have no message may be in these slots still";
    Ok(Some(match is_at_work(sql, &settings.postgres).await? {
        false => format!("{}. {rows}: {}", left.what, left.mend),
        true => {
            "a walrelay reshard is at work, and rows that have no message may be in slots of lanes that are no more: wait until it has ended"
                .to_owned()
        }
    }))
}

/// Whether a run is at work.
///
/// # Errors
/// Postgres refuses.
pub(in crate::cli) async fn is_at_work(
    sql: &Client,
    outbox: &PostgresSettings,
) -> Result<bool, SqlError> {
    Ok(named_lock::holder(sql, &name(outbox)).await?.is_some())
}

fn name(outbox: &PostgresSettings) -> String {
    format!("walrelay reshard {}", outbox.any_share().whole_publication)
}
