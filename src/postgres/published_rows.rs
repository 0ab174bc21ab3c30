//! The tables' side of `outbox.after_publish`: marks published rows, or deletes them.
//!
//! In: rows by their ids. Out: rows marked or deleted. Guarantees: what the role may not do is told at the start, with the SQL that permits it;
//! done again, it changes nothing more.

use std::collections::HashSet;

use super::catalog::{Inspection, Table};
use super::client::{Client, SqlError};
#[cfg(feature = "cli")]
use super::findings::{Finding, Kind, refuse, warn};
use super::id_column::IdColumn;
use super::replication::quote_literal;
use super::settings::PostgresSettings;
use super::triggers::{self, FIND_THEIRS};
use crate::pipeline::after_publish::{AfterPublish, Row};
use crate::postgres::row_security::{self, RowsHidden};
use crate::table_name::{TableName, quote_identifier};

/// The column that a mark sets.
pub(super) const DISPATCHED_AT: &str = "dispatched_at";

/// Why rows can be neither marked nor deleted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// It would always be so, until a person changes something.
    #[error("outbox.after_publish = \"{after}\": {}", told(.reasons))]
    Setting {
        after: &'static str,
        reasons: Vec<Reason>,
    },
    /// Policies hide rows.
    #[error(transparent)]
    Hidden(#[from] RowsHidden),
    /// The server does not answer.
    #[error(transparent)]
    Sql(#[from] SqlError),
}

/// One of the tables does not permit it.
#[derive(Debug)]
pub(crate) struct Reason {
    why: String,
    mend: String,
}

fn told(reasons: &[Reason]) -> String {
    let told = |Reason { why, mend }: &Reason| format!("{why}: {mend}");
    reasons.iter().map(told).collect::<Vec<_>>().join(". ")
}

/// What keeps `outbox.after_publish` from being done, or makes it slow, for those who look before a relay does.
///
/// # Errors
/// A failed query.
#[cfg(feature = "cli")]
pub(crate) async fn findings(
    client: &Client,
    inspection: &Inspection,
    settings: &PostgresSettings,
    after: AfterPublish,
) -> Result<Vec<Finding>, SqlError> {
    if after == AfterPublish::Keep {
        return Ok(Vec::new());
    }
    let setting = |what: String| format!("outbox.after_publish = \"{}\": {what}", after.name());
    Ok(
        match PublishedRows::open(client, inspection, settings, after).await {
            Ok(rows) => {
                let slow = |warning: &str| {
                    let (what, mend) = warning.rsplit_once(": ").unwrap_or((warning, ""));
                    warn(Kind::AfterPublish, setting(what.to_owned()), mend)
                };
                rows.warnings().map(slow).collect()
            }
            Err(Refused::Setting { reasons, .. }) => reasons
                .into_iter()
                .map(|Reason { why, mend }| refuse(Kind::AfterPublish, setting(why), mend))
                .collect(),
            Err(Refused::Hidden(hidden)) => {
                let mend = "let the role see all rows, or set it to \"keep\"";
                vec![refuse(
                    Kind::AfterPublish,
                    setting(hidden.to_string()),
                    mend,
                )]
            }
            Err(Refused::Sql(error)) => return Err(error),
        },
    )
}

/// The lane's tables, and what becomes of their published rows.
#[derive(Debug)]
pub(crate) struct PublishedRows(Vec<OfTable>);

impl PublishedRows {
    /// Whether it may be done, by that look at the tables.
    ///
    /// # Errors
    /// [`Refused`], with what has to be changed of each table.
    pub(crate) async fn open(
        client: &Client,
        inspection: &Inspection,
        settings: &PostgresSettings,
        after: AfterPublish,
    ) -> Result<Self, Refused> {
        let (mut tables, mut reasons) = (Vec::new(), Vec::new());
        for (found, table) in inspection.tables().zip(settings.tables()) {
            match OfTable::open(client, found, &table, after).await {
                Ok(table) => tables.push(table),
                Err(Refused::Setting { reasons: more, .. }) => reasons.extend(more),
                Err(refused) => return Err(refused),
            }
        }
        match reasons.is_empty() {
            true => Ok(PublishedRows(tables)),
            false => Err(Refused::Setting {
                after: after.name(),
                reasons,
            }),
        }
    }

    /// What makes it slow.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|table| table.warning.as_deref())
    }

    /// The name of a table that is another one by now, if there is one.
    ///
    /// # Errors
    /// Postgres refuses, or the table is gone.
    pub(crate) async fn replaced(&self, client: &Client) -> Result<Option<&TableName>, SqlError> {
        for table in &self.0 {
            let query = format!("SELECT {}", table.is_same());
            let is_same: bool = client.query_one(&query, &[]).await?.try_get(0)?;
            if !is_same {
                return Ok(Some(&table.name));
            }
        }
        Ok(None)
    }

    /// Of rows that were deleted and not seen: why the session sees some of them all the same.
    ///
    /// # Errors
    /// Postgres refuses.
    pub(crate) async fn kept(
        &self,
        client: &Client,
        rows: &HashSet<Row>,
    ) -> Result<Option<String>, Unsettled> {
        for (table, of_table) in self.0.iter().enumerate() {
            let own = rows.iter().filter(|row| row.table == table);
            let ids: Vec<&str> = own.map(|row| row.id.as_str()).collect();
            let kept = of_table.kept(client, ids).await;
            let kept = kept.map_err(|source| Unsettled {
                table: of_table.name.clone(),
                source,
            })?;
            if kept.is_some() {
                return Ok(kept);
            }
        }
        Ok(None)
    }

    /// Marks or deletes rows, those of each table at once. An id that the column's type does not take has no row.
    ///
    /// # Errors
    /// Postgres refuses; what was done before it did stays done.
    pub(crate) async fn settle(&self, client: &Client, rows: &[Row]) -> Result<Settled, Unsettled> {
        let mut all = Settled::default();
        for (table, of_table) in self.0.iter().enumerate() {
            let own = rows.iter().filter(|row| row.table == table);
            let ids: Vec<&str> = own.map(|row| row.id.as_str()).collect();
            if ids.is_empty() {
                continue;
            }
            let settled = of_table.settle(client, &ids).await;
            let (done, unseen) = settled.map_err(|source| Unsettled {
                table: of_table.name.clone(),
                source,
            })?;
            all.rows += done;
            all.unseen
                .extend(unseen.into_iter().map(|id| Row { table, id }));
        }
        Ok(all)
    }
}

