//! One message of the stream as `walrelay tail` and `walrelay demo` show it.
//!
//! In: a JetStream message's subject, headers, body and reply subject. Out: an [`Entry`], as columns or as JSON.
//! Guarantee: total; whatever is in the stream, whoever wrote it, becomes an entry and never an error.

use std::fmt::Write as _;

use async_nats::HeaderMap;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::event::EventEnvelope;
use crate::pipeline::position::{
    KIND_DEAD_LETTER, KIND_DISCARDED, KIND_FENCED, KIND_HEADER, KIND_RETRIED, POSITION_HEADER,
    REASON_HEADER,
};
use crate::pipeline::stored_event::{Payload, StoredEvent};

/// Subjects of walrelay's own; of these only dead letters are something to look at.
const OWN_ROOT: &str = "walrelay.";
const DEAD_ROOT: &str = "walrelay.dead.";
/// The content type of a CloudEvent that is bytes.
const OCTETS: &str = "application/octet-stream";

/// [`Entry::kind_name`] of an event's first publication.
pub(super) const KIND_EVENT: &str = "event";
/// [`Entry::kind_name`] of a message that is no event.
pub(super) const KIND_OTHER: &str = "other";

/// What the message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Class {
    /// An event in its envelope.
    Event,
    /// A row that could not be published, at its place.
    DeadLetter,
    /// Anything else: another writer's, or a control message of the relay.
    Other,
}

/// What is shown of a dead letter's body; `walrelay dead-letters` shows all of it.
#[derive(Default, Deserialize)]
struct DeadLetter {
    id: Option<String>,
    detail: Option<String>,
}

/// A message, taken apart.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    /// Sequence in the stream.
    pub(crate) sequence: u64,
    pub(crate) subject: String,
    pub(crate) class: Class,
    /// Slot of the lane, from the position header.
    pub(crate) slot: Option<String>,
    /// Commit LSN and ordinal, `16/B374D848:3`.
    pub(crate) position: Option<String>,
    pub(crate) id: Option<String>,
    pub(crate) aggregate_id: Option<String>,
    pub(crate) event_type: Option<String>,
    pub(crate) event_version: Option<u8>,
    #[serde(serialize_with = "micros")]
    pub(crate) occurred_at: Option<DateTime<Utc>>,
    /// When the broker stored it.
    #[serde(serialize_with = "micros")]
    pub(crate) stored_at: Option<DateTime<Utc>>,
    /// From the event to this line, in milliseconds; includes the skew of the clocks.
    pub(crate) latency_ms: Option<f64>,
    /// From the event to the broker, in milliseconds.
    pub(crate) stored_latency_ms: Option<f64>,
    /// Its kind where it is not an event's first publication: `dead-letter`, `replay`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<String>,
    /// Why a dead letter is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// The same in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
    /// The event's payload, or the whole body where that is JSON of another shape.
    pub(crate) payload_json: Option<Box<RawValue>>,
    /// In its place, of a payload that is neither JSON nor text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) payload_base64: Option<String>,
    /// How many messages the consumer had to deliver behind this one.
    #[serde(skip)]
    pub(crate) pending: u64,
}

