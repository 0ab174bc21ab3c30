//! `dead-letters retry --set`: what is typed is read by the column's type, and what the type does not take is refused.

use serde_json::json;

use crate::lane::{Lane, letters, of_kind, set_up};
use crate::support::{Fixture, Output, Relay, Stored, insert_sql, uuid};

/// A relay of an outbox that this SQL makes.
async fn running(table: &str) -> (Fixture, Relay) {
    let mut fixture = Fixture::bare().await;
    fixture.sql.batch_execute(table).await.unwrap();
    set_up(&mut fixture, Lane::FastIngest).await;
    let relay = fixture.run();
    (fixture, relay)
}

/// As a person types it.
async fn retry(fixture: &Fixture, letter: &Stored, set: &[&str]) -> Output {
    let mut typed = vec!["dead-letters", "retry", &letter.position];
    typed.extend(set.iter().flat_map(|assignment| ["--set", assignment]));
    fixture.walrelay(&typed).await
}

/// That it is refused as wrong usage with these words, and publishes nothing.
async fn refused(fixture: &Fixture, letter: &Stored, set: &str, words: &[&str]) {
    let said = retry(fixture, letter, &["event_type=a.b", set]).await;
    assert_eq!(said.code, Some(2), "{set}: {said:?}");
    for word in words {
        assert!(said.stderr.contains(word), "{set}: {word}: {said:?}");
    }
    assert!(of_kind(fixture, "retry").await.is_empty(), "{set}");
}

#[tokio::test]
async fn what_is_set_is_read_by_the_columns_type() {
    let mut fixture = Fixture::new().await;
    set_up(&mut fixture, Lane::FastIngest).await;
    let relay = fixture.run();
    let bad = insert_sql(1, 2).replace("lesson.published.v1", "has a space");
    fixture.sql.batch_execute(&bad).await.unwrap();
    let letters = letters(&fixture, 2).await;
    // One row is there still, the other one only in its letter.
    let delete = "DELETE FROM outbox_events WHERE id = $1";
    fixture.sql.execute(delete, &[&uuid(2)]).await.unwrap();

    let id = uuid(1).to_string();
    for (set, words) in [
        (
            "payload_json={bad json",
            &[
                "\"payload_json\"",
                "is jsonb",
                "invalid input syntax for type json",
                "Token \"bad\" is invalid",
            ][..],
        ),
        ("payload_json=", &["\"payload_json\"", "is jsonb"]),
        (
            "aggregate_id=zzz",
            &[
                "\"aggregate_id\"",
                "is uuid",
                "invalid input syntax for type uuid: \"zzz\"",
            ],
        ),
        (
            "event_version=one",
            &["is smallint", "invalid input syntax"],
        ),
        ("event_version=40000", &["is smallint", "out of range"]),
        (
            "occurred_at=soon",
            &["is timestamp with time zone", "\"soon\""],
        ),
        ("occurred_at=2026-02-30T00:00:00Z", &["out of range"]),
        ("id=foo", &["the event's id", &id]),
        ("id=", &["the event's id", &id]),
        (
            "id=0192f7a0-0000-7000-8000-000000000009",
            &["the event's id", &id],
        ),
    ] {
        refused(&fixture, &letters[0], set, words).await;
    }

    let set = [
        "event_type=a.b",
        "occurred_at=2026-11-29T02:00:00+02:00",
        "payload_json={\"b\": \"é\",\"a\":1}",
        "aggregate_id=0192F7A0-0000-7000-8000-00000000000A",
        "event_version= 7",
    ];
    for (letter, number) in letters.iter().zip(1..) {
        retry(&fixture, letter, &set).await.success();
        let retried = of_kind(&fixture, "retry").await;
        // As the server sends it: a UUID's letters are small, and jsonb has its keys in order.
        let expected = format!(
            "{{\"id\":\"{}\",\"aggregate_id\":\"0192f7a0-0000-7000-8000-00000000000a\",\"event_type\":\"a.b\",\"event_version\":7,\
             \"occurred_at\":\"2026-11-29T00:00:00.000000Z\",\"payload_json\":{{\"a\": 1, \"b\": \"é\"}}}}",
            uuid(number)
        );
        assert_eq!(retried.last().unwrap().body, expected);
    }
    relay.stop().await;
}

#[tokio::test]
async fn what_is_set_has_the_length_and_the_conditions_of_its_column() {
    let table = "CREATE DOMAIN version AS int CHECK (VALUE < 10);
        CREATE TABLE outbox_events (id text, aggregate_id char(3), event_type varchar(4), event_version version,
            occurred_at timestamptz, payload_json json)";
    let (fixture, relay) = running(table).await;
    let row = "INSERT INTO outbox_events VALUES (NULL, 'a', 'a.b', 1, '2026-11-28 07:00+00', '{}')";
    fixture.sql.batch_execute(row).await.unwrap();
    let letter = letters(&fixture, 1).await.remove(0);
    for (set, words) in [
        (
            "event_type=a.bcd",
            &[
                "is character varying(4)",
                "value too long for type character varying(4)",
            ][..],
        ),
        ("aggregate_id=abcd", &["is character(3)", "value too long"]),
        (
            "event_version=10",
            &["is public.version", "violates check constraint"],
        ),
        (
            "payload_json=[1",
            &["is json", "invalid input syntax for type json"],
        ),
        ("id=", &["would be empty"]),
        ("tenant=x", &["no message is made of a column \"tenant\""]),
    ] {
        refused(&fixture, &letter, set, words).await;
    }
    // An event without an id may be given one.
    let set = [
        "id=e1",
        "payload_json={\"b\":2,  \"a\":1}",
        "aggregate_id=é",
    ];
    retry(&fixture, &letter, &set).await.success();
    let event = of_kind(&fixture, "retry").await.remove(0);
    let body: serde_json::Value = serde_json::from_str(&event.body).unwrap();
    assert_eq!(body["id"], json!("e1"));
    assert_eq!(body["aggregate_id"], json!("é  "));
    assert!(event.body.contains("{\"b\":2,  \"a\":1}"), "{}", event.body);
    relay.stop().await;
}

