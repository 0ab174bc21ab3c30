//! Where the relay writes its status, and others read it.
//!
//! In: the relay's changes of state, and its marks about ten times a second. Out: a [`Status`] whenever it is asked for, and who
//! watches is told of changes. Guarantee: the relay never waits for a reader longer than a copy of a few hundred bytes.

use crate::pipeline::commit_time::Latencies;
use crate::pipeline::fault::{Class, Fault, Halt};
use crate::pipeline::progress::Commit;
use crate::pipeline::room::RoomWatch;
use crate::postgres::catalog::ServerClock;
use crate::postgres::slot_wal::SlotWal;
use crate::relay::bulk_work::BulkWork;
use crate::relay::clock::postgres_clock_us;
use crate::relay::epoch_marks::{EpochMarks, EpochStart};
use crate::relay::lag::Lag;
use crate::relay::settings::Settings;
use crate::relay::slot_room;
#[cfg(feature = "otlp")]
use crate::relay::span_queue::SpanQueue;
use crate::relay::status::{CLASS_NAMES, PastFault, State, Status};
use crate::relay::stored_letter::StoredLetter;
use chrono::Utc;
use postgres_types::PgLsn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Faults that are kept for the status page.
const FAULTS_MAX: usize = 5;
/// The rate is the mean of at least so long.
const RATE_INTERVAL: Duration = Duration::from_secs(1);

/// Looks come each five seconds, and may take ten.
const LOOK_IS_FRESH: Duration = Duration::from_secs(15);

#[derive(Debug)]
struct Sample {
    at: Instant,
    acknowledged: u64,
}

#[derive(Debug)]
struct Inner {
    status: Status,
    /// What the current epoch has added to the totals so far.
    epoch: EpochMarks,
    sample: Sample,
    /// The zero of `lag`'s clock.
    began: Instant,
    lag: Lag,
    /// All below was acknowledged, in whichever epoch.
    acknowledged_lsn: u64,
    server_clock: Option<ServerClock>,
    /// When the server was looked at, and has not gone since.
    looked: Option<Instant>,
    /// Why the next epoch begins.
    cause: &'static str,
    room: RoomWatch,
    /// The newest that are open, newest first.
    letters: Vec<StoredLetter>,
    /// Where spans of its batches go.
    #[cfg(feature = "otlp")]
    spans: Option<SpanQueue>,
}

impl Inner {
    fn since_began_us(&self, at: Instant) -> i64 {
        i64::try_from(at.saturating_duration_since(self.began).as_micros()).unwrap_or(i64::MAX)
    }

    /// They are another relay's to count.
    fn leave_letters(&mut self) {
        self.status.dead_letters_open = None;
        self.letters.clear();
    }

    /// Takes note of how far the lane is.
    fn passed(&mut self) {
        let marks = self.status.marks;
        self.acknowledged_lsn = self.acknowledged_lsn.max(marks.acknowledged_lsn);
        self.lag.passed(marks.confirmed_lsn);
    }

    /// The WAL was as long as to this commit when it was made.
    fn committed(&mut self, commit: Commit) {
        if let Some(clock) = self.server_clock {
            let ago_us = clock.us.saturating_sub(commit.at_us);
            let at_us = self.since_began_us(clock.at).saturating_sub(ago_us);
            self.lag.reached(commit.lsn.into(), at_us);
        }
    }
}

/// Where the relay writes its status and others read it.
#[derive(Debug, Clone)]
pub struct Board {
    inner: Arc<Mutex<Inner>>,
    changes: watch::Sender<()>,
}

/// Waits for changes of one relay's status.
#[derive(Debug, Clone)]
pub struct StatusWatch {
    board: Board,
    changes: watch::Receiver<()>,
}

impl StatusWatch {
    /// The status now.
    pub fn status(&self) -> Status {
        self.board.status()
    }

