//! Which of a table's columns an event is probably made of, by their names and types.
//!
//! In: the table, what is configured of it already. Out: the configuration to paste, or none where id or payload are not to be told. Guarantee: pure; what
//! is proposed is accepted.

use super::needs::needs;
use crate::pipeline::fields::{Field, Fields};
use crate::pipeline::mapping::{Value, default_columns};
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
        "event_uuid",
        "event_guid",
        "eid",
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
        "aggregate",
        "agg",
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
        "event_time",
        "event_timestamp",
        "time",
        "at",
        "ts",
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

/// A column that probably has a field.
struct Found<'t> {
    column: &'t Column,
    /// Why, where its name does not say so.
    guessed: Option<&'static str>,
}

/// By what a column is sought, in this order: what a name tells goes before what is guessed of the columns that are left, and
/// what may be null, and makes dead letters then, comes last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sought {
    Named,
    Guessed,
    Nullable,
}

/// The column that probably has the field; none of those that others have.
fn find<'t>(table: &'t Table, field: Field, taken: &[String], sought: Sought) -> Option<Found<'t>> {
    let fits = needs().get(field).fits;
    let free = || {
        let columns = table.columns.iter();
        columns.filter(|column| fits(column) && !taken.contains(&column.name))
    };
    // A payload may be null by design, for tombstones.
    let is_sure = |column: &Column| column.not_null || field == Field::Payload;
    if sought != Sought::Guessed {
        let nullable = sought == Sought::Nullable;
        let by_name = NAMES.get(field).iter().find_map(|name| {
            let named = |column: &&Column| bare(&column.name).eq(bare(name));
            free().find(|column| named(column) && is_sure(column) != nullable)
        });
        return by_name.map(|column| Found {
            column,
            guessed: None,
        });
    }
    let guess = |is_it: &dyn Fn(&Column) -> bool, why| {
        let column = only(free().filter(|column| is_it(column)))?;
        let guessed = Some(why);
        Some(Found { column, guessed })
    };
    let is_json = |column: &Column| matches!(column.base_type.as_str(), "jsonb" | "json");
    match field {
        Field::Id => {
            let is_key = |column: &Column| table.primary_key == [column.name.as_str()];
            let is_uuid = |column: &Column| column.base_type == "uuid";
            guess(&is_key, "it is the primary key")
                .or_else(|| {
                    guess(
                        &|column| is_uuid(column) && column.not_null,
                        "the only uuid",
                    )
                })
                .or_else(|| guess(&is_uuid, "the only uuid"))
        }
        Field::Payload => guess(&is_json, "the only JSON")
            .or_else(|| guess(&tells_payload, "by a part of its name"))
            .or_else(|| guess(&|column| column.base_type == "bytea", "the only bytea"))
            .or_else(|| guess(&|column| column.base_type == "text", "the only text left")),
        // Where it may be null, it more probably tells what became of the row.
        Field::OccurredAt => {
            let is_time = |column: &Column| {
                column.not_null && matches!(column.base_type.as_str(), "timestamptz" | "timestamp")
            };
            guess(&is_time, "the only time")
        }
        Field::AggregateId | Field::EventType | Field::EventVersion => None,
    }
}

/// Whether a word of the column's name is one that payloads are called by.
fn tells_payload(column: &Column) -> bool {
    let name = column.name.to_ascii_lowercase();
    let tells = |word: &str| NAMES.payload.contains(&word) && word != "message";
    name.split('_').any(tells)
}

/// The one of them that there is.
fn only<'t>(mut columns: impl Iterator<Item = &'t Column>) -> Option<&'t Column> {
    columns.next().filter(|_| columns.next().is_none())
}

