//! Messages in formats of others: as Debezium has them, and as CloudEvents.

use std::collections::BTreeMap;

use serde_json::Value;

use super::mapping::{headers, round_trip, with_table};
use crate::support::Fixture;

/// What Debezium's router makes of further columns, of a value as JSON, and of a row without a payload.
#[tokio::test]
async fn placed_columns_strings_and_tombstones_as_debezium_has_them() {
    let table = "CREATE TABLE events (id uuid PRIMARY KEY, aggregatetype text NOT NULL, aggregateid text, type text,
        payload jsonb, tenant text, amount numeric, paid boolean, at timestamptz)";
    let insert = |n: u8, payload: &str| {
        format!(
            "INSERT INTO events VALUES ('00000000-0000-0000-0000-00000000000{n}', 'order', NULL, NULL, {payload},
                 'a \"b', 1.50, true, '2026-11-28 07:05:32.5Z')"
        )
    };
    let [made, none] = [insert(1, r#"'{"n": 1}'"#), insert(2, "NULL")];
    let settings = [
        ("WALRELAY_PRESET", "debezium"),
        ("WALRELAY_NATS_SUBJECT", "NAME.event.{aggregatetype}"),
    ];
    let columns =
        "{ tenant = 'tenant', amount = 'amount', paid = 'paid', at = 'at', eventType = 'type' }";
    let with = |more: &[(&'static str, &'static str)]| [&settings[..], more].concat();

    let fixture = with_table(table, &with(&[("WALRELAY_MESSAGE_HEADERS", columns)])).await;
    let stored = round_trip(fixture, [&made, &none]).await;
    assert_eq!(stored[0].body, "");
    assert_eq!(stored[1].body, r#"{"n": 1}"#);
    let expected = BTreeMap::from([
        ("id", r#""00000000-0000-0000-0000-000000000001""#),
        ("tenant", r#""a \"b""#),
        ("amount", "1.50"),
        ("paid", "true"),
        ("at", r#""2026-11-28T07:05:32.500000Z""#),
    ]);
    assert_eq!(headers(&stored[1]), expected);

    for (format, fields, expected) in [
        ("payload_string", "{}", ["null", r#""{\"n\": 1}""#]),
        (
            "payload_string",
            "{ tenant = 'tenant' }",
            [
                r#"{"payload":null,"tenant":"a \"b"}"#,
                r#"{"payload":"{\"n\": 1}","tenant":"a \"b"}"#,
            ],
        ),
        (
            "payload",
            "{ amount = 'amount' }",
            [
                r#"{"payload":null,"amount":1.50}"#,
                r#"{"payload":{"n": 1},"amount":1.50}"#,
            ],
        ),
        ("cloudevents", "{}", ["", r#"{"n": 1}"#]),
    ] {
        let more = [
            ("WALRELAY_MESSAGE_FORMAT", format),
            ("WALRELAY_MESSAGE_FIELDS", fields),
            ("WALRELAY_COLUMNS_EVENT_TYPE", "aggregatetype"),
            ("WALRELAY_COLUMNS_AGGREGATE_ID", ""),
        ];
        let fixture = with_table(table, &with(&more)).await;
        let stored = round_trip(fixture, [&made, &none]).await;
        assert_eq!(stored.each_ref().map(|message| &*message.body), expected);
    }
}

#[tokio::test]
async fn cloud_events_in_both_modes() {
    let table = "CREATE TABLE events (id uuid PRIMARY KEY, aggregate_id text NOT NULL, event_type text NOT NULL,
        event_version smallint NOT NULL DEFAULT 1, occurred_at timestamptz NOT NULL DEFAULT '2026-11-28 07:05:32Z',
        payload_json jsonb NOT NULL, tenant text)";
    let insert = |n: u8| {
        format!(
            "INSERT INTO events (id, aggregate_id, event_type, payload_json, tenant)
             VALUES ('00000000-0000-0000-0000-00000000000{n}', 'ä 1', 'a.b', '{{\"n\": {n}}}', 'acme')"
        )
    };
    let settings = |format| {
        [
            ("WALRELAY_MESSAGE_FORMAT", format),
            ("WALRELAY_MESSAGE_SOURCE", "/shop"),
            ("WALRELAY_MESSAGE_FIELDS", "{ tenant = 'tenant' }"),
        ]
    };
    let fixture = with_table(table, &settings("cloudevents")).await;
    let stored = round_trip(fixture, [&insert(1), &insert(2)]).await;
    for (message, n) in stored.iter().zip([2, 1]) {
        assert_eq!(message.body, format!(r#"{{"n": {n}}}"#));
        let id = format!("00000000-0000-0000-0000-00000000000{n}");
        let expected = BTreeMap::from([
            ("ce-specversion", "1.0"),
            ("ce-id", id.as_str()),
            ("ce-source", "/shop"),
            ("ce-type", "a.b"),
            ("ce-time", "2026-11-28T07:05:32.000000Z"),
            ("ce-subject", "%C3%A4%201"),
            ("ce-eventversion", "1"),
            ("ce-tenant", "acme"),
            ("ce-datacontenttype", "application/json"),
        ]);
        assert_eq!(headers(message), expected);
    }
    let fixture = with_table(table, &settings("cloudevents_json")).await;
    let stored = round_trip(fixture, [&insert(1), &insert(2)]).await;
    for (message, n) in stored.iter().zip([2, 1]) {
        let content_type = ("content-type", "application/cloudevents+json");
        assert_eq!(headers(message), BTreeMap::from([content_type]));
        assert_eq!(
            message.body,
            format!(
                r#"{{"specversion":"1.0","id":"00000000-0000-0000-0000-00000000000{n}","source":"/shop","type":"a.b","time":"2026-11-28T07:05:32.000000Z","subject":"ä 1","eventversion":1,"tenant":"acme","datacontenttype":"application/json","data":{{"n": {n}}}}}"#
            )
        );
    }
}

/// What CloudEvents do not permit: an attribute that is empty, and types that are none of theirs.
#[tokio::test]
async fn cloud_events_have_attributes_of_their_own_types() {
    let table = "CREATE TABLE events (id bigserial PRIMARY KEY, aggregate_id text NOT NULL DEFAULT '', event_type text NOT NULL DEFAULT 'a',
        event_version smallint NOT NULL DEFAULT 1, occurred_at timestamptz NOT NULL DEFAULT '2026-11-28 07:05:32Z',
        payload_json jsonb NOT NULL DEFAULT '{}', price numeric DEFAULT 1.50, small int DEFAULT -7, big bigint DEFAULT 2147483648,
        tags jsonb DEFAULT '{\"a\": 1}', paid boolean DEFAULT true)";
    let insert = "INSERT INTO events DEFAULT VALUES";
    let fields = "{ price = 'price', small = 'small', big = 'big', tags = 'tags', paid = 'paid' }";
    let settings = |format| {
        [
            ("WALRELAY_MESSAGE_FORMAT", format),
            ("WALRELAY_MESSAGE_FIELDS", fields),
        ]
    };
    let fixture = with_table(table, &settings("cloudevents_json")).await;
    let [message, _] = round_trip(fixture, [insert, insert]).await;
    let body: Value = serde_json::from_str(&message.body).unwrap();
    assert_eq!(body.get("subject"), None, "{body}");
    let tags = r#"{"a": 1}"#;
    for (name, expected) in [
        ("price", Value::from("1.50")),
        ("small", Value::from(-7)),
        ("big", Value::from("2147483648")),
        ("tags", Value::from(tags)),
        ("paid", Value::from(true)),
    ] {
        assert_eq!(body[name], expected, "{name}: {body}");
    }
    let fixture = with_table(table, &settings("cloudevents")).await;
    let [message, _] = round_trip(fixture, [insert, insert]).await;
    let headers = headers(&message);
    assert_eq!(headers.get("ce-subject"), None, "{headers:?}");
    assert_eq!(headers["ce-price"], "1.50");
    assert_eq!(headers["ce-tags"], "{%22a%22:%201}");
}

/// A required attribute is not empty either: such a row becomes a dead letter, and what mends it is typed.
#[tokio::test]
async fn cloud_events_have_an_id_and_a_type() {
    let table = "CREATE TABLE events (id text PRIMARY KEY, aggregate_id text NOT NULL DEFAULT 'k', event_type text NOT NULL,
        event_version smallint NOT NULL DEFAULT 1, occurred_at timestamptz NOT NULL DEFAULT now(), payload_json jsonb NOT NULL DEFAULT '{}')";
    for format in ["cloudevents", "cloudevents_json"] {
        let settings = [
            ("WALRELAY_MESSAGE_FORMAT", format),
            ("WALRELAY_NATS_SUBJECT", "NAME.{aggregate_id}"),
        ];
        let mut fixture = with_table(table, &settings).await;
        fixture.setup().await;
        let relay = fixture.run();
        let insert = "INSERT INTO events (id, event_type) VALUES ('', 'a'), ('2', ''), ('3', 'a')";
        fixture.sql.batch_execute(insert).await.unwrap();
        fixture.holds(3).await;
        let list = fixture
            .walrelay(&["dead-letters", "list", "--json"])
            .await
            .success();
        let letters: Vec<Value> = (list.stdout.lines())
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(letters.len(), 2, "{}", list.stdout);
        for (letter, mended) in letters.iter().zip(["id=1", "event_type=a"]) {
            assert_eq!(letter["reason"], "empty", "{letter}");
            let position = letter["position"].as_str().unwrap();
            let retry = ["dead-letters", "retry", position, "--set", mended];
            fixture.walrelay(&retry).await.success();
        }
        let mut stored = fixture.stored().await;
        stored.retain(|message| !message.subject.starts_with("walrelay."));
        assert_eq!(stored.len(), 3, "{stored:?}");
        for message in &stored {
            let (id, of_type) = match format {
                "cloudevents" => {
                    let headers = headers(message);
                    (headers["ce-id"].to_owned(), headers["ce-type"].to_owned())
                }
                _ => (
                    message.field("id").as_str().unwrap().to_owned(),
                    message.field("type").as_str().unwrap().to_owned(),
                ),
            };
            assert!(!id.is_empty() && of_type == "a", "{message:?}");
        }
        relay.stop().await;
    }
}

/// The table, the subject, the body and the header of Debezium's outbox event router.
#[tokio::test]
async fn the_preset_for_debezium() {
    let fixture = with_table(
        "CREATE TABLE events (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL,
             type varchar(255) NOT NULL, payload jsonb)",
        &[
            ("WALRELAY_PRESET", "debezium"),
            ("WALRELAY_NATS_SUBJECT", "NAME.event.{aggregatetype}"),
        ],
    )
    .await;
    let name = fixture.name.clone();
    let insert = |n: u8| {
        format!(
            "INSERT INTO events VALUES ('00000000-0000-0000-0000-00000000000{n}', 'Order', '7', 'OrderMade', '{{\"id\": \"own\", \"n\": {n}}}')"
        )
    };
    let stored = round_trip(fixture, [&insert(1), &insert(2)]).await;
    for (message, n) in stored.iter().zip([2, 1]) {
        assert_eq!(message.body, format!(r#"{{"n": {n}, "id": "own"}}"#));
        let id = format!("00000000-0000-0000-0000-00000000000{n}");
        let quoted = format!("\"{id}\"");
        assert_eq!(headers(message), BTreeMap::from([("id", quoted.as_str())]));
        assert_eq!(message.subject, format!("{name}.event.Order"));
    }
}

/// The commit's time, which only the WAL has.
#[tokio::test]
async fn without_a_time_of_its_own_an_event_has_that_of_its_commit() {
    let mut fixture = with_table(
        "CREATE TABLE events (id uuid PRIMARY KEY, payload_json jsonb NOT NULL)",
        &[
            ("WALRELAY_COLUMNS_AGGREGATE_ID", ""),
            ("WALRELAY_COLUMNS_EVENT_TYPE", "{ value = \"made\" }"),
            ("WALRELAY_COLUMNS_EVENT_VERSION", ""),
            ("WALRELAY_COLUMNS_OCCURRED_AT", ""),
        ],
    )
    .await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let now = async |fixture: &Fixture| -> String {
        let sql = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
        fixture.sql.query_one(sql, &[]).await.unwrap().get(0)
    };
    let before = now(&fixture).await;
    let sql = "INSERT INTO events VALUES (gen_random_uuid(), '{}')";
    fixture.sql.batch_execute(sql).await.unwrap();
    let after = now(&fixture).await;
    fixture.holds(1).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    let committed = stored[0].field("occurred_at");
    let committed = committed.as_str().unwrap();
    assert!(
        *before <= *committed && *committed <= *after,
        "{before} {committed} {after}"
    );
    assert_eq!(stored[0].field("event_type"), "made");
    assert_eq!(stored[0].field("aggregate_id"), Value::Null);
}
