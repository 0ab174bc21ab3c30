//! An event's message under another subject, marked as a replay.
//!
//! In: a message as it was published, or would be; which events are wanted; a template. Out: the message to publish, or why there is
//! none. Guarantee: the body byte for byte. Nothing here waits.

use std::borrow::Cow;

use bytes::Bytes;

use super::Item;
use crate::nats::filters::covers;
use crate::pipeline::position::{KIND_HEADER, KIND_REPLAY, REPLAY_HEADER};
use crate::pipeline::stored_event::StoredEvent;
use crate::pipeline::subject::{Placeholder, SubjectTemplate};

/// What stands for the subject of the event's message in a template.
const SUBJECT_PLACEHOLDER: &str = "subject";

/// What the headers of a message have, as a rule, and a little more.
const HEADERS_BYTES: usize = 256;

/// Which events.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of one of these types, as [`is_of_type`] takes them; any where there is none.
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
    /// The stream that they go to.
    pub stream: String,
    /// What it takes.
    pub subjects: Vec<String>,
    /// What it takes where a replay makes it.
    pub subjects_to_create: Vec<String>,
}

/// A message as it was published.
pub struct Original<'m> {
    /// What people call it.
    pub name: String,
    /// Its subject.
    pub subject: &'m str,
    /// The value of one of its headers.
    pub header: &'m dyn Fn(&str) -> Option<&'m str>,
    /// Its body.
    pub body: Bytes,
}

/// Whether an event is asked for.
#[derive(Debug)]
pub enum Asked {
    /// The message to publish.
    For(Item),
    /// It is not.
    Not,
    /// The message does not tell what is asked by; how to do without.
    Untold(String),
}

impl Destination {
    /// The message to publish where it is asked for, with `mark` as the value of [`REPLAY_HEADER`]; `lines` writes the original's own
    /// headers behind it.
    ///
    /// # Errors
    /// Why there is none.
    pub fn item(
        &self,
        filter: &Filter,
        original: Original<'_>,
        mark: &str,
        lines: impl FnOnce(&mut String),
    ) -> Result<Asked, String> {
        let Filter {
            event_types,
            aggregate_ids,
        } = filter;
        let is_plain =
            event_types.is_empty() && aggregate_ids.is_empty() && !asks_for_fields(&self.subject);
        let event = match is_plain {
            true => StoredEvent::default(),
            false => {
                let header = |name: &str| (original.header)(name).map(str::to_owned);
                StoredEvent::read(header, &original.body)
            }
        };
        let by_type = is_one_of(event_types, event.event_type.as_deref(), "type", is_of_type);
        let aggregate_id = event.aggregate_id.as_deref();
        let is_same = |wanted: &str, found: &str| wanted == found;
        let by_aggregate = is_one_of(aggregate_ids, aggregate_id, "aggregate", is_same);
        match (by_type, by_aggregate) {
            (Ok(true), Ok(true)) => {}
            (Ok(false), _) | (_, Ok(false)) => return Ok(Asked::Not),
            (Err(why), _) | (_, Err(why)) => return Ok(Asked::Untold(why)),
        }
        let mut subject = Vec::new();
        let value = |placeholder| value(&event, original.subject, placeholder);
        let rendered = self.subject.render(value, &mut subject);
        rendered.map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&subject);
        if !self.subjects.iter().any(|taken| covers(taken, &text)) {
            return Err(self.takes_not(&text));
        }
        let mut headers = String::with_capacity(HEADERS_BYTES);
        for part in [
            KIND_HEADER,
            ": ",
            KIND_REPLAY,
            "\r\n",
            REPLAY_HEADER,
            ": ",
            mark,
            "\r\n",
        ] {
            headers.push_str(part);
        }
        lines(&mut headers);
        Ok(Asked::For(Item {
            name: original.name,
            subject,
            headers: headers.into_bytes(),
            body: original.body,
        }))
    }
}

impl Destination {
    /// With the command that has the stream take this subject, and those like it.
    fn takes_not(&self, subject: &str) -> String {
        let mut tokens = subject.splitn(3, '.');
        let known = self.subjects_to_create.iter();
        let known = known.filter(|known| covers(known, subject)).max();
        let begins = match (tokens.next(), tokens.next(), tokens.next()) {
            (Some(first), Some(second), Some(_)) => format!("{first}.{second}.>"),
            _ => subject.to_owned(),
        };
        let wanted = known.cloned().unwrap_or(begins);
        let kept = self.subjects.iter().filter(|kept| !covers(&wanted, kept));
        let all: Vec<String> = kept
            .chain([&wanted])
            .map(|subject| format!("--subjects='{subject}'"))
            .collect();
        format!(
            "stream {name} does not take {subject}: run nats stream edit {name} {}",
            all.join(" "),
            name = self.stream
        )
    }
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

/// Whether an event's type is the one that is wanted, or begins as that does up to a star at its end.
pub fn is_of_type(wanted: &str, found: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(start) => found.starts_with(start),
        None => wanted == found,
    }
}

/// Whether an event's value is one of those that are asked for.
fn is_one_of(
    wanted: &[String],
    value: Option<&str>,
    what: &str,
    is: impl Fn(&str, &str) -> bool,
) -> Result<bool, String> {
    match value {
        _ if wanted.is_empty() => Ok(true),
        Some(value) => Ok(wanted.iter().any(|wanted| is(wanted, value))),
        None => Err(format!(
            "it does not tell its {what}: leave the filter by {what} out, or begin behind it with --from"
        )),
    }
}

fn value<'m>(
    event: &'m StoredEvent,
    subject: &'m str,
    placeholder: Placeholder,
) -> Option<Cow<'m, [u8]>> {
    let text = match placeholder {
        Placeholder::Id => Cow::Borrowed(event.id.as_deref()?),
        Placeholder::EventType => Cow::Borrowed(event.event_type.as_deref()?),
        Placeholder::AggregateId => Cow::Borrowed(event.aggregate_id.as_deref()?),
        Placeholder::EventVersion => Cow::Owned(event.event_version?.to_string()),
        Placeholder::Column(_) => Cow::Borrowed(subject),
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
