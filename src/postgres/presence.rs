//! Whether the table still has a row that the WAL has brought.
//!
//! In: a [`RowQuestion`]. Out: a [`RowPresence`]. Guarantee: a row whose transaction is not visible yet is waited for, so
//! that it is never called gone.

use crate::pipeline::engine::{RowPresence, RowQuestion};
use crate::postgres::client::{Client, SqlError};
use crate::postgres::id_column::IdColumn;
use crate::table_name::TableName;
use std::time::Duration;

/// Between two looks for a row that is not visible yet: its commit may wait for a standby.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks for the row.
///
/// # Errors
/// The session is of no use any more; what the server refuses is an answer.
pub(crate) async fn look(
    client: &Client,
    table: &TableName,
    id_column: &IdColumn,
    question: &RowQuestion,
) -> Result<RowPresence, SqlError> {
    let query = format!(
        "SELECT EXISTS (SELECT FROM {table} WHERE {}), pg_current_snapshot()::text",
        id_column.is_one_of(std::iter::once(question.id.as_str())),
    );
    loop {
        let row = match client.query_one(&query, &[]).await {
            Ok(row) => row,
            Err(error) if error.code().is_some() && !error.is_transient() => {
                return Ok(RowPresence::Unseen(error.to_string()));
            }
            Err(error) => return Err(error),
        };
        let (is_there, snapshot): (bool, String) = (row.try_get(0)?, row.try_get(1)?);
        if is_there {
            return Ok(RowPresence::Kept);
        }
        if has_ended(question.xid, &snapshot) {
            return Ok(RowPresence::Gone);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether the transaction had ended when the snapshot `xmin:xmax:xip,…` was taken.
fn has_ended(xid: u32, snapshot: &str) -> bool {
    let mut parts = snapshot.split(':');
    let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok());
    let (Some(_), Some(xmax)) = (number(), number()) else {
        return false;
    };
    // The server counts on in 64 bits; of the low half the nearest to the snapshot is meant.
    let distance = i64::from(xid.wrapping_sub(xmax as u32) as i32);
    let xid = xmax.wrapping_add_signed(distance);
    let mut running = parts.next().unwrap_or_default().split(',');
    xid < xmax && !running.any(|running| running.parse() == Ok(xid))
}

#[cfg(test)]
mod tests {
    use super::has_ended;

    #[test]
    fn a_transaction_has_ended_when_the_snapshot_sees_it() {
        for (xid, snapshot, ended) in [
            (10, "12:12:", true),
            (12, "12:12:", false),
            (13, "12:12:", false),
            (10, "9:12:9,10", false),
            (11, "9:12:9,10", true),
            (u32::MAX, "4294967297:4294967297:", true),
            (1, "4294967295:4294967295:", false),
            (2, "4294967297:4294967299:4294967298", false),
            (1, "4294967297:4294967299:4294967298", true),
        ] {
            assert_eq!(has_ended(xid, snapshot), ended, "{xid} in {snapshot}");
        }
    }
}
