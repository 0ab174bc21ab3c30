//! What the text of a column is, by the OID of its type.
//!
//! In: a Relation message's OIDs. Out: [`Kind`].

use serde::{Deserialize, Serialize};

/// What a column's text is, by its type. The names are those of dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Any text: text, varchar, uuid, an enum, a domain, whatever has no kind of its own.
    #[default]
    Text,
    /// char(n), whose values are padded with spaces that do not count (manual, 8.3).
    Padded,
    /// smallint, integer, bigint, oid.
    Integer,
    /// real, double precision, numeric.
    Number,
    /// boolean.
    Truth,
    /// json, jsonb: Postgres has checked that it is JSON.
    Json,
    /// bytea, in its hex format.
    Bytes,
    /// timestamptz, timestamp: ISO, in UTC.
    Time,
    /// date.
    Date,
}

impl Kind {
    /// By the OID of a type of Postgres' own (`pg_type.dat`).
    pub(crate) fn of_type(oid: u32) -> Self {
        match oid {
            16 => Kind::Truth,
            17 => Kind::Bytes,
            20 | 21 | 23 | 26 => Kind::Integer,
            114 | 3802 => Kind::Json,
            700 | 701 | 1700 => Kind::Number,
            1042 => Kind::Padded,
            1082 => Kind::Date,
            1114 | 1184 => Kind::Time,
            _ => Kind::Text,
        }
    }
}
