//! Outbox tables as they are in the field: altered while the relay runs, of other columns, types and shapes.

use serde_json::{Value, json};

use crate::support::{Fixture, assert_exactly_once, insert_sql, uuid};

#[tokio::test]
async fn columns_come_and_go_while_the_relay_runs() {
    let mut fixture = Fixture::new().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let one = |n| insert_sql(n, n);
    let script = [
        one(1),
        "ALTER TABLE outbox_events ADD COLUMN tenant text NOT NULL DEFAULT 'a'".to_owned(),
        one(2),
        // In one transaction with rows before and behind it.
        format!(
            "BEGIN; {}; ALTER TABLE outbox_events ADD COLUMN trace bytea; {}; COMMIT",
            one(3),
            one(4)
        ),
        "ALTER TABLE outbox_events DROP COLUMN tenant".to_owned(),
        one(5),
        // Another order: the column comes back at the end.
        "BEGIN; ALTER TABLE outbox_events ADD COLUMN moved text;
         UPDATE outbox_events SET moved = event_type;
         ALTER TABLE outbox_events DROP COLUMN event_type;
         ALTER TABLE outbox_events RENAME moved TO event_type;
         ALTER TABLE outbox_events ALTER event_type SET NOT NULL; COMMIT"
            .to_owned(),
        one(6),
        "ALTER TABLE outbox_events ALTER event_version TYPE integer".to_owned(),
        one(7),
        "ALTER TABLE outbox_events ALTER event_type TYPE varchar(200), SET (fillfactor = 70)"
            .to_owned(),
        one(8),
    ];
    for sql in &script {
        fixture.sql.batch_execute(sql).await.unwrap();
    }
    fixture.holds(8).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    let ids: Vec<_> = stored.iter().map(|message| message.id()).collect();
    assert_exactly_once(&(1..=8).map(uuid).collect::<Vec<_>>(), &ids);
    for (index, message) in stored.iter().enumerate() {
        assert_eq!(message.field("payload_json"), json!({ "n": index + 1 }));
        assert_eq!(message.field("event_type"), "lesson.published.v1");
        assert_eq!(message.field("event_version"), 1);
    }
}

#[tokio::test]
async fn a_needed_column_that_goes_is_waited_for() {
    let mut fixture = Fixture::new().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 1).await;
    fixture.holds(1).await;
    let sql = "ALTER TABLE outbox_events RENAME payload_json TO body;
               INSERT INTO outbox_events (id, aggregate_id, event_type, body)
               VALUES (gen_random_uuid(), gen_random_uuid(), 'a.b', '{}')";
    fixture.sql.batch_execute(sql).await.unwrap();
    relay.logs("waiting: ").await;
    assert!(relay.log().contains("payload_json"), "{}", relay.log());
    assert_eq!(fixture.message_count().await, 1);
    relay.stop().await;
}

#[tokio::test]
async fn a_publication_that_goes_halts() {
    let mut fixture = Fixture::new().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 1).await;
    fixture.holds(1).await;
    let sql = format!("DROP PUBLICATION {}", fixture.name);
    fixture.sql.batch_execute(&sql).await.unwrap();
    fixture.insert(2, 2).await;
    assert_eq!(relay.ends().await, Some(4));
    assert!(relay.log().contains("publication"));
    assert_eq!(fixture.message_count().await, 1);
}

#[tokio::test]
async fn partitions_are_not_another_table_and_another_table_is() {
    const SAID: &str = "the publication also holds another table";
    let mut fixture = Fixture::bare().await;
    let table = include_str!("../../sql/outbox_events_partitioned.sql");
    fixture.sql.batch_execute(table).await.unwrap();
    fixture.setup().await;
    let mut relay = fixture.run();
    fixture.insert(1, 5).await;
    fixture.holds(5).await;
    assert!(!relay.log().contains(SAID), "{}", relay.log());
    // Its first row tells, and only that.
    let other = format!(
        "CREATE TABLE other (id int); ALTER PUBLICATION {} ADD TABLE other",
        fixture.name
    );
    fixture.sql.batch_execute(&other).await.unwrap();
    for sql in [
        "INSERT INTO other VALUES (1), (2)",
        "ALTER TABLE other ADD COLUMN note text",
        "INSERT INTO other VALUES (3)",
    ] {
        fixture.sql.batch_execute(sql).await.unwrap();
    }
    fixture.insert(6, 6).await;
    fixture.holds(6).await;
    relay.logs(SAID).await;
    relay.logs("public.other").await;
    assert_eq!(relay.log().matches(SAID).count(), 1, "{}", relay.log());
    relay.stop().await;
}

