//! Which of a table's columns an event is probably made of, by their names and types.
//!
//! In: the table, what is configured of it already. Out: the configuration to paste, or none where id or payload are not to be told. Guarantee: pure; what
//! is proposed is accepted.

use super::needs::needs;
use crate::pipeline::fields::{Field, Fields};
use crate::pipeline::mapping::Value;
use crate::pipeline::subject::Placeholder;
use crate::postgres::catalog::{Column, Table};
use crate::postgres::settings::PostgresSettings;

/// What outbox tables call each field, the likeliest first; capitals and underscores do not count.
const NAMES: Fields<&[&str]> = Fields {
    id: &[
        "id",
        "event_id",
        "message_id",
        "uuid",
        "guid",
        "outbox_id",
        "idempotency_key",
        "idempotent_key",
        "offset",
        "position",
        "sequence_number",
        "seq",
    ],
    aggregate_id: &[
        "aggregate_id",
        "entity_id",
        "stream_id",
        "correlation_id",
        "partition_key",
        "message_key",
        "key",
    ],
    event_type: &[
        "event_type",
        "type",
        "message_type",
        "event_name",
        "topic",
        "name",
        "subject",
        "kind",
        "routing_key",
        "destination",
        "event",
        "queue",
    ],
    event_version: &["event_version", "version", "schema_version"],
    occurred_at: &[
        "occurred_at",
        "occurred_on",
        "created_at",
        "created_on",
        "created",
        "added",
        "inserted_at",
        "sent_time",
        "enqueue_time",
        "timestamp",
        "time",
        "at",
    ],
    payload: &[
        "payload_json",
        "payload",
        "event_data",
        "data",
        "body",
        "content",
        "message",
        "value",
    ],
};

/// The columns of Debezium's outbox event router.
const DEBEZIUM: [&str; 5] = ["id", "aggregatetype", "aggregateid", "type", "payload"];

/// A name without what conventions differ in.
fn bare(name: &str) -> impl Iterator<Item = char> {
    name.chars()
        .filter(|c| *c != '_')
        .map(|c| c.to_ascii_lowercase())
}

/// The column that probably has the field.
fn find(table: &Table, field: Field) -> Option<&Column> {
    let fits = needs().get(field).fits;
    let by_name = NAMES.get(field).iter().find_map(|name| {
        let named = |column: &&Column| bare(&column.name).eq(bare(name)) && fits(column);
        table.columns.iter().find(named)
    });
    // The payload is the only column that can be one, however it is called.
    let is_json = |column: &&Column| matches!(column.base_type.as_str(), "jsonb" | "json");
    let mut json = table.columns.iter().filter(is_json);
    match (by_name, field) {
        (None, Field::Payload) => json.next().filter(|_| json.next().is_none()),
        (by_name, _) => by_name,
    }
}

/// What to paste.
pub(super) fn of(table: &Table, settings: &PostgresSettings) -> Option<String> {
    let further = settings.entry.as_ref();
    let has = |name: &str| table.columns.iter().any(|column| column.name == name);
    if DEBEZIUM.iter().all(|name| has(name)) {
        let whose = "this is the table of Debezium's outbox event router";
        return Some(match further {
            Some(name) => format!(
                "{whose}: put preset = \"debezium\" into the entry of {name} in [[source.tables]]"
            ),
            None => format!("{whose}: begin the configuration with preset = \"debezium\""),
        });
    }
    let fields = chosen(table, settings);
    fields.id.column()?;
    fields.payload.column()?;
    let columns = &table.columns;
    let renamed = further.filter(|name| **name != settings.table.to_string());
    let table = renamed.map(|_| format!("table = {}", quoted(&settings.table.to_string())));
    let (mut lines, prefix) = match further {
        Some(name) => (
            vec![
                format!("put this in place of the entry of {name}, as far as it is right:"),
                "[[source.tables]]".to_owned(),
                format!("name = {}", quoted(name)),
            ]
            .into_iter()
            .chain(table)
            .collect::<Vec<_>>(),
            "columns.",
        ),
        None => (
            vec![
                "put this into the configuration, as far as it is right:".to_owned(),
                "[columns]".to_owned(),
            ],
            "",
        ),
    };
    for (field, value) in fields.as_ref() {
        let written = match value {
            Value::Column(name) => quoted(name),
            Value::Constant(constant) => {
                format!("{{ value = {} }}", constant_text(field, constant))
            }
            Value::Absent => quoted(""),
        };
        let column = |name: Option<&str>| columns.iter().find(|column| Some(&*column.name) == name);
        let remark = match column(value.column()) {
            Some(column) => format!("  # {}", column.type_name),
            None if field == Field::OccurredAt => "  # the time of the commit".to_owned(),
            None => String::new(),
        };
        lines.push(format!("{prefix}{field} = {written}{remark}"));
    }
    if let Some(subject) = subject(&fields, settings) {
        if further.is_none() {
            lines.push("[nats]".to_owned());
        }
        lines.push(format!("subject = {}", quoted(&subject)));
    }
    Some(lines.join("\n"))
}

/// Where each field comes from: as it is configured, where that fits the table, else by name and type.
fn chosen(table: &Table, settings: &PostgresSettings) -> Fields<Value> {
    let needs = needs();
    let is_there = |field, name: &str| {
        let mut columns = table.columns.iter();
        columns.any(|column| column.name == name && (needs.get(field).fits)(column))
    };
    let stays = |field, value: &Value| value.column().is_none_or(|name| is_there(field, name));
    let taken: Vec<&str> = (settings.columns.as_ref().into_iter())
        .filter(|(field, value)| stays(*field, value))
        .filter_map(|(_, value)| value.column())
        .collect();
    let mut fields = settings.columns.clone();
    for (field, value) in settings.columns.as_ref() {
        if !stays(field, value) {
            let found = find(table, field).filter(|column| !taken.contains(&&*column.name));
            *fields.get_mut(field) =
                found.map_or(Value::Absent, |column| Value::Column(column.name.clone()));
        }
    }
    fields
}

/// A subject under the configured root, where the configured one names a field that the table does not have.
fn subject(fields: &Fields<Value>, settings: &PostgresSettings) -> Option<String> {
    let configured = &settings.subject;
    let is_absent = |field| *fields.get(field) == Value::Absent;
    let lacks = [
        (Field::EventType, Placeholder::EventType),
        (Field::AggregateId, Placeholder::AggregateId),
        (Field::EventVersion, Placeholder::EventVersion),
    ]
    .into_iter()
    .any(|(field, placeholder)| is_absent(field) && configured.names(placeholder));
    let filter = configured.filter();
    let root = filter.strip_suffix(".>").unwrap_or(&filter);
    let rest = match (is_absent(Field::EventType), is_absent(Field::AggregateId)) {
        (false, _) => "{event_type}",
        (true, false) => "{aggregate_id:token}",
        (true, true) => "events",
    };
    lacks.then(|| format!("{root}.{rest}"))
}

/// A version is a number.
fn constant_text(field: Field, constant: &str) -> String {
    match field {
        Field::EventVersion => constant.to_owned(),
        _ => quoted(constant),
    }
}

/// As a string of TOML.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string always has a JSON form")
}
