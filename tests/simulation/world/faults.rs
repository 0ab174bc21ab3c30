//! What goes wrong, and the healing of it.

use super::*;
use crate::broker::{Edit, STREAM};
use walrelay::pipeline::shared_end_search::fence_subject;

/// An answer on its way, what follows from it, and the way of that.
const LATENCY_MAX: Duration = Duration::from_millis(20);

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    CutNats,
    CutPostgres,
    StallRequests,
    StallAnswers,
    StallWal,
    DoubleAnswer,
    BrokerRestart,
    BrokerAway,
    BrokerCrash,
    SilentLoss,
    Overload,
    Full,
    Poison,
    Foreign,
    Purge,
    DeleteTail,
    Expire,
    Recreate,
    Kill,
    Freeze,
    Stop,
    PostgresCrash,
    ReplaceTable,
    Edit(Edit),
}

pub(crate) const ALL_FAULTS: [FaultKind; 26] = [
    FaultKind::CutNats,
    FaultKind::CutPostgres,
    FaultKind::StallRequests,
    FaultKind::StallAnswers,
    FaultKind::StallWal,
    FaultKind::DoubleAnswer,
    FaultKind::BrokerRestart,
    FaultKind::BrokerAway,
    FaultKind::BrokerCrash,
    FaultKind::SilentLoss,
    FaultKind::Overload,
    FaultKind::Full,
    FaultKind::Poison,
    FaultKind::Foreign,
    FaultKind::Purge,
    FaultKind::DeleteTail,
    FaultKind::Expire,
    FaultKind::Recreate,
    FaultKind::Kill,
    FaultKind::Freeze,
    FaultKind::Stop,
    FaultKind::PostgresCrash,
    FaultKind::ReplaceTable,
    FaultKind::Edit(Edit::Interest),
    FaultKind::Edit(Edit::Subjects),
    FaultKind::Edit(Edit::NoAck),
];

impl World {
    pub(super) fn cut_all(&mut self, to: To) {
        for at in self.net.live() {
            if self.net.links[at].to == to {
                self.net.cut(at, &mut self.random);
            }
        }
    }

    fn broker_down(&mut self, milliseconds: u64) {
        self.cut_all(To::Nats);
        self.broker.up = false;
        self.broker_up_at = Some(self.now + self.random.millis(0, milliseconds));
    }

    /// Where the streams end after a crash: anywhere behind what was synced.
    fn crash_cut(&mut self) -> (u64, u64) {
        let random = &mut self.random;
        let mut cut = |durable: u64, last: u64| match random.below(3) {
            0 => durable,
            1 => last,
            _ => random.between(durable, last.max(durable)),
        };
        let (events, records) = (&self.broker.events, &self.broker.records);
        // The same limits, the other way round. A record from an edit tells a relay that has not seen its end too little. Where shares
        // change, a lost record is for a person (G-117).
        let unsynced = records.removed.range(records.synced_seq..);
        let mut unsynced = unsynced.chain(records.messages.range(records.synced_seq..));
        let is_in_doubt = unsynced.any(|(_, frame)| frame.record().is_some_and(|it| it.doubted));
        let keeps_record = (self.broker.shared && self.removed)
            || self.broker.edit == Some(Edit::Interest)
            || self.postgres.divides
            || is_in_doubt;
        let records_durable = match keeps_record {
            true => records.last_seq,
            false => records.synced_seq,
        };
        (
            cut(events.durable_seq(), events.last_seq),
            cut(records_durable, records.last_seq),
        )
    }

    /// What is gone now and no longer in the slot is lost for good, which the hold-back must prevent.
    fn lose(&mut self, excused: bool, lose: impl FnOnce(&mut Broker)) {
        let before = self.broker.events.places.clone();
        let last_seq = self.broker.events.last_seq;
        let record = self.broker.records.last_seq;
        let fences = self.lanes_with_fence();
        lose(&mut self.broker);
        if self.broker.records.last_seq < record {
            self.records_lost = true;
            self.loss_unseen = true;
        }
        self.fences_lost |= fences > self.lanes_with_fence();
        if !before.is_subset(&self.broker.events.places) {
            self.messages_lost = true;
            self.lost_seq = self.lost_seq.max(last_seq);
            self.loss_unseen = true;
        }
        let confirmed = |part| self.postgres.slot(part).confirmed_lsn.unwrap_or(0);
        let mut lost = before.difference(&self.broker.events.places);
        let gone = lost.find(|(part, position)| {
            let mut events = self.postgres.events(*part);
            events.any(|(commit_lsn, end_lsn, _, _)| {
                position.commit_lsn == commit_lsn.into() && end_lsn <= confirmed(*part)
            })
        });
        let gone = gone.map(|(part, position)| (*position, confirmed(*part)));
        let (events, records) = (self.broker.events.last_seq, self.broker.records.last_seq);
        self.note(|| format!("the streams end at {events} and {records} now"));
        if let Some((position, confirmed)) = gone {
            if !excused && !self.may_lose {
                self.fail(format!("{position} is lost for good"));
            }
            self.lost_through = self.lost_through.max(confirmed);
        }
    }