/// Postgres does not take it.
#[derive(Debug, thiserror::Error)]
#[error("table {table}")]
pub(crate) struct Unsettled {
    table: TableName,
    source: SqlError,
}

/// A table, and what becomes of its published rows.
#[derive(Debug)]
struct OfTable {
    name: TableName,
    oid: u32,
    statement: String,
    guard: &'static str,
    /// Which of them are settled already; empty where a settled row is gone.
    settled: String,
    id_column: IdColumn,
    /// What makes it slow.
    warning: Option<String>,
}

impl OfTable {
    async fn open(
        client: &Client,
        inspection: &Inspection,
        settings: &PostgresSettings,
        after: AfterPublish,
    ) -> Result<Self, Refused> {
        let refuse = |why: String, mend: String| Refused::Setting {
            after: after.name(),
            reasons: vec![Reason { why, mend }],
        };
        if inspection.server.in_recovery {
            return Err(refuse(
                "this server is a standby, which takes no UPDATE and no DELETE".to_owned(),
                "run the relay on the primary, or set it to \"keep\" and run walrelay prune there"
                    .to_owned(),
            ));
        }
        let name = &settings.table;
        let table = inspection.table.as_ref();
        let missing = || {
            let what = format!("there is no table {name}");
            refuse(what, "run walrelay setup".to_owned())
        };
        let table = table.ok_or_else(missing)?;
        if after == AfterPublish::Mark {
            let column = table
                .columns
                .iter()
                .find(|column| column.name == DISPATCHED_AT);
            if column.is_none_or(|column| !column.base_type.starts_with("timestamp")) {
                return Err(refuse(
                    format!("{name} has no column {DISPATCHED_AT} of type timestamptz"),
                    format!(
                        "as its owner, run ALTER TABLE {name} ADD COLUMN {DISPATCHED_AT} timestamptz;"
                    ),
                ));
            }
            if table.partition_keys.iter().any(|key| key == DISPATCHED_AT) {
                return Err(refuse(
                    format!(
                        "{name} is partitioned by {DISPATCHED_AT}, and a mark moves the row to another partition, which publishes \
                         its event again"
                    ),
                    "set it to \"delete\" or \"keep\", or partition the table by another column"
                        .to_owned(),
                ));
            }
        }
        if let Some(grants) = missing_grants(client, settings, inspection, table, after).await? {
            let role = quote_identifier(&inspection.server.role);
            return Err(refuse(
                format!("role {role} lacks a right"),
                format!("as the table's owner, run {grants}"),
            ));
        }
        row_security::check_policies(inspection, name)?;
        let (statement, guard) = match after {
            AfterPublish::Delete => (format!("DELETE FROM {name}"), ""),
            _ => (
                format!("UPDATE {name} SET {DISPATCHED_AT} = now()"),
                " AND dispatched_at IS NULL",
            ),
        };
        let id_column = IdColumn::of(table, settings);
        let settled = match after {
            AfterPublish::Delete => String::new(),
            _ => format!(
                "SELECT ({})::text FROM {name} WHERE {DISPATCHED_AT} IS NOT NULL AND ",
                id_column.text()
            ),
        };
        Ok(OfTable {
            name: name.clone(),
            oid: table.oid,
            statement,
            guard,
            settled,
            id_column,
            warning: slow(client, settings, table).await?,
        })
    }

