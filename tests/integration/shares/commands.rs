//! What works on the table works on all shares of it.

use super::{SHARES, all_stream, divide, shares, stored_ids};
use crate::support::{Fixture, Servers, eventually, uuid};

async fn count(fixture: &Fixture, which: &str) -> i64 {
    let query = format!("SELECT count(*) FROM outbox_events WHERE {which}");
    fixture.sql.query_one(&query, &[]).await.unwrap().get(0)
}

/// Each lane marks its rows; rows go only once every share's slot is confirmed; an aggregate goes from its share's stream.
#[tokio::test]
async fn rows_are_marked_pruned_and_erased_over_all_shares() {
    let mut fixture = Fixture::bare().await;
    divide(&mut fixture, true);
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "0s");
    fixture.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "mark");
    for migration in [
        include_str!("../../../sql/0001_outbox_events.sql"),
        include_str!("../../../sql/0002_dispatched_at.sql"),
    ] {
        fixture.sql.batch_execute(migration).await.unwrap();
    }
    fixture.insert(1, 5).await;
    fixture.walrelay(&["setup", "--backfill"]).await.success();
    let relay = fixture.run_with(&["--setup"]);
    all_stream(&fixture).await;
    fixture.insert(6, 60).await;
    eventually("each lane marks its rows", async || {
        (count(&fixture, "dispatched_at IS NOT NULL").await == 60).then_some(())
    })
    .await;

    let age = "UPDATE outbox_events SET occurred_at = now() - interval '10 days'";
    fixture.sql.batch_execute(age).await.unwrap();
    let prune = &["--older-than", "7d"];
    let one = fixture
        .prune(&[prune, &["--share", "1"][..]].concat())
        .await;
    assert_eq!(one.code, Some(2), "{}", one.stderr);
    assert!(one.stderr.contains("leave out --share"), "{}", one.stderr);
    // A row of the last share that its stream lacks keeps the rows of all.
    let of_last = shares(&fixture).await;
    let of_last = (1..=60).map(uuid).find(|id| of_last[id] == SHARES - 1);
    let again = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) \
                 SELECT gen_random_uuid(), aggregate_id, 'a', '{}' FROM outbox_events WHERE id = $1";
    relay.stop().await;
    fixture.sql.execute(again, &[&of_last]).await.unwrap();
    let short = fixture
        .prune(&[prune, &["--wait", "1s"][..]].concat())
        .await;
    assert_eq!(short.code, Some(1), "{}", short.stderr);
    assert_eq!(count(&fixture, "true").await, 61);
    let relay = fixture.run();
    all_stream(&fixture).await;
    fixture.prune(prune).await.success();
    assert_eq!(count(&fixture, "true").await, 1);

    let row = "SELECT aggregate_id::text FROM outbox_events";
    let aggregate: String = fixture.sql.query_one(row, &[]).await.unwrap().get(0);
    let before = stored_ids(&mut fixture, SHARES - 1).await.len();
    let erased = fixture
        .walrelay(&["erase", "--yes", "--json", "--aggregate-id", &aggregate])
        .await
        .success();
    assert_eq!(erased.stdout.lines().count(), 1, "one receipt");
    assert_eq!(count(&fixture, "true").await, 0);
    let after = stored_ids(&mut fixture, SHARES - 1).await.len();
    assert_eq!(before - after, 2, "{}", erased.stdout);
    // Dead letters of all shares keep their rows.
    let bad = "INSERT INTO outbox_events (id, aggregate_id, event_type, occurred_at, payload_json)
        SELECT gen_random_uuid(), gen_random_uuid(), 'has a space', now() - interval '10 days', '{}' FROM generate_series(1, 24)";
    fixture.sql.batch_execute(bad).await.unwrap();
    let kept = fixture
        .prune(&[prune, &["--dry-run", "--json"][..]].concat())
        .await
        .success();
    let kept: serde_json::Value = serde_json::from_str(&kept.stdout).unwrap();
    assert_eq!(kept["open_dead_letters"], 24, "{kept}");
    relay.stop().await;
}

/// `run --setup` makes nothing where `setup` would not.
#[tokio::test]
async fn run_with_setup_looks_at_all_shares_first() {
    let mut fixture = Fixture::bare().await;
    divide(&mut fixture, false);
    fixture.set("WALRELAY_RELAY_SHARES", "4");
    fixture.setup().await;
    fixture.set("WALRELAY_RELAY_SHARES", "2");
    fixture
        .walrelay(&["run", "--setup"])
        .await
        .refused("set relay.shares = 4");
}

