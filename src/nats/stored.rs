//! The messages that a stream has, read one after the other.
//!
//! In: a stream, from where to read. Out: each message with its sequence, and how many are left. Guarantee: no wait without a
//! deadline, and a permission that is missing is told as such.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::HeaderValue;
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use futures_util::{FutureExt as _, StreamExt as _};

use crate::nats::admin::Admin;

/// How long the broker may keep us waiting for a message that it has.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// A stream's messages, from a place on.
pub struct StoredMessages<'a> {
    nats: &'a Admin,
    stream: String,
    messages: Ordered,
    left: u64,
}

impl<'a> StoredMessages<'a> {
    /// Begins where `config` says.
    ///
    /// # Errors
    /// The stream cannot be read.
    pub async fn from(
        nats: &'a Admin,
        stream: &str,
        config: OrderedConfig,
    ) -> anyhow::Result<Self> {
        let (messages, left) = consume(nats, stream, config).await?;
        Ok(StoredMessages {
            nats,
            stream: stream.to_owned(),
            messages,
            left,
        })
    }

    /// How many messages are still to come, as of the last one.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The next message, and its sequence.
    ///
    /// # Errors
    /// None came in time, or it cannot be read.
    pub async fn next(&mut self) -> anyhow::Result<(u64, Message)> {
        // One that is at hand needs no watch over the wait.
        let message = match self.messages.next().now_or_never() {
            Some(next) => next
                .context("the consumer ended")?
                .with_context(|| format!("cannot read stream {}", self.stream))?,
            None => self.awaited().await?,
        };
        let info = message
            .info()
            .map_err(|error| anyhow::anyhow!("a message without its sequence: {error}"))?;
        let sequence = info.stream_sequence;
        self.left = info.pending;
        Ok((sequence, message))
    }

    async fn awaited(&mut self) -> anyhow::Result<Message> {
        let (stream, messages) = (&self.stream, &mut self.messages);
        let next = async {
            tokio::time::timeout(MESSAGE_TIMEOUT, messages.next())
                .await
                .with_context(|| {
                    format!("no message of stream {stream} within {MESSAGE_TIMEOUT:?}")
                })?
                .context("the consumer ended")?
                .with_context(|| format!("cannot read stream {stream}"))
        };
        self.nats.allowed(next).await
    }
}

/// The messages of a stream as they come, also those that it does not have yet; and how many it has.
///
/// # Errors
/// The stream cannot be read.
pub async fn consume(
    nats: &Admin,
    stream: &str,
    config: OrderedConfig,
) -> anyhow::Result<(Ordered, u64)> {
    let consume = async {
        let found = nats.jetstream().get_stream(stream).await?;
        let consumer = found.create_consumer(config).await?;
        let left = consumer.cached_info().num_pending;
        Ok((consumer.messages().await?, left))
    };
    let consumed = nats.allowed(consume).await;
    consumed.with_context(|| format!("cannot read stream {stream}"))
}

/// A message's headers, in no order: of each message that is published again several are looked for, and there are few.
#[derive(Debug)]
pub struct Headers<'m>(Vec<(&'m str, &'m str)>);

impl<'m> Headers<'m> {
    /// All of them.
    pub fn of(message: &'m Message) -> Self {
        let all = message.headers.iter().flat_map(|headers| headers.iter());
        let all = all.flat_map(|(name, values)| {
            values
                .iter()
                .map(move |value| (name.as_ref(), value.as_str()))
        });
        Headers(all.collect())
    }

    /// The value of one.
    pub fn get(&self, name: &str) -> Option<&'m str> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| *value)
    }

    /// Writes those for which `goes` holds, by name and value, as lines of a message's head.
    pub fn write(&self, lines: &mut String, goes: impl Fn(&str, &str) -> bool) {
        for (name, value) in self.0.iter().filter(|(name, value)| goes(name, value)) {
            for part in [name, ": ", value, "\r\n"] {
                lines.push_str(part);
            }
        }
    }
}

/// The value of a message's header.
pub fn header<'m>(message: &'m Message, name: &str) -> Option<&'m str> {
    let headers = message.headers.as_ref()?;
    headers.get(name).map(HeaderValue::as_str)
}

/// How many messages the stream has from this sequence on.
///
/// # Errors
/// The stream cannot be read.
pub async fn count_from(nats: &Admin, stream: &str, sequence: u64) -> anyhow::Result<u64> {
    let config = OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence {
            start_sequence: sequence,
        },
        ..OrderedConfig::default()
    };
    let consume = async {
        let found = nats.jetstream().get_stream(stream).await?;
        let consumer = found.create_consumer(config).await?;
        Ok(consumer.cached_info().num_pending)
    };
    nats.allowed(consume)
        .await
        .with_context(|| format!("cannot read stream {stream}"))
}
