//! What a relay is doing, for people and monitors.
//!
//! In: the relay's changes of state, and its marks about ten times a second. Out: [`Status`], for metrics, the status
//! page and `walrelay status`. Guarantee: the relay never waits for a reader longer than a copy of a few hundred bytes.

use crate::pipeline::engine::{Counters, Engine};
use crate::pipeline::fault::{Class, Fault};
use crate::pipeline::position::Position;
use crate::pipeline::room::RoomWatch;
use crate::postgres::slot_wal::SlotWal;
use crate::relay::lag::Lag;
use crate::relay::settings::Settings;
use crate::relay::slot_room;
use chrono::{DateTime, Utc};
use postgres_types::PgLsn;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Faults that are kept for the status page.
const FAULTS_MAX: usize = 5;
/// The rate is the mean of at least so long.
const RATE_INTERVAL: Duration = Duration::from_secs(1);

/// What the relay is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its first epoch has not begun yet.
    #[default]
    Starting,
    /// Events flow.
    Streaming,
    /// For the reason that [`Status::reason`] gives.
    Waiting,
    /// Until a person has looked, see [`Status::reason`].
    Halted,
    /// By its shutdown signal.
    Stopped,
    /// At its first start, for the reason that [`Status::reason`] gives.
    Failed,
}

impl State {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Streaming => "streaming",
            State::Waiting => "waiting",
            State::Halted => "halted",
            State::Stopped => "stopped",
            State::Failed => "failed",
        }
    }
}

/// A fault that ended an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastFault {
    /// When it happened last.
    pub at: DateTime<Utc>,
    /// How often in a row.
    pub times: u64,
    /// What it was.
    pub text: String,
}

/// Counts since the process' start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Epochs begun.
    pub epochs: u64,
    /// Transactions completed.
    pub transactions: u64,
    /// Rows handed to the broker, with dead letters and replays.
    pub published: u64,
    /// Rows acknowledged.
    pub acknowledged: u64,
    /// Rows handed to the broker as replays.
    pub replayed: u64,
    /// Dead letters by reason.
    pub dead_letters: BTreeMap<String, u64>,
    /// Faults by class.
    pub faults: BTreeMap<String, u64>,
    /// Marks confirmed before their time, since the hold-back kept too much WAL.
    pub(crate) hold_back_cut_short: u64,
    /// Acknowledged messages that the broker lost, where sequences tell.
    pub(crate) lost_messages: u64,
    /// Messages of no relay found at the stream's end.
    pub foreign_messages: u64,
    /// Rows that were marked or deleted once they were published.
    #[serde(default)]
    pub(crate) after_publish_rows: u64,
}

/// How far the lane is; LSNs in bytes, as in the metrics, and in JSON as Postgres writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Marks {
    /// Messages without an acknowledgement.
    pub in_flight: u64,
    /// WAL that has arrived.
    #[serde(with = "lsn_text")]
    pub(crate) received_lsn: u64,
    /// WAL of which all is acknowledged.
    #[serde(with = "lsn_text")]
    pub acknowledged_lsn: u64,
    /// WAL that Postgres was told it may forget.
    #[serde(with = "lsn_text")]
    pub confirmed_lsn: u64,
}

mod lsn_text {
    use postgres_types::PgLsn;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(lsn: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&PgLsn::from(*lsn))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let lsn: PgLsn = text.parse().map_err(|_| D::Error::custom("not an LSN"))?;
        Ok(lsn.into())
    }
}

/// Everything that is known of a running relay; the names are the JSON keys.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// `name` of the configuration.
    pub name: String,
    /// Version of walrelay.
    pub version: String,
    /// The slot.
    pub slot: String,
    /// The stream.
    pub stream: String,
    /// What it is doing.
    pub state: State,
    /// Why it waits or has halted, or what it cannot see while it streams.
    pub reason: Option<String>,
    /// How messages are published: fast-ingest, chain or atomic.
    pub mode: Option<String>,
    /// Version of Postgres.
    pub postgres: Option<String>,
    /// Version of nats-server.
    pub nats: Option<String>,
    /// The lane's last acknowledged position.
    pub position: Option<String>,
    /// Events acknowledged in a second, lately.
    pub events_per_second: u64,
    /// When the process started.
    pub started: DateTime<Utc>,
    /// When the state last changed.
    pub since: DateTime<Utc>,
    /// End of the server's WAL at the last look.
    #[serde(with = "lsn_text")]
    pub server_lsn: u64,
    /// How far the lane is.
    pub marks: Marks,
    /// For how long there has been WAL that is not acknowledged, by this process' clock; counted from its start on.
    pub lag_seconds: u64,
    /// What the slot keeps, and may keep, at the last look.
    pub slot_wal: SlotWal,
    /// Open dead letters in the stream; none until they are counted.
    pub dead_letters_open: Option<u64>,
    /// Messages of the stream whose rows are still to be marked or deleted; none where rows are kept.
    #[serde(default)]
    pub after_publish_lag: Option<u64>,
    /// Counts since the start.
    pub totals: Totals,
    /// The last faults, newest first.
    pub(crate) last_faults: VecDeque<PastFault>,
}