impl Entry {
    /// Takes a message apart. `reply` is the ack subject that a consumer's delivery carries; `now` is the reader's clock.
    pub(crate) fn read(
        subject: &str,
        headers: Option<&HeaderMap>,
        body: &[u8],
        reply: &str,
        now: DateTime<Utc>,
    ) -> Self {
        let header = |name: &str| {
            headers
                .and_then(|headers| headers.get(name))
                .map(|value| value.as_str().to_owned())
        };
        let delivery = read_reply(reply).unwrap_or_default();
        let stored_at = delivery.stored_at;
        let kind = header(KIND_HEADER);
        let letter: DeadLetter = match subject.starts_with(DEAD_ROOT) {
            true => serde_json::from_slice(body).unwrap_or_default(),
            false => DeadLetter::default(),
        };
        let event = StoredEvent::read(header, body);
        let published = header(POSITION_HEADER).is_some() || kind.is_some();
        let class = match subject {
            _ if subject.starts_with(DEAD_ROOT) => Class::DeadLetter,
            _ if subject.starts_with(OWN_ROOT) => Class::Other,
            _ if kind.as_deref() == Some(KIND_FENCED) => Class::Other,
            _ if published || EventEnvelope::from_slice(body).is_ok() => Class::Event,
            _ => Class::Other,
        };
        let event = match class {
            Class::Event => event,
            Class::DeadLetter => StoredEvent {
                id: letter.id,
                payload: event.payload,
                ..StoredEvent::default()
            },
            Class::Other => StoredEvent {
                payload: event.payload,
                ..StoredEvent::default()
            },
        };
        let is_octets = header("ce-datacontenttype").is_some_and(|it| it == OCTETS);
        let (payload_json, payload_base64) = match event.payload {
            Payload::Bytes(bytes)
                if is_octets || bytes != body || std::str::from_utf8(body).is_err() =>
            {
                (None, Some(BASE64_STANDARD.encode(bytes)))
            }
            // A text that is the whole body.
            payload => (payload.into_json(), None),
        };
        let (slot, position) = match header(POSITION_HEADER) {
            Some(text) => match text.split_once(' ') {
                Some((slot, position)) => (Some(slot.to_owned()), Some(position.to_owned())),
                None => (None, Some(text)),
            },
            None => (None, None),
        };
        let occurred_at = event.occurred_at;
        let since = |end: Option<DateTime<Utc>>| Some(milliseconds(end? - occurred_at?));
        Self {
            sequence: delivery.sequence,
            pending: delivery.pending,
            subject: subject.to_owned(),
            class,
            slot,
            position,
            occurred_at,
            stored_at,
            latency_ms: since(Some(now)),
            stored_latency_ms: since(stored_at),
            kind,
            reason: header(REASON_HEADER),
            detail: letter.detail,
            id: event.id,
            aggregate_id: event.aggregate_id,
            event_type: event.event_type,
            event_version: event.event_version,
            payload_json,
            payload_base64,
        }
    }

    /// Its kind in a word, also where it is an event's first publication or no event at all.
    pub(crate) fn kind_name(&self) -> &str {
        match self.class {
            Class::Event => self.kind.as_deref().unwrap_or(KIND_EVENT),
            Class::DeadLetter => self.kind.as_deref().unwrap_or(KIND_DEAD_LETTER),
            Class::Other => KIND_OTHER,
        }
    }

    /// Whether this is the relay's own bookkeeping, which says nothing to a reader of events.
    pub(crate) fn is_control(&self) -> bool {
        self.class == Class::Other && self.subject.starts_with(OWN_ROOT)
    }

    /// Its id where that is a UUID, as in the demo's table.
    pub(crate) fn uuid(&self) -> Option<Uuid> {
        self.id.as_deref()?.parse().ok()
    }

    /// One JSON object, without the line's end.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and checked raw JSON always serialize")
    }

    /// Columns under [`HEADING`]; a dead letter's reason comes last, in place of an id.
    pub(crate) fn to_line(&self) -> String {
        let latency = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), human_milliseconds);
        let mut line = columns(
            &self.sequence.to_string(),
            self.position.as_deref().unwrap_or("-"),
            &latency(self.latency_ms),
            &latency(self.stored_latency_ms),
            &printable(&self.subject),
        );
        let id = self.id.as_deref().map_or_else(|| "-".to_owned(), printable);
        line.push_str(&match (self.class, self.kind.as_deref()) {
            (Class::Event, None) => id,
            (Class::Event, Some(kind)) => format!("{id} ({})", printable(kind)),
            (Class::DeadLetter, Some(state @ (KIND_RETRIED | KIND_DISCARDED))) => {
                format!("{id} dead letter {state}")
            }
            (Class::DeadLetter, _) => {
                let reason = self.detail.as_deref().or(self.reason.as_deref());
                format!(
                    "{id} dead letter: {}",
                    printable(reason.unwrap_or("no reason given"))
                )
            }
            (Class::Other, _) => "(not an event)".to_owned(),
        });
        line
    }
}

