//! The records of the lanes of a database, also of those that are no more.
//!
//! In: a client of the database. Out: what the broker's lane records say of it.

use crate::nats::admin::Admin;
use crate::pipeline::record::LaneRecord;
use crate::postgres::client::Client;
use crate::postgres::share::Share;
use crate::relay::lane_client::{LaneError, lane_records};

/// Which database a lane is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Database {
    system_identifier: String,
    name: String,
}

impl Database {
    /// That of a client.
    pub(super) async fn of(client: &Client) -> anyhow::Result<Self> {
        let query =
            "SELECT system_identifier::text, current_database()::text FROM pg_control_system()";
        let row = client.query_one(query, &[]).await?;
        Ok(Database {
            system_identifier: row.try_get(0)?,
            name: row.try_get(1)?,
        })
    }

    /// Whether the record's lane is of it.
    pub(super) fn has(&self, record: &LaneRecord) -> bool {
        record.system_identifier.to_string() == self.system_identifier
            && record.database == self.name
    }
}

/// The records of all lanes of a client's database.
///
/// # Errors
/// Postgres or NATS refuse, or a record cannot be read.
pub(super) async fn of_database(nats: &Admin, client: &Client) -> anyhow::Result<Vec<LaneRecord>> {
    of_slots(nats, client, |_| true).await
}

/// The same, of the lanes of an outbox with shares alone, whatever their number was.
pub(super) async fn of_shares(
    nats: &Admin,
    client: &Client,
    share: &Share,
) -> anyhow::Result<Vec<LaneRecord>> {
    of_slots(nats, client, |slot| share.number_of_slot(slot).is_some()).await
}

async fn of_slots(
    nats: &Admin,
    client: &Client,
    is_wanted: impl Fn(&str) -> bool,
) -> anyhow::Result<Vec<LaneRecord>> {
    let database = Database::of(client).await?;
    let mut records = match lane_records(nats, "*", is_wanted).await {
        Err(LaneError::NoStream(_)) => return Ok(Vec::new()),
        records => records?,
    };
    records.retain(|record| database.has(record));
    Ok(records)
}
