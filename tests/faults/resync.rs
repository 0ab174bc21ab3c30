//! A trouble with the broker costs the connection to the broker, and nothing of Postgres'.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant, SystemTime};

use uuid::Uuid;
use walrelay::local::Mode;

use crate::lane::{LANES, Lane, holds_events, jetstream, judge_events, set_up, stream_of};
use crate::support::{Fixture, Relay, Servers, eventually, options, uuid};

/// The process that sends the slot's WAL; none while nobody reads it.
async fn walsender(fixture: &Fixture) -> Option<i32> {
    let sql = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
    let row = fixture.sql.query_one(sql, &[&fixture.name]).await.unwrap();
    row.get(0)
}

/// Another program publishes into the lane's stream, on its other subject.
async fn publish_by_hand(fixture: &Fixture) {
    let subject = format!("walrelay.dead.{}", fixture.name);
    let sent = jetstream(fixture).publish(subject, "hello".into()).await;
    sent.unwrap().await.unwrap();
}

fn uuids(last: u64) -> Vec<Uuid> {
    (1..=last).map(uuid).collect()
}

/// Lets the server's clock go on.
async fn passes(fixture: &Fixture, time: Duration) {
    let clock = async || -> SystemTime {
        let row = fixture.sql.query_one("SELECT clock_timestamp()", &[]).await;
        row.unwrap().get(0)
    };
    let until = clock().await + time;
    eventually("time passes", async || {
        (clock().await >= until).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_foreign_message_costs_no_walsender() {
    let mut fixture = Fixture::new().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 1).await;
    holds_events(&fixture, 1).await;
    let before = walsender(&fixture).await;
    for n in 2..=9 {
        publish_by_hand(&fixture).await;
        fixture.insert(n, n).await;
        holds_events(&fixture, n).await;
    }
    assert_eq!(walsender(&fixture).await, before);
    let end = fixture.server_lsn().await;
    fixture.confirms(end).await;
    judge_events(&fixture, &uuids(9)).await;
    relay.stop().await;
}

/// As long as Postgres waits for a sign of life, and longer.
#[tokio::test]
async fn the_slot_is_kept_while_nats_is_away() {
    for lane in LANES {
        let settings = [("wal_sender_timeout", "2s")];
        let mut fixture = Fixture::bare_on(Servers::with(options(&settings)).await).await;
        set_up(&mut fixture, lane).await;
        let mut relay = fixture.run();
        relay.streams().await;
        fixture.insert(1, 20).await;
        holds_events(&fixture, 20).await;
        let before = walsender(&fixture).await;
        fixture.own_servers().nats.stop().await.unwrap();
        relay.logs("waiting: NATS").await;
        // More than fits into the sockets.
        fixture.insert(21, 20_000).await;
        passes(&fixture, Duration::from_secs(6)).await;
        assert_eq!(walsender(&fixture).await, before, "{lane:?}");
        fixture.own_servers().nats.start_again().await.unwrap();
        holds_events(&fixture, 20_000).await;
        assert_eq!(walsender(&fixture).await, before, "{lane:?}");
        let end = fixture.server_lsn().await;
        fixture.confirms(end).await;
        judge_events(&fixture, &uuids(20_000)).await;
        relay.stop().await;
    }
}

/// What is in flight when the server dies is sent again as far as it is not stored, in a transaction that is not at its end.
#[tokio::test]
async fn rows_in_flight_are_sent_again_to_a_broker_that_was_killed() {
    for lane in LANES {
        let mut fixture = Fixture::bare_on(Servers::own().await).await;
        set_up(&mut fixture, lane).await;
        let mut relay = fixture.run();
        relay.streams().await;
        let before = walsender(&fixture).await;
        let mut last = 0;
        for round in 1..=4_u64 {
            let first = last + 1;
            last += 3_000;
            fixture.insert(first, last).await;
            holds_events(&fixture, first + round * 100).await;
            fixture.own_servers().nats.kill();
            fixture.own_servers().nats.start_again().await.unwrap();
        }
        holds_events(&fixture, last).await;
        assert_eq!(walsender(&fixture).await, before, "{lane:?}");
        judge_events(&fixture, &uuids(last)).await;
        relay.stop().await;
    }
}

/// A relay that has published five events, and waits for the broker.
async fn without_nats() -> (Fixture, Relay) {
    let mut fixture = Fixture::own().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 5).await;
    holds_events(&fixture, 5).await;
    fixture.own_servers().nats.stop().await.unwrap();
    relay.logs("waiting: NATS").await;
    (fixture, relay)
}

/// Nothing is read of a server that is shutting down then, and it would wait for us.
#[tokio::test]
async fn postgres_shuts_down_while_nats_is_away() {
    let (mut fixture, mut relay) = without_nats().await;
    fixture.insert(6, 20_000).await;
    let took = fixture
        .own_servers()
        .postgres
        .stop(Mode::Fast)
        .await
        .unwrap();
    eprintln!("a fast shutdown beside a relay without its broker took {took:?}");
    assert!(relay.runs());
    fixture.own_servers().postgres.start_again().await.unwrap();
    fixture.own_servers().nats.start_again().await.unwrap();
    fixture.reconnect().await;
    holds_events(&fixture, 20_000).await;
    judge_events(&fixture, &uuids(20_000)).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_relay_stops_while_nats_is_away() {
    let (mut fixture, relay) = without_nats().await;
    fixture.insert(6, 9).await;
    relay.stop().await;
    eventually("the slot is free", async || {
        walsender(&fixture).await.is_none().then_some(())
    })
    .await;
    fixture.own_servers().nats.start_again().await.unwrap();
    let relay = fixture.run();
    holds_events(&fixture, 9).await;
    judge_events(&fixture, &uuids(9)).await;
    relay.stop().await;
}

/// Publishes an event each and waits until the stream has it; the median of how long that took, `first` being done before.
async fn publishes(
    fixture: &Fixture,
    numbers: RangeInclusive<u64>,
    first: impl AsyncFn(),
) -> Duration {
    let stream = stream_of(fixture).await;
    let mut times = Vec::new();
    for n in numbers {
        first().await;
        let before = stream.get_info().await.unwrap().state.last_sequence;
        let begin = Instant::now();
        fixture.insert(n, n).await;
        while stream.get_info().await.unwrap().state.last_sequence == before {
            tokio::task::yield_now().await;
        }
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2]
}

/// Much WAL is held back: a new walsender decodes it all again, and a foreign message does not need one. Prints both.
#[tokio::test]
async fn a_foreign_message_beside_much_held_wal() {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    set_up(&mut fixture, Lane::FastIngest).await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 1).await;
    holds_events(&fixture, 1).await;
    let other = "CREATE TABLE other (text text);
                 INSERT INTO other SELECT repeat('x', 200) FROM generate_series(1, 400000)";
    fixture.sql.batch_execute(other).await.unwrap();
    fixture.insert(2, 2).await;
    holds_events(&fixture, 2).await;
    let first = walsender(&fixture).await;
    let alone = publishes(&fixture, 3..=17, async || ()).await;
    let by_hand = async || publish_by_hand(&fixture).await;
    let with_foreign = publishes(&fixture, 18..=32, by_hand).await;
    assert_eq!(walsender(&fixture).await, first);
    let end =
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1";
    let is_ended = async || {
        fixture.sql.query(end, &[&fixture.name]).await.unwrap();
    };
    let with_walsender = publishes(&fixture, 33..=35, is_ended).await;
    let held = u64::from(fixture.server_lsn().await) - u64::from(fixture.confirmed_lsn().await);
    eprintln!(
        "with {} MB held back an event took {alone:?} alone, {with_foreign:?} behind a foreign message, {with_walsender:?} behind a \
         new walsender",
        held >> 20
    );
    judge_events(&fixture, &uuids(35)).await;
    relay.stop().await;
}
