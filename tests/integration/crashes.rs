//! Kills and restarts under load: nothing is lost, doubled or out of order.

use walrelay::local::Mode;

use crate::support::{Fixture, Relay, Writer, assert_exactly_once, eventually};

/// Events that must have come through between two accidents.
const EVENTS_BETWEEN: u64 = 300;

async fn more(fixture: &Fixture) {
    fixture
        .holds(fixture.message_count().await + EVENTS_BETWEEN)
        .await;
}

/// Stops the writer, waits until all has come through, stops the relay, judges.
async fn judge(fixture: &mut Fixture, writer: Writer, relay: Relay) {
    let committed = writer.stop(fixture).await;
    fixture.reconnect().await;
    fixture.holds(committed.len() as u64).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    assert_exactly_once(&committed, &fixture.stored_ids().await);
}

#[tokio::test]
async fn the_relay_is_killed_ten_times() {
    let mut fixture = Fixture::new().await;
    let mut relay = fixture.run();
    let writer = Writer::start(&fixture).await;
    for _ in 0..10 {
        more(&fixture).await;
        relay.kill();
        relay = fixture.run();
    }
    more(&fixture).await;
    judge(&mut fixture, writer, relay).await;
}

#[tokio::test]
async fn postgres_is_restarted() {
    let mut fixture = Fixture::own().await;
    let mut relay = fixture.run();
    let writer = Writer::start(&fixture).await;
    for kill in [false, true, false, true] {
        more(&fixture).await;
        let postgres = &mut fixture.own_servers().postgres;
        if kill {
            postgres.kill();
        } else {
            postgres.stop(Mode::Fast).await.unwrap();
        }
        postgres.start_again().await.unwrap();
    }
    more(&fixture).await;
    assert!(relay.runs());
    judge(&mut fixture, writer, relay).await;
}

#[tokio::test]
async fn nats_is_restarted() {
    let mut fixture = Fixture::own().await;
    let mut relay = fixture.run();
    let writer = Writer::start(&fixture).await;
    for kill in [false, true, false, true] {
        more(&fixture).await;
        fixture.own_servers().restart_nats(kill).await;
    }
    more(&fixture).await;
    assert!(relay.runs());
    judge(&mut fixture, writer, relay).await;
}

#[tokio::test]
async fn nats_is_silent_for_longer_than_an_ack_may_take() {
    let mut fixture = Fixture::own().await;
    fixture.set("WALRELAY_RELAY_ACK_TIMEOUT", "500ms");
    let mut relay = fixture.run();
    let writer = Writer::start(&fixture).await;
    for _ in 0..3 {
        more(&fixture).await;
        let before = relay.log().len();
        fixture.own_servers().nats.pause();
        eventually("the relay gives up waiting", async || {
            relay.log()[before..].contains("WARN").then_some(())
        })
        .await;
        // What it had sent is stored now, after it has stopped to count on it.
        fixture.own_servers().nats.resume();
    }
    more(&fixture).await;
    assert!(relay.runs());
    judge(&mut fixture, writer, relay).await;
}