/// The heading of [`Entry::to_line`].
pub(crate) fn heading() -> String {
    columns("SEQUENCE", "POSITION", "LATENCY", "TO STREAM", "SUBJECT") + "ID"
}

fn columns(sequence: &str, position: &str, latency: &str, stored: &str, subject: &str) -> String {
    format!("{sequence:>9}  {position:<18}  {latency:>9}  {stored:>9}  {subject:<32}  ")
}

/// Other people's text for a terminal: without control characters.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn milliseconds(span: chrono::TimeDelta) -> f64 {
    // Whole microseconds, so that the JSON has no digits that no clock measured.
    span.num_microseconds()
        .map_or(f64::MAX, |micros| micros as f64 / 1_000.0)
}

/// Three digits and a unit, from `850 µs` to `12 d`.
pub(crate) fn human_milliseconds(ms: f64) -> String {
    let (value, unit) = match ms.abs() {
        below if below < 1.0 => (ms * 1_000.0, "µs"),
        below if below < 1_000.0 => (ms, "ms"),
        below if below < 100_000.0 => (ms / 1_000.0, "s"),
        below if below < 6_000_000.0 => (ms / 60_000.0, "min"),
        below if below < 172_800_000.0 => (ms / 3_600_000.0, "h"),
        _ => (ms / 86_400_000.0, "d"),
    };
    let mut text = String::new();
    let digits = usize::from(value.abs() < 10.0 && unit != "µs");
    write!(text, "{value:.digits$} {unit}").expect("a String takes every write");
    text
}

/// What the ack subject of a delivery tells.
#[derive(Debug, Default, PartialEq)]
struct Delivery {
    sequence: u64,
    stored_at: Option<DateTime<Utc>>,
    pending: u64,
}

/// Reads an ack subject (ADR-15), old form
/// `$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<consumer sequence>.<nanoseconds>.<pending>` or new form, which
/// has domain and account before the stream. By hand, since the client's time type depends on a feature that any other
/// crate of an application may turn on.
fn read_reply(reply: &str) -> Option<Delivery> {
    let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
    let first = match tokens.len() {
        7 => 0,
        9.. => 2,
        _ => return None,
    };
    Some(Delivery {
        sequence: tokens[first + 3].parse().ok()?,
        stored_at: tokens[first + 5]
            .parse()
            .ok()
            .map(DateTime::from_timestamp_nanos),
        pending: tokens[first + 6].parse().ok()?,
    })
}

