//! The rows that go, one batch after the other.
//!
//! In: a moment, two sessions. Out: rows deleted. Guarantees: only rows that were committed before the moment, each found by its
//! place in the table, which the snapshot of the deletion keeps from being given to another row; memory does not grow with their number.

use std::collections::BTreeMap;

use anyhow::Context as _;
use postgres_types::PgLsn;

use super::kept::Kept;
use super::partitions::Partition;
use crate::postgres::client::Client;
use crate::postgres::triggers::FIND_THEIRS;
use crate::relay::Shutdown;

/// A moment, by which rows are told from later ones without a snapshot that would hold back vacuum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moment {
    /// The oldest transaction that was running, as Postgres writes it.
    oldest_running: String,
    /// What was committed by then was committed below this.
    pub(super) lsn: PgLsn,
}

/// The table under one snapshot.
pub(super) struct Snapshot<'a> {
    client: &'a Client,
}

/// What has become of the rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Deleted {
    pub(super) rows: u64,
    /// Open dead letters.
    pub(super) kept: u64,
    /// Changed or deleted by somebody else since the snapshot.
    pub(super) changed: u64,
    /// It was told to stop.
    pub(super) stopped: bool,
}

/// Which rows, and how many at once.
#[derive(Debug, Clone)]
pub(super) struct Batches {
    /// The table, as SQL.
    pub(super) table: String,
    /// SQL.
    pub(super) condition: String,
    /// SQL for an id's text.
    pub(super) id: String,
    pub(super) size: u32,
}

impl Moment {
    /// The present one.
    ///
    /// # Errors
    /// Postgres refuses.
    pub(super) async fn now(client: &Client) -> anyhow::Result<Self> {
        // The snapshot is taken before the statement runs, and a transaction stops running only behind the insertion of its
        // commit record, so all that had ended by the snapshot lies below.
        let query = "SELECT pg_snapshot_xmin(pg_current_snapshot())::xid::text, pg_current_wal_insert_lsn()";
        let row = client.query_one(query, &[]).await?;
        Ok(Moment {
            oldest_running: row.try_get(0)?,
            lsn: row.try_get(1)?,
        })
    }

    /// SQL for "is a row of a transaction that began before all that were running then".
    fn is_of_before(&self) -> String {
        // By the distance from now, since the numbers of transactions come round: the old number of a frozen row may look young.
        format!(
            "NOT age(xmin) BETWEEN 0 AND age('{}'::xid)",
            self.oldest_running
        )
    }
}

impl Batches {
    /// Without rows of later than this.
    pub(super) fn of_before(mut self, moment: &Moment) -> Self {
        self.condition += &format!(" AND {}", moment.is_of_before());
        self
    }

    /// Whether there are any.
    ///
    /// # Errors
    /// Postgres refuses.
    pub(super) async fn has_rows(&self, client: &Client) -> anyhow::Result<bool> {
        let Batches {
            table, condition, ..
        } = self;
        let query = format!("SELECT EXISTS (SELECT FROM {table} WHERE {condition})");
        let row = client.query_one(&query, &[]).await;
        Ok(row
            .with_context(|| format!("cannot read {table}"))?
            .try_get(0)?)
    }

    /// Without the rows of these partitions.
    pub(super) fn leave_out(&mut self, partitions: &[Partition]) {
        let oids: Vec<String> = partitions
            .iter()
            .map(|found| found.oid.to_string())
            .collect();
        self.condition += &format!(
            " AND tableoid NOT IN (SELECT relid FROM unnest(ARRAY[{}]::oid[]) AS root, pg_partition_tree(root))",
            oids.join(",")
        );
    }
}

impl<'a> Snapshot<'a> {
    /// Takes one, in a transaction that stays open.
    ///
    /// # Errors
    /// Postgres refuses.
    pub(super) async fn take(client: &'a Client) -> anyhow::Result<Self> {
        client
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await?;
        Ok(Snapshot { client })
    }

    /// How many rows there are, and how many of them stay.
    ///
    /// # Errors
    /// Postgres refuses.
    pub(super) async fn count(&self, batches: &Batches, kept: &Kept) -> anyhow::Result<Deleted> {
        self.open(batches).await?;
        let mut counted = Deleted::default();
        loop {
            let batch = self.fetch(batches, kept, &mut counted).await?;
            let Some(batch) = batch else {
                return Ok(counted);
            };
            counted.rows += batch.rows();
        }
    }

    /// Deletes them through `writer`, each batch in a transaction of its own.
    ///
    /// # Errors
    /// Postgres refuses; what was deleted until then is.
    pub(super) async fn delete(
        &self,
        writer: &Client,
        batches: &Batches,
        kept: &Kept,
        shutdown: &Shutdown,
        mut each: impl FnMut(&Deleted),
    ) -> anyhow::Result<Deleted> {
        self.open(batches).await?;
        let mut deleted = Deleted::default();
        while let Some(batch) = self.fetch(batches, kept, &mut deleted).await? {
            if shutdown.is_sent() {
                deleted.stopped = true;
                break;
            }
            let wanted = batch.rows();
            let rows = batch.delete(writer, &batches.table).await?;
            deleted.rows += rows;
            deleted.changed += wanted - rows;
            each(&deleted);
        }
        Ok(deleted)
    }

    async fn open(&self, batches: &Batches) -> anyhow::Result<()> {
        let Batches {
            table,
            condition,
            id,
            ..
        } = batches;
        let cursor = format!(
            "DECLARE pruned NO SCROLL CURSOR FOR \
             SELECT tableoid, ctid::text, ({id})::text FROM {table} WHERE {condition}"
        );
        self.client
            .batch_execute(&cursor)
            .await
            .with_context(|| format!("cannot read {table}"))
    }

    /// The next rows, without those that stay; none at the end.
    async fn fetch(
        &self,
        batches: &Batches,
        kept: &Kept,
        counts: &mut Deleted,
    ) -> anyhow::Result<Option<Batch>> {
        let fetch = format!("FETCH {} FROM pruned", batches.size);
        let rows = self.client.query(&fetch, &[]).await?;
        if rows.is_empty() {
            self.client.batch_execute("CLOSE pruned").await?;
            return Ok(None);
        }
        let mut batch = Batch::default();
        for row in rows {
            let id: Option<String> = row.try_get(2)?;
            if id.is_some_and(|id| kept.has(&id)) {
                counts.kept += 1;
                continue;
            }
            let leaf: u32 = row.try_get(0)?;
            batch.0.entry(leaf).or_default().push(row.try_get(1)?);
        }
        Ok(Some(batch))
    }
}

/// Places of rows, by the table or partition that holds them.
#[derive(Debug, Default)]
struct Batch(BTreeMap<u32, Vec<String>>);

impl Batch {
    fn rows(&self) -> u64 {
        self.0.values().map(|places| places.len() as u64).sum()
    }

    /// By the name of the whole table, whose rights count.
    async fn delete(&self, writer: &Client, table: &str) -> anyhow::Result<u64> {
        let delete = format!(
            "DELETE FROM {table} WHERE tableoid = $1 AND ctid = ANY ($2::text[]::tid[]) AND {FIND_THEIRS}"
        );
        let mut rows = 0;
        for (leaf, places) in &self.0 {
            rows += writer
                .answer(writer.execute(&delete, &[leaf, places]))
                .await
                .with_context(|| format!("cannot delete from {table}"))?;
        }
        Ok(rows)
    }
}
