//! The message that takes the place of a row that cannot be published.
//!
//! In: the row, why it was rejected, and the room that a message has. Out: subject, headers and a JSON body with the row:
//! whole where it fits, else as much as fits, and the columns named that are not whole. It stands at the row's position
//! in the lane, in the same stream, under a subject outside the events' root.

pub mod remembered;
#[cfg(feature = "cli")]
pub(crate) mod same_row;
pub mod state;

use super::encoding::{Converted, Encoding};
use super::envelope::{self, Reject, shown};
use super::fields::Field;
use super::kind::Kind;
use super::pgoutput::Column;
use super::position::{KIND_DEAD_LETTER, KIND_HEADER, Position, REASON_HEADER};
use super::row::Row;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The subject of a slot's dead letters: `walrelay.dead.<slot>`.
pub fn subject(slot: &str) -> String {
    format!("walrelay.dead.{slot}")
}

/// What a dead letter says. A column of the table by its name; what identifies the row beside it, at most 200 bytes each.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DeadLetter {
    /// The event's id.
    pub id: Option<String>,
    /// The aggregate's id.
    pub aggregate_id: Option<String>,
    /// As the table has it.
    pub event_type: Option<String>,
    /// As the table has it.
    pub event_version: Option<String>,
    /// As Postgres writes it.
    pub occurred_at: Option<String>,
    /// Length of the payload in the table.
    pub payload_bytes: Option<u64>,
    /// The row's place in the lane; empty where the letter had no room for it, and its header tells.
    pub position: String,
    /// A short word; as `position`.
    pub reason: String,
    /// When the row's transaction was committed, in µs since 2000-01-01 UTC.
    pub committed_at_us: i64,
    /// Why the row cannot be published, for a person.
    pub(crate) detail: String,
    /// Every column that the server has sent, as text; none in a letter without room for their names, or of an older
    /// walrelay.
    pub row: Option<BTreeMap<String, Option<String>>>,
    /// What the values are, by their columns, of a message that was written without a table; none of a row, whose table tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kinds: Option<BTreeMap<String, Kind>>,
    /// The columns that are not whole in `row`, with their length in bytes.
    pub truncated: BTreeMap<String, u64>,
}

/// A dead letter as it is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// JSON.
    pub bytes: Vec<u8>,
    /// The row can be made from it again.
    pub is_whole: bool,
}

/// A rejected row as the server sent it.
#[derive(Debug)]
pub struct Rejected<'a> {
    /// What is an event's of it.
    pub row: &'a Row<'a>,
    /// All of it, by the columns' names.
    pub columns: &'a [(String, Column<'a>)],
    /// What these are, where no table tells.
    pub kinds: Option<BTreeMap<String, Kind>>,
    /// Where it stands.
    pub position: Position,
    /// Why it cannot be published.
    pub reject: &'a Reject,
}

/// What a person is told of a rejected row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedRow {
    /// Where it stands.
    pub position: Position,
    /// The event's id, as far as it can be shown.
    pub event_id: String,
    /// Why it cannot be published.
    pub reject: Reject,
}

/// Bytes of an id that a dead letter tells beside its row, at most.
pub const SHOWN_BYTES_MAX: usize = envelope::SHOWN_BYTES_MAX;

/// An id as a dead letter tells it beside its row.
#[must_use]
pub fn shown_id(id: &str) -> String {
    shown(id.as_bytes())
}

/// Headers besides the position, whole lines.
pub fn headers(reject: &Reject) -> String {
    format!(
        "{KIND_HEADER}: {KIND_DEAD_LETTER}\r\n{REASON_HEADER}: {}\r\n",
        reject.reason()
    )
}

