//! Shares that are no more: what is left of them are their dead letters.
//!
//! In: a share of today, the records of all lanes. Out: the lanes whose rows are that share's now. Guarantee: each lane that is at its
//! end belongs to one share.

use crate::nats::admin::Admin;
use crate::pipeline::record::{LaneRecord, telling};
use crate::pipeline::reshard::has_lane;
use crate::postgres::client::Client;
use crate::postgres::division::Division;
use crate::postgres::share::Share;
use crate::relay::lane_client::lane_records;
use crate::relay::lane_records::{Database, was_divided};
use crate::relay::settings::Settings;

/// As many as `relay.shares` may be.
const SHARES_MAX: u32 = 256;

/// A lane that is at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TakenOver {
    /// Its share had this number; none for the lane of all rows.
    pub(crate) part: Option<u32>,
    pub(crate) slot: String,
    pub(crate) stream: String,
}

/// Those whose rows the lane of this share may have by now, the first that there would have been first. Half as many shares take over
/// the rows of those whose hashes have the same lower bits; the first has those of all rows.
fn candidates(share: &Share) -> impl Iterator<Item = Option<u32>> {
    let numbers = (0..SHARES_MAX).filter(|number| number % share.count == share.number);
    let all = (share.number == 0).then_some(None);
    let count = share.count;
    let is_gone = move |part: &Option<u32>| !has_lane(count, *part);
    all.into_iter().chain(numbers.map(Some)).filter(is_gone)
}

/// Those that the lane of these settings has taken over, of so many shares as there are; none where the outbox was never divided.
///
/// # Errors
/// Postgres or NATS refuse, or a record cannot be read.
pub(crate) async fn by(
    settings: &Settings,
    client: &Client,
    nats: &Admin,
) -> anyhow::Result<Vec<TakenOver>> {
    let postgres = &settings.postgres;
    let mut found = Vec::new();
    if !was_divided(nats, postgres).await? {
        return Ok(found);
    }
    // A configuration may be older than the outbox, or newer.
    let count = Division::look(client, postgres).await?.count();
    let own = postgres.any_share();
    let share = own.of(count.unwrap_or(own.count));
    if !has_lane(share.count, postgres.part()) {
        return Ok(found);
    }
    let database = Database::of(client).await?;
    for part in candidates(&share) {
        let slot = share.slot(part);
        let records = lane_records(nats, &slot).await?;
        let records = records.into_iter().filter(|record| database.has(record));
        let records: Vec<LaneRecord> = records.collect();
        // All of a number of shares are made together: behind one that there never was, there is none.
        if part.is_some() && records.is_empty() {
            break;
        }
        let gone = telling(records).into_iter().filter(|record| record.retired);
        found.extend(gone.map(|record| TakenOver {
            part,
            slot: record.slot,
            stream: record.stream,
        }));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lane_that_is_no_more_belongs_to_one() {
        for count in [1, 2, 4] {
            let mut all: Vec<Option<u32>> = (0..count)
                .flat_map(|number| {
                    let whole = Share::whole("s", "p");
                    candidates(&Share {
                        number,
                        ..whole.of(count)
                    })
                    .collect::<Vec<_>>()
                })
                .collect();
            all.sort_unstable();
            let from = if count == 1 { 0 } else { count };
            let whole = (count > 1).then_some(None);
            let expected = whole.into_iter().chain((from..SHARES_MAX).map(Some));
            assert_eq!(all, expected.collect::<Vec<_>>(), "{count}");
        }
    }
}
