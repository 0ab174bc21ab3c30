//! One epoch: WAL in, frames for the broker out; answers in, status updates out.
//!
//! In: CopyData payloads, the broker's answers, the time. Out: HPUB frames appended to the caller's buffer, requests
//! to the broker, status updates, notes for the log. Guarantees: rows leave in the order of the WAL; none at or below
//! the lane end leaves again, unless asked for as a replay; the WAL is proven to continue the stream before the
//! first row behind it leaves (replays come before that proof); the slot is confirmed only through acknowledged, recorded and probed rows.
//!
//! The caller's turn: hand over payloads while [`Engine::wants_wal`], then [`Engine::end_turn`], then write the frames.

mod confirming;
mod crossing;
mod emit;
mod reject;
mod resync;
#[cfg(test)]
pub(crate) mod sample;
mod tables;
mod wal;

pub use super::fault::Stop;
pub use crossing::CrossingQuestion;
pub use reject::{RowPresence, RowQuestion};
pub use resync::Resumed;

use super::carrier::Carrier;
use super::commit_time::CommitTimes;
use super::confirm::{self, Confirm};
use super::continuity::{Overlap, Plan};
use super::dead_letter::{self, RejectedRow};
use super::epochs::Refused;
use super::fault::{Fault, Halt};
use super::history::History;
use super::lane_end::{LaneEnd, Memory};
use super::position::{Lane, Position};
use super::progress::{HeldMarks, Progress};
use super::publications::PublicationName;
use super::publish::{Mode, Traffic, Window, WindowLimits, WindowSettings};
use super::record::LaneRecord;
use super::relations::{Foreign, Relations};
use super::shared_end_search::fence_subject;
use super::source::Source;
use bytes::BytesMut;
use crossing::Crossing;
use postgres_types::PgLsn;
use reject::Pending;
use std::collections::VecDeque;
use std::time::Duration;

/// What is settled before an epoch's start, and the start does not decide.
#[derive(Debug)]
pub struct EpochSettings {
    /// The outbox table.
    pub source: Source,
    /// Under which names the publication is read, one behind the other; empty where there is no such thing.
    pub publications: Vec<PublicationName>,
    /// What carries the table's rows, for the record.
    pub carrier: Option<Carrier>,
    /// Here the table was seen to have all columns that the event needs.
    pub catalog_lsn: PgLsn,
    /// The connection to the broker, and what may be in flight on it.
    pub limits: WindowLimits,
    /// How long an acknowledged event stays in the slot.
    pub hold_back: Duration,
    /// Most WAL in bytes that the hold-back may keep.
    pub held_bytes_max: u64,
    /// The server is a standby, which may leave its timeline while it is read: WAL up to here is on the epoch's.
    pub on_timeline: Option<PgLsn>,
    /// Longest time between two status updates.
    pub status_interval: Duration,
    /// A row that cannot be published halts the relay instead of becoming a dead letter.
    pub halt_on_reject: bool,
    /// The rows that the broker refused in epochs before, and would refuse again.
    pub refused: Refused,
    /// Number of the lane's share; none where the lane has all rows.
    pub share: Option<u32>,
    /// The row for which the epoch before has ended, since it fits by a limit that was raised: it is not asked for again.
    pub limit_raised_for: Option<Position>,
}

/// All that an epoch runs by.
#[derive(Debug)]
pub struct EngineSettings {
    /// Who the lane is.
    pub lane: Lane,
    /// Where the server's WAL comes from.
    pub history: History,
    /// When the stream was created, as the server writes it.
    pub created: String,
    /// Number of this epoch, for the record.
    pub number: u64,
    /// The lane record found at the start.
    pub record: Option<LaneRecord>,
    /// How to publish.
    pub mode: Mode,
    /// The stream that takes the events.
    pub stream: String,
    /// Its replicas.
    pub num_replicas: usize,
    /// The slot's confirmed LSN at the start.
    pub confirmed_flush_lsn: PgLsn,
    /// Which process of the broker answers; none where that does not tell who stores.
    pub server_id: Option<String>,
    /// Marks of the epoch before that still stand, once the WAL is seen to go on.
    pub held: HeldMarks,
    /// What was settled before.
    pub epoch: EpochSettings,
}

impl EngineSettings {
    /// Rows that a person has allowed to pass as dead letters, whatever they lose.
    fn skips(&self) -> &[Position] {
        self.record.as_ref().map_or(&[], |record| &record.skips)
    }

    /// The confirmations on a new connection to the broker.
    fn confirm(&self, confirmed_lsn: PgLsn, lane_end: Option<LaneEnd>, now: Duration) -> Confirm {
        let record = self.record.as_ref();
        let start = confirm::Start {
            stream: self.stream.clone(),
            created: self.created.clone(),
            confirmed_lsn,
            recorded_lsn: record.map_or(0.into(), |record| record.confirmed_lsn),
            lane_end,
            chained: self.mode.preparation().chained,
            num_replicas: self.num_replicas,
            timeout: self.epoch.limits.ack_timeout,
        };
        Confirm::new(start, now)
    }

