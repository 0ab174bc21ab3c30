//! Messages of other lanes and of other tables, with ids that this table has too, against real servers: no row is taken for published by them.

mod platform;

use std::time::Duration;

use futures_util::StreamExt as _;
use platform::Platform;

/// How long anything may take before the test fails.
const LIMIT: Duration = Duration::from_secs(180);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Ids begin at 1 in each; rows say that they are ten days old.
const COLUMNS: &str = "(id bigserial PRIMARY KEY, aggregate_id text NOT NULL, event_type text NOT NULL, \
     event_version smallint NOT NULL DEFAULT 1, occurred_at timestamptz NOT NULL DEFAULT now() - interval '10 days', \
     payload_json jsonb NOT NULL)";
const PRUNE: &[&str] = &["prune", "--older-than", "1d"];

async fn make(platform: &Platform, table: &str) {
    let sql = format!("CREATE TABLE {table} {COLUMNS}");
    platform.sql.batch_execute(&sql).await.expect("made");
}

async fn insert(platform: &Platform, table: &str, event_type: &str, count: u32) {
    let sql = format!(
        "INSERT INTO {table} (aggregate_id, event_type, payload_json) \
         SELECT '{table}', '{event_type}', '{{}}' FROM generate_series(1, {count})"
    );
    platform.sql.batch_execute(&sql).await.expect("inserted");
}

async fn rows(platform: &Platform, table: &str) -> i64 {
    let query = format!("SELECT count(*) FROM {table}");
    let row = platform.sql.query_one(&query, &[]).await;
    row.expect("counted").get(0)
}

