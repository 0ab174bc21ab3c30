//! Relays that are there and read no slot, as they tell in Postgres: whoever has no other way to ask them sees that they are.
//!
//! In: a relay's session. Out: a lock that nothing waits for, as long as the session is there. Guarantee: no session for that alone while
//! a relay has one; what the server refuses there hinders no relay.

use crate::postgres::client::{Client, SqlError};
use crate::postgres::named_lock;
#[cfg(feature = "cli")]
use crate::postgres::named_lock::LockHolder;

/// Tells that this session is of a relay that waits for the slot or for something before that.
pub(crate) async fn begin(client: &Client, slot: &str) {
    told(named_lock::try_share(client, &name(slot)).await);
}

/// Tells that it no longer does.
pub(crate) async fn end(client: &Client, slot: &str) {
    told(named_lock::release_share(client, &name(slot)).await);
}

fn told(told: Result<bool, SqlError>) {
    // What makes the session useless its next statement says.
    if let Err(error) = told {
        tracing::debug!(%error, "cannot tell that a relay waits");
    }
}

/// Those of this slot.
///
/// # Errors
/// A failed query.
#[cfg(feature = "cli")]
pub(crate) async fn relays(client: &Client, slot: &str) -> Result<Vec<LockHolder>, SqlError> {
    named_lock::holders(client, &name(slot)).await
}

fn name(slot: &str) -> String {
    format!("walrelay waits for slot {slot}")
}
