//! The start of an epoch as a state machine, or of its broker's side alone: the order of looks, the plan, the fence, the record.
//!
//! In: what the servers say, step by step, as [`Opening::wanted`] asks for it. Out: an [`Engine`] that may stream, or why
//! there is none. Guarantee: what decides where the lane goes on was read after the slot became ours, since before that
//! another relay may still have been publishing; and nothing is published before the record of this epoch is stored.
//!
//! ```text
//! start   catalog → broker → look → take the slot → look again → see the slot → plan → (fence) → begin → record → open
//! resync            broker →                        look →       keep the slot → plan → (fence) → resume → record → open
//!                            look: stream, record, lane end, stream again
//! ```
//!
//! A resync differs from a start in that the slot has been ours all the time, and so has what it has sent: one look is enough,
//! and the engine must be able to go on behind what that finds.

mod begin;
mod decide;
mod look;
mod reach;

use super::begin::Begin;
use super::continuity::{self, Plan, Refusal};
use super::engine::Engine;
use super::fault::{Fault, Halt};
use super::history::History;
use super::lane_end::{Memory, recorded_end};
use super::position::Lane;
use super::publications::PublicationName;
use super::publish::{Mode, NoMode, Offer};
use super::record::{LaneRecord, Moved, at};
use super::request::{Reply, Request, StoredRecord, StreamView, Unfit};
use super::subject::SubjectTemplate;
use decide::plan;
use look::{Look, View};
use postgres_types::PgLsn;
pub use reach::Reach;

/// What a start knows before it asks anybody.
#[derive(Debug, Clone)]
pub struct Known<'a> {
    /// The slot.
    pub slot: &'a str,
    /// The events' stream.
    pub stream: &'a str,
    /// The broker's servers, as a person gives them, without a login.
    pub nats: String,
    /// The events' subject.
    pub template: SubjectTemplate,
    /// Others publish to the stream too.
    pub shared: bool,
    /// What the relay knows of the lane by itself.
    pub memory: Option<Memory>,
    /// `--from`, as far as it is not done.
    pub from: Option<PgLsn>,
    /// Why the lane's share carries no rows, if it does not. There may be some on their way, until the record says that the lane is at its
    /// end.
    pub no_share: Option<Fault>,
}

/// What a start needs next.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted<'o> {
    /// Look at the catalog; then [`Opening::catalog_seen`].
    Catalog,
    /// A new connection to the broker; then [`Opening::connected`].
    Broker,
    /// Ask the broker; then [`Opening::take`].
    Ask(Request<'o>),
    /// Start replication at this LSN at the latest; then [`Opening::slot_taken`].
    Slot(PgLsn),
    /// Look where the slot stands; then [`Opening::slot_seen`], or in a resync [`Opening::slot_kept`].
    SlotPlace,
    /// The epoch's settings; then [`Opening::begin`], or in a resync [`Opening::resume`].
    Settings,
    /// Nothing: [`Opening::finish`].
    Nothing,
}

/// Who answers at the broker.
#[derive(Debug, Clone, Default)]
pub struct Server {
    /// nats-server's version: major, minor.
    pub version: (u16, u16),
    /// Of its process; none in a cluster, where another server may store.
    pub id: Option<String>,
}

/// Where slot and server stand, seen after the slot became ours.
#[derive(Debug)]
pub struct SlotPlace {
    /// Who the lane is.
    pub lane: Lane,
    /// The server's timelines.
    pub history: History,
    /// The slot's confirmed LSN.
    pub confirmed_flush_lsn: PgLsn,
    /// Where the slot began, if that was written down.
    pub begins_lsn: Option<PgLsn>,
    /// The end of the server's WAL.
    pub server_lsn: PgLsn,
}

/// Why a start came to nothing.
#[derive(Debug)]
pub enum NotOpened {
    /// Passes by itself.
    Fault(Fault),
    /// A person has to look.
    Halt(Halt),
    /// Does not pass by itself.
    Refusal(Refusal),
    /// The stream cannot be published to in order.
    NoMode(NoMode),
    /// The stream is configured in a way that loses events, or takes none.
    Unfit(Unfit),
}

impl From<Refusal> for NotOpened {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Halt(halt) => NotOpened::Halt(halt),
            refusal => NotOpened::Refusal(refusal),
        }
    }
}

/// A start that has come to its end.
#[derive(Debug)]
pub struct Opened {
    /// Where the lane goes on.
    pub plan: Plan,
    /// How messages are published, for the log.
    pub mode: &'static str,
    /// What a person should know.
    pub(crate) warnings: Vec<String>,
}

