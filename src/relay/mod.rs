//! The relay: epochs one after the other, each begun the same way, until somebody stops it or has to look.
//!
//! In: [`Settings`], a [`Shutdown`]. Out: an [`Outcome`]. Crash-only: a doubt about Postgres ends the epoch, all its state and
//! both its connections with it, and the next one asks stream and slot where to go on. A doubt about the broker ends the
//! connection there, and a new one asks the stream.

pub(crate) mod after_publish;
#[cfg(feature = "otlp")]
pub mod batch_spans;
pub mod board;
pub mod broker;
pub mod bulk_work;
pub mod claims;
pub mod clock;
pub mod crossing;
mod drive;
mod embed;
pub mod epoch_marks;
mod halted;
mod lag;
pub mod lane_client;
pub(crate) mod lane_records;
pub mod lane_store;
#[cfg(feature = "cli")]
pub(crate) mod lanes;
mod log;
pub mod open;
pub mod open_error;
mod open_letters;
mod postgres_side;
pub(crate) mod remembered_columns;
mod resync;
pub mod settings;
mod shutdown;
mod slot_room;
#[cfg(feature = "otlp")]
pub mod span_queue;
mod standby;
pub mod status;
pub mod stored_letter;
pub mod stream_fit;
pub(crate) mod taken_over;
pub mod turn;
pub mod watch;

pub use embed::{Spawned, spawn};
pub use shutdown::{Shutdown, ShutdownHandle};

use crate::pipeline::after_publish::AfterPublish;
use crate::pipeline::engine::{Engine, Stop};
use crate::pipeline::epochs::Epochs;
use crate::pipeline::fault::{Fault, Halt};
use crate::pipeline::mute::Mute;
use crate::pipeline::request::Unfit;
use crate::postgres::client::Client;
use crate::relay::board::Board;
use crate::relay::epoch_marks::EpochStart;
use claims::{Claim, Claims};
use clock::Clock;
use drive::{Drive, Ended};
use futures_util::FutureExt as _;
use log::Log;
use open::{Epoch, Inherited, Summary};
use open_error::OpenError;
use postgres_types::PgLsn;
use resync::{Left, Waiting};
use settings::Settings;
use standby::Awaited;
use std::time::Duration;

/// How a relay came to its end.
#[derive(Debug)]
pub enum Outcome {
    /// By its shutdown signal.
    Stopped,
    /// A person has to look before it is started again.
    Halted(Halt),
}

/// An epoch that has streamed for so long counts as progress even without an event.
const STEADY: Duration = Duration::from_secs(10);
/// A halt waits so long for Postgres to say good-bye.
const HALT_LIMIT: Duration = Duration::from_secs(1);

/// What a lane waits for that has no claim.
pub(crate) const FULL: &str =
    "this process has as many shares as relay.max_shares_per_instance lets it have";

/// The relay between two epochs.
struct Relay<'a> {
    settings: &'a Settings,
    board: &'a Board,
    clock: Clock,
    epochs: Epochs,
    inherited: Inherited,
    /// The session by which Postgres knows that this relay waits.
    waits: Option<Client>,
    has_streamed: bool,
    /// What ended the last attempt was not Postgres.
    is_postgres_well: bool,
    claims: &'a Claims,
    claim: Option<Claim>,
    log: Log,
    mute: Mute,
    /// Messages that the last epoch has sent and not seen acknowledged.
    unacknowledged: u64,
}

/// Relays until shutdown. `from` publishes again what committed from there on (`run --from`).
///
/// # Errors
/// What cannot heal by waiting, at the first start: one message that says what is wrong and what mends it.
pub async fn run(
    settings: &Settings,
    from: Option<PgLsn>,
    shutdown: Shutdown,
) -> anyhow::Result<Outcome> {
    let board = Board::of(settings);
    run_watched(settings, from, shutdown, &board).await
}

/// As [`run`], and tells the board what it does.
///
/// # Errors
/// As [`run`].
pub(crate) async fn run_watched(
    settings: &Settings,
    from: Option<PgLsn>,
    shutdown: Shutdown,
    board: &Board,
) -> anyhow::Result<Outcome> {
    run_claimed(settings, from, shutdown, board, &Claims::new(1, 1)).await
}

