//! A slot without events of its own does not hold WAL back.

use crate::support::Fixture;

#[tokio::test]
async fn an_idle_slot_follows_other_tables_and_databases() {
    let mut fixture = Fixture::new().await;
    // The default: what is held back is events, not WAL.
    fixture.unset("WALRELAY_RELAY_HOLD_BACK");
    let mut relay = fixture.run();
    relay.streams().await;

    let elsewhere = "CREATE TABLE notes (text text); INSERT INTO notes SELECT repeat('x', 100) FROM generate_series(1, 10000)";
    fixture.sql.batch_execute(elsewhere).await.unwrap();
    fixture.confirms(fixture.server_lsn().await).await;

    let other = Fixture::bare().await;
    other.sql.batch_execute(elsewhere).await.unwrap();
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    assert_eq!(fixture.message_count().await, 0);
}

#[tokio::test]
async fn a_young_event_holds_the_slot_back_and_nothing_else_does() {
    let mut fixture = Fixture::new().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 1).await;
    fixture.holds(1).await;
    let event = fixture.server_lsn().await;
    let noise = "CREATE TABLE notes (text text); INSERT INTO notes SELECT repeat('x', 100) FROM generate_series(1, 10000)";
    fixture.sql.batch_execute(noise).await.unwrap();
    fixture.receives(fixture.server_lsn().await).await;
    relay.stop().await;
    assert!(fixture.confirmed_lsn().await < event);

    // Without it the same slot is confirmed to the end, and the event stays the only one.
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "0s");
    let relay = fixture.run();
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    assert_eq!(fixture.message_count().await, 1);
}
