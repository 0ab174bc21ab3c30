//! A value that a person typed, as a column would hold it.
//!
//! In: a table, one of its columns, a text. Out: the value's text as the server sends it of a row, or the server's words why it is none.
//! Guarantee: nothing is written, and no trigger runs.

use super::catalog::Table;
use super::client::{Client, SqlError};

/// OIDs of json and jsonb: a text is parsed there, and is no JSON string.
const JSON_OIDS: [u32; 2] = [114, 3802];

/// What a text is to a column.
#[derive(Debug)]
pub(crate) enum Cast {
    /// The value's text.
    Value(String),
    /// The column's type, and why it does not take the text.
    Refused {
        /// As SQL writes it, with its length or precision.
        type_name: String,
        /// The server's.
        words: String,
    },
    /// The table has no such column now.
    NoColumn,
}

/// Reads a text as an INSERT would for that column: its length, its precision, and the conditions of a domain included.
///
/// # Errors
/// The server cannot be asked.
pub(crate) async fn cast(
    client: &Client,
    table: &Table,
    column: &str,
    text: &str,
) -> Result<Cast, SqlError> {
    let mut columns = table.columns.iter();
    let Some(found) = columns.find(|found| found.name == column) else {
        return Ok(Cast::NoColumn);
    };
    let query = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute \
                 WHERE attrelid = $1 AND attname = $2::text AND NOT attisdropped";
    let Some(row) = client.query_opt(query, &[&table.oid, &column]).await? else {
        return Ok(Cast::NoColumn);
    };
    let type_name: String = row.get(0);
    // A cast would cut what is too long for the type. %s is the text that rows are sent with.
    let query = match JSON_OIDS.contains(&found.base_oid) {
        true => format!("SELECT format('%s', CAST($1::text AS {type_name}))"),
        false => format!(
            "SELECT format('%s', value) FROM json_to_record(json_build_object('value', $1::text)) AS typed(value {type_name})"
        ),
    };
    match client.query_one(&query, &[&text]).await {
        Ok(row) => Ok(Cast::Value(row.get(0))),
        Err(SqlError::Server(error)) if is_of_value(&error.code) => Ok(Cast::Refused {
            type_name,
            words: match &error.detail {
                Some(detail) => format!("{} ({detail})", error.message),
                None => error.message.clone(),
            },
        }),
        Err(error) => Err(error),
    }
}

/// Whether the server refuses the value itself: SQLSTATE classes 22 (data), 23 (a domain's condition), and what a type raises on its own.
fn is_of_value(code: &str) -> bool {
    code.starts_with("22") || code.starts_with("23") || code == "P0001"
}
