//! The small message that takes the place of a row that cannot be published.
//!
//! In: the row and why it was rejected. Out: subject, headers and a JSON body with what identifies the row; it stands
//! at the row's position in the lane, in the same stream, under a subject outside the events' root.

use super::envelope::{Reject, shown};
use super::fields::Field;
use super::pgoutput::Column;
use super::position::{KIND_DEAD_LETTER, KIND_HEADER, Position, REASON_HEADER};
use super::row::Row;
use serde::Serialize;

/// The subject of a slot's dead letters: `walrelay.dead.<slot>`.
pub fn subject(slot: &str) -> String {
    format!("walrelay.dead.{slot}")
}

#[derive(Serialize)]
struct DeadLetter<'a> {
    id: Option<String>,
    aggregate_id: Option<String>,
    event_type: Option<String>,
    event_version: Option<String>,
    occurred_at: Option<String>,
    payload_bytes: Option<u64>,
    position: String,
    reason: &'a str,
    detail: String,
}

/// Headers besides the position, whole lines.
pub fn headers(reject: &Reject) -> String {
    format!(
        "{KIND_HEADER}: {KIND_DEAD_LETTER}\r\n{REASON_HEADER}: {}\r\n",
        reject.reason()
    )
}

/// The body. Values are cut after 200 bytes: what identifies the row, not the row.
pub fn body(row: &Row<'_>, position: Position, reject: &Reject) -> Vec<u8> {
    let value = |field| match row.get(field) {
        Column::Text(text) | Column::NoText(text) => Some(shown(text)),
        _ => None,
    };
    let letter = DeadLetter {
        id: row.id().map(|id| shown(&id)),
        aggregate_id: value(Field::AggregateId),
        event_type: value(Field::EventType),
        event_version: value(Field::EventVersion),
        occurred_at: value(Field::OccurredAt),
        payload_bytes: match row.get(Field::Payload) {
            Column::Text(text) | Column::NoText(text) => Some(text.len() as u64),
            Column::Skipped { len } => Some(len.into()),
            _ => None,
        },
        position: position.to_string(),
        reason: reject.reason(),
        detail: reject.to_string(),
    };
    serde_json::to_vec(&letter).expect("strings and numbers always have a JSON form")
}
