//! Which of a table's columns an event is probably made of, by their names and types.
//!
//! In: the table, and whether it is a further one of its lane. Out: the configuration to paste, or none where id or payload are not to be told. Guarantee: pure; what
//! is proposed is accepted.

use super::needs::needs;
use crate::pipeline::fields::{Field, Fields};
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
pub(super) fn find(table: &Table, field: Field) -> Option<&Column> {
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
    let find = |field| find(table, field);
    find(Field::Id)?;
    find(Field::Payload)?;
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
    for (field, ()) in Fields::<()>::default() {
        let (name, remark) = match find(field) {
            Some(column) => (column.name.as_str(), format!("  # {}", column.type_name)),
            None if field == Field::OccurredAt => ("", "  # the time of the commit".to_owned()),
            None => ("", String::new()),
        };
        lines.push(format!("{prefix}{field} = {}{remark}", quoted(name)));
    }
    if find(Field::EventType).is_none() {
        let subject = match find(Field::AggregateId) {
            Some(_) => "outbox.{aggregate_id:token}",
            None => "outbox.events",
        };
        if further.is_none() {
            lines.push("[nats]".to_owned());
        }
        lines.push(format!("subject = \"{subject}\""));
    }
    Some(lines.join("\n"))
}

/// As a string of TOML.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string always has a JSON form")
}