    /// Whether the lane record is up to date, so that removals of the stream's end are told by it.
    fn record_is_current(&self) -> bool {
        let record = self.broker.records.messages.last_key_value();
        let end = match self.broker.shared {
            true => self.last_fence(None),
            false => self.broker.events.last_seq,
        };
        let record = record.and_then(|(_, frame)| frame.record());
        record.is_some_and(|record| record.sequence == end)
    }

    /// In a shared stream: a lane's last fence does not tell its last message.
    pub(super) fn has_lost_fence(&self) -> bool {
        let published = self.broker.events.published();
        let is_lost = |part: Part| {
            let mut of_lane = published
                .iter()
                .rev()
                .filter(|(_, place, _)| place.0 == part);
            of_lane
                .next()
                .is_some_and(|last| last.0 > self.last_fence(part))
        };
        self.broker.shared && lanes::all().any(is_lost)
    }

    fn lanes_with_fence(&self) -> usize {
        let has_fence = |part: &Part| {
            let fence = fence_subject(STREAM, lanes::slot_of(*part));
            self.broker.events.last_of(&fence).is_some()
        };
        lanes::all().filter(has_fence).count()
    }

    /// Sequence of that lane's last fence; 0 for none.
    fn last_fence(&self, part: Part) -> u64 {
        let fence = fence_subject(STREAM, lanes::slot_of(part));
        let fence = self.broker.events.last_of(&fence);
        fence.map_or(0, |(seq, _)| seq)
    }

    pub(crate) fn inject(&mut self, fault: FaultKind, relays: &mut [Relay]) {
        self.note(|| format!("fault: {fault:?}"));
        let target = self.random.below(relays.len() as u64) as usize;
        let relay = &mut relays[target];
        let links = relay.links();
        let link_to = |world: &World, to| {
            links
                .iter()
                .copied()
                .find(|at| world.net.links[*at].to == to)
        };
        let stall = self.now + self.random.millis(1, 12_000);
        match fault {
            FaultKind::CutNats => {
                if let Some(at) = link_to(self, To::Nats) {
                    self.net.cut(at, &mut self.random);
                }
            }
            FaultKind::CutPostgres => {
                if let Some(at) = link_to(self, To::Postgres) {
                    self.net.cut(at, &mut self.random);
                    if let Some(part) = self.postgres.read_over(at) {
                        self.postgres.slot_mut(part).walsender = None;
                    }
                }
            }
            FaultKind::StallRequests => {
                if let Some(at) = link_to(self, To::Nats) {
                    self.net.links[at].up.stalled_until = stall;
                }
            }
            FaultKind::StallAnswers => {
                if let Some(at) = link_to(self, To::Nats) {
                    self.net.links[at].down.stalled_until = stall;
                }
            }
            FaultKind::StallWal => {
                if let Some(at) = link_to(self, To::Postgres) {
                    self.net.links[at].down.stalled_until = stall;
                }
            }
            FaultKind::DoubleAnswer => self.double_answer = true,
            FaultKind::BrokerRestart => {
                self.broker.sync();
                let end = (self.broker.events.last_seq, self.broker.records.last_seq);
                self.broker.crash(end);
                self.broker_down(3_000);
            }
            // Longer than Postgres waits for a sign of life.
            FaultKind::BrokerAway => self.broker_down(90_000),
            FaultKind::BrokerCrash => {
                let cut = self.crash_cut();
                self.lose(false, |broker| broker.crash(cut));
                self.broker_down(3_000);
            }
            FaultKind::SilentLoss => {
                self.forget_late_frames();
                let cut = self.crash_cut();
                self.lose(false, |broker| broker.lose(cut));
            }
            FaultKind::Overload => {
                self.broker.refusal = Some((429, 10_167));
                self.healed_at = Some(stall);
            }
            FaultKind::Full => {
                self.broker.refusal = Some((503, 10_077));
                self.healed_at = Some(stall);
            }
            FaultKind::Poison => self.poison(),
            // Known limit: just as many messages as a stream had that was made anew, and the lane's next event fits there.
            FaultKind::Foreign if self.loss_unseen && self.broker.is_made_anew() => {}
            FaultKind::Foreign => self.publish_foreign(),
            FaultKind::Purge | FaultKind::DeleteTail | FaultKind::Expire => self.remove(fault),
            // Known limit: made again between a start's look and its fence, a shared stream of which everything was removed
            // takes the fence that tells of that. What a person removed does not come again then.
            FaultKind::Recreate
                if self.broker.shared && self.removed && self.last_fence(None) == 0 => {}
            FaultKind::Recreate => {
                self.forget_late_frames();
                self.lose(true, Broker::recreate);
                self.excuse_probes_under_way();
                self.postgres.spans.forget_removed();
            }
            FaultKind::Kill => relay.kill(self),
            FaultKind::Freeze => {
                relay.frozen_until = self.now + self.random.millis(1, 60_000);
            }
            FaultKind::Stop => relay.stop(self.now),
            FaultKind::ReplaceTable if !self.postgres.up => {}
            FaultKind::ReplaceTable => self.postgres.replace_table(&mut self.random),
            // Known limit, as with every removal: what took the place of lost messages is taken for them.
            FaultKind::Edit(Edit::Interest) if self.loss_unseen => {}
            FaultKind::Edit(edit) => {
                if self.broker.edit.is_none() {
                    self.broker.edit(Some(edit));
                    self.edit_seen = false;
                    self.dropped |= edit == Edit::Interest;
                    self.unanswered |= edit == Edit::NoAck;
                    self.mended_at = stall;
                }
            }
            FaultKind::PostgresCrash => {
                self.postgres.crash();
                self.cut_all(To::Postgres);
                self.postgres_up_at = Some(self.now + self.random.millis(0, 3_000));
            }
        }
    }