#[derive(Debug)]
enum Step<'a> {
    Catalog,
    Broker,
    Stream,
    /// The stream does not fit. Where it acknowledges what it does not keep, the lane record is to tell that once it no longer does;
    /// where the lane has left it, that is what a person has to hear.
    Unfit(Unfit, String),
    KeepDoubt(Unfit, Box<LaneRecord>, u64),
    Record(StreamView),
    StreamEnd(Look<'a>),
    /// The stream once more: it must not have changed meanwhile.
    Again(View),
    Slot(PgLsn),
    SlotPlace(View),
    /// A halt that rests on the lane record must rest on the newest one: a leader that was just replaced may still have
    /// answered with an older. Storing it again behind the one that was read tells; and what only this process has known
    /// is kept there for the next start.
    KeepHalt(Halt, Box<LaneRecord>, u64),
    Fence(Box<Decided>),
    Settings(Box<Decided>),
    Recording(Box<Opened>, Box<LaneRecord>, u64),
    /// Behind the record with this sequence.
    Open(Box<Opened>, u64),
    /// Between two steps, and after a refusal.
    Over,
}

/// Where the lane goes on, and on what it rests.
#[derive(Debug)]
struct Decided {
    place: SlotPlace,
    view: View,
    plan: Plan,
    mode: Mode,
}

/// The start of an epoch.
#[derive(Debug)]
pub struct Opening<'a> {
    known: Known<'a>,
    step: Step<'a>,
    server: Server,
    /// Of the lane's fence in a shared stream, at the last look; 0 for none.
    fence_sequence: u64,
    /// Replication was started here; none before the slot was taken.
    started_at: Option<PgLsn>,
    /// Names of the publication, as the lane record had them at the last look.
    publications: Vec<PublicationName>,
    /// Where the slot begins, by the lane record as it was.
    begin: Begin,
}

impl<'a> Opening<'a> {
    /// Begins.
    pub fn new(known: Known<'a>) -> Self {
        Opening {
            known,
            step: Step::Catalog,
            server: Server::default(),
            fence_sequence: 0,
            started_at: None,
            publications: Vec::new(),
            begin: Begin::Unknown,
        }
    }

    /// Begins a resync: the slot was taken before, and what it has sent is kept.
    pub fn resync(known: Known<'a>) -> Self {
        Opening {
            step: Step::Broker,
            started_at: Some(0.into()),
            ..Opening::new(known)
        }
    }

