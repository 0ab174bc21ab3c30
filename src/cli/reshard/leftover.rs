//! A slot that a command has left behind that was killed.
//!
//! In: a lane that is no share yet, or no more. Out: no slot of its name, where that has no row. Guarantees: a slot with a record that
//! is not at its end stays, and so does one that holds a row of its publication which no record says is published.

use std::time::Instant;

use anyhow::{Context as _, bail};
use postgres_types::{PgLsn, ToSql};

use super::{LOOK_INTERVAL, Resharding};
use crate::cli::setup;
use crate::nats::admin::Admin;
use crate::pipeline::record::{LaneRecord, telling};
use crate::pipeline::reshard::common_stream;
use crate::postgres::client::SqlError;
use crate::postgres::error::OBJECT_IN_USE;
use crate::postgres::replication::quote_literal;
use crate::postgres::settings::PostgresSettings;
use crate::relay::lane_client::{LaneClient, lane_records};
use crate::relay::lane_records::Database;
use crate::relay::settings::Settings;
use crate::table_name::quote_identifier;

impl Resharding<'_> {
    /// Where the configuration names another stream than the lane's, there is no record, and much in the slot.
    pub(super) async fn check_lives_nowhere(
        &self,
        nats: &Admin,
        lane: &Settings,
    ) -> anyhow::Result<()> {
        let slot = &lane.postgres.slot;
        let database = Database::of(&self.sql).await?;
        let records = lane_records(nats, slot).await?;
        // One that has moved has a record where it was, too.
        let records = records.into_iter().filter(|record| database.has(record));
        let mut living = telling(records.collect()).into_iter();
        match living.find(|record| !record.retired) {
            None => Ok(()),
            Some(record) => {
                let part = lane.postgres.part();
                let common = part.and_then(|number| common_stream(&record.stream, number));
                let mend = common.filter(|_| record.moved.is_none()).map(|common| {
                    format!(
                        ": run walrelay reshard --shares {} --stream '{common}', while relays of the lanes that there are run with the \
                         configuration that they have",
                        self.switch.to
                    )
                });
                bail!(
                    "the lane of slot {slot} lives in stream {}, and {} is what the configuration names for it{}",
                    record.stream,
                    lane.nats.stream,
                    mend.unwrap_or_default()
                )
            }
        }
    }

    /// Drops a slot that has no record, as a command leaves it that was killed, or whose record says that it is at its end. Its
    /// publication carries nothing, and no relay begins to read it. A record can be lost, so the slot itself is asked for rows of a
    /// time when the publication carried some: true where it stays, since it holds them.
    pub(super) async fn remove_leftover(&self, lane: &Settings) -> anyhow::Result<bool> {
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
            if record.as_ref().is_some_and(|record| !record.retired) {
                return Ok(false);
            }
            self.check_lives_nowhere(&nats, lane).await?;
            let reader: Option<i32> = row.try_get(0)?;
            let Some(pid) = reader else {
                let published = match &record {
                    Some(record) => published_through(record, lane).await?,
                    None => 0.into(),
                };
                match self.drop_without_rows(&lane.postgres, published).await {
                    Ok(true) => {}
                    Ok(false) => return Ok(true),
                    Err(error) if error.code() == Some(OBJECT_IN_USE) => {}
                    Err(error) => {
                        return Err(anyhow::Error::new(error).context(format!(
                            "cannot drop slot {slot}, which has no lane record, since nothing tells whether it holds rows. Where no relay \
                             ever read it, SELECT pg_drop_replication_slot({}); drops it; then run this again",
                            quote_literal(slot)
                        )));
                    }
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
        Ok(false)
    }

    /// Drops it; false where it holds a row of its publication that comes behind `published`, and stays.
    async fn drop_without_rows(
        &self,
        lane: &PostgresSettings,
        published: PgLsn,
    ) -> Result<bool, SqlError> {
        // An Insert of pgoutput begins with its letter (manual, 54.9).
        let holds_rows = "SELECT EXISTS (SELECT FROM pg_catalog.pg_logical_slot_peek_binary_changes($1, NULL, NULL, \
             'proto_version', '1', 'publication_names', $2) WHERE lsn > $3 AND pg_catalog.get_byte(data, 0) = pg_catalog.ascii('I'))";
        let publication = quote_identifier(&lane.publication);
        let named: [&(dyn ToSql + Sync); 3] = [&lane.slot, &publication, &published];
        let found = self.sql.query_one(holds_rows, &named).await?;
        if found.try_get(0)? {
            return Ok(false);
        }
        let drop = format!(
            "SELECT pg_drop_replication_slot({})",
            quote_literal(&lane.slot)
        );
        self.sql.batch_execute(&drop).await?;
        Ok(true)
    }
}

/// Up to where a share was published whose record says that it is at its end. A crash can set its slot back to before that.
async fn published_through(record: &LaneRecord, lane: &Settings) -> anyhow::Result<PgLsn> {
    let (identity, history) = setup::identify(lane).await?;
    Ok(record.published_through(&identity.lane(&lane.postgres.slot), &history))
}
