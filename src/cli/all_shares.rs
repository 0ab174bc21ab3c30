//! Commands that are about the rows of all shares: of no share by itself.
//!
//! In: the lanes of the configuration. Out: the first of them, or what to do so that one configuration has all of them. Guarantee: reads
//! only.

use anyhow::Context as _;

use super::exit::UsageError;
use super::move_lane;
use crate::nats::admin::Admin;
use crate::pipeline::record::{LaneRecord, Moved};
use crate::pipeline::reshard::{common_stream, name_of};
use crate::postgres::client::connect;
use crate::postgres::share::Share;
use crate::relay::lane_records;
use crate::relay::settings::Settings;

/// The first lane; `what` is about all of them.
///
/// # Errors
/// The configuration is of one share alone.
pub(super) async fn first<'l>(lanes: &'l [Settings], what: &str) -> anyhow::Result<&'l Settings> {
    let first = lanes.first().context("there is no lane")?;
    let share = first.postgres.share.as_ref();
    let Some(share) = share.filter(|share| lanes.len() != share.count as usize) else {
        return Ok(first);
    };
    let whole = format!("{what} of all shares together: leave out --share and relay.share");
    let moves = still_to_move(first, share).await?;
    Err(UsageError(match moves.is_empty() {
        true => whole,
        false => format!(
            "{whole}, once the other shares have moved too, by {} with the configuration of the old stream",
            moves.join(" && ")
        ),
    })
    .into())
}

/// What takes the shares that are still elsewhere to where `walrelay move` has taken others: until then no configuration has all of them.
async fn still_to_move(lane: &Settings, share: &Share) -> anyhow::Result<Vec<String>> {
    let sql = connect(&lane.postgres.conninfo).await?;
    let nats = Admin::connect(&lane.nats.connection).await?;
    let records = lane_records::of_shares(&nats, &sql, &lane.postgres).await?;
    let of_share = |number: u32| {
        let slot = share.slot(Some(number));
        let own = records.iter().filter(|record| record.slot == slot);
        Home::of(number, own.cloned().collect())
    };
    let homes: Vec<Option<Home>> = (0..share.count).map(of_share).collect();
    let Some(new) = homes.iter().flatten().find(|home| home.has_moved) else {
        return Ok(Vec::new());
    };
    let here = lane.nats.connection.servers_text();
    let rest = homes.iter().zip(0..).filter(|(home, _)| {
        let home = home.as_ref();
        home.is_none_or(|home| (&home.common, &home.nats) != (&new.common, &new.nats))
    });
    let moves = rest.map(|(home, number)| {
        // Of one that was never here, all is at another NATS.
        let nats = new.nats.as_ref().or(home.is_none().then_some(&here));
        let there = name_of(&new.common, number);
        move_lane::command_of(number, &there, nats.map(String::as_str))
    });
    Ok(moves.collect())
}

/// Where a share's lane lives.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Home {
    /// Its stream, as `nats.stream` has those of all shares.
    common: String,
    /// Another NATS.
    nats: Option<String>,
    /// A move has taken it there.
    has_moved: bool,
}

impl Home {
    /// As the records of its slot tell; none where none does.
    fn of(number: u32, records: Vec<LaneRecord>) -> Option<Self> {
        let gone: Vec<(&String, &Option<String>)> = (records.iter())
            .filter_map(|record| match &record.moved {
                Some(Moved::To { stream, nats }) => Some((stream, nats)),
                _ => None,
            })
            .collect();
        let living = records.iter().find(|it| it.moved.is_none() && !it.retired);
        let (stream, nats, has_moved) = match living {
            Some(LaneRecord { stream, left, .. }) => {
                let is_new =
                    |(to, nats): &(&String, &Option<String>)| *to == stream && nats.is_none();
                (stream, None, !left.is_empty() || gone.iter().any(is_new))
            }
            None => {
                let (stream, nats) = gone.iter().find(|(_, nats)| nats.is_some())?;
                (*stream, (*nats).clone(), true)
            }
        };
        Some(Home {
            common: common_stream(stream, number)?,
            nats,
            has_moved,
        })
    }
}
