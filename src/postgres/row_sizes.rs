//! How large the rows of the outbox are, from a few of its pages.
//!
//! In: a client, the inspected table. Out: a [`Sample`]. Guarantees: reads only; at most `PAGES` pages of the table and `ROWS_MAX`
//! values beside it, however large the table is, and no longer than `LIMIT`.

use std::time::Duration;

use super::catalog::{Inspection, Table};
use super::client::{Client, SqlError};
use super::findings::columns::wanted;
use super::settings::PostgresSettings;
use crate::table_name::quote_identifier;

/// Pages that are read; a disk that turns needs two seconds for them.
const PAGES: f64 = 256.0;
/// Rows that are measured, the largest as they are stored: a stored value may be compressed, and only its text is what is sent.
const ROWS_MAX: u32 = 100;
const LIMIT: Duration = Duration::from_secs(3);

/// Some of the table's rows; by default none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// How many were looked at.
    pub rows: i64,
    /// The text of the largest one's columns that are sent, in bytes.
    pub bytes_max: i64,
}

/// The table, where the role may look at its rows.
#[must_use]
pub fn readable(inspection: &Inspection) -> Option<&Table> {
    let table = inspection.table.as_ref();
    table.filter(|table| table.has_rows_of_its_own() && table.may_use_schema && table.may_select)
}

/// The columns that messages are made of and the table does not have.
#[must_use]
pub fn missing<'a>(table: &Table, settings: &'a PostgresSettings) -> Vec<&'a str> {
    let sent = wanted(settings).into_iter().map(|(_, name)| name);
    sent.filter(|name| table.columns.iter().all(|column| column.name != *name))
        .collect()
}

/// Looks at some rows, by those of their columns that there are; none where there are none.
///
/// # Errors
/// A failed query, or one that took too long.
pub async fn sample(
    client: &Client,
    table: &Table,
    settings: &PostgresSettings,
) -> Result<Option<Sample>, SqlError> {
    let sent = wanted(settings).into_iter();
    let sent = sent.filter_map(|(_, name)| table.columns.iter().find(|column| column.name == name));
    let (mut text, mut stored) = ("0".to_owned(), "0".to_owned());
    for column in sent {
        let name = quote_identifier(&column.name);
        let length = match column.base_type.as_str() {
            // Sent in base64.
            "bytea" => format!("octet_length({name})::int8 * 4 / 3"),
            _ => format!("octet_length({name}::text)"),
        };
        text += &format!(" + coalesce({length}, 0)");
        stored += &format!(" + coalesce(pg_catalog.pg_column_size({name}), 0)");
    }
    let pages = format!(
        "SELECT coalesce((SELECT sum(pg_catalog.pg_relation_size(relid)) FROM pg_catalog.pg_partition_tree('{oid}'::oid)),
           pg_catalog.pg_relation_size('{oid}'::oid))::float8 / current_setting('block_size')::float8",
        oid = table.oid
    );
    let limit = format!(
        "BEGIN READ ONLY; SET LOCAL statement_timeout = {}",
        LIMIT.as_millis()
    );
    client.batch_execute(&limit).await?;
    let looked = largest(client, settings, [&text, &stored, &pages]).await;
    // Whatever came of it, the next table is looked at by itself.
    client.batch_execute("ROLLBACK").await?;
    looked
}

async fn largest(
    client: &Client,
    settings: &PostgresSettings,
    [text, stored, pages]: [&str; 3],
) -> Result<Option<Sample>, SqlError> {
    let pages: f64 = client.query_one(pages, &[]).await?.try_get(0)?;
    let percent = (PAGES / pages.max(1.0) * 100.0).min(100.0);
    let largest = format!(
        "SELECT max(walrelay_rows), max({text})::int8 FROM (SELECT count(*) OVER () AS walrelay_rows, * FROM {}
           TABLESAMPLE SYSTEM ({percent}) ORDER BY {stored} DESC LIMIT {ROWS_MAX}) AS sample",
        settings.table
    );
    let row = client.query_one(&largest, &[]).await?;
    let (rows, bytes): (Option<i64>, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
    Ok(rows
        .zip(bytes)
        .map(|(rows, bytes_max)| Sample { rows, bytes_max }))
}
