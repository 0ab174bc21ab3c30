//! The record of a share that the outbox does not have.
//!
//! In: a lane without a slot, of no share that there is. Out: its record says that it is at its end. Guarantee: nothing else is changed;
//! `walrelay reshard` begins a lane of that share behind what its stream has.

use super::Args;
use crate::cli::consent::agreed;
use crate::cli::exit::Exit;
use crate::cli::stdout::Account;
use crate::nats::admin::Admin;
use crate::pipeline::record::LaneRecord;
use crate::postgres::catalog::slot_and_wal;
use crate::postgres::client::Client;
use crate::postgres::division;
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

/// Ends it; none where the lane is another one.
///
/// # Errors
/// Postgres or NATS refuse.
pub(super) async fn end(
    args: &Args,
    settings: &Settings,
    sql: &Client,
    nats: &Admin,
) -> anyhow::Result<Option<Exit>> {
    let slot = &settings.postgres.slot;
    let division = division::division(sql, &settings.postgres).await?;
    let Some(other) = division.lacks(&settings.postgres) else {
        return Ok(None);
    };
    if slot_and_wal(sql, slot).await?.is_some() {
        return Ok(None);
    }
    let lane = LaneClient::new(nats, &settings.nats.stream, slot)?;
    let stored = lane.record().await?;
    let record = stored
        .record
        .filter(|record| !record.retired && record.moved.is_none());
    let Some(record) = record else {
        return Ok(None);
    };
    let mut account = Account::default();
    account.line(format_args!(
        "{}, and slot {slot} is of none of them: its record in stream {}, published through {}, is of a database that had more",
        other.what(),
        settings.nats.stream,
        record.confirmed_lsn
    ));
    if !agreed(args.yes, "End that lane?", "nothing was changed")? {
        return Ok(Some(Exit::Usage));
    }
    let ended = LaneRecord {
        epoch: record.epoch + 1,
        active: false,
        halted: None,
        // Both are of WAL that may be written again, with the same LSNs.
        confirmed_lsn: 0.into(),
        switched_lsn: None,
        retired: true,
        ..record
    };
    lane.store_record(ended, stored.sequence).await?;
    account.line("that lane is at its end: walrelay reshard begins one of its share behind what the stream has");
    account.close()?;
    Ok(Some(Exit::Done))
}
