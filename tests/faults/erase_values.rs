//! An aggregate whose messages write its id in several ways, or do not tell it at all.

use serde_json::{Value, json};

use crate::lane::holds_events;
use crate::support::{Fixture, uuid};

const OF_THE_PERSON: &str = "of the person";

async fn with_aggregates(aggregate: &str) -> Fixture {
    let mut fixture = Fixture::bare().await;
    let table = format!(
        "CREATE TABLE outbox_events (id uuid PRIMARY KEY, aggregate_id {aggregate} NOT NULL, event_type text NOT NULL,
         event_version smallint NOT NULL DEFAULT 1, occurred_at timestamptz NOT NULL DEFAULT now(), payload_json jsonb NOT NULL)"
    );
    fixture.sql.batch_execute(&table).await.unwrap();
    fixture.set("WALRELAY_SOURCE_MESSAGES", "outbox");
    fixture.setup().await;
    fixture
}

fn message(n: u64, aggregate: &Value, text: &str) -> String {
    let content = json!({"id": uuid(n), "aggregate_id": aggregate, "event_type": "a.b", "event_version": 1,
        "occurred_at": "2026-01-01T00:00:00Z", "payload_json": {"text": text}});
    format!("SELECT pg_logical_emit_message(true, 'outbox', '{content}')")
}

fn row(n: u64, aggregate: &str, text: &str) -> String {
    format!(
        "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) VALUES ('{}', '{aggregate}', 'a.b', '{{\"text\": \"{text}\"}}')",
        uuid(n)
    )
}

async fn erase(fixture: &Fixture, id: &str, code: i32) -> (Value, String) {
    let arguments = ["erase", "--yes", "--json", "--aggregate-id", id];
    let erased = fixture.walrelay(&arguments).await;
    assert_eq!(erased.code, Some(code), "{erased:?}");
    (serde_json::from_str(&erased.stdout).unwrap(), erased.stderr)
}

async fn left(fixture: &Fixture) -> usize {
    let stored = fixture.stored().await;
    let left = stored.iter().filter(|it| it.body.contains(OF_THE_PERSON));
    left.count()
}

