//! `outbox.after_publish` against real servers: published rows are marked or deleted, and others are left alone.

mod platform;
#[allow(dead_code)] // The tests of the page use the rest of it.
mod site;
mod statements;

use std::time::Duration;

use platform::{Platform, insert_of_type};
use postgres_types::PgLsn;
use statements::statements;

/// How long anything may take before the test fails.
const LIMIT: Duration = Duration::from_secs(180);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

async fn count(platform: &Platform, which: &str) -> i64 {
    let query = format!("SELECT count(*) FROM outbox_events WHERE {which}");
    let row = platform.sql.query_one(&query, &[]).await;
    row.expect("counted").get(0)
}

/// Waits until the table has so many rows of these.
async fn has(platform: &Platform, which: &str, rows: i64) {
    let reached = async {
        while count(platform, which).await != rows {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let waited = tokio::time::timeout(LIMIT, reached).await;
    let now = count(platform, which).await;
    waited.unwrap_or_else(|_| panic!("{now} rows with {which}, not {rows}"));
}

/// Types what a message says to run; what that was.
async fn follow(platform: &Platform, said: &str) -> Vec<String> {
    let statements = statements(said);
    for statement in &statements {
        platform
            .sql
            .batch_execute(statement)
            .await
            .expect("it is SQL");
    }
    statements
}

#[tokio::test]
async fn a_row_is_marked_once_the_stream_has_its_event() {
    let mut platform = Platform::start().await;
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "mark");
    platform.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    for arguments in [["setup"], ["doctor"], ["run"]] {
        let said = platform.expect(&arguments, 1).await;
        assert!(said.contains("has no column dispatched_at"), "{said}");
    }
    let said = platform.expect(&["run"], 1).await;
    assert_eq!(follow(&platform, &said).await.len(), 1);
    platform.expect(&["setup"], 0).await;

    let relay = platform.relay();
    insert_of_type(&platform.sql, "no subject").await;
    platform.insert(500).await;
    has(&platform, "dispatched_at IS NOT NULL", 500).await;
    relay.stop().await;

    // Published while nobody marked.
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "keep");
    platform.insert(3).await;
    platform.relay_until(504).await;
    assert_eq!(count(&platform, "dispatched_at IS NULL").await, 4);
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "mark");
    let marked = "SELECT max(dispatched_at)::text FROM outbox_events";
    let before = platform.sql.query_one(marked, &[]).await.expect("read");
    let before: String = before.get(0);
    let relay = platform.relay();
    has(&platform, "dispatched_at IS NOT NULL", 503).await;
    // None twice, and the dead letter not at all.
    let again = format!("dispatched_at > '{before}'");
    assert_eq!(count(&platform, &again).await, 3);
    assert_eq!(
        count(
            &platform,
            "event_type = 'no subject' AND dispatched_at IS NULL"
        )
        .await,
        1
    );
    relay.stop().await;
    platform.verify(1).await;
}

/// A mark that moves a row to another partition would be an INSERT in the log.
#[tokio::test]
async fn a_table_that_is_partitioned_by_the_mark_is_not_marked() {
    let mut platform = Platform::start().await;
    for (mark, key) in [
        ("mark", "RANGE (dispatched_at)"),
        ("mark", "LIST ((dispatched_at IS NULL))"),
        ("delete", "LIST ((dispatched_at IS NULL))"),
    ] {
        let table = format!(
            "ALTER TABLE outbox_events ADD COLUMN IF NOT EXISTS dispatched_at timestamptz;
             CREATE TABLE partitioned (LIKE outbox_events INCLUDING DEFAULTS) PARTITION BY {key};
             CREATE TABLE all_rows PARTITION OF partitioned DEFAULT;
             ALTER PUBLICATION walrelay DROP TABLE outbox_events; DROP TABLE outbox_events;
             ALTER TABLE partitioned RENAME TO outbox_events; ALTER TABLE all_rows RENAME TO all_{};
             ALTER PUBLICATION walrelay ADD TABLE outbox_events",
            key.len()
        );
        platform.sql.batch_execute(&table).await.expect("a table");
        platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", mark);
        if mark == "mark" {
            let said = platform.expect(&["run"], 1).await;
            assert!(said.contains("is partitioned by dispatched_at"), "{said}");
        } else {
            let relay = platform.relay();
            platform.insert(3).await;
            has(&platform, "true", 0).await;
            relay.stop().await;
        }
    }
}

