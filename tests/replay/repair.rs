//! `verify --repair`: what the stream lost comes again from the table.

use serde_json::Value;

use crate::lane::stream_of;
use crate::support::{Fixture, Stored, assert_exactly_once, uuid};

/// A lane with 20 events, confirmed, so that the slot holds none of them.
async fn confirmed() -> Fixture {
    let mut fixture = Fixture::new().await;
    let relay = fixture.run();
    for number in 1..=20 {
        fixture.insert(number, number).await;
    }
    fixture.holds(20).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    fixture
}

fn all_once(stored: &[Stored], expected: std::ops::RangeInclusive<u64>) {
    let mut ids: Vec<_> = stored.iter().map(Stored::id).collect();
    ids.sort_unstable();
    assert_exactly_once(&expected.map(uuid).collect::<Vec<_>>(), &ids);
}

#[tokio::test]
async fn what_the_stream_lost_comes_again_once_beside_the_relay() {
    let mut fixture = confirmed().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let stream = stream_of(&fixture).await;
    for sequence in [5, 6, 17] {
        stream.delete_message(sequence).await.unwrap();
    }
    let found = fixture.walrelay(&["verify"]).await;
    assert_eq!(found.code, Some(1), "{}", found.stdout);
    let repaired = fixture.walrelay(&["verify", "--repair"]).await.success();
    assert!(
        repaired.stdout.contains("3 of 3 rows"),
        "{}",
        repaired.stdout
    );
    assert!(
        repaired.stdout.trim_end().ends_with("clean"),
        "{}",
        repaired.stdout
    );
    let stored = fixture.stored().await;
    all_once(&stored, 1..=20);
    let again = stored.iter().filter(|stored| stored.kind.is_some());
    let again: Vec<_> = again
        .map(|stored| (stored.id(), stored.kind.as_deref()))
        .collect();
    assert_eq!(again, [5, 6, 17].map(|n| (uuid(n), Some("backfill"))));
    // There is nothing left to mend, and the lane goes on.
    fixture.walrelay(&["verify", "--repair"]).await.success();
    fixture.insert(21, 21).await;
    fixture.holds(21).await;
    all_once(&fixture.stored().await, 1..=21);
    relay.stop().await;
}

/// Retention looks the same as a loss at the stream's beginning, so that is published only where a person knows it.
#[tokio::test]
async fn what_retention_may_have_removed_comes_again_only_on_demand() {
    let fixture = confirmed().await;
    let stream = stream_of(&fixture).await;
    stream.purge().sequence(4).await.unwrap();
    let left = fixture.walrelay(&["verify", "--repair"]).await;
    assert_eq!(left.code, Some(3), "{}", left.stdout);
    assert!(left.stdout.contains("--unjudged"), "{}", left.stdout);
    assert_eq!(fixture.message_count().await, 17);
    let repaired = ["verify", "--repair", "--unjudged", "--json"];
    let repaired = fixture.walrelay(&repaired).await.success();
    let last = repaired.stdout.lines().last().expect("lines");
    let report: Value = serde_json::from_str(last).expect("one JSON object a line");
    assert_eq!(report["verdict"], "clean", "{report}");
    all_once(&fixture.stored().await, 1..=20);
}

#[tokio::test]
async fn what_the_slot_still_holds_is_left_to_the_relay() {
    let mut fixture = confirmed().await;
    fixture.insert(21, 25).await;
    fixture.walrelay(&["verify", "--repair"]).await;
    assert_eq!(fixture.message_count().await, 20);
    let relay = fixture.run();
    fixture.holds(25).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    all_once(&stored, 1..=25);
    assert!(stored.iter().all(|stored| stored.kind.is_none()));
}
