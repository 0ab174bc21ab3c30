//! The relay as a task of an application.
//!
//! In: [`Settings`]. Out: a handle that stops it, tells what it does, and ends with the reason. Guarantee: a relay that has
//! come to its end says so, whether or not anybody stops it.

use super::board::{Board, StatusWatch};
use super::settings::Settings;
use super::status::{State, Status};
use super::{Outcome, Shutdown, ShutdownHandle, open_error, run_watched};
use tokio::task::JoinHandle;

/// A relay that runs as a task of the application's own runtime.
#[derive(Debug)]
pub struct Spawned {
    handle: ShutdownHandle,
    board: Board,
    task: JoinHandle<anyhow::Result<Outcome>>,
    end: Option<anyhow::Result<Outcome>>,
}

/// Starts a relay as a task; dropping the [`Spawned`] leaves it running.
///
/// # Panics
/// Outside a tokio runtime.
pub fn spawn(settings: Settings) -> Spawned {
    let (handle, shutdown) = Shutdown::new();
    let board = Board::of(&settings);
    let task = tokio::spawn({
        let board = board.clone();
        async move {
            let ended = run_watched(&settings, None, shutdown, &board).await;
            match &ended {
                Ok(Outcome::Stopped) => board.ended(State::Stopped, None),
                // The board has it.
                Ok(Outcome::Halted(_)) => {}
                Err(error) => {
                    let reason = open_error::with_cause(error.as_ref());
                    tracing::error!("the relay has ended: {reason}");
                    board.ended(State::Failed, Some(reason));
                }
            }
            ended
        }
    });
    Spawned {
        handle,
        board,
        task,
        end: None,
    }
}

impl Spawned {
    /// What it does now: its state and the reason, how far it is, and counts.
    pub fn status(&self) -> Status {
        self.board.status()
    }

    /// Tells of each change, wherever it is taken to.
    pub fn watch(&self) -> StatusWatch {
        self.board.watch()
    }

    /// Waits for the end that the relay comes to by itself: an error at the start, or a halt. Cancel-safe, and may be asked
    /// again.
    ///
    /// # Errors
    /// As [`run`](super::run).
    pub async fn ended(&mut self) -> &anyhow::Result<Outcome> {
        if self.end.is_none() {
            let joined = (&mut self.task).await;
            self.end = Some(joined.unwrap_or_else(|panic| Err(panic.into())));
        }
        self.end.as_ref().expect("it has just been set")
    }

    /// Stops in good order: everything in flight is acknowledged, and Postgres told.
    ///
    /// # Errors
    /// As [`run`](super::run).
    pub async fn stop(self) -> anyhow::Result<Outcome> {
        self.handle.stop();
        match self.end {
            Some(end) => end,
            None => self.task.await?,
        }
    }
}
