//! Texts that a column's type or collation calls equal, and that are two ids all the same: messages have their bytes.

mod platform;

use std::time::Duration;

use platform::Platform;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(180);

/// Servers with such types.
async fn servers() -> (Platform, Vec<&'static str>) {
    let platform = Platform::servers().await;
    let make = "CREATE EXTENSION citext";
    platform.sql.batch_execute(make).await.expect("made");
    let mut types = vec!["citext"];
    // Some are built without it.
    let has_icu = "SELECT EXISTS (SELECT FROM pg_collation WHERE collname = 'und-x-icu')";
    let row = platform.sql.query_one(has_icu, &[]).await.expect("read");
    if row.get(0) {
        let make = "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
                    CREATE DOMAIN name_ci AS text COLLATE ci";
        platform.sql.batch_execute(make).await.expect("made");
        types.extend(["text COLLATE ci", "varchar(9) COLLATE ci", "name_ci"]);
        types.push("character(3) COLLATE ci");
    }
    (platform, types)
}

/// A lane of a table with such ids; some rows may be there before its slot.
async fn lane(platform: &mut Platform, number: usize, id_type: &str, before: &str) {
    let table = format!("outbox_{number}");
    let make = format!(
        "CREATE TABLE {table} (id {id_type} NOT NULL, aggregate_id {id_type} NOT NULL, event_type text NOT NULL, \
         event_version smallint NOT NULL DEFAULT 1, occurred_at timestamptz NOT NULL DEFAULT now(), \
         payload_json jsonb NOT NULL DEFAULT '{{}}'); {before}"
    );
    platform.sql.batch_execute(&make).await.expect("made");
    for (name, value) in [
        ("WALRELAY_NAME", table.clone()),
        ("WALRELAY_POSTGRES_TABLE", format!("public.{table}")),
        ("WALRELAY_NATS_STREAM", table.to_uppercase()),
        ("WALRELAY_NATS_SUBJECT", format!("{table}.{{event_type}}")),
    ] {
        platform.set(name, &value);
    }
    platform.expect(&["setup"], 0).await;
}

/// SQL for these rows, each with an id, an aggregate and a type.
fn insert(number: usize, rows: &[(&str, &str, &str)]) -> String {
    let rows = rows
        .iter()
        .map(|(id, aggregate, of_type)| format!("('{id}', '{aggregate}', '{of_type}')"));
    let rows: Vec<String> = rows.collect();
    format!(
        "INSERT INTO outbox_{number} (id, aggregate_id, event_type) VALUES {};",
        rows.join(", ")
    )
}

async fn ids(platform: &Platform, number: usize) -> Vec<String> {
    let query = format!(
        "SELECT coalesce(array_agg(id::text ORDER BY id::text COLLATE \"C\"), '{{}}') FROM outbox_{number}"
    );
    let row = platform.sql.query_one(&query, &[]).await;
    row.expect("read").get(0)
}

#[tokio::test]
async fn another_aggregate_is_not_erased() {
    let (mut platform, types) = servers().await;
    for (number, id_type) in types.into_iter().enumerate() {
        lane(&mut platform, number, id_type, "").await;
        let rows = [("k", "abc", "a"), ("K", "ABC", "a"), ("x", "ABC", "a")];
        let insert = insert(number, &rows);
        platform.sql.batch_execute(&insert).await.expect("inserted");
        platform.relay_until(3).await;
        let erase = ["erase", "--yes", "--json", "--aggregate-id", "abc"];
        let output = platform.output(&erase).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{id_type}: {said}");
        let receipt: Value = serde_json::from_slice(&output.stdout).expect("a receipt");
        assert_eq!(receipt["rows"], json!(1), "{id_type}: {receipt}");
        let events = &receipt["streams"][0]["events"];
        assert_eq!(*events, json!([1]), "{id_type}: {receipt}");
        assert_eq!(ids(&platform, number).await, ["K", "x"], "{id_type}");
    }
}

#[tokio::test]
async fn each_row_is_published_once() {
    let (mut platform, types) = servers().await;
    for (number, id_type) in types.into_iter().enumerate() {
        let before = insert(number, &[("k", "a", "a"), ("K", "b", "a")]);
        lane(&mut platform, number, id_type, &before).await;
        let first = insert(number, &[("x", "x", "a")]);
        platform.sql.batch_execute(&first).await.expect("inserted");
        platform.relay_until(1).await;
        platform.expect(&["backfill"], 0).await;
        platform.wait_for(3).await;
        let again = platform.expect(&["backfill"], 0).await;
        assert!(again.starts_with("0 rows"), "{id_type}: {again}");

        // One is refused, and mended.
        let rows = insert(number, &[("l", "a", "a"), ("L", "b", "no subject")]);
        platform.sql.batch_execute(&rows).await.expect("inserted");
        platform.relay_until(5).await;
        let mend =
            format!("UPDATE outbox_{number} SET event_type = 'a' WHERE aggregate_id::text = 'b'");
        platform.sql.batch_execute(&mend).await.expect("mended");
        platform
            .expect(&["dead-letters", "retry", "--all"], 0)
            .await;
        platform.verify(0).await;
    }
}

#[tokio::test]
async fn a_row_is_deleted_for_its_own_event_alone() {
    let (mut platform, types) = servers().await;
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    for (number, id_type) in types.into_iter().enumerate() {
        lane(&mut platform, number, id_type, "").await;
        let rows = [("K", "b", "no subject"), ("k", "a", "a")];
        let insert = insert(number, &rows);
        platform.sql.batch_execute(&insert).await.expect("inserted");
        let relay = platform.relay();
        let is_deleted = async {
            while ids(&platform, number).await.len() == 2 {
                tokio::task::yield_now().await;
            }
        };
        let deleted = tokio::time::timeout(LIMIT, is_deleted).await;
        deleted.expect("it is deleted in time");
        // The dead letter's only trace.
        assert_eq!(ids(&platform, number).await, ["K"], "{id_type}");
        relay.stop().await;
    }
}
