//! Other lanes that read the tables of this one.
//!
//! In: the records of all lanes at the broker. Out: the lane beside which no row may be deleted. Its dead letters may be of rows that this
//! lane has published, and of one that is too large it has no copy. Shares of one outbox have rows of their own each.

use crate::nats::admin::Admin;
use crate::pipeline::record::LaneRecord;
use crate::postgres::client::Client;
use crate::relay::lane_client::{LaneClient, all_lane_records};
use crate::relay::lane_records::was_divided;
use crate::relay::settings::Settings;

/// A lane beside which no row may be deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "outbox.after_publish = \"delete\": slot \"{slot}\" reads table {table} too, and a row that this lane has published may be an open \
     dead letter there, whose only copy would go. Set outbox.after_publish = \"keep\" in the configurations of both lanes, and \
     delete rows with walrelay prune, which asks every lane"
)]
pub(super) struct OtherLane {
    slot: String,
    table: String,
}

impl OtherLane {
    /// One that has a slot, of the same database, by the OIDs of its tables; none where this lane has no record yet.
    pub(super) async fn find(
        nats: &Admin,
        sql: &Client,
        settings: &Settings,
    ) -> anyhow::Result<Option<Self>> {
        let postgres = &settings.postgres;
        let own = LaneClient::new(nats, &settings.nats.stream, &postgres.slot)?;
        let Some(own) = own.record().await?.record else {
            return Ok(None);
        };
        let is_divided = was_divided(nats, postgres).await?;
        let share = postgres.any_share();
        let is_other = |slot: &str| {
            slot != postgres.slot && !(is_divided && share.part_of_slot(slot).is_some())
        };
        let records = all_lane_records(nats, is_other).await?;
        for (record, table) in beside(&own, &records) {
            let query = "SELECT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $1::text)";
            let row = sql.query_one(query, &[&record.slot]).await?;
            if row.try_get(0)? {
                let slot = record.slot.clone();
                return Ok(Some(OtherLane { slot, table }));
            }
        }
        Ok(None)
    }
}

/// The lanes that have a table of this one, and which.
fn beside<'r>(
    own: &'r LaneRecord,
    records: &'r [LaneRecord],
) -> impl Iterator<Item = (&'r LaneRecord, String)> {
    let of_database = records.iter().filter(|record| {
        record.system_identifier == own.system_identifier && record.database == own.database
    });
    of_database.filter_map(|record| {
        let reads =
            |oid: u32| oid != 0 && record.tables.iter().any(|it| !it.ended && it.oid == oid);
        let table = own.tables.iter().find(|it| !it.ended && reads(it.oid))?;
        Some((record, format!("{}.{}", table.schema, table.table)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::history::History;
    use crate::pipeline::position::Lane;
    use crate::pipeline::tables::Tables;

    #[test]
    fn a_lane_of_the_same_table_is_found() {
        let record = |slot: &str, database: &str, oid: u32| {
            let lane = Lane {
                system_identifier: 7,
                database: database.to_owned(),
                slot: slot.to_owned(),
            };
            let tables = Tables::new("public".into(), "outbox".into(), oid, 1.into());
            LaneRecord {
                tables: tables.periods().to_vec(),
                ..LaneRecord::new(&lane, &History::new(1, None), "S", "c")
            }
        };
        let own = record("a", "app", 1);
        let others = [
            record("b", "app", 2),
            record("c", "other", 1),
            record("d", "app", 1),
        ];
        let found: Vec<_> = beside(&own, &others).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].0.slot.as_str(), found[0].1.as_str()),
            ("d", "public.outbox")
        );
    }
}
