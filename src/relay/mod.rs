//! The relay: epochs one after the other, each begun the same way, until somebody stops it or has to look.
//!
//! In: [`Settings`], a [`Shutdown`]. Out: an [`Outcome`]. Crash-only: any doubt ends the epoch, all its state and both
//! its connections with it, and the next one asks stream and slot where to go on.

pub mod broker;
pub mod clock;
mod drive;
pub mod lane_client;
pub mod lane_store;
mod log;
pub mod open;
pub mod open_error;
pub mod settings;
mod shutdown;
pub mod status;
pub mod stream_fit;
pub mod turn;
pub mod watch;

pub use shutdown::{Shutdown, ShutdownHandle};

use crate::pipeline::engine::Stop;
use crate::pipeline::epochs::Epochs;
use crate::pipeline::fault::{Fault, Halt};
use crate::relay::status::{Board, EpochMarks, EpochStart};
use clock::Clock;
use drive::{Drive, Ended};
use log::Log;
use open::{Inherited, Summary};
use open_error::OpenError;
use postgres_types::PgLsn;
use settings::Settings;
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

/// The relay between two epochs.
struct Relay<'a> {
    settings: &'a Settings,
    board: &'a Board,
    clock: Clock,
    epochs: Epochs,
    inherited: Inherited,
    has_streamed: bool,
    log: Log,
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
    let board = Board::new(
        &settings.name,
        &settings.postgres.slot,
        &settings.nats.stream,
    );
    run_watched(settings, from, shutdown, &board).await
}

/// As [`run`], and tells the board what it does.
///
/// # Errors
/// As [`run`].
pub async fn run_watched(
    settings: &Settings,
    from: Option<PgLsn>,
    mut shutdown: Shutdown,
    board: &Board,
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
        has_streamed: false,
        log: Log::default(),
        unacknowledged: 0,
    };
    loop {
        let pause = match relay.epoch(&mut shutdown).await? {
            Next::Pause(pause) => pause,
            Next::End(outcome) => return Ok(outcome),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.wait() => return Ok(relay.stopped()),
        }
    }
}

/// A relay that runs as a task of the application's own runtime.
#[derive(Debug)]
pub struct Spawned {
    handle: ShutdownHandle,
    task: tokio::task::JoinHandle<anyhow::Result<Outcome>>,
}

/// Starts a relay as a task; dropping the [`Spawned`] leaves it running.
///
/// # Panics
/// Outside a tokio runtime.
pub fn spawn(settings: Settings) -> Spawned {
    let (handle, shutdown) = Shutdown::new();
    let task = tokio::spawn(async move { run(&settings, None, shutdown).await });
    Spawned { handle, task }
}

impl Spawned {
    /// Stops in good order: everything in flight is acknowledged, and Postgres told.
    ///
    /// # Errors
    /// As [`run`].
    pub async fn stop(self) -> anyhow::Result<Outcome> {
        self.handle.stop();
        self.wait().await
    }

    /// Waits for the end that the relay comes to by itself: an error at the start, or a halt.
    ///
    /// # Errors
    /// As [`run`].
    pub async fn wait(self) -> anyhow::Result<Outcome> {
        self.task.await?
    }
}

enum Next {
    Pause(Duration),
    End(Outcome),
}

impl Relay<'_> {
    async fn epoch(&mut self, shutdown: &mut Shutdown) -> anyhow::Result<Next> {
        let opened = tokio::select! {
            opened = open::open(self.settings, &mut self.inherited, self.board, self.clock.now()) => opened,
            () = shutdown.wait() => return Ok(Next::End(self.stopped())),
        };
        let epoch = match opened {
            Ok(epoch) => epoch,
            Err(OpenError::Halt(halt)) => return Ok(self.halted(halt)),
            Err(OpenError::Permanent(error)) if !self.has_streamed => return Err(error),
            // A relay that has been running waits: a password may be rotating, a server moving.
            Err(OpenError::Permanent(error)) => {
                return Ok(self.not_begun(&Fault::Unready(open_error::with_cause(error.as_ref()))));
            }
            Err(OpenError::Fault(fault)) => return Ok(self.not_begun(&fault)),
        };
        self.board.begun(&epoch_start(&epoch.summary));
        let postgres = &self.settings.postgres;
        let nats = &self.settings.nats;
        let line = self.log.begun(&epoch.summary, &postgres.slot, &nats.stream);
        self.has_streamed = true;
        let began = self.clock.now();
        let mut drive = Drive::new(epoch, line, self.clock, self.board);
        drive.log_stored(std::mem::take(&mut self.inherited.dead_letters));
        let ended = drive
            .run(shutdown, self.settings.relay.shutdown_timeout)
            .await;
        self.board.report(&EpochMarks::of(drive.engine()));
        if drive.is_well() {
            self.log.is_well();
        }
        let lasted = self.clock.now().saturating_sub(began);
        let progressed = self.inherit(&drive) || lasted >= STEADY;
        match ended {
            Ended::Stopped => {
                drive.finish(self.settings.relay.shutdown_timeout).await;
                Ok(Next::End(self.stopped()))
            }
            Ended::Stop(Stop::Halt(halt)) => {
                drive.keep_halt(&halt).await;
                drive.finish(Duration::from_secs(1)).await;
                Ok(self.halted(halt))
            }
            Ended::Stop(Stop::Fault(fault)) if shutdown.is_sent() => {
                drop(drive);
                self.board.fault(&fault);
                tracing::warn!("what is in flight is not waited for any longer: {fault}");
                Ok(Next::End(self.stopped()))
            }
            Ended::Stop(Stop::Fault(fault)) => {
                drop(drive);
                self.log.ended(&fault, progressed, lasted);
                Ok(self.next(&fault, progressed))
            }
        }
    }

    /// Takes over what the next epoch needs to know; returns whether there was progress.
    fn inherit(&mut self, drive: &Drive<'_>) -> bool {
        let engine = drive.engine();
        self.inherited.from = engine.replay_left(drive.plan());
        self.inherited.dead_letters = engine.dead_letters_in_flight().cloned().collect();
        self.inherited.memory = Some(engine.memory());
        self.unacknowledged = engine.in_flight();
        engine.progress().acknowledged_rows() > 0
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

    fn not_begun(&mut self, fault: &Fault) -> Next {
        self.log.not_begun(fault);
        self.next(fault, false)
    }

    fn next(&mut self, fault: &Fault, progressed: bool) -> Next {
        self.board.fault(fault);
        let memory = self.inherited.memory.as_ref();
        let tail = memory.and_then(|memory| memory.tail.as_ref());
        match self.epochs.ended(
            fault,
            tail.map(|tail| tail.position),
            progressed,
            rand::random(),
        ) {
            Ok(pause) => {
                self.inherited.refused = self.epochs.refused().clone();
                self.inherited.one_by_one = self.epochs.one_by_one();
                Next::Pause(pause)
            }
            Err(halt) => self.halted(halt),
        }
    }

    fn halted(&self, halt: Halt) -> Next {
        tracing::error!("halted: {halt}");
        self.board.halted(halt.to_string());
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
        lost_messages: loss.and_then(|loss| loss.messages).unwrap_or(0),
    }
}
