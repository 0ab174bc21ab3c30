//! Each doubt about continuity halts with exit code 4 and publishes nothing; `walrelay adopt` lets it go on.

mod platform;

use std::path::{Path, PathBuf};
use std::process::Command;

use platform::{Platform, insert, insert_of_type};
use walrelay::local::{LocalPostgres, Mode, PostgresOptions, ServerBinaries};

/// The relay ends with 4 and says this; the stream stays as it is.
async fn halts(platform: &Platform, says: &str) {
    let before = platform.last_sequence().await;
    let text = platform.expect(&["run"], 4).await;
    assert!(text.contains(says), "{text}");
    assert_eq!(
        platform.last_sequence().await,
        before,
        "nothing is published"
    );
}

async fn adopts(platform: &Platform) -> String {
    // Nobody can be asked: nothing is changed.
    platform.expect(&["adopt"], 2).await;
    platform.expect(&["adopt", "--yes"], 0).await
}

#[tokio::test]
async fn a_slot_that_was_advanced_by_hand() {
    let platform = Platform::start().await;
    platform.insert(3).await;
    platform.relay_until(3).await;
    platform.insert(2).await;
    let advance = "SELECT pg_replication_slot_advance('walrelay', pg_current_wal_lsn())";
    platform.sql.query(advance, &[]).await.unwrap();
    platform.insert(4).await;
    halts(&platform, "Somebody advanced").await;
    adopts(&platform).await;
    platform.relay_until(3 + 4).await;
    let report = platform.verify(1).await;
    assert_eq!(
        report["missing"]["count"], 2,
        "those that the advance skipped"
    );
    assert_eq!(report["doubled"]["count"], 0);
}

#[tokio::test]
async fn what_the_hold_back_keeps_in_the_slot_does_not_come_twice() {
    for removed in [0, 1, 5] {
        let mut platform = Platform::start().await;
        platform.set("WALRELAY_RELAY_HOLD_BACK", "1h");
        platform.insert(1).await;
        let between: tokio_postgres::types::PgLsn = platform
            .sql
            .query_one("SELECT pg_current_wal_lsn()", &[])
            .await
            .unwrap()
            .get(0);
        for _ in 0..4 {
            platform.insert(1).await;
        }
        platform.relay_until(5).await;
        // The end of the stream is gone too, or all of it.
        for sequence in (6 - removed)..=5 {
            platform.delete_message(sequence).await;
        }
        let advance = "SELECT pg_replication_slot_advance('walrelay', $1)";
        platform.sql.query(advance, &[&between]).await.unwrap();
        platform.insert(2).await;
        // Advanced through what was acknowledged: nothing is skipped, and the relay just goes on. An adoption that nobody
        // needed finds the same place, and marks it where the end is gone.
        if removed == 5 {
            platform.relay_until(7).await;
        } else {
            let text = adopts(&platform).await;
            assert!(text.contains("slot and stream have in common"), "{text}");
            platform.relay_until(5 + u64::from(removed > 0) + 2).await;
        }
        let output = platform.output(&["verify", "--json"]).await;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["events"], 7 - removed, "{report}");
        assert_eq!(report["doubled"]["count"], 0);
        assert_eq!(
            report["missing"]["count"],
            if removed == 1 { 1 } else { 0 },
            "{report}"
        );
    }
}

#[tokio::test]
async fn a_restored_snapshot_whose_wal_ends_before_the_stream() {
    let mut platform = Platform::start().await;
    platform.insert(3).await;
    platform.relay_until(3).await;
    let snapshot = take_snapshot(&mut platform).await;
    platform.insert(500).await;
    platform.relay_until(503).await;
    restore(&mut platform, &snapshot).await;
    platform.insert(2).await;
    halts(&platform, "WAL ends at").await;
    adopts(&platform).await;
    platform.insert(1).await;
    platform.relay_until(503 + 3).await;
    let report = platform.verify(1).await;
    assert_eq!(report["phantom"]["count"], 500);
    assert_eq!(
        (&report["missing"]["count"], &report["doubled"]["count"]),
        (&0.into(), &0.into())
    );
}

