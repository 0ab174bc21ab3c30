//! Whole partitions: those that are old enough go at once, and coming ones are made.
//!
//! In: a table that is partitioned by the column that tells how old a row is. Out: partitions detached, dropped, made.
//! Guarantees: a partition is dropped only when nothing can be inserted into it any more and what it holds is compared and confirmed;
//! one that was detached and not dropped is found again by its comment, and attached; where pg_partman keeps the partitions, none is
//! detached.

use std::time::Duration;

use anyhow::Context as _;
use tokio_postgres::types::ToSql;

use super::age::Cutoff;
use super::kept::Kept;
use super::waited::Waited;
use crate::postgres::client::{Client, SqlError};
use crate::postgres::detached::{self, Detached};
use crate::postgres::id_column::IdColumn;
use crate::postgres::settings::PostgresSettings;
use crate::postgres::setup::Blocker;

/// The table is locked for writers while a partition goes; they are not made to wait for longer than this.
const LOCK_LIMIT: &str = "SET LOCAL lock_timeout = '2s'";
/// SQLSTATE lock_not_available.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// SQLSTATE query_canceled, also by a time-out.
const QUERY_CANCELED: &str = "57014";
/// What the transactions of others are given at least.
const LIMIT_MIN: Duration = Duration::from_secs(2);
/// SQLSTATE check_violation.
const CHECK_VIOLATION: &str = "23514";
/// Days from today on that have a partition afterwards.
const DAYS_AHEAD: i32 = 7;

/// A partition, all of whose rows are old enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partition {
    pub(super) oid: u32,
    /// As SQL.
    pub(super) name: String,
    /// `FOR VALUES …`, as SQL.
    bound: String,
}

/// What has become of one that was detached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finished {
    /// It is gone.
    Dropped,
    /// It is a partition again, since a row in it stays, or somebody has attached it.
    Attached,
    /// These use it for too long.
    InUse(Vec<Blocker>),
}

/// The partitions of a table.
#[derive(Debug)]
pub(super) struct Partitions<'a> {
    client: &'a Client,
    table: String,
    column: String,
    cutoff: &'a Cutoff,
    has_default: bool,
    /// Who keeps them, where that is not us.
    pub(super) keeper: Option<String>,
}

impl<'a> Partitions<'a> {
    /// Of a table that is partitioned by ranges of the column that tells how old a row is; of another one, none.
    ///
    /// # Errors
    /// Postgres refuses.
    pub(super) async fn of(
        client: &'a Client,
        settings: &PostgresSettings,
        cutoff: &'a Cutoff,
    ) -> anyhow::Result<Option<Self>> {
        let query = "SELECT t.partdefid <> 0, pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner)::text \
                     FROM pg_partitioned_table t JOIN pg_class c ON c.oid = t.partrelid \
                     JOIN pg_attribute a ON a.attrelid = t.partrelid AND a.attnum = t.partattrs[0] \
                     WHERE t.partrelid = $1::text::regclass AND t.partstrat = 'r' AND t.partnatts = 1 AND a.attname = $2";
        let table = settings.table.to_string();
        let found = client
            .query_opt(query, &[&table, &cutoff.occurred_at.name()])
            .await?;
        let Some(found) = found else { return Ok(None) };
        let is_ours: bool = found.try_get(1)?;
        let keeper = match is_ours {
            true => partman(client, settings)
                .await?
                .then(|| "pg_partman".to_owned()),
            false => Some(found.try_get(2)?),
        };
        Ok(Some(Partitions {
            client,
            table,
            column: cutoff.occurred_at.name().to_owned(),
            cutoff,
            has_default: found.try_get(0)?,
            keeper,
        }))
    }

    /// Attaches again what a run that did not end has left: meanwhile nobody has seen it, compared it or written there.
    ///
    /// # Errors
    /// Postgres refuses.
    pub(super) async fn attach(&self, left: &Detached) -> Result<(), SqlError> {
        for transaction in left.attach(&self.table) {
            self.together(&[&transaction]).await?;
        }
        Ok(())
    }

    /// One whose detaching has begun and not ended: beside it no other is detached so that writers need not wait.
    ///
    /// # Errors
    /// Postgres refuses.
    pub(super) async fn pending(&self) -> Result<Option<String>, SqlError> {
        let query = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::text::regclass AND inhdetachpending";
        let row = self.client.query_opt(query, &[&self.table]).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// Those whose rows are all old enough; without what `kept` has rows in.
    ///
    /// # Errors
    /// Postgres refuses.
    pub(super) async fn old(&self, kept: &Kept, id: &IdColumn) -> anyhow::Result<Vec<Partition>> {
        let mut old = Vec::new();
        if self.keeper.is_none() {
            let query = format!(
                "SELECT p.oid, p.oid::regclass::text, p.bound FROM ( \
                   SELECT c.oid, pg_get_expr(c.relpartbound, c.oid) AS bound \
                   FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
                   WHERE i.inhparent = $1::text::regclass AND NOT i.inhdetachpending) p \
                 WHERE {} ORDER BY p.oid",
                self.cutoff
                    .has_passed("substring(p.bound FROM $$TO \\('([^']*)'\\)$$)")
            );
            for row in self.client.query(&query, &[&self.table]).await? {
                old.push(Partition {
                    oid: row.try_get(0)?,
                    name: row.try_get(1)?,
                    bound: row.try_get(2)?,
                });
            }
        }
        let mut without = Vec::new();
        for partition in old {
            if !self.holds(&partition, kept, id).await? {
                without.push(partition);
            }
        }
        Ok(without)
    }

