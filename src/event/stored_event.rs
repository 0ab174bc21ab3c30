//! What a stored message says of its event, whatever its format.
//!
//! In: a message's headers and body. Out: a [`StoredEvent`]. Guarantee: total; what is not told is none.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::event_id;

/// What a message says of its event, whatever its format.
#[derive(Debug, Default)]
pub struct StoredEvent {
    /// As the row had it.
    pub id: Option<String>,
    /// Of an envelope, or the subject of a CloudEvent.
    pub aggregate_id: Option<String>,
    /// Of an envelope, or the type of a CloudEvent.
    pub event_type: Option<String>,
    /// The type's version.
    pub event_version: Option<u8>,
    /// When it happened.
    pub occurred_at: Option<DateTime<Utc>>,
    /// The payload, or the whole body where that is of another shape.
    pub payload: Payload,
}

/// An event's payload.
#[derive(Clone, Debug, Default)]
pub enum Payload {
    /// There is none: a tombstone, other than in an envelope, which has `null` then.
    #[default]
    Absent,
    /// Its JSON, as Postgres wrote it; numbers keep all their digits.
    Json(Box<RawValue>),
    /// What is no JSON: of a `bytea`, or text.
    Bytes(Vec<u8>),
}

impl Payload {
    /// A body that is the payload.
    fn of_body(body: &[u8]) -> Self {
        match serde_json::from_slice(body) {
            Ok(json) => Payload::Json(json),
            Err(_) if body.is_empty() => Payload::Absent,
            Err(_) => Payload::Bytes(body.to_owned()),
        }
    }

    /// As JSON: text as a string, other bytes as one of base64.
    pub fn into_json(self) -> Option<Box<RawValue>> {
        let text = match self {
            Payload::Absent => return None,
            Payload::Json(json) => return Some(json),
            Payload::Bytes(bytes) => String::from_utf8(bytes)
                .unwrap_or_else(|error| BASE64_STANDARD.encode(error.as_bytes())),
        };
        serde_json::value::to_raw_value(&text).ok()
    }
}

/// The keys of an envelope.
#[derive(Default, Deserialize)]
struct Envelope<'b> {
    #[serde(borrow)]
    aggregate_id: Option<&'b RawValue>,
    #[serde(borrow)]
    event_type: Option<&'b RawValue>,
    #[serde(borrow)]
    event_version: Option<&'b RawValue>,
    #[serde(borrow)]
    occurred_at: Option<&'b RawValue>,
    // `Some` where the key is there, also with null.
    #[serde(borrow, default, deserialize_with = "present")]
    payload_json: Option<&'b RawValue>,
    #[serde(borrow)]
    payload_base64: Option<&'b RawValue>,
}

/// Those of a CloudEvent in structured mode.
#[derive(Default, Deserialize)]
struct CloudEvent<'b> {
    #[serde(borrow)]
    subject: Option<&'b RawValue>,
    #[serde(borrow, rename = "type")]
    event_type: Option<&'b RawValue>,
    #[serde(borrow)]
    eventversion: Option<&'b RawValue>,
    #[serde(borrow)]
    time: Option<&'b RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'b RawValue>,
    #[serde(borrow)]
    data_base64: Option<&'b RawValue>,
}

fn present<'de: 'b, 'b, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'b RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl StoredEvent {
    /// `header` gives a header's value.
    pub fn read(header: impl Fn(&str) -> Option<String>, body: &[u8]) -> Self {
        let headers = event_id::ID_HEADERS.map(&header);
        let ids = headers.each_ref().map(Option::as_deref);
        match (event_id::of_headers(ids), ids) {
            (Some(id), [Some(_), _]) => StoredEvent {
                id: Some(id),
                payload: Payload::of_body(body),
                ..StoredEvent::default()
            },
            (Some(id), _) => Self::of_attributes(id, header, body),
            (None, _) => {
                let content_type = header("content-type");
                let is_cloud_event =
                    content_type.is_some_and(|it| it.starts_with("application/cloudevents+json"));
                match is_cloud_event {
                    true => Self::of_cloud_event(body),
                    false => Self::of_envelope(body),
                }
            }
        }
    }

    /// A CloudEvent in binary mode.
    fn of_attributes(id: String, header: impl Fn(&str) -> Option<String>, body: &[u8]) -> Self {
        let attribute = |name: &str| header(&format!("ce-{name}")).map(event_id::of_attribute);
        let content_type = attribute("datacontenttype");
        StoredEvent {
            id: Some(id),
            aggregate_id: attribute("subject"),
            event_type: attribute("type"),
            event_version: attribute("eventversion").and_then(|version| version.parse().ok()),
            occurred_at: attribute("time").and_then(|time| time.parse().ok()),
            payload: match content_type.as_deref() {
                Some("application/octet-stream") => Payload::Bytes(body.to_owned()),
                _ => Payload::of_body(body),
            },
        }
    }

    fn of_cloud_event(body: &[u8]) -> Self {
        let keys: CloudEvent<'_> = serde_json::from_slice(body).unwrap_or_default();
        StoredEvent {
            id: event_id::of_body(body),
            aggregate_id: keys.subject.map(text),
            event_type: keys.event_type.map(text),
            event_version: keys.eventversion.and_then(version),
            occurred_at: keys.time.and_then(|time| text(time).parse().ok()),
            payload: payload(keys.data, keys.data_base64).unwrap_or_default(),
        }
    }

    fn of_envelope(body: &[u8]) -> Self {
        let keys: Envelope<'_> = serde_json::from_slice(body).unwrap_or_default();
        StoredEvent {
            id: event_id::of_body(body),
            aggregate_id: keys.aggregate_id.map(text),
            event_type: keys.event_type.map(text),
            event_version: keys.event_version.and_then(version),
            occurred_at: keys.occurred_at.and_then(|time| text(time).parse().ok()),
            payload: payload(keys.payload_json, keys.payload_base64)
                .unwrap_or_else(|| Payload::of_body(body)),
        }
    }
}

/// A string, or a number as it is written.
fn text(json: &RawValue) -> String {
    serde_json::from_str(json.get()).unwrap_or_else(|_| json.get().to_owned())
}

fn version(json: &RawValue) -> Option<u8> {
    text(json).parse().ok()
}

fn payload(json: Option<&RawValue>, base64: Option<&RawValue>) -> Option<Payload> {
    match (json, base64) {
        (Some(json), _) => Some(Payload::Json(json.to_owned())),
        (None, Some(base64)) => Some(match BASE64_STANDARD.decode(text(base64)) {
            Ok(bytes) => Payload::Bytes(bytes),
            Err(_) => Payload::Json(base64.to_owned()),
        }),
        (None, None) => None,
    }
}
