//! The relay's shell in the simulation: the same steps in the same order as `relay::open` and `relay::drive`, on
//! simulated connections. Whatever decides is the pipeline's own code.

mod opening;
mod streaming;

use crate::broker::{Frame, RECORDS, STREAM};
use crate::net::To;
use crate::world::World;
use bytes::BytesMut;
use std::time::Duration;
use walrelay::nats::api::{DEFAULT_PREFIX, StoredMessage, StreamApi, StreamInfo};
use walrelay::nats::encode;
use walrelay::nats::protocol::{Msg, Op, Parser};
use walrelay::nats::stream::lane_record_subject;
use walrelay::pipeline::continuity::{self, Memory, Plan, Refusal, StartView};
use walrelay::pipeline::dead_letter;
use walrelay::pipeline::engine::{Engine, EngineSettings, Request, Stop};
use walrelay::pipeline::epochs::Epochs;
use walrelay::pipeline::fault::{Fault, Halt};
use walrelay::pipeline::position::Lane;
use walrelay::pipeline::publish::{Mode, Offer, WindowSettings};
use walrelay::pipeline::record::LaneRecord;
use walrelay::pipeline::row::Source;
use walrelay::pipeline::shared_tail::{
    SharedSubjects, SharedTailSearch, StreamEnd, fence_headers, fence_subject,
};
use walrelay::pipeline::skim::Skim;
use walrelay::pipeline::subject::SubjectTemplate;
use walrelay::pipeline::tail::{Tail, TailSearch};

pub(crate) const SLOT: &str = "sim";
const API_TIMEOUT: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(5);
const STEADY: Duration = Duration::from_secs(10);
const TURN_BYTES_MAX: usize = 1 << 20;
/// Room beside the largest message, smaller than the real one so that oversized frames come by.
const FRAME_OVERHEAD_BYTES: usize = 1_024;
pub(crate) const MESSAGE_BYTES_MAX: usize = 3_000;

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
    /// `nats.shared`
    pub(crate) shared: bool,
}

/// How a relay ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Stopped,
    Halted(Halt),
    Failed(String),
}

enum OpenStop {
    Fault(Fault),
    Halt(Halt),
    Permanent(String),
}

impl From<Fault> for OpenStop {
    fn from(fault: Fault) -> Self {
        OpenStop::Fault(fault)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Inspect,
    Connect,
    Info,
    Record,
    Tail,
    /// The stream once more: it must not have changed meanwhile.
    Again,
    TakeSlot,
    Plan,
    /// In a shared stream.
    WriteFence,
    WriteRecord,
}

/// The search for the lane's last message, in a stream of its own or in a shared one.
enum Search {
    Own(TailSearch<'static>),
    Shared(SharedTailSearch<'static>),
}

/// Where the epoch begins, as decided.
struct Planned {
    plan: Plan,
    lane: Lane,
    confirmed_lsn: u64,
}

struct View {
    stream: StreamInfo,
    record: Option<LaneRecord>,
    record_sequence: u64,
    tail: Tail,
}

/// A connection to the broker as its client sees it.
struct Connection {
    link: usize,
    inbox: String,
    parser: Parser,
    received: BytesMut,
    outgoing: BytesMut,
    has_read: bool,
}

impl Connection {
    fn token<'m>(&self, msg: &'m Msg) -> &'m [u8] {
        msg.subject
            .strip_prefix(self.inbox.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"."))
            .expect("answers come to the inbox")
    }

    /// Writes some or all, reads some; false at the end of the connection.
    fn exchange(&mut self, world: &mut World) -> bool {
        let link = &mut world.net.links[self.link];
        if !link.server_open && !self.outgoing.is_empty() {
            return false;
        }
        if !self.outgoing.is_empty() {
            let random = &mut world.random;
            let len = self.outgoing.len() as u64;
            let cut = if random.one_in(8) {
                random.between(1, len)
            } else {
                len
            };
            let bytes = self.outgoing.split_to(cut as usize);
            link.up.send(&bytes, world.now, random);
        }
        self.has_read = false;
        while let Some(bytes) = link.down.receive(world.now) {
            self.received.extend_from_slice(&bytes);
            self.has_read = true;
        }
        self.has_read || !link.is_at_end()
    }

