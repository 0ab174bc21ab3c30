//! How a table comes into a publication again, with another row filter and the other tables as they are.

use crate::postgres::settings::PostgresSettings;
use crate::table_name::quote_identifier;

/// What puts the table into the publication with that filter and all columns. SET TABLE would take out what else the publication
/// holds; between two transactions rows would be lost.
pub(super) fn put_anew(settings: &PostgresSettings, filter: Option<&str>) -> String {
    let (name, table) = (quote_identifier(&settings.publication), &settings.table);
    let filter = filter.map_or_else(String::new, |filter| format!(" WHERE ({filter})"));
    format!(
        "BEGIN; ALTER PUBLICATION {name} DROP TABLE {table}; ALTER PUBLICATION {name} ADD TABLE {table}{filter}; COMMIT;"
    )
}
