//! Which columns make an event, and what becomes of it: `preset`, `[columns]`, `[message]`.
//!
//! In: the text of each key; a constant and a table of names are TOML inline tables. Out: the pipeline's types.
//! Guarantee: what passes here fails later only for what the table has.

use std::borrow::Cow;

use toml::Table;

use super::checked::{checked, invalid, required};
use super::error::ConfigError;
use super::keys::Key;
use super::layers::{Layers, Value as Text};
use super::origin::ValueOrigin;
use crate::pipeline::event_id::ID_HEADERS;
use crate::pipeline::fields::{Field, Fields};
use crate::pipeline::mapping::{Extra, Format, HeaderValues, MessageSettings, Value};
use crate::pipeline::subject::{Placeholder, SubjectTemplate};

const KEYS: Fields<Key> = Fields {
    id: Key::ColumnsId,
    aggregate_id: Key::ColumnsAggregateId,
    event_type: Key::ColumnsEventType,
    event_version: Key::ColumnsEventVersion,
    occurred_at: Key::ColumnsOccurredAt,
    payload: Key::ColumnsPayload,
};

/// The keys of an envelope, which no further field may take.
const ENVELOPE: [&str; 7] = [
    "id",
    "aggregate_id",
    "event_type",
    "event_version",
    "occurred_at",
    "payload_json",
    "payload_base64",
];

/// The names of a CloudEvent that are taken (CloudEvents 1.0.2, 3.1), with the one for the version.
const CLOUD_EVENT: [&str; 11] = [
    "specversion",
    "id",
    "source",
    "type",
    "time",
    "subject",
    "datacontenttype",
    "dataschema",
    "data",
    "database64",
    "eventversion",
];

/// What a preset changes: keys that nothing else sets.
const DEBEZIUM: [(Key, &str); 10] = [
    (Key::ColumnsId, "id"),
    (Key::ColumnsAggregateId, "aggregateid"),
    (Key::ColumnsEventType, "type"),
    (Key::ColumnsEventVersion, ""),
    (Key::ColumnsOccurredAt, ""),
    (Key::ColumnsPayload, "payload"),
    (Key::NatsSubject, "outbox.event.{aggregatetype}"),
    (Key::MessageFormat, "payload"),
    (Key::MessageTombstones, "true"),
    (Key::MessageHeaderValues, "json"),
];

/// Sets what the preset says where nothing else has.
///
/// # Errors
/// A preset that there is not.
pub(super) fn apply_preset(layers: &mut Layers) -> Result<(), ConfigError> {
    let preset = checked(
        layers,
        Key::Preset,
        "walrelay or debezium",
        |text| match text {
            "walrelay" => Some(&[][..]),
            "debezium" => Some(&DEBEZIUM[..]),
            _ => None,
        },
    )?;
    for (key, text) in preset {
        layers.set(*key, (*text).to_owned(), ValueOrigin::FromPreset);
    }
    Ok(())
}

/// Where an event's fields come from.
///
/// # Errors
/// Neither a name nor a constant, or none where there must be one.
pub(super) fn columns(layers: &Layers) -> Result<Fields<Value>, ConfigError> {
    let mut columns = Fields::<()>::default().map(|()| Value::Absent);
    for (field, key) in KEYS {
        let text = required(layers, key);
        let value = match text.text.strip_prefix('{') {
            None if text.text.is_empty() => Value::Absent,
            None => Value::Column(text.text.clone()),
            Some(_) => Value::Constant(constant(&text.text).ok_or_else(|| {
                let expected =
                    "a column's name, { value = … } with a text or a whole number, or \"\"";
                invalid(key, text, expected.to_owned())
            })?),
        };
        check_value(field, key, text, &value)?;
        *columns.get_mut(field) = value;
    }
    check_apart(layers, &columns)?;
    Ok(columns)
}

/// Two fields never come from one column, but for an aggregate that each event is by itself, or that is named by the type.
fn check_apart(layers: &Layers, columns: &Fields<Value>) -> Result<(), ConfigError> {
    let may_share = |one, other| {
        matches!(
            (one, other),
            (Field::Id, Field::AggregateId) | (Field::AggregateId, Field::EventType)
        )
    };
    let named = |(field, value)| Value::column(value).map(|name| (field, name));
    let named: Vec<(Field, &str)> = columns.as_ref().into_iter().filter_map(named).collect();
    for (index, (field, name)) in named.iter().enumerate() {
        let mut before = named[..index].iter();
        let twice = before.find(|(one, other)| other == name && !may_share(*one, *field));
        if let Some((one, _)) = twice {
            let key = *KEYS.get(*field);
            let expected = format!("another column than that of {one}");
            return Err(invalid(key, required(layers, key), expected));
        }
    }
    Ok(())
}