    fn window(&self) -> WindowSettings {
        WindowSettings {
            mode: self.mode,
            stream: self.stream.clone(),
            slot: self.lane.slot.clone(),
            fence_subject: fence_subject(&self.stream, &self.lane.slot),
            tables: self.epoch.source.tables(),
            limits: self.epoch.limits.clone(),
        }
    }
}

/// Something for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A row became a dead letter, which is stored.
    DeadLetter(RejectedRow),
    /// The publication also holds another table, whose rows are passed over.
    OtherTable(Foreign),
    /// The row at the stream's last position arrived: the WAL continues the stream.
    Continued(Position),
    /// A message of the WAL that belongs to no transaction is passed over; the first one of the epoch.
    NotTransactional,
    /// The hold-back keeps more WAL than it may, and confirms early.
    HoldBackCut,
}

/// What has happened in the epoch, for metrics and logs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Transactions completed.
    pub transactions: u64,
    /// Rows handed to the broker, dead letters included.
    pub published: u64,
    /// Of these, dead letters.
    pub dead_letters: u64,
    /// Of these, published again on request.
    pub replayed: u64,
    /// Rows that the stream had already.
    pub skipped: u64,
    /// Rows of other tables.
    pub(crate) other_rows: u64,
}

#[derive(Debug)]
struct Transaction {
    commit_lsn: PgLsn,
    committed_at_us: i64,
    xid: u32,
    ordinal: u64,
    /// Rows of the outbox were in it.
    events: bool,
    /// It came here from another server, or an application says so.
    has_origin: bool,
    /// Rows that had left for the first time before it.
    first_rows: u64,
}

/// The state of one epoch.
#[derive(Debug)]
pub struct Engine {
    settings: EngineSettings,
    relations: Relations,
    transaction: Option<Transaction>,
    published_through: Option<Position>,
    /// Where the lane went on.
    begun: Option<LaneEnd>,
    overlap: Option<Overlap>,
    /// Which of the publication's names is read under.
    reads_as: usize,
    /// All WAL below has come.
    passed_lsn: PgLsn,
    replay_from: Option<PgLsn>,
    /// Last acknowledged replay.
    replayed: Option<Position>,
    /// Last row that a replay has come to, and how many rows had left by then.
    replay_reached: Option<(Position, u64)>,
    window: Window,
    progress: Progress,
    confirm: Confirm,
    stopping: bool,
    halt: Option<Halt>,
    /// Rows acknowledged before this connection to the broker.
    acknowledged_before: u64,
    /// A rejected row that waits for an answer.
    pending: Option<Pending>,
    /// The number of shares changes here.
    crossing: Option<Crossing>,
    /// The last place of that kind that the lane is across.
    switched_lsn: Option<PgLsn>,
    /// When it was last looked at how large a message may be.
    limit_seen_at: Duration,
    /// The row that fits by a limit that was raised.
    limit_raised_for: Option<Position>,
    dead_letter_subject: String,
    told_lsn: PgLsn,
    status_wanted: bool,
    status_at: Duration,
    counters: Counters,
    notes: VecDeque<Note>,
    /// Dead letters in flight, each behind the number of its row in this epoch.
    dead_letters: VecDeque<(u64, Note)>,
    hold_back_cut: bool,
    not_transactional_told: bool,
    subject: Vec<u8>,
    headers: Vec<u8>,
    body: Vec<u8>,
    /// `Walrelay-Position: <slot> <commit_lsn>:` of the open transaction.
    position_prefix: Vec<u8>,
    /// Where the lane record is stored; 0 for nowhere.
    record_sequence: u64,
    /// Length of its part that no transaction changes, in bytes.
    slot_prefix_bytes: usize,
}

