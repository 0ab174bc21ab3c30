//! `walrelay reshard`, as one run of it goes: it looks how far the outbox is, and does the next step. Killed between any two, it
//! leaves what stands there, and the next run goes on from that.
//!
//! The statements are the simulation's, since the command's own are I/O; what the WAL, the records and the relays make of them is not.

use crate::broker::{Frame, STREAM};
use crate::lanes::{Part, slot_of};
use crate::relay::{Outcome, Relay, Settings};
use crate::world::World;
use std::time::Duration;
use walrelay::nats::api::DEFAULT_PREFIX;
use walrelay::nats::stream::lane_record_subject;
use walrelay::pipeline::position::Lane;
use walrelay::pipeline::record::LaneRecord;
use walrelay::pipeline::request::Request;
use walrelay::pipeline::reshard::{has_lane, lanes_of};
use walrelay::relay::lane_store::LaneStore;

/// One run of the command.
pub(crate) struct Command {
    to: u32,
    /// Nobody writes while it changes the publications.
    pub(crate) is_quiet: bool,
    pub(crate) steps: u64,
    /// When it does its next step.
    pub(crate) at: Duration,
    /// All that shares had that are no more is confirmed here.
    end: Option<u64>,
    /// Its own relays, of shares that are no more.
    pub(crate) relays: Vec<Relay>,
    /// Publications that it has altered so that a relay lets go of the slot.
    touched: Vec<Part>,
    /// The slot that it has made last.
    made: Option<Part>,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There is more to do.
    On,
    /// The outbox has so many shares, and nothing else is left.
    Done,
}

