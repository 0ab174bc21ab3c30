//! The aggregate's rows, and messages of which there is no row.
//!
//! In: the aggregate; the ids of messages that do not tell theirs. Out: its rows' ids, and the rows deleted; of how many messages the
//! table has no row. Guarantee: memory does not grow with the number of such messages.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::{Context as _, bail};

use super::Erasing;
use super::leases::Leases;
use crate::cli::prune;
use crate::postgres::client::Client;
use crate::postgres::detached;
use crate::postgres::id_column::IdColumn;
use crate::postgres::triggers::{self, FIND_THEIRS};

/// Makes sure that no rows of the table are where a prune has detached them.
///
/// # Errors
/// Some are.
pub(super) async fn all_seen(sql: &Client, table: &str) -> anyhow::Result<()> {
    // Who has been at work has dropped them by then, or left them.
    let is_at_work = prune::left::is_at_work(sql, table).await?;
    let left = detached::of(sql, table).await?;
    match (detached::told(table, &left), is_at_work) {
        (None, _) => Ok(()),
        (Some((what, _)), true) => bail!(
            "{what}, which may be the aggregate's: it is at work, so wait for its end, and run this again"
        ),
        (Some((what, mend)), false) => bail!(
            "{what}, which may be the aggregate's. It did not end: run this again behind what mends that: {mend}"
        ),
    }
}

impl Erasing<'_> {
    /// Where rows are looked for.
    pub(super) fn rows(&self) -> Rows<'_> {
        Rows {
            sql: self.sql,
            table: &self.table,
            id_column: &self.id_column,
        }
    }

    /// The ids of the aggregate's rows.
    pub(super) async fn ids(&self) -> anyhow::Result<BTreeSet<String>> {
        let query = format!(
            "SELECT ({})::text FROM {} WHERE {}",
            self.id_column.text(),
            self.table,
            self.id.is_it
        );
        let rows = self.sql.query(&query, &[&self.id.value]).await?;
        let id = |row: &tokio_postgres::Row| row.try_get::<_, Option<String>>(0);
        let ids: Result<Vec<_>, _> = rows.iter().map(id).collect();
        Ok(ids?.into_iter().flatten().collect())
    }

    /// Deletes these of them, where no other command can have read them by then: only they may tell which of its messages are the
    /// aggregate's.
    pub(super) async fn delete(
        &self,
        ids: &BTreeSet<String>,
        leases: &Leases,
    ) -> anyhow::Result<u64> {
        if ids.is_empty() {
            return Ok(0);
        }
        let delete = format!(
            "DELETE FROM {} WHERE {} AND ({})::text = ANY ($2) AND {FIND_THEIRS}",
            self.table,
            self.id.is_it,
            self.id_column.text()
        );
        let ids: Vec<&String> = ids.iter().collect();
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&self.id.value, &ids];
        // An error ends the command, and with it the session.
        self.sql.batch_execute("BEGIN").await?;
        let deleted = self.sql.answer(self.sql.execute(&delete, &parameters));
        let deleted = deleted
            .await
            .with_context(|| format!("cannot delete from {}", self.table))?;
        leases.are_ours().await?;
        self.sql.batch_execute("COMMIT").await?;
        Ok(deleted)
    }

    /// Whether rows of the aggregate have come that are none of these, which were deleted.
    ///
    /// # Errors
    /// One of these is still there.
    pub(super) async fn has_others(&self, deleted: &BTreeSet<String>) -> anyhow::Result<bool> {
        let left = self.ids().await?;
        if !left.is_disjoint(deleted) {
            let why = triggers::kept(self.sql, &self.table).await?;
            bail!(
                "rows of {} were deleted and are still there; {}. Then run this again",
                self.table,
                why.unwrap_or_else(
                    || "the table has no trigger and no rule that could keep them".to_owned()
                )
            );
        }
        Ok(!left.is_empty())
    }
}

/// Ids that are looked for at once.
const CHUNK_IDS: usize = 5_000;

/// Where rows are looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) sql: &'a Client,
    /// As SQL has it.
    pub(super) table: &'a str,
    pub(super) id_column: &'a IdColumn,
}

/// A message that does not tell its aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rowless {
    /// Its event's, by which there may be a row after all.
    pub(super) id: Option<String>,
    /// The headers that have the aggregate's id.
    pub(super) in_header: Vec<String>,
}

/// Counts messages of which there is no row.
pub(super) struct Counting<'a> {
    rows: Rows<'a>,
    events: Vec<Rowless>,
    count: u64,
    in_header: BTreeMap<String, u64>,
}

impl<'a> Rows<'a> {
    pub(super) fn counting(self) -> Counting<'a> {
        Counting {
            rows: self,
            events: Vec::new(),
            count: 0,
            in_header: BTreeMap::new(),
        }
    }

    /// Which of these ids the table has.
    async fn present(&self, ids: &[String]) -> anyhow::Result<HashSet<String>> {
        let text = self.id_column.text();
        let select = format!("SELECT ({text})::text FROM {} WHERE", self.table);
        let is_one = self.id_column.is_one_of(ids.iter().map(String::as_str));
        let found = match self.sql.query(&format!("{select} {is_one}"), &[]).await {
            // One of them is no value of the column's type.
            Err(error) if error.is_of_data() => {
                let query = format!("{select} ({text})::text = ANY ($1)");
                self.sql.query(&query, &[&ids]).await?
            }
            found => found?,
        };
        let ids: Result<_, _> = found.iter().map(|row| row.try_get(0)).collect();
        Ok(ids?)
    }
}

impl Counting<'_> {
    pub(super) async fn take(&mut self, event: Rowless) -> anyhow::Result<()> {
        self.events.push(event);
        if self.events.len() >= CHUNK_IDS {
            self.look().await?;
        }
        Ok(())
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        let ids = self.events.iter().filter_map(|event| event.id.clone());
        let ids: Vec<String> = ids.collect();
        let present = match ids.is_empty() {
            true => HashSet::new(),
            false => self.rows.present(&ids).await?,
        };
        for event in self.events.drain(..) {
            if event.id.is_some_and(|id| present.contains(&id)) {
                continue;
            }
            self.count += 1;
            for header in event.in_header {
                *self.in_header.entry(header).or_default() += 1;
            }
        }
        Ok(())
    }

    /// The table, the count, and how many of them have the aggregate's id in which header.
    pub(super) async fn end(mut self) -> anyhow::Result<(String, u64, BTreeMap<String, u64>)> {
        self.look().await?;
        Ok((self.rows.table.to_owned(), self.count, self.in_header))
    }
}