/// As [`run_watched`], and begins only with a claim.
///
/// # Errors
/// As [`run`].
async fn run_claimed(
    settings: &Settings,
    from: Option<PgLsn>,
    mut shutdown: Shutdown,
    board: &Board,
    claims: &Claims,
) -> anyhow::Result<Outcome> {
    let mut relay = Relay {
        settings,
        board,
        clock: Clock::start(),
        epochs: Epochs::new(settings.relay.backoff_max),
        inherited: Inherited {
            from,
            ..Inherited::default()
        },
        waits: None,
        has_streamed: false,
        is_postgres_well: false,
        claims,
        claim: None,
        log: Log::default(),
        mute: Mute::default(),
        unacknowledged: 0,
    };
    // Ends with this value.
    let mut beside = tokio::task::JoinSet::new();
    beside.spawn(open_letters::count(settings.clone(), board.clone()));
    if settings.outbox.after_publish != AfterPublish::Keep {
        beside.spawn(after_publish::settle(settings.clone(), board.clone()));
    }
    loop {
        let pause = match relay.epoch(&mut shutdown).await? {
            Next::Pause(pause) => {
                let waits = &mut relay.waits;
                standby::pause(settings, waits, pause, relay.is_postgres_well).left_future()
            }
            Next::Standby(awaited) => {
                relay.claim = None;
                standby::until_there(settings, &mut relay.waits, awaited).right_future()
            }
            Next::End(outcome) => return Ok(outcome),
        };
        tokio::select! {
            () = pause => {}
            () = shutdown.wait() => return Ok(relay.stopped()),
        }
    }
}

enum Next {
    Pause(Duration),
    /// Until nobody reads the slot.
    Standby(Awaited),
    End(Outcome),
}

impl<'a> Relay<'a> {
    /// A start, and then as many connections to the broker as it takes while the one to Postgres stays.
    async fn epoch(&mut self, shutdown: &mut Shutdown) -> anyhow::Result<Next> {
        let mut drive = match self.start(shutdown).await? {
            Ok(drive) => drive,
            Err(next) => return Ok(next),
        };
        loop {
            let resumed = match self.stream(drive, shutdown).await {
                Ok((waiting, pause)) => self.resync(waiting, pause, shutdown).await,
                Err(next) => return Ok(next),
            };
            drive = match resumed {
                Ok(drive) => drive,
                Err(next) => return Ok(next),
            };
        }
    }

