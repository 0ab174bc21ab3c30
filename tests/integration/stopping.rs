//! Ends in good order: of the relay by signals, of Postgres beside a relay.

use std::net::TcpListener;
use std::time::Duration;

use postgres_types::PgLsn;
use rustix::process::Signal;
use walrelay::local::Mode;

use crate::support::{Fixture, Relay, Writer, assert_exactly_once, eventually, uuid};

/// Held back for so long, a server that waited for the relay's confirmation would outwait any test.
const HOLD_BACK: &str = "1h";
/// A fast shutdown beside a relay may take so much longer than the one before without: a busy machine, never a wait for
/// the hold-back. One that does not end within a minute is none at all, as for `pg_ctl`.
const SLOWER_MAX: Duration = Duration::from_secs(20);
/// So much WAL is on its way that the relay must have read some of it.
const IN_FLIGHT_WAL_BYTES: u64 = 128 * 1024;

#[tokio::test]
async fn a_clean_stop_and_start_publishes_nothing_again() {
    let mut fixture = Fixture::new().await;
    let mut total = 0;
    // With a hold-back the slot brings all of it again, and the stream's end tells what is there.
    for (signal, hold_back) in [
        (Signal::TERM, "0s"),
        (Signal::INT, "180s"),
        (Signal::TERM, "180s"),
        (Signal::TERM, "0s"),
    ] {
        fixture.set("WALRELAY_RELAY_HOLD_BACK", hold_back);
        let mut relay = fixture.run();
        relay.streams().await;
        fixture.insert(total + 1, total + 500).await;
        total += 500;
        fixture.holds(total).await;
        relay.signal(signal);
        assert_eq!(relay.ends().await, Some(0));
    }
    let expected: Vec<_> = (1..=total).map(uuid).collect();
    let stored = fixture.stored().await;
    let ids: Vec<_> = stored.iter().map(|message| message.id()).collect();
    assert_exactly_once(&expected, &ids);
    // No message was stored and removed, or refused and counted.
    assert_eq!(stored.last().unwrap().sequence, total);
}

#[tokio::test]
async fn a_stop_under_load_loses_and_doubles_nothing() {
    let mut fixture = Fixture::new().await;
    let writer = Writer::start(&fixture).await;
    for _ in 0..5 {
        let relay = fixture.run();
        fixture.holds(fixture.message_count().await + 200).await;
        relay.stop().await;
    }
    let committed = writer.stop(&fixture).await;
    let relay = fixture.run();
    fixture.holds(committed.len() as u64).await;
    relay.stop().await;
    assert_exactly_once(&committed, &fixture.stored_ids().await);
}