    /// How many rows were marked or deleted, and the ids of which the session sees no row.
    async fn settle(&self, client: &Client, ids: &[&str]) -> Result<(u64, Vec<String>), SqlError> {
        match self.run(client, ids).await {
            Err(error) if error.is_of_data() => {}
            done => return done,
        }
        let (mut rows, mut unseen) = (0, Vec::new());
        for id in ids {
            match self.run(client, std::slice::from_ref(id)).await {
                Err(error) if error.is_of_data() => {
                    tracing::debug!(id, "no row of the table can have this id: {error}");
                }
                done => {
                    let (one, not_seen) = done?;
                    rows += one;
                    unseen.extend(not_seen);
                }
            }
        }
        Ok((rows, unseen))
    }

    /// Why rows with some of these ids are seen behind their deletion.
    async fn kept(&self, client: &Client, ids: Vec<&str>) -> Result<Option<String>, SqlError> {
        // One that is seen may have come into sight behind the deletion: one more tells.
        let seen = self.seen(client, &ids).await?;
        let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
        if seen.is_empty() {
            return Ok(None);
        }
        let (_, unseen) = self.run(client, &seen).await?;
        let unseen: Vec<&str> = unseen.iter().map(String::as_str).collect();
        match self.seen(client, &unseen).await?.is_empty() {
            true => Ok(None),
            false => triggers::kept(client, &self.name.to_string()).await,
        }
    }

    /// Which of these ids a row has.
    async fn seen(&self, client: &Client, ids: &[&str]) -> Result<Vec<String>, SqlError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let query = format!(
            "SELECT ({})::text FROM {} WHERE {} AND {}",
            self.id_column.text(),
            self.name,
            self.id_column.is_one_of(ids.iter().copied()),
            self.is_same()
        );
        let rows = client.query(&query, &[]).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// SQL for "it is the table that was looked at": another one under the name may have the same ids.
    fn is_same(&self) -> String {
        let name = quote_literal(&self.name.to_string());
        format!("{name}::regclass = {}::oid", self.oid)
    }

