//! What `walrelay verify` finds, and that it finds nothing where nothing is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::HeaderMap;

use crate::platform::{Platform, insert, insert_of_type};

#[tokio::test]
async fn what_was_done_to_the_stream_is_found() {
    let platform = Platform::start().await;
    platform.insert(20).await;
    // Not published yet, and no relay at the slot: the slot tells.
    let report = platform.verify(0).await;
    assert_eq!(
        (&report["pending"], &report["rows"]),
        (&20.into(), &20.into())
    );

    platform.relay_until(20).await;
    let report = platform.verify(0).await;
    assert_eq!(report["verdict"], "clean");
    assert_eq!(
        (&report["pending"], &report["events"]),
        (&0.into(), &20.into())
    );

    // Doubled, and out of order: the same message once more at the end.
    let (headers, body) = platform.message(3).await;
    let again = platform
        .publish("outbox.lesson.published.v1", headers, body)
        .await;
    let report = platform.verify(1).await;
    assert_eq!(report["doubled"]["count"], 1);
    assert_eq!(report["doubled"]["examples"][0]["sequence"], 3);
    assert_eq!(report["doubled"]["examples"][0]["last_sequence"], again);
    assert_eq!(report["out_of_order"]["count"], 1);
    assert_eq!(report["out_of_order"]["examples"][0]["sequence"], again);

    // Reordered alone: the first of the two is gone.
    platform.delete_message(3).await;
    let report = platform.verify(1).await;
    assert_eq!(report["doubled"]["count"], 0);
    assert_eq!(report["out_of_order"]["count"], 1);
    assert_eq!(report["missing"]["count"], 0);

    // Missing: both are.
    platform.delete_message(again).await;
    let report = platform.verify(1).await;
    assert_eq!(report["out_of_order"]["count"], 0);
    assert_eq!(report["missing"]["count"], 1);

    // A replay puts it back and is no double of the others.
    for sequence in [4, 5] {
        let (mut headers, body) = platform.message(sequence).await;
        headers.insert("Walrelay-Kind", "replay");
        platform
            .publish("outbox.lesson.published.v1", headers, body)
            .await;
    }
    let report = platform.verify(1).await;
    assert_eq!(
        (&report["again"], &report["doubled"]["count"]),
        (&2.into(), &0.into())
    );
}

#[tokio::test]
async fn backfill_publishes_what_is_missing_and_nothing_else() {
    let platform = Platform::start().await;
    platform.insert(20).await;
    platform.relay_until(20).await;
    // Pending rows are the relay's.
    platform.insert(5).await;
    assert_eq!(
        platform.expect(&["backfill"], 0).await,
        "0 rows are not in the stream\n"
    );
    platform.relay_until(25).await;
    for sequence in [3, 7, 25] {
        platform.delete_message(sequence).await;
    }
    assert_eq!(platform.verify(1).await["missing"]["count"], 3);
    assert_eq!(
        platform.expect(&["backfill", "--dry-run"], 0).await,
        "3 rows are not in the stream\n"
    );
    let said = platform.expect(&["backfill"], 0).await;
    assert_eq!(said, "published 3 of 3 rows that the stream did not have\n");
    let (headers, _) = platform.message(26).await;
    let kind = headers.get("Walrelay-Kind").map(|kind| kind.as_str());
    assert_eq!(kind, Some("backfill"));
    assert!(headers.get("Walrelay-Position").is_none());
    assert_eq!(platform.verify(0).await["again"], 3);
    assert_eq!(
        platform.expect(&["backfill"], 0).await,
        "0 rows are not in the stream\n"
    );
    // The lane goes on behind them.
    platform.insert(5).await;
    platform.relay_until(33).await;
    platform.verify(0).await;
}

#[tokio::test]
async fn dead_letters_are_found_and_a_missing_table_is_no_verdict() {
    let platform = Platform::start().await;
    insert_of_type(&platform.sql, "has a space").await;
    platform.insert(1).await;
    platform.relay_until(2).await;
    let report = platform.verify(1).await;
    assert_eq!(report["dead_lettered"]["count"], 1);
    assert_eq!(report["dead_lettered"]["examples"][0]["sequence"], 1);
    assert_eq!(report["missing"]["count"], 0);

    platform
        .sql
        .execute("DROP TABLE outbox_events", &[])
        .await
        .unwrap();
    platform.expect(&["verify"], 3).await;
}

