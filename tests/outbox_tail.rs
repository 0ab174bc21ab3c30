//! `walrelay tail` as a process, against a real broker.

use std::process::Stdio;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use futures_util::StreamExt as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use uuid::Uuid;
use walrelay::event::EventEnvelope;
use walrelay::event::teaching::UserEraseRequested;
use walrelay::local::{LocalNats, NatsOptions, ServerBinaries};

async fn broker() -> LocalNats {
    let binaries = ServerBinaries::find().expect("the servers are there: make servers");
    LocalNats::start(&binaries, NatsOptions::default())
        .await
        .expect("nats-server starts")
}

async fn stream(nats: &LocalNats) -> jetstream::Context {
    let jetstream = connect(nats).await;
    let config = stream::Config {
        name: "OUTBOX".to_owned(),
        subjects: vec!["outbox.>".to_owned(), "walrelay.>".to_owned()],
        ..stream::Config::default()
    };
    jetstream
        .create_stream(config)
        .await
        .expect("the stream is new");
    jetstream
}

async fn connect(nats: &LocalNats) -> jetstream::Context {
    jetstream::new(
        async_nats::connect(nats.url())
            .await
            .expect("the broker accepts connections"),
    )
}

/// Publishes an erasure request as the relay would, and returns its event id.
async fn publish(jetstream: &jetstream::Context, position: &str) -> Uuid {
    let event = UserEraseRequested::new(Uuid::now_v7());
    let body = EventEnvelope::from_event(&event)
        .unwrap()
        .to_json()
        .unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("Walrelay-Position", format!("walrelay {position}"));
    send(jetstream, "outbox.user.erase_requested.v1", headers, body).await;
    event.event_id
}

async fn send(
    jetstream: &jetstream::Context,
    subject: &'static str,
    headers: HeaderMap,
    body: String,
) {
    jetstream
        .publish_with_headers(subject, headers, body.into())
        .await
        .unwrap()
        .await
        .expect("an ack");
}

/// A running `walrelay tail` with the settings of the test alone.
struct FoundEnd {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl FoundEnd {
    fn start(url: &str, arguments: &[&str]) -> FoundEnd {
        let mut child = Command::new(env!("CARGO_BIN_EXE_walrelay"))
            .arg("tail")
            .args(arguments)
            .env_clear()
            .env("NATS_URL", url)
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        FoundEnd { child, lines }
    }

    async fn line(&mut self) -> String {
        self.lines
            .next_line()
            .await
            .expect("UTF-8")
            .expect("a line before the end")
    }

    async fn json(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.line().await).expect("a JSON object a line")
    }

    async fn exit_code(mut self) -> Option<i32> {
        // The pipe stays open: its end would end the program too.
        self.child.wait().await.unwrap().code()
    }
}

#[tokio::test]
async fn events_are_shown_once_across_a_restart_of_the_broker() {
    let mut nats = broker().await;
    let jetstream = stream(&nats).await;
    let first = publish(&jetstream, "0/1A2B3C8:1").await;
    let mut tail = FoundEnd::start(&nats.url(), &["--since", "all", "--count", "3", "--json"]);
    let shown = tail.json().await;
    assert_eq!(shown["id"], first.to_string());
    assert_eq!(shown["sequence"], 1);
    assert_eq!(shown["position"], "0/1A2B3C8:1");
    assert_eq!(shown["slot"], "walrelay");
    assert_eq!(shown["class"], "event");
    assert_eq!(shown["event_type"], "user.erase_requested.v1");
    assert!(shown["latency_ms"].as_f64() >= shown["stored_latency_ms"].as_f64());

    nats.kill();
    nats.start_again().await.unwrap();
    let jetstream = connect(&nats).await;
    let second = publish(&jetstream, "0/1A2B3C8:2").await;
    // The relay's bookkeeping is nothing to see; a dead letter is.
    send(
        &jetstream,
        "walrelay.lane.walrelay",
        HeaderMap::new(),
        "{}".to_owned(),
    )
    .await;
    let mut headers = HeaderMap::new();
    headers.insert("Walrelay-Kind", "dead-letter");
    headers.insert("Walrelay-Reason", "too_large");
    send(
        &jetstream,
        "walrelay.dead.walrelay",
        headers,
        "{}".to_owned(),
    )
    .await;

    assert_eq!(tail.json().await["id"], second.to_string());
    let letter = tail.json().await;
    assert_eq!(
        (&letter["class"], &letter["reason"]),
        (&"dead_letter".into(), &"too_large".into())
    );
    assert_eq!(tail.exit_code().await, Some(0));
}

