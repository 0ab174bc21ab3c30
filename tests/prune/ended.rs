//! What a `walrelay prune` that was killed leaves of a partitioned table: it is told, and put back where it belongs.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::platform::{Platform, Relay};

const LIMIT: Duration = Duration::from_secs(180);
const PRUNE: &[&str] = &["prune", "--older-than", "7d"];
/// In the old partition.
const AGGREGATE: &str = "0190b6a0-0000-7000-8000-000000000001";

/// A partitioned table without a default partition, whose relay has published everything: three rows of ten days ago, whose partition
/// is named, and one of today.
async fn partitioned() -> (Platform, Relay, String) {
    let mut platform = Platform::servers().await;
    let layout = include_str!("../../sql/outbox_events_partitioned.sql");
    platform.sql.batch_execute(layout).await.expect("made");
    let day = "((now() AT TIME ZONE 'UTC')::date - 10)";
    let query = format!("SELECT to_char({day}, 'YYYYMMDD'), {day}::text, ({day} + 1)::text");
    let row = platform.sql.query_one(&query, &[]).await.expect("a day");
    let (suffix, from, to): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    let name = format!("public.outbox_events_{suffix}");
    let make = format!(
        "DROP TABLE public.outbox_events_default; \
         CREATE TABLE {name} PARTITION OF public.outbox_events FOR VALUES FROM ('{from} 00:00:00+00') TO ('{to} 00:00:00+00')"
    );
    platform.sql.batch_execute(&make).await.expect("made");
    platform.expect(&["setup"], 0).await;
    // No prune comes to its end beside it.
    platform.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let relay = platform.relay();
    insert_old(&platform, &format!("'{from} 12:00:00+00'"), 3).await;
    platform.insert(1).await;
    platform.wait_for(4).await;
    (platform, relay, name)
}

async fn insert_old(platform: &Platform, at: &str, count: i32) {
    let insert = format!(
        "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json, occurred_at) \
         SELECT gen_random_uuid(), '{AGGREGATE}', 'lesson.published.v1', '{{}}', {at} FROM generate_series(1, {count})"
    );
    platform.sql.batch_execute(&insert).await.expect("inserted");
}

async fn number(platform: &Platform, query: &str) -> i64 {
    let row = platform.sql.query_one(query, &[]).await;
    row.expect("read").get(0)
}

async fn rows(platform: &Platform) -> i64 {
    number(platform, "SELECT count(*) FROM outbox_events").await
}

/// Waits until the query counts so many.
async fn counts(platform: &Platform, query: &str, count: i64) {
    let counted = async {
        while number(platform, query).await != count {
            tokio::task::yield_now().await;
        }
    };
    let counted = tokio::time::timeout(LIMIT, counted).await;
    counted.expect("it gets there in time");
}

/// A prune that has detached the old partition, and waits for the slot.
async fn waiting(platform: &Platform) -> Child {
    let mut prune = platform
        .command(PRUNE)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(prune.stderr.take().expect("piped")).lines();
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await;
    let line = line
        .expect("it says something in time")
        .expect("it is read");
    let line = line.expect("a line");
    assert!(line.starts_with("waiting until"), "{line}");
    prune
}

/// Kills it, and waits until Postgres knows.
async fn killed(platform: &Platform, mut prune: Child) {
    prune.kill().await.expect("killed");
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    counts(platform, locks, 0).await;
}