fn constant(text: &str) -> Option<String> {
    let table = inline(text)?;
    let value = table.get("value").filter(|_| table.len() == 1)?;
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}

/// `{ a = "b" }` by itself is no document.
fn inline(text: &str) -> Option<Table> {
    let document: Table = format!("it = {text}").parse().ok()?;
    document.get("it")?.as_table().cloned()
}

fn check_value(field: Field, key: Key, text: &Text, value: &Value) -> Result<(), ConfigError> {
    let expected = match (field, value) {
        (Field::Id | Field::Payload, Value::Constant(_) | Value::Absent) => "a column's name",
        (Field::OccurredAt, Value::Constant(_)) => {
            "a column's name, or \"\" for the time of the commit"
        }
        (Field::EventVersion, Value::Constant(version)) if version.parse::<u8>().is_err() => {
            "a column's name, { value = … } with 0 to 255, or \"\""
        }
        // A number is a version, and no column is called so.
        (Field::EventVersion, Value::Column(name)) if name.parse::<u8>().is_ok() => {
            let expected = format!(
                "a column's name, {{ value = {name} }} for the same in each event, or \"\""
            );
            return Err(invalid(key, text, expected));
        }
        (Field::AggregateId | Field::EventType, Value::Constant(constant))
            if constant.is_empty() =>
        {
            "a column's name, { value = … } with a text that is not empty, or \"\" where there is none"
        }
        _ => return Ok(()),
    };
    Err(invalid(key, text, expected.to_owned()))
}

/// What becomes of an event. `columns` and `subject` must fit it.
///
/// # Errors
/// An unknown format, a name that is taken or that NATS or the format does not permit, a field that the subject or the
/// format needs and no column has.
pub(super) fn message(
    layers: &Layers,
    columns: &Fields<Value>,
    subject: &SubjectTemplate,
) -> Result<MessageSettings, ConfigError> {
    let format = one_of(layers, Key::MessageFormat, &Format::NAMES)?;
    let is_absent = |field| *columns.get(field) == Value::Absent;
    for (field, placeholder) in [
        (Field::EventType, Placeholder::EventType),
        (Field::AggregateId, Placeholder::AggregateId),
        (Field::EventVersion, Placeholder::EventVersion),
    ] {
        if is_absent(field) && subject.names(placeholder) {
            let expected = format!("without {{{field}}}, since columns.{field} is \"\"");
            return Err(invalid(
                Key::NatsSubject,
                required(layers, Key::NatsSubject),
                expected,
            ));
        }
    }
    check_constants(layers, columns, subject)?;
    if is_absent(Field::EventType)
        && matches!(format, Format::CloudEvents | Format::CloudEventsJson)
    {
        let expected = "set: a CloudEvent has a type".to_owned();
        let key = Key::ColumnsEventType;
        return Err(invalid(key, required(layers, key), expected));
    }
    Ok(MessageSettings {
        format,
        tombstones: checked(layers, Key::MessageTombstones, "true or false", |text| {
            text.parse().ok()
        })?,
        header_values: one_of(layers, Key::MessageHeaderValues, &HeaderValues::NAMES)?,
        headers: extras(layers, Key::MessageHeaders, |name| {
            header_problem(name, format)
        })?,
        fields: extras(layers, Key::MessageFields, |name| {
            field_problem(name, format)
        })?,
        source: checked(
            layers,
            Key::MessageSource,
            "a URI or a path, without spaces",
            |text| {
                let fits = |byte: u8| byte.is_ascii_graphic();
                (!text.is_empty() && text.bytes().all(fits)).then(|| text.to_owned())
            },
        )?,
        table: None,
    })
}

/// A constant that makes no subject would make each row a dead letter.
fn check_constants(
    layers: &Layers,
    columns: &Fields<Value>,
    subject: &SubjectTemplate,
) -> Result<(), ConfigError> {
    for (field, placeholder) in [
        (Field::EventType, Placeholder::EventType),
        (Field::AggregateId, Placeholder::AggregateId),
    ] {
        let Value::Constant(constant) = columns.get(field) else {
            continue;
        };
        let value = |of: Placeholder| {
            let text = match of == placeholder {
                true => constant.as_bytes(),
                false => b"x".as_slice(),
            };
            Some(Cow::Borrowed(text))
        };
        if let Err(error) = subject.render(value, &mut Vec::new()) {
            let key = *KEYS.get(field);
            let expected = format!(
                "a constant that can stand in nats.subject = \"{subject}\" ({error}), or give {{{field}:token}} there"
            );
            return Err(invalid(key, required(layers, key), expected));
        }
    }
    Ok(())
}

