//! A case, what may happen in it, and what must hold.

use super::relay::{Phase, Relay, Stored};
use super::state::State;
use stateright::{Model, Property};

/// How rows are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Each message expects the last sequence and, behind the first, the last message id.
    Chain,
    /// Batches with gap `fail`, each message with the expected last sequence.
    FastIngest,
}

/// A rule that a case may leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The chain expects ids besides sequences.
    ChainIds,
    /// Nothing is sent behind a commit under way.
    WaitForCommit,
    /// The record precedes the confirmation.
    RecordFirst,
    /// Idle WAL in front of the stream's end is held back with it.
    HoldIdleWal,
    /// Events are held back at all.
    HoldBack,
    /// The stream is probed before a confirmation.
    Probe,
    /// A resync goes on only behind the last acknowledged row or one in flight.
    ResyncInFlight,
    /// A resync goes on only where no other relay has written the record.
    ResyncRecord,
}

/// How often what may happen, and what is left out.
#[derive(Debug, Clone)]
pub struct Case {
    pub way: Way,
    pub rows: u8,
    pub relays: u8,
    pub budget: Budget,
    /// A power failure cuts the broker's connections: what was on the way is gone.
    pub cuts: bool,
    /// Keepalives tell of WAL without rows.
    pub idle_wal: bool,
    /// Most messages in flight.
    pub window: u8,
    pub without: Option<Rule>,
}

/// What may still go wrong, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Budget {
    pub relay_crashes: u8,
    pub power_failures: u8,
    pub freezes: u8,
    pub foreign_messages: u8,
    pub purges: u8,
    /// Of the broker's, with a relay that looks for it again.
    pub lost_connections: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Open(u8),
    BeginWithRecord(u8),
    MeetOverlap(u8),
    Send { relay: u8, commits: bool },
    Deliver(u8),
    DeliverLeftBehind(u8),
    ReadAnswers(u8),
    WriteRecord(u8),
    Probe(u8),
    Confirm(u8),
    NoticeLostSlot(u8),
    Resync(u8),
    Crash(u8),
    Freeze(u8),
    Thaw(u8),
    SlotTimesOut,
    SyncEvents,
    SyncRecords,
    PowerFailure,
    ForeignMessage,
    Purge,
}