#[tokio::test]
async fn an_aggregate_goes_in_every_spelling_of_its_value() {
    let uuids = [
        "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    ];
    for (aggregate, spellings, other) in [
        ("uuid", &uuids[..], uuids[1].replace("a11", "a12")),
        ("bigint", &["0042", "42"], "420".to_owned()),
        ("bytea", &["\\x0102", "AQI="], "\\x0103".to_owned()),
    ] {
        let mut fixture = with_aggregates(aggregate).await;
        let mut relay = fixture.run();
        relay.streams().await;
        for given in spellings {
            for (n, told) in (1..).zip(spellings) {
                let message = message(n, &json!(told), OF_THE_PERSON);
                fixture.sql.batch_execute(&message).await.unwrap();
            }
            let of_another = message(9, &json!(other), "of another");
            fixture.sql.batch_execute(&of_another).await.unwrap();
            fixture.confirms(fixture.server_lsn().await).await;
            let (receipt, _) = erase(&fixture, given, 0).await;
            assert_eq!(receipt["done"], json!(true), "{receipt}");
            assert_eq!(left(&fixture).await, 0, "{aggregate} {given}: {receipt}");
        }
        let stored = fixture.stored().await;
        let kept = stored.iter().filter(|it| it.body.contains("of another"));
        assert_eq!(kept.count(), spellings.len(), "{aggregate}");
        relay.stop().await;
    }
    // A text is what it is.
    let mut fixture = with_aggregates("text").await;
    let mut relay = fixture.run();
    relay.streams().await;
    for (n, told) in (1..).zip(["0042", "42"]) {
        let message = message(n, &json!(told), OF_THE_PERSON);
        fixture.sql.batch_execute(&message).await.unwrap();
    }
    holds_events(&fixture, 2).await;
    erase(&fixture, "42", 0).await;
    assert_eq!(left(&fixture).await, 1);
    relay.stop().await;
}

#[tokio::test]
async fn what_an_aggregate_was_written_like_before_its_type_was_altered_goes() {
    let upper = "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11";
    let lower = upper.to_lowercase();
    for (is, was, now, given) in [
        ("uuid", upper, &*lower, &*lower),
        ("uuid", upper, &*lower, upper),
        ("bigint", "00042", "42", "42"),
        ("bigint", "00042", "42", "00042"),
    ] {
        let mut fixture = with_aggregates("text").await;
        let mut relay = fixture.run();
        relay.streams().await;
        fixture
            .sql
            .batch_execute(&row(1, was, OF_THE_PERSON))
            .await
            .unwrap();
        holds_events(&fixture, 1).await;
        let alter = format!(
            "DELETE FROM outbox_events; ALTER TABLE outbox_events ALTER aggregate_id TYPE {is} USING aggregate_id::{is}"
        );
        fixture.sql.batch_execute(&alter).await.unwrap();
        fixture
            .sql
            .batch_execute(&row(2, now, OF_THE_PERSON))
            .await
            .unwrap();
        holds_events(&fixture, 2).await;
        fixture.confirms(fixture.server_lsn().await).await;
        let (receipt, _) = erase(&fixture, given, 0).await;
        assert_eq!(left(&fixture).await, 0, "{is} {given}: {receipt}");
        relay.stop().await;
    }
}

/// The payload alone does not tell whose it is, and no row does.
#[tokio::test]
async fn an_erasure_is_not_done_where_messages_without_a_row_do_not_tell_their_aggregate() {
    let mut fixture = with_aggregates("uuid").await;
    fixture.set("WALRELAY_MESSAGE_FORMAT", "payload");
    let mut relay = fixture.run();
    relay.streams().await;
    let person = uuid(7).to_string();
    for n in 11..=13 {
        let message = message(n, &json!(person), OF_THE_PERSON);
        fixture.sql.batch_execute(&message).await.unwrap();
    }
    for (n, aggregate) in [(1, uuid(7)), (2, uuid(8))] {
        let row = row(n, &aggregate.to_string(), OF_THE_PERSON);
        fixture.sql.batch_execute(&row).await.unwrap();
    }
    holds_events(&fixture, 5).await;
    fixture.confirms(fixture.server_lsn().await).await;
    let (receipt, errors) = erase(&fixture, &person, 1).await;
    assert_eq!(receipt["rows"], json!(1), "{receipt}");
    assert_eq!(receipt["streams"][0]["events"], json!([4]), "{receipt}");
    assert_eq!(receipt["done"], json!(false), "{receipt}");
    assert_eq!(
        receipt["untold"],
        json!({"public.outbox_events": 3}),
        "{receipt}"
    );
    assert!(errors.contains("3 messages stay"), "{errors}");
    assert!(errors.contains("message.headers"), "{errors}");
    relay.stop().await;

    // As it says: a header tells it. Messages that have one are told apart.
    fixture.set(
        "WALRELAY_MESSAGE_HEADERS",
        "{ aggregate = \"aggregate_id\" }",
    );
    let mut relay = fixture.run();
    relay.streams().await;
    let told = message(14, &json!(person), OF_THE_PERSON);
    fixture.sql.batch_execute(&told).await.unwrap();
    let of_another = message(15, &json!(uuid(8)), "of another");
    fixture.sql.batch_execute(&of_another).await.unwrap();
    fixture.confirms(fixture.server_lsn().await).await;
    let (receipt, _) = erase(&fixture, &person, 1).await;
    assert_eq!(receipt["streams"][0]["events"], json!([6]), "{receipt}");
    assert_eq!(
        receipt["untold"],
        json!({"public.outbox_events": 3}),
        "{receipt}"
    );
    relay.stop().await;
}

/// What told the aggregate when messages were published need not be what the configuration has now.
#[tokio::test]
async fn an_erasure_is_not_done_where_a_header_of_before_told_the_aggregate() {
    for (format, headers) in [
        (
            "payload",
            "{ owner = \"aggregate_id\", kind = \"event_type\" }",
        ),
        ("envelope", "{}"),
    ] {
        let mut fixture = with_aggregates("text").await;
        fixture.set("WALRELAY_MESSAGE_FORMAT", "payload");
        let before = "{ agg = \"aggregate_id\", kind = \"event_type\" }";
        fixture.set("WALRELAY_MESSAGE_HEADERS", before);
        let mut relay = fixture.run();
        relay.streams().await;
        for (n, aggregate, text) in [
            (1, "it''s anna", OF_THE_PERSON),
            (2, "it''s anna", OF_THE_PERSON),
            (3, "bob", "of another"),
        ] {
            let row = row(n, aggregate, text);
            fixture.sql.batch_execute(&row).await.unwrap();
        }
        holds_events(&fixture, 3).await;
        relay.stop().await;
        let gone = "DELETE FROM outbox_events";
        fixture.sql.batch_execute(gone).await.unwrap();
        fixture.set("WALRELAY_MESSAGE_FORMAT", format);
        fixture.set("WALRELAY_MESSAGE_HEADERS", headers);
        let mut relay = fixture.run();
        relay.streams().await;
        let row = row(4, "it''s anna", OF_THE_PERSON);
        fixture.sql.batch_execute(&row).await.unwrap();
        holds_events(&fixture, 4).await;
        fixture.confirms(fixture.server_lsn().await).await;

        let (receipt, errors) = erase(&fixture, "it's anna", 1).await;
        let told = json!([
            receipt["done"],
            receipt["untold"],
            receipt["untold_with_header"]
        ]);
        let expected = json!([false, {"public.outbox_events": 3}, {"agg": 2}]);
        assert_eq!(told, expected, "{format}: {receipt} {errors}");
        assert_eq!(receipt["streams"][0]["events"], json!([4]), "{receipt}");
        assert_eq!(left(&fixture).await, 2, "{format}: {receipt}");

        if format == "payload" {
            let arguments = [
                "erase",
                "--yes",
                "--aggregate-id",
                "a.b",
                "--also-header",
                "kind",
            ];
            let refused = fixture.walrelay(&arguments).await;
            assert_eq!(refused.code, Some(2), "{refused:?}");
        }
        // As it says.
        let (_, printed) = errors.split_once("told the aggregate, ").unwrap();
        let (printed, _) = printed.split_once(" removes them").unwrap();
        assert!(printed.ends_with(" --also-header agg"), "{printed}");
        let erased = fixture.types(printed).await.success();
        let receipt: Value = serde_json::from_str(&erased.stdout).unwrap();
        assert_eq!(receipt["done"], json!(true), "{format}: {receipt}");
        assert_eq!(left(&fixture).await, 0, "{format}: {receipt}");
        let stored = fixture.stored().await;
        assert!(stored.iter().any(|it| it.body.contains("of another")));
        relay.stop().await;
    }
}