#[tokio::test]
async fn rows_that_share_an_id_need_a_message_each() {
    let platform = Platform::start().await;
    let keyless = "ALTER TABLE outbox_events DROP CONSTRAINT outbox_events_pkey";
    platform.sql.batch_execute(keyless).await.unwrap();
    let id = insert_of_type(&platform.sql, "lesson.published.v1").await;
    let again = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
                 SELECT id, aggregate_id, event_type, '{}' FROM outbox_events, generate_series(1, 2)";
    platform.sql.batch_execute(again).await.unwrap();
    // Not published yet: the slot has all three.
    assert_eq!(platform.verify(0).await["pending"], 3);
    platform.relay_until(3).await;
    assert_eq!(platform.verify(0).await["verdict"], "clean");
    platform.delete_message(2).await;
    let report = platform.verify(1).await;
    assert_eq!(report["missing"]["count"], 1, "{report}");
    assert_eq!(report["missing"]["examples"][0]["id"], id.to_string());
    // Which of them is missing cannot be told, so none is published again.
    let said = platform.expect(&["backfill"], 1).await;
    assert!(said.contains("has 3 rows with this id"), "{said}");
}

#[tokio::test]
async fn a_dead_letter_is_not_hidden_by_an_event_of_its_id() {
    let platform = Platform::start().await;
    let keyless = "ALTER TABLE outbox_events DROP CONSTRAINT outbox_events_pkey";
    platform.sql.batch_execute(keyless).await.unwrap();
    insert_of_type(&platform.sql, "lesson.published.v1").await;
    let unlike = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
                  SELECT id, aggregate_id, 'has a space', '{}' FROM outbox_events";
    platform.sql.batch_execute(unlike).await.unwrap();
    platform.relay_until(2).await;
    let report = platform.verify(1).await;
    assert_eq!(report["dead_lettered"]["count"], 1, "{report}");
    assert_eq!(report["dead_lettered"]["examples"][0]["sequence"], 2);
    assert_eq!(report["missing"]["count"], 0, "{report}");
}

#[tokio::test]
async fn beside_a_live_relay_and_writers_nothing_is_found() {
    let platform = Platform::start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..3_u32 {
        let sql = platform.postgres.connect("postgres").await.unwrap();
        let stop = stop.clone();
        writers.push(tokio::spawn(async move {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                sql.batch_execute("BEGIN").await.unwrap();
                insert(&sql, 1 + (round * 7 + writer) % 40).await;
                sql.batch_execute("SAVEPOINT s").await.unwrap();
                insert(&sql, 3).await;
                let end = ["COMMIT", "ROLLBACK TO s; COMMIT", "ROLLBACK"][(round % 3) as usize];
                sql.batch_execute(end).await.unwrap();
            }
        }));
    }
    let relay = platform.relay();
    for _ in 0..5 {
        let report = platform.verify(0).await;
        assert_eq!(report["verdict"], "clean", "{report}");
    }
    // A lost event is found beside them all the same.
    platform.delete_message(2).await;
    let report = platform.verify(1).await;
    assert_eq!(report["missing"]["count"], 1, "{report}");
    relay.kill().await;
    let report = platform.verify(1).await;
    assert_eq!(report["missing"]["count"], 1, "{report}");
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn messages_of_others_are_counted_apart() {
    let platform = Platform::start().await;
    platform.insert(3).await;
    platform.relay_until(3).await;
    platform
        .publish("outbox.by.hand", HeaderMap::new(), b"{}".to_vec())
        .await;
    let report = platform.verify(0).await;
    assert_eq!(report["foreign"], 1);
}

#[tokio::test]
async fn two_backfills_of_a_row_are_a_double() {
    let platform = Platform::start().await;
    platform.insert(5).await;
    platform.relay_until(5).await;
    let (_, body) = platform.message(2).await;
    let oid = "SELECT 'walrelay ' || 'outbox_events'::regclass::oid";
    let of_lane = platform.sql.query_one(oid, &[]).await.unwrap();
    let of_lane: String = of_lane.get(0);
    let fill = async || {
        let body = body.clone();
        let mut headers = HeaderMap::new();
        headers.insert("Walrelay-Kind", "backfill");
        headers.insert("Walrelay-Backfill", of_lane.as_str());
        platform
            .publish("outbox.lesson.published.v1", headers, body)
            .await
    };
    // Beside the event itself.
    let first = fill().await;
    let report = platform.verify(1).await;
    assert_eq!(report["doubled"]["count"], 1, "{report}");
    assert_eq!(report["doubled"]["examples"][0]["sequence"], 2);
    assert_eq!(report["doubled"]["examples"][0]["last_sequence"], first);
    // In its place.
    platform.delete_message(2).await;
    assert_eq!(platform.verify(0).await["again"], 1);
    // By two commands that saw the row missing at once.
    fill().await;
    assert_eq!(platform.verify(1).await["doubled"]["count"], 1);
}

