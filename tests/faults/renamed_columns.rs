//! Columns that are renamed, or get another type, while rows from before are still to be read.

use serde_json::{Value, json};

use crate::lane::holds_events;
use crate::support::{Fixture, Relay, Stored, uuid};

const EVERY_COLUMN: &str = "ALTER TABLE outbox_events RENAME id TO eid;
    ALTER TABLE outbox_events RENAME aggregate_id TO lesson;
    ALTER TABLE outbox_events RENAME payload_json TO body";

async fn report(fixture: &Fixture) -> Value {
    let verify = fixture.walrelay(&["verify", "--json"]).await.success();
    serde_json::from_str(&verify.stdout).unwrap()
}

async fn insert_renamed(fixture: &Fixture, n: u64) {
    let insert = format!(
        "INSERT INTO outbox_events (eid, lesson, event_type, body) VALUES ('{0}', '{0}', 'lesson.published.v1', '{{\"n\": {n}}}')",
        uuid(n)
    );
    fixture.sql.batch_execute(&insert).await.unwrap();
}

fn follow(fixture: &mut Fixture) {
    fixture.set("WALRELAY_COLUMNS_ID", "eid");
    fixture.set("WALRELAY_COLUMNS_AGGREGATE_ID", "lesson");
    fixture.set("WALRELAY_COLUMNS_PAYLOAD", "body");
}

/// Three events, none of them confirmed, and the relay.
async fn three_published() -> (Fixture, Relay) {
    let mut fixture = Fixture::new().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 3).await;
    holds_events(&fixture, 3).await;
    (fixture, relay)
}

/// A relay goes on: each event once, in order, and nothing else.
async fn goes_on(fixture: &mut Fixture, count: u64) {
    let mut relay = fixture.run();
    relay.streams().await;
    holds_events(fixture, count).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    let ids: Vec<_> = stored.iter().map(Stored::id).collect();
    assert_eq!(ids, (1..=count).map(uuid).collect::<Vec<_>>());
    assert!(stored.iter().all(|it| it.kind.is_none()), "{stored:?}");
    let report = report(fixture).await;
    for what in ["missing", "doubled", "dead_lettered"] {
        assert_eq!(report[what]["count"], json!(0), "{report}");
    }
}

/// What is published and not confirmed, and what is not published, is read under the names that it was written under.
#[tokio::test]
async fn a_stopped_relay_goes_on_behind_columns_that_were_renamed() {
    let (mut fixture, relay) = three_published().await;
    relay.stop().await;
    fixture.insert(4, 5).await;
    fixture.sql.batch_execute(EVERY_COLUMN).await.unwrap();
    insert_renamed(&fixture, 6).await;
    follow(&mut fixture);
    // Commands read the slot so too.
    let waiting = fixture.walrelay(&["verify", "--wait", "0s"]).await;
    assert!(!waiting.stderr.contains("without id"), "{waiting:?}");
    goes_on(&mut fixture, 6).await;

    // And once more, over both names.
    let rename = "ALTER TABLE outbox_events RENAME eid TO event_id";
    fixture.sql.batch_execute(rename).await.unwrap();
    fixture.set("WALRELAY_COLUMNS_ID", "event_id");
    let mut relay = fixture.run();
    relay.streams().await;
    let back = "ALTER TABLE outbox_events RENAME event_id TO eid";
    relay.stop().await;
    fixture.sql.batch_execute(back).await.unwrap();
    fixture.set("WALRELAY_COLUMNS_ID", "eid");
    insert_renamed(&fixture, 7).await;
    goes_on(&mut fixture, 7).await;
}

#[tokio::test]
async fn a_relay_waits_for_a_column_that_is_renamed_and_goes_on_with_the_configuration() {
    let (mut fixture, mut relay) = three_published().await;
    fixture.sql.batch_execute(EVERY_COLUMN).await.unwrap();
    insert_renamed(&fixture, 4).await;
    relay.logs("had no column").await;
    relay.stop().await;
    follow(&mut fixture);
    goes_on(&mut fixture, 4).await;
}

