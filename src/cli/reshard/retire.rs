//! The end of a share that is no more.
//!
//! In: its lane. Out: no slot and no publication. Guarantees: the slot goes once all that its share had is published and confirmed;
//! where no relay does that, a relay of this command does; the lane's record says that it is at its end, so that a later share of
//! the same number begins anew.

use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use futures_util::future::try_join_all;
use postgres_types::PgLsn;

use super::leases::Leases;
use super::{LOOK_INTERVAL, Resharding};
use crate::cli::dead_letters::letters::Letters;
use crate::cli::{stderr, stdout};
use crate::counted::{counted, is_or_are};
use crate::nats::admin::Admin;
use crate::nats::stream;
use crate::pipeline::record::LaneRecord;
use crate::postgres::catalog::slot_and_wal;
use crate::postgres::division::Division;
use crate::postgres::wal_end::{wal_end, write_on};
use crate::relay::after_publish;
use crate::relay::board::Board;
use crate::relay::crossing::name;
use crate::relay::lane_client::{LaneClient, LaneError};
use crate::relay::settings::Settings;
use crate::relay::{self, Outcome, Shutdown};
use crate::table_name::quote_identifier;

impl Resharding<'_> {
    /// Ends all shares that are no more.
    ///
    /// # Errors
    /// One of them cannot be published, or not in time, a lease is lost, or Postgres or NATS refuse.
    pub(super) async fn retire(&self, leases: &Leases) -> anyhow::Result<()> {
        let leaving: Vec<Option<u32>> = self.leaving().collect();
        if leaving.is_empty() {
            return Ok(());
        }
        let end = wal_end(&self.sql).await?;
        write_on(&self.sql).await?;
        let names: Vec<String> = leaving.iter().copied().map(name).collect();
        stderr::line(format_args!(
            "waiting until what {} had is published and confirmed through {end}",
            names.join(" and ")
        ));
        let lanes: Vec<&Settings> = leaving.iter().map(|part| self.lane(*part)).collect();
        for (part, lane) in leaving.iter().zip(&lanes) {
            self.remove_empty(*part, lane).await?;
        }
        try_join_all(lanes.iter().map(|lane| self.empty(lane, end))).await?;
        // Whoever has one by now may be about to move the lane.
        leases.renew().await?;
        try_join_all((leaving.iter().zip(&lanes)).map(|(part, lane)| self.remove(*part, lane)))
            .await?;
        for part in leaving {
            stdout::write(&format!("{} is no more\n", name(part)))?;
        }
        Ok(())
    }

    async fn remove_empty(&self, part: Option<u32>, lane: &Settings) -> anyhow::Result<()> {
        if self.remove_leftover(lane).await? {
            let nats = Admin::connect(&lane.nats.connection).await?;
            bail!(self.no_record(&nats, part).await?);
        }
        Ok(())
    }

    /// Sees to it that a slot is confirmed through `end`.
    async fn empty(&self, lane: &Settings, end: PgLsn) -> anyhow::Result<()> {
        let slot = &lane.postgres.slot;
        if slot_and_wal(&self.sql, slot).await?.is_none() {
            return Ok(());
        }
        tokio::select! {
            confirmed = self.confirmed(slot, end) => return confirmed,
            // A relay that has it does that.
            unread = self.unread(slot) => unread?,
        }
        let (handle, shutdown) = Shutdown::new();
        let board = Board::of(lane);
        // It waits where another relay reads the slot still.
        let mut relay = Box::pin(relay::run_watched(lane, None, shutdown, &board));
        tokio::select! {
            ended = &mut relay => {
                return match ended.with_context(|| format!("slot {slot}"))? {
                    Outcome::Halted(halt) => {
                        let halt = halt.told(lane.postgres.part());
                        Err(anyhow::anyhow!("slot {slot}: {halt}"))
                    }
                    Outcome::Stopped => Err(anyhow::anyhow!("slot {slot}: stopped")),
                };
            }
            confirmed = self.confirmed(slot, end) => confirmed?,
        }
        handle.stop();
        relay.await?;
        Ok(())
    }

    /// Waits until nobody reads the slot.
    async fn unread(&self, slot: &str) -> anyhow::Result<()> {
        loop {
            let place = slot_and_wal(&self.sql, slot).await?;
            if place.is_none_or(|place| place.active_pid.is_none()) {
                return Ok(());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Looks on the session that has the lock: without it, nothing goes on.
    async fn confirmed(&self, slot: &str, end: PgLsn) -> anyhow::Result<()> {
        let (begun, limit) = (Instant::now(), self.args.wait);
        loop {
            let place = slot_and_wal(&self.sql, slot).await?;
            if place.is_none_or(|place| place.confirmed_flush_lsn >= end) {
                return Ok(());
            }
            if begun.elapsed() >= limit {
                bail!("slot {slot} is not confirmed within {limit:?}: give --wait more");
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn remove(&self, part: Option<u32>, lane: &Settings) -> anyhow::Result<()> {
        let (slot, publication) = (&lane.postgres.slot, &lane.postgres.publication);
        let nats = Admin::connect(&lane.nats.connection).await?;
        let client = LaneClient::new(&nats, &lane.nats.stream, slot)?;
        // A command that was killed while it made the share may have made nothing but the publication.
        let was_made = slot_and_wal(&self.sql, slot).await?.is_some()
            || stream::find(&nats, &lane.nats.stream).await?.is_some();
        if was_made {
            self.tell_of_letters(part, &client).await?;
        }
        let division = Division::look(&self.sql, &lane.postgres).await?;
        ensure!(
            division.carries_nothing(part),
            "somebody has changed publication {publication} meanwhile: it carries rows again, so slot {slot} stays. See walrelay doctor, and \
             run this again"
        );
        if was_made {
            self.settle_rest(part, lane).await;
        }
        // Again where a relay began an epoch meanwhile: a slot that outlives its publication cannot be read.
        while slot_and_wal(&self.sql, slot).await?.is_some() {
            retire_record(&client).await?;
            self.remove_empty(part, lane).await?;
        }
        let drop = format!(
            "DROP PUBLICATION IF EXISTS {}",
            quote_identifier(publication)
        );
        let dropped = self.sql.batch_execute(&drop).await;
        dropped.with_context(|| format!("cannot drop publication {publication}"))
    }

    /// Says how its dead letters are shown once it is no more.
    async fn tell_of_letters(&self, part: Option<u32>, client: &LaneClient) -> anyhow::Result<()> {
        let open = Letters::read(client).await?.open().count();
        if open > 0 {
            let share = match self.switch.to {
                1 => String::new(),
                to => format!(" --share {}", part.unwrap_or(0) % to),
            };
            stderr::line(format_args!(
                "{} of slot {} {} open in stream {}: walrelay dead-letters list{share} shows them from now on",
                counted(open as u64, "dead letter", "dead letters"),
                client.slot(),
                is_or_are(open as u64),
                client.stream_name(),
            ));
        }
        Ok(())
    }

    /// Marks or deletes what it has published, as far as that is configured.
    async fn settle_rest(&self, part: Option<u32>, lane: &Settings) {
        let settled = tokio::time::timeout(self.args.wait, after_publish::settle_rest(lane));
        let settled = settled.await.map_err(anyhow::Error::from).flatten();
        if let Err(why) = settled {
            stderr::line(format_args!(
                "rows that {} has published stay, walrelay prune deletes them: {why:#}",
                name(part)
            ));
        }
    }
}

/// Behind whatever a relay of the lane records meanwhile.
async fn retire_record(client: &LaneClient) -> Result<(), LaneError> {
    loop {
        let stored = client.record().await?;
        let Some(record) = stored.record.filter(|record| !record.retired) else {
            return Ok(());
        };
        let retired = LaneRecord {
            retired: true,
            ..record
        };
        match client.store_record(retired, stored.sequence).await {
            Err(LaneError::Taken) => {}
            stored => return stored.map(drop),
        }
    }
}
