//! What of a table's row becomes what of a message.
//!
//! In: the configuration, parsed. Out: [`Mapping`]. Guarantee: everything that does not depend on a row is settled here
//! and when a Relation message arrives; nothing is looked up by name for a row.

use super::fields::{Field, Fields};
use super::position::TABLE_HEADER;
use super::subject::{Placeholder, SubjectTemplate};

/// Where a field's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// The column of this name.
    Column(String),
    /// The same in every message.
    Constant(String),
    /// Nowhere: the message does without it; `occurred_at` is then the time of the commit.
    Absent,
}

impl Value {
    /// The column's name.
    pub fn column(&self) -> Option<&str> {
        match self {
            Value::Column(name) => Some(name),
            Value::Constant(_) | Value::Absent => None,
        }
    }
}

/// How a message is made of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// The JSON envelope of `docs/tables.md`.
    #[default]
    Envelope,
    /// The payload alone, or with the further fields; the event's id is in the header `id`.
    Payload,
    /// The same with the payload's text as one JSON string.
    PayloadString,
    /// CloudEvents 1.0 in binary mode: attributes in headers, the payload as the body.
    CloudEvents,
    /// CloudEvents 1.0 in structured mode: one JSON object.
    CloudEventsJson,
}

impl Format {
    /// All of them, with their names in the configuration.
    pub(crate) const NAMES: [(&str, Format); 5] = [
        ("envelope", Format::Envelope),
        ("payload", Format::Payload),
        ("payload_string", Format::PayloadString),
        ("cloudevents", Format::CloudEvents),
        ("cloudevents_json", Format::CloudEventsJson),
    ];
}

/// How the value of a column, and the event's id, stand in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeaderValues {
    /// As their text.
    #[default]
    Text,
    /// As JSON: a text in quotes.
    Json,
}

impl HeaderValues {
    /// All of them, with their names in the configuration.
    pub(crate) const NAMES: [(&str, HeaderValues); 2] =
        [("text", HeaderValues::Text), ("json", HeaderValues::Json)];
}

/// A column beyond the event's own, under a name in the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// The header, or the field of the envelope.
    pub name: String,
    /// The column; NULL leaves it out.
    pub column: String,
}

/// What a message holds beside the event's own fields, and in which form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MessageSettings {
    /// The form.
    pub format: Format,
    /// A row without a payload makes a message without one, instead of a dead letter.
    pub tombstones: bool,
    /// Headers made of columns.
    pub headers: Vec<Extra>,
    /// How those headers have their values; `id` too where the format is a payload's.
    pub header_values: HeaderValues,
    /// Fields of the envelope, or extension attributes of a CloudEvent, made of columns.
    pub fields: Vec<Extra>,
    /// `source` of a CloudEvent: a URI reference.
    pub source: String,
    /// The further table of the lane that it is of, as its header has it; none for the lane's own.
    pub table: Option<String>,
}

/// The line that tells a further table of the lane.
pub(super) fn table_line(table: &str) -> String {
    format!("{TABLE_HEADER}: {table}\r\n")
}

impl MessageSettings {
    /// The line that tells the table; empty for the lane's own.
    pub(super) fn table_header(&self) -> String {
        let table = self.table.as_deref();
        table.map_or_else(String::new, table_line)
    }
}

/// What of a table's row becomes what of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Where the event's own fields come from.
    pub columns: Fields<Value>,
    /// The subject.
    pub subject: SubjectTemplate,
    /// The rest.
    pub message: MessageSettings,
    /// No more than the six columns in the envelope.
    is_plain: bool,
    /// A message has headers of its table.
    has_headers: bool,
    extras: Vec<String>,
}

impl Mapping {
    /// Joins the parts.
    pub fn new(columns: Fields<Value>, subject: SubjectTemplate, message: MessageSettings) -> Self {
        let all_columns = columns
            .as_ref()
            .into_iter()
            .all(|(_, value)| value.column().is_some());
        let extras = subject
            .columns()
            .chain(message.headers.iter().map(|extra| extra.column.as_str()))
            .chain(message.fields.iter().map(|extra| extra.column.as_str()))
            .map(str::to_owned)
            .collect();
        Mapping {
            is_plain: all_columns
                && message.format == Format::Envelope
                && !message.tombstones
                && message.fields.is_empty(),
            has_headers: message.table.is_some() || !message.headers.is_empty(),
            columns,
            subject,
            message,
            extras,
        }
    }

    /// The columns beyond the event's own, in the order in which a row has them: the subject's, the headers', the fields'.
    pub(crate) fn extras(&self) -> &[String] {
        &self.extras
    }

    /// The names of all columns that a message is made of.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let own = self.columns.as_ref().into_iter();
        let own = own.filter_map(|(_, value)| value.column());
        own.chain(self.extras.iter().map(String::as_str))
    }

    /// The fields whose NULL makes no row a dead letter.
    pub(crate) fn may_be_null(&self) -> Vec<Field> {
        let is_payload = matches!(self.message.format, Format::Payload | Format::PayloadString);
        let is_unused = |placeholder| is_payload && !self.subject.names(placeholder);
        [
            (Field::AggregateId, Placeholder::AggregateId),
            (Field::EventType, Placeholder::EventType),
            (Field::EventVersion, Placeholder::EventVersion),
        ]
        .into_iter()
        .filter(|(_, placeholder)| is_unused(*placeholder))
        .map(|(field, _)| field)
        .chain(is_payload.then_some(Field::OccurredAt))
        .chain(self.message.tombstones.then_some(Field::Payload))
        .collect()
    }

    /// Where the headers' columns begin in [`Self::extras`].
    pub(super) fn first_header(&self) -> usize {
        self.subject.columns().count()
    }

    /// Where the fields' columns begin in [`Self::extras`].
    pub(super) fn first_field(&self) -> usize {
        self.first_header() + self.message.headers.len()
    }

    /// Whether a message has headers of its table.
    pub(super) fn has_headers(&self) -> bool {
        self.has_headers
    }

    /// Whether the envelope holds the six columns and nothing else.
    pub(super) fn is_plain(&self) -> bool {
        self.is_plain
    }
}

/// The columns of the table that `walrelay setup` makes.
pub fn default_columns() -> Fields<Value> {
    Fields {
        id: "id",
        aggregate_id: "aggregate_id",
        event_type: "event_type",
        event_version: "event_version",
        occurred_at: "occurred_at",
        payload: "payload_json",
    }
    .map(|name| Value::Column(name.to_owned()))
}

impl Default for Mapping {
    /// That table in its envelope, under `outbox.{event_type}`.
    fn default() -> Self {
        let subject = "outbox.{event_type}".parse().expect("a template");
        Mapping::new(default_columns(), subject, MessageSettings::default())
    }
}
