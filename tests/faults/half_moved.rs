//! Commands beside a lane that is on its way to another stream, and behind one that is there.

use async_nats::jetstream;
use walrelay::local::{LocalNats, NatsOptions};

use crate::lane::{event_count, holds_events, stream_of};
use crate::support::{Fixture, Relay, binaries, eventually, uuid};

const AGGREGATE: &str = "00000000-0000-0000-0000-0000000000a7";
/// Of the aggregate, in front of many others: those are copied when the move is killed, and not all of these.
const OF_AGGREGATE: u64 = 3;
const EVENTS: u64 = 10_000;

/// A lane whose relay has published all of that.
async fn lane(fixture: &mut Fixture) -> Relay {
    let insert = format!(
        "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
         SELECT lpad(to_hex(n), 32, '0')::uuid, '{AGGREGATE}', 'lesson.published.v1', '{{}}' FROM generate_series(1, {OF_AGGREGATE}) AS n"
    );
    fixture.sql.batch_execute(&insert).await.unwrap();
    fixture.insert(OF_AGGREGATE + 1, EVENTS).await;
    let relay = fixture.run();
    holds_events(fixture, EVENTS).await;
    relay
}

/// Kills a move once the target at `nats` has the aggregate's messages.
async fn killed_move(fixture: &Fixture, nats: &async_nats::Client, arguments: &[&str], to: &str) {
    let mut moving = fixture.start(arguments);
    let context = jetstream::new(nats.clone());
    eventually("messages are copied", async || {
        let stream = context.get_stream(to).await.ok()?;
        (stream.cached_info().state.messages > OF_AGGREGATE).then_some(())
    })
    .await;
    moving.kill();
    assert!(!moving.log().contains("has left"), "{}", moving.log());
}

fn erase() -> [&'static str; 4] {
    ["erase", "--yes", "--aggregate-id", AGGREGATE]
}

async fn is_refused(fixture: &Fixture, arguments: &[&str], code: i32, why: &str) {
    let refused = fixture.walrelay(arguments).await;
    assert_eq!(
        refused.code,
        Some(code),
        "{arguments:?}: {} {}",
        refused.stdout,
        refused.stderr
    );
    assert!(
        refused.stderr.contains(why),
        "{arguments:?}: {}",
        refused.stderr
    );
}

async fn rows(fixture: &Fixture) -> i64 {
    let counted = fixture
        .sql
        .query_one("SELECT count(*) FROM outbox_events", &[]);
    counted.await.unwrap().get(0)
}

/// The lane is there, and its stream has nothing of the aggregate.
async fn is_without_the_aggregate(fixture: &mut Fixture, relay: &mut Relay) {
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    let relay = fixture.run();
    fixture.insert(EVENTS + 1, EVENTS + 1).await;
    holds_events(fixture, EVENTS + 1 - OF_AGGREGATE).await;
    let stream = stream_of(fixture).await;
    for sequence in 1..=OF_AGGREGATE + 1 {
        let Ok(message) = stream.get_raw_message(sequence).await else {
            continue;
        };
        let body = String::from_utf8_lossy(&message.payload).into_owned();
        assert!(!body.contains(AGGREGATE), "{sequence}: {body}");
    }
    fixture.walrelay(&["verify"]).await.success();
    relay.stop().await;
}

/// Commands that would look at a stream in which the lane does not live.
async fn all_are_refused(fixture: &Fixture, why: &str) {
    for (command, code) in [
        (&erase()[..], 1),
        (&["verify"][..], 3),
        (&["backfill"][..], 1),
        (&["prune", "--older-than", "1d"][..], 1),
        (&["dead-letters", "retry", "--all"][..], 1),
    ] {
        is_refused(fixture, command, code, why).await;
    }
}

#[tokio::test]
async fn an_aggregate_is_not_erased_while_its_lane_is_on_its_way() {
    let mut fixture = Fixture::new().await;
    let mut relay = lane(&mut fixture).await;
    let old = fixture.stream_name().to_owned();
    let new = format!("{old}_NEW");
    let moving = ["move", "--yes", "--to-stream", &new];
    killed_move(&fixture, &fixture.nats.clone(), &moving, &new).await;
    let ends_it = format!("walrelay move --to-stream {new}");
    is_refused(&fixture, &erase(), 1, &ends_it).await;
    assert_eq!(rows(&fixture).await, EVENTS as i64);
    assert_eq!(event_count(&fixture).await, EVENTS);

    // Nor at the stream that it has not reached; nothing there can be judged.
    fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    let on_its_way = format!("the lane is still on its way from stream {old}");
    all_are_refused(&fixture, &on_its_way).await;

    // What was printed, and then all of it goes.
    fixture.set("WALRELAY_NATS_STREAM", old.as_str());
    fixture.walrelay(&moving).await.success();
    let left = format!("the lane has left stream {old}");
    all_are_refused(&fixture, &left).await;
    assert_eq!(rows(&fixture).await, EVENTS as i64);
    fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    let erased = fixture.walrelay(&erase()).await.success();
    assert!(erased.stdout.contains(&old), "{}", erased.stdout);
    is_without_the_aggregate(&mut fixture, &mut relay).await;
}