    async fn run(&self, client: &Client, ids: &[&str]) -> Result<(u64, Vec<String>), SqlError> {
        let are_these = |ids: &[&str]| self.id_column.is_one_of(ids.iter().copied());
        let mut unseen = ids.to_vec();
        let statement = format!(
            "{} WHERE ({}){} AND {} AND {FIND_THEIRS} RETURNING ({})::text",
            self.statement,
            are_these(&unseen),
            self.guard,
            self.is_same(),
            self.id_column.text()
        );
        let done = client.query(&statement, &[]).await?;
        remove(&mut unseen, &done)?;
        if !self.settled.is_empty() && !unseen.is_empty() {
            let query = format!(
                "{}({}) AND {}",
                self.settled,
                are_these(&unseen),
                self.is_same()
            );
            remove(&mut unseen, &client.query(&query, &[]).await?)?;
        }
        let unseen = unseen.into_iter().map(str::to_owned);
        Ok((done.len() as u64, unseen.collect()))
    }
}

/// What has become of rows.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// So many were marked or deleted.
    pub(crate) rows: u64,
    /// These the session does not see.
    pub(crate) unseen: Vec<Row>,
}

/// Takes the ids of these rows away.
fn remove(unseen: &mut Vec<&str>, rows: &[tokio_postgres::Row]) -> Result<(), SqlError> {
    let ids: Result<HashSet<&str>, _> = rows.iter().map(|row| row.try_get(0)).collect();
    let ids = ids?;
    unseen.retain(|id| !ids.contains(id));
    Ok(())
}

/// The numbers of transactions: those below the first have ended for every reader, none has the second yet.
///
/// # Errors
/// Postgres refuses.
pub(crate) async fn transactions(client: &Client) -> Result<(u64, u64), SqlError> {
    let query = "SELECT pg_snapshot_xmin(now)::text::int8, pg_snapshot_xmax(now)::text::int8 FROM pg_current_snapshot() now";
    let row = client.query_one(query, &[]).await?;
    let (xmin, xmax): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    Ok((xmin.unsigned_abs(), xmax.unsigned_abs()))
}

/// What the role lacks, as SQL.
async fn missing_grants(
    client: &Client,
    settings: &PostgresSettings,
    inspection: &Inspection,
    table: &Table,
    after: AfterPublish,
) -> Result<Option<String>, SqlError> {
    let (name, id) = (&settings.table, settings.id_column());
    let role = quote_identifier(&inspection.server.role);
    if !table.may_use_schema {
        let schema = quote_identifier(&name.schema);
        return Ok(Some(format!("GRANT USAGE ON SCHEMA {schema} TO {role};")));
    }
    let (query, grants) = match after {
        AfterPublish::Delete => (
            "SELECT has_table_privilege($1::oid, 'DELETE') AND has_column_privilege($1::oid, $2::text, 'SELECT')",
            format!("SELECT ({}), DELETE", quote_identifier(id)),
        ),
        _ => (
            "SELECT has_column_privilege($1::oid, 'dispatched_at', 'UPDATE') \
             AND has_column_privilege($1::oid, 'dispatched_at', 'SELECT') AND has_column_privilege($1::oid, $2::text, 'SELECT')",
            format!(
                "SELECT ({}, {DISPATCHED_AT}), UPDATE ({DISPATCHED_AT})",
                quote_identifier(id)
            ),
        ),
    };
    let row = client.query_one(query, &[&table.oid, &id]).await?;
    let may: bool = row.try_get(0)?;
    Ok((!may).then(|| format!("GRANT {grants} ON {name} TO {role};")))
}

/// Says where rows can only be found by reading the whole table.
async fn slow(
    client: &Client,
    settings: &PostgresSettings,
    table: &Table,
) -> Result<Option<String>, SqlError> {
    let query = "SELECT EXISTS (SELECT FROM pg_index i JOIN pg_attribute a \
                   ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] AND a.attname = $2::text \
                 WHERE i.indrelid = $1 AND i.indpred IS NULL)";
    let id = settings.id_column();
    let row = client.query_one(query, &[&table.oid, &id]).await?;
    let name = &settings.table;
    let has_index: bool = row.try_get(0)?;
    Ok((!has_index).then(|| {
        format!(
            "{name} has no index that begins with {id}, so each batch of published rows is looked for in the whole table: run \
             CREATE INDEX ON {name} ({});",
            quote_identifier(id)
        )
    }))
}
