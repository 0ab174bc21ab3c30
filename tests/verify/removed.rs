//! What `walrelay verify` says of rows whose messages the stream has removed, or may have.

use crate::platform::{Platform, insert, insert_of_type};

#[tokio::test]
async fn retention_on_both_sides_is_no_loss() {
    let platform = Platform::start().await;
    for _ in 0..10 {
        platform.insert(1).await;
    }
    platform.relay_until(10).await;
    let all = platform.message(5).await;
    let body: serde_json::Value = serde_json::from_slice(&all.1).unwrap();
    let fifth: uuid::Uuid = body["id"].as_str().unwrap().parse().unwrap();

    // The table loses its oldest rows, the stream its oldest messages.
    let stream = platform.jetstream.get_stream("OUTBOX").await.unwrap();
    stream.purge().sequence(4).await.unwrap();
    let report = platform.verify(3).await;
    assert_eq!(report["unjudged"]["count"], 3);
    let oldest = "DELETE FROM outbox_events WHERE ctid IN (SELECT ctid FROM outbox_events ORDER BY ctid LIMIT 4)";
    platform.sql.execute(oldest, &[]).await.unwrap();
    let report = platform.verify(0).await;
    assert_eq!(
        (&report["unjudged"]["count"], &report["phantom"]["count"]),
        (&0.into(), &0.into())
    );

    // A row in the middle that is gone was deleted, or never there: where rows are deleted, nothing tells.
    platform
        .sql
        .execute("DELETE FROM outbox_events WHERE id = $1", &[&fifth])
        .await
        .unwrap();
    platform.verify(0).await;
    let sixth = "DELETE FROM outbox_events WHERE ctid = (SELECT ctid FROM outbox_events ORDER BY ctid OFFSET 1 LIMIT 1)";
    platform.sql.execute(sixth, &[]).await.unwrap();
    let report = platform.verify(0).await;
    assert_eq!(
        (&report["rowless"]["count"], &report["phantom"]["count"]),
        (&1.into(), &0.into())
    );

    // Everything purged, with the relay at rest: nothing is missing, and what comes is still told apart.
    platform
        .sql
        .execute("DELETE FROM outbox_events", &[])
        .await
        .unwrap();
    stream.purge().await.unwrap();
    platform.insert(2).await;
    let report = platform.verify(0).await;
    assert_eq!(
        (&report["pending"], &report["unjudged"]["count"]),
        (&2.into(), &0.into())
    );
}

/// Lets the stream keep only its last `count` messages.
async fn keep(platform: &Platform, count: i64) {
    let mut stream = platform.jetstream.get_stream("OUTBOX").await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    config.max_messages = count;
    platform.jetstream.update_stream(config).await.unwrap();
}

#[tokio::test]
async fn what_retention_may_have_removed_is_not_missing_and_not_published_again() {
    let platform = Platform::start().await;
    keep(&platform, 1_000).await;
    platform.insert(3_000).await;
    platform.relay_until(3_000).await;
    let unjudged = async |count: u64| {
        let report = platform.verify(3).await;
        assert_eq!(report["verdict"], "unchecked", "{report}");
        assert_eq!(report["unjudged"]["count"], count, "{report}");
        assert_eq!(report["missing"]["count"], 0, "{report}");
        let said = platform.expect(&["backfill"], 0).await;
        assert!(
            said.starts_with(&format!("{count} rows cannot be judged")),
            "{said}"
        );
        assert!(said.ends_with("\n0 rows are not in the stream\n"), "{said}");
    };
    unjudged(2_000).await;
    assert_eq!(platform.last_sequence().await, 3_000);
    // An UPDATE gives old rows a young xmin. So does a transaction that begins early and commits late, the other way round.
    let mark = "ALTER TABLE outbox_events ADD dispatched_at timestamptz; UPDATE outbox_events SET dispatched_at = now()";
    platform.sql.batch_execute(mark).await.unwrap();
    unjudged(2_000).await;
    let late = platform.postgres.connect("postgres").await.unwrap();
    late.batch_execute("BEGIN").await.unwrap();
    insert(&late, 10).await;
    platform.insert(500).await;
    late.batch_execute("COMMIT").await.unwrap();
    platform.relay_until(3_510).await;
    unjudged(2_510).await;
    keep(&platform, 10).await;
    unjudged(3_500).await;
    assert_eq!(platform.last_sequence().await, 3_510);

    // Whoever knows better says so.
    let all = "3500 rows are not in the stream\n";
    let dry = ["backfill", "--unjudged", "--dry-run"];
    assert_eq!(platform.expect(&dry, 0).await, all);
}