/// Waits until the table has so many rows.
async fn has_rows(platform: &Platform, table: &str, count: i64) {
    let reached = async {
        while rows(platform, table).await != count {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let reached = tokio::time::timeout(LIMIT, reached).await;
    reached.expect("the table gets there in time");
}

/// Waits until the stream has so many messages on these subjects.
async fn holds(platform: &Platform, subjects: &str, count: usize) {
    let reached = async {
        loop {
            let stream = platform.stream().await;
            let found = stream.info_with_subjects(subjects).await;
            let counts = found.expect("subjects").map(|found| found.expect("one").1);
            if counts.collect::<Vec<usize>>().await.iter().sum::<usize>() >= count {
                return;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let reached = tokio::time::timeout(LIMIT, reached).await;
    reached.expect("the stream gets there in time");
}

/// Waits until the lane record names the table, from where on its rows are the lane's.
async fn goes_over_to(platform: &Platform, table: &str) {
    let named = format!("\"table\":\"{table}\"");
    let reached = async {
        loop {
            let records = platform.jetstream.get_stream("WALRELAY").await;
            let records = records.expect("the records");
            let record = records.get_last_raw_message_by_subject("walrelay.lane.OUTBOX.walrelay");
            let record = record.await.expect("the lane's");
            if String::from_utf8_lossy(&record.payload).contains(&named) {
                return;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let reached = tokio::time::timeout(LIMIT, reached).await;
    reached.expect("the relay gets there in time");
}

/// From now on commands are of the lane of this table.
fn of_lane(platform: &mut Platform, table: &str) {
    platform.set("WALRELAY_POSTGRES_TABLE", &format!("public.{table}"));
    platform.set("WALRELAY_POSTGRES_SLOT", table);
    platform.set("WALRELAY_POSTGRES_PUBLICATION", table);
    platform.set("WALRELAY_NATS_SUBJECT", &format!("{table}.{{event_type}}"));
}

#[tokio::test]
async fn backfills_and_dead_letters_of_another_lane_count_for_no_row() {
    let mut platform = Platform::servers().await;
    platform.set("WALRELAY_NATS_SHARED", "true");
    make(&platform, "one").await;
    make(&platform, "two").await;
    insert(&platform, "one", "made", 5).await;
    insert(&platform, "two", "made", 3).await;
    of_lane(&mut platform, "one");
    platform.expect(&["setup"], 0).await;
    let mut stream = platform.stream().await;
    let mut config = stream.info().await.expect("its state").config.clone();
    for subject in ["two.>", "walrelay.dead.two"] {
        config.subjects.push(subject.to_owned());
    }
    platform
        .jetstream
        .update_stream(&config)
        .await
        .expect("it takes them");
    of_lane(&mut platform, "two");
    platform.expect(&["setup"], 0).await;
    let second = platform.relay();
    of_lane(&mut platform, "one");
    let first = platform.relay();
    insert(&platform, "one", "made", 1).await;
    holds(&platform, "one.>", 1).await;
    // The other lane has ids 1 to 3 as backfills, 4 and 5 as dead letters, and 6 as an event.
    insert(&platform, "two", "not made", 2).await;
    insert(&platform, "two", "made", 1).await;
    holds(&platform, "two.>", 1).await;
    of_lane(&mut platform, "two");
    let said = platform.expect(&["backfill"], 0).await;
    assert!(said.contains("3 of 3 rows"), "{said}");
    assert_eq!(platform.verify(1).await["dead_lettered"]["count"], 2);

    of_lane(&mut platform, "one");
    let report = platform.verify(1).await;
    assert_eq!(
        (&report["missing"]["count"], &report["again"]),
        (&5.into(), &0.into())
    );
    let said = platform.expect(PRUNE, 1).await;
    assert!(said.contains("5 rows are not in stream OUTBOX"), "{said}");
    assert_eq!(rows(&platform, "one").await, 6);

    let said = platform.expect(&["backfill"], 0).await;
    assert!(said.contains("5 of 5 rows"), "{said}");
    let report = platform.verify(0).await;
    assert_eq!(
        (&report["events"], &report["again"]),
        (&1.into(), &5.into())
    );
    first.stop().await;
    // Its own backfills it knows as such.
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    let first = platform.relay();
    insert(&platform, "one", "made", 1).await;
    has_rows(&platform, "one", 0).await;
    first.stop().await;
    second.stop().await;
    assert_eq!(rows(&platform, "two").await, 6);
}

/// The lane goes over to a table whose ids begin again: the first has published ids 1 to 10.
async fn another_table() -> Platform {
    let mut platform = Platform::servers().await;
    make(&platform, "old").await;
    platform.set("WALRELAY_POSTGRES_TABLE", "public.old");
    platform.expect(&["setup"], 0).await;
    let relay = platform.relay();
    insert(&platform, "old", "made", 10).await;
    platform.wait_for(10).await;
    relay.stop().await;
    make(&platform, "new").await;
    insert(&platform, "new", "made", 5).await;
    platform.set("WALRELAY_POSTGRES_TABLE", "public.new");
    let sql = "ALTER PUBLICATION walrelay ADD TABLE new";
    platform.sql.batch_execute(sql).await.expect("added");
    platform
}

#[tokio::test]
async fn messages_of_a_former_table_count_for_no_row() {
    let platform = another_table().await;
    // Also before a relay has looked.
    let report = platform.verify(3).await;
    assert_eq!(report["unjudged"]["count"], 5);
    let relay = platform.relay();
    goes_over_to(&platform, "new").await;
    insert(&platform, "new", "made", 1).await;
    platform.wait_for(11).await;
    let report = platform.verify(3).await;
    for (kind, count) in [
        ("unjudged", 5),
        ("missing", 0),
        ("doubled", 0),
        ("phantom", 0),
    ] {
        assert_eq!(report[kind]["count"], count, "{kind}");
    }
    let said = platform.expect(&["verify"], 3).await;
    assert!(
        said.contains("5 rows cannot be judged: the stream has the ids of another table"),
        "{said}"
    );
    let said = platform.expect(PRUNE, 1).await;
    assert!(said.contains("ids of 5 rows of another table"), "{said}");
    let said = platform.expect(&["backfill"], 0).await;
    assert!(
        said.contains("5 rows cannot be judged and are left out: the stream has their ids"),
        "{said}"
    );
    platform.expect(&["backfill", "--unjudged"], 0).await;
    let report = platform.verify(0).await;
    assert_eq!((&report["rows"], &report["again"]), (&6.into(), &5.into()));
    platform.expect(PRUNE, 0).await;
    assert_eq!(rows(&platform, "new").await, 0);
    relay.stop().await;
}

#[tokio::test]
async fn rows_are_not_deleted_by_messages_of_a_former_table() {
    let mut platform = another_table().await;
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    let relay = platform.relay();
    goes_over_to(&platform, "new").await;
    insert(&platform, "new", "made", 1).await;
    // Its own row goes, behind all messages of the other table.
    has_rows(&platform, "new", 5).await;
    platform.expect(&["backfill", "--unjudged"], 0).await;
    insert(&platform, "new", "made", 1).await;
    has_rows(&platform, "new", 0).await;
    relay.stop().await;
    assert_eq!(platform.last_sequence().await, 17);
}

/// The present table has a row with the letter's id, aggregate and time.
#[tokio::test]
async fn a_letter_of_a_former_table_is_not_retried_by_a_row_of_the_present_one() {
    let mut platform = Platform::servers().await;
    make(&platform, "old").await;
    platform.set("WALRELAY_POSTGRES_TABLE", "public.old");
    platform.expect(&["setup"], 0).await;
    let relay = platform.relay();
    let dead = "INSERT INTO old (aggregate_id, event_type, payload_json, occurred_at)
        VALUES ('a', 'no subject', '{\"of\": \"old\"}', 'epoch')";
    platform.sql.batch_execute(dead).await.expect("inserted");
    platform.wait_for(1).await;
    relay.stop().await;
    make(&platform, "new").await;
    let other = "INSERT INTO new (aggregate_id, event_type, payload_json, occurred_at)
        VALUES ('a', 'made', '{\"of\": \"new\"}', 'epoch')";
    platform.sql.batch_execute(other).await.expect("inserted");
    platform.set("WALRELAY_POSTGRES_TABLE", "public.new");
    let sql = "ALTER PUBLICATION walrelay ADD TABLE new";
    platform.sql.batch_execute(sql).await.expect("added");
    let list = platform.output(&["dead-letters", "list", "--json"]).await;
    let letter: serde_json::Value = serde_json::from_slice(&list.stdout).expect("one letter");
    let position = letter["position"].as_str().expect("a position");
    let set = ["--set", "event_type=mended"];
    let retry = [&["dead-letters", "retry", position], &set[..]].concat();
    platform.expect(&retry, 0).await;
    let (_, body) = platform.message(2).await;
    let body = String::from_utf8(body).expect("JSON");
    assert!(body.contains(r#"{"of": "old"}"#), "{body}");
}
