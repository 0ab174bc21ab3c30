//! How the table is asked for rows: by ids, by blocks, by when they occurred.
//!
//! In: which rows. Out: their columns as COPY's text has them, in the order of [`super::columns`], behind these when the row was
//! committed, and then what each question says.

use std::ops::RangeInclusive;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use tokio_postgres::CopyOutStream;

use super::{Rows, columns};
use crate::pipeline::encoding::Encoding;
use crate::pipeline::kind::Kind;
use crate::postgres::client::{Client, SqlError};
use crate::postgres::copy_text::CopyRows;
use crate::postgres::inserted::order;
use crate::postgres::replication::quote_literal;
use crate::table_name::quote_identifier;

/// When a row's transaction was committed, where the server keeps that (`track_commit_timestamp`), else now. A double tells µs exactly
/// for centuries, and a numeric takes longer than all the rest of the row.
const COMMITTED_AT: &str = "date_part('epoch', coalesce(pg_catalog.pg_xact_commit_timestamp(xmin), \
     pg_catalog.statement_timestamp()))";

/// When rows occurred, and behind which one of them.
#[derive(Debug, Clone)]
pub struct Occurred {
    /// Not before.
    pub from: DateTime<Utc>,
    /// Not later.
    pub to: Option<DateTime<Utc>>,
    /// Behind the row of this moment, in µs since 1970, and with this id.
    pub behind: Option<(i64, String)>,
}

impl Rows {
    /// Asks for the rows with ids of these names, in the order in which they were [inserted](order). Behind the columns of
    /// [`Self::parts_of`] come each row's id and how many rows have it.
    ///
    /// # Errors
    /// As of tokio-postgres: who asks ahead of what is read says itself how long it waits.
    pub(in crate::bulk) async fn ask(
        &self,
        names: impl Iterator<Item = &str>,
    ) -> Result<CopyOutStream, tokio_postgres::Error> {
        let id = self.id_column.text();
        let count = match self.has_unique_id {
            true => "1".to_owned(),
            // Costs as much as all the rest.
            false => format!("count(*) OVER (PARTITION BY {id})"),
        };
        let query = format!(
            "SELECT {}, {id} AS event_id, {count} FROM {} WHERE {} ORDER BY {}",
            self.select_list(),
            self.table,
            self.id_column.is_one_named(names),
            order(),
        );
        self.copy(&query).await
    }

    /// Asks for all rows of these blocks of the table, as they stand there, behind those elsewhere with ids of these names; the columns
    /// are those of [`Self::ask`]. A row that moves meanwhile may come twice. To read a block costs less than to look for two of its
    /// rows.
    ///
    /// # Errors
    /// As of [`Self::ask`].
    pub(in crate::bulk) async fn ask_blocks(
        &self,
        blocks: &RangeInclusive<u32>,
        elsewhere: impl Iterator<Item = &str>,
    ) -> Result<CopyOutStream, tokio_postgres::Error> {
        let select = format!(
            "SELECT {}, {} AS event_id, 1 FROM {} WHERE",
            self.select_list(),
            self.id_column.text(),
            self.table
        );
        // A place of the last block that no row has.
        let query = format!(
            "{select} {} UNION ALL {select} ctid >= '({},0)' AND ctid <= '({},65535)'",
            self.id_column.is_one_named(elsewhere),
            blocks.start(),
            blocks.end()
        );
        self.copy(&query).await
    }

    /// The answer to a query, each value as its type's output function writes it, in the encoding that [`Self::encoding`] reads.
    pub(super) async fn copy(&self, query: &str) -> Result<CopyOutStream, tokio_postgres::Error> {
        let encoding = match self.encoding {
            Encoding::Utf8 => "",
            Encoding::Unchecked | Encoding::SingleByte(_) => " (ENCODING 'SQL_ASCII')",
        };
        let query = format!("COPY ({query}) TO STDOUT{encoding}");
        self.sql.copy_out(&query).await
    }