impl DeadLetter {
    /// With the whole row, as far as it was read and is text; `encoding` is how its text came.
    pub fn of(rejected: &Rejected<'_>, encoding: &Encoding) -> Self {
        let row = rejected.row;
        let value = |field| match row.get(field) {
            Column::Text(text) | Column::NoText(text) => Some(shown(text)),
            _ => None,
        };
        let mut letter = DeadLetter {
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
            position: rejected.position.to_string(),
            reason: rejected.reject.reason().to_owned(),
            committed_at_us: row.committed_at_us,
            detail: rejected.reject.to_string(),
            row: Some(BTreeMap::new()),
            kinds: rejected.kinds.clone(),
            truncated: BTreeMap::new(),
        };
        for (name, column) in rejected.columns {
            letter.add(name, *column, encoding);
        }
        letter
    }

    /// Takes the values out, and leaves which columns there are, and how long each value is.
    pub(crate) fn mask(&mut self) {
        self.id = None;
        self.aggregate_id = None;
        self.event_type = None;
        self.event_version = None;
        self.occurred_at = None;
        // It quotes what is wrong.
        self.detail.clear();
        for (column, value) in self.row.iter_mut().flatten() {
            if let Some(value) = value {
                let bytes = std::mem::take(value).len() as u64;
                self.truncated.entry(column.clone()).or_insert(bytes);
            }
        }
    }

    fn add(&mut self, name: &str, column: Column<'_>, encoding: &Encoding) {
        let mut converted = Vec::new();
        let (value, cut_bytes) = match column {
            Column::Null | Column::Absent => (None, None),
            Column::Text(bytes) | Column::NoText(bytes) => {
                let text = match encoding.utf8(bytes, &mut converted) {
                    Converted::At(range) => &converted[range],
                    Converted::Same | Converted::Not => bytes,
                };
                (
                    Some(String::from_utf8_lossy(text).into_owned()),
                    std::str::from_utf8(text).is_err().then_some(bytes.len()),
                )
            }
            Column::Skipped { len } => (Some(String::new()), Some(len as usize)),
            Column::Binary(bytes) => (Some(String::new()), Some(bytes.len())),
            Column::Unchanged => (Some(String::new()), Some(0)),
        };
        self.row
            .get_or_insert_default()
            .insert(name.to_owned(), value);
        if let Some(bytes) = cut_bytes {
            self.truncated.insert(name.to_owned(), bytes as u64);
        }
    }

    /// The body, with as much of the row as `room` bytes take. The smallest is `{}`, whatever the room.
    pub fn body(&self, room: usize) -> Body {
        let bytes = to_json(self);
        if bytes.len() <= room {
            return Body {
                bytes,
                is_whole: self.truncated.is_empty(),
            };
        }
        let cut = cut(self.clone(), room);
        let without_row = DeadLetter {
            row: None,
            kinds: None,
            ..self.clone()
        };
        let only_id = DeadLetter {
            id: self.id.clone(),
            ..DeadLetter::default()
        };
        let smaller = [cut, without_row, only_id];
        let mut written = smaller.iter().map(to_json);
        Body {
            bytes: written
                .find(|bytes| bytes.len() <= room)
                .unwrap_or_else(|| b"{}".to_vec()),
            is_whole: false,
        }
    }
}

/// The letter with its values cut so that it has `room` bytes: the short ones stay whole before the long ones. Where not
/// even the names fit, it is longer.
fn cut(mut letter: DeadLetter, room: usize) -> DeadLetter {
    let row = letter.row.take().unwrap_or_default();
    let mut texts: Vec<(String, String)> = Vec::new();
    let mut emptied = BTreeMap::new();
    for (name, value) in row {
        emptied.insert(name.clone(), value.as_ref().map(|_| String::new()));
        if let Some(text) = value {
            letter
                .truncated
                .entry(name.clone())
                .or_insert(text.len() as u64);
            texts.push((name, text));
        }
    }
    letter.row = Some(emptied);
    let mut left = room.saturating_sub(to_json(&letter).len());
    texts.sort_by_key(|(_, text)| escaped_bytes(text));
    for (name, mut text) in texts {
        let mut end = 0;
        for char in text.chars() {
            let bytes = escaped_char_bytes(char);
            if bytes > left {
                break;
            }
            left -= bytes;
            end += char.len_utf8();
        }
        text.truncate(end);
        if letter.truncated.get(&name) == Some(&(end as u64)) {
            letter.truncated.remove(&name);
        }
        letter.row.get_or_insert_default().insert(name, Some(text));
    }
    letter
}

