//! Which database, and what is read from it.
//!
//! In: nothing; the configuration fills it. Out: plain values, each of which has passed its check.

use super::conninfo::Conninfo;
use super::table_name::TableName;
use crate::pipeline::fields::Fields;

/// `[postgres]`: which database, and what is read from it.
#[derive(Debug, Clone)]
pub struct PostgresSettings {
    /// How to connect.
    pub conninfo: Conninfo,
    /// The logical replication slot, `[a-z0-9_]{1,63}`.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// The outbox table.
    pub table: TableName,
    /// The names of the outbox table's columns.
    pub columns: Fields<String>,
}

/// The names of the columns in the table that `walrelay setup` makes.
pub fn default_columns() -> Fields<String> {
    Fields {
        id: "id",
        aggregate_id: "aggregate_id",
        event_type: "event_type",
        event_version: "event_version",
        occurred_at: "occurred_at",
        payload: "payload_json",
    }
    .map(str::to_owned)
}
