//! `walrelay erase` against real servers: what goes, that nothing else does, and that the lane goes on.

use std::path::Path;
use std::process::Stdio;

use async_nats::{HeaderMap, jetstream};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::platform::Platform;

/// Stands in every payload of the aggregate that is erased.
const SECRET: &str = "a-name-that-nobody-may-read";

/// Commits so many events of an aggregate, each with the secret.
async fn insert_of(platform: &Platform, aggregate: Uuid, event_type: &str, count: i32) {
    let text = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) \
                SELECT gen_random_uuid(), $1, $2, jsonb_build_object('name', $3::text) FROM generate_series(1, $4::int)";
    let parameters: [&(dyn ToSql + Sync); 4] = [&aggregate, &event_type, &SECRET, &count];
    let inserted = platform.sql.execute(text, &parameters).await;
    inserted.expect("inserted");
}

const TYPE: &str = "lesson.published.v1";

async fn rows(platform: &Platform) -> i64 {
    let query = "SELECT count(*) FROM outbox_events";
    let row = platform.sql.query_one(query, &[]).await;
    row.expect("counted").get(0)
}

/// The receipt of a run that ends with this code.
async fn erase(platform: &Platform, aggregate: Uuid, more: &[&str], code: i32) -> Value {
    let id = aggregate.to_string();
    let arguments = [&["erase", "--json", "--aggregate-id", id.as_str()], more].concat();
    let output = platform.output(&arguments).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    serde_json::from_slice(&output.stdout).expect("a receipt")
}

fn holds(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).expect("a folder").any(|entry| {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => holds(&path, text),
            false => std::fs::read(&path).is_ok_and(|bytes| {
                bytes
                    .windows(text.len())
                    .any(|part| part == text.as_bytes())
            }),
        }
    })
}

#[tokio::test]
async fn a_running_relay_goes_on_behind_its_erased_end() {
    let platform = Platform::start().await;
    let relay = platform.relay();
    let user = Uuid::new_v4();
    platform.insert(2).await;
    insert_of(&platform, user, TYPE, 1).await;
    platform.insert(1).await;
    insert_of(&platform, user, TYPE, 2).await;
    platform.wait_for(6).await;

    let dry = erase(&platform, user, &["--dry-run"], 0).await;
    assert_eq!((&dry["rows"], &dry["done"]), (&json!(3), &json!(false)));
    assert_eq!(dry["streams"][0]["events"], json!([3, 5, 6]));
    assert_eq!(rows(&platform).await, 6);

    let receipt = erase(&platform, user, &["--yes"], 0).await;
    assert_eq!(
        (&receipt["rows"], &receipt["done"]),
        (&json!(3), &json!(true))
    );
    let streams = json!([{"stream": "OUTBOX", "events": [3, 5, 6], "dead_letters": []}]);
    assert_eq!(receipt["streams"], streams);
    assert_eq!(receipt["aggregate_id"], json!(user));
    assert_eq!(rows(&platform).await, 3);
    let again = erase(&platform, user, &["--yes"], 0).await;
    assert_eq!(
        (&again["rows"], &again["streams"][0]["events"]),
        (&json!(0), &json!([]))
    );

    // The same process, and then another one.
    platform.insert(2).await;
    platform.wait_for(8).await;
    relay.stop().await;
    platform.insert(1).await;
    platform.relay_until(9).await;
    platform.verify(0).await;
    assert!(!holds(&platform.nats.store_dir(), SECRET));
}

#[tokio::test]
async fn a_stopped_relay_goes_on_behind_its_erased_end() {
    let platform = Platform::start().await;
    let user = Uuid::new_v4();
    platform.insert(1).await;
    insert_of(&platform, user, TYPE, 2).await;
    platform.relay_until(3).await;
    assert!(holds(&platform.nats.store_dir(), SECRET));
    let receipt = erase(&platform, user, &["--yes"], 0).await;
    assert_eq!(receipt["streams"][0]["events"], json!([2, 3]));
    assert!(!holds(&platform.nats.store_dir(), SECRET));
    platform.insert(1).await;
    platform.relay_until(4).await;
    platform.verify(0).await;
}

