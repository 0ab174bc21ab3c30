//! `walrelay prune` against real servers: what goes, and what stays.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use walrelay::outbox::SCHEMA_SQL;

use crate::platform::{Platform, insert, insert_of_type};

const LIMIT: Duration = Duration::from_secs(180);
const PRUNE: &[&str] = &["prune", "--older-than", "7d"];

/// Commits so many events that say that they are ten days old.
async fn insert_old(platform: &Platform, count: u32) {
    insert(&platform.sql, count).await;
    age(platform).await;
}

/// Makes every young row ten days old. The publication carries inserts alone, so that the stream sees nothing of it.
async fn age(platform: &Platform) {
    let text = "UPDATE outbox_events SET occurred_at = now() - interval '10 days' WHERE occurred_at > now() - interval '1 day'";
    platform.sql.batch_execute(text).await.expect("updated");
}

async fn rows(platform: &Platform) -> i64 {
    let row = platform
        .sql
        .query_one("SELECT count(*) FROM outbox_events", &[]);
    row.await.expect("counted").get(0)
}

/// The one JSON object of a run that ends with this code.
async fn pruned(platform: &Platform, more: &[&str], code: i32) -> Value {
    let arguments = [PRUNE, &["--json"], more].concat();
    let output = platform.output(&arguments).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

async fn refused(platform: &Platform, more: &[&str], why: &str) {
    let before = rows(platform).await;
    let said = platform.expect(&[PRUNE, more].concat(), 1).await;
    assert!(said.contains(why), "{said}");
    assert_eq!(rows(platform).await, before);
}

#[tokio::test]
async fn what_is_confirmed_and_old_goes_in_batches() {
    let platform = Platform::start().await;
    let relay = platform.relay();
    insert_old(&platform, 10).await;
    platform.insert(5).await;
    platform.wait_for(15).await;

    let dry = pruned(&platform, &["--dry-run"], 0).await;
    assert_eq!(
        (&dry["rows"], &dry["confirmed_lsn"]),
        (&json!(10), &Value::Null)
    );
    assert_eq!(rows(&platform).await, 15);

    let done = pruned(&platform, &["--batch", "3"], 0).await;
    assert_eq!((&done["rows"], &done["done"]), (&json!(10), &json!(true)));
    assert!(done["confirmed_lsn"].is_string());
    assert_eq!(rows(&platform).await, 5);
    let nothing = pruned(&platform, &[], 0).await;
    assert_eq!(
        (&nothing["rows"], &nothing["done"]),
        (&json!(0), &json!(true))
    );
    // It has asked no slot.
    assert_eq!(nothing["confirmed_lsn"], Value::Null);

    // The lane does not mind, and what is left is what the stream has.
    platform.insert(1).await;
    platform.wait_for(16).await;
    relay.stop().await;
    platform.verify(0).await;
}

#[tokio::test]
async fn what_commits_while_it_waits_stays() {
    let mut platform = Platform::start().await;
    platform.set("WALRELAY_RELAY_HOLD_BACK", "3s");
    let relay = platform.relay();
    insert_old(&platform, 4).await;
    platform.wait_for(4).await;
    let open = platform
        .postgres
        .connect("postgres")
        .await
        .expect("a connection");
    let begin = "BEGIN; SAVEPOINT inner_one";
    open.batch_execute(begin).await.expect("begun");
    insert(&open, 2).await;
    let mut prune = platform
        .command(PRUNE)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(prune.stderr.take().expect("piped")).lines();
    let line = lines
        .next_line()
        .await
        .expect("it says something")
        .expect("a line");
    assert!(
        line.starts_with("waiting until every slot is confirmed"),
        "{line}"
    );
    open.batch_execute("COMMIT").await.expect("committed");
    insert_old(&platform, 3).await;
    // Vacuum does not wait for it meanwhile.
    let held = "SELECT count(*) FROM pg_stat_activity
                WHERE backend_xmin IS NOT NULL AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let held_by_none = async {
        while platform
            .sql
            .query_one(held, &[])
            .await
            .expect("read")
            .get::<_, i64>(0)
            > 0
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, held_by_none)
        .await
        .expect("no snapshot is kept");
    assert_eq!(prune.try_wait().expect("asked"), None, "it still waits");
    let output = prune.wait_with_output().await.expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.starts_with("4 rows of public.outbox_events deleted"),
        "{said}"
    );
    assert_eq!(rows(&platform).await, 5);
    relay.stop().await;
}

