//! Whether a configuration is the one of the lane: what a command is sure of before it publishes beside a lane or removes something for
//! good.
//!
//! In: settings, what both servers have. Out: the lane's record, or why the configuration is not the lane's. Guarantee: reads only.

use anyhow::{bail, ensure};

use crate::bulk::fence::lives_there;
use crate::pipeline::fault::Halt;
use crate::pipeline::record::LaneRecord;
use crate::postgres::catalog::{Inspection, inspect};
use crate::postgres::client::Client;
use crate::postgres::division;
use crate::relay::lane_client::LaneClient;
use crate::relay::lane_records::Database;
use crate::relay::settings::Settings;

/// The record of the lane that these settings are of. Without it nothing tells that the relay of this slot publishes into this stream: with
/// another stream, NATS, slot or number of shares, events would be published again, and what is to be removed would stay.
///
/// # Errors
/// The settings are not the lane's, or Postgres or NATS refuse.
pub(super) async fn own_lane(
    settings: &Settings,
    client: &Client,
    lane: &LaneClient,
) -> anyhow::Result<LaneRecord> {
    division::check_number(client, &settings.postgres).await?;
    recorded_lane(settings, client, lane).await
}

/// The same of a lane that may be at its end: the dead letters of a share that is no more are closed by the configuration that it had.
///
/// # Errors
/// As [`own_lane`], whatever the number of shares.
pub(super) async fn recorded_lane(
    settings: &Settings,
    client: &Client,
    lane: &LaneClient,
) -> anyhow::Result<LaneRecord> {
    let (slot, stream) = (lane.slot(), lane.stream_name());
    let Some(record) = lane.record().await?.record else {
        let inspection = inspect(client, &settings.postgres).await?;
        if let Some(halt) = no_beginning(&inspection, settings) {
            bail!(halt.told(settings.postgres.part()));
        }
        bail!(
            "slot {slot} has no lane record for stream {stream} at {}: either no relay has published from it yet, or the relay of \
             this slot publishes elsewhere. Take the configuration that it runs with; a new relay's record is written by walrelay run",
            settings.nats.connection.servers_text()
        );
    };
    lives_there(Some(&record), stream)?;
    ensure!(
        Database::of(client).await?.has(&record),
        "the lane record of slot {slot} is of another database, {} in cluster {}: if this one continues it, walrelay adopt says so",
        record.database,
        record.system_identifier
    );
    Ok(record)
}

/// Why `walrelay run` would halt beside a stream without a message and without a record of the lane: the slot has passed something, which
/// is elsewhere.
pub(super) fn no_beginning(inspection: &Inspection, settings: &Settings) -> Option<Halt> {
    let begins_lsn = inspection.begins_lsn()?;
    let confirmed_lsn = inspection.confirmed_lsn()?;
    (confirmed_lsn != begins_lsn).then(|| Halt::NoBeginning {
        slot: settings.postgres.slot.clone(),
        stream: settings.nats.stream.clone(),
        nats: settings.nats.connection.servers_text(),
        confirmed_lsn,
        begins_lsn,
    })
}