    /// What is needed next.
    pub fn wanted(&self) -> Wanted<'_> {
        match &self.step {
            Step::Catalog => Wanted::Catalog,
            Step::Broker => Wanted::Broker,
            Step::Stream | Step::Again(_) => Wanted::Ask(Request::Stream),
            Step::Record(_) | Step::Unfit(..) => Wanted::Ask(Request::Record),
            Step::StreamEnd(look) => Wanted::Ask(Request::Message(
                look.wanted().expect("a look that has ended is left"),
            )),
            Step::Slot(start_lsn) => Wanted::Slot(*start_lsn),
            Step::SlotPlace(_) => Wanted::SlotPlace,
            Step::KeepHalt(_, record, behind)
            | Step::KeepDoubt(_, record, behind)
            | Step::Recording(_, record, behind) => Wanted::Ask(Request::StoreRecord {
                record: record.clone(),
                behind: *behind,
            }),
            Step::Fence(decided) => Wanted::Ask(Request::StoreFence {
                lane_end: decided.plan.lane_end.clone(),
                behind: self.fence_sequence,
            }),
            Step::Settings(_) => Wanted::Settings,
            Step::Open(..) | Step::Over => Wanted::Nothing,
        }
    }

    /// The catalog is in order.
    pub fn catalog_seen(&mut self) {
        self.step = Step::Broker;
    }

    /// The broker is there.
    pub fn connected(&mut self, server: Server) {
        self.server = server;
        self.step = Step::Stream;
    }

    /// Takes the reply to the request that [`Self::wanted`] named.
    ///
    /// # Errors
    /// [`NotOpened`].
    ///
    /// # Panics
    /// A reply to another request.
    pub fn take(&mut self, reply: Reply<'_>) -> Result<(), NotOpened> {
        self.step = match (std::mem::replace(&mut self.step, Step::Over), reply) {
            (
                Step::Stream | Step::Again(_),
                Reply::Stream(StreamView {
                    created,
                    unfit: Some(unfit),
                    ..
                }),
            ) => Step::Unfit(unfit, created),
            (Step::Unfit(unfit, created), Reply::Record(stored)) => {
                lives_here(&stored)?;
                match unfit.drops {
                    true => doubt(unfit, &created, *stored)?,
                    false => return Err(NotOpened::Unfit(unfit)),
                }
            }
            (Step::KeepDoubt(unfit, ..), Reply::Stored(_)) => return Err(NotOpened::Unfit(unfit)),
            (Step::Stream, Reply::Stream(stream)) => Step::Record(stream),
            (Step::Record(stream), Reply::Record(stored)) => {
                lives_here(&stored)?;
                self.has_rest(&stored)?;
                self.share_doubt(&stream, &stored);
                if let Some(record) = &stored.record {
                    self.publications.clone_from(&record.publications);
                }
                self.look_on(Look::begin(&self.known, stream, *stored))
            }
            (Step::StreamEnd(mut look), Reply::Message(message)) => {
                look.take(message);
                self.fence_sequence = look.fence_sequence();
                self.look_on(look)
            }
            (Step::Again(view), Reply::Stream(again)) => self.looked(view, &again)?,
            (Step::KeepHalt(halt, ..), Reply::Stored(_)) => return Err(NotOpened::Halt(halt)),
            (Step::Fence(mut decided), Reply::Stored(sequence)) => {
                decided.plan.last_sequence = sequence;
                decided.plan.foreign_messages = 0;
                Step::Settings(decided)
            }
            (Step::Recording(opened, ..), Reply::Stored(sequence)) => Step::Open(opened, sequence),
            (step, reply) => panic!("{reply:?} is no reply to what {step:?} asks for"),
        };
        Ok(())
    }

    /// A slot without a record is still being made.
    fn has_rest(&self, stored: &StoredRecord) -> Result<(), NotOpened> {
        let record = stored.record.as_ref();
        let has_rest = record.is_some_and(|record| !record.retired);
        match self.known.no_share.clone().filter(|_| !has_rest) {
            Some(fault) => Err(NotOpened::Fault(fault)),
            None => Ok(()),
        }
    }

    /// What another relay has seen of the stream goes for what this one remembers too.
    fn share_doubt(&mut self, stream: &StreamView, stored: &StoredRecord) {
        let Some(record) = stored.record.as_ref().filter(|record| record.doubted) else {
            return;
        };
        if let Some(memory) = &mut self.known.memory
            && record.created == stream.created
            && memory.is_current(&stream.created, Some(record))
            && !memory.has_begun_since(record, &stream.created)
            && !memory.doubted
        {
            // What this one has seen since may be the stream that was mended: the record is from before.
            memory.sound = recorded_end(record);
            memory.doubt();
        }
    }

    fn look_on(&self, look: Look<'a>) -> Step<'a> {
        match look.wanted() {
            Some(_) => Step::StreamEnd(look),
            None => Step::Again(look.view(&self.known)),
        }
    }

    fn looked(&self, view: View, again: &StreamView) -> Result<Step<'a>, NotOpened> {
        let stream = &view.stream;
        if again.created != stream.created || again.last_sequence < stream.last_sequence {
            let text = "it changed while it was looked at";
            return Err(NotOpened::Fault(Fault::StreamLost(text.into())));
        }
        if self.started_at.is_some() {
            return Ok(Step::SlotPlace(view));
        }
        // No later than the lane's end, so that WAL which is surely published is not even decoded.
        let record = view.stored.record.as_ref();
        let start_lsn = continuity::provisional_start_lsn(&view.lane_end, record, self.known.from);
        Ok(Step::Slot(start_lsn))
    }

    /// Under which names the publication was read before, see [`super::publications`].
    pub fn publications(&self) -> &[PublicationName] {
        &self.publications
    }

    /// Where the slot begins, by the record that this start found.
    pub fn slot_begin(&self) -> Begin {
        self.begin
    }

    /// Replication runs from the LSN that [`Wanted::Slot`] named: the slot is ours.
    pub fn slot_taken(&mut self) {
        if let Step::Slot(start_lsn) = self.step {
            self.started_at = Some(start_lsn);
            self.step = Step::Stream;
        }
    }

    /// Takes where the slot stands, and decides where the lane goes on.
    ///
    /// # Errors
    /// [`NotOpened`].
    ///
    /// # Panics
    /// Before the second look.
    pub fn slot_seen(&mut self, place: SlotPlace) -> Result<(), NotOpened> {
        let view = self.view();
        self.begin = Begin::of(view.stored.record.as_ref(), place.confirmed_flush_lsn);
        let plan = match plan(&self.known, &view, &place) {
            Err(Refusal::Halt(halt)) => {
                self.step = keep_halt(halt, &view)?;
                return Ok(());
            }
            planned => planned?,
        };
        let started_at = self.started_at.expect("the slot was taken");
        if started_at > plan.start_lsn {
            return Err(NotOpened::Fault(Fault::StreamLost(format!(
                "it ended at {started_at} before the slot was taken, and at {} behind it",
                plan.start_lsn
            ))));
        }
        self.prepare(place, view, plan)
    }

    /// As [`Self::slot_seen`] in a resync, where the slot has been ours all the time. Where this engine cannot go on, a start
    /// asks Postgres again and decides: so a resync halts for nothing that it finds.
    ///
    /// # Errors
    /// [`NotOpened`]; a fault that is not the broker's where this engine cannot go on.
    ///
    /// # Panics
    /// Before the look.
    pub fn slot_kept(&mut self, engine: &Engine) -> Result<(), NotOpened> {
        let view = self.view();
        let place = SlotPlace {
            lane: engine.lane().clone(),
            history: engine.history().clone(),
            confirmed_flush_lsn: engine.confirmed_lsn(),
            // The start has judged the slot's place.
            begins_lsn: Some(engine.confirmed_lsn()),
            // Nobody has asked.
            server_lsn: u64::MAX.into(),
        };
        let record = view.stored.record.as_ref();
        let plan = engine.check_record(record).and_then(|()| {
            let planned = plan(&self.known, &view, &place);
            let plan =
                planned.map_err(|_| Fault::Reread("it does not tell where the lane goes on"))?;
            engine.check_goes_on(&view.stream.created, &plan)?;
            Ok(plan)
        });
        self.prepare(place, view, plan.map_err(NotOpened::Fault)?)
    }

    /// The last look.
    fn view(&mut self) -> View {
        match std::mem::replace(&mut self.step, Step::Over) {
            Step::SlotPlace(view) => view,
            step => panic!("the slot's place comes behind the last look, and it is at {step:?}"),
        }
    }

    fn prepare(&mut self, place: SlotPlace, view: View, plan: Plan) -> Result<(), NotOpened> {
        let mode = Mode::pick(&Offer {
            server: self.server.version,
            allow_batched: view.stream.allow_batched,
            allow_atomic: view.stream.allow_atomic,
            shared: self.known.shared,
        })
        .map_err(NotOpened::NoMode)?;
        let decided = Box::new(Decided {
            place,
            view,
            plan,
            mode,
        });
        self.step = match decided.mode.preparation().fenced {
            true => Step::Fence(decided),
            false => Step::Settings(decided),
        };
        Ok(())
    }
}

