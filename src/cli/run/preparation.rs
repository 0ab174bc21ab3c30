//! `run --setup`: setup as a part of `run`, which waits for absent servers and stops by a signal as the relay does.
//!
//! In: settings, the shutdown signal. Out: how `run` ends where it does, or nothing and everything is there. Guarantee: a
//! signal leaves no slot behind that nobody reads.

use crate::cli::exit::{Exit, message};
use crate::cli::setup;
use crate::config::Loaded;
use crate::nats::admin::AdminRequestError;
use crate::nats::stream::StreamError;
use crate::pipeline::epochs::Epochs;
use crate::pipeline::fault::Fault;
use crate::postgres::client::SqlError;
use crate::postgres::error::ReplicationError;
use crate::postgres::setup::Unfinished;
use crate::relay::Shutdown;
use crate::relay::board::Board;
use crate::relay::lane_client::LaneError;
use crate::relay::settings::Settings;

/// Sets up, for as long as it takes.
///
/// # Errors
/// What waiting does not cure.
pub(super) async fn prepare(
    loaded: &Loaded,
    shutdown: &Shutdown,
    lanes: &[(Settings, Board)],
) -> Result<Option<Exit>, anyhow::Error> {
    // How long to be patient is the same in all lanes.
    let settings = &loaded.lanes[0];
    let mut epochs = Epochs::new(settings.relay.backoff_max);
    let mut waiting_for = None;
    loop {
        let made = tokio::select! {
            made = set_up(loaded, shutdown) => made,
            () = overdue(settings, shutdown) => return Ok(Some(stopped())),
        };
        let error = match made {
            Ok(Exit::Done) => return Ok(None),
            Ok(exit) => return Ok(Some(exit)),
            Err(_) if shutdown.is_sent() => return Ok(Some(stopped())),
            Err(error) if may_pass(&error) => error,
            Err(error) => return Err(error),
        };
        let fault = Fault::Unready(format!("setup: {}", message(&error)));
        for (_, board) in lanes {
            board.fault(&fault);
        }
        if waiting_for.as_ref() != Some(&fault) {
            tracing::warn!("waiting: {fault}");
        }
        let pause = epochs.ended(&fault, None, false, rand::random());
        waiting_for = Some(fault);
        let mut stop = shutdown.clone();
        tokio::select! {
            () = tokio::time::sleep(pause.expect("what is not ready passes")) => {}
            () = stop.wait() => return Ok(Some(stopped())),
        }
    }
}

async fn set_up(loaded: &Loaded, shutdown: &Shutdown) -> Result<Exit, anyhow::Error> {
    let each = async |lane: &Settings| {
        let mut cancel = shutdown.clone();
        let made = setup::execute_until(setup::Args::default(), lane, cancel.wait()).await?;
        Ok(made.exit)
    };
    setup::each_lane(loaded, each).await
}

/// The signal was sent, and the server has had the time of a stop to give up what it was at.
async fn overdue(settings: &Settings, shutdown: &Shutdown) {
    shutdown.clone().wait().await;
    tokio::time::sleep(settings.relay.shutdown_timeout).await;
}

fn stopped() -> Exit {
    tracing::info!("stopped in setup");
    Exit::Done
}

/// Whether a later attempt may succeed without anybody's doing.
fn may_pass(error: &anyhow::Error) -> bool {
    use async_nats::ConnectErrorKind as Connect;
    error.chain().any(|cause| {
        if cause.is::<Unfinished>() {
            true
        } else if let Some(error) = cause.downcast_ref::<SqlError>() {
            error.is_transient()
        } else if let Some(error) = cause.downcast_ref::<ReplicationError>() {
            error.is_transient()
        } else if let Some(error) = cause.downcast_ref::<async_nats::ConnectError>() {
            matches!(error.kind(), Connect::Dns | Connect::TimedOut | Connect::Io)
        } else {
            // The server went away, or the cluster has no leader yet.
            matches!(cause.downcast_ref(), Some(AdminRequestError::Request(_)))
                || matches!(cause.downcast_ref(), Some(LaneError::NoJetStream(_)))
                || matches!(cause.downcast_ref(), Some(StreamError::NoJetStream(_)))
        }
    })
}
