//! The lane leaves the one stream and is in the other.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::stream::Config;

use super::{Move, Side, Stage, left_subject};
use crate::bulk::moved::copied_from;
use crate::cli::adopt;
use crate::nats::admin::Admin;
use crate::nats::filters::covers;
use crate::nats::stream::{self, untaken};
use crate::pipeline::dead_letter;
use crate::pipeline::end_search::{Lookup, Told, split_tail};
use crate::pipeline::fault::Halt;
use crate::pipeline::position::{KIND_HEADER, KIND_MOVED};
use crate::pipeline::record::{HaltNote, LaneRecord, Left, Moved, telling};
use crate::postgres::catalog::inspect;
use crate::postgres::client::Client;
use crate::postgres::processes::{self, Process};
use crate::relay::after_publish::Place;
use crate::relay::clock::now_text;
use crate::relay::lane_client::{LaneError, StreamEnd};
use crate::relay::lane_records;

/// How long the old relay's session may take to end.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);

impl Move {
    /// Takes the lane out of the old stream; the last sequence that can be its own there.
    pub(super) async fn fence(&self) -> anyhow::Result<u64> {
        loop {
            let (record, sequence) = self.record().await?;
            if record.moved.is_some() {
                break;
            }
            let halt = Halt::Moved {
                stream: self.from.stream().to_owned(),
                to: self.to.stream().to_owned(),
                nats: self.nats.clone(),
            };
            let at = now_text();
            let note = HaltNote {
                remedy: halt.remedy_of(self.part()),
                ..HaltNote::of(&halt, at)
            };
            let gone = LaneRecord {
                // Behind the epoch that runs, whose relay neither writes over it nor begins another.
                epoch: record.epoch + 1,
                halted: Some(note),
                moved: Some(Moved::To {
                    stream: self.to.stream().to_owned(),
                    nats: self.nats.clone(),
                }),
                ..record
            };
            match self.from.lane.store_record(gone, sequence).await {
                // The relay has written its own since.
                Err(LaneError::Taken) => {}
                stored => {
                    stored?;
                    break;
                }
            }
        }
        let old = self.from.lane.stream().await?;
        if old.config.sealed {
            // It stores nothing more, for whoever it is.
            return Ok(old.state.last_seq);
        }
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Stream", self.from.stream());
        headers.insert(KIND_HEADER, KIND_MOVED);
        let jetstream = self.from.nats.jetstream();
        let subject = dead_letter::subject(self.from.lane.slot());
        let publish = async {
            let published = jetstream.publish_with_headers(subject, headers, "{}".into());
            Ok(published.await?.await?)
        };
        let stored = self.from.nats.allowed(publish).await;
        let stored =
            stored.context("the old stream refuses the message that ends the lane there")?;
        Ok(stored.sequence)
    }

    /// Makes sure that the old stream takes the message that ends the lane there, and the new one that which begins it: both go by the
    /// subject of the dead letters.
    pub(super) async fn check_dead_letters(&self, stage: Stage) -> anyhow::Result<()> {
        if stage < Stage::Copied && !self.is_sealed {
            let why = "on which a message ends the lane there, so it cannot leave";
            self.takes_dead_letters(&self.from, why).await?;
        }
        // On the same NATS the new one has no subject of its own until it takes the old one's.
        if stage < Stage::Done && self.prefix.is_empty() {
            let why = "on which a message begins the lane there, so it cannot arrive";
            self.takes_dead_letters(&self.to, why).await?;
        }
        Ok(())
    }

    async fn takes_dead_letters(&self, side: &Side, why: &str) -> anyhow::Result<()> {
        let Some(info) = stream::find(&side.nats, side.stream()).await? else {
            return Ok(());
        };
        let Some(finding) = untaken(&info.config, &[dead_letter::subject(side.lane.slot())]) else {
            return Ok(());
        };
        let mend = finding.command.unwrap_or_default();
        bail!(
            "stream {}: {}, {why}: {mend}; then run walrelay move again",
            side.stream(),
            finding.message
        )
    }

    async fn has_subjects(&self) -> anyhow::Result<bool> {
        let old = self.config_of_old().await?;
        Ok(old.subjects != [left_subject(self.from.stream())])
    }

    /// On the same NATS, the target takes over the old stream's subjects.
    pub(super) async fn take_subjects(&self) -> anyhow::Result<()> {
        if self.prefix.is_empty() {
            return Ok(());
        }
        if self.has_subjects().await? {
            let left = Config {
                subjects: vec![left_subject(self.from.stream())],
                ..self.config_of_old().await?
            };
            edit(&self.from.nats, left).await?;
        }
        let jetstream = self.to.nats.jetstream();
        let found = async { Ok(jetstream.get_stream(self.to.stream()).await?) };
        let found = self.to.nats.allowed(found).await?;
        let config = found.cached_info().config.clone();
        let own = config.subjects.iter();
        let own = own.map(|subject| subject.strip_prefix(&self.prefix).unwrap_or(subject));
        let mut subjects: Vec<String> = own.map(str::to_owned).collect();
        // Made from a stream without it, which has it again.
        let letters = dead_letter::subject(self.to.lane.slot());
        if !subjects.iter().any(|taken| covers(taken, &letters)) {
            subjects.push(letters);
        }
        let taken = Config {
            subjects,
            subject_transform: None,
            ..config
        };
        edit(&self.to.nats, taken).await
    }

