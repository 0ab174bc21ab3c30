//! The records of the lanes of a database, also of those that are no more.
//!
//! In: a client of the database. Out: what the broker's lane records say of it.

use anyhow::Context as _;

use crate::nats::admin::Admin;
use crate::nats::stream::LANE_RECORD_STREAM;
use crate::pipeline::end_search::Lookup;
use crate::pipeline::record::{LaneRecord, RecordOrNote};
use crate::postgres::client::Client;
use crate::postgres::share::Share;
use crate::relay::lane_client::{LaneClient, LaneError};

/// The records of all lanes, and nothing else of theirs.
const RECORD_SUBJECTS: &str = "walrelay.lane.*.*";

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
    let database = Database::of(client).await?;
    let records = LaneClient::new(nats, LANE_RECORD_STREAM, "-")?;
    let mut found = Vec::new();
    let mut from = 1;
    loop {
        let lookup = Lookup::Next {
            from,
            filter: RECORD_SUBJECTS,
        };
        let message = match records.message(lookup).await {
            Err(LaneError::NoStream(_)) | Ok(None) => return Ok(found),
            Ok(Some(message)) => message,
            Err(error) => return Err(error.into()),
        };
        from = message.seq + 1;
        let kept = RecordOrNote::from_json(&message.data)
            .with_context(|| format!("the lane record on {} cannot be read", message.subject))?;
        if let RecordOrNote::Record(record) = kept
            && database.has(&record)
        {
            found.push(*record);
        }
    }
}

/// The same, of the lanes of an outbox with shares alone, whatever their number was.
pub(super) async fn of_shares(
    nats: &Admin,
    client: &Client,
    share: &Share,
) -> anyhow::Result<Vec<LaneRecord>> {
    let mut records = of_database(nats, client).await?;
    records.retain(|record| share.number_of_slot(&record.slot).is_some());
    Ok(records)
}