/// Rows of several shares, compared with what one lane has published, would look as if they were missing.
#[tokio::test]
async fn a_comparison_with_another_number_of_shares_is_refused() {
    let mut fixture = Fixture::bare().await;
    divide(&mut fixture, false);
    fixture.set("WALRELAY_RELAY_SHARES", "2");
    fixture.setup().await;
    for (number, said) in [
        (
            "1",
            "the outbox has 2 shares, and relay.shares is 1: set relay.shares = 2",
        ),
        (
            "4",
            "the outbox has 2 shares, and relay.shares is 4: set relay.shares = 2",
        ),
    ] {
        fixture.set("WALRELAY_RELAY_SHARES", number);
        for command in [
            &["verify"][..],
            &["backfill", "--dry-run"],
            &[
                "erase",
                "--yes",
                "--aggregate-id",
                "00000000-0000-0000-0000-0000000000a7",
            ],
            &["prune", "--older-than", "0s"],
        ] {
            fixture.walrelay(command).await.refused(said);
        }
    }
    // A share's publication is not that of all rows under another name.
    fixture.set("WALRELAY_RELAY_SHARES", "1");
    let found = fixture.walrelay(&["doctor"]).await;
    assert!(
        found.stdout.contains("set relay.shares = 2"),
        "{}",
        found.stdout
    );
    assert!(
        !found.stdout.contains("which loses nothing"),
        "{}",
        found.stdout
    );
    fixture.set("WALRELAY_RELAY_SHARES", "2");
    fixture.walrelay(&["verify"]).await.success();
}

/// By its aggregate a row may be another share's than when it was published: its event is in the stream of that one.
#[tokio::test]
async fn a_row_that_has_changed_its_share_is_not_published_again() {
    let mut fixture = Fixture::bare().await;
    divide(&mut fixture, true);
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "0s");
    fixture.setup().await;
    let relay = fixture.run();
    all_stream(&fixture).await;
    fixture.insert(1, 40).await;
    let stored = async |fixture: &mut Fixture| {
        let mut count = 0;
        for share in 0..SHARES {
            count += stored_ids(fixture, share).await.len();
        }
        count
    };
    fixture.walrelay(&["verify"]).await.success();
    let merged =
        "UPDATE outbox_events SET aggregate_id = (SELECT aggregate_id FROM outbox_events LIMIT 1)";
    fixture.sql.batch_execute(merged).await.unwrap();
    for arguments in [&["verify"][..], &["verify", "--repair"], &["backfill"]] {
        fixture.walrelay(arguments).await.success();
        assert_eq!(stored(&mut fixture).await, 40, "{arguments:?}");
    }
    relay.stop().await;
}

/// Relays write their lanes' records anew all the time, each behind all others: no command reads after them.
#[tokio::test]
async fn commands_end_beside_many_lanes_that_write_their_records() {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    divide(&mut fixture, false);
    fixture.setup().await;
    let relay = fixture.run();
    all_stream(&fixture).await;
    fixture.insert(1, 40).await;
    let mut writing = tokio::task::JoinSet::new();
    // Each waits for its answers, and all together are faster than one who reads.
    for writer in 0..8 {
        let context = async_nats::jetstream::new(fixture.nats.clone());
        writing.spawn(async move {
            for lane in (0..8).cycle() {
                let subject = format!("walrelay.lane.ANOTHER.another_{writer}_{lane}");
                let stored = context.publish(subject, "{}".into()).await;
                stored.unwrap().await.unwrap();
            }
        });
    }
    for command in [&["verify"][..], &["backfill"], &["verify"]] {
        fixture.walrelay(command).await.success();
    }
    assert!(writing.try_join_next().is_none());
    writing.shutdown().await;
    relay.stop().await;
}

/// Where it takes over, nobody has the shares that it does not know of.
#[tokio::test]
async fn a_standby_of_another_number_of_shares_says_so_while_it_waits() {
    let mut fixture = Fixture::bare().await;
    divide(&mut fixture, false);
    fixture.setup().await;
    let relay = fixture.run();
    all_stream(&fixture).await;
    fixture.set("WALRELAY_RELAY_SHARES", "2");
    let mut standby = fixture.run();
    standby.logs("is in use by process").await;
    standby
        .logs("is share 0 of 4, and relay.shares is 2: set relay.shares = 4")
        .await;
    assert!(!standby.log().contains("streaming, behind"));
    standby.stop().await;
    relay.stop().await;
}
