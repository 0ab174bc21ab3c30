//! The server ends a replication connection on which nobody reads: it does not wait for its last words to be read, and nobody
//! else waits for it.

use rustix::process::Signal;

use crate::lane::{holds_events, judge_events, logs_from};
use crate::postgres_says_no::{SMALL_WAL, lose_slot};
use crate::proxy::{Mode, Proxy};
use crate::support::wait::SOON;
use crate::support::{Fixture, eventually, uuid};

/// More than a socket takes.
const MANY: u64 = 5_000;

/// Commits the events `first..=last` in one transaction, each of 8 KB, and little WAL.
async fn insert_large(fixture: &Fixture, first: u64, last: u64) {
    let insert = format!(
        "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
         SELECT lpad(to_hex(n), 32, '0')::uuid, gen_random_uuid(), 'lesson.published.v1',
                jsonb_build_object('n', n, 'notes', repeat('x', 8000))
         FROM generate_series({first}, {last}) AS n"
    );
    fixture.sql.batch_execute(&insert).await.unwrap();
}

/// What the slot's walsender waits for; none where nobody reads from the slot.
async fn walsender(fixture: &Fixture) -> Option<(i32, String)> {
    let query = "SELECT pid, coalesce(wait_event, '') FROM pg_stat_activity JOIN pg_replication_slots ON active_pid = pid
                 WHERE slot_name = $1";
    let row = fixture.sql.query_opt(query, &[&fixture.name]).await;
    row.unwrap().map(|row| (row.get(0), row.get(1)))
}

/// In so many looks, one after the other, a walsender that somebody still makes room for would have gone on.
const LOOKS: u32 = 30;

/// Waits until it cannot send anything, since nobody reads, and its socket is full: until then it has room for its last words. Its
/// process.
async fn is_stuck(fixture: &Fixture) -> i32 {
    let mut seen = (0, 0);
    eventually("the walsender cannot send anything", async || {
        let (pid, waits_for) = walsender(fixture).await?;
        seen = match (waits_for.as_str(), seen) {
            ("WalSenderWriteData", (looks, of)) if of == pid => (looks + 1, pid),
            _ => (0, pid),
        };
        (seen.0 == LOOKS).then_some(pid)
    })
    .await
}

/// Waits until it waits for this; its process.
async fn waits_for(fixture: &Fixture, event: &str) -> i32 {
    eventually(format!("the walsender waits for {event}"), async || {
        let (pid, waits_for) = walsender(fixture).await?;
        (waits_for == event).then_some(pid)
    })
    .await
}

/// A checkpoint ends the walsender to give its slot up, and waits for that.
#[tokio::test]
async fn a_slot_is_given_up_while_the_broker_is_away() {
    let mut fixture = Fixture::with_settings(&SMALL_WAL[1..]).await;
    let port = fixture.nats.server_info().port;
    let nats = Proxy::start(port).await.expect("a free port");
    fixture.set(
        "WALRELAY_NATS_URL",
        format!("nats://127.0.0.1:{}", nats.port()),
    );
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 5).await;
    holds_events(&fixture, 5).await;
    nats.set(Mode::Refuse);
    nats.cut();
    relay.logs("waiting: ").await;
    insert_large(&fixture, 6, MANY).await;
    let pid = is_stuck(&fixture).await;
    let (name, value) = SMALL_WAL[0];
    for statement in [
        format!("ALTER SYSTEM SET {name} = '{value}'"),
        "SELECT pg_reload_conf()".to_owned(),
    ] {
        fixture.sql.batch_execute(&statement).await.unwrap();
    }
    let lost = tokio::time::timeout(SOON, lose_slot(&fixture)).await;
    lost.expect("the checkpoint comes to its end");
    relay.logs(&format!("process {pid} waits until")).await;
    // It has no broker that it could leave the reason with, and says so behind it.
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    assert!(
        relay.log().contains("is lost (wal_removed)"),
        "{}",
        relay.log()
    );
}

/// The relay does not run, and closes nothing. Its session has a shorter time than a relay asks for where there is none.
#[cfg_attr(
    not(target_os = "linux"),
    ignore = "the server has no tcp_user_timeout"
)]
#[tokio::test]
async fn a_frozen_relay_keeps_its_walsender_for_a_while() {
    let mut fixture = Fixture::new().await;
    let patient = format!(
        "ALTER DATABASE {} SET tcp_user_timeout = '10s'",
        fixture.name
    );
    fixture.sql.batch_execute(&patient).await.unwrap();
    // The walsender is ended before it gives the relay up by itself.
    fixture.set("WALRELAY_RELAY_STATUS_INTERVAL", "20s");
    let mut relay = fixture.run();
    fixture.insert(1, 5).await;
    holds_events(&fixture, 5).await;
    relay.signal(Signal::STOP);
    insert_large(&fixture, 6, MANY).await;
    let pid = is_stuck(&fixture).await;
    let end = "SELECT pg_terminate_backend($1)";
    fixture.sql.query(end, &[&pid]).await.unwrap();
    assert_eq!(waits_for(&fixture, "ClientWrite").await, pid);
    eventually("nobody reads from the slot", async || {
        walsender(&fixture).await.is_none().then_some(())
    })
    .await;
    let logged = relay.log().len();
    relay.signal(Signal::CONT);
    logs_from(&mut relay, logged, "streaming").await;
    judge_events(&fixture, &(1..=MANY).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}
