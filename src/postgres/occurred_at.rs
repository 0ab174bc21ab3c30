//! The column that tells when a row occurred, in SQL.
//!
//! In: the table and the configuration. Out: expressions. Guarantees: a moment is compared in the column's own type, so that an index on
//! the column serves; a column without a time zone is read as UTC, a bigint as milliseconds since 1970, as the relay reads them.

use chrono::{DateTime, Datelike as _, TimeDelta, Timelike as _, Utc};

use super::catalog::Table;
use super::settings::PostgresSettings;
use crate::table_name::{TableName, quote_identifier};

/// OIDs (`pg_type.dat`).
const BIGINT: u32 = 20;
const DATE: u32 = 1082;
const TIMESTAMP: u32 = 1114;
const TIMESTAMPTZ: u32 = 1184;

/// The column that `columns.occurred_at` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OccurredAt {
    name: String,
    type_name: String,
    form: Form,
}

/// Nanoseconds in the units that columns count.
const MILLISECOND: u32 = 1_000_000;
const MICROSECOND: u32 = 1_000;

/// How the column holds a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Zoned,
    Utc,
    Milliseconds,
}

/// Nothing tells when a row occurred.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untold {
    /// No column is named.
    #[error(
        "columns.occurred_at names no column, so nothing tells when a row occurred: name one that is set when the row is inserted"
    )]
    Unnamed,
    /// The table does not have it.
    #[error("{table} has no column {column}: set columns.occurred_at to one that it has")]
    Missing {
        /// The table.
        table: TableName,
        /// The column.
        column: String,
    },
    /// It is of another type.
    #[error(
        "column {column} of {table} is of type {type_name}: columns.occurred_at needs one of type timestamptz, timestamp, date or \
         bigint (milliseconds)"
    )]
    Type {
        /// The table.
        table: TableName,
        /// The column.
        column: String,
        /// Its type.
        type_name: String,
    },
}

impl OccurredAt {
    /// As the configuration names it and the table has it.
    ///
    /// # Errors
    /// There is none, or of a type that tells no moment.
    pub fn of(table: &Table, settings: &PostgresSettings) -> Result<Self, Untold> {
        let column = settings.columns.occurred_at.column();
        let column = column.ok_or(Untold::Unnamed)?.to_owned();
        let own = || settings.table.clone();
        let Some(found) = table.columns.iter().find(|found| found.name == column) else {
            return Err(Untold::Missing {
                table: own(),
                column,
            });
        };
        let form = match found.base_oid {
            TIMESTAMPTZ => Form::Zoned,
            TIMESTAMP | DATE => Form::Utc,
            BIGINT => Form::Milliseconds,
            _ => {
                return Err(Untold::Type {
                    table: own(),
                    column,
                    type_name: found.type_name.clone(),
                });
            }
        };
        Ok(OccurredAt {
            name: column,
            type_name: found.type_name.clone(),
            form,
        })
    }

    /// Its name, unquoted.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its name as SQL.
    pub fn column(&self) -> String {
        quote_identifier(&self.name)
    }

    /// SQL for "before `at`".
    pub fn is_before(&self, at: DateTime<Utc>) -> String {
        format!("{} < {}", self.column(), self.rounded_up(at))
    }

    /// SQL for "between these two, or at one of them".
    pub fn is_between(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> String {
        let (column, from) = (self.column(), self.rounded_up(from));
        format!("{column} >= {from} AND {column} <= {}", self.value(to))
    }

    /// SQL for "`bound`, which is text in the column's type, is not behind `at`".
    pub fn is_through(&self, bound: &str, at: DateTime<Utc>) -> String {
        format!("({bound})::{} <= {}", self.type_name, self.value(at))
    }

    /// SQL for a moment as the column would hold it, or the last value before it.
    pub fn value(&self, at: DateTime<Utc>) -> String {
        match self.form {
            Form::Zoned => format!("'{}'::timestamptz", text(at)),
            // Without a time zone, that of a text is passed over.
            Form::Utc => format!("'{}'::timestamp", text(at)),
            Form::Milliseconds => at.timestamp_millis().to_string(),
        }
    }

    /// The first value that is not before `at`.
    fn rounded_up(&self, at: DateTime<Utc>) -> String {
        let unit = match self.form {
            Form::Milliseconds => MILLISECOND,
            Form::Zoned | Form::Utc => MICROSECOND,
        };
        let beyond = at.nanosecond() % unit;
        let up = (beyond > 0).then(|| TimeDelta::nanoseconds(i64::from(unit - beyond)));
        self.value(up.and_then(|up| at.checked_add_signed(up)).unwrap_or(at))
    }

    /// SQL for the moment in µs since 1970, where it is finite and lies in the years that RFC 3339 has.
    pub fn us(&self) -> String {
        let column = self.column();
        match self.form {
            Form::Zoned | Form::Utc => format!("(extract(epoch FROM {column}) * 1000000)::int8"),
            Form::Milliseconds => format!("({column} * 1000)"),
        }
    }
}

/// A moment as Postgres reads it: before the year 1 it counts as people do, who have no year 0, and before the first day that it knows
/// there is nothing.
fn text(at: DateTime<Utc>) -> String {
    let (year, era) = match at.year() {
        year @ 1.. => (year, ""),
        ..-4713 => return "4714-11-24 00:00:00+00 BC".to_owned(),
        year => (1 - year, " BC"),
    };
    format!("{year:04}-{}+00{era}", at.format("%m-%d %T%.6f"))
}
