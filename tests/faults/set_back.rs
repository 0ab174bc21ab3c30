//! A broker that has lost what it had acknowledged, and commands that judge before the relay has published it again.

use std::path::Path;

use serde_json::json;
use tempfile::TempDir;
use uuid::Uuid;

use crate::broker_loses::{copy, fixture, is_recorded, stream_dir};
use crate::lane::{event_count, events, holds_events, jetstream, judge_events, stream_of};
use crate::proxy::{Mode, Proxy};
use crate::support::{Fixture, Relay, Stored, uuid};

/// Events that the broker keeps, and those that it loses.
const KEPT: u64 = 50;
const LOST: u64 = 9;
const AGGREGATE: &str = "00000000-0000-0000-0000-0000000000a9";

fn uuids() -> Vec<Uuid> {
    (1..=KEPT + LOST).map(uuid).collect()
}

/// Commits the events that will be lost, of one aggregate.
async fn insert_lost(fixture: &Fixture) {
    let insert = format!(
        "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
         SELECT lpad(to_hex(n), 32, '0')::uuid, '{AGGREGATE}', 'lesson.published.v1', jsonb_build_object('n', n)
         FROM generate_series({}, {}) AS n",
        KEPT + 1,
        KEPT + LOST
    );
    fixture.sql.batch_execute(&insert).await.unwrap();
}

/// A lane with a relay, which reaches NATS through the proxy, and with a copy of the store from before the last events.
async fn with_a_copy(shared: bool, whole: bool, backup: &Path) -> (Fixture, Relay, Proxy) {
    let mut fixture = fixture(shared, "1h").await;
    let server = fixture.servers().nats.url();
    let (_, port) = server.rsplit_once(':').unwrap();
    let proxy = Proxy::start(port.parse().unwrap()).await.unwrap();
    let through = format!("nats://127.0.0.1:{}", proxy.port());
    fixture.set("WALRELAY_NATS_URL", through);
    let relay = fixture.run();
    fixture.set("WALRELAY_NATS_URL", server);
    fixture.insert(1, KEPT).await;
    holds_events(&fixture, KEPT).await;
    fixture.own_servers().nats.stop().await.unwrap();
    copy(&folder(&fixture, whole), backup);
    fixture.own_servers().nats.start_again().await.unwrap();
    insert_lost(&fixture).await;
    holds_events(&fixture, KEPT + LOST).await;
    let last = stream_of(&fixture).await.cached_info().state.last_sequence;
    is_recorded(&fixture, last).await;
    (fixture, relay, proxy)
}

fn folder(fixture: &Fixture, whole: bool) -> std::path::PathBuf {
    match whole {
        true => fixture.servers().nats.store_dir(),
        false => stream_dir(fixture),
    }
}

/// Puts the copy in its place, and lets others publish where they do.
async fn set_back(fixture: &mut Fixture, shared: bool, whole: bool, backup: &Path) {
    fixture.own_servers().nats.stop().await.unwrap();
    copy(backup, &folder(fixture, whole));
    fixture.own_servers().nats.start_again().await.unwrap();
    assert_eq!(event_count(fixture).await, KEPT);
    if shared {
        let subject = format!("foreign.{}.x", fixture.stream_name());
        for _ in 0..60 {
            let sent = jetstream(fixture).publish(subject.clone(), "".into()).await;
            sent.unwrap().await.unwrap();
        }
    }
}

async fn rows(fixture: &Fixture) -> i64 {
    let counted = fixture
        .sql
        .query_one("SELECT count(*) FROM outbox_events", &[]);
    counted.await.unwrap().get(0)
}

/// Verify's report, which ends with that code.
async fn verified(fixture: &Fixture, code: i32) -> serde_json::Value {
    let verified = fixture
        .walrelay(&["verify", "--json", "--wait", "10s"])
        .await;
    assert_eq!(
        verified.code,
        Some(code),
        "{} {}",
        verified.stdout,
        verified.stderr
    );
    serde_json::from_str(&verified.stdout).unwrap()
}

/// Ends with 1, and says one of these.
async fn is_refused(fixture: &Fixture, arguments: &[&str], why: &[&str]) {
    let refused = fixture.walrelay(arguments).await;
    assert_eq!(refused.code, Some(1), "{arguments:?}: {}", refused.stdout);
    assert!(
        why.iter().any(|why| refused.stderr.contains(why)),
        "{arguments:?}: {}",
        refused.stderr
    );
}

const ERASE: [&str; 6] = [
    "erase",
    "--yes",
    "--aggregate-id",
    AGGREGATE,
    "--wait",
    "10s",
];

