//! Events without a table: messages of the WAL, among rows of the same transaction.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Fixture, Relay, Stored, uuid};

const OUTBOX_MESSAGE: &str = include_str!("../../sql/outbox_message.sql");

async fn with_messages() -> Fixture {
    let mut fixture = Fixture::bare().await;
    fixture.set("WALRELAY_SOURCE_MESSAGES", "outbox");
    fixture.setup().await;
    fixture.sql.batch_execute(OUTBOX_MESSAGE).await.unwrap();
    fixture
}

/// A row, then a message, then a row, … in one transaction.
fn transaction(first: u64, last: u64) -> String {
    let one = |n: u64| match n % 2 {
        0 => format!(
            "SELECT outbox_message(aggregate_id => '{0}', event_type => 'a.b', payload_json => '{{\"n\": {n}}}', id => '{0}');",
            uuid(n)
        ),
        _ => format!(
            "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) VALUES ('{0}', '{0}', 'a.b', '{{\"n\": {n}}}');",
            uuid(n)
        ),
    };
    let all: String = (first..=last).map(one).collect();
    format!("BEGIN; {all} COMMIT")
}

/// Postgres hands a row on in front of a message that was written right before it, where a savepoint held that message alone.
#[tokio::test]
async fn a_message_alone_in_a_savepoint_comes_behind_the_next_row() {
    let mut fixture = with_messages().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let row = |n| {
        transaction(n, n)
            .replace("BEGIN;", "")
            .replace("COMMIT", "")
    };
    let message = row;
    for sql in [
        format!(
            "BEGIN; SAVEPOINT s; {} RELEASE s; {} COMMIT",
            message(2),
            row(1)
        ),
        format!(
            "BEGIN; SAVEPOINT s; {} RELEASE s; SAVEPOINT t; {} RELEASE t; COMMIT",
            message(4),
            row(5)
        ),
        format!(
            "BEGIN; SAVEPOINT s; {} {} RELEASE s; COMMIT",
            message(6),
            row(7)
        ),
    ] {
        fixture.sql.batch_execute(&sql).await.unwrap();
    }
    fixture.holds(6).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    let ids: Vec<_> = stored.iter().map(|it| it.id().to_owned()).collect();
    assert_eq!(ids, [1, 2, 4, 5, 6, 7].map(uuid));
}

#[tokio::test]
async fn messages_keep_their_place_among_rows() {
    let mut fixture = with_messages().await;
    let mut relay = fixture.run();
    relay.streams().await;
    for sql in [
        "SET timezone = 'Asia/Kathmandu'",
        &transaction(1, 5),
        // Not committed, or rolled back alone; another's; and one that belongs to no transaction.
        "BEGIN; SELECT outbox_message(gen_random_uuid(), 'a.b', '{}'); ROLLBACK",
        "BEGIN; SAVEPOINT s; SELECT outbox_message(gen_random_uuid(), 'a.b', '{}'); ROLLBACK TO s; COMMIT",
        "SELECT pg_logical_emit_message(true, 'others', '{}')",
        "SELECT pg_logical_emit_message(false, 'outbox', '{}')",
        "SELECT pg_logical_emit_message(false, 'outbox', '{}')",
        // Messages alone.
        &transaction(6, 6),
        "SELECT pg_logical_emit_message(true, 'outbox', 'no JSON')",
        "SELECT outbox_message(gen_random_uuid(), 'a b', '{\"x\": 12345678901234567890.5}', id => '00000000-0000-0000-0000-00000000000a')",
        &transaction(7, 7),
    ] {
        fixture.sql.batch_execute(sql).await.unwrap();
    }
    fixture.holds(9).await;
    let log = relay.log();
    relay.stop().await;
    let stored = fixture.stored().await;
    let events: Vec<_> = stored.iter().filter(|it| it.kind.is_none()).collect();
    for (event, n) in events.iter().zip(1..) {
        assert_eq!(event.id(), uuid(n));
        assert_eq!(event.payload(), format!("{{\"n\": {n}}}"));
        let at = event.field("occurred_at");
        assert!(at.as_str().unwrap().ends_with('Z'), "{at}");
    }
    assert_eq!(events.len(), 7);
    let ordinals: Vec<_> = stored[..5]
        .iter()
        .map(|it| it.position.rsplit(':').next().unwrap())
        .collect();
    assert_eq!(
        ordinals,
        ["1", "2", "3", "4", "5"],
        "rows and messages count"
    );
    let letters: Vec<_> = stored.iter().filter(|it| it.kind.is_some()).collect();
    assert_eq!(letters[0].field("reason"), "message");
    assert_eq!(letters[0].field("row"), json!({"content": "no JSON"}));
    assert_eq!(letters[1].field("reason"), "subject");
    assert_eq!(
        letters[1].field("row")["payload_json"],
        "{\"x\": 12345678901234567890.5}"
    );
    let warnings = log.matches("pg_logical_emit_message(false").count();
    assert_eq!(warnings, 1, "{log}");

    // A letter is published from what it holds.
    let place = letters[1].position.as_str();
    let retry = ["dead-letters", "retry", place, "--set", "event_type=a.b"];
    fixture.walrelay(&retry).await.success();
    let stored = fixture.stored().await;
    let retried = stored.iter().find(|it| it.kind.as_deref() == Some("retry"));
    let retried = retried.expect("its event");
    assert_eq!(retried.id(), uuid(10));
    assert_eq!(retried.payload(), "{\"x\": 12345678901234567890.5}");
    // What the table never had is nothing that it lacks.
    let place = letters[0].position.as_str();
    let discard = ["dead-letters", "discard", place, "--reason", "a test"];
    fixture.walrelay(&discard).await.success();
    fixture.walrelay(&["verify"]).await.success();
}

