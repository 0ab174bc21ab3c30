//! Servers, connections, faults and time; and what must hold at every instant.

mod faults;
mod verdict;

pub(crate) use faults::{ALL_FAULTS, FaultKind};

use crate::broker::{self, Broker, ClientOp};
use crate::lanes::{self, Part};
use crate::net::{Net, Pipe, To};
use crate::postgres::Postgres;
use crate::random::Random;
use crate::relay::{Outcome, Relay};
use std::collections::BTreeMap;
use std::time::Duration;
use walrelay::pipeline::engine::RowPresence;
use walrelay::pipeline::fault::Halt;
use walrelay::pipeline::position::Position;

/// What surrounds the relays.
pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) random: Random,
    pub(crate) net: Net,
    pub(crate) postgres: Postgres,
    pub(crate) broker: Broker,
    /// What the table has of a row that a dead letter cannot hold.
    pub(crate) row_presence: RowPresence,
    /// Largest message that the broker takes.
    pub(crate) message_bytes_max: usize,
    pub(crate) limit_can_be_seen: bool,
    /// How often it was looked at while a relay streamed.
    pub(crate) limit_looks: u64,
    /// Prints what happens.
    pub(crate) verbose: bool,
    pub(crate) failure: Option<String>,
    pub(crate) sync_interval: Duration,
    sync_at: Duration,
    checkpoint_at: Duration,
    broker_up_at: Option<Duration>,
    postgres_up_at: Option<Duration>,
    healed_at: Option<Duration>,
    double_answer: bool,
    /// A loss that the hold-back does not cover is no failure.
    pub(crate) may_lose: bool,
    /// Until then a confirmation may rest on what a stream had that somebody has deleted.
    excused_until: Duration,
    /// Up to here the slot was confirmed when the broker lost messages that the hold-back does not cover.
    pub(crate) lost_through: u64,
    /// Highest confirmed LSN that a record of the lane has told.
    recorded: BTreeMap<Part, u64>,
    pub(crate) removed: bool,
    /// The broker has lost a lane record.
    records_lost: bool,
    /// The broker has lost the lane's only fence in a shared stream.
    fences_lost: bool,
    /// The broker has lost what it had acknowledged.
    pub(crate) messages_lost: bool,
    /// Up to here the broker had stored when it lost some of that.
    lost_seq: u64,
    /// No relay has begun to stream since messages or records were lost.
    pub(crate) loss_unseen: bool,
    /// When an edit of the stream is taken back: not before a relay has seen it.
    mended_at: Duration,
    pub(crate) edit_seen: bool,
    /// The stream has acknowledged what it did not keep, and this is over.
    pub(crate) dropped: bool,
    /// The stream has stored without an acknowledgement.
    pub(crate) unanswered: bool,
    /// A relay has halted where somebody else's message stands in the place of one of the lane's.
    halted_replaced: bool,
}

impl World {
    pub(crate) fn new(seed: u64, verbose: bool) -> Self {
        let mut random = Random::new(seed);
        let postgres = Postgres::new(&mut random);
        World {
            now: Duration::ZERO,
            postgres,
            net: Net::default(),
            broker: Broker::new(true, 500),
            row_presence: RowPresence::Kept,
            message_bytes_max: 3_000,
            limit_can_be_seen: true,
            limit_looks: 0,
            verbose,
            failure: None,
            sync_interval: Duration::from_secs(2),
            sync_at: Duration::ZERO,
            checkpoint_at: Duration::ZERO,
            broker_up_at: None,
            postgres_up_at: None,
            healed_at: None,
            double_answer: false,
            may_lose: false,
            excused_until: Duration::ZERO,
            lost_through: 0,
            recorded: BTreeMap::new(),
            removed: false,
            records_lost: false,
            fences_lost: false,
            messages_lost: false,
            lost_seq: 0,
            loss_unseen: false,
            mended_at: Duration::ZERO,
            edit_seen: false,
            dropped: false,
            unanswered: false,
            halted_replaced: false,
            random,
        }
    }

