//! What a `walrelay prune` that was killed leaves of a partitioned table: it is told, and put back where it belongs.

use serde_json::{Value, json};
use tokio::process::Child;

use crate::command::{PRUNE, pruned, waiting};
use crate::partitions::{self, insert_at, old_partition};
use crate::platform::{Platform, Relay};

/// In the old partition.
const AGGREGATE: &str = "0190b6a0-0000-7000-8000-000000000001";

/// A partitioned table without a default partition, whose relay has published everything: three rows of ten days ago, whose partition
/// is named, and one of today.
async fn partitioned() -> (Platform, Relay, String) {
    let mut platform = partitions::partitioned().await;
    let without_default = "DROP TABLE public.outbox_events_default";
    let dropped = platform.sql.batch_execute(without_default).await;
    dropped.expect("dropped");
    let (name, time) = old_partition(&platform, 10).await;
    platform.expect(&["setup"], 0).await;
    // No prune comes to its end beside it.
    platform.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let relay = platform.relay();
    insert_at(&platform, &format!("'{AGGREGATE}'"), &time, 3).await;
    platform.insert(1).await;
    platform.wait_for(4).await;
    (platform, relay, name)
}

/// Kills it, and waits until Postgres knows.
async fn killed(platform: &Platform, mut prune: Child) {
    prune.kill().await.expect("killed");
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    platform.counts(locks, 0).await;
}

/// The SQL that `doctor` prints for partitions that are detached; none where it finds none.
pub(crate) async fn remedy(platform: &Platform) -> Option<String> {
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
    platform.counts(read, 1).await;
    relay
}

const ERASE: &[&str] = &["erase", "--yes", "--aggregate-id", AGGREGATE];

#[tokio::test]
async fn what_it_has_detached_is_told_and_attached_as_printed() {
    let (mut platform, relay, name) = partitioned().await;
    let prune = waiting(&platform).await;
    assert_eq!(platform.rows().await, 1);
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
    assert_eq!(platform.rows().await, 4);
    assert_eq!(remedy(&platform).await, None);
    let relay = confirming(&mut platform, relay).await;
    platform.expect(ERASE, 0).await;
    assert_eq!(platform.rows().await, 1);
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
    assert_eq!(platform.rows().await, 5);
    let (backfill, _) = backfill.split_once(" publishes").expect("a command");
    let words: Vec<&str> = backfill.split(' ').collect();
    platform.expect(&words, 0).await;
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(done["partitions"], json!([name]));
    assert_eq!(platform.rows().await, 1);
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
    assert_eq!(platform.number(&left).await, 3);
    // It was old and empty.
    assert_eq!(done["partitions"], json!(["public.taken"]));
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(done["partitions"], json!([name]));
    relay.stop().await;
}

/// Somebody still reads there: which partition that is, and who, is told, and everything goes once they have ended.
#[tokio::test]
async fn what_is_still_being_detached_is_told_with_who_has_it_open() {
    let (mut platform, relay, name) = partitioned().await;
    let (next, time) = old_partition(&platform, 9).await;
    insert_at(&platform, "gen_random_uuid()", &time, 2).await;
    platform.wait_for(6).await;
    // On a busy machine Postgres would take it for dead, and nobody would read the slot for a moment.
    platform.set("WALRELAY_RELAY_STATUS_INTERVAL", "2s");
    let relay = confirming(&mut platform, relay).await;
    let reading = platform.begins("SELECT count(*) FROM outbox_events").await;
    let pid = reading.query_one("SELECT pg_backend_pid()", &[]).await;
    let pid: i32 = pid.expect("a number").get(0);
    let mut prune = platform.spawn(PRUNE);
    platform.waits_for_a_lock("ALTER TABLE").await;
    prune.kill().await.expect("killed");
    let end =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE%'";
    platform.sql.query(end, &[]).await.expect("ended");
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    platform.counts(locks, 0).await;

    // Nobody sees its three rows, and a comparison without them says so.
    let report = platform.verify(0).await;
    let unseen = report["detached"].as_str().unwrap_or_default();
    assert!(unseen.contains(&name), "{report}");
    let said = platform.expect(&["verify"], 0).await;
    assert!(said.contains("note: ") && said.contains(&name), "{said}");

    let done = pruned(&platform, &[], 1).await;
    let notes = done["notes"].to_string();
    assert!(
        notes.contains(&format!("{name} is still being detached"))
            && notes.contains(&format!("pid {pid}"))
            && notes.contains(&format!("{next} is not detached")),
        "{notes}"
    );
    assert_eq!((&done["rows"], &done["done"]), (&json!(2), &json!(false)));
    drop(reading);
    let gone = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    platform.counts(&gone, 0).await;
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(done["partitions"], json!([name, next]));
    let report = platform.verify(0).await;
    assert_eq!(report["detached"], Value::Null);
    relay.stop().await;
}

/// The first half of DETACH CONCURRENTLY is committed by itself.
#[tokio::test]
async fn what_it_was_about_to_detach_is_told_and_attached_as_printed() {
    let (mut platform, relay, name) = partitioned().await;
    for _ in 0..2 {
        let reading = platform.begins("SELECT count(*) FROM outbox_events").await;
        let mut prune = platform.spawn(PRUNE);
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE%'";
        platform.counts(waits, 1).await;
        prune.kill().await.expect("killed");
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE%'";
        platform.sql.query(end, &[]).await.expect("ended");
        platform.counts(waits, 0).await;
        drop(reading);
        assert_eq!(platform.rows().await, 1);
        let said = platform.expect(ERASE, 1).await;
        assert!(said.contains(&name), "{said}");
        let sql = remedy(&platform).await.expect("it is told");
        platform.sql.batch_execute(&sql).await.expect("it is SQL");
        assert_eq!(platform.rows().await, 4);
        assert_eq!(remedy(&platform).await, None);
    }
    let relay = confirming(&mut platform, relay).await;
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(done["partitions"], json!([name]));
    relay.stop().await;
}