impl Status {
    /// Whether events flow, and nothing that would keep them from it can go unseen.
    pub fn is_ready(&self) -> bool {
        self.state == State::Streaming && self.reason.is_none()
    }

    /// WAL of the server that is not yet acknowledged, received or not, in bytes.
    pub fn lag_bytes(&self) -> u64 {
        let marks = self.marks;
        let end = self.server_lsn.max(marks.received_lsn);
        end.saturating_sub(marks.acknowledged_lsn)
    }

    /// WAL acknowledged and not yet confirmed, in bytes: what the hold-back keeps.
    pub fn held_back_bytes(&self) -> u64 {
        let marks = self.marks;
        marks.acknowledged_lsn.saturating_sub(marks.confirmed_lsn)
    }
}

/// What changes while an epoch runs; equal marks need no report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EpochMarks {
    counters: Counters,
    acknowledged: u64,
    cut_short: u64,
    position: Option<Position>,
    marks: Marks,
}

impl EpochMarks {
    /// The marks of an epoch as they are.
    pub fn of(engine: &Engine) -> Self {
        let progress = engine.progress();
        EpochMarks {
            counters: engine.counters(),
            acknowledged: progress.acknowledged_rows(),
            cut_short: progress.held_cut_short(),
            position: engine.lane_end().map(|lane_end| lane_end.position),
            marks: Marks {
                in_flight: engine.in_flight(),
                received_lsn: progress.received_lsn().into(),
                acknowledged_lsn: progress.acknowledged_lsn().into(),
                confirmed_lsn: engine.confirmed_lsn().into(),
            },
        }
    }
}

/// What an epoch begins with.
#[derive(Debug, Clone, Default)]
pub struct EpochStart {
    /// How messages are published.
    pub mode: &'static str,
    /// Version of Postgres.
    pub postgres: String,
    /// Version of nats-server.
    pub nats: String,
    /// Messages of no relay at the stream's end.
    pub foreign_messages: u64,
    /// Acknowledged messages that the broker has lost.
    pub(crate) lost_messages: u64,
}

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
    lag: Lag,
    room: RoomWatch,
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
        Board::new(
            &settings.name,
            &settings.postgres.slot,
            &settings.nats.stream,
        )
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
                lag: Lag::default(),
                room: RoomWatch::default(),
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
        status.lag_seconds = inner.lag.age(Instant::now()).as_secs();
        if inner.sample.at.elapsed() > 3 * RATE_INTERVAL {
            // Nothing is reported while nothing moves.
            status.events_per_second = 0;
        }
        status
    }

    /// An epoch has begun.
    pub fn begun(&self, start: &EpochStart) {
        self.change().epoch = EpochMarks::default();
        self.resumed(start);
    }

    /// An epoch goes on with a new connection to the broker: its marks do too.
    pub(crate) fn resumed(&self, start: &EpochStart) {
        let mut inner = self.change();
        let status = &mut inner.status;
        status.mode = Some(start.mode.to_owned());
        status.postgres = Some(start.postgres.clone());
        status.nats = Some(start.nats.clone());
        status.totals.epochs += 1;
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
        totals.replayed += now.counters.replayed - before.counters.replayed;
        totals.acknowledged += now.acknowledged - before.acknowledged;
        totals.hold_back_cut_short += now.cut_short - before.cut_short;
        let acknowledged = totals.acknowledged;
        inner.status.marks = now.marks;
        inner.lag.acknowledged(now.marks.acknowledged_lsn);
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

    /// A row became a dead letter.
    pub fn dead_letter(&self, reason: &str) {
        let mut inner = self.change();
        let count = &mut inner.status.totals.dead_letters;
        *count.entry(reason.to_owned()).or_default() += 1;
    }

    /// So many dead letters are open.
    pub(crate) fn open_dead_letters(&self, count: u64) {
        self.lock().status.dead_letters_open = Some(count);
    }

    /// So many more published rows are marked or deleted, and of so many messages they are not yet.
    pub(crate) fn settled(&self, rows: u64, lag: u64) {
        let mut inner = self.lock();
        inner.status.totals.after_publish_rows += rows;
        inner.status.after_publish_lag = Some(lag);
    }

    /// Takes over the end of the server's WAL, what its slot has confirmed, and what that keeps.
    pub fn looked(&self, server_lsn: PgLsn, confirmed_lsn: Option<PgLsn>, wal: SlotWal) {
        let mut inner = self.change();
        if let Some(room) = inner.room.look(wal.room()) {
            slot_room::tell(room, &wal);
        }
        inner.status.slot_wal = wal;
        inner.lag.looked(server_lsn.into(), Instant::now());
        inner.status.server_lsn = server_lsn.into();
        let marks = &mut inner.status.marks;
        if marks.acknowledged_lsn == 0 {
            // No epoch has begun yet. What is confirmed was acknowledged.
            let confirmed = confirmed_lsn.map_or(0, u64::from);
            (marks.acknowledged_lsn, marks.confirmed_lsn) = (confirmed, confirmed);
        }
        let acknowledged = marks.acknowledged_lsn;
        inner.lag.acknowledged(acknowledged);
    }

    /// A fault ended an epoch, or kept it from beginning; the relay waits.
    pub fn fault(&self, fault: &Fault) {
        let mut inner = self.change();
        let status = &mut inner.status;
        status.marks.in_flight = 0;
        let faults = &mut status.totals.faults;
        *faults.entry(class_name(fault).to_owned()).or_default() += 1;
        let (at, text) = (Utc::now(), fault.to_string());
        match status.last_faults.front_mut() {
            Some(last) if last.text == text => (last.at, last.times) = (at, last.times + 1),
            _ => status.last_faults.push_front(PastFault {
                at,
                times: 1,
                text: text.clone(),
            }),
        }
        status.last_faults.truncate(FAULTS_MAX);
        status.set_state(State::Waiting, Some(text));
    }

    /// A person has to look.
    pub fn halted(&self, reason: String) {
        self.ended(State::Halted, Some(reason));
    }

    /// The relay has come to its end.
    pub(crate) fn ended(&self, state: State, reason: Option<String>) {
        self.change().status.set_state(state, reason);
    }
}