    /// The lane is there: a message tells its place, and the record.
    pub(super) async fn arrive(&self, sql: &Client) -> anyhow::Result<()> {
        let (gone, _) = self.record().await?;
        let target = self.to.lane.stream().await?;
        let copied = self.to.lane.end().await?;
        let old = self.from.lane.end().await?;
        // What the streams have removed, the record tells. A message of the old relay that was on its way when the subjects went over
        // may stand in the new stream, if that happened to be as long as the old one.
        let recorded = gone.position.map(|position| Told {
            position,
            event_id: gone.event_id.clone(),
            table: gone.table.clone(),
        });
        let lane_end = [told(&copied), told(&old), recorded]
            .into_iter()
            .flatten()
            .max_by_key(|told| told.position);
        let mut sequence = copied.last_sequence;
        if let Some(told) = &lane_end {
            let mark = adopt::Mark {
                stream: self.to.stream(),
                slot: self.to.lane.slot(),
                told,
            };
            sequence = mark.behind(&self.to.nats, sequence).await?;
            tracing::info!("stream {} tells the lane's place", self.to.stream());
        }
        self.take_settled_place(&target.created).await?;
        if let Some((letters, _)) = self.from.lane.letters().await? {
            let there = self.to.lane.letters().await?;
            let behind = there.map_or(0, |(_, behind)| behind);
            self.to.lane.store_letters(&letters, behind).await?;
        }
        let before = |count: u64| if count == 0 { 0 } else { sequence - 1 };
        let left = self.left(&gone, sql).await?;
        let arrived = LaneRecord {
            stream: self.to.stream().to_owned(),
            created: target.created,
            epoch: gone.epoch + 1,
            sequence,
            position: lane_end.as_ref().map(|told| told.position),
            event_id: lane_end.as_ref().and_then(|told| told.event_id.clone()),
            table: lane_end.and_then(|told| told.table),
            active: false,
            adopted_sequence: before(gone.adopted_sequence),
            taken_over_sequence: before(gone.taken_over_sequence),
            halted: None,
            moved: None,
            left,
            ..gone
        };
        let stored = self.to.lane.record().await?;
        let is_waited_for = stored.record.is_some_and(|record| record.moved.is_some());
        ensure!(
            is_waited_for,
            "somebody else has written the lane's record there"
        );
        self.to.lane.store_record(arrived, stored.sequence).await?;
        Ok(())
    }

    /// What the lane has left at other NATS' by now, and what shares have there that are no more: nobody at the new one knows of them.
    async fn left(&self, gone: &LaneRecord, sql: &Client) -> anyhow::Result<Vec<Left>> {
        let mut left = gone.left.clone();
        let Some(nats) = &self.nats else {
            return Ok(left);
        };
        let here = |stream: &str, slot: Option<String>| Left {
            stream: stream.to_owned(),
            nats: self.from.servers(),
            slot,
        };
        let postgres = &self.from.settings.postgres;
        let records = lane_records::of_shares(&self.from.nats, sql, postgres).await?;
        for record in telling(records).into_iter().filter(|it| it.retired) {
            let is_here = record.moved.is_none()
                && (stream::find(&self.from.nats, &record.stream).await?).is_some();
            if is_here {
                left.push(here(&record.stream, Some(record.slot)));
            }
            left.extend(record.left);
        }
        // What is at the new one has its records there.
        let is_there =
            |of: &Left| of.nats == *nats && (of.slot.is_some() || of.stream == self.to.stream());
        left.retain(|of| !is_there(of));
        left.push(here(self.from.stream(), None));
        let mut known = BTreeSet::new();
        left.retain(|of| known.insert(of.clone()));
        Ok(left)
    }

    /// Rows that are marked or deleted for the old stream's messages are so for their copies.
    async fn take_settled_place(&self, created: &str) -> anyhow::Result<()> {
        let stored = self.from.lane.settled().await?;
        let place = stored.and_then(|message| Place::stored(&message.data, &self.created));
        let Some(settled) = place else { return Ok(()) };
        let (mut done, mut above) = (0, self.to.lane.stream().await?.state.last_seq);
        while done < above {
            let from = done + (above - done).div_ceil(2);
            let next = self.to.lane.message(Lookup::Next { from, filter: ">" });
            let next = next.await?.and_then(|message| {
                let origin = copied_from(&message, &self.created)?;
                (origin <= settled.sequence).then_some(message.seq)
            });
            match next {
                Some(sequence) => done = sequence,
                None => above = from - 1,
            }
        }
        let place = Place {
            created: created.to_owned(),
            sequence: done,
        };
        let behind = self.to.lane.settled().await?;
        let behind = behind.map_or(0, |message| message.seq);
        self.to.lane.store_settled(place.to_json(), behind).await?;
        Ok(())
    }

    /// Who reads from the slot: the old relay, since no other may yet.
    pub(super) async fn reader(&self, sql: &Client) -> anyhow::Result<Option<Process>> {
        let slot = inspect(sql, &self.from.settings.postgres).await?.slot;
        match slot.and_then(|slot| slot.active_pid) {
            Some(pid) => Ok(processes::process(sql, pid).await?),
            None => Ok(None),
        }
    }
}

/// The lane's place as a stream's end tells it.
fn told(end: &StreamEnd) -> Option<Told> {
    split_tail(&end.lane_end).map(|(_, told)| told)
}

/// Ends the old relay's session, so that it looks at the record now and not at its next event; the relay that waits has the slot then.
pub(super) async fn release_slot(sql: &Client, reader: Option<Process>) -> anyhow::Result<()> {
    if let Some(process) = reader {
        processes::end_process(sql, &process, RELEASE_LIMIT)
            .await
            .context("the old relay's session cannot be ended, and it keeps the slot until its next event")?;
    }
    Ok(())
}

async fn edit(nats: &Admin, config: Config) -> anyhow::Result<()> {
    let name = config.name.clone();
    let jetstream = nats.jetstream();
    let edited = async { Ok(jetstream.update_stream(config).await?) };
    let edited = nats.allowed(edited).await;
    edited.with_context(|| format!("stream {name} cannot be edited"))?;
    Ok(())
}
