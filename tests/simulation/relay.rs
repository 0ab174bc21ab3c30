//! A relay process in the simulation: the relay's own opening and turns, on simulated connections.

mod opening;
mod shares;

use crate::broker::{self, Frame, STREAM};
use crate::lanes::{Part, slot_of};
use crate::limits::look_at_limit;
use crate::net::To;
use crate::outboxes::{KINDS, Kind, OIDS, outboxes};
use crate::transport::{Broker, Wal};
use crate::world::World;
use opening::Start;
use shares::{Wait, Watch};
use std::time::Duration;
use walrelay::nats::api::DEFAULT_PREFIX;
use walrelay::nats::encode;
use walrelay::nats::protocol::{Op, ServerVersion};
use walrelay::nats::stream::{StreamSettings, lane_record_subject};
use walrelay::pipeline::encoding::Encoding;
use walrelay::pipeline::engine::EpochSettings;
use walrelay::pipeline::engine::{Engine, Stop};
use walrelay::pipeline::epochs::Epochs;
use walrelay::pipeline::fault::{Fault, Halt};
use walrelay::pipeline::lane_end::Memory;
use walrelay::pipeline::limit::SizeLimit;
use walrelay::pipeline::opening::{Known, NotOpened, Opened, Opening, Server, SlotPlace, Wanted};
use walrelay::pipeline::position::{Lane, Position};
use walrelay::pipeline::publish::WindowLimits;
use walrelay::pipeline::record::{LaneRecord, RecordOrNote};
use walrelay::pipeline::request::{StoredRecord, Unfit};
use walrelay::pipeline::source::Source;
use walrelay::relay::lane_store::{Expects, LaneStore, Outgoing, StoreError};
use walrelay::relay::turn::{BrokerTransport, Kept, Limits, Turn};

pub(crate) const SLOT: &str = "sim";
const API_TIMEOUT: Duration = Duration::from_secs(5);
const STEADY: Duration = Duration::from_secs(10);
const TURN_BYTES_MAX: usize = 1 << 20;
/// Room beside the largest message, smaller than the real one so that oversized frames come by.
const FRAME_OVERHEAD_BYTES: usize = 1_024;

const SERVER_VERSION: ServerVersion = ServerVersion {
    major: 2,
    minor: 14,
    patch: 0,
};

/// What the relay of a lane wants of its stream.
fn stream_settings(shared: bool, part: Part) -> StreamSettings {
    let subjects: Vec<String> = broker::subjects(shared, &[part]);
    StreamSettings {
        name: STREAM.into(),
        subjects_to_create: subjects.clone(),
        subjects,
        slot: slot_of(part).into(),
        num_replicas: 1,
        shared,
    }
}

/// What a relay is configured with.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) hold_back: Duration,
    pub(crate) ack_timeout: Duration,
    pub(crate) status_interval: Duration,
    pub(crate) backoff_max: Duration,
    pub(crate) messages_max: usize,
    pub(crate) bytes_max: usize,
    pub(crate) held_bytes_max: u64,
    pub(crate) halt_on_reject: bool,
    pub(crate) from: Option<u64>,
    /// `relay.share`; none for the lane of all rows.
    pub(crate) part: Part,
    /// `nats.shared`
    pub(crate) shared: bool,
    /// `source.tables`
    pub(crate) further: Vec<Kind>,
}

/// How a relay ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Stopped,
    Halted(Halt),
    Failed(String),
}

/// An epoch that streams.
struct Streaming {
    turn: Turn<Wal, Broker>,
    /// Of Postgres, at the start.
    incarnation: u64,
    began: Duration,
    stopping: bool,
}

/// The WAL's side while the broker's is made anew.
struct Waiting {
    kept: Kept<Wal>,
    incarnation: u64,
}

impl Waiting {
    /// Tells Postgres that it is there, and looks whether that still is.
    fn serve(&mut self, world: &mut World) -> Result<(), Fault> {
        let gone = |text: &str| Fault::Postgres(text.into());
        // As the look at the catalog does.
        if !world.postgres.up || world.postgres.incarnation != self.incarnation {
            return Err(gone("gone"));
        }
        while let Some(note) = self.kept.engine.poll_note() {
            world.note(|| format!("{note:?}"));
        }
        let told = self.kept.send_status(world.now);
        told.map_err(|_| gone("closed"))?;
        let wal = &mut self.kept.wal;
        if wal.has_output() && !world.net.links[wal.link].server_open {
            return Err(gone("closed"));
        }
        wal.flush(&mut world.net, world.now, &mut world.random);
        Ok(())
    }
}

