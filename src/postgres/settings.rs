//! Which database, and what is read from it.
//!
//! In: nothing; the configuration fills it. Out: plain values, each of which has passed its check.

use super::conninfo::Conninfo;
use super::share::Share;
use crate::pipeline::fields::{Field, Fields};
use crate::pipeline::mapping::Value;
use crate::table_name::TableName;

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
    /// Where an event's fields come from.
    pub columns: Fields<Value>,
    /// Further columns that messages are made of, each once.
    pub extra_columns: Vec<String>,
    /// Fields whose NULL makes no row a dead letter.
    pub may_be_null: Vec<Field>,
    /// The prefix of messages of the WAL that are published as rows are; none for no messages.
    pub messages: Option<String>,
    /// Which of the table's rows; none for all.
    pub share: Option<Share>,
}

impl PostgresSettings {
    /// The column that holds the event's id.
    ///
    /// # Panics
    /// Where the id comes from no column; the configuration refuses that.
    pub(crate) fn id_column(&self) -> &str {
        self.columns.id.column().expect("the id is a column")
    }
}