    pub(crate) fn note(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("{:>10.6} {}", self.now.as_secs_f64(), text());
        }
    }

    pub(crate) fn fail(&mut self, text: String) {
        self.note(|| format!("FAILURE: {text}"));
        self.failure.get_or_insert(text);
    }

    pub(crate) fn close(&mut self, link: usize) {
        self.net.close(link, &mut self.random, self.now);
        if self.messages_lost && self.net.links[link].to == To::Nats {
            // See World::forget_late_frames.
            self.net.links[link].up = Pipe::default();
        }
    }

    /// A connection to Postgres that ends in good order: what was written arrives.
    pub(crate) fn finish(&mut self, link: usize) {
        self.net.links[link].client_open = false;
    }

    /// When something happens next.
    pub(crate) fn next_time(&mut self) -> Duration {
        let mut at = self.sync_at.min(self.checkpoint_at);
        let mended_at = (self.edit_seen && self.broker.edit.is_some()).then_some(self.mended_at);
        for time in [
            self.broker_up_at,
            self.postgres_up_at,
            self.healed_at,
            mended_at,
        ] {
            at = time.map_or(at, |time| at.min(time));
        }
        for link in self.net.live() {
            let link = &self.net.links[link];
            at = link.up.next_time().map_or(at, |time| at.min(time));
            if link.to == To::Postgres
                && !link.client_open
                && link.server_open
                && link.up.is_empty()
            {
                at = self.now;
            }
        }
        for (part, link) in self.postgres.readers() {
            if self.postgres.has_more(part) && self.net.links[link].down.len() < 8_000 {
                at = self.now;
            }
            let asks_at = self.postgres.slot(part).next_time();
            at = asks_at.map_or(at, |time| at.min(time));
        }
        at.max(self.now)
    }

    /// Does what is due.
    pub(crate) fn advance(&mut self) {
        if self.now >= self.sync_at {
            self.broker.sync();
            self.sync_at = self.now + self.sync_interval;
        }
        if self.now >= self.checkpoint_at {
            self.postgres.checkpoint();
            self.checkpoint_at = self.now + self.random.millis(100, 20_000);
        }
        if self.broker_up_at.is_some_and(|at| self.now >= at) {
            self.broker_up_at = None;
            self.broker.up = true;
            self.note(|| "the broker is up".into());
        }
        if self.postgres_up_at.is_some_and(|at| self.now >= at) {
            self.postgres_up_at = None;
            self.postgres.start();
            self.note(|| "Postgres is up".into());
        }
        if self.healed_at.is_some_and(|at| self.now >= at) {
            self.healed_at = None;
            self.broker.refusal = None;
            self.note(|| "the broker takes messages again".into());
        }
        if self.broker.edit.is_some() && self.edit_seen && self.now >= self.mended_at {
            self.broker.edit(None);
            // What the relay has said of it is not to be lost as well.
            self.broker.sync();
            self.note(|| "the stream is as it was".into());
        }
        for at in self.net.live() {
            match self.net.links[at].to {
                To::Nats => self.serve_nats(at),
                To::Postgres => self.serve_postgres(at),
            }
        }
        self.send_wal();
    }

    fn serve_nats(&mut self, at: usize) {
        let link = &mut self.net.links[at];
        if !link.server_open {
            return;
        }
        while let Some(bytes) = link.up.receive(self.now) {
            link.partial.extend(bytes);
        }
        while let Some(op) = broker::take_frame(&mut self.net.links[at].partial) {
            let answers: Vec<Vec<u8>> = match op {
                ClientOp::Ping => vec![b"PONG\r\n".to_vec()],
                ClientOp::Publish(frame) => self.publish(frame),
            };
            let link = &mut self.net.links[at];
            if link.client_open {
                for answer in answers {
                    link.down.send(&answer, self.now, &mut self.random);
                }
            }
        }
    }

    /// What a client publishes; the answers.
    pub(crate) fn publish(&mut self, frame: broker::Frame) -> Vec<Vec<u8>> {
        if self.verbose {
            let expected = frame
                .header("Nats-Expected-Last-Sequence")
                .unwrap_or("-")
                .to_owned();
            let position = frame.header("Walrelay-Position").unwrap_or("-").to_owned();
            let text = format!(
                "→ {} {} after {expected} at {position}",
                frame.subject, frame.reply
            );
            self.note(|| text);
        }
        if frame.subject.starts_with("walrelay.lane.")
            && let Some(record) = frame.record()
        {
            let part = lanes::part_of(&record.slot).expect("a lane of ours");
            let recorded = self.recorded.entry(part).or_default();
            *recorded = (*recorded).max(record.confirmed_lsn.into());
        }
        let before = self.broker.records.last_seq;
        let mut answers = self.broker.handle(frame, self.now);
        if let Some(violation) = self.broker.events.violation.take() {
            self.fail(violation);
        }
        self.read_record(before);
        if self.double_answer && answers.len() == 1 {
            self.double_answer = false;
            answers.push(answers[0].clone());
        }
        for answer in &answers {
            self.note(|| format!("← {} {}", answer.0, answer.2));
        }
        answers.iter().map(broker::answer_bytes).collect()
    }

    /// What a record that was just stored says of the lane's tables.
    fn read_record(&mut self, before: u64) {
        let stored = self.broker.records.messages.last_key_value();
        let stored = stored.filter(|(seq, _)| **seq > before);
        if let Some(record) = stored.and_then(|(_, frame)| frame.record())
            && let Err(problem) = self.postgres.spans.recorded(&record)
        {
            self.fail(problem);
        }
    }

    fn serve_postgres(&mut self, at: usize) {
        let Some(part) = self.postgres.read_over(at) else {
            self.net.links[at].server_open = false;
            return;
        };
        while let Some(bytes) = self.net.links[at].up.receive(self.now) {
            self.net.links[at].partial.extend(bytes);
        }
        while self.net.links[at].partial.len() >= 34 {
            let payload: Vec<u8> = self.net.links[at].partial.drain(..34).collect();
            let slot = self.postgres.slot_mut(part);
            let before = slot.confirmed_lsn.unwrap_or(0);
            if let Some(flush_lsn) = slot.status(&payload, self.now) {
                self.check_confirmed(part, before, flush_lsn);
            }
        }
        let link = &mut self.net.links[at];
        if !link.client_open && link.up.is_empty() {
            link.server_open = false;
            self.postgres.slot_mut(part).walsender = None;
            self.note(|| format!("slot {} is free", lanes::slot_of(part)));
        }
    }

    /// The slot may forget only what the stream has acknowledged and the record has announced.
    fn check_confirmed(&mut self, part: Part, before: u64, flush_lsn: u64) {
        let slot = lanes::slot_of(part);
        self.note(|| format!("slot {slot} is confirmed up to {flush_lsn:X}"));
        if flush_lsn < before {
            self.fail(format!(
                "confirmed goes back from {before:X} to {flush_lsn:X}"
            ));
        }
        let recorded = self.recorded.get(&part).copied().unwrap_or(0);
        if flush_lsn > recorded {
            self.fail(format!(
                "confirmed {flush_lsn:X} is above the record's {recorded:X}"
            ));
        }
        if flush_lsn > self.postgres.end_lsn {
            self.fail(format!(
                "confirmed {flush_lsn:X} is above the end of the WAL"
            ));
        }
        let missing = self
            .postgres
            .events(part)
            .filter(|(_, end_lsn, _, _)| (before + 1..=flush_lsn).contains(end_lsn))
            .find(|(commit_lsn, _, ordinal, _)| {
                let place = (part, position(*commit_lsn, *ordinal));
                !self.broker.events.places.contains(&place)
            })
            .map(|(commit_lsn, end_lsn, ordinal, _)| (position(commit_lsn, ordinal), end_lsn));
        if missing.is_some() && (self.may_lose || self.now < self.excused_until) {
            // The broker lost it between the probe and the status update.
            self.lost_through = self.lost_through.max(flush_lsn);
        }
        if let Some((position, end_lsn)) = missing
            && end_lsn > self.lost_through
        {
            self.fail(format!(
                "confirmed {flush_lsn:X} covers {position}, which the stream does not have"
            ));
        }
    }

    fn send_wal(&mut self) {
        let readers: Vec<(Part, usize)> = self.postgres.readers().collect();
        for (part, at) in readers {
            let slot = self.postgres.slot_mut(part);
            if slot.timed_out(self.now) {
                slot.walsender = None;
                self.note(|| "Postgres cuts the connection: no status update in time".into());
                self.net.cut(at, &mut self.random);
                continue;
            }
            let has_room = self.net.links[at].down.len() < 8_000;
            let bytes = self
                .postgres
                .send(part, has_room, self.now, &mut self.random);
            let down = &mut self.net.links[at].down;
            down.send(&bytes, self.now, &mut self.random);
        }
    }
}

pub(crate) fn position(commit_lsn: u64, ordinal: u64) -> Position {
    Position {
        commit_lsn: commit_lsn.into(),
        ordinal,
    }
}