impl Engine {
    /// Begins an epoch by its plan.
    pub fn new(settings: EngineSettings, plan: &Plan, now: Duration) -> Self {
        let slot_prefix = format!(
            "{}: {} ",
            super::position::POSITION_HEADER,
            settings.lane.slot
        );
        Engine {
            relations: Relations::new(settings.epoch.source.clone()),
            transaction: None,
            published_through: plan.lane_end.as_ref().map(|lane_end| lane_end.position),
            begun: plan.lane_end.clone(),
            overlap: plan.overlap.clone(),
            reads_as: 0,
            passed_lsn: plan.start_lsn,
            replay_from: plan.replay_from,
            replayed: None,
            replay_reached: None,
            window: Window::new(settings.window(), plan.last_sequence),
            progress: Progress::new(
                settings.confirmed_flush_lsn,
                settings.epoch.hold_back,
                settings.epoch.held_bytes_max,
            ),
            confirm: settings.confirm(settings.confirmed_flush_lsn, plan.lane_end.clone(), now),
            acknowledged_before: 0,
            stopping: false,
            halt: None,
            pending: None,
            crossing: None,
            switched_lsn: (settings.record.as_ref())
                .and_then(|record| record.across(&settings.lane, &settings.history)),
            limit_seen_at: now,
            limit_raised_for: None,
            dead_letter_subject: dead_letter::subject(&settings.lane.slot),
            told_lsn: settings.confirmed_flush_lsn,
            status_wanted: true,
            status_at: now,
            counters: Counters::default(),
            notes: VecDeque::new(),
            dead_letters: VecDeque::new(),
            hold_back_cut: false,
            not_transactional_told: false,
            subject: Vec::with_capacity(256),
            headers: Vec::with_capacity(512),
            body: Vec::new(),
            record_sequence: 0,
            slot_prefix_bytes: slot_prefix.len(),
            position_prefix: slot_prefix.into_bytes(),
            settings,
        }
    }

    /// Whether further WAL may be handed over now.
    #[inline]
    pub fn wants_wal(&self) -> bool {
        self.window.has_room() && !self.window.has_waiting() && !self.is_at_an_end()
    }

    /// Whether no further WAL is taken, for now or for good.
    #[inline]
    fn is_at_an_end(&self) -> bool {
        self.stopping || self.halt.is_some() || self.pending.is_some() || self.crossing.is_some()
    }

    /// Whether no WAL is taken before an answer is there that somebody else has.
    pub fn awaits_answer(&self) -> bool {
        self.pending.is_some() || self.crossing.is_some()
    }

    /// Ends a turn; `dry` says that no further WAL is at hand, so what is in flight should not wait for more.
    pub fn end_turn(&mut self, out: &mut BytesMut, dry: bool) {
        let dry = dry || self.is_at_an_end();
        self.window.end_turn(out, dry, self.confirm.lane_end());
    }

    /// Takes an answer to a published message; `token` is its reply subject behind `<inbox>.`.
    ///
    /// # Errors
    /// Anything but the expected acknowledgement.
    pub fn handle_answer(
        &mut self,
        token: &[u8],
        status: Option<u16>,
        payload: &[u8],
        now: Duration,
    ) -> Result<(), Stop> {
        let before = self.progress.acknowledged_rows();
        let mut latest = None;
        let mut replayed = self.replayed;
        let rows = self.window.answer(token, status, payload, now, |sent| {
            if sent.first_publication {
                latest = Some(sent.clone());
            } else {
                replayed = Some(sent.position);
            }
        })?;
        self.replayed = replayed;
        if rows > before {
            let chained = self.settings.mode.preparation().chained;
            let sequence = chained.then(|| self.window.last_sequence());
            self.progress.acknowledged(rows, sequence, now);
            self.tell_dead_letters(rows);
            if let Some(latest) = latest {
                self.confirm.acknowledged(LaneEnd {
                    sequence: self.window.last_sequence(),
                    position: latest.position,
                    table: self.window.table_of(&latest).map(str::to_owned),
                    event_id: latest.event_id.map(|id| id.to_string()),
                });
            }
        }
        self.check_halt()
    }

    /// Takes a -ERR of the broker: which kind of end it is.
    pub(crate) fn handle_error(&self, text: &str) -> Fault {
        self.window.fault_of(text)
    }

    /// A dead letter is told of once it is stored: it may be refused, and is made again by the next epoch.
    fn tell_dead_letters(&mut self, acknowledged_rows: u64) {
        let is_stored = |(row, _): &(u64, Note)| *row <= acknowledged_rows;
        while self.dead_letters.front().is_some_and(is_stored) {
            let stored = self.dead_letters.pop_front();
            self.notes.extend(stored.map(|(_, note)| note));
        }
    }

    /// The dead letters that nobody has told of: where the next epoch finds one stored, it does.
    pub(crate) fn untold_dead_letters(&self) -> impl Iterator<Item = &Note> {
        let stored = self
            .notes
            .iter()
            .filter(|note| matches!(note, Note::DeadLetter { .. }));
        stored.chain(self.dead_letters.iter().map(|(_, note)| note))
    }

    /// A rejected row halts once everything before it is acknowledged.
    fn check_halt(&mut self) -> Result<(), Stop> {
        match &self.halt {
            Some(halt) if self.window.in_flight() == 0 => Err(Stop::Halt(halt.clone())),
            _ => Ok(()),
        }
    }

    /// What has become due by time.
    ///
    /// # Errors
    /// An acknowledgement or an answer is overdue.
    pub fn handle_time(&mut self, now: Duration) -> Result<(), Stop> {
        self.check_halt()?;
        if self
            .window
            .ack_deadline()
            .is_some_and(|deadline| now >= deadline)
        {
            return Err(Stop::Fault(Fault::AckTimeout(self.window.in_flight())));
        }
        self.confirm.check_time(now)?;
        Ok(())
    }

