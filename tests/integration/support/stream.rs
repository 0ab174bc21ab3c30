//! What the stream holds, read with the ordinary client library, not with walrelay's own.

use std::collections::BTreeMap;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::{self};
use futures_util::StreamExt as _;
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::wait::SOON;

/// A message of the stream.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) sequence: u64,
    /// When the server stored it, in nanoseconds since 1970.
    pub(crate) stored_ns: i128,
    pub(crate) subject: String,
    /// `Walrelay-Position`, without the slot.
    pub(crate) position: String,
    /// `Walrelay-Kind`.
    pub(crate) kind: Option<String>,
    /// All headers but NATS' own, in alphabetical order.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

#[derive(serde::Deserialize)]
struct Body<'a> {
    id: Uuid,
    #[serde(borrow)]
    payload_json: &'a RawValue,
}

impl Stored {
    fn parsed(&self) -> Body<'_> {
        serde_json::from_str(&self.body).expect("an envelope")
    }

    /// The event's id.
    pub(crate) fn id(&self) -> Uuid {
        self.parsed().id
    }

    /// The payload's text, byte for byte.
    pub(crate) fn payload(&self) -> &str {
        self.parsed().payload_json.get()
    }

    /// A field of the envelope.
    pub(crate) fn field(&self, name: &str) -> Value {
        let envelope: Value = serde_json::from_str(&self.body).expect("JSON");
        envelope[name].clone()
    }

    /// What a consumer reads of it.
    pub(crate) fn event(&self) -> walrelay::consumer::Event {
        let mut headers = async_nats::HeaderMap::new();
        for (name, value) in &self.headers {
            headers.insert(name.as_str(), value.as_str());
        }
        let message = async_nats::Message {
            subject: self.subject.as_str().into(),
            reply: None,
            payload: self.body.clone().into(),
            headers: Some(headers),
            status: None,
            description: None,
            length: 0,
        };
        walrelay::consumer::Event::read(&message).expect("an event")
    }

    /// Whether it is a replayed event.
    pub(crate) fn is_replay(&self) -> bool {
        self.kind.as_deref() == Some("replay")
    }
}

/// How many messages the stream holds.
pub(super) async fn message_count(nats: &async_nats::Client, name: &str) -> u64 {
    let context = jetstream::new(nats.clone());
    let mut stream = context.get_stream(name).await.expect("the stream is there");
    stream.info().await.expect("it answers").state.messages
}

/// Everything that the stream holds, in its order.
pub(super) async fn read(nats: &async_nats::Client, name: &str) -> Vec<Stored> {
    let mut stored = Vec::new();
    if message_count(nats, name).await == 0 {
        return stored;
    }
    let stream = jetstream::new(nats.clone())
        .get_stream(name)
        .await
        .expect("the stream is there");
    let config = pull::OrderedConfig {
        deliver_policy: DeliverPolicy::All,
        ..pull::OrderedConfig::default()
    };
    let consumer = stream.create_consumer(config).await.expect("a consumer");
    let name = consumer.cached_info().name.clone();
    let mut messages = consumer.messages().await.expect("it delivers");
    loop {
        let message = tokio::time::timeout(SOON, messages.next())
            .await
            .expect("the stream goes on")
            .expect("it does not end")
            .expect("a message");
        let info = message.info().expect("a JetStream message");
        let (sequence, pending) = (info.stream_sequence, info.pending);
        let stored_ns = info.published.unix_timestamp_nanos();
        let header = |name: &str| {
            let value = message.headers.as_ref()?.get(name)?;
            Some(value.as_str().to_owned())
        };
        let position = header("Walrelay-Position").unwrap_or_default();
        stored.push(Stored {
            sequence,
            stored_ns,
            subject: message.subject.to_string(),
            position: position.rsplit(' ').next().unwrap_or_default().to_owned(),
            kind: header("Walrelay-Kind"),
            headers: own_headers(message.headers.as_ref()),
            body: String::from_utf8(message.payload.to_vec()).expect("UTF-8"),
        });
        if pending == 0 {
            drop(messages);
            // Those of who looks often are soon too many; where another has taken its place, that goes by itself.
            let _ = stream.delete_consumer(&name).await;
            return stored;
        }
    }
}

fn own_headers(headers: Option<&async_nats::HeaderMap>) -> BTreeMap<String, String> {
    let headers = headers.into_iter().flat_map(async_nats::HeaderMap::iter);
    headers
        .filter(|(name, _)| !name.to_string().starts_with("Nats-"))
        .map(|(name, values)| (name.to_string(), values[0].as_str().to_owned()))
        .collect()
}