#[tokio::test]
async fn a_row_is_deleted_once_the_slot_is_confirmed_through_it() {
    let mut platform = Platform::start().await;
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    platform.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let relay = platform.relay();
    insert_of_type(&platform.sql, "no subject").await;
    platform.insert(2_000).await;
    platform.wait_for(2_001).await;
    platform.insert(1).await;
    platform.wait_for(2_002).await;
    relay.stop().await;
    assert_eq!(count(&platform, "true").await, 2_002);

    platform.set("WALRELAY_RELAY_HOLD_BACK", "0s");
    let relay = platform.relay();
    has(&platform, "true", 1).await;
    assert_eq!(count(&platform, "event_type = 'no subject'").await, 1);
    platform.insert(10).await;
    platform.wait_for(2_012).await;
    has(&platform, "true", 1).await;

    // What the deletes write does not hold the slot.
    let now = platform
        .sql
        .query_one("SELECT pg_current_wal_lsn()", &[])
        .await;
    let now: PgLsn = now.expect("an LSN").get(0);
    let query = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'walrelay'";
    let passed = async {
        loop {
            let row = platform.sql.query_one(query, &[]).await.expect("the slot");
            if row.get::<_, PgLsn>(0) >= now {
                return;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    tokio::time::timeout(LIMIT, passed)
        .await
        .expect("the slot follows");

    // A dead letter that is mended and published goes with the next event.
    let mend = "UPDATE outbox_events SET event_type = 'lesson.published.v1'";
    platform.sql.batch_execute(mend).await.expect("mended");
    platform
        .expect(&["dead-letters", "retry", "--all"], 0)
        .await;
    platform.insert(1).await;
    has(&platform, "true", 0).await;
    relay.stop().await;
}

#[tokio::test]
async fn the_lane_goes_on_while_rows_cannot_be_deleted() {
    let mut platform = Platform::start().await;
    let make = "CREATE ROLE relay LOGIN REPLICATION";
    platform.sql.batch_execute(make).await.expect("made");
    let url = platform
        .postgres
        .url("postgres")
        .replace("postgres@", "relay@");
    platform.set("DATABASE_URL", &url);
    let address = site::free_address();
    platform.set("WALRELAY_HTTP_LISTEN", &address.to_string());
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    let said = platform.expect(&["run"], 1).await;
    let grant = "GRANT SELECT (id), DELETE ON public.outbox_events TO relay";
    assert_eq!(follow(&platform, &said).await, [grant]);

    let relay = platform.relay();
    platform.insert(3).await;
    has(&platform, "true", 0).await;
    let revoke = "REVOKE DELETE ON outbox_events FROM relay";
    platform.sql.batch_execute(revoke).await.expect("revoked");
    platform.insert(4).await;
    platform.wait_for(7).await;
    assert_eq!(count(&platform, "true").await, 4);
    lags(&platform, 4).await;
    // While the table refuses, too.
    platform.insert(6).await;
    platform.wait_for(13).await;
    lags(&platform, 10).await;
    follow(&platform, &said).await;
    has(&platform, "true", 0).await;

    // Killed, it goes on where it was.
    platform.insert(5).await;
    platform.wait_for(18).await;
    relay.kill().await;
    let relay = platform.relay();
    has(&platform, "true", 0).await;
    relay.stop().await;
}

/// Waits until the relay tells that the rows of at least so many messages are still to be settled.
async fn lags(platform: &Platform, messages: u64) {
    let told = async {
        loop {
            let json = platform.output(&["status", "--json"]).await.stdout;
            let json: serde_json::Value = serde_json::from_slice(&json).expect("one object");
            let lag = json["relay"]["after_publish_lag"].as_u64();
            if lag.is_some_and(|lag| lag >= messages) {
                return;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let told = tokio::time::timeout(LIMIT, told).await;
    told.unwrap_or_else(|_| panic!("it is told that {messages} messages wait"));
}

#[tokio::test]
async fn all_that_waits_is_counted_however_much_it_is() {
    let mut platform = Platform::start().await;
    let address = site::free_address();
    platform.set("WALRELAY_HTTP_LISTEN", &address.to_string());
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    platform.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let relay = platform.relay();
    platform.insert(10_500).await;
    platform.wait_for(10_500).await;
    lags(&platform, 10_500).await;
    // More than is kept in memory, and nothing of it is read.
    platform.insert(12_000).await;
    platform.wait_for(22_500).await;
    lags(&platform, 22_500).await;
    let text = String::from_utf8(platform.output(&["status"]).await.stdout).expect("a text");
    assert!(text.contains("22500 messages"), "{text}");
    relay.stop().await;
}

/// Waits until it is kept that the rows of so many messages are done with.
async fn keeps(platform: &Platform, sequence: u64) {
    let kept = async {
        loop {
            let records = platform.jetstream.get_stream("WALRELAY").await;
            let records = records.expect("the lanes' records");
            let subject = "walrelay.lane.OUTBOX.walrelay.settled";
            if let Ok(message) = records.get_last_raw_message_by_subject(subject).await {
                let place: serde_json::Value =
                    serde_json::from_slice(&message.payload).expect("a place");
                if place["sequence"] == sequence {
                    return;
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let waited = tokio::time::timeout(LIMIT, kept).await;
    waited.expect("the place is kept");
}

#[tokio::test]
async fn a_lane_that_moves_takes_along_what_is_done() {
    let mut platform = Platform::start().await;
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "mark");
    let column = "ALTER TABLE outbox_events ADD dispatched_at timestamptz";
    platform.sql.batch_execute(column).await.expect("added");
    let relay = platform.relay();
    platform.insert(300).await;
    has(&platform, "dispatched_at IS NOT NULL", 300).await;
    keeps(&platform, 300).await;
    relay.stop().await;
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "keep");
    platform.insert(7).await;
    platform.relay_until(307).await;

    // What is marked again would be seen.
    let taken_back = "UPDATE outbox_events SET dispatched_at = NULL";
    platform.sql.batch_execute(taken_back).await.expect("taken");
    platform
        .expect(&["move", "--to-stream", "EVENTS", "--yes"], 0)
        .await;
    platform.set("WALRELAY_NATS_STREAM", "EVENTS");
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "mark");
    let relay = platform.relay();
    platform.insert(2).await;
    has(&platform, "dispatched_at IS NOT NULL", 9).await;
    relay.stop().await;
}

#[tokio::test]
async fn rows_are_deleted_by_the_lane_of_a_shared_stream() {
    let mut platform = Platform::servers().await;
    platform.set("WALRELAY_NATS_SHARED", "true");
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    platform.expect(&["setup"], 0).await;
    platform.insert(3).await;
    let relay = platform.relay();
    has(&platform, "true", 0).await;
    platform.insert(2).await;
    has(&platform, "true", 0).await;
    platform.holds_events(5).await;
    relay.stop().await;
    platform.verify(0).await;
}

/// A row is in the stream as soon as its commit is in the WAL; with synchronous replication others see it later.
#[tokio::test]
async fn a_row_that_nobody_sees_yet_is_marked_once_it_is_seen() {
    let mut platform = Platform::start().await;
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "mark");
    let column = "ALTER TABLE outbox_events ADD COLUMN dispatched_at timestamptz";
    platform.sql.batch_execute(column).await.expect("added");
    let relay = platform.relay();
    platform.insert(1).await;
    has(&platform, "dispatched_at IS NOT NULL", 1).await;
    for sql in [
        "ALTER SYSTEM SET synchronous_standby_names = 'nobody'",
        "SELECT pg_reload_conf()",
    ] {
        platform.sql.batch_execute(sql).await.expect(sql);
    }
    let writer = platform
        .postgres
        .connect("postgres")
        .await
        .expect("another session");
    // The server takes the setting a moment later.
    let (waits, mut told) = tokio::sync::watch::channel(false);
    let writing = tokio::spawn(async move {
        let mut rows = 0;
        while !*told.borrow_and_update() {
            insert_of_type(&writer, "a.b.v1").await;
            rows += 1;
        }
        rows
    });
    let waiting = async {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        while platform
            .sql
            .query_one(query, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
            == 0
        {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let waited = tokio::time::timeout(LIMIT, waiting).await;
    waited.expect("a commit waits for a standby");
    waits.send(true).expect("it still writes");
    let seen = count(&platform, "true").await;
    platform.wait_for(seen as u64 + 1).await;
    for sql in [
        "ALTER SYSTEM RESET synchronous_standby_names",
        "SELECT pg_reload_conf()",
    ] {
        platform.sql.batch_execute(sql).await.expect(sql);
    }
    let written: i64 = writing.await.expect("all are committed");
    assert_eq!(written, seen);
    has(&platform, "dispatched_at IS NOT NULL", 1 + written).await;
    relay.stop().await;
}

/// Rows that were marked before "delete" stand before the events whose rows the relay deletes.
#[tokio::test]
async fn what_is_deleted_behind_rows_that_stay_is_no_phantom() {
    let mut platform = Platform::start().await;
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "mark");
    platform.set("WALRELAY_RELAY_HOLD_BACK", "0s");
    let said = platform.expect(&["run"], 1).await;
    follow(&platform, &said).await;
    let relay = platform.relay();
    platform.insert(10).await;
    has(&platform, "dispatched_at IS NOT NULL", 10).await;
    keeps(&platform, 10).await;
    relay.stop().await;
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    let relay = platform.relay();
    platform.insert(5).await;
    platform.wait_for(15).await;
    has(&platform, "true", 10).await;
    // Beside the relay, without it, and by those who delete themselves.
    for after_publish in ["delete", "mark", "keep"] {
        platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", after_publish);
        let report = platform.verify(0).await;
        let count = |of: &str| report[of]["count"].as_u64().expect("a count");
        assert_eq!((count("phantom"), count("rowless")), (0, 5), "{report}");
    }
    let said = platform.expect(&["verify"], 0).await;
    assert!(said.contains("note: 5 events have no row"), "{said}");
    relay.stop().await;

    // Those that were marked stay, until somebody removes them.
    platform.expect(&["prune", "--older-than", "0s"], 0).await;
    has(&platform, "true", 0).await;
    let report = platform.verify(0).await;
    assert_eq!(report["rowless"]["count"], 0, "{report}");
}