#[tokio::test]
async fn ids_of_another_type_are_refused_until_they_are_adopted() {
    for (was, is, id, other) in [
        (
            "text",
            "uuid",
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12",
        ),
        ("text", "bigint", "00042", "43"),
    ] {
        let mut fixture = Fixture::bare().await;
        let table = format!(
            "CREATE TABLE outbox_events (id {was} PRIMARY KEY, aggregate_id text NOT NULL, event_type text NOT NULL,
             event_version smallint NOT NULL DEFAULT 1, occurred_at timestamptz NOT NULL DEFAULT now(), payload_json jsonb NOT NULL)"
        );
        fixture.sql.batch_execute(&table).await.unwrap();
        fixture.setup().await;
        let insert = |id: &str| {
            format!(
                "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) VALUES ('{id}', 'a', 'a.b', '{{}}')"
            )
        };
        let mut relay = fixture.run();
        relay.streams().await;
        fixture.sql.batch_execute(&insert(id)).await.unwrap();
        holds_events(&fixture, 1).await;
        let alter = format!("ALTER TABLE outbox_events ALTER id TYPE {is} USING id::{is}");
        fixture.sql.batch_execute(&alter).await.unwrap();
        fixture.sql.batch_execute(&insert(other)).await.unwrap();
        holds_events(&fixture, 2).await;
        fixture.confirms(fixture.server_lsn().await).await;
        let what = format!("as {was} wrote them, and it is {is} now");
        for command in [
            &["verify"][..],
            &["verify", "--repair"],
            &["backfill"],
            &["prune", "--older-than", "0s"],
            &["erase", "--yes", "--aggregate-id", "a"],
        ] {
            let refused = fixture.walrelay(command).await;
            assert_eq!(refused.code, Some(1), "{refused:?}");
            assert!(refused.stderr.contains(&what), "{refused:?}");
        }
        // It may have halted by itself, where it had to connect anew.
        relay.kill();
        let halted = fixture.walrelay(&["run"]).await;
        assert_eq!(halted.code, Some(4), "{halted:?}");
        assert!(halted.stderr.contains(&what), "{halted:?}");
        assert!(halted.stderr.contains("`walrelay adopt`"), "{halted:?}");
        assert_eq!(fixture.message_count().await, 2);
        fixture.walrelay(&["adopt", "--yes"]).await.success();
        let mut relay = fixture.run();
        relay.streams().await;
        relay.stop().await;
        let verify = fixture.walrelay(&["verify", "--json"]).await;
        let report: Value = serde_json::from_str(&verify.stdout).unwrap();
        assert_eq!(report["missing"]["count"], json!(1), "{report}");
    }
}

/// The text of each id stays what it was.
#[tokio::test]
async fn ids_of_a_type_that_writes_them_the_same_go_on() {
    let mut fixture = Fixture::bare().await;
    let table = "CREATE TABLE outbox_events (id integer PRIMARY KEY, aggregate_id text NOT NULL, event_type text NOT NULL,
        event_version smallint NOT NULL DEFAULT 1, occurred_at timestamptz NOT NULL DEFAULT now(), payload_json jsonb NOT NULL)";
    fixture.sql.batch_execute(table).await.unwrap();
    fixture.setup().await;
    for (n, is) in [
        (1, "integer"),
        (2, "bigint"),
        (3, "text"),
        (4, "varchar(40)"),
    ] {
        let alter = format!("ALTER TABLE outbox_events ALTER id TYPE {is}");
        fixture.sql.batch_execute(&alter).await.unwrap();
        let mut relay = fixture.run();
        relay.streams().await;
        let insert = format!(
            "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) VALUES ('{n}', 'a', 'a.b', '{{}}')"
        );
        fixture.sql.batch_execute(&insert).await.unwrap();
        holds_events(&fixture, n).await;
        relay.stop().await;
        let report = report(&fixture).await;
        assert_eq!(report["missing"]["count"], json!(0), "{is}: {report}");
    }
}
