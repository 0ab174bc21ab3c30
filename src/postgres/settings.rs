//! Which database, and what is read from it.
//!
//! In: nothing; the configuration fills it. Out: plain values, each of which has passed its check.

use super::conninfo::Conninfo;
use super::table_name::TableName;

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
    pub columns: ColumnNames,
}

/// Under which names the outbox table keeps the envelope's fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnNames {
    /// uuid, the event's id.
    pub id: String,
    /// uuid, the aggregate that the event belongs to.
    pub aggregate_id: String,
    /// text, such as `lesson.published.v1`.
    pub event_type: String,
    /// smallint.
    pub event_version: String,
    /// timestamptz.
    pub occurred_at: String,
    /// jsonb, the event itself.
    pub payload: String,
}

impl Default for ColumnNames {
    fn default() -> Self {
        ColumnNames {
            id: "id".to_owned(),
            aggregate_id: "aggregate_id".to_owned(),
            event_type: "event_type".to_owned(),
            event_version: "event_version".to_owned(),
            occurred_at: "occurred_at".to_owned(),
            payload: "payload_json".to_owned(),
        }
    }
}
