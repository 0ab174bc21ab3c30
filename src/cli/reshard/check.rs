//! What has to be so before anything is made.
//!
//! In: the lanes there are and shall be. Out: what is in the way. Guarantee: reads only.

use anyhow::{bail, ensure};

use super::Resharding;
use crate::cli::exit::Exit;
use crate::cli::move_lane;
use crate::cli::setup;
use crate::cli::stderr;
use crate::nats::admin::Admin;
use crate::nats::stream::{self, StreamSettings};
use crate::pipeline::end_search::Lookup;
use crate::pipeline::reshard::{Switch, lanes_of};
use crate::pipeline::shared_end_search::fence_subject;
use crate::postgres::catalog::{inspect, slot_and_wal};
use crate::postgres::findings::may_not_replicate;
use crate::postgres::settings::PostgresSettings;
use crate::postgres::wal_end::wal_end;
use crate::postgres::{share_names, sibling_slots, unfinished};
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

impl Resharding<'_> {
    /// Every lane that there is has its slot: the others wait for what it had. The lane of all rows has it for the stream that is
    /// named, and where that is to take the shares' events too, publishes there as one of several.
    ///
    /// # Errors
    /// One of these is not so, or Postgres or NATS refuse to tell.
    async fn check_lanes(&self) -> anyhow::Result<()> {
        let Switch { from, to } = self.switch;
        for part in lanes_of(from) {
            let lane = &self.lane(part).postgres;
            let slot = &lane.slot;
            if slot_and_wal(&self.sql, slot).await?.is_some() {
                continue;
            }
            let found = inspect(&self.sql, lane).await?.slot;
            if let Some(pid) = found.and_then(|found| found.made_by()) {
                bail!("{}: {}", unfinished::what(slot, pid), unfinished::mend(pid));
            }
            bail!(
                "there is no replication slot \"{slot}\", whose rows would be passed over: run walrelay setup, and what it says"
            );
        }
        self.check_moved().await?;
        if to != from {
            self.check_all_go_on().await?;
        }
        match [from, to].contains(&1) {
            true => self.check_undivided(self.lane(None)).await,
            false => Ok(()),
        }
    }

    /// No lane has halted, or would: behind the change each has rows, and others wait for it.
    async fn check_all_go_on(&self) -> anyhow::Result<()> {
        let nats = Admin::connect(&self.shares[0].nats.connection).await?;
        let (identity, _) = setup::identify(&self.shares[0]).await?;
        for part in lanes_of(self.switch.from).chain(self.coming()) {
            let lane = self.lane(part);
            let (stream, slot) = (&lane.nats.stream, &lane.postgres.slot);
            let stored = LaneClient::new(&nats, stream, slot)?.record().await?;
            let record = stored.record.filter(|record| !record.retired);
            let Some(record) = record else { continue };
            let is_there = slot_and_wal(&self.sql, slot).await?.is_some();
            let adopt = adopt(part);
            if !record.is_of(&identity.lane(slot)) {
                bail!(
                    "stream {stream} has the record of a lane of slot {slot} of another database or cluster, so this one would halt: where \
                     this database continues that one, {adopt}; else give the shares another stream, or another name. Then run this again"
                );
            }
            if !is_there {
                bail!(
                    "stream {stream} has the record of a lane of slot {slot}, published through {}, and there is no such slot, so this one \
                     would halt: the database is an earlier one, or somebody has dropped the slot. {adopt}: a lane begins behind what the \
                     stream has. Then run this again",
                    record.confirmed_lsn
                );
            }
            if let Some(halted) = record.halted.as_ref().filter(|_| record.moved.is_none()) {
                bail!(
                    "the lane of slot {slot} has halted: {}. {}. Start its relay, and run this again once it goes on",
                    halted.reason,
                    halted.remedy
                );
            }
            // Behind the record: a relay goes on meanwhile.
            let server_lsn = wal_end(&self.sql).await?;
            ensure!(
                record.confirmed_lsn <= server_lsn,
                "the lane of slot {slot} is published through {}, and the server's WAL ends at {server_lsn}: the database was restored to \
                 an earlier state. {adopt}, start its relay, and run this again",
                record.confirmed_lsn
            );
        }
        Ok(())
    }

    /// Says what somebody else has changed of the publications since a relay last looked: behind this change, nothing tells it from this.
    ///
    /// # Errors
    /// Postgres or NATS refuse to tell.
    pub(super) async fn tell_of_changes(&self) -> anyhow::Result<()> {
        let nats = Admin::connect(&self.shares[0].nats.connection).await?;
        for part in lanes_of(self.switch.from) {
            let lane = self.lane(part);
            let slot = &lane.postgres.slot;
            let client = LaneClient::new(&nats, &lane.nats.stream, slot)?;
            let record = client.record().await?.record;
            let before = record.and_then(|record| record.carrier);
            let now = inspect(&self.sql, &lane.postgres).await?.carrier;
            let both = before.zip(now);
            let both = both.filter(|(before, now)| !before.is_same_but_for_a_reshard(now));
            if let Some(change) = both.and_then(|(before, now)| before.change(&now)) {
                stderr::line(format_args!("warning: slot {slot}: {change}"));
            }
        }
        Ok(())
    }

    /// What to do where this NATS has no record of a lane with rows.
    pub(super) async fn no_record(
        &self,
        nats: &Admin,
        part: Option<u32>,
    ) -> anyhow::Result<String> {
        let lane = self.lane(part);
        let (stream, servers) = (&lane.nats.stream, lane.nats.connection.servers_text());
        let bring = match part {
            Some(number) => move_lane::command_of(number, stream, Some(&servers)),
            None => format!("walrelay move --to-stream {stream} --to-nats {servers}"),
        };
        let lost = match stream::find(nats, stream).await? {
            Some(_) => adopt(part),
            None => format!(
                "run walrelay setup with relay.shares = {}, and what it says",
                self.switch.from
            ),
        };
        Ok(format!(
            "slot {} has no lane record for stream {stream} at {servers}, so nothing tells which of its rows are published. Where its relay \
             runs with another configuration, take that one; where walrelay move is to bring the lane here, run {bring} with that one \
             first. Where this NATS has lost it, {lost}. Then run this again",
            lane.postgres.slot
        ))
    }

    async fn check_undivided(&self, lane: &Settings) -> anyhow::Result<()> {
        let (stream, slot) = (&lane.nats.stream, &lane.postgres.slot);
        // Where their number stays, no share comes to the lane's stream.
        let is_common = self.switch.from != self.switch.to
            && self.shares.iter().any(|share| share.nats.stream == *stream);
        let become_one_of_several = format!(
            "stream {stream} is that of the lane of all rows and of the shares: set nats.shared = true for the lane of all rows, \
             run walrelay setup with it and start its relay again"
        );
        if is_common && !lane.nats.shared {
            bail!(become_one_of_several);
        }
        if self.switch.from != 1 {
            return Ok(());
        }
        let nats = Admin::connect(&lane.nats.connection).await?;
        let client = LaneClient::new(&nats, stream, slot)?;
        let record = client.record().await?.record;
        ensure!(
            record.is_some_and(|record| !record.retired && record.moved.is_none()),
            "no lane of slot {slot} lives in stream {stream}: give the stream and the subject of the lane of all rows as its relay has \
             them, with --undivided-stream and --undivided-subject"
        );
        if is_common {
            // A relay that takes the stream for its own alone would lose its place between the messages of the shares.
            let fence = fence_subject(stream, slot);
            let fence = client.message(Lookup::Last(&fence)).await?;
            ensure!(fence.is_some(), become_one_of_several);
        }
        Ok(())
    }

    /// Whether the lanes can be changed, the new lanes' names are free, the server has room for their slots, and NATS for the new lanes'
    /// messages.
    ///
    /// # Errors
    /// The lanes cannot be changed, or Postgres or NATS refuse to tell.
    pub(super) async fn refused(&self) -> Result<Option<Exit>, anyhow::Error> {
        if let Some(finding) = may_not_replicate(&self.inspection.server) {
            return Ok(Some(setup::refused(&[finding])));
        }
        self.check_lanes().await?;
        let new: Vec<&Settings> = self.coming().map(|part| self.lane(part)).collect();
        let names: Vec<&PostgresSettings> = new.iter().map(|lane| &lane.postgres).collect();
        let taken = share_names::taken(&self.sql, &names, &self.division).await?;
        if !taken.is_empty() {
            return Ok(Some(setup::refused(&taken)));
        }
        let slots: Vec<&str> = new.iter().map(|lane| lane.postgres.slot.as_str()).collect();
        if let Some(finding) = sibling_slots::room(&self.sql, &slots).await? {
            return Ok(Some(setup::refused(&[finding])));
        }
        let wanted = |lane: &Settings| lane.nats.stream_settings(&lane.postgres.slot);
        let mut streams: Vec<(StreamSettings, &Settings)> = Vec::new();
        for settings in new {
            let lane = wanted(settings);
            let known = streams
                .iter_mut()
                .find(|(known, _)| known.name == lane.name);
            // A stream of all shares has to take the dead letters of the new ones: one command for all of them.
            match known {
                Some((known, _)) => {
                    for subject in lane.subjects {
                        if !known.subjects.contains(&subject) {
                            known.subjects.push(subject);
                        }
                    }
                }
                None => streams.push((lane, settings)),
            }
        }
        let Some(first) = self.shares.first().filter(|_| !streams.is_empty()) else {
            return Ok(None);
        };
        let nats = Admin::connect(&first.nats.connection).await?;
        for (stream, lane) in streams {
            let exit = setup::refused_by_stream(&nats, stream, lane).await?;
            if exit.is_some() {
                if lane.postgres.share.is_none() {
                    stderr::line(format_args!(
                        "of the lane of all rows --undivided-subject is nats.subject here, and --undivided-stream nats.stream"
                    ));
                }
                return Ok(exit);
            }
        }
        Ok(None)
    }
}

/// The command, of that lane.
fn adopt(part: Option<u32>) -> String {
    match part {
        Some(number) => format!(
            "run walrelay adopt --share {number}, with relay.shares = {} or more",
            (number + 1).next_power_of_two()
        ),
        None => "run walrelay adopt without relay.shares".to_owned(),
    }
}
