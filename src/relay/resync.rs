//! The broker's side of an epoch made anew, while the WAL's side stays.
//!
//! In: an epoch that has left its broker. Out: the same epoch behind the lane's end as a new connection has found it, or why
//! that cannot be. Guarantees: the old connection is closed before the new one looks; meanwhile Postgres is told on time that we
//! are there, however long the broker is away, and nothing is read.

use crate::pipeline::engine::{Engine, Stop};
use crate::pipeline::fault::{Fault, Halt};
use crate::pipeline::opening::{Opened, Opening, Wanted};
use crate::pipeline::request::Unfit;
use crate::postgres::copy_both::CopyBoth;
use crate::relay::Shutdown;
use crate::relay::board::Board;
use crate::relay::broker::Broker;
use crate::relay::clock::{self, Clock};
use crate::relay::drive::{Drive, Told, move_wal};
use crate::relay::open::{self, Epoch, Inherited, Summary};
use crate::relay::open_error::{OpenError, with_cause};
use crate::relay::settings::Settings;
use crate::relay::turn::{Kept, missed, postgres_gone};
use crate::relay::watch::{Looked, Watch};
use std::time::Duration;

/// An epoch without a broker.
pub(super) struct Waiting<'a> {
    kept: Kept<CopyBoth>,
    watch: Watch,
    summary: Summary,
    told: Told,
    clock: Clock,
    board: &'a Board,
}

/// Why there is no broker's side yet, or will be none.
#[derive(Debug)]
pub(super) enum Left {
    /// The shutdown signal.
    Stopped,
    /// A person has to look.
    Halt(Halt),
    /// It may be tried again.
    Broker(Fault),
    /// Both sides have to begin anew.
    Both(Fault),
    /// As [`Left::Both`], and what was acknowledged is in doubt.
    Unfit(Unfit),
}

impl From<Stop> for Left {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Halt(halt) => Left::Halt(halt),
            Stop::Fault(fault) => Left::Both(fault),
        }
    }
}

impl From<OpenError> for Left {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Halt(halt) => Left::Halt(halt),
            OpenError::Fault(fault) if fault.is_of_broker() => Left::Broker(fault),
            OpenError::Fault(fault) => Left::Both(fault),
            OpenError::Unfit(unfit) if unfit.drops => Left::Unfit(unfit),
            OpenError::Unfit(unfit) => Left::Broker(Fault::Unready(unfit.reason)),
            OpenError::Permanent(error) => Left::Broker(Fault::Unready(with_cause(error.as_ref()))),
        }
    }
}

impl<'a> Waiting<'a> {
    /// Leaves the broker: the connection is closed at once, so that nothing more of it arrives than is on its way.
    pub(super) fn leave(drive: Drive<'a>, clock: Clock, board: &'a Board) -> Self {
        let (epoch, told) = drive.into_epoch();
        let (kept, broker) = epoch.turn.part();
        drop(broker);
        Waiting {
            kept,
            watch: epoch.watch,
            summary: epoch.summary,
            told,
            clock,
            board,
        }
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.kept.engine
    }

    /// Looks for the broker after a pause, and for the lane's end there.
    pub(super) async fn reopen(
        &mut self,
        settings: &Settings,
        inherited: &Inherited,
        pause: Duration,
        shutdown: &mut Shutdown,
    ) -> Result<(Broker, Opened), Left> {
        let mut opening = Opening::resync(open::known(settings, inherited));
        let connecting = async {
            // No pause is none: a timer takes a millisecond at least.
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            open::connect(settings, inherited).await
        };
        let mut broker = tokio::select! {
            connected = connecting => connected?,
            left = self.keep(shutdown) => return Err(left),
        };
        opening.connected(broker.server());
        loop {
            tokio::select! {
                answered = broker.answer(&mut opening) => answered?,
                left = self.keep(shutdown) => return Err(left),
            }
            let engine = &mut self.kept.engine;
            match opening.wanted() {
                Wanted::SlotPlace => opening.slot_kept(engine).map_err(OpenError::from)?,
                Wanted::Settings => {
                    let limits = open::window_limits(settings, inherited, &broker);
                    let resumed = opening.resume(engine, limits, self.clock.now());
                    resumed.map_err(OpenError::from)?;
                }
                Wanted::Nothing => break,
                wanted => unreachable!("a resync does not want {wanted:?}"),
            }
        }
        Ok((broker, opening.finish(&mut self.kept.engine)))
    }

    /// Tells Postgres that we are there, until something other than the broker ends that. A catalog that cannot be looked at
    /// does: nothing is read here that would tell of a server that is shutting down, and it would wait for us.
    async fn keep(&mut self, shutdown: &mut Shutdown) -> Left {
        loop {
            if let Err(stop) = self.kept.send_status(self.clock.now()) {
                return stop.into();
            }
            let until = self.kept.next_time();
            tokio::select! {
                moved = move_wal(&mut self.kept.wal, false) => {
                    if let Err(error) = moved {
                        return postgres_gone(error.into()).into();
                    }
                }
                looked = self.watch.look() => match looked {
                    Ok(Looked::Seen(look)) => {
                        let now = self.clock.now();
                        self.told.take_look(look, &mut self.kept.engine, self.board, now);
                    }
                    Ok(Looked::Missed(reason)) => {
                        return Left::Both(missed(&reason));
                    }
                    Ok(Looked::Row(presence)) => self.kept.engine.handle_row(&presence),
                    Err(fault) => return Left::Both(fault),
                },
                () = clock::sleep_until(self.clock, until) => {}
                () = shutdown.wait() => return Left::Stopped,
            }
        }
    }

    /// Streams again, with this broker.
    pub(super) fn join(self, mut broker: Broker, opened: Opened) -> (Epoch, Told) {
        broker.listen_for_leaders();
        let mut summary = Summary {
            nats_version: broker.connection.info().version.to_string(),
            mode: opened.mode,
            plan: opened.plan,
            ..self.summary
        };
        for warning in broker.warnings().into_iter().chain(opened.warnings) {
            if !summary.warnings.contains(&warning) {
                summary.warnings.push(warning);
            }
        }
        let epoch = Epoch {
            turn: self.kept.join(broker, self.clock.now()),
            watch: self.watch,
            summary,
        };
        (epoch, self.told)
    }

    /// Ends the WAL's side in good order.
    pub(super) async fn finish(mut self, limit: Duration) {
        if self.kept.send_status(self.clock.now()).is_ok()
            && let Err(error) = self.kept.wal.finish(limit).await
        {
            tracing::debug!(error = %error, "the replication connection did not close cleanly");
        }
    }
}
