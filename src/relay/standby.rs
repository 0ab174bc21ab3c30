//! A relay that has no lane to relay: another one reads its slot, or there are fewer shares. It waits.
//!
//! In: settings. Out: when a start is worth trying. Guarantees: a slot that becomes free is seen within a fifth of a second, on one
//! session that stays; every few seconds a start looks at everything anew, so that what is wrong comes out before a takeover.

use crate::postgres::catalog;
use crate::postgres::client::{self, Client, SqlError};
use crate::postgres::division::Division;
use crate::postgres::waiting;
use crate::relay::settings::Settings;
use std::time::Duration;

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Until everything is looked at again.
const ANEW_AFTER: Duration = Duration::from_secs(5);

/// A shorter pause is not worth a session.
const PAUSE_TOLD: Duration = Duration::from_millis(500);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    /// Nobody reads the slot.
    Slot,
    /// There are so many shares that the lane has one. What else lets it begin, a new start sees.
    Share,
}

/// Waits until that is so, or a new start has to say what is wrong; on the session that waits, where there is one.
pub(super) async fn until_there(settings: &Settings, waits: &mut Option<Client>, awaited: Awaited) {
    // What hinders the looks hinders a start too, which says it.
    let looks = look(settings, waits, awaited);
    if let Ok(Err(error)) = tokio::time::timeout(ANEW_AFTER, looks).await {
        tracing::debug!(%error, ?awaited, "cannot see whether it is there");
    }
}

/// Waits for so long. Where Postgres is not at fault, it is told meanwhile that a relay is there: by the session of the start that came
/// to nothing, or by a new one, unless the pause is over at once.
pub(super) async fn pause(
    settings: &Settings,
    waits: &mut Option<Client>,
    pause: Duration,
    is_postgres_well: bool,
) {
    let told = async {
        if is_postgres_well
            && (waits.is_some() || pause >= PAUSE_TOLD)
            && let Err(error) = waiting(settings, waits).await
        {
            tracing::debug!(%error, "cannot tell that a relay waits");
        }
        std::future::pending::<()>().await;
    };
    let _over = tokio::time::timeout(pause, told).await;
}

/// The session that tells that a relay waits.
async fn waiting<'w>(
    settings: &Settings,
    waits: &'w mut Option<Client>,
) -> Result<&'w Client, SqlError> {
    let postgres = &settings.postgres;
    let sql = match waits.take() {
        Some(sql) => sql,
        None => {
            let sql = client::connect(&postgres.conninfo).await?;
            waiting::begin(&sql, &postgres.slot).await;
            sql
        }
    };
    Ok(waits.insert(sql))
}

async fn look(
    settings: &Settings,
    waits: &mut Option<Client>,
    awaited: Awaited,
) -> Result<(), SqlError> {
    tokio::time::sleep(LOOK_INTERVAL).await;
    let sql = waiting(settings, waits).await?;
    loop {
        let is_there = match awaited {
            Awaited::Slot => catalog::slot_and_wal(sql, &settings.postgres.slot)
                .await?
                .is_none_or(|slot| slot.active_pid.is_none()),
            Awaited::Share => Division::look(sql, &settings.postgres)
                .await?
                .lacks(&settings.postgres)
                .is_none(),
        };
        if is_there {
            return Ok(());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
