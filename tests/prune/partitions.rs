//! Partitions that `walrelay prune` drops as a whole.

use serde_json::json;

use crate::command::pruned;
use crate::platform::Platform;

/// A database with the table and its partitions, none of them old.
pub(crate) async fn partitioned() -> Platform {
    let platform = Platform::servers().await;
    let layout = include_str!("../../sql/outbox_events_partitioned.sql");
    platform.sql.batch_execute(layout).await.expect("made");
    platform
}

/// Makes the partition of the day so many days ago; its name, and a time of that day.
pub(crate) async fn old_partition(platform: &Platform, days: i32) -> (String, String) {
    let day = format!("((now() AT TIME ZONE 'UTC')::date - {days})");
    let query = format!("SELECT to_char({day}, 'YYYYMMDD'), {day}::text, ({day} + 1)::text");
    let row = platform.sql.query_one(&query, &[]).await.expect("a day");
    let (suffix, from, to): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    let name = format!("public.outbox_events_{suffix}");
    let make = format!(
        "CREATE TABLE {name} PARTITION OF public.outbox_events FOR VALUES FROM ('{from} 00:00:00+00') TO ('{to} 00:00:00+00')"
    );
    platform.sql.batch_execute(&make).await.expect("made");
    (name, format!("{from} 12:00:00+00"))
}

/// Commits so many events of that time; `aggregate` is SQL.
pub(crate) async fn insert_at(platform: &Platform, aggregate: &str, time: &str, count: i32) {
    let insert = format!(
        "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json, occurred_at) \
         SELECT gen_random_uuid(), {aggregate}, 'lesson.published.v1', '{{}}', '{time}' FROM generate_series(1, {count})"
    );
    platform.sql.batch_execute(&insert).await.expect("inserted");
}

/// Makes the partition of the day so many days ago, with so many events in it; its name.
async fn old_day(platform: &Platform, days: i32, events: i32) -> String {
    let (name, time) = old_partition(platform, days).await;
    insert_at(platform, "gen_random_uuid()", &time, events).await;
    name
}

/// A partition goes with the count of what was deleted in it.
#[tokio::test]
async fn what_went_with_its_partition_is_no_phantom() {
    let platform = partitioned().await;
    platform.expect(&["setup"], 0).await;
    let relay = platform.relay();
    platform.insert(1).await;
    let gone = old_day(&platform, 10, 3).await;
    platform.insert(1).await;
    platform.wait_for(5).await;
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(done["partitions"], json!([gone]));
    let report = platform.verify(0).await;
    assert_eq!(
        (&report["phantom"]["count"], &report["rowless"]["count"]),
        (&json!(0), &json!(3))
    );
    relay.stop().await;
}

#[tokio::test]
async fn a_partition_that_is_confirmed_goes_as_a_whole() {
    let platform = partitioned().await;
    platform.expect(&["setup"], 0).await;
    let relay = platform.relay();
    let gone = old_day(&platform, 10, 3).await;
    let kept = old_day(&platform, 9, 2).await;
    let letter = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json, occurred_at) \
                  SELECT gen_random_uuid(), gen_random_uuid(), 'no subject', '{}', max(occurred_at) \
                  FROM outbox_events HAVING max(occurred_at) < now() - interval '8 days'";
    platform.sql.batch_execute(letter).await.expect("inserted");
    platform.insert(1).await;
    platform.wait_for(7).await;
    let query = "SELECT 'public.outbox_events_' || to_char((now() AT TIME ZONE 'UTC')::date + 6, 'YYYYMMDD')";
    let last_day: String = platform
        .sql
        .query_one(query, &[])
        .await
        .expect("a day")
        .get(0);
    platform
        .sql
        .batch_execute(&format!("DROP TABLE {last_day}"))
        .await
        .expect("dropped");

    let dry = pruned(&platform, &["--dry-run"], 0).await;
    assert_eq!(
        (&dry["partitions"], &dry["rows"]),
        (&json!([gone]), &json!(2))
    );
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(done["partitions"], json!([gone]));
    assert_eq!(
        (&done["rows"], &done["open_dead_letters"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(done["partitions_made"], json!([last_day]));
    assert_eq!(done["notes"], json!([]));
    assert_eq!(platform.rows().await, 2);

    // Detached by a run that was ended, and the dead letter's partition once that is closed; without a default partition
    // writers are not kept from the table.
    let discard = ["dead-letters", "discard", "--all", "--reason", "a test"];
    platform.expect(&discard, 0).await;
    let ended = old_day(&platform, 12, 4).await;
    platform.wait_for(12).await;
    let comment = "SELECT format('COMMENT ON TABLE %s IS %L', $1::text, 'walrelay prune: detached from public.outbox_events, ' \
                   || pg_get_expr(relpartbound, oid)) FROM pg_class WHERE oid = $1::text::regclass";
    let row = platform.sql.query_one(comment, &[&ended]).await;
    let comment: String = row.expect("read").get(0);
    let half = format!(
        "DROP TABLE public.outbox_events_default; \
         {comment}; \
         ALTER TABLE public.outbox_events DETACH PARTITION {ended}"
    );
    platform.sql.batch_execute(&half).await.expect("detached");
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(done["partitions"], json!([kept, ended]));
    assert_eq!(done["rows"], 0);
    assert_eq!(platform.rows().await, 1);
    platform.insert(1).await;
    platform.wait_for(13).await;
    relay.stop().await;
}
