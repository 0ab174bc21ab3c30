//! `walrelay erase` against real servers, in all streams that have copies of the lane's events: replays, streams that the lane has left,
//! those that others write to as well, and copies of copies.

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{Config, Source};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::aggregate::{SECRET, TYPE, erase, insert_of, is_stored};
use crate::platform::Platform;

pub async fn make(platform: &Platform, name: &str, subjects: &[&str]) {
    let config = Config {
        name: name.to_owned(),
        subjects: subjects
            .iter()
            .map(|subject| (*subject).to_owned())
            .collect(),
        ..Config::default()
    };
    let made = platform.jetstream.create_stream(config).await;
    made.expect("it is made");
}

/// What is erased in each stream: the lane's own one, and the others in the order of their names.
fn erased(receipt: &Value) -> Vec<(&str, &Value)> {
    let streams = receipt["streams"].as_array().expect("a list");
    let mut erased: Vec<_> = (streams.iter())
        .map(|of| (of["stream"].as_str().expect("a name"), &of["events"]))
        .collect();
    erased[1..].sort_by_key(|(stream, _)| *stream);
    erased
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
    let config = Config {
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
    assert!(is_stored(&platform, SECRET));

    let receipt = erase(&platform, user, &["--yes"], 0).await;
    assert_eq!(receipt["rows"], 3);
    let own = json!({"stream": "OUTBOX", "events": [2], "dead_letters": [3, 4]});
    assert_eq!(receipt["streams"][0], own);
    let all = [("BEHIND", 3), ("OF_TABLE", 2), ("OUTBOX_REPLAY", 2)];
    let all = all.map(|(stream, event)| (stream, json!([event])));
    assert_eq!(
        erased(&receipt)[1..],
        all.each_ref().map(|(stream, events)| (*stream, events))
    );
    assert!(!is_stored(&platform, SECRET));
    let letters = platform.expect(&["dead-letters", "list", "--all"], 0).await;
    assert!(!letters.contains(&user.to_string()), "{letters}");
    relay.stop().await;
    platform.verify(0).await;
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
    assert_eq!(platform.rows().await, 1);
    platform.set("WALRELAY_NATS_STREAM", "EVENTS");
    // What somebody has copied by other means is named, since it may be another lane's of the same slot.
    make(&platform, "COPY", &["copy"]).await;
    let (headers, body) = platform.message(1).await;
    platform.publish("copy", headers, body).await;
    let output = platform
        .output(&["erase", "--dry-run", "--aggregate-id", &id])
        .await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("give --also-stream COPY"), "{said}");
    assert_eq!(said.matches("--also-stream").count(), 1, "{said}");
    let receipt = erase(&platform, user, &["--yes", "--also-stream", "COPY"], 0).await;
    let first = json!([1]);
    let all = ["EVENTS", "AGAIN", "COPY", "OUTBOX"];
    assert_eq!(erased(&receipt), all.map(|stream| (stream, &first)));
    assert!(!is_stored(&platform, SECRET));
    platform.verify(0).await;
}

/// A stream with these sources, each of which has become one after those before.
async fn gathered(platform: &Platform, name: &str, sources: [&str; 2]) {
    let config = |count: usize| Config {
        name: name.to_owned(),
        sources: Some(sources[..count].iter().map(|of| source(of)).collect()),
        ..Config::default()
    };
    let made = platform.jetstream.create_stream(config(1)).await;
    made.expect("it is made");
    let edited = platform.jetstream.update_stream(config(2)).await;
    edited.expect("it is edited");
}

fn source(name: &str) -> Source {
    Source {
        name: name.to_owned(),
        ..Source::default()
    }
}

#[tokio::test]
async fn copies_of_copies_and_replays_among_other_messages_go_and_these_stay() {
    let platform = Platform::start().await;
    let user = Uuid::new_v4();
    let insert = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) VALUES (gen_random_uuid(), $1, 'a.b', '{}')";
    let inserted = platform.sql.execute(insert, &[&user]).await;
    inserted.expect("inserted");
    platform.relay_until(1).await;
    make(&platform, "ELSEWHERE", &["elsewhere.>"]).await;
    make(&platform, "MIXED", &["mixed.>"]).await;
    let body = json!({"id": "x", "aggregate_id": user}).to_string();
    for subject in ["elsewhere.x", "mixed.x"] {
        platform
            .publish(subject, HeaderMap::new(), body.clone().into_bytes())
            .await;
    }
    let replay = ["replay", "--from", "0/1", "--yes"];
    let among = ["--stream", "MIXED", "--subject", "mixed.{event_type}"];
    platform.expect(&[&replay[..], &among].concat(), 0).await;
    platform.expect(&replay, 0).await;
    let mirror = Config {
        name: "MIRROR".to_owned(),
        mirror: Some(source("OUTBOX")),
        ..Config::default()
    };
    let made = platform.jetstream.create_stream(mirror).await;
    made.expect("it is made");
    gathered(&platform, "OF_REPLAY", ["ELSEWHERE", "OUTBOX_REPLAY"]).await;
    gathered(&platform, "OF_MIRROR", ["ELSEWHERE", "MIRROR"]).await;
    for (name, messages) in [("MIRROR", 1), ("OF_REPLAY", 2), ("OF_MIRROR", 2)] {
        platform.holds_in(name, messages).await;
    }

    let receipt = erase(&platform, user, &["--yes"], 0).await;
    let count = |(stream, events): (_, &Value)| (stream, events.as_array().map(Vec::len));
    let erased: Vec<_> = erased(&receipt).into_iter().map(count).collect();
    let all = [
        "OUTBOX",
        "MIRROR",
        "MIXED",
        "OF_MIRROR",
        "OF_REPLAY",
        "OUTBOX_REPLAY",
    ];
    assert_eq!(erased, all.map(|stream| (stream, Some(1))));
    for stream in ["ELSEWHERE", "MIXED", "OF_REPLAY", "OF_MIRROR"] {
        assert_eq!(platform.messages_in(stream).await, 1, "{stream}");
    }
}
