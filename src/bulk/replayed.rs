//! How far a replay has come, told by the stream that it publishes to.
//!
//! In: that stream, which replay. Out: the place, in what it reads, of the last event that it has published.
//! Guarantee: what is stored there is all that counts, so a replay that was killed goes on and doubles nothing.

use std::fmt::Display;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use sha2::{Digest as _, Sha256};

use crate::nats::admin::Admin;
use crate::nats::api::StreamInfo;
use crate::nats::stored::{StoredMessages, header};
use crate::pipeline::end_search::Lookup;
use crate::pipeline::position::REPLAY_HEADER;
use crate::relay::lane_client::LaneClient;

/// So many messages at the end are asked for one by one, before all are read.
const STEPS_MAX: u64 = 32;

/// Before a slot's name.
const TABLE: &str = "table:";

/// A replay's name: the same for the same request.
pub fn name(request: &[String]) -> String {
    let digest = Sha256::digest(request.join("\n"));
    digest[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The value of [`REPLAY_HEADER`]: where the event stands in its source.
pub fn header_value(replay: &str, source: &str, place: impl Display) -> String {
    format!("{replay} {source} {place}")
}

/// What the table of `slot` is called as a source, in [`header_value`].
pub fn table(slot: &str) -> String {
    format!("{TABLE}{slot}")
}

/// What was read, by the value of [`REPLAY_HEADER`].
pub fn source_of(value: &str) -> Option<&str> {
    value.split(' ').nth(1)
}

/// The slot whose table was read, by the value of [`REPLAY_HEADER`]; none where it was a stream.
pub fn slot_of_table(value: &str) -> Option<&str> {
    source_of(value)?.strip_prefix(TABLE)
}

/// The event's place in its source, in a header of this replay.
fn place_of<'v>(value: &'v str, replay: &str) -> Option<&'v str> {
    let (name, rest) = value.split_once(' ')?;
    let (_, place) = rest.rsplit_once(' ')?;
    (name == replay).then_some(place)
}

/// The place in its source of the last event that `replay` has published to `stream`; none where there is none.
///
/// # Errors
/// The stream cannot be read.
pub async fn reached(
    nats: &Admin,
    stream: &LaneClient,
    info: &StreamInfo,
    replay: &str,
) -> anyhow::Result<Option<String>> {
    let state = &info.state;
    if state.messages == 0 {
        return Ok(None);
    }
    let below = state
        .last_seq
        .saturating_sub(STEPS_MAX)
        .max(state.first_seq - 1);
    for sequence in (below + 1..=state.last_seq).rev() {
        let message = stream.message(Lookup::Message(sequence)).await?;
        let value = message
            .as_ref()
            .and_then(|message| message.header_text(REPLAY_HEADER));
        if let Some(place) = value.and_then(|value| place_of(value, replay)) {
            return Ok(Some(place.to_owned()));
        }
    }
    if below < state.first_seq {
        return Ok(None);
    }
    let config = OrderedConfig {
        deliver_policy: DeliverPolicy::All,
        headers_only: true,
        ..OrderedConfig::default()
    };
    let mut messages = StoredMessages::from(nats, &info.config.name, config).await?;
    let mut reached = None;
    while messages.left() > 0 {
        let (at, message) = messages.next().await?;
        let value = header(&message, REPLAY_HEADER);
        if let Some(place) = value.and_then(|value| place_of(value, replay)) {
            reached = Some(place.to_owned());
        }
        if at >= below {
            break;
        }
    }
    Ok(reached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_tells_its_replay_and_the_place() {
        let value = header_value("0a1b", "OUTBOX", 7);
        assert_eq!(place_of(&value, "0a1b"), Some("7"));
        assert_eq!(place_of(&value, "0a1c"), None);
        assert_eq!(source_of(&value), Some("OUTBOX"));
        assert_eq!(slot_of_table(&value), None);
        let of_table = header_value("0a1b", &table("lane"), "7:id");
        assert_eq!(slot_of_table(&of_table), Some("lane"));
        assert_eq!(place_of(&of_table, "0a1b"), Some("7:id"));
        for bad in ["", "0a1b", "0a1b 7"] {
            assert_eq!(place_of(bad, "0a1b"), None, "{bad:?}");
        }
    }

    #[test]
    fn another_request_is_another_replay() {
        let request = |from: &str| name(&["OUTBOX".to_owned(), from.to_owned()]);
        assert_eq!(request("1/A"), request("1/A"));
        assert_ne!(request("1/A"), request("1/B"));
    }
}
