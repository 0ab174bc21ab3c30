//! Relays that are there and read no slot, as they tell in Postgres: whoever has no other way to ask them sees that they are.
//!
//! In: a relay's session. Out: a lock that nothing waits for, as long as the session is there. Guarantee: no session for that alone while
//! a relay has one; what the server refuses there hinders no relay.

use crate::postgres::client::Client;
#[cfg(feature = "cli")]
use crate::postgres::client::SqlError;
#[cfg(feature = "cli")]
use serde::Serialize;

/// A relay that waits.
#[cfg(feature = "cli")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct WaitingRelay {
    /// The server's process of its session.
    pub(crate) pid: i32,
    /// Where it is, as the server sees it; none where the server does not tell, or over a local socket.
    pub(crate) host: Option<String>,
}

#[cfg(feature = "cli")]
impl std::fmt::Display for WaitingRelay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} of Postgres", self.pid)?;
        match &self.host {
            Some(host) => write!(f, " from {host}"),
            None => Ok(()),
        }
    }
}

/// Tells that this session is of a relay that waits for the slot or for something before that.
pub(crate) async fn begin(client: &Client, slot: &str) {
    tell(client, "pg_try_advisory_lock_shared", slot).await;
}

/// Tells that it no longer does.
pub(crate) async fn end(client: &Client, slot: &str) {
    tell(client, "pg_advisory_unlock_shared", slot).await;
}

async fn tell(client: &Client, function: &str, slot: &str) {
    let query = format!("SELECT pg_catalog.{function}(pg_catalog.hashtextextended($1, 0))");
    // What makes the session useless its next statement says.
    if let Err(error) = client.query_one(&query, &[&name(slot)]).await {
        tracing::debug!(%error, "cannot tell that a relay waits");
    }
}

/// Those of this slot.
///
/// # Errors
/// A failed query.
#[cfg(feature = "cli")]
pub(crate) async fn relays(client: &Client, slot: &str) -> Result<Vec<WaitingRelay>, SqlError> {
    let query = "SELECT l.pid, coalesce(a.client_hostname, pg_catalog.host(a.client_addr)) \
         FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
         WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.mode = 'ShareLock' \
         AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
         AND (l.classid::int8 << 32) | l.objid::int8 = pg_catalog.hashtextextended($1, 0) ORDER BY 1";
    let rows = client.query(query, &[&name(slot)]).await?;
    let relay = |row: &tokio_postgres::Row| {
        Ok(WaitingRelay {
            pid: row.try_get(0)?,
            host: row.try_get(1)?,
        })
    };
    rows.iter().map(relay).collect()
}

fn name(slot: &str) -> String {
    format!("walrelay waits for slot {slot}")
}
