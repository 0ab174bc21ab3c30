//! `walrelay config asyncapi`: what is published, as an AsyncAPI 3.0 document.
//!
//! In: settings. Out: JSON. Guarantee: pure. The configuration names columns and not their types, so where a type makes a
//! difference (`docs/tables.md`) the schema permits each form.

use serde_json::{Map, Value as Json, json};

use crate::nats::address::NatsAddress;
use crate::pipeline::dead_letter;
use crate::pipeline::fields::Field;
use crate::pipeline::mapping::{Extra, Format, HeaderValues, Mapping, Value};
use crate::pipeline::position::{
    DEAD_LETTER_HEADER, KIND_BACKFILL, KIND_DEAD_LETTER, KIND_DISCARDED, KIND_ERASED, KIND_FENCED,
    KIND_HEADER, KIND_REPLAY, KIND_RETRIED, KIND_RETRY, POSITION_HEADER, REASON_HEADER,
    TABLE_HEADER,
};
use crate::relay::settings::Settings;

/// The document.
pub(super) fn document(settings: &Settings) -> Json {
    let dead = dead_letter::subject(&settings.postgres.slot);
    let message = |name: &str| json!({"$ref": format!("#/components/messages/{name}")});
    let channel = |address: &str, name: &str, description: &str| json!({"address": address, "description": description, "messages": {(name): message(name)}});
    let sends = |channel: &str, name: &str| {
        json!({
            "action": "send",
            "channel": {"$ref": format!("#/channels/{channel}")},
            "messages": [{"$ref": format!("#/channels/{channel}/messages/{name}")}],
        })
    };
    let (mut channels, mut operations, mut messages) = (Map::new(), Map::new(), Map::new());
    for (index, table) in settings.tables().iter().enumerate() {
        // The lane's own table has the plain names.
        let number = match index {
            0 => String::new(),
            _ => (index + 1).to_string(),
        };
        let mapping = table.mapping();
        let (address, parameters) = address(&mapping.subject.to_string());
        let (events, name) = (format!("events{number}"), format!("event{number}"));
        let of_table = match index {
            0 => "Each event once, in commit order.".to_owned(),
            _ => format!("The same of table {}.", table.postgres.table),
        };
        let mut of_events = channel(&address, &name, &of_table);
        if !parameters.is_empty() {
            of_events["parameters"] = parameters.into();
        }
        channels.insert(events.clone(), of_events);
        operations.insert(format!("publishEvents{number}"), sends(&events, &name));
        messages.insert(name.clone(), event(&name, &mapping));
    }
    let mut letters = channel(
        &dead,
        "deadLetter",
        "Rows that cannot be published, in their place, and what has become of them.",
    );
    let mut sends_letters = sends("deadLetters", "deadLetter");
    messages.insert("deadLetter".to_owned(), letter());
    for (name, schema) in [("deadLetterMark", mark()), ("erasure", erasure())] {
        letters["messages"][name] = message(name);
        let of_channel = json!({"$ref": format!("#/channels/deadLetters/messages/{name}")});
        let all = sends_letters["messages"].as_array_mut();
        all.expect("a list").push(of_channel);
        messages.insert(name.to_owned(), schema);
    }
    channels.insert("deadLetters".to_owned(), letters);
    operations.insert("publishDeadLetters".to_owned(), sends_letters);
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": settings.name,
            "version": env!("CARGO_PKG_VERSION"),
            "description": format!(
                "Events of the table {} in the JetStream stream {}.",
                settings.postgres.table, settings.nats.stream
            ),
        },
        "servers": servers(&settings.nats.connection.servers),
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    })
}

fn servers(addresses: &[NatsAddress]) -> Json {
    let server = |(index, address): (usize, &NatsAddress)| {
        let text = address.to_string();
        let (protocol, host) = text.split_once("://").unwrap_or(("nats", &text));
        (
            format!("nats{}", index + 1),
            json!({"host": host, "protocol": protocol}),
        )
    };
    addresses
        .iter()
        .enumerate()
        .map(server)
        .collect::<Map<String, Json>>()
        .into()
}

