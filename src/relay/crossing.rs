//! Waits until the lanes that had rows of this one are across the place where the number of shares changes.
//!
//! In: which lanes, and the place. Out: that their records say so. Guarantees: it asks until then, whatever fails; a wait that takes
//! long is told, since such a lane may have no relay.

use crate::nats::admin::Admin;
use crate::nats::stream::LANE_RECORD_STREAM;
use crate::pipeline::end_search::Lookup;
use crate::pipeline::engine::CrossingQuestion;
use crate::pipeline::position::Lane;
use crate::pipeline::record::LaneRecord;
use crate::postgres::share::Share;
use crate::relay::board::Board;
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;
use postgres_types::PgLsn;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// After so long a person is told.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries to reach the broker.
const PAUSE: Duration = Duration::from_secs(1);

/// Waits for them.
pub(super) async fn until_across(
    settings: &Settings,
    board: &Board,
    lane: Lane,
    question: CrossingQuestion,
) {
    let begun = Instant::now();
    let mut is_told = false;
    let mut left = question.givers.clone();
    while !left.is_empty() {
        let pause = match look(settings, &lane, &question, &mut left).await {
            Ok(()) => LOOK_INTERVAL,
            Err(error) => {
                tracing::debug!("cannot read the records of other lanes: {error:#}");
                PAUSE
            }
        };
        if !left.is_empty() && begun.elapsed() >= PATIENCE && !is_told {
            is_told = true;
            let reason = waits_for(&question, &left);
            tracing::warn!("{reason}");
            board.blind(Some(reason));
        }
        tokio::time::sleep(pause).await;
    }
    if is_told {
        board.blind(None);
    }
}

fn waits_for(question: &CrossingQuestion, left: &[u32]) -> String {
    let (from, to) = (question.switch.from, question.switch.to);
    let left: Vec<String> = left.iter().map(ToString::to_string).collect();
    format!(
        "at {} the outbox goes from {from} shares to {to}: waiting until share {} is published up to there. Where no relay has that \
         share, walrelay reshard --shares {to} publishes the rest of it",
        question.lsn,
        left.join(" and share ")
    )
}

/// Leaves only those that are not across.
async fn look(
    settings: &Settings,
    lane: &Lane,
    question: &CrossingQuestion,
    left: &mut Vec<u32>,
) -> anyhow::Result<()> {
    let nats = Admin::connect(&settings.nats.connection).await?;
    let Some(share) = &settings.postgres.share else {
        left.clear();
        return Ok(());
    };
    for giver in std::mem::take(left) {
        let giving = Lane {
            slot: share.slot(giver),
            ..lane.clone()
        };
        let across = switched_lsn(&nats, &giving).await?;
        if across < Some(question.lsn) {
            left.push(giver);
        }
    }
    Ok(())
}

/// Where the number of shares was changed last, by the records of all of them; `lane` is one of theirs.
///
/// # Errors
/// NATS, or no lane record.
pub async fn last_change(
    nats: &Admin,
    share: &Share,
    lane: &Lane,
) -> anyhow::Result<Option<PgLsn>> {
    let mut last = None;
    for number in 0..share.count {
        let sibling = Lane {
            slot: share.slot(number),
            ..lane.clone()
        };
        last = last.max(switched_lsn(nats, &sibling).await?);
    }
    Ok(last)
}

/// How far a lane is across, by its records in whichever stream.
async fn switched_lsn(nats: &Admin, lane: &Lane) -> anyhow::Result<Option<PgLsn>> {
    let records = LaneClient::new(nats, LANE_RECORD_STREAM, &lane.slot)?;
    let filter = format!("walrelay.lane.*.{}", lane.slot);
    let (mut from, mut across) = (1, None);
    loop {
        let lookup = Lookup::Next {
            from,
            filter: &filter,
        };
        let Some(message) = records.message(lookup).await? else {
            return Ok(across);
        };
        from = message.seq + 1;
        let record = LaneRecord::from_json(&message.data)?;
        if record.is_of(lane) {
            across = across.max(record.switched_lsn);
        }
    }
}