    /// Whether a row is in it that stays.
    async fn holds(
        &self,
        partition: &Partition,
        kept: &Kept,
        id: &IdColumn,
    ) -> anyhow::Result<bool> {
        let Some(ids) = kept.are_in(&id.text()) else {
            return Ok(false);
        };
        let query = format!("SELECT EXISTS (SELECT FROM {} WHERE {ids})", partition.name);
        Ok(self.client.query_one(&query, &[]).await?.try_get(0)?)
    }

    /// Makes sure that nothing is inserted into it any more; and who has kept that waiting. Beside a default partition others wait behind
    /// it, and it waits for a moment alone; else for as long as the limit says.
    pub(super) async fn detach(
        &self,
        partition: &Partition,
        limit: Duration,
        waited: Waited<'_>,
        waits_for: impl FnMut(&[Blocker]),
    ) -> (Result<(), SqlError>, Vec<Blocker>) {
        let Partition { name, bound, .. } = partition;
        let table = &self.table;
        let comment = detached::comment(table, name, bound);
        let detach = format!("ALTER TABLE {table} DETACH PARTITION {name}");
        let detached = async {
            match self.has_default {
                // Beside a default partition there is no CONCURRENTLY.
                true => self.together(&[&comment, &detach]).await,
                false => {
                    self.within(limit, &[&comment, &format!("{detach} CONCURRENTLY")])
                        .await
                }
            }
        };
        waited.run(detached, waits_for).await
    }

    /// Drops one that was detached, or gives it back where a row is in it that stays; and who has kept that waiting.
    ///
    /// # Errors
    /// Postgres refuses.
    pub(super) async fn finish(
        &self,
        partition: &Partition,
        (kept, id): (&Kept, &IdColumn),
        limit: Duration,
        waited: Waited<'_>,
        waits_for: impl FnMut(&[Blocker]),
    ) -> anyhow::Result<Finished> {
        let Partition { name, bound, .. } = partition;
        if self.holds(partition, kept, id).await? {
            let attach = format!("ALTER TABLE {} ATTACH PARTITION {name} {bound}", self.table);
            let comment = format!("COMMENT ON TABLE {name} IS NULL");
            self.together(&[&attach, &comment]).await.with_context(|| {
                format!("{name} holds an open dead letter, and cannot be attached again")
            })?;
            return Ok(Finished::Attached);
        }
        let (locked, blockers) = waited.run(self.lock(name, limit), waits_for).await;
        match locked {
            Ok(()) => {}
            Err(error) if error.code() == Some(LOCK_NOT_AVAILABLE) => {
                return Ok(Finished::InUse(blockers));
            }
            Err(error) => return Err(error).with_context(|| format!("cannot drop {name}")),
        }
        let dropped = async {
            let query = "SELECT relispartition FROM pg_class WHERE oid = $1";
            let row = self.client.query_one(query, &[&partition.oid]).await?;
            let is_attached: bool = row.try_get(0)?;
            let (end, finished) = match is_attached {
                true => ("ROLLBACK".to_owned(), Finished::Attached),
                false => (format!("DROP TABLE {name}; COMMIT"), Finished::Dropped),
            };
            self.client.batch_execute(&end).await?;
            anyhow::Ok(finished)
        };
        dropped.await.with_context(|| format!("cannot drop {name}"))
    }

    /// Begins a transaction in which nobody else uses this table; none where it cannot.
    async fn lock(&self, name: &str, limit: Duration) -> Result<(), SqlError> {
        let lock = format!(
            "BEGIN; SET LOCAL lock_timeout = {}; LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE; SET LOCAL lock_timeout = 0",
            milliseconds(limit)
        );
        let locked = self.client.batch_execute(&lock).await;
        if locked.is_err() {
            self.client.batch_execute("ROLLBACK").await?;
        }
        locked
    }

