//! What a new share needs.
//!
//! In: its lane. Out: publication, slot, stream and record. Guarantees: the publication carries nothing yet; the record tells where the
//! slot begins, also where an earlier run of the command was killed between the two.

use std::time::Instant;

use anyhow::{Context as _, bail};

use super::{LOOK_INTERVAL, Resharding};
use crate::cli::exit::Exit;
use crate::cli::setup;
use crate::nats::admin::Admin;
use crate::postgres::error::OBJECT_IN_USE;
use crate::postgres::replication::quote_literal;
use crate::postgres::settings::PostgresSettings;
use crate::relay::Shutdown;
use crate::relay::lane_client::{LaneClient, lane_records};
use crate::relay::lane_records::Database;
use crate::relay::settings::Settings;
use crate::table_name::quote_identifier;

impl Resharding<'_> {
    /// Makes it.
    ///
    /// # Errors
    /// Something is in the way, or Postgres or NATS refuse.
    pub(super) async fn prepare(
        &self,
        part: Option<u32>,
        shutdown: Shutdown,
    ) -> Result<Exit, anyhow::Error> {
        let lane = self.lane(part);
        if !self.division.has(part) {
            let create = self.create(lane);
            let created = self.sql.batch_execute(&create).await;
            created.with_context(|| format!("cannot run {create}"))?;
        }
        let mut stopped = shutdown.clone();
        tokio::select! {
            removed = self.remove_leftover(lane) => removed?,
            () = stopped.wait() => bail!("stopped before its end: run it again"),
        }
        let mut stopped = shutdown;
        // A slot waits for the transactions that are under way.
        let cancel = async {
            let _ended = tokio::time::timeout(self.args.wait, stopped.wait()).await;
        };
        setup::execute_until(setup::Args::default(), lane, cancel).await
    }

    /// Where the configuration names another stream than the lane's, there is no record, and much in the slot.
    async fn check_lives_nowhere(&self, nats: &Admin, lane: &Settings) -> anyhow::Result<()> {
        let slot = &lane.postgres.slot;
        let database = Database::of(&self.sql).await?;
        let records = lane_records(nats, slot, |_| true).await?;
        let mut living = records
            .iter()
            .filter(|record| !record.retired && database.has(record));
        match living.next() {
            None => Ok(()),
            Some(record) => bail!(
                "the lane of slot {slot} lives in stream {}, and {} is what the configuration names for it",
                record.stream,
                lane.nats.stream
            ),
        }
    }

    /// Drops a slot that has no record, as a command leaves it that was killed, or whose record says that it is at its end. Its
    /// publication carries nothing, and no relay begins to read it.
    pub(super) async fn remove_leftover(&self, lane: &Settings) -> anyhow::Result<()> {
        let PostgresSettings {
            slot, publication, ..
        } = &lane.postgres;
        let query = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1::text";
        let begun = Instant::now();
        let mut is_told = false;
        while let Some(row) = self.sql.query_opt(query, &[slot]).await? {
            let nats = Admin::connect(&lane.nats.connection).await?;
            let client = LaneClient::new(&nats, &lane.nats.stream, slot)?;
            let record = client.record().await?.record;
            if record.is_some_and(|record| !record.retired) {
                return Ok(());
            }
            self.check_lives_nowhere(&nats, lane).await?;
            let reader: Option<i32> = row.try_get(0)?;
            let Some(pid) = reader else {
                let drop = format!("SELECT pg_drop_replication_slot({})", quote_literal(slot));
                match self.sql.batch_execute(&drop).await {
                    Err(error) if error.code() == Some(OBJECT_IN_USE) => {}
                    dropped => dropped.with_context(|| format!("cannot drop slot {slot}"))?,
                }
                continue;
            };
            if !std::mem::replace(&mut is_told, true) {
                // A relay that still reads it looks at everything again when the publication was changed, and lets go. Or Postgres
                // still makes the slot of a command that was killed while it waits for a transaction.
                let touch = format!(
                    "ALTER PUBLICATION {} SET (publish = 'insert')",
                    quote_identifier(publication)
                );
                let touched = self.sql.batch_execute(&touch).await;
                touched.with_context(|| format!("cannot run {touch}"))?;
            }
            if begun.elapsed() >= self.args.wait {
                bail!(
                    "slot {slot} is in use by process {pid} of Postgres: SELECT pg_terminate_backend({pid}); ends it. Then run this again"
                );
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }
}
