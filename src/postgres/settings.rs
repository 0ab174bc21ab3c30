//! Which database, and what is read from it.
//!
//! In: nothing; the configuration fills it. Out: plain values, each of which has passed its check.

use super::conninfo::Conninfo;
use super::share::Share;
use crate::pipeline::fields::{Field, Fields};
use crate::pipeline::mapping::{Mapping, Value};
use crate::pipeline::reshard::{OtherNumber, Undivided};
use crate::pipeline::subject::SubjectTemplate;
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
    /// The subject of its events: what is proposed for the table stays under its root.
    pub subject: SubjectTemplate,
    /// Further columns that messages are made of, each once.
    pub extra_columns: Vec<String>,
    /// Fields whose NULL makes no row a dead letter.
    pub may_be_null: Vec<Field>,
    /// Further tables of the lane.
    pub further: Vec<FurtherTable>,
    /// Where the table by itself is a further one of its lane: the name of its entry, which its messages tell.
    pub entry: Option<String>,
    /// The prefix of messages of the WAL that are published as rows are; none for no messages.
    pub messages: Option<String>,
    /// Which of the table's rows; none for all.
    pub share: Option<Share>,
    /// Where the lane of all rows publishes; none where it and its shares have one stream.
    pub undivided: Option<Undivided>,
}

/// A further table of the lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FurtherTable {
    /// The table, as the database has it.
    pub name: TableName,
    /// What of its rows becomes what of a message.
    pub mapping: Mapping,
}

impl PostgresSettings {
    /// The lane's share, or all rows as the only one: how the outbox' other lanes would be called.
    pub(crate) fn any_share(&self) -> Share {
        let whole = || Share::whole(&self.slot, &self.publication);
        self.share.clone().unwrap_or_else(whole)
    }

    /// That the outbox has another number of shares than these settings say.
    pub(crate) fn of_number(&self, found: u32) -> OtherNumber {
        OtherNumber {
            found,
            wanted: self.any_share().count,
            undivided: self.undivided.clone(),
        }
    }

    /// Number of the lane's share; none where it has all rows.
    pub(crate) fn part(&self) -> Option<u32> {
        self.share.as_ref().and_then(Share::part)
    }

    /// The same of each table by itself, the lane's own first.
    #[must_use]
    pub fn tables(&self) -> Vec<PostgresSettings> {
        let own = PostgresSettings {
            further: Vec::new(),
            ..self.clone()
        };
        let further = self.further.iter().map(|further| PostgresSettings {
            table: further.name.clone(),
            columns: further.mapping.columns.clone(),
            subject: further.mapping.subject.clone(),
            extra_columns: further.mapping.extras().to_vec(),
            may_be_null: further.mapping.may_be_null(),
            entry: further.mapping.message.table.clone(),
            messages: None,
            ..own.clone()
        });
        std::iter::once(own.clone()).chain(further).collect()
    }

    /// Where the configuration names the table.
    pub(super) fn table_key(&self) -> String {
        match &self.entry {
            Some(entry) => format!("table in the entry of {entry} in [[source.tables]]"),
            None => "postgres.table".to_owned(),
        }
    }

    /// The column that holds the event's id.
    ///
    /// # Panics
    /// Where the id comes from no column; the configuration refuses that.
    pub(crate) fn id_column(&self) -> &str {
        self.columns.id.column().expect("the id is a column")
    }
}