    /// Others publish: something of their own, or a copy of an event.
    pub(crate) fn publish_foreign(&mut self) {
        for _ in 0..self.random.between(1, 3) {
            match self.random.one_in(2) {
                true => self.broker.publish_foreign(),
                false => {
                    let count = self.broker.events.messages.len().max(1);
                    self.broker.redrive(self.random.below(count as u64));
                }
            }
        }
    }

    /// Known limit: sequences are the chain's only tie to a stream. Frames of an earlier epoch that arrive after the
    /// stream has lost its end or was recreated, and after just as many messages were stored again, fit once more.
    /// Real connections hardly live that long; here they would.
    fn forget_late_frames(&mut self) {
        for at in self.net.live() {
            let link = &self.net.links[at];
            if link.to == To::Nats && (!link.client_open || link.up.stalled_until > self.now) {
                self.net.cut(at, &mut self.random);
            }
        }
    }

    /// What the old stream has answered to a probe may arrive yet, and the slot be confirmed by it.
    fn excuse_probes_under_way(&mut self) {
        let live = self.net.live();
        let links = live.into_iter().map(|at| &self.net.links[at]);
        let arrived = links
            .map(|link| link.down.stalled_until.max(link.up.stalled_until))
            .fold(self.now, Duration::max);
        self.excused_until = arrived + LATENCY_MAX;
    }

    /// A transaction with an event that the broker will refuse.
    fn poison(&mut self) {
        let rows = self.random.between(1, 6);
        let rows: Vec<_> = (0..rows)
            .map(|_| self.postgres.row(&mut self.random, false))
            .collect();
        let chosen = self.random.below(rows.len() as u64) as usize;
        let id = rows[chosen].values[0].clone().expect("not rejected");
        if self.postgres.up {
            let id = String::from_utf8(id).expect("text");
            self.postgres.commit(rows, &mut self.random);
            self.note(|| format!("the broker refuses event {id}"));
            self.broker.poison.push(id);
        }
    }

    fn remove(&mut self, fault: FaultKind) {
        // Where the record is behind, a person has to look; that ends the run, so it is tried seldom.
        if !self.record_is_current() && !self.random.one_in(5) {
            return;
        }
        // Known limit: what was removed from a batch whose fence a crash has just taken is taken for never published; so
        // is a lane whose messages were removed from a shared stream and whose record is lost as well.
        let has_record = !self.broker.records.messages.is_empty();
        // And a message that took the place of a lost one, and was removed as well, is taken for the lane's.
        let has_replaced = self.broker.events.last_seq <= self.lost_seq || self.loss_unseen;
        if self.has_lost_fence() || has_replaced || (self.broker.shared && !has_record) {
            return;
        }
        self.removed = true;
        let seqs: Vec<u64> = self.broker.events.messages.keys().copied().collect();
        let Some(last) = seqs.last().copied() else {
            return;
        };
        let end = self.random.between(seqs[0], last);
        let chosen = seqs.into_iter().filter(|seq| match fault {
            FaultKind::Purge => true,
            FaultKind::DeleteTail => *seq == last,
            _ => *seq <= end,
        });
        self.broker.events.remove(chosen);
    }

    /// Everything works again.
    pub(crate) fn heal(&mut self, relays: &mut [Relay]) {
        self.note(|| "healed".into());
        self.broker.refusal = None;
        self.mended_at = self.now;
        if self.broker_up_at.take().is_some() {
            self.broker.up = true;
        }
        if self.postgres_up_at.take().is_some() {
            self.postgres.start();
        }
        for link in &mut self.net.links {
            link.up.stalled_until = Duration::ZERO;
            link.down.stalled_until = Duration::ZERO;
        }
        for relay in relays {
            relay.frozen_until = Duration::ZERO;
        }
    }
}
