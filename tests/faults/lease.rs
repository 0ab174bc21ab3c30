//! Commands that publish for a lane by themselves, two at once and frozen for a while: nothing is there twice.

use rustix::process::Signal;

use crate::lane::{LANES, Lane, event_count, events, set_up};
use crate::proxy::Mode;
use crate::slow;
use crate::support::{Fixture, Stored, assert_exactly_once, eventually, uuid};

/// Rows from before the slot was made.
const OLD: u64 = 20_000;

/// A lane with rows that its relay will not bring.
async fn with_old_rows(lane: Lane) -> Fixture {
    let mut fixture = Fixture::with_table().await;
    fixture.insert(1, OLD).await;
    set_up(&mut fixture, lane).await;
    fixture
}

/// Waits until the stream has some of the old rows.
async fn publishes(fixture: &Fixture) {
    eventually("the backfill publishes", async || {
        (event_count(fixture).await > 0).then_some(())
    })
    .await;
}

/// Every old row is there once, in the stream and by `verify`.
async fn all_once(fixture: &Fixture) {
    let mut ids: Vec<_> = events(fixture).await.iter().map(Stored::id).collect();
    ids.sort_unstable();
    assert_exactly_once(&(1..=OLD).map(uuid).collect::<Vec<_>>(), &ids);
    fixture.walrelay(&["verify"]).await.success();
}

#[tokio::test]
async fn a_second_backfill_is_refused_while_the_first_is_heard() {
    let fixture = with_old_rows(Lane::FastIngest).await;
    // Slow enough for it to give signs of life until the second one has heard one.
    let (mut first, proxy) = slow::start(&fixture, &["backfill"]).await;
    publishes(&fixture).await;
    let second = fixture.walrelay(&["backfill"]).await;
    assert_eq!(second.code, Some(1), "{}", second.stderr);
    assert!(
        second.stderr.contains("walrelay backfill is at work on"),
        "{}",
        second.stderr
    );
    let retry = fixture.walrelay(&["dead-letters", "retry", "--all"]).await;
    assert_eq!(retry.code, Some(1), "{}", retry.stderr);
    proxy.set(Mode::Pass);
    assert_eq!(first.ends().await, Some(0), "{}", first.log());
    all_once(&fixture).await;
    // It has given the lease back.
    let again = fixture.walrelay(&["backfill"]).await.success();
    assert!(again.stdout.starts_with("0 rows"), "{}", again.stdout);
}

#[tokio::test]
async fn a_frozen_backfill_publishes_nothing_behind_another() {
    for lane in LANES {
        let fixture = with_old_rows(lane).await;
        let mut frozen = fixture.start(&["backfill"]);
        publishes(&fixture).await;
        frozen.signal(Signal::STOP);
        // It is given a while to show a sign of life.
        fixture.walrelay(&["backfill"]).await.success();
        frozen.signal(Signal::CONT);
        assert_eq!(frozen.ends().await, Some(1), "{lane:?}: {}", frozen.log());
        assert!(
            frozen.log().contains("run this again"),
            "{lane:?}: {}",
            frozen.log()
        );
        all_once(&fixture).await;
    }
}

#[tokio::test]
async fn a_killed_backfill_is_done_again_from_what_the_stream_holds() {
    for lane in [Lane::FastIngest, Lane::Shared] {
        let fixture = with_old_rows(lane).await;
        for round in 1..=2 {
            let stored = event_count(&fixture).await;
            let mut killed = fixture.start(&["backfill"]);
            eventually("the backfill publishes", async || {
                (event_count(&fixture).await > stored).then_some(())
            })
            .await;
            killed.kill();
            let stored = event_count(&fixture).await;
            assert!(stored < OLD, "{lane:?}: it has ended before kill {round}");
        }
        fixture.walrelay(&["backfill"]).await.success();
        all_once(&fixture).await;
    }
}

#[tokio::test]
async fn a_program_reads_how_far_it_is() {
    let fixture = with_old_rows(Lane::FastIngest).await;
    let told = fixture.walrelay(&["backfill", "--json"]).await.success();
    let lines: Vec<serde_json::Value> = told
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let last = lines.last().unwrap();
    assert_eq!(last["done"], true, "{}", told.stdout);
    assert_eq!(last["published"], OLD, "{}", told.stdout);
    assert_eq!(last["rejected"], 0, "{}", told.stdout);
    assert!(
        lines.iter().all(|line| line["total"] == OLD),
        "{}",
        told.stdout
    );
}

/// Leases that are written anew faster than one who reads them one after the other.
#[tokio::test]
async fn what_is_at_work_is_told_beside_many_leases_that_are_renewed() {
    let fixture = Fixture::own().await;
    let mut writing = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let context = async_nats::jetstream::new(fixture.nats.clone());
        let slot = fixture.name.clone();
        writing.spawn(async move {
            for number in (0..8).cycle() {
                let subject = format!("walrelay.lane.S_{writer}_{number}.{slot}.lease");
                let lease = r#"{"command":"replay","process":7,"since":"2026-11-29T07:00:00Z","token":"t","released":true}"#;
                let stored = context.publish(subject, lease.into()).await;
                stored.unwrap().await.unwrap();
            }
        });
    }
    for _ in 0..3 {
        let told = fixture.walrelay(&["doctor"]).await;
        let is_unseen = told.stdout.contains("commands beside the relay");
        assert!(!is_unseen, "{}", told.stdout);
    }
    assert!(writing.try_join_next().is_none());
    writing.shutdown().await;
}