    /// As `relay::broker`, in one step.
    fn keep_halt(&self, halt: &Halt, created: &str, world: &mut World) {
        let subject = lane_record_subject(STREAM, SLOT);
        let Halt::Replaced { sequence, .. } = halt else {
            return;
        };
        if !world.net.links[self.link].server_open {
            return;
        }
        let stored = world.broker.records.last_of(&subject);
        let record = stored.map(|(_, frame)| LaneRecord::from_json(&frame.data).expect("a record"));
        if let Some(record) = record.and_then(|record| record.halted_for(*sequence, created)) {
            let frame = Frame {
                subject,
                data: record.to_json(),
                ..Frame::default()
            };
            world.broker.handle(frame, world.now);
        }
    }

    fn next_op(&mut self) -> Option<Op> {
        self.parser
            .next(&mut self.received)
            .expect("the broker speaks the protocol")
    }
}

struct Opening {
    step: Step,
    incarnation: u64,
    connection: Option<Connection>,
    wal: Option<usize>,
    started_at: u64,
    before: Option<View>,
    after: Option<View>,
    stream: Option<StreamInfo>,
    record: Option<(Option<LaneRecord>, u64)>,
    search: Option<Search>,
    /// Of the lane's fence in a shared stream, at the last look; 0 for none.
    fence_sequence: u64,
    tail: Option<Tail>,
    planned: Option<Planned>,
    engine: Option<(Box<Engine>, Plan)>,
    requests: u64,
    deadline: Option<Duration>,
}

struct Streaming {
    engine: Box<Engine>,
    plan: Plan,
    connection: Connection,
    wal: usize,
    received: Vec<u8>,
    record_sequence: u64,
    ping_at: Duration,
    ping_unanswered: bool,
    began: Duration,
    stop_by: Option<Duration>,
}

enum State {
    Pause,
    Opening(Box<Opening>),
    Streaming(Box<Streaming>),
    Ended(Outcome),
}

