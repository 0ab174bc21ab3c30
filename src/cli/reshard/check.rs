//! What has to be so before anything is made.
//!
//! In: the lanes there are and shall be. Out: what is in the way. Guarantee: reads only.

use anyhow::{bail, ensure};

use super::Resharding;
use crate::cli::exit::Exit;
use crate::cli::setup;
use crate::nats::admin::Admin;
use crate::nats::stream::StreamSettings;
use crate::pipeline::end_search::Lookup;
use crate::pipeline::reshard::{Switch, has_lane, lanes_of};
use crate::pipeline::shared_end_search::fence_subject;
use crate::pipeline::subject::SubjectTemplate;
use crate::postgres::catalog::slot_and_wal;
use crate::postgres::sibling_slots;
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

impl Resharding<'_> {
    /// Every lane that there is has its slot: the others wait for what it had. The lane of all rows has it for the stream that is
    /// named, and where that is to take the shares' events too, publishes there as one of several.
    ///
    /// # Errors
    /// One of these is not so, or Postgres or NATS refuse to tell.
    pub(super) async fn check_lanes(&self) -> anyhow::Result<()> {
        let Switch { from, to } = self.switch;
        for part in lanes_of(from) {
            let slot = &self.lane(part).postgres.slot;
            ensure!(
                slot_and_wal(&self.sql, slot).await?.is_some(),
                "there is no replication slot \"{slot}\", whose rows would be passed over: run walrelay setup, and what it says"
            );
        }
        if to < from {
            self.check_records().await?;
        }
        match [from, to].contains(&1) {
            true => self.check_undivided(self.lane(None)).await,
            false => Ok(()),
        }
    }

    /// A share that shall be none any more is published by its record.
    async fn check_records(&self) -> anyhow::Result<()> {
        let Switch { from, to } = self.switch;
        for part in lanes_of(from).filter(|part| !has_lane(to, *part)) {
            let lane = self.lane(part);
            let nats = Admin::connect(&lane.nats.connection).await?;
            let client = LaneClient::new(&nats, &lane.nats.stream, &lane.postgres.slot)?;
            let record = client.record().await?.record;
            ensure!(
                record.is_some_and(|record| !record.retired && record.moved.is_none()),
                self.no_record(part)
            );
        }
        Ok(())
    }

    /// What to do where the record of a share with rows is lost.
    pub(super) fn no_record(&self, part: Option<u32>) -> String {
        let lane = self.lane(part);
        let adopt = match part {
            Some(number) => format!(
                "run walrelay adopt --share {number}, with relay.shares = {} or more",
                (number + 1).next_power_of_two()
            ),
            None => "run walrelay adopt without relay.shares".to_owned(),
        };
        format!(
            "slot {} has no lane record in stream {}, so nothing tells which of its rows are published: {adopt}; then run this again. \
             Where the lane lives in another stream, name that in nats.stream",
            lane.postgres.slot, lane.nats.stream
        )
    }

    async fn check_undivided(&self, lane: &Settings) -> anyhow::Result<()> {
        let (stream, slot) = (&lane.nats.stream, &lane.postgres.slot);
        let is_common = self.shares.iter().any(|share| share.nats.stream == *stream);
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

    /// Whether the server has room for the new slots, and NATS for the new lanes' messages.
    ///
    /// # Errors
    /// Postgres or NATS refuse to tell.
    pub(super) async fn refused(&self) -> Result<Option<Exit>, anyhow::Error> {
        let new: Vec<&Settings> = self.coming().map(|part| self.lane(part)).collect();
        let slots: Vec<&str> = new.iter().map(|lane| lane.postgres.slot.as_str()).collect();
        if let Some(finding) = sibling_slots::room(&self.sql, &slots).await? {
            return Ok(Some(setup::refused(&[finding])));
        }
        let wanted = |lane: &Settings| lane.nats.stream_settings(&lane.postgres.slot);
        let mut streams: Vec<(StreamSettings, &SubjectTemplate)> = Vec::new();
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
                None => streams.push((lane, &settings.nats.subject)),
            }
        }
        let Some(first) = self.shares.first().filter(|_| !streams.is_empty()) else {
            return Ok(None);
        };
        let nats = Admin::connect(&first.nats.connection).await?;
        for (stream, subject) in streams {
            let exit = setup::refused_by_stream(&nats, stream, subject).await?;
            if exit.is_some() {
                return Ok(exit);
            }
        }
        Ok(None)
    }
}