#[tokio::test]
async fn a_slot_that_was_read_by_another_client() {
    let platform = Platform::start().await;
    platform.insert(3).await;
    platform.relay_until(3).await;
    platform.insert(2).await;
    let read = "SELECT count(*) FROM pg_logical_slot_get_binary_changes('walrelay', NULL, NULL, \
                'proto_version', '1', 'publication_names', 'walrelay')";
    platform.sql.query(read, &[]).await.unwrap();
    halts(&platform, "Somebody advanced").await;
    adopts(&platform).await;
    platform.insert(1).await;
    platform.relay_until(4).await;
    assert_eq!(platform.verify(1).await["missing"]["count"], 2);
}

#[tokio::test]
async fn a_slot_that_was_dropped_and_made_again() {
    // Also before anything was published.
    for published in [0, 3] {
        let platform = Platform::start().await;
        if published > 0 {
            platform.insert(published).await;
            platform.relay_until(published.into()).await;
        }
        let drop = "SELECT pg_drop_replication_slot('walrelay')";
        platform.sql.query(drop, &[]).await.unwrap();
        platform.insert(2).await;
        let text = platform.expect(&["setup"], 0).await;
        assert!(text.contains("walrelay adopt"), "{text}");
        platform.insert(4).await;
        halts(&platform, "made it anew").await;
        adopts(&platform).await;
        platform.relay_until(u64::from(published) + 4).await;
        let report = platform.verify(1).await;
        assert_eq!(report["missing"]["count"], 2);
        assert_eq!(report["doubled"]["count"], 0);
    }
}

#[tokio::test]
async fn another_cluster_behind_the_name() {
    let mut platform = Platform::start().await;
    platform.insert(3).await;
    platform.relay_until(3).await;
    let options = PostgresOptions {
        fsync: false,
        own_identity: true,
        ..PostgresOptions::default()
    };
    let binaries = ServerBinaries::find().unwrap();
    let other = LocalPostgres::start(&binaries, options).await.unwrap();
    platform.set("DATABASE_URL", &other.url("postgres"));
    platform.expect(&["setup"], 0).await;
    let sql = other.connect("postgres").await.unwrap();
    insert(&sql, 2).await;
    halts(&platform, "Another database stands behind the same names").await;
    let text = adopts(&platform).await;
    assert!(text.contains("no row in common"), "{text}");
    platform.relay_until(5).await;
    let report = platform.verify(0).await;
    assert_eq!((&report["rows"], &report["events"]), (&2.into(), &5.into()));
}

#[tokio::test]
async fn a_second_database_with_the_same_stream_and_slot_names() {
    let mut platform = Platform::start().await;
    platform.insert(3).await;
    platform.relay_until(3).await;
    // Slot names are unique in a cluster: the second one's is free only once the first is gone.
    let drop = "SELECT pg_drop_replication_slot('walrelay')";
    platform.sql.query(drop, &[]).await.unwrap();
    platform
        .sql
        .batch_execute("CREATE DATABASE second")
        .await
        .unwrap();
    platform.set("DATABASE_URL", &platform.postgres.url("second"));
    platform.expect(&["setup"], 0).await;
    let sql = platform.postgres.connect("second").await.unwrap();
    insert(&sql, 2).await;
    halts(&platform, "Another database stands behind the same names").await;
    adopts(&platform).await;
    platform.relay_until(5).await;
    platform.verify(0).await;
}

#[tokio::test]
async fn a_removed_tail_and_a_purge_are_no_doubt_while_the_record_is_up_to_date() {
    let platform = Platform::start().await;
    platform.insert(3).await;
    platform.relay_until(3).await;
    platform.delete_message(3).await;
    platform.insert(2).await;
    platform.relay_until(5).await;
    assert_eq!(
        platform.verify(1).await["missing"]["count"],
        1,
        "the deleted one"
    );

    let stream = platform.jetstream.get_stream("OUTBOX").await.unwrap();
    stream.purge().await.unwrap();
    platform.insert(2).await;
    platform.relay_until(7).await;
    let report = platform.verify(3).await;
    assert_eq!(
        (&report["events"], &report["unjudged"]["count"]),
        (&2.into(), &5.into())
    );
}