/// Whether the lane is in this stream, as its record says.
///
/// # Errors
/// It has left, or is on its way.
pub fn lives_here(stored: &StoredRecord) -> Result<(), NotOpened> {
    let record = stored.record.as_ref();
    match record.and_then(|record| Some((record, record.moved.as_ref()?))) {
        None => Ok(()),
        Some((record, Moved::To { stream, nats })) => Err(NotOpened::Halt(Halt::Moved {
            stream: record.stream.clone(),
            to: stream.clone(),
            nats: nats.clone(),
        })),
        Some((record, Moved::From { stream, nats, .. })) => {
            Err(NotOpened::Fault(Fault::Unready(format!(
                "the lane is still on its way from stream {stream}{} to {}: walrelay move has not ended; run it again if it was stopped",
                at(nats.as_ref()),
                record.stream
            ))))
        }
    }
}

/// The refusal at once, or the step that keeps what it says of the lane.
fn doubt<'a>(unfit: Unfit, created: &str, stored: StoredRecord) -> Result<Step<'a>, NotOpened> {
    let record = stored.record.and_then(|record| record.doubted_in(created));
    match record {
        Some(record) => Ok(Step::KeepDoubt(unfit, Box::new(record), stored.sequence)),
        None => Err(NotOpened::Unfit(unfit)),
    }
}

/// The halt at once, or the step that keeps it; a record of another lane is left alone.
fn keep_halt<'a>(halt: Halt, view: &View) -> Result<Step<'a>, NotOpened> {
    let stored = &view.stored;
    let record = match (&halt, &stored.record) {
        (Halt::Replaced { sequence, .. }, Some(record)) => {
            record.halted_for(*sequence, &view.stream.created)
        }
        (
            Halt::EndRemoved { .. }
            | Halt::EndUnknown { .. }
            | Halt::EndCopied { .. }
            | Halt::ConfirmedUnexplained { .. },
            record,
        ) => record.clone(),
        _ => None,
    };
    match record {
        Some(record) => Ok(Step::KeepHalt(halt, Box::new(record), stored.sequence)),
        None => Err(NotOpened::Halt(halt)),
    }
}

#[cfg(test)]
mod tests;
