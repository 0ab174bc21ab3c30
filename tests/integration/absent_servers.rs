//! Servers that are away when the relay starts: it waits, says for what, and costs nothing meanwhile.

use std::time::{Duration, Instant};

use walrelay::local::Mode;

use crate::support::{Fixture, Relay, assert_exactly_once, eventually, uuid};

/// CPU time of a debug build that waits for four seconds, in ticks of 10 ms, start included. A busy loop takes 400.
const WAIT_TICKS_MAX: u64 = 60;
/// From a server's return to its events: a second on an idle machine, and so much that no busy one takes it for a pause
/// that has grown.
const RECOVERY_MAX: Duration = Duration::from_secs(30);
/// Over so many attempts memory is watched.
const ATTEMPTS: usize = 100;
const ROUNDS_MAX: usize = 3;
/// What it may grow by: a buffer of a connection that each attempt left behind would be more.
const GROWTH_KIB_MAX: u64 = 1_024;
/// Long enough for the pauses to reach their maximum.
const WAIT: Duration = Duration::from_secs(4);

/// Lets the relay wait; it must neither end, nor spin, nor repeat itself.
async fn waits(relay: &mut Relay) {
    relay.logs("waiting: ").await;
    let begin = Instant::now();
    eventually("the relay waits for a while", async || {
        assert!(relay.runs());
        (begin.elapsed() >= WAIT).then_some(())
    })
    .await;
    if let Some(ticks) = relay.cpu_ticks() {
        eprintln!("{ticks} ticks of 10 ms");
        assert!(ticks <= WAIT_TICKS_MAX, "{ticks} ticks of 10 ms");
    }
    let log = relay.log();
    assert_eq!(log.matches("waiting: ").count(), 1, "{log}");
}

/// The server is back, and soon the five events are there.
async fn recovers(fixture: &Fixture, mut relay: Relay) {
    let returned = Instant::now();
    relay.streams().await;
    fixture.holds(5).await;
    assert!(returned.elapsed() < RECOVERY_MAX);
    relay.stop().await;
    assert_exactly_once(
        &(1..=5).map(uuid).collect::<Vec<_>>(),
        &fixture.stored_ids().await,
    );
}

#[tokio::test]
async fn nats_is_away_at_the_start() {
    let mut fixture = Fixture::own().await;
    fixture.own_servers().nats.stop().await.unwrap();
    fixture.insert(1, 5).await;
    let mut relay = fixture.run();
    waits(&mut relay).await;
    let address = fixture.servers().nats.url().replace("nats://", "");
    assert!(relay.log().contains("waiting: NATS: ") && relay.log().contains(&address));
    fixture.own_servers().nats.start_again().await.unwrap();
    recovers(&fixture, relay).await;
}

#[tokio::test]
async fn postgres_is_away_at_the_start() {
    let mut fixture = Fixture::own().await;
    fixture.insert(1, 5).await;
    let postgres = &mut fixture.own_servers().postgres;
    postgres.stop(Mode::Fast).await.unwrap();
    let mut relay = fixture.run();
    waits(&mut relay).await;
    let (port, name) = (fixture.servers().postgres.port(), &fixture.name);
    let place = format!(
        "waiting: Postgres: cannot connect to postgres://postgres@127.0.0.1:{port}/{name}: "
    );
    assert!(relay.log().contains(&place), "{}", relay.log());
    let postgres = &mut fixture.own_servers().postgres;
    postgres.start_again().await.unwrap();
    recovers(&fixture, relay).await;
}

/// What the relay's memory grows by over [`ATTEMPTS`] attempts in vain, in KiB; `None` where there is no /proc.
async fn growth_kib(relay: &Relay) -> Option<u64> {
    let attempts = async |count: usize| {
        let begin = relay.log().matches("still waiting").count();
        eventually(format!("{count} attempts"), async || {
            let now = relay.log().matches("still waiting").count();
            (now >= begin + count).then_some(())
        })
        .await;
    };
    // What is allocated once is there by then, or behind a further round: what is never given back grows in each.
    attempts(ATTEMPTS / 2).await;
    let mut least = u64::MAX;
    for _ in 0..ROUNDS_MAX {
        let before = relay.status_kib("VmRSS")?;
        attempts(ATTEMPTS).await;
        let grown = relay.status_kib("VmRSS")?.saturating_sub(before);
        least = least.min(grown);
        if least <= GROWTH_KIB_MAX {
            break;
        }
    }
    Some(least)
}

#[tokio::test]
async fn attempts_in_vain_cost_no_memory() {
    let mut fixture = Fixture::own().await;
    fixture.set("WALRELAY_RELAY_BACKOFF_MAX", "100ms");
    let mut relay = fixture.run_with(&["--log-level", "debug"]);
    relay.streams().await;
    // First with Postgres there, whose connections come and go; then with nobody.
    fixture.own_servers().nats.stop().await.unwrap();
    relay.logs("waiting: NATS").await;
    let without_nats = growth_kib(&relay).await;
    let postgres = &mut fixture.own_servers().postgres;
    postgres.stop(Mode::Fast).await.unwrap();
    relay.logs("waiting: Postgres").await;
    let without_both = growth_kib(&relay).await;
    eprintln!("grown by {without_nats:?} and {without_both:?} KiB");
    assert!(without_nats.unwrap_or(0) <= GROWTH_KIB_MAX);
    assert!(without_both.unwrap_or(0) <= GROWTH_KIB_MAX);
    relay.stop().await;
}

#[tokio::test]
async fn a_signal_ends_the_wait() {
    let mut fixture = Fixture::own().await;
    fixture.own_servers().nats.stop().await.unwrap();
    let mut relay = fixture.run();
    relay.logs("waiting: ").await;
    relay.stop().await;
}

#[tokio::test]
async fn a_rotated_password_does_not_end_a_running_relay() {
    let mut fixture = Fixture::own().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let hba = fixture.servers().postgres.data_dir().join("pg_hba.conf");
    let open = std::fs::read_to_string(&hba).unwrap();
    let closed = open
        .replace("trust", "reject")
        .replace("scram-sha-256", "reject");
    let reload = "SELECT pg_reload_conf()";
    let cut = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active";
    std::fs::write(&hba, closed).unwrap();
    fixture.sql.query_one(reload, &[]).await.unwrap();
    // The postmaster takes the reload before anybody that comes later, but may still be at it: cut until refused.
    eventually("the relay is refused", async || {
        fixture.sql.query(cut, &[]).await.unwrap();
        relay.log().contains("pg_hba.conf").then_some(())
    })
    .await;
    std::fs::write(&hba, open).unwrap();
    fixture.sql.query_one(reload, &[]).await.unwrap();
    fixture.insert(1, 5).await;
    fixture.holds(5).await;
    relay.stop().await;
}