/// The subject with its placeholders as parameters, whose names are letters, digits, `_` and `-`.
fn address(template: &str) -> (String, Map<String, Json>) {
    let mut address = String::new();
    let mut parameters = Map::new();
    for part in template.split_inclusive('}') {
        let Some((literal, placeholder)) = part.trim_end_matches('}').split_once('{') else {
            address.push_str(part);
            continue;
        };
        let (name, form) = placeholder.split_once(':').unwrap_or((placeholder, ""));
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let word: String = name
            .chars()
            .map(|c| if is_word(c) { c } else { '_' })
            .collect();
        let description = match form {
            "" => format!("{name} of the row: one token, or more where it has dots."),
            _ => format!("{name} of the row as one token."),
        };
        address.push_str(&format!("{literal}{{{word}}}"));
        parameters.insert(word, json!({"description": description}));
    }
    (address, parameters)
}

fn event(name: &str, mapping: &Mapping) -> Json {
    let message = &mapping.message;
    let is_enveloped = matches!(message.format, Format::Envelope | Format::CloudEventsJson);
    let content_type = match message.format {
        Format::CloudEventsJson => "application/cloudevents+json",
        _ if is_enveloped || !message.fields.is_empty() => "application/json",
        _ => "application/octet-stream",
    };
    let payload = match message.format {
        Format::Envelope => envelope(mapping),
        Format::CloudEventsJson => cloud_event(mapping),
        Format::Payload | Format::PayloadString if !message.fields.is_empty() => {
            let mut properties = Map::from_iter([("payload".to_owned(), json!({}))]);
            properties.extend(further(&message.fields));
            object(properties, &["payload".to_owned()])
        }
        Format::PayloadString => json!({"type": ["string", "null"]}),
        Format::Payload | Format::CloudEvents => json!({}),
    };
    json!({
        "name": name,
        "contentType": content_type,
        "headers": headers(mapping),
        "payload": payload,
    })
}

fn headers(mapping: &Mapping) -> Json {
    let message = &mapping.message;
    let mut properties = Map::new();
    let mut required = Vec::new();
    let mut add = |name: &str, is_required: bool, schema: Json| {
        properties.insert(name.to_owned(), schema);
        if is_required {
            required.push(name.to_owned());
        }
    };
    let text = || json!({"type": "string"});
    let position = json!({
        "type": "string",
        "description": "The relay's slot and the event's place: commit LSN and ordinal in its transaction. Only of a first publication.",
        "pattern": "^[a-z0-9_]+ [0-9A-F]+/[0-9A-F]+:[0-9]+$",
    });
    add(POSITION_HEADER, false, position);
    add(
        KIND_HEADER,
        false,
        json!({"type": "string", "enum": [KIND_REPLAY, KIND_RETRY, KIND_BACKFILL], "description": "Published again on request."}),
    );
    if let Some(table) = &message.table {
        add(TABLE_HEADER, true, json!({"const": table}));
    }
    let in_json = |of: &str| match message.header_values {
        HeaderValues::Json => json!({"type": "string", "description": format!("{of}, as JSON.")}),
        HeaderValues::Text => json!({"type": "string", "description": of}),
    };
    match message.format {
        Format::Payload | Format::PayloadString => add("id", true, in_json("The event's id")),
        Format::CloudEvents => {
            for name in ["specversion", "id", "source", "type", "time"] {
                add(&format!("ce-{name}"), true, text());
            }
            add("ce-datacontenttype", !message.tombstones, text());
            for (field, name) in [
                (Field::AggregateId, "ce-subject"),
                (Field::EventVersion, "ce-eventversion"),
            ] {
                if *mapping.columns.get(field) != Value::Absent {
                    add(name, field != Field::AggregateId, text());
                }
            }
            for Extra { name, .. } in &message.fields {
                add(&format!("ce-{name}"), false, text());
            }
        }
        Format::CloudEventsJson => add(
            "content-type",
            true,
            json!({"const": "application/cloudevents+json"}),
        ),
        Format::Envelope => {}
    }
    for Extra { name, column } in &message.headers {
        add(name, false, in_json(&format!("The column {column}")));
    }
    object(properties, &required)
}

fn id() -> Json {
    json!({"type": ["string", "integer"]})
}

fn moment() -> Json {
    json!({"type": "string", "format": "date-time"})
}

fn version() -> Json {
    json!({"type": "integer", "minimum": 0, "maximum": 255})
}

fn envelope(mapping: &Mapping) -> Json {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (field, name, schema) in [
        (Field::Id, "id", id()),
        (Field::AggregateId, "aggregate_id", id()),
        (Field::EventType, "event_type", json!({"type": "string"})),
        (Field::EventVersion, "event_version", version()),
        (Field::OccurredAt, "occurred_at", moment()),
    ] {
        // Without a column, the time is that of the commit.
        if *mapping.columns.get(field) != Value::Absent || field == Field::OccurredAt {
            properties.insert(name.to_owned(), schema);
            required.push(name.to_owned());
        }
    }
    properties.extend(further(&mapping.message.fields));
    with_payload(properties, &required, ["payload_json", "payload_base64"])
}

