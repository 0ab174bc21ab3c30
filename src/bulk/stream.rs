//! A stream's events as a source.
//!
//! In: a lane's stream, between which sequences, which events. Out: them in the stream's order, under other subjects and marked as
//! a replay. Guarantees: bodies byte for byte; what is no event of the lane is passed over; memory does not grow with their number.

use std::borrow::Cow;

use anyhow::{Context as _, ensure};
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use tokio::sync::mpsc;

use super::replayed::header_value;
use super::{AHEAD, Item, Source, Sourced};
use crate::nats::admin::Admin;
use crate::nats::stored::{StoredMessages, header};
use crate::nats::stream::{covers, find};
use crate::pipeline::position::{
    BATCH_HEADER, EXPECTED_HEADER, KIND_BACKFILL, KIND_HEADER, KIND_REPLAY, KIND_RETRY,
    POSITION_HEADER, REPLAY_HEADER, TAIL_HEADER, parse_header,
};
use crate::pipeline::stored_event::StoredEvent;
use crate::pipeline::subject::{Placeholder, SubjectTemplate};

/// What stands for the subject of the event's message in a template.
const SUBJECT_PLACEHOLDER: &str = "subject";

/// Which events.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of one of these types; any where there is none.
    pub event_types: Vec<String>,
    /// Of one of these aggregates; any where there is none.
    pub aggregate_ids: Vec<String>,
}

/// Where the events go.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The replay's name.
    pub replay: String,
    /// Their subjects; [`is_of_messages`] says which templates serve.
    pub subject: SubjectTemplate,
    /// What the stream takes that they go to.
    pub subjects: Vec<String>,
}

/// The lane's events in a stream.
#[derive(Debug, Clone)]
pub struct Events {
    /// The stream.
    pub stream: String,
    /// The lane's slot, where others publish to the stream too.
    pub slot: Option<String>,
    /// What the lane's events are published on.
    pub filter: String,
    /// Up to here events without a position are the lane's: another relay published them.
    pub taken_over_sequence: u64,
}

/// Whether a template can be filled from messages alone.
pub fn is_of_messages(template: &SubjectTemplate) -> bool {
    template.columns().all(|name| name == SUBJECT_PLACEHOLDER)
}

/// Whether a template asks for more of an event than the subject of its message.
pub fn asks_for_fields(template: &SubjectTemplate) -> bool {
    [
        Placeholder::Id,
        Placeholder::EventType,
        Placeholder::AggregateId,
        Placeholder::EventVersion,
    ]
    .into_iter()
    .any(|field| template.names(field))
}

/// What a stream must take for these templates: `replay.{subject}` gives `replay.outbox.>` for events on `outbox.>`.
pub fn filter(template: &SubjectTemplate, events: &str) -> String {
    let text = template.to_string();
    match text.strip_suffix(&format!("{{{SUBJECT_PLACEHOLDER}}}")) {
        Some(root) if !root.contains('{') => format!("{root}{events}"),
        _ => template.filter(),
    }
}

/// Reads the events from sequence `first` to `last`, both included.
pub fn source(
    nats: &Admin,
    events: Events,
    (first, last): (u64, u64),
    filter: Filter,
    to: Destination,
) -> Source {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let reader = Reader {
        nats: nats.clone(),
        events,
        filter,
        to,
    };
    tokio::spawn(async move {
        if let Err(error) = reader.read(first, last, &sender).await {
            // With nobody there to take it, nobody misses it.
            let _ = sender.send(Err(error)).await;
        }
    });
    receiver
}

struct Reader {
    nats: Admin,
    events: Events,
    filter: Filter,
    to: Destination,
}