    /// Asks for the rows that occurred then, in that order and within a moment by id. Behind the columns of
    /// [`Self::parts_of`] come each row's id and its moment, in µs since 1970.
    ///
    /// # Errors
    /// No column tells when a row occurred; or as of tokio-postgres.
    pub(in crate::bulk) async fn ask_occurred(
        &self,
        occurred: &Occurred,
    ) -> anyhow::Result<CopyRows<'_>> {
        let (occurred_at, id) = (self.occurred_at()?, self.id_in_order());
        let query = format!(
            "SELECT {}, {id} AS event_id, {} AS moment FROM {} WHERE {} ORDER BY {}, {id}",
            self.select_list(),
            occurred_at.us(),
            self.table,
            self.occurred(occurred)?,
            occurred_at.column()
        );
        let rows = self.sql.answer(self.copy(&query)).await?;
        Ok(CopyRows::new(&self.sql, rows))
    }

    /// How many rows [`Self::ask_occurred`] asks for.
    ///
    /// # Errors
    /// As there.
    pub(in crate::bulk) async fn count_occurred(&self, occurred: &Occurred) -> anyhow::Result<u64> {
        let condition = self.occurred(occurred)?;
        let query = format!("SELECT count(*) FROM {} WHERE {condition}", self.table);
        let count: i64 = self.sql.query_one(&query, &[]).await?.try_get(0)?;
        Ok(count.unsigned_abs())
    }

    fn occurred(&self, occurred: &Occurred) -> anyhow::Result<String> {
        let column = self.occurred_at()?;
        let to = occurred.to.unwrap_or_else(last_moment);
        let mut condition = format!(
            "({}) AND {}",
            self.row_filter.as_deref().unwrap_or("true"),
            column.is_between(occurred.from, to)
        );
        if let Some((us, behind)) = &occurred.behind {
            let at = DateTime::from_timestamp_micros(*us).context("no such moment")?;
            condition += &format!(
                " AND ({}, {}) > ({}, {})",
                column.column(),
                self.id_in_order(),
                column.value(at),
                quote_literal(behind)
            );
        }
        Ok(condition)
    }

    /// The id's text, in an order that no locale changes.
    fn id_in_order(&self) -> String {
        let id = self.id_column.text();
        format!("coalesce(({id})::text, '') COLLATE \"C\"")
    }

    pub(super) fn select_list(&self) -> String {
        let own = self.mapping.columns.as_ref().into_iter();
        let own = own.filter(|(_, value)| value.column().is_some());
        let kinds = own.map(|(field, _)| *self.kinds.get(field));
        let kinds = kinds.chain(self.extra_kinds.iter().copied());
        // Under names of their own: a column's own name would sort by its text.
        let texts = columns(&self.mapping)
            .into_iter()
            .zip(kinds)
            .enumerate()
            .map(|(number, (name, kind))| {
                let value = as_in_wal(&quote_identifier(name), kind);
                format!("{value} AS value_{number}, ")
            });
        texts.collect::<String>() + &self.committed_at_us + " AS committed_at"
    }
}

/// A column as the WAL has it, which is what its type's output function writes; but of char(n) the relay takes the blanks away, as
/// the cast does.
fn as_in_wal(column: &str, kind: Kind) -> String {
    match kind {
        Kind::Padded => format!("{column}::text"),
        _ => column.to_owned(),
    }
}

/// SQL for when a row's transaction was committed, in µs since 2000-01-01 UTC: where the server does not keep that, what its clock says
/// now.
pub(super) async fn committed_at_us(sql: &Client) -> Result<String, SqlError> {
    let us = |epoch: &str| format!("(({epoch} - 946684800) * 1000000)::int8");
    let query = format!(
        "SELECT pg_catalog.current_setting('track_commit_timestamp') = 'on', {}",
        us("date_part('epoch', pg_catalog.clock_timestamp())")
    );
    let row = sql.query_one(&query, &[]).await?;
    let (is_kept, now): (bool, i64) = (row.try_get(0)?, row.try_get(1)?);
    Ok(match is_kept {
        true => us(COMMITTED_AT),
        false => now.to_string(),
    })
}

/// The last one that a message can tell, and an argument name.
fn last_moment() -> DateTime<Utc> {
    DateTime::from_timestamp_micros(253_402_300_799_999_999).expect("the end of the year 9999")
}
