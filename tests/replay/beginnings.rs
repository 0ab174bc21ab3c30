//! `walrelay replay` and `tail`: where a range begins that has nothing of the lane's own before it, and ranges that have nothing.

use serde_json::Value;

use crate::lane::{Lane, events, holds_events, jetstream, set_up};
use crate::range::{ids, target, uuids};
use crate::support::{Fixture, Stored, assert_exactly_once};

/// A lane whose stream has ten events, all from a backfill.
async fn backfilled(lane: Lane) -> Fixture {
    let mut fixture = Fixture::bare().await;
    let schema = walrelay::outbox::SCHEMA_SQL;
    fixture.sql.batch_execute(schema).await.unwrap();
    fixture.insert(1, 10).await;
    set_up(&mut fixture, lane).await;
    fixture.walrelay(&["backfill"]).await.success();
    fixture
}

/// The ids that a replay of this range publishes, to a stream that only this call uses.
async fn replayed(fixture: &Fixture, name: &str, range: &[&str]) -> Vec<uuid::Uuid> {
    let stream = format!("{}_{name}", target(fixture));
    let subject = format!("again.{}.{name}.{{event_type}}", fixture.name);
    let to = ["--stream", &stream, "--subject", &subject];
    let all = [&["replay", "--yes"], range, &to].concat();
    fixture.walrelay(&all).await.success();
    ids(&fixture.stored_in(&stream).await)
}

/// The ids of the first messages that `tail` shows from there on.
async fn tailed(fixture: &Fixture, since: &str, count: usize) -> Vec<uuid::Uuid> {
    let count = count.to_string();
    let tail = ["tail", "--json", "--since", since, "--count", &count];
    let shown = fixture.walrelay(&tail).await.success().stdout;
    let id = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("one JSON object a line");
        line["id"].as_str().expect("an event").parse().unwrap()
    };
    shown.lines().map(id).collect()
}

#[tokio::test]
async fn what_a_backfill_put_before_the_lane_s_first_event_is_in_a_range_of_places() {
    for lane in [Lane::FastIngest, Lane::Shared] {
        let mut fixture = backfilled(lane).await;
        // Nothing but them: no message tells a place.
        let all = ["replay", "--yes", "--from", "0/1"];
        fixture.walrelay(&all).await.success();
        let again = fixture.stored_in(&target(&fixture)).await;
        assert_exactly_once(&uuids(1..=10), &ids(&again));
        assert_eq!(tailed(&fixture, "0/1", 10).await, ids(&again));

        let relay = fixture.run();
        fixture.insert(11, 20).await;
        holds_events(&fixture, 20).await;
        relay.stop().await;
        let stored = events(&fixture).await;
        let place = |number: usize| stored[number - 1].position.as_str();
        let dry = fixture.walrelay(&["replay", "--dry-run", "--from", "0/1"]);
        let dry = dry.await.success().stdout;
        // The first run is gone on with.
        assert!(dry.contains("10 events would be published"), "{dry}");
        fixture.walrelay(&all).await.success();
        let again = fixture.stored_in(&target(&fixture)).await;
        let expected: Vec<_> = stored.iter().map(Stored::id).collect();
        assert_exactly_once(&expected, &ids(&again));

        let first = replayed(&fixture, "first", &["--from", place(11)]).await;
        assert_eq!(first, expected, "{lane:?}");
        let to = ["--from", "0/1", "--to", place(13)];
        assert_eq!(replayed(&fixture, "to", &to).await, expected[..13]);
        let behind = replayed(&fixture, "behind", &["--from", place(12)]).await;
        assert_eq!(behind, expected[11..], "{lane:?}");
        assert_eq!(tailed(&fixture, "0/1", 20).await, expected);
        assert_eq!(tailed(&fixture, place(12), 9).await, expected[11..]);
    }
}

/// What stands in the stream before its lane began is still no part of a range of places, and what a backfill put behind it is.
#[tokio::test]
async fn a_range_that_begins_with_a_backfill_does_not_reach_back_across_an_adoption() {
    let mut fixture = backfilled(Lane::FastIngest).await;
    let relay = fixture.run();
    fixture.insert(11, 15).await;
    fixture.holds(15).await;
    relay.stop().await;
    fixture.walrelay(&["adopt", "--yes"]).await.success();
    let relay = fixture.run();
    fixture.insert(16, 20).await;
    fixture.holds(20).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    let mut own = stored.iter().filter(|it| it.kind.is_none());
    let first = own.nth(5).expect("an event behind the adoption");
    let behind = replayed(&fixture, "adopted", &["--from", &first.position]).await;
    assert_eq!(behind, uuids(16..=20));
    let refused = ["replay", "--yes", "--from", "0/1"];
    let refused = fixture.walrelay(&refused).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
}

#[tokio::test]
async fn a_range_with_nothing_in_it_makes_no_stream() {
    let mut fixture = backfilled(Lane::FastIngest).await;
    let relay = fixture.run();
    fixture.insert(11, 15).await;
    fixture.holds(15).await;
    relay.stop().await;
    for range in [
        &["--from", "7FFFFFFF/0"][..],
        &["--from", "2099-01-01T00:00:00Z"],
        &["--from", "0/1", "--event-type", "nope"],
        &["--from", "0/1", "--aggregate-id", "nope"],
        &["--source", "table", "--from", "2099-01-01T00:00:00Z"],
    ] {
        let all = [&["replay", "--yes"], range].concat();
        let told = fixture.walrelay(&all).await.success().stdout;
        assert!(told.contains("0 events are published again"), "{told}");
        let json = [&all[..], &["--json"]].concat();
        let told = fixture.walrelay(&json).await.success().stdout;
        let told: Value = serde_json::from_str(told.trim()).expect("one JSON object");
        assert_eq!(told["published"], 0, "{told}");
        assert_eq!(told["done"], true, "{told}");
        let made = jetstream(&fixture).get_stream(target(&fixture)).await;
        assert!(made.is_err(), "{range:?}");
    }
    // So nothing stands in the way of another one.
    let all = replayed(&fixture, "other", &["--from", "0/1"]).await;
    assert_eq!(all, uuids(1..=15));
}

/// A range before the stream's beginning is refused, and what is named instead is typed.
#[tokio::test]
async fn a_range_before_the_stream_s_beginning_is_refused_and_the_oldest_place_named() {
    let mut fixture = backfilled(Lane::FastIngest).await;
    let relay = fixture.run();
    fixture.insert(11, 15).await;
    fixture.holds(15).await;
    relay.stop().await;
    let early = "2001-01-01T00:00:00Z";
    for (name, range) in [
        ("mixed", ["--from", "0/1", "--to", early]),
        ("times", ["--from", "2000-01-01T00:00:00Z", "--to", early]),
        ("places", ["--from", "0/1", "--to", "0/2"]),
    ] {
        let refused = [&["replay", "--yes"], &range[..]].concat();
        let refused = fixture.walrelay(&refused).await;
        assert_eq!(refused.code, Some(1), "{range:?}: {refused:?}");
        let said = &refused.stderr;
        let (_, oldest) = said.split_once("is --from ").expect(said);
        let (oldest, _) = oldest.split_once(',').expect(said);
        let again = replayed(&fixture, name, &["--from", oldest]).await;
        assert_eq!(again, uuids(1..=15), "{said}");
        let made = jetstream(&fixture).get_stream(target(&fixture)).await;
        assert!(made.is_err(), "{range:?}");
    }
}
