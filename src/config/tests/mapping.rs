//! `preset`, `[columns]` and `[message]`, as a file, a variable and `config show` have them.

use super::*;
use crate::pipeline::fields::Fields;
use crate::pipeline::mapping::{Extra, Format, HeaderValues, Value};

fn column(name: &str) -> Value {
    Value::Column(name.to_owned())
}

fn extra(name: &str, column: &str) -> Extra {
    Extra {
        name: name.to_owned(),
        column: column.to_owned(),
    }
}

#[test]
fn a_table_of_another_layout_is_described() {
    let file = r#"
        [nats]
        subject = "shop.{tenant}.{topic:token}"
        [columns]
        id = "uuid"
        aggregate_id = ""
        event_type = { value = "order" }
        event_version = { value = 3 }
        occurred_at = "created_at"
        payload = "body"
        [message.headers]
        traceparent = "trace"
        [message.fields]
        "a\"b" = "note"
    "#;
    let loaded = Case::new(file).load().unwrap();
    let expected = Fields {
        id: column("uuid"),
        aggregate_id: Value::Absent,
        event_type: Value::Constant("order".to_owned()),
        event_version: Value::Constant("3".to_owned()),
        occurred_at: column("created_at"),
        payload: column("body"),
    };
    let settings = loaded.lane().unwrap();
    assert_eq!(settings.postgres.columns, expected);
    assert_eq!(settings.message.headers, [extra("traceparent", "trace")]);
    assert_eq!(settings.message.fields, [extra("a\"b", "note")]);
    assert_eq!(
        settings.postgres.extra_columns,
        ["tenant", "topic", "trace", "note"]
    );
    // What `config show` prints can be pasted as variables, too.
    let mut case = Case::new("");
    for shown in &loaded.values {
        if matches!(shown.source, ValueOrigin::File { .. }) {
            case = case.env(&shown.key.entry().variable(), &shown.text);
        }
    }
    let again = case.load().unwrap().lane().unwrap().clone();
    assert_eq!(again.postgres.columns, settings.postgres.columns);
    assert_eq!(again.message, settings.message);
}

#[test]
fn a_preset_changes_defaults_and_nothing_else() {
    let loaded = Case::new("preset = 'debezium'\n[columns]\nevent_type = 'kind'")
        .load()
        .unwrap();
    let settings = loaded.lane().unwrap();
    let columns = &settings.postgres.columns;
    assert_eq!(columns.aggregate_id, column("aggregateid"));
    assert_eq!(columns.event_type, column("kind"));
    assert_eq!(columns.occurred_at, Value::Absent);
    assert_eq!(settings.message.format, Format::Payload);
    assert_eq!(settings.message.header_values, HeaderValues::Json);
    assert!(settings.message.tombstones);
    assert_eq!(
        settings.nats.subject.to_string(),
        "outbox.event.{aggregatetype}"
    );
    assert_eq!(
        shown(&loaded, Key::NatsSubject).source,
        ValueOrigin::FromPreset
    );
    assert_eq!(settings.postgres.extra_columns, ["aggregatetype"]);
}

/// Each row would be a dead letter, and nothing would say so before.
#[test]
fn what_can_be_no_subject_or_no_event_is_refused() {
    for (file, key) in [
        (
            "[columns]\nevent_type = { value = 'order placed' }",
            "columns.event_type",
        ),
        (
            "[columns]\nevent_type = { value = 'a..b' }",
            "columns.event_type",
        ),
        (
            "[columns]\nevent_type = { value = '' }",
            "columns.event_type",
        ),
        (
            "[columns]\naggregate_id = { value = '>' }\n[nats]\nsubject = 'a.{aggregate_id}'",
            "columns.aggregate_id",
        ),
        ("[columns]\npayload = 'id'", "columns.payload"),
        ("[columns]\nevent_type = 'id'", "columns.event_type"),
        (
            "[columns]\noccurred_at = 'event_version'",
            "columns.occurred_at",
        ),
        ("[columns]\nevent_version = '1'", "columns.event_version"),
    ] {
        match Case::new(file).load() {
            Err(ConfigError::Value { key: refused, .. }) => assert_eq!(refused, key, "{file}"),
            other => panic!("{file}: {other:?}"),
        }
    }
    let number = Case::new("[columns]\nevent_version = 1").load();
    let text = number.expect_err("a column is named in quotes").to_string();
    assert!(
        text.contains("`columns.event_version`") && text.contains("{ value = … }"),
        "{text}"
    );
    for file in [
        "[columns]\nevent_type = { value = 'order placed' }\n[nats]\nsubject = 'a.{event_type:token}'",
        "[columns]\nevent_type = { value = 'order placed' }\n[nats]\nsubject = 'a.{id}'",
        "[columns]\naggregate_id = 'id'",
        "[columns]\naggregate_id = 'event_type'",
    ] {
        Case::new(file).load().expect(file);
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused() {
    for (file, key) in [
        (
            "[message]\nformat = 'payload'\n[message.fields]\npayload = 'b'",
            "message.fields",
        ),
        (
            "[message]\nformat = 'payload'\n[message.headers]\nID = 'b'",
            "message.headers",
        ),
        (
            "[message]\nformat = 'cloudevents'\n[message.fields]\nTenant = 'b'",
            "message.fields",
        ),
        (
            "[message]\nformat = 'cloudevents'\n[message.fields]\nsubject = 'b'",
            "message.fields",
        ),
        (
            "[message]\nformat = 'cloudevents_json'\n[columns]\nevent_type = ''\n[nats]\nsubject = 'a'",
            "columns.event_type",
        ),
        ("[message]\nsource = '/app'", "message.source"),
        ("[columns]\nevent_type = ''", "nats.subject"),
        (
            "[nats]\nsubject = 'a.{aggregate_id}'\n[columns]\naggregate_id = ''",
            "nats.subject",
        ),
    ] {
        match Case::new(file).load() {
            Err(ConfigError::Value { key: refused, .. }) => assert_eq!(refused, key, "{file}"),
            other => panic!("{file}: {other:?}"),
        }
    }
}
