//! The table's side: the ids of the publication's rows, as one snapshot has them.
//!
//! In: a client, the table, the publication's row filter. Out: an entry a row, and the LSN below which the snapshot has all that was committed.
//! Guarantee: one transaction, one snapshot; rows pass through and are not kept.

use anyhow::{Context as _, bail};
use futures_util::{TryStreamExt as _, pin_mut};
use postgres_types::PgLsn;
use uuid::Uuid;

use super::sort::{Entries, Entry, Kind};
use crate::postgres::client::Client;
use crate::postgres::settings::PostgresSettings;
use crate::postgres::table_name::quote_identifier;

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Table {
    /// Rows with an id that are compared.
    pub(super) rows: u64,
    /// Rows with an id that `since` leaves out.
    pub(super) older_rows: u64,
    /// Rows whose id is null: they cannot be compared.
    pub(super) rows_without_id: u64,
    /// Every row of the snapshot was committed below this; what commits from here on is not in it.
    pub(super) snapshot_lsn: PgLsn,
    /// On a standby, which has only what it has replayed.
    pub(super) in_recovery: bool,
}

/// Reads the ids. `row_filter` leaves out rows that another publication shares out to another stream. Rows whose
/// occurred_at is older than `since` are read too, as what they are: one may share its id with a younger one.
///
/// # Errors
/// Postgres refuses, or an id is no UUID.
pub(super) async fn read(
    client: &Client,
    settings: &PostgresSettings,
    row_filter: Option<&str>,
    since: Option<&str>,
    in_recovery: bool,
    entries: &mut Entries,
    mut progress: impl FnMut(u64),
) -> anyhow::Result<Table> {
    client
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await?;
    // The first statement takes the snapshot before it runs. On a primary a transaction becomes visible only behind the
    // insertion of its commit record, so all that the snapshot has lies below.
    let mut table = Table {
        rows: 0,
        older_rows: 0,
        rows_without_id: 0,
        snapshot_lsn: end_lsn(client).await?,
        in_recovery,
    };
    let id = quote_identifier(&settings.columns.id);
    let is_older = since.map_or_else(
        || "false".to_owned(),
        |since| {
            let occurred_at = quote_identifier(&settings.columns.occurred_at);
            format!("coalesce({occurred_at} < '{since}'::timestamptz, false)")
        },
    );
    let copy = format!(
        "COPY (SELECT {id}, age(xmin), {is_older} FROM {} WHERE {}) TO STDOUT",
        settings.table,
        row_filter.unwrap_or("true")
    );
    let lines = client
        .answer(client.copy_out(&copy))
        .await
        .with_context(|| format!("cannot read {}", settings.table))?;
    pin_mut!(lines);
    while let Some(line) = client.answer(lines.try_next()).await? {
        let line = std::str::from_utf8(&line)?.trim_end_matches('\n');
        let mut columns = line.split('\t');
        let mut column = || columns.next().context("COPY sends three columns");
        let (id, age, is_older) = (column()?, column()?, column()?);
        if id == "\\N" {
            table.rows_without_id += 1;
            continue;
        }
        let Ok(id) = Uuid::try_parse(id) else {
            bail!(
                "id {id:?} in {} is no UUID, and verify compares UUIDs",
                settings.table
            );
        };
        progress(table.rows + table.older_rows);
        if is_older == "t" {
            entries.push(Entry::new(id.as_u128(), Kind::OlderRow, 0))?;
            table.older_rows += 1;
            continue;
        }
        // A frozen xmin of an upgraded cluster is 2^31 - 1 old; none is negative.
        let age = age.parse::<i64>()?.max(0).unsigned_abs();
        entries.push(Entry::new(id.as_u128(), Kind::Row, age))?;
        table.rows += 1;
    }
    if in_recovery {
        // A standby shows a transaction a moment before it says that it has replayed it.
        table.snapshot_lsn = end_lsn(client).await?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(table)
}

/// End of the server's WAL; on a standby, of what it has replayed.
pub(super) async fn end_lsn(client: &Client) -> anyhow::Result<PgLsn> {
    let query = "SELECT CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0') \
                 ELSE pg_current_wal_insert_lsn() END";
    Ok(client.query_one(query, &[]).await?.try_get(0)?)
}

/// The server's time, in µs since 2000-01-01 UTC.
pub(super) async fn clock_us(client: &Client) -> anyhow::Result<i64> {
    let query =
        "SELECT (extract(epoch FROM clock_timestamp() - '2000-01-01 00:00:00+00') * 1000000)::int8";
    Ok(client.query_one(query, &[]).await?.try_get(0)?)
}

/// About how many rows there are, for the progress bar.
pub(super) async fn estimate(client: &Client, settings: &PostgresSettings) -> anyhow::Result<u64> {
    let query = "SELECT greatest(sum(reltuples), 0)::float8 FROM pg_class WHERE oid = $1::text::regclass \
                 OR oid IN (SELECT relid FROM pg_partition_tree($1::text::regclass))";
    let row = client
        .query_one(query, &[&settings.table.to_string()])
        .await?;
    Ok(row.try_get::<_, Option<f64>>(0)?.unwrap_or(0.0) as u64)
}

/// Which of the ids are in the table now, also of rows that the filter leaves out: after a change of the shares, what was
/// published before it has its row in another share.
pub(super) async fn present(
    client: &Client,
    settings: &PostgresSettings,
    ids: &[u128],
) -> anyhow::Result<Vec<u128>> {
    let id = quote_identifier(&settings.columns.id);
    let wanted: Vec<String> = ids
        .iter()
        .map(|&id| Uuid::from_u128(id).to_string())
        .collect();
    // In the column's own type, for its index.
    let query = format!(
        "SELECT {id}::text FROM {} WHERE {id} IN ({})",
        settings.table,
        wanted
            .iter()
            .map(|id| format!("'{id}'"))
            .collect::<Vec<_>>()
            .join(",")
    );
    let rows = client.query(&query, &[]).await?;
    rows.iter()
        .map(|row| Ok(Uuid::try_parse(row.try_get(0)?)?.as_u128()))
        .collect()
}
