//! A relay that vanishes without a word: its slot is free within seconds, whatever the server's own patience is. One that is
//! slow, or has lost its broker, keeps it.

use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;

use crate::lane::{holds_events, judge, judge_events, logs_from, more_events};
use crate::proxy::{Mode, Proxy};
use crate::support::{Fixture, Relay, Writer, eventually, uuid};

const EVENTS_BETWEEN: u64 = 300;

/// The database's sessions are never given up for their silence, unless they ask for it.
async fn patient(fixture: &Fixture) {
    let name = &fixture.name;
    let setting = format!("ALTER DATABASE {name} SET wal_sender_timeout = 0");
    fixture.sql.batch_execute(&setting).await.unwrap();
}

/// Ways to both servers that one relay takes.
struct Links {
    postgres: Proxy,
    nats: Proxy,
}

impl Links {
    fn set(&self, mode: Mode) {
        self.postgres.set(mode);
        self.nats.set(mode);
    }
}

/// A relay whose connections can be spoiled.
async fn run(fixture: &mut Fixture) -> (Relay, Links) {
    let server = &fixture.servers().postgres;
    let postgres = Proxy::start(server.port()).await.expect("a free port");
    let url = server.url(&fixture.name);
    let url = url.replace(&server.port().to_string(), &postgres.port().to_string());
    fixture.set("WALRELAY_POSTGRES_URL", url);
    let port = fixture.nats.server_info().port;
    let nats = Proxy::start(port).await.expect("a free port");
    let url = format!("nats://127.0.0.1:{}", nats.port());
    fixture.set("WALRELAY_NATS_URL", url);
    (fixture.run(), Links { postgres, nats })
}

/// Waits until the second relay streams, with nobody's help, and has published more.
async fn takes_over(fixture: &Fixture, next: &mut Relay, how: &str) {
    let begin = Instant::now();
    next.streams().await;
    eprintln!("{how}: taken over after {:?}", begin.elapsed());
    more_events(fixture, EVENTS_BETWEEN).await;
}

/// Three relays after one another get `signal` while the next one waits; `ends` is what becomes of each, once that has taken over.
async fn in_turn(signal: Signal, how: &str, ends: impl AsyncFn(&Fixture, Relay, usize)) {
    let mut fixture = Fixture::new().await;
    patient(&fixture).await;
    let mut relay = fixture.run();
    relay.streams().await;
    let writer = Writer::start(&fixture).await;
    for _ in 0..3 {
        let mut next = fixture.run();
        next.logs("is in use").await;
        more_events(&fixture, EVENTS_BETWEEN).await;
        let logged = relay.log().len();
        relay.signal(signal);
        takes_over(&fixture, &mut next, how).await;
        ends(&fixture, relay, logged).await;
        relay = next;
    }
    judge(&fixture, writer).await;
    relay.stop().await;
}

#[tokio::test]
async fn of_a_relay_that_is_frozen() {
    in_turn(
        Signal::STOP,
        "frozen",
        async |fixture, mut relay, logged| {
            relay.signal(Signal::CONT);
            logs_from(&mut relay, logged, "is in use").await;
            more_events(fixture, EVENTS_BETWEEN).await;
            relay.kill();
        },
    )
    .await;
}

#[tokio::test]
async fn in_a_rolling_restart() {
    in_turn(Signal::TERM, "stopped", async |_, mut relay, _| {
        assert_eq!(relay.ends().await, Some(0));
    })
    .await;
}

/// Nothing arrives any more on either side, and nothing is closed.
#[tokio::test]
async fn of_a_relay_whose_cable_is_cut() {
    let mut fixture = Fixture::new().await;
    patient(&fixture).await;
    let (mut relay, links) = run(&mut fixture).await;
    relay.streams().await;
    let writer = Writer::start(&fixture).await;
    let (mut next, _links) = run(&mut fixture).await;
    next.logs("is in use").await;
    more_events(&fixture, EVENTS_BETWEEN).await;
    let logged = relay.log().len();
    links.set(Mode::Forget(0));
    takes_over(&fixture, &mut next, "cut off").await;
    logs_from(&mut relay, logged, "waiting: ").await;
    // It is back, and waits like any other.
    let logged = relay.log().len();
    links.set(Mode::Pass);
    logs_from(&mut relay, logged, "is in use").await;
    judge(&fixture, writer).await;
    relay.stop().await;
    next.stop().await;
}

/// The slot's reader, and when the server last heard from it.
async fn heard(fixture: &Fixture) -> (i32, SystemTime) {
    let sql = "SELECT pid, reply_time FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid
               WHERE slot_name = $1 AND reply_time IS NOT NULL";
    eventually("the slot is read", async || {
        let row = fixture
            .sql
            .query_opt(sql, &[&fixture.name])
            .await
            .unwrap()?;
        Some((row.get(0), row.get(1)))
    })
    .await
}

#[tokio::test]
async fn not_of_a_relay_whose_broker_is_away() {
    let mut fixture = Fixture::new().await;
    let interval = Duration::from_millis(200);
    fixture.set("WALRELAY_RELAY_STATUS_INTERVAL", "200ms");
    let (mut relay, links) = run(&mut fixture).await;
    relay.streams().await;
    fixture.insert(1, 5).await;
    holds_events(&fixture, 5).await;
    links.nats.set(Mode::Refuse);
    links.nats.cut();
    relay.logs("waiting: ").await;
    // What is in the WAL meanwhile is more than is in flight.
    fixture.insert(6, 20_000).await;
    let (reader, at) = heard(&fixture).await;
    eventually("many times the server's patience passes", async || {
        let (now, later) = heard(&fixture).await;
        assert_eq!(now, reader);
        (later > at + 10 * interval).then_some(())
    })
    .await;
    links.nats.set(Mode::Pass);
    judge_events(&fixture, &(1..=20_000).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}

/// A start has the slot before it has asked the broker for all that it needs to know.
#[tokio::test]
async fn not_of_a_start_whose_broker_is_slow() {
    let mut fixture = Fixture::new().await;
    fixture.set("WALRELAY_RELAY_STATUS_INTERVAL", "200ms");
    fixture.insert(1, 5).await;
    let (mut relay, links) = run(&mut fixture).await;
    relay.streams().await;
    holds_events(&fixture, 5).await;
    relay.kill();
    // An answer takes longer than the server's patience.
    links.nats.set(Mode::Delay(Duration::from_millis(400)));
    let mut relay = fixture.run();
    fixture.insert(6, 10).await;
    relay.streams().await;
    holds_events(&fixture, 10).await;
    assert!(!relay.log().contains("waiting: "), "{}", relay.log());
    judge_events(&fixture, &(1..=10).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}
