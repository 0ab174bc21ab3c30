//! The records of the lanes of a database, also of those that are no more.
//!
//! In: a client of the database. Out: what the broker's lane records say of it.

use crate::nats::admin::Admin;
use crate::pipeline::record::LaneRecord;
use crate::postgres::client::Client;
use crate::postgres::settings::PostgresSettings;
#[cfg(feature = "cli")]
use crate::relay::lane_client::all_lane_records;
use crate::relay::lane_client::{LaneError, lane_records};

/// Which database a lane is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Database {
    system_identifier: String,
    name: String,
}

impl Database {
    /// That of a client.
    pub(crate) async fn of(client: &Client) -> anyhow::Result<Self> {
        let query =
            "SELECT system_identifier::text, current_database()::text FROM pg_control_system()";
        let row = client.query_one(query, &[]).await?;
        Ok(Database {
            system_identifier: row.try_get(0)?,
            name: row.try_get(1)?,
        })
    }

    /// Whether the record's lane is of it.
    pub(crate) fn has(&self, record: &LaneRecord) -> bool {
        record.system_identifier.to_string() == self.system_identifier
            && record.database == self.name
    }
}

/// The records of all lanes of a client's database.
///
/// # Errors
/// Postgres or NATS refuse, or a record cannot be read.
#[cfg(feature = "cli")]
pub(crate) async fn of_database(nats: &Admin, client: &Client) -> anyhow::Result<Vec<LaneRecord>> {
    of_slots(nats, client, |_| true).await
}

/// The same, of the lanes of one outbox alone, however many shares it has had. None where it was never divided: slots may be
/// called like those of its shares by chance.
#[cfg(feature = "cli")]
pub(crate) async fn of_shares(
    nats: &Admin,
    client: &Client,
    postgres: &PostgresSettings,
) -> anyhow::Result<Vec<LaneRecord>> {
    if !was_divided(nats, postgres).await? {
        return Ok(Vec::new());
    }
    let share = postgres.any_share();
    of_slots(nats, client, |slot| share.part_of_slot(slot).is_some()).await
}

/// Whether the outbox has shares or had some, by the record of the lane.
///
/// # Errors
/// NATS refuses, or the record cannot be read.
pub(crate) async fn was_divided(
    nats: &Admin,
    postgres: &PostgresSettings,
) -> Result<bool, LaneError> {
    if postgres.share.is_some() {
        return Ok(true);
    }
    match lane_records(nats, &postgres.slot).await {
        Err(LaneError::NoStream(_)) => Ok(false),
        own => Ok(own?.iter().any(|record| record.switched_lsn.is_some())),
    }
}

#[cfg(feature = "cli")]
async fn of_slots(
    nats: &Admin,
    client: &Client,
    is_wanted: impl Fn(&str) -> bool,
) -> anyhow::Result<Vec<LaneRecord>> {
    let database = Database::of(client).await?;
    let mut records = match all_lane_records(nats, is_wanted).await {
        Err(LaneError::NoStream(_)) => return Ok(Vec::new()),
        records => records?,
    };
    records.retain(|record| database.has(record));
    Ok(records)
}