/// What to paste.
pub(super) fn of(table: &Table, settings: &PostgresSettings) -> Option<String> {
    let further = settings.entry.as_ref();
    let has = |name: &str| table.columns.iter().any(|column| column.name == name);
    let has_preset = settings.columns.aggregate_id.column() == Some(DEBEZIUM[2]);
    if DEBEZIUM.iter().all(|name| has(name)) && !has_preset {
        let whose = "this is the table of Debezium's outbox event router";
        return Some(match further {
            Some(name) => format!(
                "{whose}: put preset = \"debezium\" into the entry of {name} in [[source.tables]]"
            ),
            None => format!("{whose}: begin the configuration with preset = \"debezium\""),
        });
    }
    let (fields, guessed) = chosen(table, settings);
    let open = open(table, &fields)?;
    let choice = match open.is_empty() {
        true => "",
        false => ", with one of the lines that only a person can tell",
    };
    let subject = subject(table, &fields, settings);
    let (mut lines, prefix) = match further {
        Some(name) => {
            let whose = match &subject {
                Some(_) => "its columns and its subject",
                None => "its columns",
            };
            let lead = format!(
                "put these lines into the entry of {name} in [[source.tables]], in place of {whose}{choice}, as far as they are right:"
            );
            (vec![lead], "columns.")
        }
        None => {
            let lead = format!(
                "put this into the configuration, in place of [columns] where it is there{choice}, as far as it is right:"
            );
            (vec![lead, "[columns]".to_owned()], "")
        }
    };
    for (field, value) in fields.as_ref() {
        if let Some((_, columns)) = open.iter().find(|(open, _)| *open == field) {
            lines.extend(columns.iter().map(|column| {
                format!(
                    "# {prefix}{field} = {}  # {}",
                    quoted(&column.name),
                    column.type_name
                )
            }));
            continue;
        }
        let written = match value {
            Value::Column(name) => quoted(name),
            Value::Constant(constant) => {
                format!("{{ value = {} }}", constant_text(field, constant))
            }
            Value::Absent => quoted(""),
        };
        let remark = remark(table, settings, &fields, field, *guessed.get(field));
        lines.push(format!("{prefix}{field} = {written}{remark}"));
    }
    if let Some(subject) = subject {
        if further.is_none() {
            let nats = "[nats]  # where this section is there already, put the next line into it, in place of its subject";
            lines.push(nats.to_owned());
        }
        lines.push(format!("subject = {}", quoted(&subject)));
    }
    Some(lines.join("\n"))
}

/// What an event needs and several columns may be, each with those; none where no choice of a person's helps.
fn open<'t>(table: &'t Table, fields: &Fields<Value>) -> Option<Vec<(Field, Vec<&'t Column>)>> {
    let needs = needs();
    let is_taken = |column: &Column| {
        let mut values = fields.as_ref().into_iter();
        values.any(|(_, value)| value.column() == Some(&*column.name))
    };
    let lacking = [Field::Id, Field::Payload]
        .into_iter()
        .filter(|field| fields.get(*field).column().is_none());
    lacking
        .map(|field| {
            let may_be = |column: &&Column| (needs.get(field).fits)(column) && !is_taken(column);
            let columns: Vec<&Column> = table.columns.iter().filter(may_be).collect();
            (columns.len() > 1).then_some((field, columns))
        })
        .collect()
}

/// Where each field comes from: as it is configured, where that fits the table, else by name and type. Beside them, why a
/// column was guessed.
fn chosen(
    table: &Table,
    settings: &PostgresSettings,
) -> (Fields<Value>, Fields<Option<&'static str>>) {
    let needs = needs();
    let is_there = |field, name: &str| {
        let mut columns = table.columns.iter();
        columns.any(|column| column.name == name && (needs.get(field).fits)(column))
    };
    let own = default_columns();
    // Nobody has asked for what is the default.
    let is_left = |field, name: &str| {
        let is_default = own.get(field).column() == Some(name);
        let is_needed = !settings.may_be_null.contains(&field);
        field == Field::AggregateId && is_default && is_needed && may_be_null(table, name)
    };
    let stays = |field, value: &Value| {
        (value.column()).is_none_or(|name| is_there(field, name) && !is_left(field, name))
    };
    let mut taken: Vec<String> = (settings.columns.as_ref().into_iter())
        .filter(|(field, value)| stays(*field, value))
        .filter_map(|(_, value)| value.column().map(str::to_owned))
        .collect();
    let mut fields = settings.columns.clone();
    let mut guessed = Fields::<()>::default().map(|()| None);
    for sought in [Sought::Named, Sought::Guessed, Sought::Nullable] {
        for (field, value) in settings.columns.as_ref() {
            let is_settled = sought != Sought::Named && *fields.get(field) != Value::Absent;
            // An event needs none, and of most rows it may be null by design.
            let needs_none = field == Field::AggregateId && sought == Sought::Nullable;
            if stays(field, value) || is_settled || needs_none {
                continue;
            }
            *fields.get_mut(field) = match find(table, field, &taken, sought) {
                Some(found) => {
                    taken.push(found.column.name.clone());
                    *guessed.get_mut(field) = found.guessed;
                    Value::Column(found.column.name.clone())
                }
                None => Value::Absent,
            };
        }
    }
    (fields, guessed)
}

