//! Whether rows of the table may have been deleted, in whatever order.
//!
//! In: a table, its settings. Out: yes or no, asked for once, and only where it matters. Guarantee: no is said only of a table in which the server
//! has counted no deletion, some time after the table was read, and that has no partitions, which go with their counts.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, sleep};

use crate::pipeline::after_publish::AfterPublish;
use crate::postgres::client::Client;
use crate::postgres::settings::PostgresSettings;
use crate::relay::settings::Settings;

/// A session's counts are seen once it has been idle for ten seconds, or commits again later than a second after the last time
/// (`PGSTAT_IDLE_INTERVAL`, `PGSTAT_MIN_INTERVAL`).
const COUNTED_AFTER: Duration = Duration::from_secs(12);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Deletions(Option<bool>);

impl Deletions {
    /// Whether there may have been some.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub(super) async fn may_have_been(
        &mut self,
        client: &Client,
        settings: &Settings,
        in_recovery: bool,
    ) -> anyhow::Result<bool> {
        if let Some(known) = self.0 {
            return Ok(known);
        }
        // The relay deletes what it publishes, and leaves older rows; marks are there to be deleted by; a standby counts its own
        // statements alone.
        let by_configuration = settings.outbox.after_publish != AfterPublish::Keep;
        let found =
            by_configuration || in_recovery || are_counted(client, &settings.postgres).await?;
        self.0 = Some(found);
        Ok(found)
    }
}

/// Whether the server counts deleted rows in the table or its heirs, or would not count them: a partition that is dropped, detached or
/// emptied leaves no count behind.
async fn are_counted(client: &Client, settings: &PostgresSettings) -> anyhow::Result<bool> {
    let query = "WITH RECURSIVE tree(oid) AS (SELECT $1::text::regclass::oid UNION \
                 SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = oid) \
                 SELECT coalesce(sum(pg_stat_get_tuples_deleted(oid)), 0) > 0 \
                 OR (SELECT relkind = 'p' FROM pg_class WHERE pg_class.oid = $1::text::regclass) FROM tree";
    let table = settings.table.to_string();
    let until = Instant::now() + COUNTED_AFTER;
    loop {
        let row = client.query_one(query, &[&table]).await;
        let row = row.context("the count of deleted rows")?;
        if row.try_get(0)? {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        sleep(LOOK_INTERVAL).await;
    }
}