#[tokio::test]
async fn a_killed_relay_goes_on_behind_its_erased_end() {
    let platform = Platform::start().await;
    let user = Uuid::new_v4();
    platform.insert(1).await;
    platform.relay_until(1).await;
    let relay = platform.relay();
    insert_of(&platform, user, TYPE, 2).await;
    platform.wait_for(3).await;
    // Before its record, or behind it.
    relay.kill().await;
    let receipt = erase(&platform, user, &["--yes"], 0).await;
    assert_eq!(receipt["streams"][0]["events"], json!([2, 3]));
    let told = platform.last_sequence().await;
    platform.insert(1).await;
    platform.relay_until(told + 1).await;
    platform.verify(0).await;
}

#[tokio::test]
async fn what_is_still_to_be_published_is_not_half_erased() {
    let platform = Platform::start().await;
    let user = Uuid::new_v4();
    insert_of(&platform, user, TYPE, 1).await;
    platform.relay_until(1).await;
    insert_of(&platform, user, TYPE, 2).await;
    let receipt = erase(&platform, user, &["--yes"], 1).await;
    assert_eq!(
        (&receipt["rows"], &receipt["done"]),
        (&json!(0), &json!(false))
    );
    assert_eq!(rows(&platform).await, 3);
    platform.message(1).await;

    platform.relay_until(3).await;
    // Ended in the middle: some messages are gone, and no row.
    platform.delete_message(2).await;
    let receipt = erase(&platform, user, &["--yes"], 0).await;
    assert_eq!(
        (&receipt["rows"], &receipt["done"]),
        (&json!(3), &json!(true))
    );
    assert_eq!(receipt["streams"][0]["events"], json!([1, 3]));
}

/// An id that was another aggregate's before: `TRUNCATE … RESTART IDENTITY` gives each out again.
#[tokio::test]
async fn a_message_of_another_aggregate_stays_whatever_its_id() {
    let platform = Platform::start().await;
    let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
    let relay = platform.relay();
    insert_of(&platform, one, TYPE, 2).await;
    platform.wait_for(2).await;
    let again = "CREATE TEMP TABLE before AS SELECT * FROM outbox_events";
    platform.sql.batch_execute(again).await.expect("kept");
    platform
        .sql
        .batch_execute("TRUNCATE outbox_events")
        .await
        .expect("emptied");
    let again = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) \
                 SELECT id, $1, event_type, payload_json FROM before";
    let inserted = platform.sql.execute(again, &[&other]).await;
    inserted.expect("inserted");
    platform.wait_for(4).await;
    let receipt = erase(&platform, other, &["--yes"], 0).await;
    assert_eq!(receipt["rows"], 2);
    assert_eq!(receipt["streams"][0]["events"], json!([3, 4]));
    platform.message(1).await;
    platform.message(2).await;
    relay.stop().await;
}

/// Publishes all that there is again, from the stream or the table.
async fn replay(platform: &Platform, source: &str, stream: &str) {
    let subject = format!("{stream}.{{event_type}}");
    let arguments = [
        &["replay", "--from", "2020-01-01T00:00:00Z", "--yes"][..],
        &[
            "--source",
            source,
            "--stream",
            stream,
            "--subject",
            &subject,
        ],
    ];
    platform.expect(&arguments.concat(), 0).await;
}

/// Makes a stream like `origin`, with the first message of another lane's replay.
async fn replayed_by_another(platform: &Platform, origin: &str, name: &str) {
    let origin = platform.jetstream.get_stream(origin).await.expect("there");
    let config = jetstream::stream::Config {
        name: name.to_owned(),
        subjects: vec![format!("{name}.>")],
        ..origin.cached_info().config.clone()
    };
    let made = platform.jetstream.create_stream(config).await;
    made.expect("it is made");
    let mut headers = HeaderMap::new();
    headers.insert("Walrelay-Kind", "replay");
    headers.insert("Walrelay-Replay", "0a1b2c3d4e5f OTHER 7");
    let body = br#"{"aggregate_id":"0190b6a0-0000-7000-8000-000000000001"}"#;
    platform
        .publish(&format!("{name}.x"), headers, body.to_vec())
        .await;
}