fn may_be_null(table: &Table, name: &str) -> bool {
    let mut columns = table.columns.iter();
    columns.any(|column| column.name == name && !column.not_null)
}

/// What is said beside a field's line.
fn remark(
    table: &Table,
    settings: &PostgresSettings,
    fields: &Fields<Value>,
    field: Field,
    guessed: Option<&'static str>,
) -> String {
    const NULLS: &str = "may be null, and a row with a null becomes a dead letter";
    let value = fields.get(field);
    let mut columns = table.columns.iter();
    if let Some(column) = columns.find(|column| Some(&*column.name) == value.column()) {
        let why = guessed.map(|why| format!(", a guess: {why}"));
        let rejects = !column.not_null && !settings.may_be_null.contains(&field);
        let nulls = rejects.then(|| format!(", {NULLS}"));
        let (why, nulls) = (why.unwrap_or_default(), nulls.unwrap_or_default());
        return format!("  # {}{why}{nulls}", column.type_name);
    }
    let taken = fields.as_ref().into_iter();
    let taken: Vec<String> = taken
        .filter_map(|(_, value)| value.column().map(str::to_owned))
        .collect();
    match (field, value) {
        (Field::OccurredAt, _) => "  # the time of the commit".to_owned(),
        (Field::AggregateId, Value::Absent) => find(table, field, &taken, Sought::Nullable)
            .map(|found| format!("  # not {}, which {NULLS}", quoted(&found.column.name)))
            .unwrap_or_default(),
        _ => String::new(),
    }
}

/// A subject under the configured root, where the configured one names a field or a column that the table does not have.
fn subject(table: &Table, fields: &Fields<Value>, settings: &PostgresSettings) -> Option<String> {
    let configured = &settings.subject;
    let is_absent = |field| *fields.get(field) == Value::Absent;
    let lacks_field = [
        (Field::EventType, Placeholder::EventType),
        (Field::AggregateId, Placeholder::AggregateId),
        (Field::EventVersion, Placeholder::EventVersion),
    ]
    .into_iter()
    .any(|(field, placeholder)| is_absent(field) && configured.names(placeholder));
    let is_there = |name: &str| table.columns.iter().any(|column| column.name == name);
    let lacking: Vec<&str> = configured
        .columns()
        .filter(|name| !is_there(name))
        .collect();
    if !lacks_field && lacking.is_empty() {
        return None;
    }
    // The same column under the name that it has here.
    let here = |name: &str| {
        let mut columns = table.columns.iter().map(|column| column.name.as_str());
        columns.find(|column| bare(column).eq(bare(name)))
    };
    let renamed = lacking
        .iter()
        .try_fold(configured.to_string(), |text, name| {
            let here = here(name).filter(|here| !here.contains(char::is_whitespace))?;
            let closed = text.replace(&format!("{{{name}}}"), &format!("{{{here}}}"));
            Some(closed.replace(&format!("{{{name}:"), &format!("{{{here}:")))
        });
    if let Some(renamed) = renamed.filter(|_| !lacks_field) {
        return Some(renamed);
    }
    let filter = configured.filter();
    let root = filter.strip_suffix(".>").unwrap_or(&filter);
    let rest = match (is_absent(Field::EventType), is_absent(Field::AggregateId)) {
        (false, _) => "{event_type}",
        (true, false) => "{aggregate_id:token}",
        (true, true) => "events",
    };
    Some(format!("{root}.{rest}"))
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