#[tokio::test]
async fn a_removed_tail_that_no_record_knows() {
    let platform = Platform::start().await;
    platform.insert(3).await;
    platform.relay_until(3).await;
    let stream = platform.jetstream.get_stream("WALRELAY").await.unwrap();
    stream.purge().await.unwrap();
    platform.delete_message(3).await;
    platform.insert(2).await;
    halts(&platform, "walrelay adopt --position").await;
    // The person knows where it was: everything at or below counts as published.
    let third = platform
        .message(2)
        .await
        .0
        .get("Walrelay-Position")
        .unwrap()
        .as_str()["walrelay ".len()..]
        .to_owned();
    let third = third.replace(":2", ":3");
    let text = platform
        .expect(&["adopt", "--yes", "--position", &third], 0)
        .await;
    assert!(text.contains(&third), "{text}");
    // One message marks the adopted place.
    platform.relay_until(3 + 1 + 2).await;
    let report = platform.verify(1).await;
    assert_eq!(report["missing"]["count"], 1, "the deleted one");
    assert_eq!(report["doubled"]["count"], 0);
}

#[tokio::test]
async fn a_restored_snapshot_of_the_database() {
    let mut platform = Platform::start().await;
    // The relay confirms nothing: slot and stream overlap, as they do within the hold-back.
    platform.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    platform.insert(3).await;
    platform.relay_until(3).await;
    let snapshot = take_snapshot(&mut platform).await;
    platform.insert(2).await;
    platform.relay_until(5).await;

    restore(&mut platform, &snapshot).await;
    // The same LSNs once more, for other events.
    platform.insert(2).await;
    platform.insert(2).await;
    halts(&platform, "The database was restored to an earlier state").await;
    let text = adopts(&platform).await;
    assert!(
        text.contains("the last row that slot and stream have in common"),
        "{text}"
    );
    platform.relay_until(5 + 1 + 4).await;
    let report = platform.verify(1).await;
    assert_eq!(
        report["phantom"]["count"], 2,
        "what the restored database never had"
    );
    assert_eq!(report["missing"]["count"], 0);
    assert_eq!(report["doubled"]["count"], 0);
    assert_eq!(report["out_of_order"]["count"], 0);
}

/// The database's files as they are now.
async fn take_snapshot(platform: &mut Platform) -> PathBuf {
    let data = platform.postgres.data_dir();
    let snapshot = data.with_file_name("snapshot");
    while_stopped(platform, || copy(&data, &snapshot)).await;
    snapshot
}

/// Puts them back.
async fn restore(platform: &mut Platform, snapshot: &Path) {
    let data = platform.postgres.data_dir();
    while_stopped(platform, || {
        std::fs::remove_dir_all(&data).unwrap();
        copy(snapshot, &data);
    })
    .await;
}

async fn while_stopped(platform: &mut Platform, change: impl FnOnce()) {
    platform.postgres.stop(Mode::Fast).await.unwrap();
    change();
    platform.postgres.start_again().await.unwrap();
    platform.sql = platform.postgres.connect("postgres").await.unwrap();
}

/// As the tree's owner sees it, with owner and mode.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn adopt_is_refused_while_the_relay_runs_and_changes_nothing_that_was_right() {
    let platform = Platform::start().await;
    platform.insert(3).await;
    let relay = platform.relay();
    platform.wait_for(3).await;
    let text = platform.expect(&["adopt", "--yes"], 1).await;
    assert!(text.contains("in use"), "{text}");
    relay.stop().await;
    adopts(&platform).await;
    platform.insert(2).await;
    platform.relay_until(5).await;
    platform.verify(0).await;
}

#[tokio::test]
async fn the_record_stream_is_made_again_by_the_relay() {
    let platform = Platform::start().await;
    platform.jetstream.delete_stream("WALRELAY").await.unwrap();
    platform.insert(3).await;
    platform.relay_until(3).await;
    platform.jetstream.get_stream("WALRELAY").await.unwrap();
}