impl Status {
    fn set_state(&mut self, state: State, reason: Option<String>) {
        if self.state != state {
            self.since = Utc::now();
        }
        self.state = state;
        self.reason = reason;
    }
}

/// Every class has its series from the start, so that a first fault is a change from 0.
pub(crate) const CLASS_NAMES: [&str; 4] = ["transient", "resync", "row", "permanent"];

fn class_name(fault: &Fault) -> &'static str {
    match fault.class() {
        Class::Transient => CLASS_NAMES[0],
        Class::Resync => CLASS_NAMES[1],
        Class::Row => CLASS_NAMES[2],
        Class::Permanent => CLASS_NAMES[3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(published: u64, acknowledged: u64) -> EpochMarks {
        EpochMarks {
            counters: Counters {
                published,
                ..Counters::default()
            },
            acknowledged,
            ..EpochMarks::default()
        }
    }

    #[test]
    fn positions_are_written_as_postgres_writes_them_and_read_again() {
        let marks = Marks {
            received_lsn: 0x16_B374_D848,
            ..Marks::default()
        };
        let json = serde_json::to_value(marks).unwrap();
        assert_eq!(json["received_lsn"], "16/B374D848");
        assert_eq!(serde_json::from_value::<Marks>(json).unwrap(), marks);
    }

    #[test]
    fn lag_counts_against_the_servers_end() {
        let board = Board::new("a", "a", "A");
        board.looked(500.into(), Some(300.into()), SlotWal::default());
        assert_eq!(board.status().lag_bytes(), 200);
        let mut now = marks(1, 1);
        (now.marks.received_lsn, now.marks.acknowledged_lsn) = (450, 400);
        board.report(&now);
        assert_eq!(board.status().lag_bytes(), 100);
        // Published since the look.
        (now.marks.received_lsn, now.marks.acknowledged_lsn) = (600, 550);
        board.report(&now);
        assert_eq!(board.status().lag_bytes(), 50);
        // While the broker is away, the server goes on.
        board.fault(&Fault::Broker("gone".into()));
        board.looked(900.into(), Some(300.into()), SlotWal::default());
        assert_eq!(board.status().lag_bytes(), 350);
    }

    #[test]
    fn totals_go_on_over_epochs() {
        let board = Board::new("a", "a", "A");
        board.begun(&EpochStart::default());
        board.report(&marks(5, 3));
        board.report(&marks(7, 7));
        board.fault(&Fault::Broker("gone".into()));
        board.begun(&EpochStart::default());
        board.report(&marks(2, 1));
        let totals = board.status().totals;
        assert_eq!((totals.published, totals.acknowledged), (9, 8));
        assert_eq!(totals.epochs, 2);
        // That it began is not yet a change of state.
        assert_eq!(board.status().state, State::Waiting);
        board.streaming();
        assert_eq!(board.status().state, State::Streaming);
    }

    #[test]
    fn repeated_faults_are_one_line() {
        let board = Board::new("a", "a", "A");
        for _ in 0..3 {
            board.fault(&Fault::Broker("gone".into()));
        }
        for number in 0..10 {
            board.fault(&Fault::AckTimeout(number));
        }
        board.fault(&Fault::Broker("gone".into()));
        let status = board.status();
        assert_eq!(status.state, State::Waiting);
        assert_eq!(status.last_faults.len(), FAULTS_MAX);
        assert_eq!(status.last_faults[0].times, 1);
        assert_eq!(status.totals.faults["transient"], 14);
    }
}