#[tokio::test]
async fn a_move_that_was_given_up_is_not_in_the_way_of_an_erasure() {
    let mut fixture = Fixture::new().await;
    let mut relay = lane(&mut fixture).await;
    let new = format!("{}_NEW", fixture.stream_name());
    let moving = ["move", "--yes", "--to-stream", &new];
    killed_move(&fixture, &fixture.nats.clone(), &moving, &new).await;
    is_refused(&fixture, &erase(), 1, &format!("delete stream {new}")).await;
    let context = jetstream::new(fixture.nats.clone());
    context.delete_stream(&new).await.unwrap();
    fixture.walrelay(&erase()).await.success();
    // Taken up again after all.
    fixture.walrelay(&moving).await.success();
    fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    is_without_the_aggregate(&mut fixture, &mut relay).await;
}

#[tokio::test]
async fn what_is_erased_between_two_runs_of_a_move_to_another_nats_does_not_arrive_there() {
    let mut fixture = Fixture::own().await;
    let other = LocalNats::start(&binaries(), NatsOptions::default())
        .await
        .expect("it starts");
    let mut relay = lane(&mut fixture).await;
    let client = async_nats::connect(other.url()).await.unwrap();
    let url = other.url();
    let moving = ["move", "--yes", "--to-nats", &url];
    let stream = fixture.stream_name().to_owned();
    killed_move(&fixture, &client, &moving, &stream).await;
    let erased = fixture.walrelay(&erase()).await.success();
    let killed = [
        &*format!("--to-nats {url}"),
        "was killed, and may have copied",
    ];
    let is_told = killed.iter().all(|words| erased.stderr.contains(words));
    assert!(is_told, "{}", erased.stderr);
    fixture.walrelay(&moving).await.success();
    fixture.set("WALRELAY_NATS_URL", url.as_str());
    fixture.nats = client;
    is_without_the_aggregate(&mut fixture, &mut relay).await;
}

/// The lane goes to another stream, where a relay goes on.
async fn moved(fixture: &mut Fixture, mut relay: Relay) -> Relay {
    let new = format!("{}_NEW", fixture.stream_name());
    let moving = ["move", "--yes", "--to-stream", &new];
    fixture.walrelay(&moving).await.success();
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    fixture.set("WALRELAY_NATS_STREAM", new);
    fixture.run()
}

/// Makes every row ten days old.
async fn age(fixture: &Fixture) {
    let text = "UPDATE outbox_events SET occurred_at = now() - interval '10 days'";
    fixture.sql.batch_execute(text).await.unwrap();
}

const PRUNE: [&str; 2] = ["--older-than", "7d"];

#[tokio::test]
async fn a_dead_letter_that_was_closed_behind_a_move_keeps_no_row() {
    let mut fixture = Fixture::new().await;
    let relay = fixture.run();
    fixture.insert(1, 2).await;
    let bad = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
               VALUES ('00000000-0000-0000-0000-0000000000ff', gen_random_uuid(), 'a b', '{}')";
    fixture.sql.batch_execute(bad).await.unwrap();
    fixture.holds(3).await;
    let relay = moved(&mut fixture, relay).await;
    age(&fixture).await;
    // It is open, in the new stream as in the old one.
    let kept = fixture.prune(&PRUNE).await.success();
    assert!(kept.stdout.contains("1 row stays"), "{}", kept.stdout);
    assert_eq!(rows(&fixture).await, 1);
    let mend = "UPDATE outbox_events SET event_type = 'ab' WHERE event_type = 'a b'";
    fixture.sql.batch_execute(mend).await.unwrap();
    fixture
        .walrelay(&["dead-letters", "retry", "--all"])
        .await
        .success();
    fixture.walrelay(&["verify"]).await.success();
    fixture.prune(&PRUNE).await.success();
    assert_eq!(rows(&fixture).await, 0);
    relay.stop().await;
}

#[tokio::test]
async fn a_dead_letter_without_an_id_is_closed_behind_a_move_as_printed() {
    let mut fixture = Fixture::bare().await;
    let table = "CREATE TABLE outbox_events (id uuid, aggregate_id uuid NOT NULL, event_type text NOT NULL,
                 event_version smallint NOT NULL DEFAULT 1, occurred_at timestamptz NOT NULL DEFAULT now(), payload_json jsonb NOT NULL)";
    fixture.sql.batch_execute(table).await.unwrap();
    fixture.setup().await;
    let relay = fixture.run();
    fixture.insert(1, 2).await;
    let bad = "INSERT INTO outbox_events (aggregate_id, event_type, payload_json) VALUES (gen_random_uuid(), 'ab', '{}')";
    fixture.sql.batch_execute(bad).await.unwrap();
    fixture.holds(3).await;
    age(&fixture).await;
    let relay = moved(&mut fixture, relay).await;
    let refused = fixture.prune(&PRUNE).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let (_, remedy) = refused
        .stderr
        .split_once("walrelay dead-letters retry ")
        .expect("a remedy");
    let position = remedy.split([' ', ',', '\n']).next().unwrap();
    let discard = ["dead-letters", "discard", position, "--reason", "a test"];
    fixture.walrelay(&discard).await.success();
    fixture.prune(&PRUNE).await.success();
    let left = fixture.sql.query_one(
        "SELECT count(*) FROM outbox_events WHERE id IS NOT NULL",
        &[],
    );
    assert_eq!(left.await.unwrap().get::<_, i64>(0), 0, "{}", uuid(1));
    relay.stop().await;
}
