//! What a stored message says of its event, whatever its format.
//!
//! In: a message's headers and body. Out: a [`StoredEvent`]. Guarantee: total; what is not told is none.

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
    /// The payload, or the whole body where that is JSON of another shape.
    pub payload: Option<Box<RawValue>>,
}

/// The keys of an envelope, and of a CloudEvent in structured mode.
#[derive(Default, Deserialize)]
struct Body<'b> {
    #[serde(borrow, alias = "subject")]
    aggregate_id: Option<&'b RawValue>,
    #[serde(borrow, alias = "type")]
    event_type: Option<&'b RawValue>,
    #[serde(borrow, alias = "eventversion")]
    event_version: Option<&'b RawValue>,
    #[serde(borrow, alias = "time")]
    occurred_at: Option<&'b RawValue>,
    #[serde(
        borrow,
        alias = "payload_base64",
        alias = "data",
        alias = "data_base64"
    )]
    payload_json: Option<&'b RawValue>,
}

impl StoredEvent {
    /// `header` gives a header's value.
    pub fn read(header: impl Fn(&str) -> Option<String>, body: &[u8]) -> Self {
        let headers = event_id::ID_HEADERS.map(&header);
        let own = event_id::of_headers(headers.each_ref().map(Option::as_deref));
        // A payload alone may have keys of the same names.
        let keys: Body<'_> = match own {
            Some(_) => Body::default(),
            None => serde_json::from_slice(body).unwrap_or_default(),
        };
        let attribute = |name: &str, key: Option<&RawValue>| -> Option<String> {
            let of_key = || {
                let text = key?.get();
                serde_json::from_str::<String>(text)
                    .ok()
                    .or_else(|| Some(text.to_owned()))
            };
            header(&format!("ce-{name}")).or_else(of_key)
        };
        let time = attribute("time", keys.occurred_at);
        StoredEvent {
            aggregate_id: attribute("subject", keys.aggregate_id),
            event_type: attribute("type", keys.event_type),
            event_version: attribute("eventversion", keys.event_version)
                .and_then(|version| version.parse().ok()),
            occurred_at: time.and_then(|time| time.parse().ok()),
            payload: match keys.payload_json {
                Some(payload) => Some(payload.to_owned()),
                None => serde_json::from_slice(body).ok(),
            },
            id: own.or_else(|| event_id::of_body(body)),
        }
    }
}
