//! Streams of shares that were no more when `walrelay move` brought the lanes here from another NATS, and that have stayed there.
//!
//! In: the records that this NATS has of an outbox's lanes. Out: those streams, and what brings them here too. Pure.

use std::collections::BTreeSet;
use std::fmt;

use crate::cli::move_lane::command_of;
use crate::pipeline::record::{LaneRecord, Left};
use crate::pipeline::reshard::{common_stream, name_of};
use crate::relay::settings::Settings;

/// Such streams, one at least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Elsewhere {
    streams: BTreeSet<Left>,
    /// What brings them here.
    bring: String,
}

impl Elsewhere {
    /// By the records of all lanes that the outbox of `settings` has had: none where all that they published is at this NATS.
    pub(super) fn by(records: &[LaneRecord], settings: &Settings) -> Option<Self> {
        let is_here = |slot: &String| {
            (records.iter()).any(|record| record.slot == *slot && record.moved.is_none())
        };
        let is_missed = |left: &&Left| left.slot.as_ref().is_some_and(|slot| !is_here(slot));
        let streams = records.iter().flat_map(|record| &record.left);
        let streams: BTreeSet<Left> = streams.filter(is_missed).cloned().collect();
        let bring: Vec<String> = streams.iter().map(|left| bring(left, settings)).collect();
        (!streams.is_empty()).then(|| Elsewhere {
            streams,
            bring: bring.join(" && "),
        })
    }

    /// What brings the streams here.
    pub(super) fn bring(&self) -> &str {
        &self.bring
    }
}

impl fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = |left: &Left| format!("stream {} at {}", left.stream, left.nats);
        let each: Vec<String> = self.streams.iter().map(each).collect();
        f.write_str(&each.join(" and "))
    }
}

/// The command, with the configuration of the lanes that are here; that of the lane of all rows has other keys.
fn bring(left: &Left, settings: &Settings) -> String {
    let Left { stream, nats, slot } = left;
    let here = settings.nats.connection.servers_text();
    let share = settings.postgres.any_share();
    let part = slot.as_deref().and_then(|slot| share.part_of_slot(slot));
    let common = part.flatten().and_then(|number| {
        let there = common_stream(stream, number)?;
        let own = common_stream(&settings.nats.stream, settings.postgres.part()?);
        let to = own.map_or_else(|| stream.clone(), |own| name_of(&own, number));
        Some((number, there, to))
    });
    match common {
        Some((number, there, to)) => format!(
            "WALRELAY_RELAY_SHARES={} {} --stream '{there}' --nats-url {nats}",
            (number + 1).next_power_of_two().max(2),
            command_of(number, &to, Some(&here))
        ),
        None => format!(
            "walrelay move --to-stream {stream} --to-nats {here} (with the configuration of that lane)"
        ),
    }
}