fn cloud_event(mapping: &Mapping) -> Json {
    let text = json!({"type": "string"});
    let mut properties = Map::new();
    let mut required = Vec::new();
    let mut add = |name: &str, schema: Json| {
        properties.insert(name.to_owned(), schema);
        required.push(name.to_owned());
    };
    add("specversion", json!({"const": "1.0"}));
    add("id", text.clone());
    add(
        "source",
        json!({"type": "string", "format": "uri-reference"}),
    );
    add("type", text.clone());
    add("time", moment());
    if *mapping.columns.get(Field::EventVersion) != Value::Absent {
        add("eventversion", version());
    }
    if *mapping.columns.get(Field::AggregateId) != Value::Absent {
        // Left out where the aggregate's id is empty.
        let subject = json!({"type": "string", "minLength": 1});
        properties.insert("subject".to_owned(), subject);
    }
    properties.insert("datacontenttype".to_owned(), text);
    properties.extend(further(&mapping.message.fields));
    match mapping.message.tombstones {
        true => object(properties, &required),
        false => with_payload(properties, &required, ["data", "data_base64"]),
    }
}

/// One of two names has the payload: bytes have one of their own.
fn with_payload(mut properties: Map<String, Json>, required: &[String], names: [&str; 2]) -> Json {
    let [json, base64] = names;
    properties.insert(json.to_owned(), json!({}));
    properties.insert(
        base64.to_owned(),
        json!({"type": "string", "contentEncoding": "base64"}),
    );
    let mut schema = object(properties, required);
    schema["oneOf"] = json!([{"required": [json]}, {"required": [base64]}]);
    schema
}

/// Of a column whose type only the table knows; left out where it is NULL.
fn further(extras: &[Extra]) -> impl Iterator<Item = (String, Json)> {
    extras.iter().map(|Extra { name, column }| {
        let description = format!("The column {column}; left out where it is NULL.");
        (name.clone(), json!({"description": description}))
    })
}

fn object(properties: Map<String, Json>, required: &[String]) -> Json {
    json!({"type": "object", "properties": properties, "required": required})
}

fn letter() -> Json {
    let text = || json!({"type": ["string", "null"]});
    json!({
        "name": "deadLetter",
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "properties": {
                (KIND_HEADER): {"const": KIND_DEAD_LETTER},
                (REASON_HEADER): {"type": "string"},
                (POSITION_HEADER): {"type": "string"},
                (TABLE_HEADER): {"type": "string", "description": "The further table of the lane that the row is of."},
            },
            "required": [KIND_HEADER, REASON_HEADER, POSITION_HEADER],
        },
        "payload": {
            "type": "object",
            "properties": {
                "id": text(),
                "reason": {"type": "string"},
                "position": {"type": "string"},
                "row": {
                    "type": ["object", "null"],
                    "description": "The row's columns as Postgres writes them.",
                    "additionalProperties": text(),
                },
            },
        },
    })
}

/// What says that a dead letter is retried or discarded.
fn mark() -> Json {
    let text = || json!({"type": ["string", "null"]});
    json!({
        "name": "deadLetterMark",
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "properties": {
                (KIND_HEADER): {"enum": [KIND_RETRIED, KIND_DISCARDED]},
                (DEAD_LETTER_HEADER): {"type": "string", "description": "The Walrelay-Position of the dead letter."},
                (TABLE_HEADER): {"type": "string", "description": "The further table of the lane that the row is of."},
            },
            "required": [KIND_HEADER, DEAD_LETTER_HEADER],
        },
        "payload": {
            "type": "object",
            "properties": {
                "id": text(),
                "position": {"type": "string"},
                "was": {"type": "string", "description": "What had become of it before."},
                "reason": {"type": ["string", "null"], "description": "Why it is discarded."},
                "table": {"type": "string"},
            },
            "required": ["id", "position", "was"],
        },
    })
}

/// What walrelay erase leaves where messages of an aggregate were, and walrelay reshard behind those of a command that was killed.
fn erasure() -> Json {
    json!({
        "name": "erasure",
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "properties": {(KIND_HEADER): {"enum": [KIND_ERASED, KIND_FENCED]}},
            "required": [KIND_HEADER],
        },
        "payload": {"type": "object"},
    })
}
