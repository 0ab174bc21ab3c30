//! A broker that goes away while a command publishes in bulk: the command waits, and goes on by itself.

use crate::lane::event_count;
use crate::range::{count, ids, target, uuids};
use crate::support::{Fixture, Servers, Stored, assert_exactly_once, eventually};

const ROWS: u64 = 30_000;

#[tokio::test]
async fn a_backfill_and_a_replay_go_on_when_the_broker_is_back() {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    fixture.make_table().await;
    fixture.insert(1, ROWS).await;
    fixture.setup().await;
    let mut backfill = fixture.start(&["backfill"]);
    for kill in [true, false] {
        let before = event_count(&fixture).await;
        eventually("the backfill publishes", async || {
            (event_count(&fixture).await > before).then_some(())
        })
        .await;
        fixture.own_servers().restart_nats(kill).await;
    }
    assert_eq!(backfill.ends().await, Some(0), "{}", backfill.log());
    let stored = fixture.stored().await;
    let mut published: Vec<_> = stored.iter().map(Stored::id).collect();
    published.sort_unstable();
    assert_exactly_once(&uuids(1..=ROWS), &published);

    let mut replay = fixture.start(&["replay", "--yes", "--from", "2026-01-01T00:00:00Z"]);
    for kill in [true, false] {
        let before = count(&fixture).await;
        eventually("the replay publishes", async || {
            (count(&fixture).await > before).then_some(())
        })
        .await;
        fixture.own_servers().restart_nats(kill).await;
    }
    assert_eq!(replay.ends().await, Some(0), "{}", replay.log());
    let again = ids(&fixture.stored_in(&target(&fixture)).await);
    assert_eq!(again, stored.iter().map(Stored::id).collect::<Vec<_>>());
}