#[tokio::test]
async fn more_columns_in_another_order_and_of_other_types() {
    let mut fixture = Fixture::bare().await;
    let sql = r#"
        CREATE SCHEMA "My App";
        CREATE TYPE mood AS ENUM ('happy', 'sad');
        CREATE DOMAIN event_name AS text CHECK (value <> '');
        CREATE TABLE "My App"."Outbox" (
            note text, payload_json jsonb NOT NULL, tags text[], occurred_at timestamptz NOT NULL DEFAULT now(),
            mood mood, event_version smallint NOT NULL DEFAULT 1, place point, dropped int, event_type event_name NOT NULL,
            aggregate_id uuid NOT NULL, twice int GENERATED ALWAYS AS (event_version * 2) STORED,
            id uuid PRIMARY KEY, raw bytea, amount numeric(10, 2));
        ALTER TABLE "My App"."Outbox" DROP COLUMN dropped"#;
    fixture.sql.batch_execute(sql).await.unwrap();
    fixture.set("WALRELAY_POSTGRES_TABLE", r#""My App"."Outbox""#);
    fixture.setup().await;
    let relay = fixture.run();
    let sql = r#"INSERT INTO "My App"."Outbox"
        (id, aggregate_id, event_type, event_version, occurred_at, payload_json, note, tags, mood, place, raw, amount)
        VALUES ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000a', 'grüße.v2', 2,
        '2026-11-23 05:40:52.84613+01', '{"b": 1.0, "a": "\u00e4\n", "c": [null, 1e3]}', 'n', '{x,y}', 'sad', '(1,2)', '\x00ff', 12.50)"#;
    fixture.sql.batch_execute(sql).await.unwrap();
    fixture.holds(1).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    assert_eq!(
        stored[0].body,
        concat!(
            r#"{"id":"00000000-0000-0000-0000-000000000001","aggregate_id":"00000000-0000-0000-0000-00000000000a","#,
            r#""event_type":"grüße.v2","event_version":2,"occurred_at":"2026-11-23T04:40:52.846130Z","#,
            r#""payload_json":{"a": "ä\n", "b": 1.0, "c": [null, 1000]}}"#
        )
    );
    assert_eq!(stored[0].subject, format!("{}.grüße.v2", fixture.name));
}

#[tokio::test]
async fn payloads_of_type_json_and_text() {
    for (kind, payload) in [
        ("json", "{\"b\" : 1,  \"a\":2 }"),
        ("text", "{\"b\" : 1,  \"a\":2 }"),
    ] {
        let mut fixture = Fixture::bare().await;
        let table = include_str!("../../sql/0001_outbox_events.sql");
        let alter = format!("ALTER TABLE outbox_events ALTER payload_json TYPE {kind}");
        fixture.sql.batch_execute(table).await.unwrap();
        fixture.sql.batch_execute(&alter).await.unwrap();
        fixture.setup().await;
        let relay = fixture.run();
        let sql = format!(
            "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
             VALUES (gen_random_uuid(), gen_random_uuid(), 'a.b', '{payload}')"
        );
        fixture.sql.batch_execute(&sql).await.unwrap();
        fixture.holds(1).await;
        relay.stop().await;
        let stored = fixture.stored().await;
        assert_eq!(
            stored[0].field("payload_json"),
            json!({"a": 2, "b": 1}),
            "{kind}"
        );
        assert_eq!(stored[0].field("event_type"), "a.b");
    }
}

#[tokio::test]
async fn a_partitioned_table() {
    let mut fixture = Fixture::bare().await;
    let sql = include_str!("../../sql/outbox_events_partitioned.sql");
    fixture.sql.batch_execute(sql).await.unwrap();
    fixture.setup().await;
    let relay = fixture.run();
    fixture.insert(1, 10).await;
    // Into partitions of other days, and the one that catches the rest.
    let sql = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json, occurred_at)
               SELECT lpad(to_hex(n), 32, '0')::uuid, gen_random_uuid(), 'lesson.published.v1', '{}', now() + (n - 11) * interval '1 day'
               FROM generate_series(11, 30) AS n";
    fixture.sql.batch_execute(sql).await.unwrap();
    fixture.holds(30).await;
    let sql = "DROP TABLE outbox_events_default";
    fixture.sql.batch_execute(sql).await.unwrap();
    fixture.insert(31, 32).await;
    fixture.holds(32).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    let ids: Vec<_> = stored.iter().map(|message| message.id()).collect();
    assert_exactly_once(&(1..=32).map(uuid).collect::<Vec<_>>(), &ids);
    assert!(
        stored
            .iter()
            .all(|message| message.field("payload_json") != Value::Null)
    );
}

/// char(n) pads its values with spaces that do not count.
#[tokio::test]
async fn a_type_of_fixed_length() {
    let mut fixture = Fixture::bare().await;
    let table = "CREATE TABLE outbox_events (id char(40) PRIMARY KEY, aggregate_id uuid NOT NULL, event_type char(30) NOT NULL,
        event_version int NOT NULL, occurred_at timestamptz NOT NULL DEFAULT now(), payload_json jsonb NOT NULL)";
    fixture.sql.batch_execute(table).await.unwrap();
    let set_up = fixture.walrelay(&["setup"]).await.success();
    assert!(set_up.stdout.contains("0 to 255"), "{}", set_up.stdout);
    let relay = fixture.run();
    let insert =
        "INSERT INTO outbox_events (id, aggregate_id, event_type, event_version, payload_json)
        VALUES (lpad('1', 32, '0')::uuid::text, gen_random_uuid(), 'lesson.published.v1', 1, '{}')";
    fixture.sql.batch_execute(insert).await.unwrap();
    fixture.holds(1).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    assert_eq!(stored[0].id(), uuid(1));
    assert_eq!(
        stored[0].subject,
        format!("{}.lesson.published.v1", fixture.name)
    );
}
