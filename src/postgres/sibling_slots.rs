//! The slots beside a share's own: those of the other shares, and those that no share of this number of shares has.
//!
//! In: a client, the shares. Out: findings. Guarantee: reads only. A slot of another number of shares, or of the outbox as a whole,
//! sends rows that these shares send as well, and keeps WAL where nobody reads it.

use crate::postgres::client::{Client, SqlError};
use crate::postgres::division::Division;
use crate::postgres::findings::{Finding, Kind, refuse, warn};
use crate::postgres::replication::quote_literal;
use crate::postgres::share::Share;

/// Slots of the outbox as a whole, or of another number of shares.
///
/// # Errors
/// A failed query.
pub async fn others(
    client: &Client,
    share: &Share,
    division: &Division,
) -> Result<Vec<Finding>, SqlError> {
    // What the publications say counts: a configuration may be older, or newer.
    let share = &share.of(division.count().unwrap_or(share.count));
    let query = "SELECT slot_name::text, active FROM pg_catalog.pg_replication_slots WHERE database = current_database() ORDER BY 1";
    let mut found = Vec::new();
    for row in client.query(query, &[]).await? {
        let (slot, is_read): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
        let part = share.part_of_slot(&slot);
        let is_kept = part.is_some_and(|part| division.has(part))
            && (part != Some(None) || division.all_rows_beside(share).is_none());
        if share.is_of_others(&slot)
            && !is_kept
            && !is_of_another_outbox(client, share, division, part).await?
        {
            let until = "once it has published everything";
            let remedy = match is_read {
                // It may be another outbox's too.
                true => format!("stop its relay {until}, and run this again"),
                false => format!(
                    "if no other outbox has this slot, run its relay and stop it {until}, and then run SELECT \
                     pg_drop_replication_slot({});",
                    quote_literal(&slot)
                ),
            };
            found.push(warn(
                Kind::SlotMismatch,
                format!(
                    "replication slot \"{slot}\" belongs to no share of {}: the relay that reads it publishes rows that these shares publish \
                     too, and if there is none it keeps WAL for ever",
                    share.count
                ),
                remedy,
            ));
        }
    }
    Ok(found)
}

/// Whether the publication of this part's name carries other tables, and none of this outbox.
async fn is_of_another_outbox(
    client: &Client,
    share: &Share,
    division: &Division,
    part: Option<Option<u32>>,
) -> Result<bool, SqlError> {
    let Some(part) = part.filter(|part| !division.has(*part)) else {
        return Ok(false);
    };
    let query =
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication_tables WHERE pubname = $1::text)";
    let row = client.query_one(query, &[&share.publication(part)]).await?;
    Ok(row.try_get(0)?)
}

/// Whether the server has room for the slots of `names` that are missing.
///
/// # Errors
/// A failed query.
pub async fn room(client: &Client, names: &[&str]) -> Result<Option<Finding>, SqlError> {
    let query = "SELECT current_setting('max_replication_slots')::int8, count(*), \
                 count(*) FILTER (WHERE slot_name = ANY ($1::text[])) FROM pg_catalog.pg_replication_slots";
    let row = client.query_one(query, &[&names]).await?;
    let (max, taken, ours): (i64, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let wanted = taken + i64::try_from(names.len()).unwrap_or(i64::MAX) - ours;
    Ok((wanted > max).then(|| {
        refuse(
            Kind::Places,
            format!("{wanted} replication slots are wanted, {taken} of them taken, and the server has {max}"),
            format!(
                "run ALTER SYSTEM SET max_replication_slots = {wanted}; and restart Postgres, or {}",
                match names.len() {
                    1 => "drop a slot that nobody needs: SELECT slot_name, active FROM pg_replication_slots; lists them",
                    _ => "set relay.shares to less",
                }
            ),
        )
    }))
}