#[tokio::test]
async fn a_prune_that_is_told_to_stop_says_how_far_it_came() {
    let platform = Platform::start().await;
    let relay = platform.relay();
    insert_old(&platform, 5_000).await;
    platform.wait_for(5_000).await;
    // No batch goes by until the one that holds this row is asked for.
    let mut locked = platform
        .postgres
        .connect("postgres")
        .await
        .expect("a connection");
    let lock = locked.transaction().await.expect("begun");
    let one = "SELECT FROM outbox_events WHERE ctid = (SELECT ctid FROM outbox_events ORDER BY ctid OFFSET 2500 LIMIT 1) FOR UPDATE";
    lock.query(one, &[]).await.expect("locked");
    let prune = platform
        .command(&[PRUNE, &["--json", "--batch", "100"]].concat())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'DELETE%'";
    let is_in_the_middle = async {
        while platform
            .sql
            .query_one(waits, &[])
            .await
            .expect("read")
            .get::<_, i64>(0)
            == 0
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, is_in_the_middle)
        .await
        .expect("it deletes");
    let pid = prune
        .id()
        .and_then(|id| Pid::from_raw(id.cast_signed()))
        .expect("it runs");
    kill_process(pid, Signal::TERM).expect("signalled");
    drop(lock);
    let output = prune.wait_with_output().await.expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let deleted = report["rows"].as_i64().expect("a number");
    assert_eq!(report["done"], false, "{report}");
    assert_eq!(rows(&platform).await, 5_000 - deleted, "{report}");
    assert!((2_500..5_000).contains(&deleted), "{report}");

    assert_eq!(pruned(&platform, &[], 0).await["rows"], 5_000 - deleted);
    platform.insert(1).await;
    platform.wait_for(5_001).await;
    relay.stop().await;
    platform.verify(0).await;
}

#[tokio::test]
async fn what_a_slot_has_not_confirmed_stays() {
    let platform = Platform::start().await;
    platform.insert(3).await;
    platform.relay_until(3).await;
    age(&platform).await;
    insert_old(&platform, 2).await;
    refused(&platform, &[], "slot walrelay has confirmed").await;

    // Another slot that nobody reads: Postgres does not say for which tables.
    let other = "SELECT pg_create_logical_replication_slot('other', 'pgoutput')";
    platform.sql.query(other, &[]).await.expect("made");
    let relay = platform.relay();
    insert_old(&platform, 1).await;
    platform.wait_for(6).await;
    refused(&platform, &[], "slot other has confirmed").await;
    let done = pruned(&platform, &["--except-slot", "other"], 0).await;
    assert_eq!(done["rows"], 6);
    relay.stop().await;
}

#[tokio::test]
async fn a_slot_that_was_moved_by_hand_keeps_what_it_passed_over() {
    let platform = Platform::start().await;
    platform.insert(1).await;
    platform.relay_until(1).await;
    insert_old(&platform, 2).await;
    let advance = "SELECT pg_replication_slot_advance('walrelay', pg_current_wal_lsn())";
    platform.sql.query(advance, &[]).await.expect("advanced");
    refused(&platform, &[], "2 rows are not in stream OUTBOX").await;

    let mut prune = platform.command(&[PRUNE, &["--without-comparison"]].concat());
    prune.stderr(Stdio::piped());
    let prune = prune.spawn().expect("it starts").wait_with_output();
    let moved = async {
        loop {
            platform.sql.query(advance, &[]).await.expect("advanced");
        }
    };
    let output = tokio::select! {
        output = prune => output.expect("it ends"),
        () = moved => unreachable!(),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("somebody else has moved the slot"), "{said}");
    assert_eq!(rows(&platform).await, 3);
}