/// Two events with one id would be a double for good.
#[tokio::test]
async fn an_id_that_another_has_is_given_to_no_event() {
    let table = "CREATE TABLE outbox_events (id bytea, aggregate_id text, event_type text, event_version int,
            occurred_at timestamptz, payload_json json)";
    let (fixture, relay) = running(table).await;
    let rows = "INSERT INTO outbox_events VALUES
        (NULL, 'a', 'a.b', 1, '2026-11-28 07:00+00', '{}'),
        ('\\x01', 'a', 'has a space', 1, '2026-11-28 07:00+00', '{}'),
        ('\\x0192f7a0000070008000000000000003', 'a', 'a.b', 1, '2026-11-28 07:00+00', '{}')";
    fixture.sql.batch_execute(rows).await.unwrap();
    let letters = letters(&fixture, 2).await;
    fixture.holds(3).await;
    // The event's row is no longer there, another event's is not published yet.
    relay.stop().await;
    let rows = "DELETE FROM outbox_events WHERE length(id) = 16;
        UPDATE outbox_events SET id = '\\x02' WHERE id IS NULL";
    fixture.sql.batch_execute(rows).await.unwrap();
    let of_letter = format!("of the dead letter at {}", letters[1].position);
    let of_event = format!("of stream {}", fixture.stream_name());
    for (id, whose) in [
        ("id=\\x01", of_letter.as_str()),
        ("id=\\x0192F7A0000070008000000000000003", of_event.as_str()),
        ("id=\\x02", "of a row of public.outbox_events"),
    ] {
        refused(&fixture, &letters[0], id, &[whose, "known by its id"]).await;
    }
    retry(&fixture, &letters[0], &["id=\\x04"]).await.success();
    assert_eq!(of_kind(&fixture, "retry").await.len(), 1);
}

/// What the refusal says where a person has given the row an id in the table.
#[tokio::test]
async fn a_row_that_was_given_an_id_in_the_table_is_published_by_what_is_printed() {
    let table = "CREATE TABLE outbox_events (id text, aggregate_id text, event_type text, event_version int,
            occurred_at timestamptz, payload_json json)";
    let (fixture, relay) = running(table).await;
    let row = "INSERT INTO outbox_events VALUES (NULL, 'a', 'a.b', 1, '2026-11-28 07:00+00', '{}')";
    fixture.sql.batch_execute(row).await.unwrap();
    let letter = letters(&fixture, 1).await.remove(0);
    let mend = "UPDATE outbox_events SET id = 'e1'";
    fixture.sql.batch_execute(mend).await.unwrap();
    let said = retry(&fixture, &letter, &["id=e1"]).await;
    let (_, remedy) = said
        .stderr
        .split_once("mended: walrelay ")
        .expect("a remedy");
    let (first, rest) = remedy.split_once(" publishes it, and walrelay ").unwrap();
    let (second, _) = rest.split_once(" closes the letter").unwrap();
    for command in [first, second] {
        let typed: Vec<&str> = command.split(' ').collect();
        fixture.walrelay(&typed).await.success();
    }
    assert_eq!(of_kind(&fixture, "backfill").await.len(), 1);
    fixture.walrelay(&["verify"]).await.success();
    relay.stop().await;
}

#[tokio::test]
async fn where_table_or_column_is_gone_it_says_so() {
    let mut fixture = Fixture::new().await;
    set_up(&mut fixture, Lane::FastIngest).await;
    let relay = fixture.run();
    let bad = insert_sql(1, 1).replace("lesson.published.v1", "has a space");
    fixture.sql.batch_execute(&bad).await.unwrap();
    let letter = letters(&fixture, 1).await.remove(0);
    relay.stop().await;
    let set = [
        "event_type=a.b",
        "aggregate_id=0192f7a0-0000-7000-8000-00000000000a",
    ];
    for (gone, words) in [
        (
            "ALTER TABLE outbox_events RENAME COLUMN aggregate_id TO aggregate",
            "table public.outbox_events no longer has column \"aggregate_id\"",
        ),
        (
            "DROP TABLE outbox_events",
            "there is no table public.outbox_events",
        ),
    ] {
        fixture.sql.batch_execute(gone).await.unwrap();
        let said = retry(&fixture, &letter, &set).await;
        assert_eq!(said.code, Some(1), "{gone}: {said:?}");
        assert!(said.stderr.contains(words), "{gone}: {said:?}");
        assert!(of_kind(&fixture, "retry").await.is_empty(), "{gone}");
    }
}