/// What CloudEvents name as their source where nothing is configured.
pub(super) fn source_of_name(name: &str) -> String {
    format!("/walrelay/{name}")
}

/// A source is given for CloudEvents alone: in any other format it would be left out in silence.
///
/// # Errors
/// None of the formats has one, and one is given.
pub(super) fn check_source(
    layers: &Layers,
    mut formats: impl Iterator<Item = Format>,
) -> Result<(), ConfigError> {
    let source = required(layers, Key::MessageSource);
    let has_source = |format| matches!(format, Format::CloudEvents | Format::CloudEventsJson);
    // As `config show` prints it.
    let is_derived = source.text == source_of_name(&required(layers, Key::Name).text);
    if is_derived || formats.any(has_source) {
        return Ok(());
    }
    let expected = "left out where message.format is not cloudevents or cloudevents_json: no other has a source";
    Err(invalid(Key::MessageSource, source, expected.to_owned()))
}

/// The template of the subjects.
///
/// # Errors
/// One that NATS or walrelay does not permit.
pub(super) fn subject(layers: &Layers) -> Result<SubjectTemplate, ConfigError> {
    let subject = required(layers, Key::NatsSubject);
    let parsed = subject.text.parse();
    parsed.map_err(|source| ConfigError::Subject {
        shown: subject.text.clone(),
        origin: subject.source.clone(),
        source,
    })
}

pub(super) fn one_of<T: Copy>(
    layers: &Layers,
    key: Key,
    names: &[(&str, T)],
) -> Result<T, ConfigError> {
    let all: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
    let expected = match &all[..] {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        all => all.concat(),
    };
    checked(layers, key, &expected, |text| {
        let found = names.iter().find(|(name, _)| *name == text);
        found.map(|(_, value)| *value)
    })
}

fn extras(
    layers: &Layers,
    key: Key,
    problem: impl Fn(&str) -> Option<&'static str>,
) -> Result<Vec<Extra>, ConfigError> {
    let text = required(layers, key);
    let wrong = |expected: String| invalid(key, text, expected);
    let table = inline(&text.text).ok_or_else(|| {
        wrong("a table of names and columns, such as { traceparent = \"trace_parent\" }".to_owned())
    })?;
    let mut extras: Vec<Extra> = Vec::new();
    for (name, column) in table {
        let column = column
            .as_str()
            .filter(|column| !column.is_empty())
            .ok_or_else(|| wrong(format!("a column's name for {name}")))?;
        if let Some(problem) = problem(&name) {
            return Err(wrong(format!("without {name}: {problem}")));
        }
        if extras
            .iter()
            .any(|other| other.name.eq_ignore_ascii_case(&name))
        {
            return Err(wrong(format!("without a second {name}")));
        }
        extras.push(Extra {
            name,
            column: column.to_owned(),
        });
    }
    Ok(extras)
}

fn header_problem(name: &str, format: Format) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    let is_token = |byte: u8| byte.is_ascii_graphic() && byte != b':';
    match format {
        _ if name.is_empty() || !name.bytes().all(is_token) => {
            Some("a header's name is ASCII without spaces and colons")
        }
        _ if lower.starts_with("nats-") => Some("Nats- is NATS' own"),
        _ if lower.starts_with("walrelay-") => Some("Walrelay- is walrelay's own"),
        _ if ID_HEADERS.contains(&&*lower) => Some("it tells the event's id"),
        Format::CloudEvents if lower.starts_with("ce-") => {
            Some("ce- belongs to the attributes; use message.fields")
        }
        Format::CloudEvents | Format::CloudEventsJson if lower == "content-type" => {
            Some("it tells the two modes of CloudEvents apart")
        }
        _ => None,
    }
}

fn field_problem(name: &str, format: Format) -> Option<&'static str> {
    match format {
        Format::Payload | Format::PayloadString => {
            (name == "payload").then_some("the payload stands there")
        }
        Format::Envelope => ENVELOPE.contains(&name).then_some("the envelope has it"),
        Format::CloudEvents | Format::CloudEventsJson => {
            let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            match name {
                _ if CLOUD_EVENT.contains(&name) => Some("a CloudEvent has it"),
                _ if !(1..=20).contains(&name.len()) || !name.bytes().all(fits) => {
                    Some("an attribute's name is 1 to 20 of a-z and 0-9")
                }
                _ => None,
            }
        }
    }
}
