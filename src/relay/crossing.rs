//! Waits until the lanes that had rows of this one are across the place where the number of shares changes.
//!
//! In: which lanes, and the place. Out: that their records say so. Guarantees: it asks until then, whatever fails; a wait that takes
//! long is told, since such a lane may have no relay.

use crate::nats::admin::Admin;
use crate::pipeline::engine::CrossingQuestion;
use crate::pipeline::position::Lane;
use crate::pipeline::reshard::{Switch, has_lane};
use crate::postgres::client::connect;
use crate::relay::board::Board;
use crate::relay::lane_client::lane_records;
use crate::relay::settings::Settings;
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
    let mut nats = None;
    while !left.is_empty() {
        let mut pause = LOOK_INTERVAL;
        // Where a look fails, all are waited for that were before it.
        match not_across(&mut nats, settings, &lane, &question, &left).await {
            Ok(waited_for) => left = waited_for,
            Err(error) => {
                tracing::debug!("cannot read the records of other lanes: {error:#}");
                nats = None;
                pause = PAUSE;
            }
        }
        if !left.is_empty() && begun.elapsed() >= PATIENCE {
            pause = PAUSE;
            match without_strangers(settings, &question, &left).await {
                Ok(waited_for) => left = waited_for,
                Err(error) => {
                    tracing::debug!("cannot look for the other lanes in Postgres: {error:#}");
                }
            }
            if !left.is_empty() && !is_told {
                is_told = true;
                let reason = waits_for(&question, &left);
                tracing::warn!("{reason}");
                board.blind(Some(reason));
            }
        }
        tokio::time::sleep(pause).await;
    }
    if is_told {
        board.blind(None);
    }
}

/// What a person calls a lane.
pub(crate) fn name(part: Option<u32>) -> String {
    part.map_or_else(
        || "the lane of all rows".to_owned(),
        |number| format!("share {number}"),
    )
}

fn waits_for(question: &CrossingQuestion, left: &[Option<u32>]) -> String {
    let (from, to) = (question.switch.from, question.switch.to);
    let stays = left.iter().any(|part| has_lane(to, *part));
    let left: Vec<String> = left.iter().copied().map(name).collect();
    let remedy = match stays {
        true => format!("start walrelay run with relay.shares = {to}"),
        false => format!("walrelay reshard --shares {to} publishes the rest of it"),
    };
    format!(
        "at {} the outbox goes from {from} shares to {to}: waiting until {} is published up to there. Where no relay has that \
         lane, {remedy}",
        question.lsn,
        left.join(" and ")
    )
}

/// Those of `givers` that are not across, asked on a connection that stays.
async fn not_across(
    nats: &mut Option<Admin>,
    settings: &Settings,
    lane: &Lane,
    question: &CrossingQuestion,
    givers: &[Option<u32>],
) -> anyhow::Result<Vec<Option<u32>>> {
    let mut found = Vec::new();
    let share = settings.postgres.any_share();
    let nats = match nats {
        Some(nats) => nats,
        None => nats.insert(Admin::connect(&settings.nats.connection).await?),
    };
    for giver in givers {
        let giving = Lane {
            slot: share.slot(*giver),
            ..lane.clone()
        };
        let records = lane_records(nats, &giving.slot).await?;
        if !question.is_across(&giving, &records) {
            found.push(*giver);
        }
    }
    Ok(found)
}

/// Those of `givers` that are shares. Without a publication and a slot, one had no rows, or all that it had is published: `reshard` lets
/// both stay until then, but any role may write a message like its own.
async fn without_strangers(
    settings: &Settings,
    question: &CrossingQuestion,
    givers: &[Option<u32>],
) -> anyhow::Result<Vec<Option<u32>>> {
    let mut found = Vec::new();
    let share = settings.postgres.any_share();
    let sql = connect(&settings.postgres.conninfo).await?;
    let query = "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1::text) \
                 OR EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $2::text)";
    for giver in givers {
        let names = (share.publication(*giver), share.slot(*giver));
        let row = sql.query_one(query, &[&names.0, &names.1]).await?;
        if row.try_get(0)? {
            found.push(*giver);
            continue;
        }
        let Switch { from, to } = question.switch;
        tracing::warn!(
            "a message at {} says that the outbox goes from {from} shares to {to}, but {} has neither publication nor slot: it is not \
             waited for. Any role may write such a message, unless EXECUTE on pg_logical_emit_message is revoked from PUBLIC",
            question.lsn,
            name(*giver)
        );
    }
    Ok(found)
}
