//! The log: one line at the start, one at each change of state, none per event.

use async_nats::jetstream::stream::{Config, StorageType};
use serde_json::Value;

use crate::support::{Fixture, Output, eventually};

/// Lines of a start, a thousand events and a stop at the default level.
const LINES_MAX: usize = 8;

#[tokio::test]
async fn json_lines_parse_and_none_is_per_event() {
    let mut fixture = Fixture::new().await;
    let mut relay = fixture.run_with(&["--log-format", "json"]);
    relay.streams().await;
    fixture.insert(1, 1_000).await;
    fixture.holds(1_000).await;
    relay.signal(rustix::process::Signal::TERM);
    assert_eq!(relay.ends().await, Some(0));
    let log = relay.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
        .collect();
    assert!(lines.len() <= LINES_MAX, "{log}");
    for line in &lines {
        for key in ["timestamp", "level", "message"] {
            assert!(line[key].is_string(), "no {key}: {line}");
        }
    }
    let start = lines
        .iter()
        .find(|line| line["message"].as_str().unwrap().contains("streaming"))
        .expect("the line of the start");
    for key in ["version", "postgres", "nats", "slot", "stream", "start_lsn"] {
        assert!(start[key].is_string(), "no {key}: {start}");
    }
    assert_eq!(start["slot"], fixture.name.as_str());
}

#[tokio::test]
async fn human_lines_have_no_secrets_and_no_colours() {
    let mut fixture = Fixture::new().await;
    let port = fixture.servers().postgres.port();
    let password = crate::support::secure::PASSWORD;
    let name = &fixture.name;
    let url = format!("postgres://postgres:{password}@127.0.0.1:{port}/{name}");
    fixture.set("WALRELAY_POSTGRES_URL", url);
    let mut relay = fixture.run_with(&["-vv"]);
    relay.streams().await;
    fixture.insert(1, 10).await;
    fixture.holds(10).await;
    relay.signal(rustix::process::Signal::TERM);
    assert_eq!(relay.ends().await, Some(0));
    let log = relay.log();
    assert!(!log.contains(password), "{log}");
    for told in [
        "connected to NATS",
        "connected to Postgres",
        "replication has begun",
        "the relay's state",
        "batch to the broker",
        "acknowledged",
        "status to Postgres",
        "connection to NATS closed",
    ] {
        assert!(log.contains(told), "no {told}: {log}");
    }
    assert!(
        !log.contains("payload_json") && !log.contains("aggregate_id\":"),
        "{log}"
    );
    assert!(!log.contains('\u{1b}'), "{log}");
}

#[tokio::test]
async fn a_stream_that_does_not_keep_what_it_takes_is_named_at_the_start() {
    let mut fixture = Fixture::bare().await;
    let name = fixture.name.clone();
    let config = Config {
        name: fixture.stream_name().to_owned(),
        subjects: vec![format!("{name}.>"), format!("walrelay.dead.{name}")],
        storage: StorageType::Memory,
        allow_atomic_publish: true,
        allow_batch_publish: true,
        ..Config::default()
    };
    let context = async_nats::jetstream::new(fixture.nats.clone());
    context.create_stream(config).await.unwrap();
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let log = relay.log();
    let warning = log.lines().find(|line| line.contains("storage is memory"));
    let warning = warning.unwrap_or_else(|| panic!("{log}"));
    assert!(warning.contains("WARN") && warning.contains(fixture.stream_name()));
    relay.stop().await;
}

#[tokio::test]
async fn what_ends_a_run_is_a_json_line_too() {
    let fixture = Fixture::new().await;
    for (name, value, code, word) in [
        ("WALRELAY_NATS_STREAM", "NOPE", 1, "NOPE"),
        ("WALRELAY_RELAY_HOLD_BACK", "soon", 2, "hold_back"),
    ] {
        let mut command = fixture.command(&["run", "--log-format", "json"]);
        command.env(name, value);
        let output = Output::of(&mut command).await;
        assert_eq!(output.code, Some(code), "{}", output.stderr);
        let last = output.stderr.lines().last().expect("a line");
        let line: Value = serde_json::from_str(last).unwrap_or_else(|_| panic!("not JSON: {last}"));
        assert_eq!(line["level"], "ERROR");
        let message = line["message"].as_str().expect("a text");
        assert!(
            message.to_lowercase().contains(&word.to_lowercase()),
            "{message}"
        );
        assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    }
    // Also where nothing is logged.
    let mut command = fixture.command(&["run", "--log-format", "json", "--log-level", "off"]);
    command.env("WALRELAY_NATS_STREAM", "NOPE");
    let output = Output::of(&mut command).await;
    assert!(output.stderr.starts_with("error: "), "{}", output.stderr);
}

#[tokio::test]
async fn a_line_of_a_share_names_its_slot_once() {
    let mut fixture = Fixture::bare().await;
    let name = fixture.name.clone();
    fixture.set("WALRELAY_RELAY_SHARES", "2");
    let stream = format!("{}_{{share}}", fixture.stream_name());
    fixture.set("WALRELAY_NATS_STREAM", stream);
    let subject = format!("{name}.{{share}}.{{event_type}}");
    fixture.set("WALRELAY_NATS_SUBJECT", subject);
    fixture.setup().await;
    for format in ["human", "json"] {
        let relay = fixture.run_with(&["--log-format", format]);
        let told = eventually("both shares stream", async || {
            let log = relay.log();
            let lines = log.lines().filter(|line| line.contains("streaming, "));
            let lines: Vec<String> = lines.map(str::to_owned).collect();
            (lines.len() == 2).then_some(lines)
        })
        .await;
        for (share, line) in told.iter().enumerate() {
            match format {
                "json" => {
                    let line: Value = serde_json::from_str(line).expect("JSON");
                    assert_eq!(line["slot"], line["span"]["slot"], "{share}: {line}");
                }
                _ => assert_eq!(line.matches("slot=").count(), 1, "{share}: {line}"),
            }
        }
        relay.stop().await;
    }
}