/// One relay process.
pub(crate) struct Relay {
    pub(crate) id: u64,
    settings: Settings,
    state: State,
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
            wake: now,
            frozen_until: Duration::ZERO,
            epochs_begun: 0,
            memory: None,
            has_streamed: false,
            stopping: false,
            turns: (now, 0),
        }
    }

    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        match &self.state {
            State::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Replication runs and the stream is not yet looked at again.
    pub(crate) fn has_just_taken_slot(&self) -> bool {
        matches!(&self.state, State::Opening(opening)
            if opening.wal.is_some() && opening.stream.is_none() && opening.after.is_none())
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
        match &self.state {
            State::Opening(opening) => {
                let nats = opening
                    .connection
                    .as_ref()
                    .map(|connection| connection.link);
                nats.into_iter().chain(opening.wal).collect()
            }
            State::Streaming(streaming) => vec![streaming.connection.link, streaming.wal],
            _ => Vec::new(),
        }
    }

    /// SIGKILL: the process and all its state are gone, its connections closed by the kernel.
    pub(crate) fn kill(&mut self, world: &mut World) {
        for link in self.links() {
            world.close(link);
        }
        self.state = State::Ended(Outcome::Stopped);
    }

    /// When it must run, at the latest.
    pub(crate) fn next_time(&self, world: &World) -> Option<Duration> {
        if self.outcome().is_some() {
            return None;
        }
        let mut at = self.wake;
        let (nats, wal) = match &self.state {
            State::Opening(opening) => (opening.connection.as_ref(), None),
            State::Streaming(streaming) => (
                Some(&streaming.connection),
                streaming.engine.wants_wal().then_some(streaming.wal),
            ),
            _ => (None, None),
        };
        for link in nats
            .map(|connection| connection.link)
            .into_iter()
            .chain(wal)
        {
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
        let state = std::mem::replace(&mut self.state, State::Pause);
        self.state = match state {
            State::Pause if self.stopping => State::Ended(Outcome::Stopped),
            State::Pause => {
                self.epochs_begun += 1;
                State::Opening(Box::new(Opening::new()))
            }
            State::Opening(opening) if self.stopping => {
                opening.close(world);
                State::Ended(Outcome::Stopped)
            }
            State::Opening(opening) => self.open(opening, world),
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

    fn open(&mut self, mut opening: Box<Opening>, world: &mut World) -> State {
        self.wake = world.now + world.random.micros(10, 2_000);
        match opening.step(self, world) {
            Ok(None) => {
                let written = opening
                    .connection
                    .as_ref()
                    .is_none_or(|c| c.outgoing.is_empty());
                if let Some(deadline) = opening.deadline.filter(|_| written) {
                    self.wake = deadline;
                }
                State::Opening(opening)
            }
            Ok(Some(streaming)) => {
                self.has_streamed = true;
                State::Streaming(streaming)
            }
            Err(stop) => {
                opening.close(world);
                match stop {
                    OpenStop::Halt(halt) => self.halted(halt, world),
                    OpenStop::Permanent(error) if !self.has_streamed => {
                        world.note(|| format!("relay {} fails: {error}", self.id));
                        State::Ended(Outcome::Failed(error))
                    }
                    OpenStop::Permanent(error) => self.ended(&Fault::Unready(error), false, world),
                    OpenStop::Fault(fault) => self.ended(&fault, false, world),
                }
            }
        }
    }

    fn halted(&mut self, halt: Halt, world: &mut World) -> State {
        world.note(|| format!("relay {} halts: {halt}", self.id));
        State::Ended(Outcome::Halted(halt))
    }

    fn ended(&mut self, fault: &Fault, progressed: bool, world: &mut World) -> State {
        let jitter = world.random.fraction();
        let tail = self.memory.as_ref().and_then(|memory| memory.tail.as_ref());
        let tail = tail.map(|tail| tail.position);
        match self.epochs.ended(fault, tail, progressed, jitter) {
            Ok(pause) => {
                world.note(|| format!("relay {} waits {pause:?}: {fault}", self.id));
                self.wake = world.now + pause;
                State::Pause
            }
            Err(halt) => self.halted(halt, world),
        }
    }

    fn stream(&mut self, mut streaming: Box<Streaming>, world: &mut World) -> State {
        if self.stopping && streaming.stop_by.is_none() {
            streaming.engine.stop();
            streaming.stop_by = Some(world.now + Duration::from_secs(10));
        }
        let ended = streaming.turn(world);
        let stop = match ended {
            Ok(false) => {
                self.wake = streaming.next_time(world);
                return State::Streaming(streaming);
            }
            Ok(true) => None,
            Err(stop) => Some(stop),
        };
        let steady = world.now.saturating_sub(streaming.began) >= STEADY;
        let progressed = self.inherit(&streaming) || steady;
        if let Some(Stop::Halt(halt)) = &stop {
            let created = streaming.engine.created();
            streaming.connection.keep_halt(halt, created, world);
        }
        match stop {
            None | Some(Stop::Halt(_)) => streaming.finish(world),
            Some(Stop::Fault(_)) => {
                for link in [streaming.connection.link, streaming.wal] {
                    world.close(link);
                }
            }
        }
        match stop {
            None => State::Ended(Outcome::Stopped),
            Some(Stop::Halt(halt)) => self.halted(halt, world),
            Some(Stop::Fault(fault)) => self.ended(&fault, progressed, world),
        }
    }

    fn inherit(&mut self, streaming: &Streaming) -> bool {
        let engine = &streaming.engine;
        self.from = engine.replay_left(&streaming.plan).map(Into::into);
        self.memory = Some(Memory {
            created: engine.created().to_owned(),
            tail: engine.tail().cloned(),
            recorded_sequence: engine.recorded_sequence(),
            confirmed_lsn: engine.confirmed_lsn(),
            timeline: engine.timeline(),
            epoch: engine.epoch(),
            settled: engine.is_settled(),
        });
        engine.progress().acknowledged_rows() > 0
    }
}

fn record_headers(after: u64) -> Vec<u8> {
    format!(
        "NATS/1.0\r\nNats-Expected-Stream: {RECORDS}\r\nNats-Expected-Last-Subject-Sequence: {after}\r\n\r\n"
    )
    .into_bytes()
}

fn stored_record(answer: &[u8]) -> Result<u64, Fault> {
    stored_own(answer, Fault::RecordTaken)
}

/// The sequence of a message of the relay's own.
fn stored_own(answer: &[u8], overtaken: impl Fn(String) -> Fault) -> Result<u64, Fault> {
    let answer: serde_json::Value = serde_json::from_slice(answer).expect("JSON");
    match (&answer["error"], answer["seq"].as_u64()) {
        (serde_json::Value::Null, Some(seq)) => Ok(seq),
        (error, _) if error["err_code"] == 10_071 => Err(overtaken(error.to_string())),
        (error, _) => Err(Fault::Broker(error.to_string())),
    }
}