    /// Waits for the next change: of its state at once, of its progress about ten times a second. The last one is to
    /// [`State::Halted`], [`State::Stopped`] or [`State::Failed`]. Cancel-safe.
    pub async fn changed(&mut self) -> Status {
        // The board that is held here has the other end.
        let _ = self.changes.changed().await;
        self.status()
    }
}

impl Board {
    /// A board for the relay of these settings.
    pub fn of(settings: &Settings) -> Self {
        let board = Board::new(
            &settings.name,
            &settings.postgres.slot,
            &settings.nats.stream,
        );
        let of_settings = |inner: &mut Inner| {
            inner.status.share = settings.postgres.part();
            inner.status.database = settings.postgres.conninfo.dbname.clone();
        };
        of_settings(&mut board.lock());
        board
    }

    /// A board for one relay.
    pub fn new(name: &str, slot: &str, stream: &str) -> Self {
        let now = Utc::now();
        let status = Status {
            name: name.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            slot: slot.to_owned(),
            stream: stream.to_owned(),
            started: now,
            since: now,
            ..Status::default()
        };
        let sample = Sample {
            at: Instant::now(),
            acknowledged: 0,
        };
        Board {
            inner: Arc::new(Mutex::new(Inner {
                status,
                epoch: EpochMarks::default(),
                sample,
                began: Instant::now(),
                lag: Lag::default(),
                acknowledged_lsn: 0,
                server_clock: None,
                looked: None,
                cause: "start",
                room: RoomWatch::default(),
                letters: Vec::new(),
                #[cfg(feature = "otlp")]
                spans: None,
            })),
            changes: watch::Sender::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What a panic left half written is still numbers.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To write, and tell who watches.
    fn change(&self) -> MutexGuard<'_, Inner> {
        let inner = self.lock();
        self.changes.send_replace(());
        inner
    }

    /// Tells of changes from now on.
    pub fn watch(&self) -> StatusWatch {
        StatusWatch {
            board: self.clone(),
            changes: self.changes.subscribe(),
        }
    }

    /// The status now.
    pub fn status(&self) -> Status {
        let inner = self.lock();
        let mut status = inner.status.clone();
        let now_us = inner.since_began_us(Instant::now());
        status.lag_known = inner
            .looked
            .is_some_and(|looked| looked.elapsed() < LOOK_IS_FRESH);
        // What is behind for some time still is, and is older by now.
        let age = |lsn: u64| {
            let age = inner.lag.age(lsn, now_us);
            (status.lag_known || !age.is_zero()).then_some(age.as_secs())
        };
        status.received_lag_seconds = age(inner.acknowledged_lsn.max(status.marks.received_lsn))
            .filter(|_| status.has_received());
        status.lag_seconds = age(inner.acknowledged_lsn);
        status.confirmed_lag_seconds = age(status.marks.confirmed_lsn);
        #[cfg(feature = "otlp")]
        {
            status.otlp = inner.spans.as_ref().map(SpanQueue::counts);
        }
        if inner.sample.at.elapsed() > 3 * RATE_INTERVAL {
            // Nothing is reported while nothing moves.
            status.events_per_second = 0;
        }
        status
    }

    /// What becomes of an export is told here, and spans of the batches go there.
    #[cfg(feature = "otlp")]
    pub(crate) fn export(&self, spans: SpanQueue) {
        self.lock().spans = Some(spans);
    }

    /// Where spans of the batches go; none where nobody takes them.
    #[cfg(feature = "otlp")]
    pub(super) fn spans(&self) -> Option<SpanQueue> {
        self.lock().spans.clone().filter(SpanQueue::is_wanted)
    }

    /// An epoch has begun.
    pub fn begun(&self, start: &EpochStart) {
        self.change().epoch = EpochMarks::default();
        self.resumed(start);
    }

    /// An epoch goes on with a new connection to the broker: its marks do too.
    pub(crate) fn resumed(&self, start: &EpochStart) {
        let mut inner = self.change();
        let inner = &mut *inner;
        let status = &mut inner.status;
        status.mode = Some(start.mode.to_owned());
        status.postgres = Some(start.postgres.clone());
        status.nats = Some(start.nats.clone());
        status.totals.epochs += 1;
        let causes = &mut status.totals.epochs_by_cause;
        *causes.entry(inner.cause.to_owned()).or_default() += 1;
        status.totals.foreign_messages += start.foreign_messages;
        status.totals.lost_messages += start.lost_messages;
    }

    /// The epoch streams: what commits is published.
    pub fn streaming(&self) {
        self.change().status.set_state(State::Streaming, None);
    }

    /// The catalog is out of sight for this reason, or no longer.
    pub(crate) fn blind(&self, reason: Option<String>) {
        let mut inner = self.change();
        if inner.status.state == State::Streaming {
            inner.status.reason = reason;
        }
    }

    /// Takes over how far the epoch is.
    pub fn report(&self, now: &EpochMarks) {
        let mut inner = self.change();
        let before = std::mem::replace(&mut inner.epoch, *now);
        let totals = &mut inner.status.totals;
        totals.transactions += now.counters.transactions - before.counters.transactions;
        totals.published += now.counters.published - before.counters.published;
        totals.published_bytes += now.traffic.bytes - before.traffic.bytes;
        totals.batches += now.traffic.batches - before.traffic.batches;
        totals.replayed += now.counters.replayed - before.counters.replayed;
        totals.acknowledged += now.acknowledged - before.acknowledged;
        totals.hold_back_cut_short += now.cut_short - before.cut_short;
        let acknowledged = totals.acknowledged;
        inner.status.marks = now.marks;
        // What has come was written, whenever the server was looked at.
        inner.status.server_lsn = inner.status.server_lsn.max(now.marks.received_lsn);
        for commit in now.commits.into_iter().flatten() {
            inner.committed(commit);
        }
        inner.passed();
        inner.status.position = now.position.map(|position| position.to_string());
        let elapsed = inner.sample.at.elapsed();
        if elapsed >= RATE_INTERVAL {
            let events = acknowledged - inner.sample.acknowledged;
            inner.status.events_per_second = (events as f64 / elapsed.as_secs_f64()) as u64;
            inner.sample = Sample {
                at: Instant::now(),
                acknowledged,
            };
        }
    }

    /// Transactions took so long from their commit to their acknowledgement.
    pub(crate) fn took(&self, latencies: &Latencies) {
        self.lock().status.commit_to_ack.add(latencies);
    }

    /// The server's clock, as last seen.
    pub(crate) fn server_clock(&self) -> Option<ServerClock> {
        self.lock().server_clock
    }

    /// A row became a dead letter.
    pub fn dead_letter(&self, reason: &str) {
        let mut inner = self.change();
        let count = &mut inner.status.totals.dead_letters;
        *count.entry(reason.to_owned()).or_default() += 1;
        // Until they are counted again, seconds later.
        if let Some(open) = &mut inner.status.dead_letters_open {
            *open += 1;
        }
    }

    /// So many dead letters are open.
    /// A lane that only stands by has none: the relay that has it counts them.
    pub(crate) fn open_dead_letters(&self, count: u64, newest: Vec<StoredLetter>) {
        let mut inner = self.lock();
        if inner.status.state == State::Standby {
            return;
        }
        inner.status.dead_letters_open = Some(count);
        inner.letters = newest;
    }

    /// The newest of the open dead letters, without their values.
    pub fn letters(&self) -> Vec<StoredLetter> {
        self.lock().letters.clone()
    }

    /// What publishes for the lane beside it.
    pub(crate) fn bulk_work(&self, works: Vec<BulkWork>) {
        self.lock().status.bulk_work = works;
    }

    /// So many more published rows are marked or deleted, and of so many messages they are not yet.
    pub(crate) fn settled(&self, rows: u64, lag: u64) {
        let mut inner = self.lock();
        inner.status.totals.after_publish_rows += rows;
        inner.status.after_publish_lag = Some(lag);
    }

    /// Takes over the end of the server's WAL, what its slot has confirmed, what that keeps, and how late it is there.
    pub(crate) fn looked(
        &self,
        server_lsn: PgLsn,
        confirmed_lsn: Option<PgLsn>,
        wal: SlotWal,
        clock: ServerClock,
    ) {
        let mut inner = self.change();
        if let Some(room) = inner.room.look(wal.room()) {
            slot_room::tell(room, &wal);
        }
        inner.status.slot_wal = wal;
        inner.server_clock = Some(clock);
        inner.looked = Some(clock.at);
        inner.status.looked_at = Some(Utc::now());
        let ago_us = i64::try_from(clock.at.elapsed().as_micros()).unwrap_or(i64::MAX);
        let ours_us = postgres_clock_us().saturating_sub(ago_us);
        inner.status.clock_offset_us = Some(clock.us.saturating_sub(ours_us));
        let at_us = inner.since_began_us(clock.at);
        inner.lag.reached(server_lsn.into(), at_us);
        inner.status.server_lsn = server_lsn.into();
        let marks = &mut inner.status.marks;
        if marks.acknowledged_lsn == 0 {
            // No epoch has begun yet. What is confirmed was acknowledged.
            let confirmed = confirmed_lsn.map_or(0, u64::from);
            (marks.acknowledged_lsn, marks.confirmed_lsn) = (confirmed, confirmed);
        }
        inner.passed();
    }

    /// A fault ended an epoch, or kept it from beginning; the relay waits.
    pub fn fault(&self, fault: &Fault) {
        let mut inner = self.change();
        let (side, name) = fault.name();
        inner.cause = name;
        if side == "postgres" && !matches!(fault, Fault::SlotActive { .. }) {
            inner.looked = None;
        }
        let status = &mut inner.status;
        let reasons = status.totals.reconnects.entry(side.to_owned()).or_default();
        *reasons.entry(name.to_owned()).or_default() += 1;
        status.marks.in_flight = 0;
        let faults = &mut status.totals.faults;
        *faults.entry(class_name(fault).to_owned()).or_default() += 1;
        let (at, text) = (Utc::now(), fault.to_string());
        let state = match fault {
            Fault::SlotActive { .. } | Fault::NoShare(_) => State::Standby,
            _ => State::Waiting,
        };
        match status.last_faults.front_mut() {
            // Nothing is at fault there.
            _ if state == State::Standby => {}
            Some(last) if last.text == text => (last.at, last.times) = (at, last.times + 1),
            _ => status.last_faults.push_front(PastFault {
                at,
                times: 1,
                text: text.clone(),
                side: side.to_owned(),
                reason: name.to_owned(),
            }),
        }
        status.last_faults.truncate(FAULTS_MAX);
        status.set_state(state, Some(text));
        if state == State::Standby {
            inner.leave_letters();
        }
    }

    /// It has everything but a lane to relay.
    pub(super) fn standby(&self, reason: &str) {
        let reason = Some(reason.to_owned());
        let mut inner = self.change();
        inner.status.set_state(State::Standby, reason);
        inner.leave_letters();
    }

    /// A person has to look.
    pub(crate) fn halted(&self, halt: &Halt, share: Option<u32>) {
        let mut inner = self.change();
        let halts = &mut inner.status.totals.halts;
        *halts.entry(halt.name().to_owned()).or_default() += 1;
        (inner.status).set_state(State::Halted, Some(halt.told(share)));
    }

    /// The relay has come to its end.
    pub(crate) fn ended(&self, state: State, reason: Option<String>) {
        self.change().status.set_state(state, reason);
    }
}

fn class_name(fault: &Fault) -> &'static str {
    match fault.class() {
        Class::Transient => CLASS_NAMES[0],
        Class::Resync => CLASS_NAMES[1],
        Class::Row => CLASS_NAMES[2],
        Class::Permanent => CLASS_NAMES[3],
    }
}

#[cfg(test)]
mod tests;
