//! A stream's events as a source.
//!
//! In: a lane's stream, between which sequences, which events. Out: them in the stream's order, under other subjects and marked as
//! a replay. Guarantees: bodies byte for byte; what is no event of the lane is passed over; memory does not grow with their number;
//! a broker that was away is read on behind the last message.

use std::time::{Duration, Instant};

use anyhow::bail;
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;

use super::Sourced;
use super::publisher::STUCK_LIMIT;
use super::readdress::{Asked, Destination, Filter, Original};
use super::replayed::header_value;
use super::source::{Gap, Sink, Source, Unwanted, on_thread};
use crate::nats::admin::Admin;
use crate::nats::denial::Denial;
use crate::nats::filters::covers;
use crate::nats::settings::ConnectionSettings;
use crate::nats::stored::{Headers, StoredMessages};
use crate::nats::stream::find;
use crate::pipeline::position::{
    BATCH_HEADER, EXPECTED_HEADER, KIND_BACKFILL, KIND_HEADER, KIND_RETRY, POSITION_HEADER,
    TAIL_HEADER, parse_header, slot_of,
};

/// Between two attempts at a broker that does not answer.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The lane's events in a stream.
#[derive(Debug, Clone)]
pub struct Events {
    /// The stream.
    pub stream: String,
    /// The lane's slot, where others publish to the stream too.
    pub slot: Option<String>,
    /// What the lane's events are published on.
    pub filters: Vec<String>,
    /// Up to here events without a position are the lane's: another relay published them.
    pub taken_over_sequence: u64,
}

impl Events {
    /// Whether the lane's events are published on this subject.
    fn has(&self, subject: &str) -> bool {
        self.filters.iter().any(|filter| covers(filter, subject))
    }
}

/// Reads the events from sequence `first` to `last`, both included. What the stream removes at its beginning meanwhile ends it.
pub fn source(
    connection: &ConnectionSettings,
    events: Events,
    range: (u64, u64),
    filter: Filter,
    to: Destination,
) -> Source {
    let stream = events.stream.clone();
    let replayed = Replayed { events, filter, to };
    let sourced = move |sequence, message: &Message| replayed.sourced(sequence, message);
    read(connection, stream, range, true, sourced)
}

/// Reads the messages from sequence `first` to `last`, both included, and makes of each what `sourced` says.
pub(super) fn read(
    connection: &ConnectionSettings,
    stream: String,
    (first, last): (u64, u64),
    whole: bool,
    sourced: impl Fn(u64, &Message) -> Result<Sourced, Gap> + Send + 'static,
) -> Source {
    let connection = connection.clone();
    on_thread(async move |sink: &mut Sink| {
        let reader = Reader {
            nats: Admin::connect(&connection).await?,
            stream,
            whole,
            sourced,
        };
        reader.read(first, last, sink).await
    })
}

/// What was to be read is gone.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Removed(String);

struct Reader<S> {
    nats: Admin,
    stream: String,
    /// What is removed before it was read was wanted.
    whole: bool,
    sourced: S,
}

/// What a replay makes of a message.
struct Replayed {
    events: Events,
    filter: Filter,
    to: Destination,
}

impl<S: Fn(u64, &Message) -> Result<Sourced, Gap>> Reader<S> {
    async fn read(&self, first: u64, last: u64, sink: &mut Sink) -> anyhow::Result<()> {
        let mut next = first;
        let mut progress_at = Instant::now();
        loop {
            let before = next;
            let Err(error) = self.read_from(&mut next, last, sink).await else {
                return Ok(());
            };
            if next > before {
                progress_at = Instant::now();
            }
            let ends = error.is::<Removed>() || error.is::<Denial>() || error.is::<Unwanted>();
            if ends || error.is::<Gap>() || progress_at.elapsed() > STUCK_LIMIT {
                return Err(error);
            }
            tracing::warn!("trying on behind message {}: {error:#}", next - 1);
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// From `next` on, which goes on with each message.
    async fn read_from(&self, next: &mut u64, last: u64, sink: &mut Sink) -> anyhow::Result<()> {
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: *next,
            },
            ..OrderedConfig::default()
        };
        let mut messages = StoredMessages::from(&self.nats, &self.stream, config).await?;
        while messages.left() > 0 && *next <= last {
            let (sequence, message) = messages.next().await?;
            if sequence > last {
                break;
            }
            // A consumer that was made anew after a lost connection may begin a little earlier.
            if sequence < *next {
                continue;
            }
            if self.whole && sequence > *next {
                self.ensure_held(*next, sequence).await?;
            }
            *next = sequence + 1;
            sink.put((self.sourced)(sequence, &message)?).await?;
        }
        Ok(())
    }