#[tokio::test]
async fn replays_and_dead_letters_go_too() {
    let platform = Platform::start().await;
    let relay = platform.relay();
    let user = Uuid::new_v4();
    platform.insert(1).await;
    insert_of(&platform, user, TYPE, 1).await;
    platform.wait_for(2).await;
    replay(&platform, "table", "OF_TABLE").await;
    replayed_by_another(&platform, "OF_TABLE", "BEHIND").await;
    replayed_by_another(&platform, "OF_TABLE", "OTHER").await;
    replay(&platform, "stream", "BEHIND").await;
    insert_of(&platform, user, "no subject", 2).await;
    platform.wait_for(4).await;
    platform
        .expect(&["replay", "--from", "2020-01-01T00:00:00Z", "--yes"], 0)
        .await;
    let discard = ["dead-letters", "discard", "--all", "--reason", "a test"];
    platform.expect(&discard, 0).await;
    assert!(holds(&platform.nats.store_dir(), SECRET));

    let receipt = erase(&platform, user, &["--yes"], 0).await;
    assert_eq!(receipt["rows"], 3);
    let own = json!({"stream": "OUTBOX", "events": [2], "dead_letters": [3, 4]});
    assert_eq!(receipt["streams"][0], own);
    let replayed = &receipt["streams"].as_array().expect("a list")[1..];
    let mut replayed: Vec<_> = (replayed.iter())
        .map(|of| (of["stream"].as_str().unwrap(), of["events"].clone()))
        .collect();
    replayed.sort_by_key(|(stream, _)| *stream);
    let all = [("BEHIND", 3), ("OF_TABLE", 2), ("OUTBOX_REPLAY", 2)];
    assert_eq!(
        replayed,
        all.map(|(stream, event)| (stream, json!([event])))
    );
    assert!(!holds(&platform.nats.store_dir(), SECRET));
    let letters = platform.expect(&["dead-letters", "list", "--all"], 0).await;
    assert!(!letters.contains(&user.to_string()), "{letters}");
    relay.stop().await;
    platform.verify(0).await;
}

/// A replay that was stopped in its midst, with the aggregate's last event read or still to be read.
#[tokio::test]
async fn a_replay_that_goes_on_publishes_nothing_that_was_erased() {
    const OTHERS: u32 = 10_000;
    let platform = Platform::start().await;
    let relay = platform.relay();
    let user = Uuid::new_v4();
    // The stream still has its first message afterwards, so that it can give the whole range.
    platform.insert(1).await;
    insert_of(&platform, user, TYPE, 1).await;
    platform.insert(OTHERS).await;
    insert_of(&platform, user, TYPE, 1).await;
    let last = u64::from(OTHERS) + 3;
    platform.wait_for(last).await;
    let replay = ["replay", "--from", "2020-01-01T00:00:00Z", "--yes"];
    let replaying = platform
        .command(&replay)
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let pid = Pid::from_raw(i32::try_from(replaying.id().expect("it runs")).unwrap()).unwrap();
    let replayed = loop {
        let found = platform.jetstream.get_stream("OUTBOX_REPLAY").await;
        match found {
            Ok(stream) if stream.cached_info().state.messages > 0 => break stream,
            _ => tokio::task::yield_now().await,
        }
    };
    kill_process(pid, Signal::STOP).expect("it runs");
    let reached = replayed.get_info().await.expect("there").state.messages;
    assert!(reached < last, "the replay has ended before it was stopped");
    assert_eq!(rows(&platform).await, i64::from(OTHERS) + 3);

    let receipt = erase(&platform, user, &["--yes"], 0).await;
    assert_eq!(receipt["rows"], 2);
    kill_process(pid, Signal::CONT).expect("it is stopped");
    let ended = replaying.wait_with_output().await.expect("it ends");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("walrelay erase"), "{said}");
    platform.expect(&replay, 0).await;
    let dry = erase(&platform, user, &["--dry-run"], 0).await;
    assert_eq!(dry["rows"], 0, "{dry}");
    for stream in dry["streams"].as_array().expect("a list") {
        assert_eq!(stream["events"], json!([]), "{dry}");
    }
    assert!(!holds(&platform.nats.store_dir(), SECRET));
    relay.stop().await;
}

