//! The model's world: slot, streams and relays, and what each step does to them.

use super::lane::{Action, Budget, Case, Rule, Way};
use super::relay::{Memory, Phase, Record, Relay, Sent, Stored, Tail};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub budget: Budget,
    pub confirmed_lsn: u8,
    pub slot_of: Option<u8>,
    pub stream: Vec<Stored>,
    pub synced: u8,
    pub purged: u8,
    pub open_batches: Vec<(u8, u8)>,
    pub record: Option<Record>,
    pub record_synced: Option<Record>,
    pub tokens: u8,
    pub relays: Vec<Relay>,
    /// A purge or a power failure has happened: then a halt may be right.
    pub removed: bool,
}

impl State {
    pub fn last_sequence(&self) -> u8 {
        self.stream.len() as u8
    }

    pub fn rows(&self) -> impl Iterator<Item = u8> + '_ {
        self.stream.iter().map(|m| m.row).filter(|row| *row > 0)
    }

    pub fn is_done(&self, case: &Case) -> bool {
        self.confirmed_lsn >= case.rows * 2 && self.rows().count() == case.rows as usize
    }

    pub fn is_halted(&self) -> bool {
        self.relays.iter().any(|relay| relay.phase == Phase::Halted)
    }

    /// `continuity::plan`: where the lane goes on; `None` halts.
    pub fn plan(&self, memory: Option<Memory>, confirmed: u8) -> Option<Tail> {
        let mut found = Tail::default();
        for sequence in (1..=self.last_sequence()).rev() {
            if sequence <= self.purged {
                let usable = |tail: &Tail| tail.sequence == sequence;
                let remembered = memory.map(|memory| memory.tail).filter(usable);
                let recorded = self.record.map(|record| record.tail).filter(usable);
                found = remembered.or(recorded)?;
                break;
            }
            let row = self.stream[sequence as usize - 1].row;
            if row > 0 {
                found = Tail { row, sequence };
                break;
            }
        }
        let explained = (found.row > 0 && found.row * 2 >= confirmed)
            || memory.is_some_and(|memory| confirmed <= memory.confirmed_lsn)
            || match self.record {
                Some(record) => confirmed <= record.confirmed_lsn,
                None => found.row == 0,
            };
        explained.then_some(found)
    }

    pub fn open(&mut self, relay: u8) {
        let memory = self.relays[relay as usize].memory;
        let plan = self.plan(memory, self.confirmed_lsn);
        let (base_sequence, confirmed) = (self.last_sequence(), self.confirmed_lsn);
        let record = self.record.unwrap_or_default();
        self.tokens += 1;
        let token = self.tokens;
        let r = &mut self.relays[relay as usize];
        let Some(tail) = plan else {
            r.phase = Phase::Halted;
            return;
        };
        self.slot_of = Some(relay);
        let base_row = tail.row.max(confirmed / 2);
        *r = Relay {
            phase: Phase::Opened,
            memory,
            epoch: record.epoch + 1,
            token,
            read: base_row,
            base_sequence,
            base_row,
            record_sequence: record.sequence,
            recorded_lsn: record.confirmed_lsn.max(confirmed),
            recorded_tail: tail,
            overlap: tail.row > 0 && tail.row * 2 >= confirmed,
            tail,
            sent: base_row,
            answered: base_row,
            acknowledged: confirmed / 2,
            old_enough: confirmed / 2,
            told_lsn: confirmed,
            left_behind: std::mem::take(&mut r.left_behind),
            ..Relay::down()
        };
    }

    /// `Engine::resume`: a new connection, behind which what was in flight is sent again. The WAL is not asked again, nor the
    /// slot whether it is still the relay's.
    pub fn resync(&mut self, case: &Case, relay: u8) {
        let without = |rule| case.without == Some(rule);
        let r = &self.relays[relay as usize];
        if !r.refused {
            self.budget.lost_connections -= 1;
        }
        let known = Memory {
            tail: r.tail,
            confirmed_lsn: r.told_lsn,
        };
        let record = self.record.unwrap_or_default();
        let overtaken = record.epoch > r.epoch && !without(Rule::ResyncRecord);
        let found = self.plan(Some(known), r.told_lsn).filter(|found| {
            let in_flight = r.tail.row < found.row && found.row <= r.read;
            let unmoved = found.row == r.tail.row && found.sequence >= r.tail.sequence;
            in_flight || unmoved || without(Rule::ResyncInFlight)
        });
        let Some(tail) = found.filter(|_| !overtaken) else {
            self.end_epoch(relay);
            return;
        };
        let base_sequence = self.last_sequence();
        self.tokens += 1;
        let token = self.tokens;
        let r = &mut self.relays[relay as usize];
        let mut left_behind = std::mem::take(&mut r.on_the_way);
        if left_behind.is_empty() {
            left_behind = std::mem::take(&mut r.left_behind);
        }
        // Only what was in flight is kept.
        let base_row = tail.row.clamp(r.tail.row.min(r.read), r.read);
        *r = Relay {
            phase: Phase::Opened,
            token,
            base_sequence,
            base_row,
            record_sequence: record.sequence,
            recorded_lsn: record.confirmed_lsn.max(r.told_lsn),
            recorded_tail: tail,
            tail,
            sent: base_row,
            answered: base_row,
            acknowledged: r.acknowledged.max(if r.overlap { 0 } else { base_row }),
            left_behind,
            commit: None,
            batch_open: false,
            refused: false,
            probed_lsn: 0,
            ..r.clone()
        };
    }

    /// Stores a record behind the one that the relay knows; false when somebody else has.
    pub fn write_record(&mut self, relay: u8, confirmed_lsn: u8) -> bool {
        let r = &mut self.relays[relay as usize];
        let current = self.record.map_or(0, |record| record.sequence);
        if current != r.record_sequence {
            return false;
        }
        r.record_sequence = current + 1;
        r.recorded_lsn = confirmed_lsn;
        r.recorded_tail = r.tail;
        self.record = Some(Record {
            sequence: current + 1,
            tail: r.tail,
            confirmed_lsn,
            epoch: r.epoch,
        });
        true
    }

    pub fn end_epoch(&mut self, relay: u8) {
        self.relays[relay as usize].end_epoch();
        if self.slot_of == Some(relay) {
            self.slot_of = None;
        }
    }

    /// The broker takes a message; whether it is stored.
    pub fn store(&mut self, case: &Case, message: Sent) -> bool {
        let fits = self.last_sequence() == message.expected_sequence;
        let batch = (message.token, message.batch);
        let linked = match case.way {
            Way::Chain => {
                message.first
                    || case.without == Some(Rule::ChainIds)
                    || self.stream.last().is_some_and(|last| {
                        last.row == message.row - 1 && last.token == message.token
                    })
            }
            Way::FastIngest => message.first || self.open_batches.contains(&batch),
        };
        let stored = fits && linked;
        self.open_batches.retain(|open| *open != batch);
        if stored {
            self.stream.push(Stored {
                row: message.row,
                token: message.token,
            });
            if case.way == Way::FastIngest && !message.commits {
                self.open_batches.push(batch);
            }
        }
        stored
    }

    pub fn cut_connections(&mut self) {
        for relay in 0..self.relays.len() {
            if self.relays[relay].phase != Phase::Halted {
                self.end_epoch(relay as u8);
            }
            self.relays[relay].left_behind.clear();
        }
    }

    pub fn nothing_is_young(&mut self) {
        for relay in &mut self.relays {
            relay.old_enough = relay.acknowledged;
        }
    }

    pub fn send(&mut self, case: &Case, relay: u8, commits: bool) {
        let r = &mut self.relays[relay as usize];
        if case.way == Way::FastIngest && !r.batch_open {
            r.batch += 1;
        }
        let first = match case.way {
            Way::Chain => r.sent == r.base_row,
            Way::FastIngest => !r.batch_open,
        };
        r.on_the_way.push(Sent {
            row: r.sent + 1,
            expected_sequence: r.base_sequence + r.sent - r.base_row,
            first,
            commits,
            token: r.token,
            batch: r.batch,
        });
        r.sent += 1;
        r.read = r.read.max(r.sent);
        r.batch_open = !commits;
        if commits {
            r.commit = Some(r.sent);
        }
    }

    pub fn deliver(&mut self, case: &Case, relay: u8) {
        let message = self.relays[relay as usize].on_the_way.remove(0);
        let stored = self.store(case, message);
        let r = &mut self.relays[relay as usize];
        if !stored {
            r.refused = true;
        } else if !r.refused {
            // Answers come in order: behind a refusal the relay reads no more.
            r.answered = message.row;
        }
    }

    pub fn read_answers(&mut self, relay: u8) {
        let r = &mut self.relays[relay as usize];
        if r.answered > r.base_row.max(r.acknowledged) {
            r.acknowledged = r.answered;
            r.tail = Tail {
                row: r.answered,
                sequence: r.base_sequence + r.answered - r.base_row,
            };
            r.commit = r.commit.filter(|row| *row > r.acknowledged);
        } else {
            self.end_epoch(relay);
        }
    }

    /// `confirm`: the stream still is what acknowledged.
    pub fn probe(&mut self, case: &Case, relay: u8) {
        let r = &self.relays[relay as usize];
        let tail = r.tail;
        let stands = tail.row == 0
            || self
                .stream
                .get(tail.sequence as usize - 1)
                .is_some_and(|found| tail.sequence <= self.purged || found.row == tail.row);
        if stands || case.without == Some(Rule::Probe) {
            let target = r.target(case);
            self.relays[relay as usize].probed_lsn = target;
        } else {
            self.end_epoch(relay);
        }
    }

    pub fn steps(&self, case: &Case, relay: u8, actions: &mut Vec<Action>) {
        let r = &self.relays[relay as usize];
        let without = |rule| case.without == Some(rule);
        if r.frozen {
            actions.push(Action::Thaw(relay));
        }
        if !r.on_the_way.is_empty() {
            actions.push(Action::Deliver(relay));
        }
        if !r.left_behind.is_empty() {
            actions.push(Action::DeliverLeftBehind(relay));
        }
        if matches!(r.phase, Phase::Opened | Phase::Streaming) {
            if self.budget.relay_crashes > 0 {
                actions.push(Action::Crash(relay));
            }
            if self.budget.freezes > 0 && !r.frozen {
                actions.push(Action::Freeze(relay));
            }
        }
        if r.phase == Phase::Down && self.slot_of.is_none() {
            actions.push(Action::Open(relay));
        }
        if r.phase == Phase::Opened && !r.frozen {
            actions.push(Action::BeginWithRecord(relay));
        }
        if !r.is_streaming() {
            return;
        }
        if self.slot_of != Some(relay) {
            actions.push(Action::NoticeLostSlot(relay));
        }
        if r.overlap {
            actions.push(Action::MeetOverlap(relay));
        } else if r.sent < case.rows {
            let waits = (r.commit.is_some() && !without(Rule::WaitForCommit))
                || r.sent - r.acknowledged.max(r.base_row) >= case.window;
            if !waits {
                actions.push(Action::Send {
                    relay,
                    commits: false,
                });
                if case.way == Way::FastIngest {
                    actions.push(Action::Send {
                        relay,
                        commits: true,
                    });
                }
            }
        }
        if r.refused || self.budget.lost_connections > 0 {
            actions.push(Action::Resync(relay));
        }
        if r.refused || r.answered > r.base_row.max(r.acknowledged) {
            actions.push(Action::ReadAnswers(relay));
        }
        let target = r.target(case);
        if r.probed_lsn > r.told_lsn {
            actions.push(Action::Confirm(relay));
        } else if target > r.told_lsn && (target <= r.recorded_lsn || without(Rule::RecordFirst)) {
            actions.push(Action::Probe(relay));
        }
        if r.recorded_tail != r.tail || target > r.recorded_lsn {
            actions.push(Action::WriteRecord(relay));
        }
    }
}