    /// Makes the partitions of today and the days to come, where the table has one a day under our names; what cannot be made
    /// comes with the reason.
    ///
    /// # Errors
    /// Postgres refuses.
    pub(super) async fn make_coming(&self) -> anyhow::Result<Vec<Result<String, String>>> {
        if self.keeper.is_some() || !self.is_daily().await? {
            return Ok(Vec::new());
        }
        let query = format!(
            "SELECT format('%I.%I', n.nspname, m.name), d.day::text, (d.day + 1)::text \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             CROSS JOIN LATERAL (SELECT (now() AT TIME ZONE 'UTC')::date + g AS day FROM generate_series(0, {}) AS g) d \
             CROSS JOIN LATERAL (SELECT c.relname || to_char(d.day, '_YYYYMMDD') AS name) m \
             WHERE c.oid = $1::text::regclass AND NOT EXISTS (SELECT FROM pg_class e \
               WHERE e.relname = m.name AND e.relnamespace = n.oid) ORDER BY d.day",
            DAYS_AHEAD - 1
        );
        let mut made = Vec::new();
        for row in self.client.query(&query, &[&self.table]).await? {
            let (name, from, to): (String, String, String) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let make = format!(
                "CREATE TABLE {name} PARTITION OF {} FOR VALUES FROM ('{from} 00:00:00+00') TO ('{to} 00:00:00+00')",
                self.table
            );
            made.push(match self.together(&[&make]).await {
                Ok(()) => Ok(name),
                Err(error) if error.code() == Some(CHECK_VIOLATION) => Err(format!(
                    "{name} cannot be made: rows of that day are in the default partition; move them out first"
                )),
                Err(error) if error.code() == Some(LOCK_NOT_AVAILABLE) => Err(format!(
                    "{name} is not made: others use the table for too long; the next prune tries again"
                )),
                Err(error) => return Err(error).with_context(|| format!("cannot make {name}")),
            });
        }
        Ok(made)
    }

    /// Whether the partitions are those of sql/outbox_events_partitioned.sql.
    async fn is_daily(&self) -> anyhow::Result<bool> {
        let query = "SELECT coalesce(bool_and(c.relname = p.relname || to_char(lower::date, '_YYYYMMDD') \
                       AND upper - lower = interval '1 day'), false) \
                     FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent \
                     JOIN pg_attribute a ON a.attrelid = p.oid AND a.attname = $2 AND a.atttypid = 'timestamptz'::regtype \
                     CROSS JOIN LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound) b \
                     CROSS JOIN LATERAL (SELECT substring(bound FROM $$FROM \\('([^']*)'\\)$$)::timestamptz AS lower, \
                       substring(bound FROM $$TO \\('([^']*)'\\)$$)::timestamptz AS upper) r \
                     WHERE i.inhparent = $1::text::regclass AND bound <> 'DEFAULT'";
        let parameters: [&(dyn ToSql + Sync); 2] = [&self.table, &self.column];
        let row = self.client.query_one(query, &parameters);
        Ok(row.await?.try_get(0)?)
    }

    /// In one transaction, which waits for a lock no longer than writers may be made to wait behind it.
    async fn together(&self, statements: &[&str]) -> Result<(), SqlError> {
        let all = format!("BEGIN; {LOCK_LIMIT}; {}; COMMIT", statements.join("; "));
        let done = self.client.batch_execute(&all).await;
        if done.is_err() {
            self.client.batch_execute("ROLLBACK").await?;
        }
        done
    }

    /// One by one; the server ends each that takes longer.
    async fn within(&self, limit: Duration, statements: &[&str]) -> Result<(), SqlError> {
        let limit = format!("SET statement_timeout = {}", milliseconds(limit));
        self.client.batch_execute(&limit).await?;
        let mut done = Ok(());
        for statement in statements {
            if done.is_ok() {
                done = self.client.batch_execute(statement).await;
            }
        }
        let unlimited = self.client.batch_execute("SET statement_timeout = 0").await;
        done.and(unlimited)
    }
}

/// As Postgres takes them, which has none for no wait at all.
fn milliseconds(limit: Duration) -> i32 {
    i32::try_from(limit.max(LIMIT_MIN).as_millis()).unwrap_or(i32::MAX)
}

/// Whether a statement was ended since it waited for others for too long.
pub(super) fn is_too_long(error: &SqlError) -> bool {
    matches!(error.code(), Some(LOCK_NOT_AVAILABLE | QUERY_CANCELED))
}

/// Whether pg_partman keeps the table's partitions.
async fn partman(client: &Client, settings: &PostgresSettings) -> anyhow::Result<bool> {
    let query = "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
                 WHERE e.extname = 'pg_partman'";
    let Some(row) = client.query_opt(query, &[]).await? else {
        return Ok(false);
    };
    let schema: String = row.try_get(0)?;
    // Its names are without quotes.
    let table = format!("{}.{}", settings.table.schema, settings.table.table);
    let query =
        format!("SELECT EXISTS (SELECT FROM {schema}.part_config WHERE parent_table = $1::text)");
    Ok(client.query_one(&query, &[&table]).await?.try_get(0)?)
}