#[tokio::test]
async fn streams_that_the_lane_has_left_and_their_copies_go_too() {
    let mut platform = Platform::start().await;
    let user = Uuid::new_v4();
    insert_of(&platform, user, TYPE, 1).await;
    platform.relay_until(1).await;
    let replay = [
        "replay",
        "--from",
        "0/1",
        "--stream",
        "AGAIN",
        "--subject",
        "again.{event_type}",
        "--yes",
    ];
    platform.expect(&replay, 0).await;
    platform
        .expect(&["move", "--to-stream", "EVENTS", "--yes"], 0)
        .await;
    let id = user.to_string();
    // With the configuration from before, the lane's own stream would be left out.
    for more in ["--dry-run", "--yes"] {
        let erase = ["erase", "--aggregate-id", &id, more];
        let said = platform.expect(&erase, 1).await;
        assert!(
            said.contains("taken it to stream EVENTS; use the configuration of that one"),
            "{said}"
        );
    }
    let said = platform.expect(&["verify"], 3).await;
    assert!(said.contains("taken it to stream EVENTS"), "{said}");
    assert_eq!(rows(&platform).await, 1);
    platform.set("WALRELAY_NATS_STREAM", "EVENTS");
    // What somebody has copied by other means is named, since it may be another lane's of the same slot.
    let copied = jetstream::stream::Config {
        name: "COPY".to_owned(),
        subjects: vec!["copy".to_owned()],
        ..jetstream::stream::Config::default()
    };
    let made = platform.jetstream.create_stream(copied).await;
    made.expect("it is made");
    let (headers, body) = platform.message(1).await;
    platform.publish("copy", headers, body).await;
    let output = platform
        .output(&["erase", "--dry-run", "--aggregate-id", &id])
        .await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("give --also-stream COPY"), "{said}");
    assert_eq!(said.matches("--also-stream").count(), 1, "{said}");
    let receipt = erase(&platform, user, &["--yes", "--also-stream", "COPY"], 0).await;
    let streams = receipt["streams"].as_array().expect("a list");
    let mut found: Vec<_> = streams
        .iter()
        .map(|of| (of["stream"].as_str().unwrap(), of["events"].clone()))
        .collect();
    found[1..].sort_by_key(|(stream, _)| *stream);
    let first = json!([1]);
    let all = ["EVENTS", "AGAIN", "COPY", "OUTBOX"].map(|stream| (stream, first.clone()));
    assert_eq!(found, all);
    assert!(!holds(&platform.nats.store_dir(), SECRET));
    platform.verify(0).await;
}

#[tokio::test]
async fn an_event_outside_of_the_lane_goes_behind_a_message_that_tells_the_lanes_place() {
    let platform = Platform::start().await;
    let user = Uuid::new_v4();
    platform.insert(1).await;
    insert_of(&platform, user, "no subject", 1).await;
    platform.relay_until(2).await;
    let position = "event_type=lesson.published.v1";
    let letters = platform.output(&["dead-letters", "list", "--json"]).await;
    let letter: Value = serde_json::from_slice(&letters.stdout).expect("one letter");
    let at = letter["position"].as_str().expect("a position");
    platform
        .expect(&["dead-letters", "retry", at, "--set", position], 0)
        .await;
    let receipt = erase(&platform, user, &["--yes"], 0).await;
    let own = json!({"stream": "OUTBOX", "events": [3], "dead_letters": [2]});
    assert_eq!(
        (&receipt["streams"][0], &receipt["rows"]),
        (&own, &json!(1))
    );
    let (headers, _) = platform.message(5).await;
    let kind = headers.get("Walrelay-Kind").map(|kind| kind.as_str());
    assert_eq!(kind, Some("erased"));

    platform.insert(1).await;
    platform.relay_until(6).await;
    platform.verify(0).await;
    assert!(!holds(&platform.nats.store_dir(), SECRET));
}