/// The table knows nothing of the kinds of its values, nor whether it could have its id.
#[tokio::test]
async fn a_letter_of_a_message_keeps_its_kinds() {
    let mut fixture = with_messages().await;
    fixture.set(
        "WALRELAY_MESSAGE_FIELDS",
        "{ tenant = 'aggregate_id', more = 'event_version' }",
    );
    let mut relay = fixture.run();
    relay.streams().await;
    let content = |event_type: &str| {
        let row = json!({"id": "no uuid", "aggregate_id": 7, "event_type": event_type, "event_version": 1,
            "occurred_at": "2026-11-28T08:05:32+00:00", "payload_json": {"n": 1.50}});
        format!("SELECT pg_logical_emit_message(true, 'outbox', '{row}')")
    };
    for event_type in ["a.b", "a b"] {
        fixture
            .sql
            .batch_execute(&content(event_type))
            .await
            .unwrap();
    }
    fixture.holds(2).await;
    relay.stop().await;
    let place = fixture.stored().await[1].position.clone();
    let retry = ["dead-letters", "retry", &place, "--set", "event_type=a.b"];
    fixture.walrelay(&retry).await.success();
    let stored = fixture.stored().await;
    let retried = stored.iter().find(|it| it.kind.as_deref() == Some("retry"));
    assert_eq!(retried.expect("its event").body, stored[0].body);
    assert!(
        stored[0].body.contains(r#""aggregate_id":7"#),
        "{}",
        stored[0].body
    );
}

#[tokio::test]
async fn a_letter_of_a_message_keeps_no_row_of_a_table() {
    let mut fixture = with_messages().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 5).await;
    let no_event = "SELECT pg_logical_emit_message(true, 'outbox', 'not json')";
    fixture.sql.batch_execute(no_event).await.unwrap();
    fixture.holds(6).await;
    assert_eq!(
        fixture.stored().await[5].kind.as_deref(),
        Some("dead-letter")
    );
    let prune = ["prune", "--older-than", "0s"];
    fixture.walrelay(&prune).await.success();
    let left = fixture
        .sql
        .query_one("SELECT count(*) FROM outbox_events", &[])
        .await
        .unwrap();
    assert_eq!(left.get::<_, i64>(0), 0);
    relay.stop().await;
}

/// A relay that has halted at this message, between the first and the second event.
async fn halted_at(message: &str) -> (Fixture, Relay) {
    let mut fixture = with_messages().await;
    let mut relay = fixture.run();
    relay.streams().await;
    for sql in [&transaction(1, 1), message, &transaction(2, 2)] {
        fixture.sql.batch_execute(sql).await.unwrap();
    }
    assert_eq!(relay.ends().await, Some(4));
    (fixture, relay)
}

/// Types the remedy that is printed in this text; the position in it.
async fn pass<'s>(fixture: &Fixture, said: &'s str) -> &'s str {
    let remedy = said.split("`walrelay dead-letters skip ").nth(1);
    let position = remedy.and_then(|rest| rest.split('`').next());
    let position = position.unwrap_or_else(|| panic!("no remedy in {said}"));
    let skip = ["dead-letters", "skip", position];
    fixture.walrelay(&skip).await.success();
    position
}