impl Command {
    pub(crate) fn new(to: u32, now: Duration) -> Self {
        Command {
            to,
            is_quiet: false,
            steps: 0,
            at: now,
            end: None,
            relays: Vec::new(),
            touched: Vec::new(),
            made: None,
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self, world: &mut World) {
        for relay in &mut self.relays {
            relay.kill(world);
        }
    }

    /// Does the next step. Where a server is away it waits; the real command fails, and is run again.
    pub(crate) fn step(&mut self, settings: &Settings, world: &mut World) -> Progress {
        self.at = world.now + world.random.micros(500, 300_000);
        if !world.postgres.up || !world.broker.up {
            return Progress::On;
        }
        self.steps += 1;
        self.others_write(6, world);
        let count = world.postgres.publications.count();
        let mut coming = lanes_of(self.to).filter(|part| !has_lane(count, *part));
        if coming.any(|part| self.prepare(part, world)) {
            return Progress::On;
        }
        if count != self.to {
            self.others_write(30, world);
            let lsn = world.postgres.reshard(self.to, &mut world.random);
            self.others_write(30, world);
            world.note(|| format!("from {lsn:X} on there are {} shares", self.to));
            return Progress::On;
        }
        let publications = &world.postgres.publications;
        let leaving: Vec<Part> = publications
            .parts()
            .filter(|part| !publications.has_rows(*part))
            .collect();
        if leaving.is_empty() {
            return Progress::Done;
        }
        self.retire(&leaving, settings, world);
        Progress::On
    }

    /// A step towards a new lane; false where there is all that it needs.
    fn prepare(&mut self, part: Part, world: &mut World) -> bool {
        let slot = slot_of(part);
        let end_lsn = world.postgres.end_lsn;
        let is_there = world.postgres.slot(part).confirmed_lsn.is_some();
        let is_recorded = record(part, world).is_some_and(|(_, record)| !record.retired);
        if !world.postgres.publications.has(part) {
            world.note(|| format!("publication {slot} is made"));
            world.postgres.publications.touch(part);
        } else if is_there && is_recorded {
            return false;
        } else if is_there && self.made == Some(part) {
            store_first_record(part, world);
        } else if is_there {
            self.remove_leftover(part, world);
        } else {
            world.note(|| format!("slot {slot} is made at {end_lsn:X}"));
            world.postgres.slot_mut(part).make(end_lsn);
            self.made = Some(part);
        }
        true
    }

    /// Drops a slot that has no record, or one that is at its end, once nobody reads it. A relay that does looks at everything again
    /// when its publication was altered. Rows behind what such a record has confirmed would be for a person.
    fn remove_leftover(&mut self, part: Part, world: &mut World) {
        if world.postgres.slot(part).walsender.is_none() {
            let published = record(part, world).map_or(0, |(_, it)| it.confirmed_lsn.into());
            let from = world.postgres.slot(part).confirmed_lsn.max(Some(published));
            let holds_rows =
                (world.postgres.events(part)).any(|(_, end_lsn, _, _)| Some(end_lsn) > from);
            if holds_rows {
                let slot = slot_of(part);
                world.fail(format!("slot {slot} has no record, and holds rows"));
                return;
            }
            world.note(|| format!("slot {} is dropped", slot_of(part)));
            world.postgres.slot_mut(part).confirmed_lsn = None;
        } else if !self.touched.contains(&part) {
            self.touched.push(part);
            world.postgres.publications.touch(part);
        }
    }

    /// Writers go on all the time, up to the very moment of the change, and behind it: fewer than so many transactions.
    fn others_write(&self, transactions: u64, world: &mut World) {
        if self.is_quiet {
            return;
        }
        for _ in 0..world.random.below(transactions) {
            let row = world.postgres.row(&mut world.random, false);
            world.postgres.commit(vec![row], &mut world.random);
        }
    }

    /// A step towards the end of shares that are no more.
    fn retire(&mut self, leaving: &[Part], settings: &Settings, world: &mut World) {
        let Some(end) = self.end else {
            self.end = Some(world.postgres.end_lsn);
            world.postgres.write_other(&mut world.random);
            return;
        };
        let is_leftover = |part: &Part| {
            let is_ended = |(_, record): (u64, LaneRecord)| record.retired;
            let is_there = world.postgres.slot(*part).confirmed_lsn.is_some();
            is_there && record(*part, world).is_none_or(is_ended)
        };
        if let Some(part) = leaving.iter().copied().find(is_leftover) {
            self.remove_leftover(part, world);
            return;
        }
        let is_behind = |part: &Part| {
            let confirmed_lsn = world.postgres.slot(*part).confirmed_lsn;
            confirmed_lsn.is_some_and(|lsn| lsn < end)
        };
        let behind: Vec<Part> = leaving.iter().copied().filter(is_behind).collect();
        let mut outcomes = self.relays.iter().filter_map(Relay::outcome);
        if let Some(ended) = outcomes.find(|it| **it != Outcome::Stopped) {
            world.fail(format!("a relay of the command ended: {ended:?}"));
        }
        for part in &behind {
            let is_tried = |relay: &Relay| relay.part() == *part && relay.outcome().is_none();
            if !self.relays.iter().any(is_tried) {
                let settings = Settings {
                    part: *part,
                    ..settings.clone()
                };
                self.relays.push(Relay::new(0, settings, world.now));
            }
        }
        if !behind.is_empty() {
            return;
        }
        for relay in &mut self.relays {
            relay.stop(world.now);
        }
        self.relays.retain(|relay| relay.outcome().is_none());
        let Some(part) = leaving.first().copied().filter(|_| self.relays.is_empty()) else {
            return;
        };
        if world.postgres.slot(part).confirmed_lsn.is_none() {
            world.note(|| format!("publication {} is dropped", slot_of(part)));
            world.postgres.publications.drop(part);
            return;
        }
        if let Some((sequence, record)) = record(part, world) {
            let retired = LaneRecord {
                retired: true,
                ..record
            };
            // The slot goes with the next step.
            store(part, retired, sequence, world);
        }
    }
}

/// The lane's record and its sequence.
pub(crate) fn record(part: Part, world: &World) -> Option<(u64, LaneRecord)> {
    let subject = lane_record_subject(STREAM, slot_of(part));
    let (sequence, frame) = world.broker.records.last_of(&subject)?;
    Some((sequence, *frame.record()?))
}

/// As `setup` does for a slot that it has made.
pub(crate) fn store_first_record(part: Part, world: &mut World) {
    let before = record(part, world);
    let switched_lsn = before.as_ref().and_then(|(_, record)| record.switched_lsn);
    let postgres = &world.postgres;
    let lane = Lane {
        system_identifier: postgres.system_identifier,
        database: postgres.database.clone(),
        slot: slot_of(part).into(),
    };
    let confirmed_lsn = postgres.slot(part).confirmed_lsn.expect("it was made");
    let last = world.broker.events.last_seq;
    let created = world.broker.created();
    let epochs_before = before.as_ref().map(|(_, record)| record.epoch);
    let first = LaneRecord {
        epoch: epochs_before.map_or(0, |epoch| epoch + 1),
        sequence: last,
        confirmed_lsn: confirmed_lsn.into(),
        adopted_sequence: last,
        switched_lsn,
        ..LaneRecord::new(&lane, &postgres.history, STREAM, &created)
    };
    let behind = before.map_or(0, |(sequence, _)| sequence);
    store(part, first, behind, world);
}

fn store(part: Part, record: LaneRecord, behind: u64, world: &mut World) {
    let lane = LaneStore::new(DEFAULT_PREFIX, STREAM, slot_of(part)).expect("a name");
    let record = Box::new(record);
    let outgoing = lane.outgoing(&Request::StoreRecord { record, behind });
    let frame = Frame {
        subject: outgoing.subject,
        headers: outgoing.headers.unwrap_or_default(),
        data: outgoing.payload,
        ..Frame::default()
    };
    world.publish(frame);
}