#[tokio::test]
async fn what_is_wrong_is_said_and_nothing_is_erased() {
    let mut platform = Platform::start().await;
    let user = Uuid::new_v4().to_string();
    insert_of(&platform, user.parse().expect("a UUID"), TYPE, 1).await;
    platform.relay_until(1).await;
    let said = platform.expect(&["erase", "--aggregate-id", "7"], 2).await;
    assert!(
        said.contains("is no uuid, which column aggregate_id is, such as"),
        "{said}"
    );
    let said = platform
        .expect(&["erase", "--aggregate-id", &user], 2)
        .await;
    assert!(said.contains("nothing was erased: answer yes"), "{said}");
    let unknown = [
        "erase",
        "--aggregate-id",
        &user,
        "--yes",
        "--also-stream",
        "NONE",
    ];
    let said = platform.expect(&unknown, 1).await;
    assert!(said.contains("there is no stream NONE"), "{said}");
    // A role that may not delete counts, and says what is missing.
    let owners = platform.environment.clone();
    let url = platform.postgres.url("postgres");
    let make =
        "CREATE ROLE counter LOGIN REPLICATION; GRANT SELECT ON public.outbox_events TO counter";
    platform.sql.batch_execute(make).await.expect("made");
    platform.set("DATABASE_URL", &url.replace("postgres@", "counter@"));
    let user_id = user.parse().expect("a UUID");
    let dry = erase(&platform, user_id, &["--dry-run"], 1).await;
    assert_eq!(dry["rows"], json!(1));
    let told = dry["may_not_delete"].as_str().expect("a text");
    let said = ["erase", "--aggregate-id", &user, "--yes"];
    let said = platform.expect(&said, 1).await;
    assert!(said.contains(told), "{said}");
    let grant = told.split("run ").nth(1).expect("a remedy");
    platform.sql.batch_execute(grant).await.expect("it is SQL");
    let dry = erase(&platform, user_id, &["--dry-run"], 0).await;
    assert_eq!(dry.get("may_not_delete"), None);
    platform.environment = owners;
    platform.set("WALRELAY_COLUMNS_AGGREGATE_ID", "");
    let said = platform
        .expect(&["erase", "--aggregate-id", &user, "--yes"], 2)
        .await;
    assert!(
        said.contains("columns.aggregate_id names no column"),
        "{said}"
    );
    assert_eq!(rows(&platform).await, 1);
    platform.message(1).await;
}

#[tokio::test]
async fn a_lane_on_a_shared_stream_goes_on_behind_its_erased_end() {
    let mut platform = Platform::servers().await;
    platform.set("WALRELAY_NATS_SHARED", "true");
    platform.expect(&["setup"], 0).await;
    let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
    let relay = platform.relay();
    platform.insert(2).await;
    insert_of(&platform, first, TYPE, 2).await;
    platform.holds_events(4).await;
    let receipt = erase(&platform, first, &["--yes"], 0).await;
    let events = receipt["streams"][0]["events"].as_array();
    assert_eq!(events.expect("a list").len(), 2);
    platform.insert(1).await;
    platform.holds_events(3).await;
    insert_of(&platform, second, TYPE, 1).await;
    platform.holds_events(4).await;
    relay.stop().await;

    // The same with the relay stopped.
    let receipt = erase(&platform, second, &["--yes"], 0).await;
    assert_eq!(
        (&receipt["rows"], &receipt["done"]),
        (&json!(1), &json!(true))
    );
    platform.insert(1).await;
    platform.relay_until_events(4).await;
    assert_eq!(rows(&platform).await, 4);
    platform.verify(0).await;
}