impl Reader {
    async fn read(
        &self,
        first: u64,
        last: u64,
        sender: &mpsc::Sender<anyhow::Result<Sourced>>,
    ) -> anyhow::Result<()> {
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: first,
            },
            ..OrderedConfig::default()
        };
        let mut messages = StoredMessages::from(&self.nats, &self.events.stream, config).await?;
        let mut next = first;
        while messages.left() > 0 && next <= last {
            let (sequence, message) = messages.next().await?;
            if sequence > last {
                break;
            }
            // A consumer that was made anew after a lost connection may begin a little earlier.
            if sequence < next {
                continue;
            }
            if sequence > next {
                self.ensure_held(next, sequence).await?;
            }
            next = sequence + 1;
            if sender
                .send(Ok(self.sourced(sequence, &message)))
                .await
                .is_err()
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Makes sure that what is absent before `sequence` was not removed at the stream's beginning: the range was held.
    async fn ensure_held(&self, next: u64, sequence: u64) -> anyhow::Result<()> {
        let stream = &self.events.stream;
        let info = find(&self.nats, stream).await?;
        let info = info.with_context(|| format!("stream {stream} was deleted meanwhile"))?;
        ensure!(
            info.state.first_seq < sequence,
            "stream {stream} has removed its messages {next} to {} before they were read",
            sequence - 1
        );
        Ok(())
    }

    fn sourced(&self, sequence: u64, message: &Message) -> Sourced {
        if !self.is_event(sequence, message) {
            return Sourced::Passed;
        }
        match self.item(sequence, message) {
            Ok(Some(item)) => Sourced::Item(item),
            Ok(None) => Sourced::Passed,
            Err(why) => Sourced::Rejected {
                name: format!("message {sequence}"),
                why,
            },
        }
    }

    /// Whether the lane's relay, or a command of its lane, has published it as an event.
    fn is_event(&self, sequence: u64, message: &Message) -> bool {
        let subject = message.subject.as_str();
        if subject.starts_with("walrelay.") {
            return false;
        }
        let expected = header(message, EXPECTED_HEADER).and_then(|text| text.parse::<u64>().ok());
        // A consumer may have put a copy there, with headers of ours.
        let is_in_place = expected.is_some_and(|expected| expected + 1 == sequence)
            || header(message, BATCH_HEADER).is_some();
        let is_own = |slot: &str| self.events.slot.as_deref().is_none_or(|own| own == slot);
        let position = header(message, POSITION_HEADER).map(parse_header);
        match (header(message, KIND_HEADER), position) {
            (None, Some(Ok((slot, _)))) => is_in_place && is_own(slot),
            (None, _) => {
                sequence <= self.events.taken_over_sequence && covers(&self.events.filter, subject)
            }
            (Some(KIND_BACKFILL | KIND_RETRY), _) => {
                is_in_place && covers(&self.events.filter, subject)
            }
            _ => false,
        }
    }

    /// Its message; none where it is not asked for.
    fn item(&self, sequence: u64, message: &Message) -> Result<Option<Item>, String> {
        let Filter {
            event_types,
            aggregate_ids,
        } = &self.filter;
        let is_plain = event_types.is_empty()
            && aggregate_ids.is_empty()
            && !asks_for_fields(&self.to.subject);
        let event = match is_plain {
            true => StoredEvent::default(),
            false => {
                let header = |name: &str| header(message, name).map(str::to_owned);
                StoredEvent::read(header, &message.payload)
            }
        };
        if !is_one_of(event_types, event.event_type.as_deref(), "type")?
            || !is_one_of(aggregate_ids, event.aggregate_id.as_deref(), "aggregate")?
        {
            return Ok(None);
        }
        let mut subject = Vec::new();
        let value = |placeholder| value(&event, message, placeholder);
        let rendered = self.to.subject.render(value, &mut subject);
        rendered.map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&subject);
        if !self.to.subjects.iter().any(|taken| covers(taken, &text)) {
            return Err(format!("the stream that it goes to does not take {text}"));
        }
        Ok(Some(Item {
            name: format!("message {sequence}"),
            subject,
            headers: self.headers(sequence, message).into_bytes(),
            body: message.payload.clone(),
        }))
    }

    /// Its own headers, but for those that belong to its place in the stream; and what marks it.
    fn headers(&self, sequence: u64, message: &Message) -> String {
        let replay = header_value(&self.to.replay, &self.events.stream, sequence);
        let mut lines = format!("{KIND_HEADER}: {KIND_REPLAY}\r\n{REPLAY_HEADER}: {replay}\r\n");
        for (name, values) in message.headers.iter().flat_map(|headers| headers.iter()) {
            let name: &str = name.as_ref();
            let is_of_place =
                name.starts_with("Nats-") || [KIND_HEADER, TAIL_HEADER].contains(&name);
            for value in values.iter().filter(|_| !is_of_place) {
                lines.push_str(&format!("{name}: {}\r\n", value.as_str()));
            }
        }
        lines
    }
}

/// Whether an event's value is one of those that are asked for.
fn is_one_of(wanted: &[String], value: Option<&str>, what: &str) -> Result<bool, String> {
    match value {
        _ if wanted.is_empty() => Ok(true),
        Some(value) => Ok(wanted.iter().any(|wanted| wanted == value)),
        None => Err(format!("it does not tell its {what}")),
    }
}

fn value<'m>(
    event: &'m StoredEvent,
    message: &'m Message,
    placeholder: Placeholder,
) -> Option<Cow<'m, [u8]>> {
    let text = match placeholder {
        Placeholder::Id => Cow::Borrowed(event.id.as_deref()?),
        Placeholder::EventType => Cow::Borrowed(event.event_type.as_deref()?),
        Placeholder::AggregateId => Cow::Borrowed(event.aggregate_id.as_deref()?),
        Placeholder::EventVersion => Cow::Owned(event.event_version?.to_string()),
        Placeholder::Column(_) => Cow::Borrowed(message.subject.as_str()),
    };
    Some(match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_takes_what_a_template_gives() {
        for (template, expected) in [
            ("replay.{subject}", "replay.outbox.>"),
            ("replay.{event_type}", "replay.>"),
            ("again.all", "again.all"),
            ("again.{event_type}.{subject}", "again.>"),
        ] {
            let template: SubjectTemplate = template.parse().expect("a template");
            assert_eq!(filter(&template, "outbox.>"), expected);
            assert!(is_of_messages(&template));
        }
        let template: SubjectTemplate = "replay.{tenant}".parse().expect("a template");
        assert!(!is_of_messages(&template));
    }
}