/// Once everything is there again: all of it once, and it can be erased.
async fn is_whole_again(fixture: &Fixture) {
    judge_events(fixture, &uuids()).await;
    fixture.walrelay(&["verify"]).await.success();
    fixture.walrelay(&["backfill"]).await.success();
    judge_events(fixture, &uuids()).await;
    fixture.walrelay(&ERASE[..4]).await.success();
    assert_eq!(rows(fixture).await, KEPT as i64);
    let left: Vec<Uuid> = events(fixture).await.iter().map(Stored::id).collect();
    assert_eq!(left, uuids()[..KEPT as usize]);
}

/// The relay says that it has passed the rows, and does not reach the broker that has lost them.
async fn is_set_back_behind_the_relays_back(shared: bool, whole: bool) {
    let folder = TempDir::new().unwrap();
    let backup = folder.path().join("copy");
    let (mut fixture, relay, proxy) = with_a_copy(shared, whole, &backup).await;
    proxy.set(Mode::Refuse);
    proxy.cut();
    set_back(&mut fixture, shared, whole, &backup).await;

    let report = verified(&fixture, 3).await;
    assert_eq!(report["missing"]["count"], 0, "{report}");
    assert_eq!(
        (&report["is_set_back"], &report["pending"]),
        (&json!(true), &json!(LOST)),
        "{report}"
    );
    // The server's own WAL goes on meanwhile, of which a relay without its broker says nothing.
    let why = [
        "the broker has lost messages",
        "too far behind",
        "has not published everything",
    ];
    is_refused(&fixture, &["backfill"], &why).await;
    is_refused(&fixture, &["verify", "--repair", "--wait", "10s"], &why).await;
    is_refused(&fixture, &ERASE, &why).await;
    assert_eq!(event_count(&fixture).await, KEPT);
    assert_eq!(rows(&fixture).await, (KEPT + LOST) as i64);

    proxy.set(Mode::Pass);
    is_whole_again(&fixture).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_store_that_is_set_back_while_the_relay_is_cut_off() {
    is_set_back_behind_the_relays_back(false, true).await;
}

#[tokio::test]
async fn a_stream_that_is_set_back_while_the_relay_is_cut_off() {
    is_set_back_behind_the_relays_back(false, false).await;
}

#[tokio::test]
async fn a_shared_stream_that_is_set_back_while_the_relay_is_cut_off() {
    is_set_back_behind_the_relays_back(true, true).await;
    is_set_back_behind_the_relays_back(true, false).await;
}

/// Nobody says that the rows are passed, and the record knows more than the stream has; in a shared one others have moved its
/// sequences on.
async fn is_set_back_behind_a_dead_relay(shared: bool) {
    let folder = TempDir::new().unwrap();
    let backup = folder.path().join("copy");
    let (mut fixture, mut relay, _proxy) = with_a_copy(shared, false, &backup).await;
    relay.kill();
    set_back(&mut fixture, shared, false, &backup).await;

    fixture.walrelay(&["backfill"]).await.success();
    assert_eq!(event_count(&fixture).await, KEPT);
    if shared {
        let found = fixture.walrelay(&["verify", "--json"]).await;
        let report: serde_json::Value = serde_json::from_str(&found.stdout).unwrap();
        assert_eq!(
            (&report["missing"]["count"], &report["pending"]),
            (&json!(0), &json!(LOST)),
            "{report}"
        );
    }
    let why = ["9 rows of the aggregate are still to be published"];
    is_refused(&fixture, &ERASE, &why).await;
    assert_eq!(rows(&fixture).await, (KEPT + LOST) as i64);

    let relay = fixture.run();
    is_whole_again(&fixture).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_shared_stream_that_is_set_back_while_the_relay_is_dead() {
    is_set_back_behind_a_dead_relay(true).await;
}

#[tokio::test]
async fn a_stream_that_is_set_back_while_the_relay_is_dead() {
    is_set_back_behind_a_dead_relay(false).await;
}

/// Nothing was lost but a message that somebody deleted; without a look into the slot, nobody can tell.
#[tokio::test]
async fn without_room_for_a_copy_of_the_slot_nothing_is_believed() {
    let mut fixture = Fixture::with_settings(&[("max_replication_slots", "1")]).await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let relay = fixture.run();
    fixture.insert(1, 3).await;
    holds_events(&fixture, 3).await;
    let deleted = stream_of(&fixture).await.delete_message(2).await;
    assert!(deleted.unwrap());
    for (command, code) in [(&["verify"][..], 3), (&["backfill"][..], 1)] {
        let refused = fixture.walrelay(command).await;
        assert_eq!(refused.code, Some(code), "{}", refused.stderr);
        let why = "raise max_replication_slots, or stop the relay meanwhile";
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    }
    assert_eq!(event_count(&fixture).await, 2);
    relay.stop().await;
    fixture.walrelay(&["backfill"]).await.success();
    assert_eq!(event_count(&fixture).await, 3);
    fixture.walrelay(&["verify"]).await.success();
}
