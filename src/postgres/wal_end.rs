//! Where the server's WAL ends, for who waits until slots are confirmed up to there.
//!
//! In: a client of a primary. Out: an LSN; a record behind it. Guarantee: what was committed before ends at or below it.

use crate::postgres::client::{Client, SqlError};
use postgres_types::PgLsn;

/// The end of what has been written so far.
///
/// # Errors
/// A failed query.
pub(crate) async fn wal_end(client: &Client) -> Result<PgLsn, SqlError> {
    let query = "SELECT pg_current_wal_insert_lsn()";
    Ok(client.query_one(query, &[]).await?.try_get(0)?)
}

/// Writes one more record: an idle server may have its last one end where a page does, and a slot just in front of that.
///
/// # Errors
/// A failed query.
pub(crate) async fn write_on(client: &Client) -> Result<(), SqlError> {
    let message = "SELECT pg_logical_emit_message(true, 'walrelay', '')";
    client.batch_execute(message).await
}
