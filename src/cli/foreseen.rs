//! What a relay that starts now would halt at, for those who ask before.
//!
//! In: settings, the catalog as it was looked at, NATS. Out: the halt. Guarantees: the start's own decision, by the looks that it takes;
//! reads only. What takes the WAL itself, such as the row at the lane's end, only a start sees.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::timeout;

use super::setup::identify;
use crate::nats::admin::Admin;
use crate::pipeline::fault::{Halt, of_share};
use crate::pipeline::opening::SlotPlace;
use crate::pipeline::record::HaltNote;
use crate::postgres::catalog::{Inspection, slot_and_wal};
use crate::postgres::client::Client;
use crate::postgres::division::Division;
use crate::relay::lane_client::LaneClient;
use crate::relay::open;
use crate::relay::settings::Settings;

/// So long it is looked for the lane's end: one message after the other where others' stand behind it.
const REACH_LIMIT: Duration = Duration::from_secs(5);

/// Why a relay that starts now would halt. The slot's place is the one of the inspection, and the server's end is read behind the look at
/// the stream: so a relay that runs meanwhile explains both.
///
/// # Errors
/// Postgres or NATS cannot be asked.
pub(super) async fn halt(
    settings: &Settings,
    sql: &Client,
    inspection: &Inspection,
    division: &Division,
    nats: &Admin,
) -> anyhow::Result<Option<Halt>> {
    let slot = &settings.postgres.slot;
    let server = &inspection.server;
    let (Some(found), Some(confirmed_flush_lsn)) = (&inspection.slot, inspection.confirmed_lsn())
    else {
        return Ok(None);
    };
    // All of it keeps a relay from its start, and is told by itself. A share that is none is waited for.
    let is_of_database = found.database.as_ref() == Some(&server.dbname);
    let has_no_start =
        found.is_lost() || !is_of_database || server.in_recovery || !server.may_replicate;
    if has_no_start || division.lacks(&settings.postgres).is_some() {
        return Ok(None);
    }
    let (identity, history) = identify(settings).await?;
    let lane = LaneClient::new(nats, &settings.nats.stream, slot)?;
    let reach = timeout(REACH_LIMIT, lane.start(&settings.nats)).await;
    let reach = reach.context("the lane's end is not found in time")??;
    let Some(now) = slot_and_wal(sql, slot).await? else {
        return Ok(None);
    };
    let place = SlotPlace {
        lane: identity.lane(slot),
        history,
        confirmed_flush_lsn,
        begins_lsn: inspection.begins_lsn(),
        server_lsn: now.server_lsn,
    };
    Ok(reach.halt(&place, &open::source(inspection, settings)))
}

/// A halt that is to come, as one is told that has been.
pub(super) fn note(halt: &Halt, settings: &Settings) -> HaltNote {
    let mut note = HaltNote::of(halt, String::new());
    note.remedy = of_share(&note.remedy, settings.postgres.part());
    note
}
