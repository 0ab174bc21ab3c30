//! What the stream has of the lane, at its end: the positions that the slot may still hold.
//!
//! In: stored messages, the last one first. Out: an [`InStream`]. Copies count as well as what a relay put there: a stream
//! that was made from another one has nothing else.

use std::collections::BTreeMap;
use std::fmt;

use postgres_types::PgLsn;

use crate::nats::admin::Admin;
use crate::nats::api::StreamInfo;
use crate::pipeline::end_search::{Lookup, Told};
use crate::pipeline::position::{KIND_ADOPTED, KIND_REPLAY, Position, parse_header};
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

/// How far back the stream is compared with the slot.
pub(super) const COMPARED_MESSAGES_MAX: u64 = 200_000;

/// So many copies in a row of what the slot no longer holds end the comparison. A consumer may have put some there out of
/// order; a mirror keeps the order.
const OLD_COPIES_MAX: u32 = 1_000;

/// A place up to which everything counts as published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Published {
    pub(super) told: Told,
    /// Its message, where that is the lane's last.
    pub(super) sequence: Option<u64>,
}

/// The lane's messages at the stream's end.
#[derive(Debug, Default)]
pub(super) struct InStream {
    /// The last one that stands where a relay put it: position and sequence.
    lane_end: Option<(Position, u64)>,
    /// The furthest position of a copy.
    copied: Option<Position>,
    /// What is told of the event at each position.
    pub(super) events: BTreeMap<Position, Told>,
}

impl InStream {
    /// The message at this position, where it is the lane's last one.
    pub(super) fn sequence_of(&self, position: Position) -> Option<u64> {
        let (at, sequence) = self.lane_end?;
        (at == position).then_some(sequence)
    }
}

impl fmt::Display for InStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lane_end = self.lane_end.map(|(position, _)| position);
        match (lane_end, self.copied) {
            (lane_end, Some(copied)) if lane_end < Some(copied) => write!(
                formatter,
                "{copied}, a copy: of a mirror, a source or a consumer"
            ),
            (Some(lane_end), _) => write!(formatter, "{lane_end}"),
            (None, _) => formatter.write_str("none"),
        }
    }
}

/// Reads the stream from its end back to where the slot was confirmed.
pub(super) async fn read(
    nats: &Admin,
    settings: &Settings,
    info: &StreamInfo,
    confirmed_lsn: PgLsn,
) -> anyhow::Result<InStream> {
    let slot = &settings.postgres.slot;
    let lane = LaneClient::new(nats, &settings.nats.stream, slot)?;
    let last = info.state.last_seq;
    let first = info
        .state
        .first_seq
        .max(last.saturating_sub(COMPARED_MESSAGES_MAX))
        .max(1);
    let mut found = InStream::default();
    let mut old_copies = 0;
    for sequence in (first..=last).rev() {
        let Some(message) = lane.message(Lookup::Message(sequence)).await? else {
            continue;
        };
        let stored = message.for_search();
        let told = stored.position.and_then(|text| parse_header(text).ok());
        let again = matches!(stored.kind, Some(KIND_REPLAY | KIND_ADOPTED));
        let Some((_, position)) = told.filter(|(of_slot, _)| of_slot == slot && !again) else {
            continue;
        };
        let is_old = position.commit_lsn < confirmed_lsn;
        match stored.told_by(slot) {
            Some(_) => {
                found.lane_end = found.lane_end.or(Some((position, sequence)));
                if is_old {
                    break;
                }
            }
            None => {
                found.copied = found.copied.max(Some(position));
                old_copies = if is_old { old_copies + 1 } else { 0 };
                if old_copies >= OLD_COPIES_MAX {
                    break;
                }
            }
        }
        if !is_old {
            let event = || Told {
                position,
                event_id: stored.event_id(),
                table: Some(stored.table.unwrap_or_default().to_owned()),
            };
            found.events.entry(position).or_insert_with(event);
        }
    }
    Ok(found)
}

/// Whether the recorded message is there or was removed. A foreign message in its place says that the broker lost it.
pub(super) async fn still_stands(
    nats: &Admin,
    settings: &Settings,
    sequence: u64,
    position: Position,
) -> anyhow::Result<bool> {
    let lane = LaneClient::new(nats, &settings.nats.stream, &settings.postgres.slot)?;
    let found = lane.message(Lookup::Message(sequence)).await?;
    let slot = &settings.postgres.slot;
    Ok(found.is_none_or(|message| {
        let told = message.for_search().told_by(slot);
        told.is_some_and(|told| told.position == position)
    }))
}
