//! `walrelay prune` against real servers: which rows go, and which stay.

use rustix::process::Signal;
use serde_json::{Value, json};
use walrelay::outbox::SCHEMA_SQL;

use crate::command::{PRUNE, age, insert_old, pruned, refused, waiting};
use crate::platform::{Platform, ends, insert, object, signal};

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
    assert_eq!(platform.rows().await, 15);

    let done = pruned(&platform, &["--batch", "3"], 0).await;
    assert_eq!((&done["rows"], &done["done"]), (&json!(10), &json!(true)));
    assert!(done["confirmed_lsn"].is_string());
    assert_eq!(platform.rows().await, 5);
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
    let open = platform.begins("SAVEPOINT inner_one").await;
    insert(&open, 2).await;
    let mut prune = waiting(&platform).await;
    open.batch_execute("COMMIT").await.expect("committed");
    insert_old(&platform, 3).await;
    // Vacuum does not wait for it meanwhile.
    let held = "SELECT count(*) FROM pg_stat_activity
                WHERE backend_xmin IS NOT NULL AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    platform.counts(held, 0).await;
    assert_eq!(prune.try_wait().expect("asked"), None, "it still waits");
    let output = ends(prune).await;
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.starts_with("4 rows of public.outbox_events deleted"),
        "{said}"
    );
    assert_eq!(platform.rows().await, 5);
    relay.stop().await;
}

#[tokio::test]
async fn a_prune_that_is_told_to_stop_says_how_far_it_came() {
    let platform = Platform::start().await;
    let relay = platform.relay();
    insert_old(&platform, 5_000).await;
    platform.wait_for(5_000).await;
    // No batch goes by until the one that holds this row is asked for.
    let one = "SELECT FROM outbox_events WHERE ctid = (SELECT ctid FROM outbox_events ORDER BY ctid OFFSET 2500 LIMIT 1) FOR UPDATE";
    let locker = platform.begins(one).await;
    let prune = platform.spawn(&[PRUNE, &["--json", "--batch", "100"]].concat());
    platform.waits_for_a_lock("DELETE").await;
    signal(&prune, Signal::TERM);
    drop(locker);
    let report = object(&ends(prune).await, 1);
    let deleted = report["rows"].as_i64().expect("a number");
    assert_eq!(report["done"], false, "{report}");
    assert_eq!(platform.rows().await, 5_000 - deleted, "{report}");
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
async fn only_slots_of_others_are_left_out() {
    let platform = Platform::start().await;
    let relay = platform.relay();
    insert_old(&platform, 2).await;
    platform.wait_for(2).await;
    let except = |slot| [PRUNE, &["--except-slot", slot]].concat();
    let said = platform.expect(&except("walrelay"), 2).await;
    assert!(
        said.contains("--except-slot walrelay: this outbox is published from it")
            && said.contains("no other slot is there"),
        "{said}"
    );
    let other = "SELECT pg_create_logical_replication_slot('other', 'pgoutput')";
    platform.sql.query(other, &[]).await.expect("made");
    for (name, told) in [
        (
            "othr",
            "has no logical slot of that name; did you mean other; there are other",
        ),
        (
            "inventory",
            "has no logical slot of that name; there are other",
        ),
    ] {
        let said = platform.expect(&except(name), 2).await;
        assert!(said.contains(told), "{said}");
        // Also where nothing would go.
        let dry = [&except(name)[..], &["--dry-run"]].concat();
        platform.expect(&dry, 2).await;
    }
    assert_eq!(platform.rows().await, 2);
    // As it says.
    let done = pruned(&platform, &["--except-slot", "other"], 0).await;
    assert_eq!(done["rows"], 2);
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

    let prune = platform.spawn(&[PRUNE, &["--without-comparison"]].concat());
    let moved = async {
        loop {
            platform.sql.query(advance, &[]).await.expect("advanced");
        }
    };
    let output = tokio::select! {
        output = ends(prune) => output,
        () = moved => unreachable!(),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("somebody else has moved the slot"), "{said}");
    assert_eq!(platform.rows().await, 3);
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
    let mut except: Vec<String> = Vec::new();
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
        let others: Vec<&str> = except.iter().map(String::as_str).collect();
        assert_eq!(pruned(&platform, &others, 0).await["rows"], 3, "{column}");
        except.extend(["--except-slot".to_owned(), name.clone()]);
        let left = format!("SELECT array_agg(\"Key\" ORDER BY \"Key\") FROM {name}");
        let left = platform.sql.query_one(&left, &[]).await.expect("read");
        assert_eq!(left.get::<_, Vec<i64>>(0), [4, 5], "{column}");
        relay.stop().await;
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_with_what_to_do() {
    let mut platform = Platform::start().await;
    for age in ["7", "0", "-1d", "a week", "99999y", ""] {
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
