//! The logical slots of a database: whoever may still need rows of its tables.
//!
//! In: a client. Out: each slot and how far it is confirmed. Guarantee: reads only. Postgres does not tell which tables a
//! slot is read for, so all of them are told.

use postgres_types::PgLsn;

use super::client::{Client, SqlError};

/// A logical slot of the session's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalSlot {
    /// Its name.
    pub slot: String,
    /// Up to where its reader has confirmed; none while it is being made.
    pub confirmed_lsn: Option<PgLsn>,
    /// Somebody reads it.
    pub is_active: bool,
    /// It can give nothing more.
    pub is_lost: bool,
}

/// All of them, by name.
///
/// # Errors
/// A failed query.
pub async fn logical_slots(client: &Client) -> Result<Vec<LogicalSlot>, SqlError> {
    let query = "SELECT slot_name::text, confirmed_flush_lsn, active, wal_status IS NOT DISTINCT FROM 'lost' \
                 FROM pg_catalog.pg_replication_slots \
                 WHERE slot_type = 'logical' AND database = current_database() ORDER BY slot_name";
    let rows = client.query(query, &[]).await?;
    let slot = |row: &tokio_postgres::Row| {
        Ok(LogicalSlot {
            slot: row.try_get(0)?,
            confirmed_lsn: row.try_get(1)?,
            is_active: row.try_get(2)?,
            is_lost: row.try_get(3)?,
        })
    };
    rows.iter().map(slot).collect()
}