    /// When [`Self::handle_time`], [`Self::poll_request`] and [`Self::poll_status`] must be called at the latest.
    pub fn next_time(&mut self, now: Duration) -> Duration {
        let confirmable = self.confirmable(now);
        [
            Some(self.status_due()),
            self.window.ack_deadline(),
            self.progress.next_due(),
            self.confirm
                .next_time(confirmable, self.window.unanswered_since(), self.stopping),
            self.is_record_due().then_some(now),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(now)
    }

    /// Reads no more; what is in flight is still acknowledged, recorded and confirmed.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.pending = None;
        self.confirm.want_record();
    }

    /// Whether a stop is complete: nothing in flight, and confirmed what may be.
    pub(crate) fn is_stopped(&mut self, now: Duration) -> bool {
        let confirmable = self.confirmable(now);
        self.stopping
            && self.window.in_flight() == 0
            && self.window.ack_deadline().is_none()
            && self.confirm.is_idle()
            && self.confirm.confirmed_lsn() >= confirmable.end_lsn
            && self.told_lsn >= self.confirm.confirmed_lsn()
    }

    /// The next note for the log.
    pub fn poll_note(&mut self) -> Option<Note> {
        if self.progress.held_cut_short() > 0 && !self.hold_back_cut {
            self.hold_back_cut = true;
            self.notes.push_back(Note::HoldBackCut);
        }
        self.notes.pop_front()
    }

    /// The commit times of this epoch.
    pub fn commit_times(&mut self) -> &mut CommitTimes {
        self.progress.commit_times()
    }

    /// The marks of this epoch.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What the slot has been told in this epoch, or had at its start.
    pub fn confirmed_lsn(&self) -> PgLsn {
        self.told_lsn
    }

    /// When the stream was created, as the server writes it.
    pub fn created(&self) -> &str {
        &self.settings.created
    }

    /// The lane's last acknowledged message.
    pub fn lane_end(&self) -> Option<&LaneEnd> {
        self.confirm.lane_end()
    }

    /// The message that the lane record names.
    pub fn recorded_sequence(&self) -> Option<u64> {
        self.confirm.recorded_sequence()
    }

    /// What of a replay the next epoch has still to do; none when there was none, or it is done.
    pub fn replay_left(&self) -> Option<PgLsn> {
        // Never below what the slot has been told meanwhile: that would be refused as too old.
        let from = self.replay_from?.max(self.told_lsn);
        // Nothing was published before this epoch: nothing can come again.
        let end = self.published_through?;
        let replayed = self.replayed();
        // Whatever follows the lane's old end was published behind the whole replay.
        let is_done = self
            .lane_end()
            .is_some_and(|lane_end| lane_end.position > end)
            || replayed.is_some_and(|replayed| replayed >= end)
            || from > end.commit_lsn;
        let next = replayed.map_or(from, |replayed| from.max(replayed.commit_lsn));
        (!is_done).then_some(next)
    }

    /// The last row that was acknowledged as a replay, or that a replay has passed over behind acknowledged ones.
    fn replayed(&self) -> Option<Position> {
        match self.replay_reached {
            Some((position, rows)) if rows <= self.progress.acknowledged_rows() => Some(position),
            _ => self.replayed,
        }
    }

    /// What a relay knows of the lane by itself once the epoch has ended.
    pub fn memory(&self) -> Memory {
        let mut memory = Memory {
            created: self.settings.created.clone(),
            lane_end: self.lane_end().cloned(),
            sound: self.confirm.sound().cloned(),
            begun: self.begun.clone(),
            doubted: false,
            recorded_sequence: self.recorded_sequence(),
            confirmed_lsn: self.confirmed_lsn(),
            history: self.settings.history.clone(),
            tables: self.tables(),
            epoch: self.settings.number,
            settled: self.window.is_settled(),
            server_id: self.settings.server_id.clone(),
            held: match self.overlap {
                Some(_) => self.settings.held.clone(),
                None => self.progress.held(),
            },
        };
        if self.confirm.is_doubted() {
            memory.doubt();
        }
        memory
    }

    /// Whether anything was acknowledged on this connection to the broker.
    pub fn has_progressed(&self) -> bool {
        self.progress.acknowledged_rows() > self.acknowledged_before
    }

    /// Rows without an acknowledgement.
    pub fn in_flight(&self) -> u64 {
        self.window.in_flight()
    }

    /// What has been sent, and how much of the window is taken.
    pub(crate) fn traffic(&self) -> Traffic {
        self.window.traffic()
    }

    /// What has happened in this epoch.
    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }
}
