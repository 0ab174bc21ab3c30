//! A relay whose slot another one reads: it waits for the slot.
//!
//! In: settings. Out: when a start is worth trying. Guarantees: a slot that becomes free is seen within a fifth of a second, on one
//! session that stays; every few seconds a start looks at everything anew, so that what is wrong comes out before a takeover.

use crate::postgres::catalog;
use crate::postgres::client::{self, SqlError};
use crate::relay::settings::Settings;
use std::time::Duration;

/// Between two looks at the slot.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Until everything is looked at again.
const ANEW_AFTER: Duration = Duration::from_secs(5);

/// Waits until nobody reads the slot, or a new start has to say what is wrong.
pub(super) async fn until_free(settings: &Settings) {
    // What hinders the looks hinders a start too, which says it.
    if let Ok(Err(error)) = tokio::time::timeout(ANEW_AFTER, look(settings)).await {
        tracing::debug!(%error, "cannot see whether the slot is free");
    }
}

async fn look(settings: &Settings) -> Result<(), SqlError> {
    tokio::time::sleep(LOOK_INTERVAL).await;
    let sql = client::connect(&settings.postgres.conninfo).await?;
    while catalog::slot_and_wal(&sql, &settings.postgres.slot)
        .await?
        .is_some_and(|slot| slot.active_pid.is_some())
    {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}