#[tokio::test]
async fn an_open_dead_letter_stays_until_it_is_closed() {
    let platform = Platform::start().await;
    let relay = platform.relay();
    insert_of_type(&platform.sql, "no subject").await;
    platform.insert(2).await;
    platform.wait_for(3).await;
    age(&platform).await;
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(
        (&done["rows"], &done["open_dead_letters"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(rows(&platform).await, 1);
    let discard = ["dead-letters", "discard", "--all", "--reason", "a test"];
    platform.expect(&discard, 0).await;
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(
        (&done["rows"], &done["open_dead_letters"]),
        (&json!(1), &json!(0))
    );
    relay.stop().await;
}

/// What the relay keeps in mind of open dead letters; none before its first look.
async fn kept_letters(platform: &Platform) -> Option<Value> {
    let stream = platform.jetstream.get_stream("WALRELAY").await;
    let stream = stream.expect("a stream");
    let subject = "walrelay.lane.OUTBOX.walrelay.letters";
    let message = stream.get_last_raw_message_by_subject(subject).await.ok()?;
    serde_json::from_slice(&message.payload).ok()
}

/// Waits until it keeps so many.
async fn keeps(platform: &Platform, count: usize) {
    let kept = async {
        loop {
            let kept = kept_letters(platform).await;
            let letters = kept.as_ref().and_then(|kept| kept["letters"].as_array());
            if letters.is_some_and(|letters| letters.len() == count) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let kept = tokio::time::timeout(LIMIT, kept).await;
    kept.expect("it takes note in time");
}

/// The stream keeps so many messages and drops the oldest.
async fn keep_the_last(platform: &Platform, messages: i64) {
    let mut config = platform.stream().await.cached_info().config.clone();
    config.max_messages = messages;
    let edited = platform.jetstream.update_stream(&config).await;
    edited.expect("edited");
}

#[tokio::test]
async fn an_open_dead_letter_that_the_stream_has_removed_keeps_its_row() {
    let platform = Platform::start().await;
    let relay = platform.relay();
    insert_of_type(&platform.sql, "no subject").await;
    platform.wait_for(1).await;
    keeps(&platform, 1).await;
    keep_the_last(&platform, 3).await;
    let said = platform.expect(&["doctor"], 1).await;
    assert!(
        said.contains("which removes its oldest messages (max_msgs 3)"),
        "{said}"
    );
    assert!(
        said.contains("nats stream edit OUTBOX --max-msgs=-1\n"),
        "{said}"
    );
    // The letter goes, and events of which nothing is left in the stream.
    platform.insert(5).await;
    platform.wait_for(6).await;
    age(&platform).await;
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(
        (&done["rows"], &done["open_dead_letters"]),
        (&json!(5), &json!(1))
    );
    assert_eq!(rows(&platform).await, 1);
    let list = platform.expect(&["dead-letters", "list"], 0).await;
    assert!(list.contains("    gone  "), "{list}");
    let said = platform.expect(&["doctor"], 1).await;
    let remedy = "walrelay dead-letters retry --all";
    assert!(
        said.contains("1 open dead letter is no longer in stream OUTBOX") && said.contains(remedy),
        "{said}"
    );

    // The row is mended, and what is printed publishes it.
    let mend = "UPDATE outbox_events SET event_type = 'lesson.published.v1'";
    platform.sql.batch_execute(mend).await.expect("mended");
    let typed: Vec<&str> = remedy.split(' ').skip(1).collect();
    platform.expect(&typed, 0).await;
    assert_eq!(platform.last_sequence().await, 8);
    // Again nothing is published: the mark tells.
    let said = platform.expect(&typed, 0).await;
    assert!(said.contains("no open dead letters"), "{said}");
    keeps(&platform, 0).await;
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(
        (&done["rows"], &done["open_dead_letters"]),
        (&json!(1), &json!(0))
    );
    relay.stop().await;
    platform.verify(0).await;
}

#[tokio::test]
async fn rows_that_may_be_dead_letters_of_which_nothing_is_known_stay() {
    let platform = Platform::start().await;
    let relay = platform.relay();
    insert_old(&platform, 5).await;
    platform.wait_for(5).await;
    keeps(&platform, 0).await;
    relay.stop().await;
    keep_the_last(&platform, 3).await;
    let records = platform.jetstream.get_stream("WALRELAY").await;
    let records = records.expect("a stream");
    let purge = records
        .purge()
        .filter("walrelay.lane.OUTBOX.walrelay.letters");
    purge.await.expect("purged");
    refused(&platform, &[], "unjudged: 2 rows").await;
    // What it says cures it.
    let relay = platform.relay();
    keeps(&platform, 0).await;
    assert_eq!(pruned(&platform, &[], 0).await["rows"], 5);
    relay.stop().await;
}

#[tokio::test]
async fn rows_from_before_the_slot_stay_until_they_are_published() {
    let platform = Platform::servers().await;
    platform.sql.batch_execute(SCHEMA_SQL).await.expect("made");
    platform.insert(3).await;
    platform.expect(&["setup"], 0).await;
    let relay = platform.relay();
    platform.insert(1).await;
    platform.wait_for(1).await;
    // None of them is old enough to go.
    assert_eq!(pruned(&platform, &[], 0).await["rows"], 0);
    age(&platform).await;
    refused(
        &platform,
        &[],
        "3 rows are not in stream OUTBOX, so nothing was deleted: walrelay backfill",
    )
    .await;
    platform.expect(&["backfill"], 0).await;
    assert_eq!(pruned(&platform, &[], 0).await["rows"], 4);
    relay.stop().await;
}

#[tokio::test]
async fn tables_with_columns_of_their_own() {
    let mut platform = Platform::servers().await;
    for (column, created) in [
        (
            "bigint",
            "(extract(epoch FROM now() - interval '8 days') * 1000)::bigint",
        ),
        (
            "timestamp",
            "(now() AT TIME ZONE 'UTC') - interval '8 days'",
        ),
        (
            "date",
            "((now() AT TIME ZONE 'UTC') - interval '9 days')::date",
        ),
    ] {
        let name = format!("orders_{column}");
        let make = format!(
            "CREATE TABLE {name} (\"Key\" bigint PRIMARY KEY, made {column}, body text, kind text)"
        );
        platform.sql.batch_execute(&make).await.expect("made");
        for (key, value) in [
            ("WALRELAY_NAME", name.as_str()),
            ("WALRELAY_POSTGRES_TABLE", &format!("public.{name}")),
            ("WALRELAY_NATS_STREAM", &name.to_uppercase()),
            ("WALRELAY_NATS_SUBJECT", &format!("{name}.{{event_type}}")),
            ("WALRELAY_COLUMNS_ID", "Key"),
            ("WALRELAY_COLUMNS_AGGREGATE_ID", ""),
            ("WALRELAY_COLUMNS_EVENT_TYPE", "kind"),
            ("WALRELAY_COLUMNS_EVENT_VERSION", ""),
            ("WALRELAY_COLUMNS_OCCURRED_AT", "made"),
            ("WALRELAY_COLUMNS_PAYLOAD", "body"),
            ("WALRELAY_MESSAGE_FORMAT", "payload"),
        ] {
            platform.set(key, value);
        }
        platform.expect(&["setup"], 0).await;
        let relay = platform.relay();
        let fill = format!(
            "INSERT INTO {name} SELECT n, {created}, '{{}}', 'made' FROM generate_series(1, 3) AS n; \
             INSERT INTO {name} VALUES (4, {created_now}, '{{}}', 'made'), (5, NULL, '{{}}', 'made')",
            created_now = created
                .replace("8 days", "1 day")
                .replace("9 days", "1 day")
        );
        platform.sql.batch_execute(&fill).await.expect("inserted");
        platform.wait_for(5).await;
        let except: Vec<String> = ["bigint", "timestamp"]
            .iter()
            .filter(|other| **other != column)
            .flat_map(|other| ["--except-slot".to_owned(), format!("orders_{other}")])
            .collect();
        let except: Vec<&str> = except.iter().map(String::as_str).collect();
        assert_eq!(pruned(&platform, &except, 0).await["rows"], 3, "{column}");
        let left = format!("SELECT array_agg(\"Key\" ORDER BY \"Key\") FROM {name}");
        let left = platform.sql.query_one(&left, &[]).await.expect("read");
        assert_eq!(left.get::<_, Vec<i64>>(0), [4, 5], "{column}");
        relay.stop().await;
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_with_what_to_do() {
    let mut platform = Platform::start().await;
    for age in ["7", "0", "-1d", "a week", ""] {
        let given = format!("--older-than={age}");
        let said = platform.expect(&["prune", &given], 2).await;
        assert!(
            said.contains("is not an age such as 7d, 36h or 30min"),
            "{age}: {said}"
        );
    }
    platform
        .expect(&[PRUNE, &["--batch", "0"]].concat(), 2)
        .await;
    platform.insert(1).await;
    platform.relay_until(1).await;

    let url = platform
        .postgres
        .url("postgres")
        .replace("postgres@", "pruner@");
    let make =
        "CREATE ROLE pruner LOGIN REPLICATION; GRANT SELECT ON public.outbox_events TO pruner";
    platform.sql.batch_execute(make).await.expect("made");
    let owners = platform.environment.clone();
    platform.set("DATABASE_URL", &url);
    // It counts, and says what is missing.
    age(&platform).await;
    let dry = pruned(&platform, &["--dry-run"], 1).await;
    assert_eq!((&dry["rows"], &dry["done"]), (&json!(1), &json!(true)));
    let said = platform.expect(PRUNE, 1).await;
    let told = dry["notes"][0].as_str().expect("a note");
    assert!(said.contains(told), "{said}");
    let grant = told.split("run ").nth(1).expect("a remedy");
    assert_eq!(grant, "GRANT DELETE ON public.outbox_events TO pruner;");
    platform.sql.batch_execute(grant).await.expect("it is SQL");
    let dry = pruned(&platform, &["--dry-run"], 0).await;
    assert_eq!((&dry["rows"], &dry["notes"]), (&json!(1), &json!([])));

    platform.environment = owners;
    platform.set("WALRELAY_COLUMNS_OCCURRED_AT", "");
    let said = platform.expect(PRUNE, 2).await;
    assert!(
        said.contains("columns.occurred_at names no column"),
        "{said}"
    );
}

/// Makes the partition of the day so many days ago, with so many events in it; its name.
async fn old_day(platform: &Platform, days: i32, events: i32) -> String {
    let day = format!("((now() AT TIME ZONE 'UTC')::date - {days})");
    let query = format!("SELECT to_char({day}, 'YYYYMMDD'), {day}::text, ({day} + 1)::text");
    let row = platform.sql.query_one(&query, &[]).await.expect("a day");
    let (suffix, from, to): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    let name = format!("public.outbox_events_{suffix}");
    let sql = format!(
        "CREATE TABLE {name} PARTITION OF public.outbox_events \
         FOR VALUES FROM ('{from} 00:00:00+00') TO ('{to} 00:00:00+00'); \
         INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json, occurred_at) \
         SELECT gen_random_uuid(), gen_random_uuid(), 'lesson.published.v1', '{{}}', '{from} 12:00:00+00' \
         FROM generate_series(1, {events})"
    );
    platform.sql.batch_execute(&sql).await.expect("made");
    name
}

/// A partition goes with the count of what was deleted in it.
#[tokio::test]
async fn what_went_with_its_partition_is_no_phantom() {
    let platform = Platform::servers().await;
    let layout = include_str!("../../sql/outbox_events_partitioned.sql");
    platform.sql.batch_execute(layout).await.expect("made");
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
    let platform = Platform::servers().await;
    let layout = include_str!("../../sql/outbox_events_partitioned.sql");
    platform.sql.batch_execute(layout).await.expect("made");
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
    assert_eq!(rows(&platform).await, 2);

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
    assert_eq!(rows(&platform).await, 1);
    platform.insert(1).await;
    platform.wait_for(13).await;
    relay.stop().await;
}