#[tokio::test]
async fn a_stop_always_says_that_it_has_ended_and_how() {
    /// What the log has behind the signal's own line.
    fn lines(relay: &Relay) -> Vec<String> {
        let log = relay.log();
        let lines = log.lines().map(str::to_owned);
        lines
            .skip_while(|line| !line.contains("SIGTERM"))
            .skip(1)
            .collect()
    }
    let mut fixture = Fixture::own().await;
    fixture.set("WALRELAY_RELAY_SHUTDOWN_TIMEOUT", "2s");
    fixture.set("WALRELAY_RELAY_ACK_TIMEOUT", "30s");
    // While it waits, nothing was read.
    fixture.own_servers().nats.stop().await.unwrap();
    let mut relay = fixture.run();
    relay.logs("waiting: ").await;
    relay.signal(Signal::TERM);
    assert_eq!(relay.ends().await, Some(0));
    let said = lines(&relay);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("stopped ") && said[0].contains("unacknowledged=0"),
        "{said:?}"
    );

    // While it streams.
    fixture.own_servers().nats.start_again().await.unwrap();
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 10).await;
    fixture.holds(10).await;
    relay.signal(Signal::TERM);
    assert_eq!(relay.ends().await, Some(0));
    let said = lines(&relay);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("no more WAL is read"), "{said:?}");
    assert!(
        said[1].contains("stopped ") && said[1].contains("unacknowledged=0"),
        "{said:?}"
    );

    // With the broker silent, the acknowledgements never come. How many rows it has sent until then depends on how the
    // WAL comes in.
    let status_page = TcpListener::bind("127.0.0.1:0").unwrap();
    fixture.set(
        "WALRELAY_HTTP_LISTEN",
        status_page.local_addr().unwrap().to_string(),
    );
    drop(status_page);
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.own_servers().nats.pause();
    fixture.insert(11, 20).await;
    eventually("something is in flight", async || {
        let status = fixture.walrelay(&["status", "--json"]).await.stdout;
        let status: serde_json::Value = serde_json::from_str(&status).ok()?;
        (status["relay"]["marks"]["in_flight"].as_u64()? > 0).then_some(())
    })
    .await;
    relay.signal(Signal::TERM);
    assert_eq!(relay.ends().await, Some(0));
    let said = lines(&relay);
    let (_, in_flight) = said[0].split_once("in_flight=").expect("it says how many");
    assert_ne!(in_flight, "0", "{said:?}");
    let last = said.last().unwrap();
    assert!(
        last.contains("stopped ") && last.ends_with(&format!("unacknowledged={in_flight}")),
        "{said:?}"
    );
    assert_eq!(
        said.iter().filter(|line| line.contains("stopped ")).count(),
        1,
        "{said:?}"
    );
    fixture.own_servers().nats.resume();
    let relay = fixture.run();
    fixture.holds(20).await;
    relay.stop().await;
    assert_exactly_once(
        &(1..=20).map(uuid).collect::<Vec<_>>(),
        &fixture.stored_ids().await,
    );
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut fixture = Fixture::own().await;
    fixture.set("WALRELAY_RELAY_SHUTDOWN_TIMEOUT", "60s");
    fixture.set("WALRELAY_RELAY_ACK_TIMEOUT", "60s");
    let mut relay = fixture.run();
    let writer = Writer::start(&fixture).await;
    fixture.holds(500).await;
    // With the broker silent, the first signal waits for acknowledgements.
    fixture.own_servers().nats.pause();
    let sql = "SELECT sent_lsn FROM pg_stat_replication";
    let paused_at = fixture.server_lsn().await;
    eventually("the relay has much in flight", async || {
        let sent: PgLsn = fixture.sql.query_one(sql, &[]).await.unwrap().get(0);
        (u64::from(sent) > u64::from(paused_at) + IN_FLIGHT_WAL_BYTES).then_some(())
    })
    .await;
    relay.signal(Signal::TERM);
    relay.logs("SIGTERM").await;
    assert!(relay.runs());
    relay.signal(Signal::INT);
    assert_eq!(relay.ends().await, Some(1));
    fixture.own_servers().nats.resume();

    let relay = fixture.run();
    let committed = writer.stop(&fixture).await;
    fixture.holds(committed.len() as u64).await;
    relay.stop().await;
    assert_exactly_once(&committed, &fixture.stored_ids().await);
}

/// Postgres ends by a fast shutdown under load, and is started again; how long the end took.
async fn shuts_down_fast(fixture: &mut Fixture) -> Duration {
    let postgres = &mut fixture.own_servers().postgres;
    let took = postgres.stop(Mode::Fast).await.expect("it stops");
    postgres.start_again().await.expect("it starts");
    fixture.reconnect().await;
    took
}

#[tokio::test]
async fn postgres_shuts_down_fast_beside_a_relay_that_holds_back() {
    let mut fixture = Fixture::own().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", HOLD_BACK);
    let writer = Writer::start(&fixture).await;
    eventually("much is written", async || {
        (writer.committed() > 1_000).then_some(())
    })
    .await;
    let without = shuts_down_fast(&mut fixture).await;

    let mut relay = fixture.run();
    fixture.holds(2_000).await;
    let held = fixture.server_lsn().await;
    let beside = shuts_down_fast(&mut fixture).await;
    eprintln!("a fast shutdown took {without:?} without a relay, {beside:?} beside one");
    assert!(beside < without + SLOWER_MAX, "{beside:?}");
    assert!(relay.runs());
    // What was held back is still the slot's.
    assert!(fixture.confirmed_lsn().await < held);
    let committed = writer.stop(&fixture).await;
    fixture.holds(committed.len() as u64).await;
    relay.stop().await;
    assert_exactly_once(&committed, &fixture.stored_ids().await);
}