fn escaped_bytes(text: &str) -> usize {
    text.chars().map(escaped_char_bytes).sum()
}

/// Length of a character inside a JSON string, as [`to_json`] writes it.
fn escaped_char_bytes(char: char) -> usize {
    match char {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        char => char.len_utf8(),
    }
}

fn to_json(letter: &DeadLetter) -> Vec<u8> {
    serde_json::to_vec(letter).expect("strings and numbers always have a JSON form")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::fields::Fields;

    const REJECT: Reject = Reject::Null(Field::AggregateId);

    fn letter(columns: &[(&str, Column<'_>)], room: usize) -> (DeadLetter, Body) {
        let columns: Vec<_> = columns
            .iter()
            .map(|(name, column)| ((*name).to_owned(), *column))
            .collect();
        let row = Row::new(
            Fields {
                id: Column::Text(b"e1"),
                ..Fields::default()
            },
            Fields::default(),
            Vec::new(),
            0,
        );
        let rejected = Rejected {
            row: &row,
            columns: &columns,
            kinds: None,
            position: "0/10:1".parse().expect("a position"),
            reject: &REJECT,
        };
        let body = DeadLetter::of(&rejected, &Encoding::Utf8).body(room);
        let read = serde_json::from_slice(&body.bytes).expect("JSON");
        (read, body)
    }

    #[test]
    fn a_row_that_fits_is_in_it_whole() {
        let columns = [
            ("id", Column::Text(b"e1")),
            ("payload", Column::Text(b"{\"a\": \"\xc3\xa9\"}")),
            ("tenant", Column::Null),
        ];
        let (letter, body) = letter(&columns, 10_000);
        assert!(body.is_whole && letter.truncated.is_empty());
        let row = letter.row.expect("a row");
        assert_eq!(row["payload"].as_deref(), Some("{\"a\": \"é\"}"));
        assert_eq!(row["tenant"], None);
        assert_eq!(letter.position, "0/10:1");
    }

    #[test]
    fn what_does_not_fit_is_cut_and_said_to_be() {
        let long = "\"é\u{1}".repeat(1_000);
        let columns = [
            ("id", Column::Text(b"e1")),
            ("payload", Column::Text(long.as_bytes())),
        ];
        for room in 0..1_000 {
            let (letter, body) = letter(&columns, room);
            assert!(!body.is_whole);
            assert!(body.bytes.len() <= room.max(2), "{room}");
            let Some(row) = letter.row else { continue };
            assert_eq!(letter.truncated.get("payload"), Some(&(long.len() as u64)));
            let kept = row["payload"].as_deref().expect("a prefix");
            assert!(long.starts_with(kept));
            if !kept.is_empty() {
                assert_eq!(row["id"].as_deref(), Some("e1"));
                assert!(!letter.truncated.contains_key("id"));
                // No more than one character's worth is left unused, and the mark of the id.
                assert!(body.bytes.len() + 20 > room, "{room}");
            }
        }
        assert!(letter(&columns, 1_000).0.row.is_some());
    }

    #[test]
    fn what_cannot_be_text_is_not_whole() {
        let skipped = [("payload", Column::Skipped { len: 7 })];
        let (letter_skipped, body) = letter(&skipped, 10_000);
        assert!(!body.is_whole);
        assert_eq!(letter_skipped.truncated["payload"], 7);
        let (letter, body) = letter(&[("payload", Column::Text(b"a\xff"))], 10_000);
        assert!(!body.is_whole);
        assert_eq!(letter.truncated["payload"], 2);
    }
}