impl Model for Case {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            budget: self.budget,
            confirmed_lsn: 0,
            slot_of: None,
            stream: Vec::new(),
            synced: 0,
            purged: 0,
            open_batches: Vec::new(),
            record: None,
            record_synced: None,
            tokens: 0,
            relays: vec![Relay::down(); self.relays as usize],
            removed: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for relay in 0..self.relays {
            state.steps(self, relay, actions);
        }
        if let Some(owner) = state.slot_of
            && state.relays[owner as usize].frozen
        {
            actions.push(Action::SlotTimesOut);
        }
        let is_young = |relay: &Relay| relay.old_enough < relay.acknowledged;
        if state.synced < state.last_sequence() || state.relays.iter().any(is_young) {
            actions.push(Action::SyncEvents);
        }
        if state.record_synced != state.record {
            actions.push(Action::SyncRecords);
        }
        let budget = state.budget;
        let unsynced = state.synced < state.last_sequence() || state.record_synced != state.record;
        if budget.power_failures > 0 && unsynced {
            actions.push(Action::PowerFailure);
        }
        if budget.foreign_messages > 0 {
            actions.push(Action::ForeignMessage);
        }
        if budget.purges > 0 && state.purged < state.last_sequence() {
            actions.push(Action::Purge);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Open(relay) => next.open(relay),
            Action::BeginWithRecord(relay) => {
                let recorded_lsn = next.relays[relay as usize].recorded_lsn;
                if next.write_record(relay, recorded_lsn) {
                    let r = &mut next.relays[relay as usize];
                    r.phase = Phase::Streaming;
                    if self.without != Some(Rule::HoldIdleWal) {
                        r.meet_overlap();
                    }
                } else {
                    next.end_epoch(relay);
                }
            }
            Action::MeetOverlap(relay) => {
                next.relays[relay as usize].meet_overlap();
            }
            Action::Send { relay, commits } => next.send(self, relay, commits),
            Action::Deliver(relay) => next.deliver(self, relay),
            Action::DeliverLeftBehind(relay) => {
                let message = next.relays[relay as usize].left_behind.remove(0);
                next.store(self, message);
            }
            Action::ReadAnswers(relay) => next.read_answers(relay),
            Action::WriteRecord(relay) => {
                let r = &next.relays[relay as usize];
                let lsn = r.recorded_lsn.max(r.acknowledged * 2).max(r.target(self));
                if !next.write_record(relay, lsn) {
                    next.end_epoch(relay);
                }
            }
            Action::Probe(relay) => next.probe(self, relay),
            Action::Confirm(relay) => {
                let r = &mut next.relays[relay as usize];
                r.told_lsn = r.probed_lsn;
                r.probed_lsn = 0;
                if next.slot_of == Some(relay) {
                    next.confirmed_lsn = next.confirmed_lsn.max(r.told_lsn);
                }
            }
            Action::NoticeLostSlot(relay) => next.end_epoch(relay),
            Action::Resync(relay) => next.resync(self, relay),
            Action::Crash(relay) => {
                next.budget.relay_crashes -= 1;
                next.end_epoch(relay);
                next.relays[relay as usize].memory = None;
            }
            Action::Freeze(relay) => {
                next.budget.freezes -= 1;
                next.relays[relay as usize].frozen = true;
            }
            Action::Thaw(relay) => next.relays[relay as usize].frozen = false,
            Action::SlotTimesOut => next.slot_of = None,
            Action::SyncEvents => {
                next.synced = next.last_sequence();
                next.nothing_is_young();
            }
            Action::SyncRecords => next.record_synced = next.record,
            Action::PowerFailure => {
                next.budget.power_failures -= 1;
                next.removed = true;
                next.stream.truncate(next.synced as usize);
                next.record = next.record_synced;
                next.open_batches.clear();
                if self.cuts {
                    next.cut_connections();
                }
                next.nothing_is_young();
            }
            Action::ForeignMessage => {
                next.budget.foreign_messages -= 1;
                next.stream.push(Stored { row: 0, token: 0 });
            }
            Action::Purge => {
                next.budget.purges -= 1;
                next.removed = true;
                next.purged = next.last_sequence();
                next.synced = next.purged;
            }
        }
        if next.budget.power_failures == 0 {
            // Nothing tells synced from stored any more.
            next.synced = next.last_sequence();
            next.record_synced = next.record;
            next.nothing_is_young();
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always(ONCE_IN_ORDER, |_, state| {
                state.rows().eq(1..=state.rows().count() as u8)
            }),
            Property::<Self>::always(CONFIRMED_IS_DURABLE, |_, state| {
                let durable = &state.stream[..state.synced as usize];
                let rows = durable.iter().filter(|m| m.row > 0).count();
                rows >= (state.confirmed_lsn / 2) as usize
            }),
            Property::<Self>::always(OLD_EPOCHS_ARE_FENCED, |case, state| {
                state.budget.power_failures < case.budget.power_failures
                    || state
                        .stream
                        .iter()
                        .filter(|m| m.row > 0)
                        .is_sorted_by_key(|m| m.token)
            }),
            Property::<Self>::always(NO_NEEDLESS_HALT, |_, state| {
                state.removed || !state.is_halted()
            }),
            Property::<Self>::always(ENDS_WELL, |case, state| {
                if state.is_done(case) || state.is_halted() {
                    return true;
                }
                let mut actions = Vec::new();
                case.actions(state, &mut actions);
                !actions.is_empty()
            }),
            Property::<Self>::sometimes(ALL_CONFIRMED, |case, state| state.is_done(case)),
        ]
    }
}

/// The stream holds rows 1, 2, 3 … without a gap, each once.
pub const ONCE_IN_ORDER: &str = "the stream holds a gapless prefix in order, each row once";
/// What Postgres may forget, a power failure of the broker cannot take.
pub const CONFIRMED_IS_DURABLE: &str = "no row is confirmed that the broker has not synced";
/// Once a newer epoch has written, an older one writes nothing.
pub const OLD_EPOCHS_ARE_FENCED: &str = "an older epoch writes nothing behind a newer one";
/// A relay halts only where a purge or a power failure took what it needs.
pub const NO_NEEDLESS_HALT: &str = "no halt without a purge or a power failure";
/// Every way on ends with everything published and confirmed, or with a halt: actions are finite, so this is "eventually".
pub const ENDS_WELL: &str =
    "nothing stands still before all is published and confirmed, but a halt";
/// That it can be done.
pub const ALL_CONFIRMED: &str = "everything is published and confirmed";
