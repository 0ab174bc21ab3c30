//! A command for each lane of the configuration, one after the other: of an outbox with shares, for each share.
//!
//! In: the configuration, a command for one lane. Out: the gravest of the exit codes.

use super::exit::Exit;
use super::stderr;
use crate::config::Loaded;
use crate::relay::settings::Settings;

/// Runs the command for each lane.
///
/// # Errors
/// The first that a lane's command ends with.
pub(super) async fn each(
    loaded: &Loaded,
    command: impl AsyncFn(&Settings) -> Result<Exit, anyhow::Error>,
) -> Result<Exit, anyhow::Error> {
    let mut gravest = Exit::Done;
    for lane in &loaded.lanes {
        name(loaded, lane);
        gravest = gravest.graver(command(lane).await?);
    }
    Ok(gravest)
}

/// Says on standard error which lane comes next, where there are several.
pub(super) fn name(loaded: &Loaded, lane: &Settings) {
    let share = lane.postgres.share.as_ref();
    if let Some(share) = share.filter(|_| loaded.lanes.len() > 1) {
        stderr::line(format_args!("share {} of {}:", share.number, share.count));
    }
}