#[tokio::test]
async fn a_rejected_row_halts_is_passed_and_retried() {
    let mut platform = Platform::start().await;
    platform.set("WALRELAY_RELAY_ON_REJECT", "halt");
    platform.insert(1).await;
    let id = insert_of_type(&platform.sql, "has a space").await;
    platform.insert(1).await;
    let text = platform.expect(&["run"], 4).await;
    assert_eq!(
        platform.last_sequence().await,
        1,
        "what comes before it is published"
    );
    halts(&platform, "dead-letters skip").await;
    let position = text.split("dead-letters skip ").nth(1).unwrap();
    let position = position.split('`').next().unwrap().to_owned();

    let none = platform.expect(&["dead-letters", "list"], 0).await;
    assert!(!none.contains(&position), "{none}");
    platform
        .expect(&["dead-letters", "skip", &position], 0)
        .await;
    platform.relay_until(3).await;
    platform
        .expect(&["dead-letters", "skip", &position], 1)
        .await;

    let list = platform
        .expect(&["dead-letters", "list", "--json"], 0)
        .await;
    let letter: serde_json::Value = serde_json::from_str(list.lines().next().unwrap()).unwrap();
    assert_eq!(letter["position"], position);
    assert_eq!(letter["id"], id.to_string());
    assert_eq!(letter["reason"], "subject");
    platform
        .expect(&["dead-letters", "show", &position], 0)
        .await;
    platform
        .expect(&["dead-letters", "show", "FF/FF:1"], 1)
        .await;

    // As it is, it cannot be published; corrected, it can, once, and also beside the relay.
    platform
        .expect(&["dead-letters", "retry", &position], 1)
        .await;
    let correct = "UPDATE outbox_events SET event_type = 'lesson.published.v1' WHERE id = $1";
    platform.sql.execute(correct, &[&id]).await.unwrap();
    let relay = platform.relay();
    platform
        .expect(&["dead-letters", "retry", &position], 0)
        .await;
    // The event, and the mark behind it.
    platform.wait_for(5).await;
    let (headers, body) = platform.message(4).await;
    assert_eq!(headers.get("Walrelay-Kind").unwrap().as_str(), "retry");
    let envelope: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(envelope["id"], id.to_string());
    platform
        .expect(&["dead-letters", "retry", &position], 1)
        .await;
    platform
        .expect(&["dead-letters", "retry", "--all"], 0)
        .await;
    platform.insert(2).await;
    platform.wait_for(7).await;
    relay.stop().await;
    let report = platform.verify(0).await;
    assert_eq!(
        (&report["again"], &report["dead_lettered"]["count"]),
        (&1.into(), &0.into())
    );
}

#[tokio::test]
async fn a_shared_stream_is_verified_and_adopted_too() {
    let mut platform = Platform::servers().await;
    platform.set("WALRELAY_NATS_SHARED", "true");
    platform.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    platform.expect(&["setup"], 0).await;
    platform.insert(3).await;
    platform.relay_until_events(3).await;
    platform
        .publish(
            "outbox.by.hand",
            async_nats::HeaderMap::new(),
            b"{}".to_vec(),
        )
        .await;
    let report = platform.verify(0).await;
    assert_eq!(
        (&report["events"], &report["foreign"]),
        (&3.into(), &1.into())
    );
    adopts(&platform).await;
    platform.insert(2).await;
    platform.relay_until_events(5).await;
    let report = platform.verify(0).await;
    assert_eq!(
        (&report["doubled"]["count"], &report["foreign"]),
        (&0.into(), &1.into())
    );

    let advance = "SELECT pg_replication_slot_advance('walrelay', pg_current_wal_lsn())";
    platform.insert(2).await;
    platform.sql.query(advance, &[]).await.unwrap();
    platform.insert(1).await;
    halts(&platform, "Somebody advanced").await;
    adopts(&platform).await;
    platform.relay_until_events(6).await;
    let report = platform.verify(1).await;
    assert_eq!(
        (&report["doubled"]["count"], &report["missing"]["count"]),
        (&0.into(), &2.into())
    );
}
