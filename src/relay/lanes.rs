//! Several lanes in one process, each on a thread of its own.
//!
//! In: the lanes' settings and boards. Out: an [`Outcome`] once all have ended. Guarantees: a lane that halts leaves the others to
//! go on; a signal stops all in good order; what ends one at its first start ends all.

use crate::relay::board::Board;
use crate::relay::claims::Claims;
use crate::relay::settings::Settings;
use crate::relay::{Outcome, Shutdown, run_claimed};
use anyhow::Context as _;
use postgres_types::PgLsn;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tracing::Instrument as _;

/// Relays all lanes until shutdown, as far as `claims` lets this process have them.
///
/// # Errors
/// As [`run`](super::run), of the first lane that ends with one; the others are stopped.
pub(crate) async fn run(
    lanes: Vec<(Settings, Board)>,
    from: Option<PgLsn>,
    claims: &Claims,
    mut shutdown: Shutdown,
) -> anyhow::Result<Outcome> {
    let (handle, stopped) = Shutdown::new();
    let mut running = JoinSet::new();
    for (settings, board) in lanes {
        let ended = start(settings, board, from, claims.clone(), stopped.clone())?;
        running.spawn(async move {
            ended
                .await
                .context("a lane's thread has ended by a panic")?
        });
    }
    let mut ended = Ok(Outcome::Stopped);
    let mut stopping = false;
    loop {
        let lane = tokio::select! {
            lane = running.join_next() => lane,
            () = shutdown.wait(), if !stopping => {
                stopping = true;
                handle.stop();
                continue;
            }
        };
        let Some(lane) = lane else {
            return ended;
        };
        match lane.context("a lane's task has ended by a panic").flatten() {
            Ok(Outcome::Stopped) => {}
            Ok(halted) => ended = ended.map(|_| halted),
            Err(error) => {
                ended = ended.and(Err(error));
                stopping = true;
                handle.stop();
            }
        }
    }
}

fn start(
    settings: Settings,
    board: Board,
    from: Option<PgLsn>,
    claims: Claims,
    shutdown: Shutdown,
) -> anyhow::Result<oneshot::Receiver<anyhow::Result<Outcome>>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime of a lane cannot start")?;
    let (sender, receiver) = oneshot::channel();
    let slot = settings.postgres.slot.clone();
    let thread = std::thread::Builder::new().name(slot.clone());
    let started = thread.spawn(move || {
        let span = tracing::info_span!("lane", slot);
        let lane = run_claimed(&settings, from, shutdown, &board, &claims);
        // The receiver ends only with the process.
        let _ = sender.send(runtime.block_on(lane.instrument(span)));
    });
    started.context("a lane's thread cannot start")?;
    Ok(receiver)
}