async fn pruned(platform: &Platform, more: &[&str], code: i32) -> Value {
    let output = platform.output(&[PRUNE, &["--json"], more].concat()).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// The SQL that `doctor` prints for partitions that are detached; none where it finds none.
async fn remedy(platform: &Platform) -> Option<String> {
    let output = platform.output(&["doctor", "--json"]).await;
    let found: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let findings = found["findings"].as_array().expect("a list");
    let detached = |finding: &&Value| finding["code"] == "detached";
    let mut all = findings.iter().filter(detached);
    let one = all.next()?["mend"].as_str().expect("a remedy").to_owned();
    assert_eq!(all.next(), None);
    let sql = one.split_once("run ").expect("SQL").1;
    Some(sql.to_owned())
}

/// The relay of the same configuration, which confirms.
async fn confirming(platform: &mut Platform, relay: Relay) -> Relay {
    relay.stop().await;
    platform.set("WALRELAY_RELAY_HOLD_BACK", "0s");
    let relay = platform.relay();
    let read = "SELECT count(*) FROM pg_replication_slots WHERE active";
    counts(platform, read, 1).await;
    relay
}

const ERASE: &[&str] = &["erase", "--yes", "--aggregate-id", AGGREGATE];

#[tokio::test]
async fn what_it_has_detached_is_told_and_attached_as_printed() {
    let (mut platform, relay, name) = partitioned().await;
    let prune = waiting(&platform).await;
    assert_eq!(rows(&platform).await, 1);
    // It is at work: the rows go, or come back.
    assert_eq!(remedy(&platform).await, None);
    let said = platform.expect(ERASE, 1).await;
    assert!(
        said.contains(&name) && said.contains("walrelay prune"),
        "{said}"
    );
    let said = platform.expect(PRUNE, 1).await;
    assert!(said.contains("another walrelay prune is at work"), "{said}");
    killed(&platform, prune).await;

    let said = platform.expect(ERASE, 1).await;
    let sql = remedy(&platform).await.expect("it is told");
    assert!(said.contains(&name) && said.contains(&sql), "{sql}: {said}");
    assert_eq!(platform.stream().await.cached_info().state.messages, 4);
    let dry = pruned(&platform, &["--dry-run"], 0).await;
    assert!(
        dry["notes"][0].as_str().expect("a note").contains(&name),
        "{dry}"
    );
    platform.sql.batch_execute(&sql).await.expect("it is SQL");
    assert_eq!(rows(&platform).await, 4);
    assert_eq!(remedy(&platform).await, None);
    let relay = confirming(&mut platform, relay).await;
    platform.expect(ERASE, 0).await;
    assert_eq!(rows(&platform).await, 1);
    platform.verify(0).await;
    relay.stop().await;
}

/// Nothing else looks at it meanwhile.
#[tokio::test]
async fn what_it_has_detached_is_compared_before_it_goes() {
    let (mut platform, relay, name) = partitioned().await;
    let prune = waiting(&platform).await;
    killed(&platform, prune).await;
    let put = format!(
        "INSERT INTO {name} (id, aggregate_id, event_type, payload_json, occurred_at) \
         SELECT gen_random_uuid(), aggregate_id, event_type, payload_json, occurred_at FROM {name} LIMIT 1"
    );
    platform.sql.batch_execute(&put).await.expect("inserted");
    let relay = confirming(&mut platform, relay).await;
    let said = platform.expect(PRUNE, 1).await;
    let (_, backfill) = said
        .split_once("nothing was deleted: walrelay ")
        .expect(&said);
    assert_eq!(rows(&platform).await, 5);
    let (backfill, _) = backfill.split_once(" publishes").expect("a command");
    let words: Vec<&str> = backfill.split(' ').collect();
    platform.expect(&words, 0).await;
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(done["partitions"], json!([name]));
    assert_eq!(rows(&platform).await, 1);
    relay.stop().await;
    platform.verify(0).await;
}

/// Another partition has its place.
#[tokio::test]
async fn what_cannot_be_attached_again_stays() {
    let (mut platform, relay, name) = partitioned().await;
    let prune = waiting(&platform).await;
    killed(&platform, prune).await;
    let bound = "SELECT substr(description, strpos(description, 'FOR VALUES')) FROM pg_description \
                 WHERE objoid = $1::text::regclass AND objsubid = 0";
    let row = platform.sql.query_one(bound, &[&name]).await;
    let bound: String = row.expect("read").get(0);
    let take = format!("CREATE TABLE taken PARTITION OF outbox_events {bound}");
    platform.sql.batch_execute(&take).await.expect("made");
    let relay = confirming(&mut platform, relay).await;
    let done = pruned(&platform, &[], 1).await;
    let why = done["notes"][0].as_str().expect("a note");
    assert!(
        why.contains(&name) && why.contains("would overlap"),
        "{done}"
    );
    assert_eq!(done["done"], json!(false));
    let left = format!("SELECT count(*) FROM {name}");
    assert_eq!(number(&platform, &left).await, 3);
    // It was old and empty.
    assert_eq!(done["partitions"], json!(["public.taken"]));
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(done["partitions"], json!([name]));
    relay.stop().await;
}

/// The first half of DETACH CONCURRENTLY is committed by itself.
#[tokio::test]
async fn what_it_was_about_to_detach_is_told_and_attached_as_printed() {
    let (mut platform, relay, name) = partitioned().await;
    let mut other = platform.postgres.connect("postgres").await;
    let other = other.as_mut().expect("a connection");
    for _ in 0..2 {
        let reading = other.transaction().await.expect("begun");
        let read = "SELECT count(*) FROM outbox_events";
        reading.query_one(read, &[]).await.expect("read");
        let mut prune = platform.command(PRUNE);
        prune.stdout(Stdio::null()).stderr(Stdio::null());
        let mut prune = prune.spawn().expect("it starts");
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE%'";
        counts(&platform, waits, 1).await;
        prune.kill().await.expect("killed");
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE%'";
        platform.sql.query(end, &[]).await.expect("ended");
        counts(&platform, waits, 0).await;
        drop(reading);
        assert_eq!(rows(&platform).await, 1);
        let said = platform.expect(ERASE, 1).await;
        assert!(said.contains(&name), "{said}");
        let sql = remedy(&platform).await.expect("it is told");
        platform.sql.batch_execute(&sql).await.expect("it is SQL");
        assert_eq!(rows(&platform).await, 4);
        assert_eq!(remedy(&platform).await, None);
    }
    let relay = confirming(&mut platform, relay).await;
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(done["partitions"], json!([name]));
    relay.stop().await;
}
