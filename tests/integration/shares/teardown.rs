//! `walrelay teardown` where the configuration does not name all lanes.

use super::load::{SLOTS, change_alone, count, own_streams, shares, two_shares};
use crate::support::Fixture;

/// Slots that nobody names any more keep WAL for ever.
#[tokio::test]
async fn teardown_of_another_number_of_shares_removes_nothing() {
    let mut fixture = two_shares(false).await;
    let all = ["teardown", "--yes", "--drop-stream", "--drop-table"];
    for wrong in [1, 4] {
        shares(&mut fixture, wrong);
        for command in [&all[..2], &all[..]] {
            let refused = fixture.walrelay(command).await;
            assert_eq!(refused.code, Some(1), "{wrong}: {refused:?}");
            let told = format!("the outbox has 2 shares, and relay.shares is {wrong}");
            assert!(refused.stderr.contains(&told), "{}", refused.stderr);
        }
    }
    assert_eq!(count(&fixture, SLOTS).await, 2);
    assert_eq!(count(&fixture, "FROM pg_publication").await, 2);
    assert_eq!(count(&fixture, "FROM outbox_events").await, 0);
    fixture.message_count().await;
    shares(&mut fixture, 2);
    fixture.walrelay(&all).await.success();
    assert_eq!(count(&fixture, SLOTS).await, 0);
}

/// Lanes that it has left behind hold rows that no stream has.
#[tokio::test]
async fn teardown_behind_a_reshard_that_was_killed_names_what_finishes_it() {
    let mut fixture = Fixture::bare().await;
    own_streams(&mut fixture, 4);
    fixture.setup().await;
    change_alone(&fixture, &["reshard", "--shares", "2"]).await;
    shares(&mut fixture, 2);
    let refused = fixture.walrelay(&["teardown", "--yes"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_eq!(count(&fixture, SLOTS).await, 4);
    let told = "run walrelay reshard --shares 2,";
    assert!(refused.stderr.contains(told), "{}", refused.stderr);
    let reshard = ["reshard", "--shares", "2"];
    fixture.walrelay(&reshard).await.success();
    fixture.walrelay(&["teardown", "--yes"]).await.success();
    assert_eq!(count(&fixture, SLOTS).await, 0);
    assert_eq!(count(&fixture, "FROM pg_publication").await, 0);
}
