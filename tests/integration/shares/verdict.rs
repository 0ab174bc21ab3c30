//! The verdict over several streams of one outbox, and the erasure of all that they hold.

use std::collections::HashMap;

use postgres_types::PgLsn;
use uuid::Uuid;

use crate::support::{Fixture, Stored, eventually};

/// The streams of so many shares.
pub(super) fn streams_of(fixture: &Fixture, count: u32) -> Vec<String> {
    let name = |share: u32| fixture.stream_name().replace("{share}", &share.to_string());
    (0..count).map(name).collect()
}

/// Of those that are there, without fences, each in its own order.
pub(super) async fn events_of(fixture: &Fixture, streams: &[String]) -> Vec<Vec<Stored>> {
    let mut all = Vec::new();
    for name in streams {
        let mut stored = fixture.stored_in(name).await;
        stored.retain(|message| !message.subject.starts_with("walrelay."));
        all.push(stored);
    }
    all
}

/// What a consumer of several streams sorts by.
fn position(event: &Stored) -> (PgLsn, u32) {
    let (lsn, ordinal) = event.position.split_once(':').expect("a position");
    let lsn = lsn.parse().expect("an LSN");
    (lsn, ordinal.parse().expect("an ordinal"))
}

/// Each committed event is in the streams once. The order of every aggregate is that of the commits: in each stream, and over all
/// of them by position and by when they were stored.
pub(super) async fn verdict(fixture: &Fixture, committed: &[Uuid], streams: &[String]) {
    let all = eventually("all events are in the streams", async || {
        let all = events_of(fixture, streams).await;
        let stored: usize = all.iter().map(Vec::len).sum();
        (stored >= committed.len()).then_some(all)
    })
    .await;
    let mut stored: Vec<Uuid> = all.iter().flatten().map(Stored::id).collect();
    let mut expected = committed.to_vec();
    stored.sort_unstable();
    expected.sort_unstable();
    assert_eq!(stored, expected, "each once");
    let ranks: HashMap<&Uuid, usize> = committed.iter().zip(0..).collect();
    let rows = fixture
        .sql
        .query("SELECT id, aggregate_id FROM outbox_events", &[]);
    let rows = rows.await.unwrap();
    let aggregates: HashMap<Uuid, Uuid> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let in_order = |events: &mut dyn Iterator<Item = &Stored>, by: &str| {
        let mut last: HashMap<Uuid, usize> = HashMap::new();
        for id in events.map(Stored::id) {
            let before = last.insert(aggregates[&id], ranks[&id]);
            assert!(before < Some(ranks[&id]), "{id} is out of order by {by}");
        }
    };
    for events in &all {
        in_order(&mut events.iter(), "sequence");
    }
    let mut merged: Vec<&Stored> = all.iter().flatten().collect();
    merged.sort_by_key(|event| position(event));
    in_order(&mut merged.iter().copied(), "position");
    // A stable sort: of what was stored in one moment by one batch, by position.
    merged.sort_by_key(|event| event.stored_ns);
    in_order(&mut merged.iter().copied(), "time");
}

/// Erases each aggregate: from the streams of all lanes that there ever were.
pub(super) async fn all_is_erased(fixture: &Fixture, streams: &[String]) {
    let row = "SELECT aggregate_id::text FROM outbox_events GROUP BY 1";
    for row in fixture.sql.query(row, &[]).await.unwrap() {
        let aggregate: String = row.get(0);
        let erase = ["erase", "--yes", "--json", "--aggregate-id", &aggregate];
        fixture.walrelay(&erase).await.success();
    }
    let left = events_of(fixture, streams).await;
    assert!(left.iter().all(Vec::is_empty), "{left:?}");
}