    async fn start(&mut self, shutdown: &mut Shutdown) -> anyhow::Result<Result<Drive<'a>, Next>> {
        if self.claim.is_none() {
            if self.claims.is_full() {
                self.board.standby(FULL);
                self.waits = None;
            }
            let claim = tokio::select! {
                claim = self.claims.claim() => claim,
                () = shutdown.wait() => return Ok(Err(Next::End(self.stopped()))),
            };
            self.claim = Some(claim);
        }
        let opened = tokio::select! {
            opened = open::open(self.settings, &mut self.inherited, &mut self.waits, self.board, self.clock.now()) => opened,
            () = shutdown.wait() => return Ok(Err(Next::End(self.stopped()))),
        };
        let epoch = match opened {
            Ok(epoch) => epoch,
            Err(OpenError::Halt(halt)) => return Ok(Err(self.halted(halt).await)),
            Err(OpenError::Permanent(error)) if !self.has_streamed => return Err(error),
            // A relay that has been running waits: a password may be rotating, a server moving.
            Err(OpenError::Permanent(error)) => {
                let fault = Fault::Unready(open_error::with_cause(error.as_ref()));
                return Ok(Err(self.not_begun(&fault).await));
            }
            Err(OpenError::Unfit(unfit)) => {
                self.doubt(&unfit);
                if !self.has_streamed {
                    return Err(anyhow::anyhow!(unfit.reason));
                }
                return Ok(Err(self.not_begun(&Fault::Unready(unfit.reason)).await));
            }
            Err(OpenError::Fault(fault)) => {
                if matches!(fault, Fault::SlotActive { .. }) {
                    self.log.stands_by(&self.inherited.warnings);
                }
                return Ok(Err(self.not_begun(&fault).await));
            }
        };
        if !self.has_streamed {
            after_publish::check(self.settings).await?;
        }
        self.board.begun(&epoch_start(&epoch.summary));
        self.has_streamed = true;
        let mut drive = self.drive(epoch);
        drive.log_stored(std::mem::take(&mut self.inherited.dead_letters));
        Ok(Ok(drive))
    }

    fn drive(&mut self, epoch: Epoch) -> Drive<'a> {
        let postgres = &self.settings.postgres;
        let nats = &self.settings.nats;
        self.inherited.advertised = epoch.turn.broker.connection.advertised();
        let line = self.log.begun(&epoch.summary, &postgres.slot, &nats.stream);
        Drive::new(epoch, line, self.clock, self.board, self.settings)
    }

    /// Streams until something ends it. Where that is about the broker alone, the WAL's side is left, and how long to pause.
    async fn stream(
        &mut self,
        mut drive: Drive<'a>,
        shutdown: &mut Shutdown,
    ) -> Result<(Waiting<'a>, Duration), Next> {
        let began = self.clock.now();
        let limit = self.settings.relay.shutdown_timeout;
        let ended = self.read(&mut drive, shutdown).await;
        drive.report_end();
        if drive.is_well() {
            self.log.is_well();
        }
        let lasted = self.clock.now().saturating_sub(began);
        let acknowledged = self.inherit(drive.engine());
        let progressed = acknowledged || lasted >= STEADY;
        let fault = match ended {
            Ended::Stopped => {
                drive.finish(limit).await;
                return Err(Next::End(self.stopped()));
            }
            Ended::Stop(Stop::Halt(halt)) => {
                drive.hush();
                // While the slot is still ours: whoever takes it next reads the record.
                let halted = self.halted(halt).await;
                drive.finish(HALT_LIMIT).await;
                return Err(halted);
            }
            Ended::Stop(Stop::Fault(fault)) => {
                let stream = &self.settings.nats.stream;
                self.mute
                    .ended(fault, acknowledged, stream, drive.nats_version())
            }
        };
        if shutdown.is_sent() {
            drop(drive);
            self.board.fault(&fault);
            tracing::warn!("what is in flight is not waited for any longer: {fault}");
            return Err(Next::End(self.stopped()));
        }
        self.log.ended(&fault, progressed, lasted);
        if !fault.is_of_broker() || !drive.engine().can_resync() {
            drop(drive);
            return Err(self.next(&fault, progressed).await);
        }
        let waiting = Waiting::leave(drive, self.clock, self.board);
        match self.next(&fault, progressed).await {
            Next::Pause(pause) => Ok((waiting, pause)),
            end => {
                waiting.finish(HALT_LIMIT).await;
                Err(end)
            }
        }
    }

    /// Streams, under one name of the publication after the other where it was renamed.
    async fn read(&mut self, drive: &mut Drive<'a>, shutdown: &mut Shutdown) -> Ended {
        loop {
            let ended = drive
                .run(shutdown, self.settings.relay.shutdown_timeout)
                .await;
            let Ended::Stop(Stop::Halt(Halt::PublicationMissing { .. })) = &ended else {
                return ended;
            };
            match drive.read_on(&mut self.inherited).await {
                None => return ended,
                Some(Ok(())) => {}
                Some(Err(stop)) => return Ended::Stop(stop),
            }
        }
    }

    /// Makes the broker's side anew, however long that takes.
    async fn resync(
        &mut self,
        mut waiting: Waiting<'a>,
        mut pause: Duration,
        shutdown: &mut Shutdown,
    ) -> Result<Drive<'a>, Next> {
        loop {
            let reopened = waiting.reopen(self.settings, &self.inherited, pause, shutdown);
            let left = match reopened.await {
                Ok((broker, opened)) => {
                    let (epoch, told) = waiting.join(broker, opened);
                    self.board.resumed(&epoch_start(&epoch.summary));
                    return Ok(self.drive(epoch).with_told(told));
                }
                Err(left) => left,
            };
            let (next, limit) = match left {
                Left::Stopped => {
                    let limit = self.settings.relay.shutdown_timeout;
                    (Next::End(self.stopped()), limit)
                }
                Left::Halt(halt) => (self.halted(halt).await, HALT_LIMIT),
                Left::Broker(fault) => {
                    // It may have found what was stored before it was gone.
                    self.inherit(waiting.engine());
                    (self.not_begun(&fault).await, HALT_LIMIT)
                }
                Left::Both(fault) => {
                    self.inherit(waiting.engine());
                    drop(waiting);
                    return Err(self.not_begun(&fault).await);
                }
                Left::Unfit(unfit) => {
                    self.inherit(waiting.engine());
                    drop(waiting);
                    self.doubt(&unfit);
                    return Err(self.not_begun(&Fault::Unready(unfit.reason)).await);
                }
            };
            match next {
                Next::Pause(again) => pause = again,
                end => {
                    waiting.finish(limit).await;
                    return Err(end);
                }
            }
        }
    }

    /// What a stream that drops has acknowledged since it was last seen to fit is not what this relay remembers.
    fn doubt(&mut self, unfit: &Unfit) {
        if let Some(memory) = self.inherited.memory.as_mut().filter(|_| unfit.drops) {
            memory.doubt();
        }
    }

    /// Takes over what the next epoch needs to know; returns whether there was progress.
    fn inherit(&mut self, engine: &Engine) -> bool {
        self.inherited.from = engine.replay_left();
        self.inherited.limit_raised_for = engine.limit_raised_for();
        self.inherited.dead_letters = engine.untold_dead_letters().cloned().collect();
        self.inherited.memory = Some(engine.memory());
        self.unacknowledged = engine.in_flight();
        engine.has_progressed()
    }

    /// The last line, whatever the relay was doing when the signal came.
    fn stopped(&self) -> Outcome {
        let memory = self.inherited.memory.as_ref();
        tracing::info!(
            confirmed_lsn = memory.map(|memory| tracing::field::display(memory.confirmed_lsn)),
            published = self.board.status().totals.published,
            unacknowledged = self.unacknowledged,
            "stopped"
        );
        Outcome::Stopped
    }

    async fn not_begun(&mut self, fault: &Fault) -> Next {
        self.mute.not_begun();
        self.log.not_begun(fault);
        self.next(fault, false).await
    }

    async fn next(&mut self, fault: &Fault, progressed: bool) -> Next {
        self.board.fault(fault);
        self.is_postgres_well = fault.name().0 != "postgres";
        let memory = self.inherited.memory.as_ref();
        let lane_end = memory.and_then(|memory| memory.lane_end.as_ref());
        match self.epochs.ended(
            fault,
            lane_end.map(|lane_end| lane_end.position),
            progressed,
            rand::random(),
        ) {
            Ok(pause) => {
                let (side, name) = fault.name();
                tracing::debug!(?pause, side, fault = name, "the next try");
                self.inherited.refused = self.epochs.refused().clone();
                self.inherited.one_by_one = self.epochs.one_by_one();
                self.inherited.batch_messages_max = self.epochs.batch_messages_max();
                match fault {
                    Fault::SlotActive { .. } => Next::Standby(Awaited::Slot),
                    Fault::NoShare(_) => Next::Standby(Awaited::Share),
                    _ => Next::Pause(pause),
                }
            }
            Err(halt) => self.halted(halt).await,
        }
    }

    /// Says it first: to keep it may fail, and takes a while where the broker is away.
    async fn halted(&self, halt: Halt) -> Next {
        let share = self.settings.postgres.part();
        tracing::error!("halted: {}", halt.told(share));
        self.board.halted(&halt, share);
        halted::keep(self.settings, &self.inherited, &halt).await;
        Next::End(Outcome::Halted(halt))
    }
}

fn epoch_start(summary: &Summary) -> EpochStart {
    let loss = summary.plan.loss.as_ref();
    EpochStart {
        mode: summary.mode,
        postgres: summary.postgres_version.clone(),
        nats: summary.nats_version.clone(),
        foreign_messages: summary.plan.foreign_messages,
        // An alert that counts them has to see also a loss of which nobody knows how large it is.
        lost_messages: loss.map_or(0, |loss| loss.messages.unwrap_or(1)),
    }
}
