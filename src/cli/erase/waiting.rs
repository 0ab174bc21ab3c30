//! What an erasure waits for: the relay, which has still to publish, and the lane record.
//!
//! In: rows, or a message of the lane. Out: once they may go. Guarantee: no longer than `--wait`, and then why.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::bail;
use postgres_types::PgLsn;

use super::Erasing;
use crate::cli::verify::slot::{self, Look, Settled};
use crate::counted::counted;
use crate::postgres::publications::publication_list;
use crate::postgres::wal_end::write_on;
use crate::relay::open::source;

/// How often the lane is looked at that is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

impl Erasing<'_> {
    /// Waits until the stream has all of these rows, which were committed below `lsn`.
    pub(super) async fn published(&self, ids: &BTreeSet<String>, lsn: PgLsn) -> anyhow::Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + self.args.wait;
        let slot = &self.settings.postgres.slot;
        write_on(self.sql).await?;
        loop {
            let look = match slot::settle(self.sql, slot, lsn, deadline).await? {
                Settled::Confirmed | Settled::NoSlot => return Ok(()),
                Settled::Behind => bail!(
                    "the relay has not published everything within {:?}: give --wait more",
                    self.args.wait
                ),
                Settled::Idle => Look::Inside,
                Settled::Passed | Settled::SetBack => Look::Beside,
            };
            match (self.pending(ids, lsn, look).await?, look) {
                (None, _) => {}
                (Some(0), _) => return Ok(()),
                (Some(rows), Look::Inside) => bail!(
                    "{}: start walrelay run, and run this again",
                    still_to_come(rows)
                ),
                (Some(rows), Look::Beside) if Instant::now() >= deadline => bail!(
                    "the broker has lost messages of {} of the aggregate, which the relay publishes again from its slot once it reaches \
                     the stream: walrelay status says what it waits for; run this again then",
                    counted(rows, "row", "rows")
                ),
                (Some(_), Look::Beside) => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// How many of these rows the slot holds behind the lane's place; none where somebody has begun to read it.
    async fn pending(
        &self,
        ids: &BTreeSet<String>,
        lsn: PgLsn,
        look: Look,
    ) -> anyhow::Result<Option<u64>> {
        let record = self.lane.record().await?.record;
        let postgres = &self.settings.postgres;
        let mut outbox = source(&self.inspection, self.whole);
        if let Some(record) = &record {
            outbox = outbox.continued(&record.tables, 0.into());
        }
        let named = record
            .as_ref()
            .map_or(&[][..], |record| &record.publications);
        let publications = publication_list(self.sql, postgres, &self.inspection, named).await?;
        let reach = self.lane.reach(&self.settings.nats).await?;
        let lane_end = reach.as_ref().ok().and_then(Option::as_ref);
        let lane_end = lane_end.map(|lane_end| lane_end.position);
        let mut pending = 0;
        let count = |held: slot::Held<'_>| {
            let is_published = lane_end.is_some_and(|lane_end| held.position <= lane_end);
            let is_own = held.outbox == self.outbox;
            let is_one = is_own && held.id.is_some_and(|id| ids.contains(id));
            pending += u64::from(is_one && !is_published);
            Ok(())
        };
        let is_whole = look
            .peek(self.sql, postgres, &publications, outbox, lsn, count)
            .await?;
        match reach {
            Err(halt) if is_whole && pending > 0 => {
                bail!("nothing tells whether {}: {halt}", still_to_come(pending))
            }
            _ => Ok(is_whole.then_some(pending)),
        }
    }

    /// Waits until the lane record is not in front of the lane's message at `sequence`: where that was its last one, only the
    /// record tells where the lane goes on. Where the record says that the lane ends, which may be in front of it where no relay
    /// brings it up to date.
    pub(super) async fn recorded(&self, sequence: Option<u64>) -> anyhow::Result<u64> {
        let deadline = Instant::now() + self.args.wait;
        loop {
            let record = self.lane.record().await?.record;
            let lane_end = record.map_or(0, |record| record.sequence);
            let Some(sequence) = sequence.filter(|sequence| *sequence > lane_end) else {
                return Ok(lane_end);
            };
            let in_use = self.is_read().await?;
            if !in_use && !self.settings.nats.shared {
                return Ok(lane_end);
            }
            if !in_use || Instant::now() >= deadline {
                bail!(
                    "the lane record tells of the lane up to message {lane_end}, and {sequence} is to be erased: {}",
                    match in_use {
                        true => "give --wait more",
                        false =>
                            "start walrelay run, which brings it up to date, and run this again",
                    }
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn is_read(&self) -> anyhow::Result<bool> {
        let query = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1::text AND active)";
        let slot = &self.settings.postgres.slot;
        Ok(self.sql.query_one(query, &[slot]).await?.try_get(0)?)
    }
}

fn still_to_come(rows: u64) -> String {
    counted(
        rows,
        "row of the aggregate is still to be published",
        "rows of the aggregate are still to be published",
    )
}
