//! What `walrelay status` and `walrelay doctor` tell of commands beside the relay: while they are at work, and once they were
//! killed, until what is printed was typed.

use serde_json::Value;

use crate::slow;
use crate::support::{Fixture, eventually};

const ROWS: u64 = 10_000;
/// What the fixture adds to each command.
const CONFIG: &str = " --config /dev/null";

/// The commands that `status` tells of.
async fn told(fixture: &Fixture) -> Vec<Value> {
    let status = fixture.walrelay(&["status", "--json"]).await;
    let status: Value = serde_json::from_str(&status.stdout).expect("one object");
    let works = status.get("bulk_work").map(|works| works.as_array());
    works.flatten().cloned().unwrap_or_default()
}

/// The one command that has ended without finishing, with what is told of it; `status`, `doctor` and the object agree.
async fn unfinished(fixture: &Fixture) -> Value {
    let works = told(fixture).await;
    assert_eq!(works.len(), 1, "{works:?}");
    assert_eq!(works[0]["ended"], true, "{works:?}");
    let again = format!("run it again: {}", works[0]["command"].as_str().unwrap());
    for command in ["status", "doctor"] {
        let text = fixture.walrelay(&[command]).await.stdout;
        assert!(text.contains("has ended without finishing"), "{text}");
        assert!(text.contains(&again), "{text}");
    }
    works[0].clone()
}

/// Types what is printed.
async fn typed(fixture: &Fixture, work: &Value) {
    let line = work["command"].as_str().unwrap();
    let mut words = line.strip_suffix(CONFIG).unwrap().split(' ');
    assert_eq!(words.next(), Some("walrelay"));
    let words: Vec<&str> = words.collect();
    fixture.walrelay(&words).await.success();
    assert_eq!(told(fixture).await, Vec::<Value>::new());
    let doctor = fixture.walrelay(&["doctor"]).await.stdout;
    assert!(!doctor.contains("without finishing"), "{doctor}");
}

/// Starts the command on a slow network, waits until it is told how far it is, and kills it there.
async fn killed_in_the_middle(fixture: &Fixture, arguments: &[&str]) {
    let (mut command, _network) = slow::start(fixture, arguments).await;
    let work = eventually("it is told how far the command is", async || {
        assert!(command.runs(), "{}", command.log());
        let mut works = told(fixture).await;
        let is_in_it = |work: &Value| work["ended"] == false && work["done"].as_u64() > Some(0);
        works.pop().filter(is_in_it)
    })
    .await;
    assert_eq!(work["process"], command.pid(), "{work}");
    let line = format!("walrelay {}{CONFIG}", arguments.join(" "));
    assert_eq!(work["command"], line, "{work}");
    assert!(work["done"].as_u64() < work["total"].as_u64(), "{work}");
    command.kill();
}

#[tokio::test]
async fn a_backfill_that_is_killed_is_told_until_it_was_run_again() {
    let mut fixture = Fixture::with_table().await;
    fixture.insert(1, ROWS).await;
    fixture.setup().await;
    killed_in_the_middle(&fixture, &["backfill", "--since", "2026-01-01T00:00:00Z"]).await;
    let work = unfinished(&fixture).await;
    assert_eq!(work["stage"], "publishing rows", "{work}");

    // Another command takes over the lease, and does not do its work.
    fixture
        .walrelay(&["dead-letters", "retry", "--all"])
        .await
        .success();
    assert_eq!(unfinished(&fixture).await["command"], work["command"]);

    // The relay has nothing to do with it, and tells of it.
    let address = "127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap();
    let free = std::net::TcpListener::bind(address)
        .unwrap()
        .local_addr()
        .unwrap();
    fixture.set("WALRELAY_HTTP_LISTEN", free.to_string());
    let mut relay = fixture.run();
    relay.streams().await;
    eventually("the relay tells of it", async || {
        let works = told(&fixture).await;
        (works.len() == 1 && works[0]["ended"] == true).then_some(())
    })
    .await;
    let status = fixture.walrelay(&["status"]).await;
    assert_eq!(status.code, Some(0), "{status:?}");
    assert!(status.stdout.contains("streaming"), "{status:?}");
    assert!(
        status.stdout.contains("run it again: walrelay backfill"),
        "{status:?}"
    );
    relay.stop().await;
    typed(&fixture, &work).await;
    assert_eq!(fixture.message_count().await, ROWS);
}

#[tokio::test]
async fn a_repair_that_was_killed_is_closed_by_one_with_nothing_left_to_do() {
    let fixture = Fixture::with_table().await;
    fixture.insert(1, ROWS).await;
    fixture.setup().await;
    killed_in_the_middle(&fixture, &["verify", "--repair"]).await;
    let work = unfinished(&fixture).await;
    // The rest has gone, so that nothing is missing any more.
    let there = fixture.stored_ids().await;
    let delete = "DELETE FROM outbox_events WHERE id <> ALL ($1)";
    fixture.sql.execute(delete, &[&there]).await.unwrap();
    assert!((there.len() as u64) < ROWS);
    typed(&fixture, &work).await;
}

#[tokio::test]
async fn a_move_and_a_replay_that_are_killed_are_told_until_they_were_run_again() {
    let mut fixture = Fixture::new().await;
    let relay = fixture.run();
    fixture.insert(1, ROWS).await;
    fixture.holds(ROWS).await;
    let target = format!("{}_REPLAYED", fixture.stream_name());
    let replay = ["replay", "--yes", "--from", "0/1", "--stream", &target];
    killed_in_the_middle(&fixture, &replay).await;
    let work = unfinished(&fixture).await;
    assert_eq!(work["stream"], target, "{work}");
    typed(&fixture, &work).await;

    let new = format!("{}_NEW", fixture.stream_name());
    let arguments = ["move", "--yes", "--to-stream", &new];
    killed_in_the_middle(&fixture, &arguments).await;
    let work = unfinished(&fixture).await;
    assert_eq!(work["stage"], format!("copying to stream {new}"), "{work}");
    // What is copied already would stay behind.
    let aggregate = "0190b6a0-0000-7000-8000-000000000001";
    let erase = ["erase", "--yes", "--aggregate-id", aggregate];
    let refused = fixture.walrelay(&erase).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let ends = format!("walrelay move --to-stream {new} ends that");
    assert!(refused.stderr.contains(&ends), "{refused:?}");
    let mut moving = fixture.start(&arguments);
    moving.logs("has left").await;
    moving.kill();
    let work = unfinished(&fixture).await;
    let stage = work["stage"].as_str().unwrap();
    assert!(stage.contains("leaves the old stream"), "{work}");
    drop(relay);
    typed(&fixture, &work).await;
}