    /// Makes sure that what is absent before `sequence` was not removed at the stream's beginning: the range was held.
    async fn ensure_held(&self, next: u64, sequence: u64) -> anyhow::Result<()> {
        let stream = &self.stream;
        let info = find(&self.nats, stream).await?;
        match info {
            None => bail!(Removed(format!("stream {stream} was deleted meanwhile"))),
            Some(info) if info.state.first_seq >= sequence => bail!(Removed(format!(
                "stream {stream} has removed its messages {next} to {} before they were read",
                sequence - 1
            ))),
            Some(_) => Ok(()),
        }
    }
}

impl Replayed {
    /// # Errors
    /// It is asked for and cannot be published.
    fn sourced(&self, sequence: u64, message: &Message) -> Result<Sourced, Gap> {
        let headers = Headers::of(message);
        if !self.is_event(sequence, &message.subject, &headers) {
            return Ok(Sourced::Passed);
        }
        match self.item(sequence, message, &headers) {
            Ok(Asked::For(item)) => Ok(Sourced::Item(item)),
            Ok(Asked::Not) => Ok(Sourced::Passed),
            // What another relay has published is not made to tell it. In an event of this lane it is only not in the message.
            Ok(Asked::Untold(_)) if headers.get(POSITION_HEADER).is_none() => Ok(Sourced::Untold),
            Ok(Asked::Untold(why)) | Err(why) => Err(Gap::new(&self.name_of(sequence), &why)),
        }
    }

    /// Whether the lane's relay, or a command of its lane, has published it as an event.
    fn is_event(&self, sequence: u64, subject: &str, headers: &Headers<'_>) -> bool {
        if subject.starts_with("walrelay.") {
            return false;
        }
        let is_in_place = is_in_place(sequence, headers);
        let is_own = |slot: &str| self.events.slot.as_deref().is_none_or(|own| own == slot);
        let position = headers.get(POSITION_HEADER).map(parse_header);
        match (headers.get(KIND_HEADER), position) {
            (None, Some(Ok((slot, _)))) => is_in_place && is_own(slot),
            (None, _) => sequence <= self.events.taken_over_sequence && self.events.has(subject),
            (Some(KIND_BACKFILL | KIND_RETRY), _) => {
                let slot = slot_of(|name| headers.get(name));
                is_in_place && slot.is_some_and(is_own) && self.events.has(subject)
            }
            _ => false,
        }
    }

    /// What people call it.
    fn name_of(&self, sequence: u64) -> String {
        format!("message {sequence} of stream {}", self.events.stream)
    }

    /// Its message, where it is asked for.
    fn item(
        &self,
        sequence: u64,
        message: &Message,
        headers: &Headers<'_>,
    ) -> Result<Asked, String> {
        let original = Original {
            name: self.name_of(sequence),
            subject: &message.subject,
            header: &|name| headers.get(name),
            body: message.payload.clone(),
        };
        let mark = header_value(&self.to.replay, &self.events.stream, sequence);
        let lines = |lines: &mut String| headers.write(lines, is_of_event);
        self.to.item(&self.filter, original, &mark, lines)
    }
}

/// Whether a relay or a command of ours has put the message there. A consumer may have put a copy there, with headers of ours.
pub(super) fn is_in_place(sequence: u64, headers: &Headers<'_>) -> bool {
    let expected = headers.get(EXPECTED_HEADER);
    let expected = expected.and_then(|text| text.parse::<u64>().ok());
    expected.is_some_and(|expected| expected + 1 == sequence) || headers.get(BATCH_HEADER).is_some()
}

/// Whether a header is the event's own, and does not belong to the message's place in the stream.
fn is_of_event(name: &str, _value: &str) -> bool {
    !name.starts_with("Nats-") && ![KIND_HEADER, TAIL_HEADER].contains(&name)
}