#[tokio::test]
async fn an_id_on_both_sides_of_since_is_no_double() {
    let platform = Platform::start().await;
    let keyless = "ALTER TABLE outbox_events DROP CONSTRAINT outbox_events_pkey";
    platform.sql.batch_execute(keyless).await.unwrap();
    platform.insert(3).await;
    let older =
        "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json, occurred_at)
                 SELECT id, aggregate_id, event_type, '{}', '2020-01-01' FROM outbox_events";
    platform.sql.batch_execute(older).await.unwrap();
    platform.relay_until(6).await;
    let since = async |code| {
        let arguments = ["verify", "--json", "--since", "2024-01-01T00:00:00Z"];
        let text = platform.expect(&arguments, code).await;
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let report = since(0).await;
    let counts = (&report["rows"], &report["doubled"]["count"]);
    assert_eq!(counts, (&3.into(), &0.into()), "{report}");
    // Whether the older or the younger row is without its message, nobody can tell.
    platform.delete_message(6).await;
    let report = since(3).await;
    let counts = (&report["missing"]["count"], &report["unjudged"]["count"]);
    assert_eq!(counts, (&0.into(), &1.into()), "{report}");
    platform.delete_message(3).await;
    assert_eq!(since(1).await["missing"]["count"], 1);
}

/// Of three rows, which the slot has passed, the last two did not occur before noon.
#[tokio::test]
async fn a_moment_is_compared_in_the_type_that_the_column_has() {
    let mut platform = Platform::start().await;
    let far_away = "ALTER DATABASE postgres SET timezone = 'Pacific/Kiritimati'";
    platform.sql.batch_execute(far_away).await.unwrap();
    let noon = ["--since", "2026-03-01T11:59:59.9995Z"];
    let replay = |to| {
        let table = ["replay", "--source", "table", "--dry-run", "--from"];
        [&table[..], &["2026-03-01T12:00:00Z", "--to", to]].concat()
    };
    for (column, made, since, at_noon) in [
        (
            "timestamptz",
            "'2026-03-01 12:00:00+00'::timestamptz + n * interval '1 h'",
            2,
            1,
        ),
        (
            "timestamp",
            "'2026-03-01 12:00:00'::timestamp + n * interval '1 h'",
            2,
            1,
        ),
        ("bigint", "1772366400000 + n * 3600000", 2, 1),
        ("date", "'2026-03-01'::date + n::int", 1, 0),
    ] {
        let changed = format!(
            "ALTER TABLE outbox_events DROP occurred_at;
             ALTER TABLE outbox_events ADD occurred_at {column};
             DELETE FROM outbox_events;
             INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json, occurred_at)
             SELECT gen_random_uuid(), gen_random_uuid(), 'made.v1', '{{}}', {made} FROM generate_series(-1, 1) AS n"
        );
        platform.sql.batch_execute(&changed).await.unwrap();
        let passed = "SELECT pg_replication_slot_advance('walrelay', pg_current_wal_insert_lsn())";
        platform.sql.batch_execute(passed).await.unwrap();
        let text = platform
            .expect(&[&["verify", "--json"], &noon[..]].concat(), 1)
            .await;
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(report["missing"]["count"], since, "{column}: {report}");
        let backfill = [&["backfill", "--dry-run"], &noon[..]].concat();
        let missing = platform.expect(&backfill, 0).await;
        assert!(
            missing.contains(&format!("{since} row")),
            "{column}: {missing}"
        );
        // Years that Postgres writes in another way than RFC 3339 does.
        for (ever, code) in [
            ("0000-01-01T00:00:00Z", 1),
            ("0000-01-01T00:00:00+14:00", 1),
            ("9999-12-31T23:59:59-14:00", 0),
        ] {
            let text = platform
                .expect(&["verify", "--json", "--since", ever], code)
                .await;
            let report: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(report["missing"]["count"], 3 * code, "{ever}: {report}");
        }
        let replayed = platform.expect(&replay("2026-03-01T12:00:00Z"), 0).await;
        assert!(
            replayed.contains(&format!("{at_noon} event")),
            "{column}: {replayed}"
        );
    }
    let commands = [
        [&["verify"], &noon[..]].concat(),
        [&["backfill"], &noon[..]].concat(),
        replay("2026-03-01T12:00:00Z"),
        vec!["prune", "--older-than", "1d"],
    ];
    let no_moment = "ALTER TABLE outbox_events ALTER occurred_at TYPE text";
    platform.sql.batch_execute(no_moment).await.unwrap();
    for command in &commands {
        let said = platform.expect(command, 2).await;
        assert!(
            said.contains("is of type text: columns.occurred_at needs"),
            "{said}"
        );
    }
    platform.set("WALRELAY_COLUMNS_OCCURRED_AT", "");
    for command in &commands {
        let said = platform.expect(command, 2).await;
        assert!(
            said.contains("columns.occurred_at names no column"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_lane_that_stands_still_is_not_clean() {
    let platform = Platform::start().await;
    platform.insert(1).await;
    assert_eq!(platform.verify(0).await["verdict"], "clean");
    // Committed long ago, as a replication origin may say.
    let old = "SELECT pg_replication_origin_create('elsewhere');
               SELECT pg_replication_origin_session_setup('elsewhere');
               BEGIN;
               SELECT pg_replication_origin_xact_setup('0/1', now() - interval '1 hour');
               INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
               VALUES (gen_random_uuid(), gen_random_uuid(), 'lesson.published.v1', '{}');
               COMMIT;
               SELECT pg_replication_origin_session_reset()";
    // Without a time nothing is known of its age.
    let untimed = old.replace("now() - interval '1 hour'", "'2000-01-01 00:00:00+00'");
    let untimed = untimed.replace("'elsewhere'", "'nowhere'");
    platform.sql.batch_execute(&untimed).await.unwrap();
    assert_eq!(platform.verify(0).await["pending"], 2);
    platform.sql.batch_execute(old).await.unwrap();
    let report = platform.verify(1).await;
    assert_eq!(report["verdict"], "found", "{report}");
    assert_eq!(report["pending"], 3, "{report}");
    assert!(
        report["pending_seconds"].as_u64() >= Some(3_600),
        "{report}"
    );
    let said = platform.expect(&["verify"], 1).await;
    assert!(said.contains("the lane stands still"), "{said}");
    // They are the relay's all the same.
    assert_eq!(
        platform.expect(&["backfill"], 0).await,
        "0 rows are not in the stream\n"
    );
    platform.relay_until(3).await;
    platform.verify(0).await;
}

/// A row is seen at once, and decoded when its WAL is written.
#[tokio::test]
async fn rows_of_an_asynchronous_commit_are_pending() {
    let platform = Platform::start().await;
    let late = "ALTER SYSTEM SET wal_writer_delay = '10s'; SELECT pg_reload_conf(); SET synchronous_commit = off";
    for sql in late.split("; ") {
        platform.sql.batch_execute(sql).await.unwrap();
    }
    let waiting = "SELECT FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE '%pg_current_wal_flush_lsn%'";
    let mut has_waited = false;
    // The WAL writer may have been on its way still.
    for _ in 0..10 {
        platform.insert(5).await;
        let verify = platform.verify(0);
        tokio::pin!(verify);
        let seen = async {
            while platform
                .sql
                .query_opt(waiting, &[])
                .await
                .unwrap()
                .is_none()
            {
                tokio::task::yield_now().await;
            }
        };
        let report = tokio::select! {
            report = &mut verify => report,
            () = seen => {
                // It is written with a commit that waits for that.
                let flush = "BEGIN; SET LOCAL synchronous_commit = on; SELECT pg_logical_emit_message(true, 'a', ''); COMMIT";
                platform.sql.batch_execute(flush).await.unwrap();
                has_waited = true;
                verify.await
            }
        };
        assert_eq!(report["missing"]["count"], 0, "{report}");
        if has_waited {
            return;
        }
    }
    panic!("no look into the slot has waited for the WAL");
}

#[tokio::test]
async fn an_event_that_never_had_a_row_is_found_where_nothing_is_deleted() {
    let platform = Platform::start().await;
    platform.insert(3).await;
    platform.relay_until(3).await;
    let (headers, body) = platform.message(3).await;
    let id = "0192f7a0-0000-7000-8000-000000000001";
    let mut event: serde_json::Value = serde_json::from_slice(&body).unwrap();
    event["id"] = id.into();
    let mut named = HeaderMap::new();
    for (name, values) in headers.iter() {
        let name: &str = name.as_ref();
        if name == "Walrelay-Position" {
            named.insert(name, values[0].as_str());
        }
    }
    platform
        .publish(
            "outbox.lesson.published.v1",
            named,
            event.to_string().into(),
        )
        .await;
    let report = platform.verify(1).await;
    assert_eq!(
        (&report["phantom"]["count"], &report["rowless"]["count"]),
        (&1.into(), &0.into()),
        "{report}"
    );
    assert_eq!(report["phantom"]["examples"][0]["id"], id);
}
