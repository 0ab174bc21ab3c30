//! `walrelay replay --source table`: what the stream no longer holds, from the rows that are still there.

use crate::lane::stream_of;
use crate::range::{count, ids, target, uuids};
use crate::support::{Fixture, assert_exactly_once, eventually};

/// A lane whose `n`th event occurred `n` seconds after 2026-01-01, and is in the stream.
async fn published(rows: u64) -> Fixture {
    let mut fixture = Fixture::new().await;
    fixture.insert(1, rows).await;
    let moments = "UPDATE outbox_events
                   SET occurred_at = '2026-01-01 00:00:00+00'::timestamptz + (payload_json->>'n')::int * interval '1 s'";
    fixture.sql.batch_execute(moments).await.unwrap();
    let relay = fixture.run();
    fixture.holds(rows).await;
    relay.stop().await;
    fixture
}

#[tokio::test]
async fn what_the_stream_has_removed_comes_from_the_table_by_its_time() {
    let mut fixture = published(100).await;
    stream_of(&fixture).await.purge().await.unwrap();
    let (from, to) = ("2026-01-01T00:00:11Z", "2026-01-01T01:00:30+01:00");
    let gone = fixture.walrelay(&["replay", "--yes", "--from", from]).await;
    assert_eq!(gone.code, Some(1), "{}", gone.stderr);
    assert!(gone.stderr.contains("--source table"), "{}", gone.stderr);
    let lsn = ["replay", "--yes", "--source", "table", "--from", "0/1"];
    let lsn = fixture.walrelay(&lsn).await;
    assert_eq!(lsn.code, Some(2), "{}", lsn.stderr);
    assert!(lsn.stderr.contains("give times"), "{}", lsn.stderr);

    let arguments = [
        "replay", "--yes", "--source", "table", "--from", from, "--to", to,
    ];
    let told = fixture.walrelay(&arguments).await.success().stdout;
    assert!(told.contains("not of their commits"), "{told}");
    let again = fixture.stored_in(&target(&fixture)).await;
    assert_exactly_once(&uuids(11..=30), &ids(&again));
    for message in &again {
        assert!(message.is_replay());
        assert_eq!(
            message.subject,
            format!("replay.{}.lesson.published.v1", fixture.name)
        );
    }
    let told = fixture.walrelay(&arguments).await.success().stdout;
    assert!(told.contains("0 events are published again"), "{told}");
    assert_eq!(fixture.message_count().await, 0);
    let relay = fixture.run();
    fixture.insert(101, 101).await;
    fixture.holds(1).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_killed_replay_of_rows_of_one_moment_goes_on_behind_the_last_one() {
    const ROWS: u64 = 20_000;
    let fixture = published(ROWS).await;
    // Only the id tells such rows apart.
    let moments = "UPDATE outbox_events SET occurred_at = date_trunc('hour', occurred_at)";
    fixture.sql.batch_execute(moments).await.unwrap();
    let arguments = [
        "replay",
        "--yes",
        "--source",
        "table",
        "--from",
        "2026-01-01T00:00:00Z",
    ];
    for number in 1..=3 {
        let before = count(&fixture).await;
        let mut killed = fixture.start(&arguments);
        eventually("the replay publishes", async || {
            (count(&fixture).await > before).then_some(())
        })
        .await;
        killed.kill();
        let stored = count(&fixture).await;
        assert!(stored < ROWS, "it has ended before kill {number}");
    }
    fixture.walrelay(&arguments).await.success();
    let again = fixture.stored_in(&target(&fixture)).await;
    assert_exactly_once(&uuids(1..=ROWS), &ids(&again));
}