#[tokio::test]
async fn more_rows_without_a_message_than_were_removed_are_missing() {
    let platform = Platform::servers().await;
    let schema = walrelay::outbox::SCHEMA_SQL;
    platform.sql.batch_execute(schema).await.unwrap();
    platform.insert(30).await;
    platform.expect(&["setup"], 0).await;
    platform.insert(20).await;
    platform.relay_until(20).await;
    assert_eq!(platform.verify(1).await["missing"]["count"], 30);
    keep(&platform, 15).await;
    let report = platform.verify(1).await;
    let counts = (&report["missing"]["count"], &report["unjudged"]["count"]);
    assert_eq!(counts, (&30.into(), &5.into()), "{report}");
    // Which ones they are, nobody can tell.
    let said = platform.expect(&["verify"], 1).await;
    assert!(
        said.contains("note: 30 missing rows cannot be told"),
        "{said}"
    );
    assert!(
        said.ends_with("\nnot clean: the lines above say what was found\n"),
        "{said}"
    );
    let said = platform.expect(&["backfill"], 0).await;
    assert!(said.starts_with("35 rows cannot be judged"), "{said}");
    assert_eq!(platform.last_sequence().await, 20);
}

#[tokio::test]
async fn the_slot_tells_what_was_removed_and_what_is_missing() {
    let mut platform = Platform::start().await;
    platform.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    keep(&platform, 10).await;
    platform.insert(30).await;
    platform.relay_until(30).await;
    let report = platform.verify(0).await;
    let counts = (&report["removed"], &report["unjudged"]["count"]);
    assert_eq!(counts, (&20.into(), &0.into()), "{report}");
    platform.delete_message(25).await;
    let report = platform.verify(1).await;
    let counts = (&report["removed"], &report["missing"]["count"]);
    assert_eq!(counts, (&20.into(), &1.into()), "{report}");
    let said = platform.expect(&["backfill"], 0).await;
    assert_eq!(said, "published 1 of 1 row that the stream did not have\n");
}

#[tokio::test]
async fn a_limit_for_each_subject_removes_from_the_middle() {
    let platform = Platform::start().await;
    let mut stream = platform.jetstream.get_stream("OUTBOX").await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    config.max_messages_per_subject = 5;
    platform.jetstream.update_stream(config).await.unwrap();
    insert_of_type(&platform.sql, "lesson.cancelled.v1").await;
    platform.insert(20).await;
    platform.relay_until(21).await;
    let report = platform.verify(3).await;
    let counts = (&report["missing"]["count"], &report["unjudged"]["count"]);
    assert_eq!(counts, (&0.into(), &15.into()), "{report}");
}

#[tokio::test]
async fn a_stream_that_begins_at_a_sequence_has_removed_nothing() {
    let platform = Platform::servers().await;
    let config = async_nats::jetstream::stream::Config {
        name: "OUTBOX".to_owned(),
        subjects: vec!["outbox.>".to_owned(), "walrelay.dead.walrelay".to_owned()],
        first_sequence: Some(100),
        allow_batch_publish: true,
        ..Default::default()
    };
    platform.jetstream.create_stream(config).await.unwrap();
    let schema = walrelay::outbox::SCHEMA_SQL;
    platform.sql.batch_execute(schema).await.unwrap();
    platform.insert(5).await;
    platform.expect(&["setup"], 0).await;
    platform.insert(2).await;
    platform.relay_until(101).await;
    let report = platform.verify(1).await;
    let counts = (&report["missing"]["count"], &report["unjudged"]["count"]);
    assert_eq!(counts, (&5.into(), &0.into()), "{report}");
    let said = platform.expect(&["backfill"], 0).await;
    assert!(said.starts_with("published 5 of 5 rows"), "{said}");
    platform.verify(0).await;
}