#[tokio::test]
async fn filters_leave_out_and_count_what_is_shown_alone() {
    let nats = broker().await;
    let jetstream = stream(&nats).await;
    publish(&jetstream, "0/1:1").await;
    let mut headers = HeaderMap::new();
    headers.insert("Walrelay-Kind", "dead-letter");
    let letter = "{\"id\":\"7\"}".to_owned();
    send(&jetstream, "walrelay.dead.OUTBOX.s", headers, letter).await;
    let last = publish(&jetstream, "0/2:1").await;
    let shown = async |since: &str, filters: &[&str]| {
        let all = ["--since", since, "--json", "--count", "1"];
        let mut tail = FoundEnd::start(&nats.url(), &[&all[..], filters].concat());
        let shown = tail.json().await;
        assert_eq!(tail.exit_code().await, Some(0));
        shown
    };
    assert_eq!(shown("all", &["--kind", "dead-letter"]).await["id"], "7");
    let first = shown("all", &["--event-type", "user.*", "--kind", "event"]).await;
    assert_eq!(first["sequence"], 1);
    let third = shown("seq:3", &[]).await;
    assert_eq!(third["id"], last.to_string());
    let aggregate = third["aggregate_id"].as_str().expect("a UUID");
    let found = shown("all", &["--aggregate-id", aggregate]).await;
    assert_eq!(found["sequence"], 3);
    let mut unknown = FoundEnd::start(&nats.url(), &["--kind", "deadletter"]);
    assert_eq!(unknown.lines.next_line().await.expect("UTF-8"), None);
    assert_eq!(unknown.exit_code().await, Some(2));
}

#[tokio::test]
async fn only_what_is_new_is_shown_until_a_signal() {
    let nats = broker().await;
    let jetstream = stream(&nats).await;
    publish(&jetstream, "0/1:1").await;
    let mut tail = FoundEnd::start(&nats.url(), &[]);
    assert!(
        tail.line().await.contains("POSITION"),
        "the heading, when it reads"
    );
    let new = publish(&jetstream, "0/2:1").await;
    let line = tail.line().await;
    assert!(
        line.ends_with(&new.to_string()) && line.contains("0/2:1"),
        "{line}"
    );
    let pid = Pid::from_raw(tail.child.id().unwrap() as i32).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(tail.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_closed_pipe_is_no_failure_and_a_missing_stream_is_one() {
    let nats = broker().await;
    assert_eq!(FoundEnd::start(&nats.url(), &[]).exit_code().await, Some(1));
    stream(&nats).await;
    let mut tail = FoundEnd::start(&nats.url(), &["--since", "seq:2", "--subject", "outbox.>"]);
    tail.line().await;
    let (reader, mut child) = (tail.lines, tail.child);
    // Nothing is published: the end of the reader is enough.
    drop(reader);
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn the_stream_is_looked_at_once_at_the_start() {
    let nats = broker().await;
    let jetstream = stream(&nats).await;
    publish(&jetstream, "0/10.0").await;
    let observer = async_nats::connect(nats.url()).await.unwrap();
    let mut requests = observer.subscribe("$JS.API.STREAM.>").await.unwrap();
    observer.flush().await.unwrap();
    let mut tail = FoundEnd::start(&nats.url(), &["--since", "all", "--count", "1", "--json"]);
    tail.json().await;
    assert_eq!(tail.exit_code().await, Some(0));
    // Behind all that the command has asked.
    observer
        .publish("$JS.API.STREAM.end", "".into())
        .await
        .unwrap();
    let mut seen = Vec::new();
    while let Some(request) = requests.next().await {
        if request.subject.ends_with(".end") {
            break;
        }
        seen.push(request.subject.to_string());
    }
    assert_eq!(seen, ["$JS.API.STREAM.INFO.OUTBOX"]);
}

#[tokio::test]
async fn a_payload_of_bytes_is_shown_as_the_message_has_it() {
    let nats = broker().await;
    let jetstream = stream(&nats).await;
    let position = |headers: &mut HeaderMap| headers.insert("Walrelay-Position", "walrelay 0/1:1");
    let envelope = |payload: &str| {
        format!(
            r#"{{"id":"7","aggregate_id":"1","event_type":"a","event_version":1,"occurred_at":"2026-11-28T00:00:00Z",{payload}}}"#
        )
    };
    let mut headers = HeaderMap::new();
    position(&mut headers);
    for payload in [
        r#""payload_base64":"AP8=""#,
        r#""payload_base64":"YWI=""#,
        r#""payload_json":"AP8=""#,
    ] {
        send(&jetstream, "outbox.a", headers.clone(), envelope(payload)).await;
    }
    // By itself, of a text that is no JSON; then of a CloudEvent in binary mode.
    headers.insert("id", "8");
    send(&jetstream, "outbox.a", headers, "a text".to_owned()).await;
    let mut headers = HeaderMap::new();
    position(&mut headers);
    headers.insert("ce-id", "9");
    headers.insert("ce-datacontenttype", "application/octet-stream");
    send(&jetstream, "outbox.a", headers, "ab".to_owned()).await;
    let all = ["--since", "all", "--json", "--count", "5"];
    let mut tail = FoundEnd::start(&nats.url(), &all);
    for (json, base64) in [
        (None, Some("AP8=")),
        (None, Some("YWI=")),
        (Some("AP8="), None),
        (Some("a text"), None),
        (None, Some("YWI=")),
    ] {
        let shown = tail.json().await;
        assert_eq!(shown["payload_json"].as_str(), json, "{shown}");
        assert_eq!(
            shown.get("payload_base64").and_then(|it| it.as_str()),
            base64,
            "{shown}"
        );
    }
    assert_eq!(tail.exit_code().await, Some(0));
}
