//! The column of the event's id, in SQL.
//!
//! In: the table and the configuration. Out: expressions. Guarantee: every value is quoted.

use uuid::Uuid;

use super::catalog::Table;
use super::settings::PostgresSettings;
use super::table_name::quote_identifier;

/// OID of bytea.
const BYTEA_OID: u32 = 17;

/// The column that holds the id.
#[derive(Debug, Clone)]
pub(crate) struct IdColumn {
    name: String,
    is_bytes: bool,
}

impl IdColumn {
    /// As the configuration names it and the table has it.
    pub(crate) fn of(table: &Table, settings: &PostgresSettings) -> Self {
        let name = settings.id_column();
        let column = table.columns.iter().find(|column| column.name == name);
        IdColumn {
            name: quote_identifier(name),
            is_bytes: column.is_some_and(|column| column.base_oid == BYTEA_OID),
        }
    }

    /// SQL for the id's text: of 16 bytes the digits of a UUID.
    #[cfg(feature = "cli")]
    pub(crate) fn text(&self) -> String {
        match self.is_bytes {
            true => format!("encode({}, 'hex')", self.name),
            false => self.name.clone(),
        }
    }

    /// SQL for "is one of these ids", in the column's own type, for its index.
    pub(crate) fn is_one_of<'i>(&self, ids: impl Iterator<Item = &'i str>) -> String {
        let literal = |id: &str| match (self.is_bytes, Uuid::try_parse(id)) {
            (true, Ok(id)) => format!("'\\x{}'", id.simple()),
            _ => format!("'{}'", id.replace('\'', "''")),
        };
        let literals: Vec<String> = ids.map(literal).collect();
        format!("{} IN ({})", self.name, literals.join(","))
    }
}