enum State {
    Pause,
    Opening(Box<Start>),
    Streaming(Box<Streaming>),
    Ended(Outcome),
}

/// One relay process.
pub(crate) struct Relay {
    pub(crate) id: u64,
    settings: Settings,
    state: State,
    /// In a pause or an opening that is about the broker alone.
    waiting: Option<Box<Waiting>>,
    /// When the table answers about a row.
    row_at: Option<Duration>,
    /// When the broker tells how large a message may be.
    limit_at: Option<Duration>,
    /// For other lanes, in front of a change of the shares.
    wait: Option<Wait>,
    watch: Option<Watch>,
    /// The row that fits by a limit that was raised.
    limit_raised_for: Option<Position>,
    pub(crate) wake: Duration,
    pub(crate) frozen_until: Duration,
    epochs: Epochs,
    pub(crate) epochs_begun: u64,
    from: Option<u64>,
    memory: Option<Memory>,
    has_streamed: bool,
    stopping: bool,
    turns: (Duration, u64),
}

impl Relay {
    pub(crate) fn new(id: u64, settings: Settings, now: Duration) -> Self {
        Relay {
            id,
            epochs: Epochs::new(settings.backoff_max),
            from: settings.from,
            settings,
            state: State::Pause,
            waiting: None,
            row_at: None,
            limit_at: None,
            wait: None,
            watch: None,
            limit_raised_for: None,
            wake: now,
            frozen_until: Duration::ZERO,
            epochs_begun: 0,
            memory: None,
            has_streamed: false,
            stopping: false,
            turns: (now, 0),
        }
    }

