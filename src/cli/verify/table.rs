//! The table's side: the ids of the publication's rows, as one snapshot has them.
//!
//! In: a client, the table, the publication's row filter. Out: an entry a row, and the LSN below which the snapshot has all that was committed.
//! Guarantee: one transaction, one snapshot; rows pass through and are not kept.

use postgres_types::PgLsn;

use super::key::{self, key};
use super::sort::{Entries, Entry, Kind};
use crate::cli::exit::UsageError;
use crate::postgres::client::{Client, SqlError};
use crate::postgres::copy_text::CopyRows;
use crate::postgres::id_column::IdColumn;
use crate::postgres::inserted::{Inserted, XMIN_AGE};
use crate::postgres::settings::PostgresSettings;

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

/// Which rows count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Selection<'a> {
    pub(super) id_column: &'a IdColumn,
    /// Leaves out rows that another publication shares out to another stream.
    pub(super) row_filter: Option<&'a str>,
    /// Rows for which this holds, older ones, are read too, as what they are: one may share its id with a younger one.
    /// SQL.
    pub(super) older: Option<&'a str>,
    /// Rows for which this condition does not hold count as older.
    pub(super) only: Option<&'a str>,
}

/// Looks whether Postgres understands a condition on the table's rows, and as one term: between parentheses and between
/// brackets, since a text that ends the one and begins it anew, such as `a) OR (b`, does not fit into the other.
///
/// # Errors
/// A [`UsageError`] with its words.
pub(super) async fn check_condition(
    client: &Client,
    settings: &PostgresSettings,
    only: &str,
) -> anyhow::Result<()> {
    for query in [
        format!("SELECT FROM {} WHERE {}", settings.table, holds(only)),
        format!("SELECT ARRAY[\n{only}\n] FROM {}", settings.table),
    ] {
        let prepared = client.answer(client.prepare(&query)).await;
        let prepared = prepared.map_err(|error| not_understood(error, only))?;
        if !prepared.params().is_empty() {
            let why = format!("--where {only:?}: nobody gives a value to its parameters");
            return Err(UsageError(why).into());
        }
    }
    Ok(())
}

/// The condition as a term. Behind a comment in it, the line ends.
fn holds(only: &str) -> String {
    format!("(\n{only}\n) IS TRUE")
}

/// What a statement that fails for its condition means.
fn not_understood(error: SqlError, only: &str) -> anyhow::Error {
    match &error {
        SqlError::Server(refusal) => {
            UsageError(format!("--where {only:?}: Postgres says: {refusal}")).into()
        }
        _ => error.into(),
    }
}

/// Reads the ids.
///
/// # Errors
/// Postgres refuses.
pub(super) async fn read(
    client: &Client,
    settings: &PostgresSettings,
    selection: Selection<'_>,
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
    let Selection {
        id_column,
        row_filter,
        older,
        only,
    } = selection;
    let id = id_column.text();
    let is_older = older.map_or_else(
        || "false".to_owned(),
        |older| format!("coalesce({older}, false)"),
    );
    let is_left_out = only.map_or_else(String::new, |only| format!(" OR NOT ({})", holds(only)));
    let copy = format!(
        "COPY (SELECT {id}, {XMIN_AGE}, {is_older}{is_left_out}, cmin, ctid FROM {} WHERE {}) TO STDOUT",
        settings.table,
        row_filter.unwrap_or("true")
    );
    let failed = |error: SqlError| match only.filter(|_| error.is_of_data()) {
        Some(only) => not_understood(error, only),
        None => anyhow::Error::from(error).context(format!("cannot read {}", settings.table)),
    };
    let rows = client
        .answer(client.copy_out(&copy))
        .await
        .map_err(failed)?;
    let mut rows = CopyRows::new(client, rows);
    while let Some(row) = rows.next().await.map_err(failed)? {
        let Some(id) = row.text(0)? else {
            table.rows_without_id += 1;
            continue;
        };
        let id = key(id);
        progress(table.rows + table.older_rows);
        if row.text(2)? == Some("t") {
            entries.push(Entry::new(id, Kind::OlderRow, 0))?;
            table.older_rows += 1;
            continue;
        }
        let inserted = Inserted::of(row.parse(1)?, row.parse(3)?, row.parse(4)?);
        let (when, place) = inserted.packed();
        entries.push(Entry::new(id, Kind::Row, when).at(place))?;
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
    id_column: &IdColumn,
    ids: &[u128],
) -> anyhow::Result<Vec<u128>> {
    let ids: Vec<String> = ids.iter().map(|&id| key::text(id)).collect();
    let query = format!(
        "SELECT {}::text FROM {} WHERE {}",
        id_column.text(),
        settings.table,
        id_column.is_one_named(ids.iter().map(String::as_str))
    );
    let rows = client.query(&query, &[]).await?;
    let keys = rows.iter().map(|row| Ok(key::key(row.try_get(0)?)));
    keys.collect()
}