fn micros<S: serde::Serializer>(
    time: &Option<DateTime<Utc>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.map(|time| time.to_rfc3339_opts(SecondsFormat::Micros, true))
        .serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::DomainEvent as _;
    use crate::event::teaching::UserEraseRequested;

    const REPLY: &str = "$JS.ACK.OUTBOX.abc.1.42.7.1795408852847000123.0";

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.insert(*name, *value);
        }
        map
    }

    fn event() -> (UserEraseRequested, Vec<u8>) {
        let mut event = UserEraseRequested::new(Uuid::now_v7());
        event.requested_at = DateTime::from_timestamp_micros(1_795_408_852_846_000).unwrap();
        let body = EventEnvelope::from_event(&event)
            .unwrap()
            .to_json()
            .unwrap()
            .into_bytes();
        (event, body)
    }

    #[test]
    fn an_event_has_its_position_and_both_latencies() {
        let (event, body) = event();
        let headers = headers(&[("Walrelay-Position", "walrelay 16/B374D848:3")]);
        let now = event.occurred_at() + chrono::TimeDelta::microseconds(1_250);
        let entry = Entry::read(
            "outbox.user.erase_requested.v1",
            Some(&headers),
            &body,
            REPLY,
            now,
        );
        assert_eq!((entry.class, entry.sequence), (Class::Event, 42));
        assert_eq!(entry.slot.as_deref(), Some("walrelay"));
        assert_eq!(entry.position.as_deref(), Some("16/B374D848:3"));
        assert_eq!(
            (entry.latency_ms, entry.stored_latency_ms),
            (Some(1.25), Some(1.0))
        );
        let json: serde_json::Value = serde_json::from_str(&entry.to_json()).unwrap();
        assert_eq!(json["stored_at"], "2026-11-23T04:40:52.847000Z");
        assert_eq!(json["id"], event.event_id.to_string());
        assert!(entry.to_line().ends_with(&event.event_id.to_string()));
    }

    #[test]
    fn a_dead_letter_is_shown_as_one() {
        let headers = headers(&[
            ("Walrelay-Kind", "dead-letter"),
            ("Walrelay-Reason", "too_large"),
        ]);
        let body =
            br#"{"id": "0199fd3c-2a5e-7c3b-8d5f-0123456789ab", "detail": "too\u001b[2J large"}"#;
        let subject = "walrelay.dead.walrelay";
        let entry = Entry::read(subject, Some(&headers), body, REPLY, Utc::now());
        assert_eq!(
            (entry.class, entry.reason.as_deref()),
            (Class::DeadLetter, Some("too_large"))
        );
        assert!(!entry.is_control());
        assert!(
            entry.to_line().ends_with(
                "0199fd3c-2a5e-7c3b-8d5f-0123456789ab dead letter: too\u{fffd}[2J large"
            )
        );
        let bare = Entry::read(subject, Some(&headers), b"\xff", REPLY, Utc::now());
        assert!(bare.to_line().ends_with("- dead letter: too_large"));
    }

    #[test]
    fn what_became_of_a_dead_letter_is_no_dead_letter() {
        let headers = headers(&[("Walrelay-Kind", "discarded")]);
        let body = br#"{"id": "e1", "position": "0/10:1", "was": "open", "reason": "a test"}"#;
        let subject = "walrelay.dead.walrelay";
        let entry = Entry::read(subject, Some(&headers), body, REPLY, Utc::now());
        assert!(entry.to_line().ends_with("e1 dead letter discarded"));
    }

    #[test]
    fn a_replayed_event_is_an_event_and_says_so() {
        let (event, body) = event();
        let headers = headers(&[("Walrelay-Kind", "replay")]);
        let entry = Entry::read("outbox.a", Some(&headers), &body, REPLY, Utc::now());
        assert_eq!(entry.class, Class::Event);
        assert!(
            entry
                .to_line()
                .ends_with(&format!("{} (replay)", event.event_id))
        );
    }

    #[test]
    fn what_is_no_event_is_no_error() {
        for (subject, body, reply) in [
            ("a", &b"\xff\x00"[..], ""),
            ("outbox.x", b"[1, 2]", "$JS.ACK.x"),
            ("walrelay.lane.x", b"", REPLY),
        ] {
            let entry = Entry::read(subject, None, body, reply, Utc::now());
            assert_eq!(entry.class, Class::Other, "{subject}");
            assert!(serde_json::from_str::<serde_json::Value>(&entry.to_json()).is_ok());
        }
        let headers = headers(&[("Walrelay-Kind", "fenced")]);
        let subject = "replay.outbox.walrelay-fenced";
        let entry = Entry::read(subject, Some(&headers), b"{}", REPLY, Utc::now());
        assert_eq!(entry.class, Class::Other);
    }

    #[test]
    fn both_forms_of_the_ack_subject_are_read() {
        let stored_at = Some(DateTime::from_timestamp_nanos(1_795_408_852_847_000_123));
        let delivery = |pending| {
            Some(Delivery {
                sequence: 42,
                stored_at,
                pending,
            })
        };
        assert_eq!(read_reply(REPLY), delivery(0));
        let new = "$JS.ACK._.hash.OUTBOX.abc.1.42.7.1795408852847000123.9.token";
        assert_eq!(read_reply(new), delivery(9));
        assert_eq!(read_reply("_INBOX.x"), None);
    }

    #[test]
    fn spans_have_two_or_three_digits() {
        for (ms, text) in [
            (0.85, "850 µs"),
            (1.25, "1.2 ms"),
            (12.5, "12 ms"),
            (-3.0, "-3.0 ms"),
            (3_400.0, "3.4 s"),
            (600_000.0, "10 min"),
            (864_000_000.0, "10 d"),
        ] {
            assert_eq!(human_milliseconds(ms), text);
        }
    }
}