    pub(crate) fn part(&self) -> Part {
        self.settings.part
    }

    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        match &self.state {
            State::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Replication runs and the stream is not yet looked at again.
    pub(crate) fn has_just_taken_slot(&self) -> bool {
        matches!(&self.state, State::Opening(start)
            if start.wal.is_some() && start.answers_since_slot == 0)
    }

    pub(crate) fn is_streaming(&self) -> bool {
        matches!(self.state, State::Streaming(_))
    }

    /// SIGTERM.
    pub(crate) fn stop(&mut self, now: Duration) {
        self.stopping = true;
        self.wake = now;
    }

    /// The connections that it has open.
    pub(crate) fn links(&self) -> Vec<usize> {
        let mut links = match &self.state {
            State::Opening(start) => start.links().collect(),
            State::Streaming(streaming) => {
                vec![streaming.turn.broker.link, streaming.turn.wal.link]
            }
            _ => Vec::new(),
        };
        links.extend(self.waiting.as_ref().map(|waiting| waiting.kept.wal.link));
        links
    }

    /// The broker's side is made anew, and the WAL's has stayed.
    pub(crate) fn is_resyncing(&self) -> bool {
        self.waiting.is_some()
    }

    /// SIGKILL: the process and all its state are gone, its connections closed by the kernel.
    pub(crate) fn kill(&mut self, world: &mut World) {
        for link in self.links() {
            world.close(link);
        }
        self.waiting = None;
        self.state = State::Ended(Outcome::Stopped);
    }

    /// When it must run, at the latest.
    pub(crate) fn next_time(&self, world: &World) -> Option<Duration> {
        if self.outcome().is_some() {
            return None;
        }
        let mut at = self.wake;
        if let Some(waiting) = &self.waiting {
            at = at.min(waiting.kept.next_time());
        }
        let (nats, wal) = match &self.state {
            State::Opening(start) => (start.broker.as_ref(), None),
            State::Streaming(streaming) => {
                let turn = &streaming.turn;
                let reads = turn.engine.wants_wal();
                (Some(&turn.broker), reads.then_some(turn.wal.link))
            }
            _ => (None, None),
        };
        for link in nats.map(|broker| broker.link).into_iter().chain(wal) {
            let link = &world.net.links[link];
            if link.is_at_end() {
                at = at.min(world.now);
            }
            at = link.down.next_time().map_or(at, |time| at.min(time));
        }
        Some(at.max(self.frozen_until))
    }

    /// Runs until it waits.
    pub(crate) fn advance(&mut self, world: &mut World) {
        self.count_turn(world);
        if let Some(waiting) = &mut self.waiting
            && let Err(fault) = waiting.serve(world)
        {
            self.leave(world);
            self.state = self.ended(&fault, false, world);
            return;
        }
        let state = std::mem::replace(&mut self.state, State::Pause);
        self.state = match state {
            State::Pause if self.stopping => {
                self.leave(world);
                State::Ended(Outcome::Stopped)
            }
            // Only the WAL's side had something to do.
            State::Pause if world.now < self.wake => State::Pause,
            State::Pause => {
                self.epochs_begun += 1;
                match self.look_at_shares(world) {
                    Ok(no_share) => State::Opening(Box::new(self.start(no_share))),
                    Err(fault) => self.ended(&fault, false, world),
                }
            }
            State::Opening(start) if self.stopping => {
                start.links().for_each(|link| world.close(link));
                self.leave(world);
                State::Ended(Outcome::Stopped)
            }
            State::Opening(start) => self.open(start, world),
            State::Streaming(streaming) => self.stream(streaming, world),
            ended @ State::Ended(_) => ended,
        };
    }

    /// A relay that runs without waiting spins.
    fn count_turn(&mut self, world: &mut World) {
        if world.now > self.turns.0 + Duration::from_secs(1) {
            self.turns = (world.now, 0);
        }
        self.turns.1 += 1;
        if self.turns.1 > 20_000 {
            world.fail(format!("relay {} spins", self.id));
        }
    }

    /// Closes what a resync has kept.
    fn leave(&mut self, world: &mut World) {
        if let State::Opening(start) = &self.state {
            start.links().for_each(|link| world.close(link));
        }
        if let Some(waiting) = self.waiting.take() {
            self.inherit(&waiting.kept.engine);
            world.close(waiting.kept.wal.link);
        }
    }

    fn refused(&mut self, error: String, world: &mut World) -> State {
        if self.has_streamed {
            return self.ended(&Fault::Unready(error), false, world);
        }
        world.note(|| format!("relay {} fails: {error}", self.id));
        State::Ended(Outcome::Failed(error))
    }

    fn halted(&mut self, halt: Halt, world: &mut World) -> State {
        world.note(|| format!("relay {} halts: {halt}", self.id));
        self.leave(world);
        keep_halt(
            &halt,
            slot_of(self.settings.part),
            self.memory.as_ref(),
            world,
        );
        State::Ended(Outcome::Halted(halt))
    }

    fn ended(&mut self, fault: &Fault, progressed: bool, world: &mut World) -> State {
        let jitter = world.random.fraction();
        let lane_end = self
            .memory
            .as_ref()
            .and_then(|memory| memory.lane_end.as_ref());
        let lane_end = lane_end.map(|lane_end| lane_end.position);
        match self.epochs.ended(fault, lane_end, progressed, jitter) {
            Ok(pause) => {
                world.note(|| format!("relay {} waits {pause:?}: {fault}", self.id));
                self.wake = world.now + pause;
                State::Pause
            }
            Err(halt) => self.halted(halt, world),
        }
    }

    /// As `relay::drive` behind each turn: what a rejected row waits for is told after a while.
    fn ask(&mut self, engine: &mut Engine, world: &mut World) {
        if engine.poll_question().is_some() {
            self.row_at = Some(world.now + world.random.micros(0, 50_000));
        }
        if engine.poll_limit_question() {
            world.limit_looks += 1;
            self.limit_at = Some(world.now + world.random.micros(0, 50_000));
        }
    }

    fn stream(&mut self, mut streaming: Box<Streaming>, world: &mut World) -> State {
        if self.stopping && !streaming.stopping {
            streaming.turn.stop(world.now + Duration::from_secs(10));
            streaming.stopping = true;
        }
        if self.row_at.take_if(|at| *at <= world.now).is_some() {
            streaming.turn.engine.handle_row(&world.row_presence);
        }
        let looked = look_at_limit(&mut streaming.turn.engine, &mut self.limit_at, world);
        let looked = looked.and_then(|()| self.look_around(&mut streaming, world));
        let turned = looked.map_err(Stop::from);
        let stop = match turned.and_then(|()| turn(&mut streaming.turn, world)) {
            Ok(false) => {
                self.ask(&mut streaming.turn.engine, world);
                self.wake = wake(&mut streaming.turn, world.now);
                let due = [self.row_at, self.limit_at, self.shares_at()];
                for at in due.into_iter().flatten() {
                    self.wake = self.wake.min(at);
                }
                return State::Streaming(streaming);
            }
            Ok(true) => None,
            Err(stop) => Some(stop),
        };
        let steady = world.now.saturating_sub(streaming.began) >= STEADY;
        let progressed = self.inherit(&streaming.turn.engine) || steady;
        let turn = &mut streaming.turn;
        let stop = match stop {
            Some(Stop::Fault(fault)) => fault,
            Some(Stop::Halt(halt)) => {
                finish(turn, world);
                return self.halted(halt, world);
            }
            None => {
                finish(turn, world);
                return State::Ended(Outcome::Stopped);
            }
        };
        world.close(turn.broker.link);
        if stop.is_of_broker() && turn.engine.can_resync() && !self.stopping {
            let incarnation = streaming.incarnation;
            let (kept, _) = streaming.turn.part();
            self.waiting = Some(Box::new(Waiting { kept, incarnation }));
        } else {
            world.close(turn.wal.link);
        }
        self.ended(&stop, progressed, world)
    }

    fn inherit(&mut self, engine: &Engine) -> bool {
        self.from = engine.replay_left().map(Into::into);
        self.limit_raised_for = engine.limit_raised_for();
        self.memory = Some(engine.memory());
        engine.has_progressed()
    }
}

/// One turn of the relay's loop between two looks at the network; true when stopped.
fn turn(turn: &mut Turn<Wal, Broker>, world: &mut World) -> Result<bool, Stop> {
    let reads = turn.engine.wants_wal();
    turn.wal.pump(&mut world.net, reads, world.now);
    let turned = turn.run(world.now);
    turn.wal.flush(&mut world.net, world.now, &mut world.random);
    while let Some(note) = turn.engine.poll_note() {
        world.note(|| format!("{note:?}"));
    }
    if turned? {
        return Ok(true);
    }
    if !turn
        .broker
        .exchange(&mut world.net, world.now, &mut world.random)
    {
        return Err(Fault::Broker("the server closed the connection".into()).into());
    }
    Ok(false)
}

fn wake(turn: &mut Turn<Wal, Broker>, now: Duration) -> Duration {
    if turn.broker.is_busy() || (turn.wal.has_more() && turn.engine.wants_wal()) {
        return now + Duration::from_micros(50);
    }
    turn.next_time(now).max(now + Duration::from_micros(1))
}

/// As `relay::halted`, in one step.
fn keep_halt(halt: &Halt, slot: &str, memory: Option<&Memory>, world: &mut World) {
    if !world.broker.up || matches!(halt, Halt::OtherLane { .. }) {
        return;
    }
    let subject = lane_record_subject(STREAM, slot);
    let mut stored = StoredRecord::default();
    if let Some((_, frame)) = world.broker.records.last_of(&subject) {
        match RecordOrNote::from_json(&frame.data).expect("a record or a note") {
            RecordOrNote::Record(record) => stored.record = Some(*record),
            RecordOrNote::Note(note) => stored.note = Some(note),
        }
    }
    let epoch = memory.map(|memory| (memory.created.as_str(), memory.epoch));
    if let Some(kept) = stored.kept(halt, epoch, String::new()) {
        let frame = Frame {
            subject,
            data: kept.to_json(),
            ..Frame::default()
        };
        world.broker.handle(frame, world.now);
    }
}

/// The last status update, then CopyDone: what was written arrives.
fn finish(turn: &mut Turn<Wal, Broker>, world: &mut World) {
    // A failure means that the connection is gone, which is what comes next.
    let _ = turn.send_status(world.now);
    turn.wal.flush(&mut world.net, world.now, &mut world.random);
    world.finish(turn.wal.link);
    world.close(turn.broker.link);
}
