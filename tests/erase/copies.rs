//! `walrelay erase` against real servers, in streams that others write to as well, and in copies of copies.

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{Config, Source};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::platform::Platform;

async fn make(platform: &Platform, name: &str, subjects: &[&str]) {
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

async fn waits_for(platform: &Platform, name: &str, messages: u64) {
    loop {
        let mut stream = platform.jetstream.get_stream(name).await.expect("there");
        if stream.info().await.expect("told").state.messages >= messages {
            return;
        }
        tokio::task::yield_now().await;
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
        waits_for(&platform, name, messages).await;
    }

    let id = user.to_string();
    let erase = ["erase", "--aggregate-id", &id, "--yes", "--json"];
    let output = platform.output(&erase).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let receipt: Value = serde_json::from_slice(&output.stdout).expect("a receipt");
    let streams = receipt["streams"].as_array().expect("a list");
    let mut erased: Vec<_> = (streams.iter())
        .map(|of| {
            (
                of["stream"].as_str().unwrap(),
                of["events"].as_array().unwrap().len(),
            )
        })
        .collect();
    erased.sort_unstable();
    let all = [
        "MIRROR",
        "MIXED",
        "OF_MIRROR",
        "OF_REPLAY",
        "OUTBOX",
        "OUTBOX_REPLAY",
    ];
    assert_eq!(erased, all.map(|stream| (stream, 1)));
    for (name, left) in [
        ("ELSEWHERE", 1),
        ("MIXED", 1),
        ("OF_REPLAY", 1),
        ("OF_MIRROR", 1),
    ] {
        let mut stream = platform.jetstream.get_stream(name).await.expect("there");
        assert_eq!(
            stream.info().await.expect("told").state.messages,
            left,
            "{name}"
        );
    }
}