/// The relay goes on: the first event, the dead letter of the message, and the second event.
async fn is_passed(mut fixture: Fixture, reason: &str) -> Vec<Stored> {
    fixture.relay_until(3).await;
    let stored = fixture.stored().await;
    assert_eq!(stored[0].id(), uuid(1));
    assert_eq!(stored[1].kind.as_deref(), Some("dead-letter"));
    assert_eq!(stored[1].field("reason"), reason);
    assert_eq!(stored[2].id(), uuid(2));
    stored
}

/// It is cut while it is read, and nothing else has it: no dead letter would hold it, and no id says which it was.
#[tokio::test]
async fn a_message_longer_than_a_frame_halts_and_is_passed() {
    let message = "SELECT outbox_message(gen_random_uuid(), 'a.b', to_jsonb(repeat('x', 3000000)))";
    let (fixture, relay) = halted_at(message).await;
    let log = relay.log();
    let position = pass(&fixture, &log).await;
    let stored = is_passed(fixture, "too-large").await;
    assert!(stored[1].position.ends_with(position), "{position}");
}

/// No limit would take it: JSON has no such bytes.
#[tokio::test]
async fn a_message_that_is_not_utf8_halts_and_is_passed() {
    let message = "SELECT pg_logical_emit_message(true, 'outbox', '\\xff00'::bytea)";
    let (fixture, relay) = halted_at(message).await;
    let status = fixture.walrelay(&["status"]).await;
    for said in [relay.log(), status.stdout] {
        assert!(said.contains("bytes that are not UTF-8"), "{said}");
        assert!(!said.contains("max_payload"), "{said}");
        // The second time it changes nothing.
        pass(&fixture, &said).await;
    }
    is_passed(fixture, "no-text").await;
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_when_the_relay_is_killed() {
    const TRANSACTIONS: u64 = 60;
    const EACH: u64 = 20;
    let mut fixture = with_messages().await;
    let mut relay = fixture.run();
    let client = fixture.connect().await;
    let writer = tokio::spawn(async move {
        for n in 0..TRANSACTIONS {
            let sql = transaction(n * EACH + 1, (n + 1) * EACH);
            client.batch_execute(&sql).await.unwrap();
        }
    });
    for part in 1..=5 {
        fixture.holds(part * TRANSACTIONS * EACH / 6).await;
        relay.kill();
        relay = fixture.run();
    }
    writer.await.unwrap();
    fixture.holds(TRANSACTIONS * EACH).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    let ids: Vec<_> = stored.iter().map(|message| message.id()).collect();
    let expected: Vec<_> = (1..=TRANSACTIONS * EACH).map(uuid).collect();
    assert_eq!(ids, expected, "each once, in order");
    let positions: BTreeSet<_> = stored.iter().map(|message| &message.position).collect();
    assert_eq!(positions.len(), stored.len());
}

/// Other formats take a message as they take a row; the keys are the columns of the mapping.
#[tokio::test]
async fn a_message_of_another_mapping() {
    let mut fixture = Fixture::bare().await;
    let sql = "CREATE TABLE events (id bigserial PRIMARY KEY, topic text NOT NULL, body jsonb NOT NULL, trace text)";
    fixture.sql.batch_execute(sql).await.unwrap();
    for (name, value) in [
        ("WALRELAY_SOURCE_MESSAGES", "events"),
        ("WALRELAY_POSTGRES_TABLE", "public.events"),
        ("WALRELAY_COLUMNS_AGGREGATE_ID", ""),
        ("WALRELAY_COLUMNS_EVENT_TYPE", "topic"),
        ("WALRELAY_COLUMNS_EVENT_VERSION", ""),
        ("WALRELAY_COLUMNS_OCCURRED_AT", ""),
        ("WALRELAY_COLUMNS_PAYLOAD", "body"),
        ("WALRELAY_MESSAGE_FORMAT", "cloudevents"),
        ("WALRELAY_MESSAGE_HEADERS", "{ traceparent = 'trace' }"),
    ] {
        fixture.set(name, value);
    }
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    // A row as it would have been.
    let sql = r#"SELECT pg_logical_emit_message(true, 'events', to_jsonb(e)::text)
        FROM (SELECT 7::bigint AS id, 'order.made' AS topic, '{"b": 1}'::jsonb AS body, '00-abc' AS trace) AS e"#;
    fixture.sql.batch_execute(sql).await.unwrap();
    fixture.holds(1).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    let event = stored[0].event();
    assert_eq!(
        (&*event.id, event.event_type.as_deref()),
        ("7", Some("order.made"))
    );
    assert_eq!(stored[0].headers["traceparent"], "00-abc");
    assert_eq!(stored[0].body, r#"{"b": 1}"#);
    let payload: Value = event.payload_as().unwrap();
    assert_eq!(payload, json!({"b": 1}));
}

/// A message of an aggregate whose id is no value of the table's column.
fn of_customer(n: u64, who: &str) -> String {
    format!(
        "SELECT pg_logical_emit_message(true, 'outbox', '{{\"id\": \"{}\", \"aggregate_id\": \"{who}\", \"event_type\": \"a.b\", \
         \"event_version\": 1, \"occurred_at\": \"2026-11-30T01:00:00Z\", \"payload_json\": {{\"name\": \"Jane Doe\"}}}}')",
        uuid(n)
    )
}

async fn erase_customer(fixture: &Fixture, code: i32) -> Value {
    let erase = ["erase", "--aggregate-id", "customer-7", "--yes", "--json"];
    let erased = fixture.walrelay(&erase).await;
    assert_eq!(erased.code, Some(code), "{erased:?}");
    let words = "rows of public.outbox_events are left out, none can be the aggregate's";
    assert!(erased.stderr.contains(words), "{erased:?}");
    let receipt = erased.stdout.lines().next().expect("a receipt");
    serde_json::from_str(receipt).expect("a receipt")
}

/// No row can have its id, which its messages have all the same.
#[tokio::test]
async fn messages_are_erased_whose_aggregate_the_column_cannot_have() {
    let mut fixture = with_messages().await;
    let mut relay = fixture.run();
    relay.streams().await;
    for sql in [
        &transaction(1, 1),
        &of_customer(2, "customer-7"),
        &of_customer(4, "customer-8"),
    ] {
        fixture.sql.batch_execute(sql).await.unwrap();
    }
    fixture.holds(3).await;
    let receipt = erase_customer(&fixture, 0).await;
    assert_eq!(receipt["streams"][0]["events"], json!([2]), "{receipt}");
    assert_eq!(receipt["left_out"][0]["table"], "public.outbox_events");
    let stored = fixture.stored().await;
    let ids: Vec<_> = stored.iter().map(|it| it.id().to_owned()).collect();
    assert_eq!(ids, [1, 4].map(uuid));
    relay.stop().await;
    // Without them, nothing can have it.
    fixture.unset("WALRELAY_SOURCE_MESSAGES");
    let erase = ["erase", "--aggregate-id", "customer-7", "--yes"];
    let refused = fixture.walrelay(&erase).await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("is no uuid"), "{refused:?}");
}

/// Beside a further table whose column can have the id, and in a format in which no message tells its aggregate.
#[tokio::test]
async fn erase_is_not_done_beside_messages_that_tell_no_aggregate() {
    const FURTHER: &str = "CREATE TABLE orders (id uuid PRIMARY KEY, aggregate_id text NOT NULL, event_type text NOT NULL, \
        event_version smallint NOT NULL, occurred_at timestamptz NOT NULL, payload_json jsonb NOT NULL)";
    for (headers, code) in [("", 1), ("{ who = 'aggregate_id' }", 0)] {
        let mut fixture = Fixture::bare().await;
        fixture.sql.batch_execute(FURTHER).await.unwrap();
        fixture.set("WALRELAY_SOURCE_MESSAGES", "outbox");
        fixture.set("WALRELAY_MESSAGE_FORMAT", "payload");
        if !headers.is_empty() {
            fixture.set("WALRELAY_MESSAGE_HEADERS", headers);
        }
        fixture.configure("[[source.tables]]\nname = 'public.orders'\n");
        fixture.setup().await;
        let mut relay = fixture.run();
        relay.streams().await;
        let row = format!(
            "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) VALUES ('{0}', '{0}', 'a.b', '{{}}')",
            uuid(1)
        );
        for sql in [&row, &of_customer(2, "customer-7")] {
            fixture.sql.batch_execute(sql).await.unwrap();
        }
        fixture.holds(2).await;
        let receipt = erase_customer(&fixture, code).await;
        assert_eq!(receipt["done"], json!(code == 0), "{receipt}");
        let untold = &receipt["untold"]["public.outbox_events"];
        let told = (untold, &receipt["streams"][0]["events"]);
        match code {
            0 => assert_eq!(told, (&Value::Null, &json!([2])), "{receipt}"),
            _ => assert_eq!(told, (&json!(1), &json!([])), "{receipt}"),
        }
        relay.stop().await;
    }
}
