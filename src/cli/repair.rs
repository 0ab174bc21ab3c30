//! `walrelay verify --repair`: compares, publishes what is missing, and compares again.
//!
//! In: settings. Out: the report before and behind, and what was published between. Guarantee: what a backfill publishes and nothing
//! else, so what the relay will still publish is left to it.

use super::exit::Exit;
use super::signals::{self, Hangup};
use super::{backfill, command_line, verify};
use crate::bulk::lease::Lease;
use crate::nats::admin::Admin;
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

/// Runs `walrelay verify`, with or without the repair.
///
/// # Errors
/// Something is missing and cannot be published.
pub(super) async fn execute(
    args: verify::Args,
    settings: &Settings,
) -> Result<Exit, anyhow::Error> {
    let mut shutdown = signals::listen(Hangup::Stops)?;
    let found = verify::execute(&args, settings, &mut shutdown).await?;
    if args.repair && found == Exit::Done {
        // One that was killed may have come to its end but for this.
        let nats = Admin::connect(&settings.nats.connection).await?;
        let lane = LaneClient::new(&nats, &settings.nats.stream, &settings.postgres.slot)?;
        Lease::close_abandoned(&lane, backfill::COMMAND, &command_line::typed()).await?;
    }
    if !args.repair || found == Exit::Done || shutdown.is_sent() {
        return Ok(found);
    }
    let missing = backfill::Args::of_missing(&args);
    backfill::execute_until(missing, settings, shutdown.clone()).await?;
    verify::execute(&args, settings, &mut shutdown).await
}
